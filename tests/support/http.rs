//! A blocking JSON client for the servers' own APIs.

use std::sync::LazyLock;
use std::time::Duration;

use reqwest::{Certificate, Client, Method};
use serde_json::Value;

pub struct Api {
    base: String,
    client: Client,
}

pub struct Reply {
    pub status: u16,
    /// `Null` when there is no body or it is not JSON.
    pub body: Value,
}

impl Api {
    /// `ca` is a PEM bundle, trusted alone.
    pub fn new(base: &str, ca: Option<&str>) -> Api {
        // Servers are killed and started again on the same port: no connection is worth keeping.
        let mut client =
            Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(Duration::from_secs(30));
        if let Some(pem) = ca {
            let bundle = Certificate::from_pem_bundle(pem.as_bytes()).expect("a PEM bundle");
            client = client.tls_certs_only(bundle);
        }
        Api { base: base.to_owned(), client: client.build().expect("build the HTTP client") }
    }

    /// `Err` only when no answer came.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Reply, reqwest::Error> {
        let method = Method::from_bytes(method.as_bytes()).expect("an HTTP method");
        let mut request = self.client.request(method, format!("{}/{path}", self.base));
        if let Some(body) = body {
            request = request.body(body.to_string());
            if !headers.iter().any(|(name, _)| *name == "Content-Type") {
                request = request.header("Content-Type", "application/json");
            }
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        block_on(async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            let bytes = response.bytes().await?;
            Ok(Reply { status, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) })
        })
    }
}

/// Runs a future to its end from any thread, one that drives a runtime included.
pub fn block_on<F>(future: F) -> F::Output
where
    F: Future + Send,
    F::Output: Send,
{
    static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("start the harness runtime")
    });
    std::thread::scope(|scope| {
        let done = scope.spawn(|| RUNTIME.block_on(future)).join();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
