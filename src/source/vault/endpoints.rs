//! The Vault endpoints that vaultrs lacks, as rustify endpoints: generic read, mount probe, leases.

use std::num::NonZeroU64;

use rustify::endpoint::Endpoint;
use rustify::enums::{RequestMethod, RequestType, ResponseType};
use rustify::errors::ClientError;
use serde::Serialize;

use crate::domain::SecretPath;

/// `GET /v1/<path>[?version=N]`.
pub(super) struct ReadSecret<'a> {
    pub(super) path: &'a SecretPath,
    pub(super) version: Option<NonZeroU64>,
}

/// `GET /v1/sys/internal/ui/mounts/<path>`.
pub(super) struct ReadMount<'a> {
    pub(super) path: &'a SecretPath,
}

/// `POST /v1/sys/leases/renew`; `increment` in seconds.
#[derive(Serialize)]
pub(super) struct RenewLease<'a> {
    pub(super) lease_id: &'a str,
    pub(super) increment: u64,
}

/// `POST /v1/sys/leases/revoke`, answered before the back end is done: Vault itself retries that.
#[derive(Serialize)]
pub(super) struct RevokeLease<'a> {
    pub(super) lease_id: &'a str,
}

impl Endpoint for ReadSecret<'_> {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        self.path.to_string()
    }

    fn method(&self) -> RequestMethod {
        RequestMethod::GET
    }

    fn query(&self) -> Result<Option<String>, ClientError> {
        Ok(self.version.map(|version| format!("version={version}")))
    }
}

impl Endpoint for ReadMount<'_> {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        format!("sys/internal/ui/mounts/{}", self.path)
    }

    fn method(&self) -> RequestMethod {
        RequestMethod::GET
    }
}

macro_rules! lease_endpoint {
    ($name:ident, $path:literal) => {
        impl Endpoint for $name<'_> {
            type Response = ();
            const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
            const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

            fn path(&self) -> String {
                $path.to_owned()
            }

            fn method(&self) -> RequestMethod {
                RequestMethod::POST
            }

            fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
                let body = serde_json::to_vec(self);
                body.map(Some).map_err(|e| ClientError::DataParseError { source: e.into() })
            }
        }
    };
}

lease_endpoint!(RenewLease, "sys/leases/renew");
lease_endpoint!(RevokeLease, "sys/leases/revoke");
