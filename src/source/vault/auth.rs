//! Sessions: log in with the service-account token, renew it and end it.

use std::fmt::Display;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use vaultrs::api::auth::kubernetes::requests::LoginWithKubernetesRequest;
use vaultrs::api::token::requests::{RenewTokenSelfRequest, RevokeTokenSelfRequest};
use zeroize::{Zeroize, Zeroizing};

use super::classify::{self, Call, Operation};
use super::client::Client;
use super::decode;
use super::{VaultConfig, VaultError};
use crate::domain::{AccountLogin, SecretPath, Token};
use crate::source::{ErrorClass, Login, SourceError, TokenGrant};

/// One byte more than [`Token`] accepts, so that a longer file is seen to be longer.
const TOKEN_FILE_BYTES_MAX: usize = 64 * 1024 + 1;

/// Checks the settings a login needs.
pub(super) fn check_settings(config: &VaultConfig) -> Result<(), VaultError> {
    config.auth_mount.parse::<SecretPath>().map_err(VaultError::AuthMount)?;
    if config.role.trim().is_empty() { Err(VaultError::Role) } else { Ok(()) }
}

/// Logs in with the token file as it is now. Tokens with limited uses are refused and ended.
pub(super) async fn login_agent(
    client: &Client,
    config: &VaultConfig,
) -> Result<Login, SourceError> {
    let subject = subject(config, &config.role);
    let call = Call::new(Operation::Login, &subject);
    let jwt = service_account_token(&config.token_file).await.map_err(|problem| {
        // No answer of Vault's: what is cached stays good, and the kubelet may yet write the file.
        SourceError::new(ErrorClass::Unreachable, format!("{call}: {problem}"))
    })?;
    login(client, config, &subject, &config.role, &jwt).await
}

/// Logs in as a pod's service account with a token one of its pods has delivered.
pub(super) async fn login_account(
    client: &Client,
    config: &VaultConfig,
    login_as: &AccountLogin,
    token: Option<&Token>,
) -> Result<Login, SourceError> {
    let refuse = |class, message: String| Err(SourceError::unsent(class, message));
    let Some(pods) = &config.pods else {
        let message = "pods cannot log in here: the source has no pod_role in the configuration";
        return refuse(ErrorClass::InvalidRequest, message.to_owned());
    };
    let role = match login_as.role.clone().map_or_else(|| pods.role.role_of(&login_as.account), Ok)
    {
        Ok(role) => role,
        Err(error) => {
            let message = format!("no role for service account {}: {error}", login_as.account);
            return refuse(ErrorClass::InvalidRequest, message);
        }
    };
    let subject = subject(config, role.as_str());
    let call = Call::new(Operation::Login, &subject);
    let Some(token) = token else {
        let message = format!(
            "{call}: no living pod of service account {} has delivered a token; the kubelet \
             delivers one within two minutes",
            login_as.account
        );
        return refuse(ErrorClass::Unreachable, message);
    };
    login(client, config, &subject, role.as_str(), token).await
}

fn subject(config: &VaultConfig, role: &str) -> String {
    format!("auth/{} as role '{role}'", config.auth_mount)
}

async fn login(
    client: &Client,
    config: &VaultConfig,
    subject: &str,
    role: &str,
    jwt: &Token,
) -> Result<Login, SourceError> {
    let mut request = LoginWithKubernetesRequest {
        mount: config.auth_mount.clone(),
        role: role.to_owned(),
        jwt: jwt.expose().to_owned(),
    };
    let call = Call::new(Operation::Login, subject).hiding(jwt.expose());
    let answer = client.call(&call, None, &request).await;
    request.jwt.zeroize();
    match decode::login(&answer?) {
        Ok(login) => Ok(login),
        Err((defect, token)) => {
            if let Some(token) = token {
                // Best effort: a token nobody will use should not outlive its refusal.
                drop(revoke(client, &token).await);
            }
            Err(classify::unusable(&call, defect))
        }
    }
}

/// Renews the token for `increment`, in whole seconds.
pub(super) async fn renew(
    client: &Client,
    token: &Token,
    increment: Duration,
) -> Result<TokenGrant, SourceError> {
    let call = Call::new(Operation::RenewToken, "");
    let increment = Some(format!("{}s", increment.as_secs()));
    let body = client.call(&call, Some(token), &RenewTokenSelfRequest { increment }).await?;
    decode::token_grant(&body).map_err(|defect| classify::unusable(&call, defect))
}

/// Ends the token and every lease made with it.
pub(super) async fn revoke(client: &Client, token: &Token) -> Result<(), SourceError> {
    let call = Call::new(Operation::EndSession, "");
    let body = client.call(&call, Some(token), &RevokeTokenSelfRequest {}).await?;
    decode::acknowledged(&body).map_err(|defect| classify::unusable(&call, defect))
}

async fn service_account_token(file: &Path) -> Result<Token, String> {
    let path = file.to_path_buf();
    tokio::task::spawn_blocking(move || read_token_file(&path))
        .await
        .unwrap_or_else(|_| Err("token_file: reading was interrupted".to_owned()))
}

/// Reads and checks the file; what is refused is named with field, file and remedy, never quoted.
fn read_token_file(file: &Path) -> Result<Token, String> {
    let problem = |what: &dyn Display, remedy: &str| {
        Err(format!("token_file '{}': {what}; {remedy}", file.display()))
    };
    // Not blocking: a FIFO would hold this thread for ever.
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file);
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => return problem(&error, "check the path and that this user may read it"),
    };
    if !opened.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return problem(&"not a regular file", "name the service-account token's file");
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(TOKEN_FILE_BYTES_MAX + 1));
    if let Err(error) = opened.take(TOKEN_FILE_BYTES_MAX as u64).read_to_end(&mut bytes) {
        return problem(&error, "check the file");
    }
    Token::new(std::mem::take(&mut *bytes)).or_else(|error| {
        problem(&error, "write the token alone into it, without a line end, as the kubelet does")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_is_refused_by_field_file_and_remedy_and_never_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let canary = "eyJhbGciOiJSUzI1NiJ9.canary.c2ln";
        let long = "a".repeat(70_000);
        for (content, problem) in [
            (Some(String::new()), "empty"),
            (Some(format!("{canary}\n")), "line end"),
            (Some(format!("{canary} {canary}")), "white space"),
            (Some(format!("{canary}\u{e9}")), "printable ASCII"),
            (Some(long), "64 KiB"),
            (None, "No such file"),
        ] {
            let _ = std::fs::remove_file(&file);
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            let error = read_token_file(&file).err().unwrap();
            assert!(error.contains(problem), "{problem}: {error}");
            assert!(error.contains("token_file") && error.contains(file.to_str().unwrap()));
            assert!(!error.contains("canary") && error.contains("; "), "{error}");
        }
        std::fs::write(&file, canary).unwrap();
        assert_eq!(read_token_file(&file).ok().unwrap().expose(), canary);
    }

    #[test]
    fn a_token_file_that_is_no_file_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        for path in [fifo.as_path(), dir.path()] {
            assert!(read_token_file(path).err().unwrap().contains("not a regular file"));
        }
    }
}
