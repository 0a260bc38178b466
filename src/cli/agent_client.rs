//! Talks to a running agent over its socket and turns replies into values or errors.

use std::future::Future;
use std::path::Path;

use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::delivery::socket::client::{self, ClientError};

/// Why there is no answer to show.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentError {
    /// It could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The agent refused; its own words.
    #[error("the agent answered {status}: {reasons}")]
    Refused {
        /// The status code.
        status: StatusCode,
        /// What it said.
        reasons: String,
    },
    /// An answer of another version, or of something else than an agent.
    #[error("the agent's answer is not understood; is it the same version as this command?")]
    Garbled(#[source] serde_json::Error),
}

/// What is asked.
pub(super) enum Question<'a> {
    /// GET with a query.
    Get { path: &'a str, query: &'a [(&'a str, &'a str)] },
    /// POST with a JSON body.
    Post { path: &'a str, body: &'a serde_json::Value },
}

/// Asks and decodes the answer.
pub(super) async fn ask<T: DeserializeOwned>(
    socket: &Path,
    question: Question<'_>,
) -> Result<T, AgentError> {
    let (status, body) = exchange(socket, question).await?;
    decode(status, &body)
}

/// Runs a conversation with an agent on a runtime of its own.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

async fn exchange(
    socket: &Path,
    question: Question<'_>,
) -> Result<(StatusCode, Vec<u8>), ClientError> {
    match question {
        Question::Get { path, query } => {
            client::get(socket, &client::with_query(path, query)).await
        }
        Question::Post { path, body } => client::post(socket, path, body).await,
    }
}

fn decode<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T, AgentError> {
    if status.is_success() {
        return serde_json::from_slice(body).map_err(AgentError::Garbled);
    }
    /// Vault's error body.
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<String>,
    }
    let reasons = match serde_json::from_slice::<Errors>(body) {
        Ok(body) if !body.errors.is_empty() => body.errors.join("; "),
        _ => "no reason given".to_owned(),
    };
    Err(AgentError::Refused { status, reasons })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_reported_in_the_agents_own_words() {
        let body = br#"{"errors":["permission denied"]}"#;
        let error = decode::<serde_json::Value>(StatusCode::FORBIDDEN, body).unwrap_err();
        assert_eq!(error.to_string(), "the agent answered 403 Forbidden: permission denied");
        let error = decode::<serde_json::Value>(StatusCode::BAD_GATEWAY, b"<html>").unwrap_err();
        assert_eq!(error.to_string(), "the agent answered 502 Bad Gateway: no reason given");
    }

    #[test]
    fn a_success_that_is_no_json_is_not_taken_for_an_answer() {
        let error = decode::<serde_json::Value>(StatusCode::OK, b"<html>").unwrap_err();
        assert!(matches!(error, AgentError::Garbled(_)));
    }
}
