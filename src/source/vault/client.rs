//! One call to Vault: endpoint and middleware make the request, the answer gets its class.

use rustify::endpoint::{Endpoint, MiddleWare};
use rustify::errors::ClientError;
use vaultrs::api::EndpointMiddleware;
use vaultrs::api::token::requests::LookupTokenSelfRequest;
use zeroize::{Zeroize, Zeroizing};

use super::address::Address;
use super::classify::{self, Call, Operation, Rejection, Verdict};
use super::http::{Channel, Deadlines, Transport};
use super::{VaultConfig, VaultError, decode};
use crate::domain::Token;
use crate::source::{ErrorClass, SourceError};

/// Calls Vault's endpoints; knows the namespace and the transport, keeps no token.
pub(super) struct Client {
    transport: Transport,
    namespace: Option<String>,
}

/// The body of a success, wiped when dropped.
pub(super) type Body = Zeroizing<Vec<u8>>;

impl Client {
    /// Prepares the transport; nothing is sent.
    pub(super) fn new(config: &VaultConfig, deadlines: Deadlines) -> Result<Self, VaultError> {
        let address = Address::parse(&config.address)?;
        if let Some(namespace) = &config.namespace {
            check_namespace(namespace)?;
        }
        let transport = Transport::new(
            address,
            config.ca_file.as_deref(),
            config.server_name.as_deref(),
            deadlines,
        )?;
        Ok(Self { transport, namespace: config.namespace.clone() })
    }

    /// The address as configured.
    pub(super) fn address(&self) -> &str {
        self.transport.address().as_str()
    }

    /// Sends one request and returns the body of a success. A 403 costs a second request, which
    /// looks the token up to tell a dead one from one without the right.
    pub(super) async fn call<E: Endpoint>(
        &self,
        call: &Call<'_>,
        token: Option<&Token>,
        endpoint: &E,
    ) -> Result<Body, SourceError> {
        match (self.attempt(call, token, endpoint).await, token) {
            (Ok(body), _) => Ok(body),
            (Err(Verdict::TokenInDoubt(denied)), Some(token)) => {
                Err(classify::settle(call, denied, self.lookup(token).await))
            }
            (Err(Verdict::Settled(error) | Verdict::TokenInDoubt(error)), _) => Err(error),
        }
    }

    async fn lookup(&self, token: &Token) -> Result<(), SourceError> {
        let call = Call::new(Operation::LookupToken, "");
        match self.attempt(&call, Some(token), &LookupTokenSelfRequest {}).await {
            Ok(body) => {
                decode::data(&body).map(drop).map_err(|defect| classify::unusable(&call, defect))
            }
            Err(Verdict::Settled(error) | Verdict::TokenInDoubt(error)) => Err(error),
        }
    }

    async fn attempt<E: Endpoint>(
        &self,
        call: &Call<'_>,
        token: Option<&Token>,
        endpoint: &E,
    ) -> Result<Body, Verdict> {
        let request = self.request(token, endpoint).map_err(|_| {
            let message = format!("{call}: the request could not be built");
            Verdict::Settled(SourceError::new(ErrorClass::InvalidRequest, message))
        })?;
        let channel = match call.operation {
            Operation::Fetch(_) => Channel::SecretRead,
            _ => Channel::Control,
        };
        let answer = self
            .transport
            .exchange(request, channel)
            .await
            .map_err(|failure| Verdict::Settled(classify::unanswered(call, &failure)))?;
        if rustify::client::HTTP_SUCCESS_CODES.contains(&answer.status) {
            return Ok(answer.body);
        }
        let rejection = Rejection {
            status: answer.status,
            retry_after: answer.retry_after.as_deref(),
            body: &answer.body,
            token: token.map_or("", Token::expose),
        };
        Err(classify::reject(call, &rejection, jiff::Timestamp::now()))
    }

    /// rustify's own `exec` drops headers and error bodies, so only the request is built by it.
    fn request<E: Endpoint>(
        &self,
        token: Option<&Token>,
        endpoint: &E,
    ) -> Result<http::Request<Vec<u8>>, ClientError> {
        // The middleware panics on bytes that cannot travel in a header: `Token` and
        // `check_namespace` have refused those.
        let mut middleware = EndpointMiddleware {
            token: token.map_or_else(String::new, |token| token.expose().to_owned()),
            version: "v1".to_owned(),
            wrap: None,
            namespace: self.namespace.clone(),
        };
        let request = endpoint.request(self.transport.base()).and_then(|mut request| {
            middleware.request(endpoint, &mut request)?;
            Ok(request)
        });
        middleware.token.zeroize();
        let mut request = request?;
        if let Some(value) = request.headers_mut().get_mut("x-vault-token") {
            value.set_sensitive(true);
        }
        Ok(request)
    }
}

fn check_namespace(namespace: &str) -> Result<(), VaultError> {
    if namespace.trim_matches('/').is_empty() {
        return Err(VaultError::Namespace("empty"));
    }
    if !namespace.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(VaultError::Namespace("holds a byte outside printable ASCII"));
    }
    Ok(())
}
