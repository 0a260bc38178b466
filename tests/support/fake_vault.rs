//! A scripted Vault, for answers the real one cannot be made to give: hyper on 127.0.0.1, in a
//! thread and runtime of its own. Include it with `#[path = "support/fake_vault.rs"]`.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// One scripted answer.
#[derive(Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    end: End,
}

#[derive(Clone, Copy)]
enum End {
    Whole,
    CloseAfter(usize),
    Hang,
}

impl Answer {
    /// Any status with any body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), end: End::Whole }
    }

    /// Vault's error body.
    pub fn errors(status: u16, errors: &[&str]) -> Self {
        Self::new(status, serde_json::json!({ "errors": errors }).to_string())
    }

    /// 200 in Vault's envelope; `fields` are laid over the defaults.
    pub fn envelope(fields: serde_json::Value) -> Self {
        let mut body = serde_json::json!({
            "request_id": "11111111-2222-3333-4444-555555555555",
            "lease_id": "", "renewable": false,
            "lease_duration": 0, "data": null, "wrap_info": null, "warnings": null, "auth": null,
        });
        if let (Some(body), serde_json::Value::Object(fields)) = (body.as_object_mut(), fields) {
            body.extend(fields);
        }
        Self::new(200, body.to_string())
    }

    /// A successful login or renewal of a service token.
    pub fn auth(token: &str, seconds: u64) -> Self {
        Self::envelope(serde_json::json!({ "auth": {
            "client_token": token, "accessor": "accessor", "policies": ["default"],
            "token_policies": ["default"], "metadata": {}, "lease_duration": seconds,
            "renewable": true, "entity_id": "", "token_type": "service", "orphan": true,
            "mfa_requirement": null, "num_uses": 0,
        }}))
    }

    /// The same with another status.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The same with one more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same, but the connection is closed after `bytes` of the body.
    pub fn close_after(mut self, bytes: usize) -> Self {
        self.end = End::CloseAfter(bytes);
        self
    }

    /// No answer at all, on an open connection.
    pub fn hang() -> Self {
        Self { end: End::Hang, ..Self::new(200, "") }
    }
}

/// A request as it arrived.
#[derive(Clone)]
pub struct Recorded {
    pub method: String,
    /// Path and query, still percent-encoded.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Recorded {
    /// A header as text, empty if it was not sent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

/// Answers what no script does.
type Model = Box<dyn FnMut(&Recorded) -> Answer + Send>;

#[derive(Default)]
struct Script {
    answers: HashMap<(String, String), VecDeque<Answer>>,
    requests: Vec<Recorded>,
    model: Option<Model>,
}

/// The server. Dropping it closes every connection.
pub struct FakeVault {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeVault {
    /// Starts on a free port. Paths without a scripted answer get Vault's 404.
    pub fn start() -> Self {
        Self::serve(Script::default())
    }

    /// Starts with a model that answers what no script does, and sees every request once.
    pub fn with_model(model: impl FnMut(&Recorded) -> Answer + Send + 'static) -> Self {
        Self::serve(Script { model: Some(Box::new(model)), ..Script::default() })
    }

    fn serve(script: Script) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind a loopback port");
        listener.set_nonblocking(true).expect("a listener can be non-blocking");
        let address = listener.local_addr().expect("a bound listener has an address");
        let script = Arc::new(Mutex::new(script));
        let (stop, stopped) = oneshot::channel();
        let served = script.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                tokio::select! {
                    () = accept(listener, served) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, script, stop: Some(stop), thread: Some(thread) }
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Queues an answer; the last one queued for a method and path is given again and again.
    pub fn answer(&self, method: &str, path: &str, answer: Answer) -> &Self {
        let key = (method.to_owned(), path.to_owned());
        self.script.lock().unwrap().answers.entry(key).or_default().push_back(answer);
        self
    }

    /// Everything that arrived, in order.
    pub fn requests(&self) -> Vec<Recorded> {
        self.script.lock().unwrap().requests.clone()
    }

    /// Method and target of everything that arrived, in order.
    pub fn seen(&self) -> Vec<String> {
        self.requests().iter().map(|r| format!("{} {}", r.method, r.target)).collect()
    }
}

impl Drop for FakeVault {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: std::net::TcpListener, script: Arc<Mutex<Script>>) {
    let listener = TcpListener::from_std(listener).expect("a listener inside a runtime");
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let script = script.clone();
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let script = script.clone();
                async move { Ok::<_, Infallible>(respond(request, &script).await) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn respond(request: Request<Incoming>, script: &Mutex<Script>) -> Response<Scripted> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
    let answer = {
        let mut script = script.lock().unwrap();
        let request = Recorded {
            method: parts.method.to_string(),
            target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            headers: parts.headers,
            body,
        };
        let key = (parts.method.to_string(), parts.uri.path().to_owned());
        let answer = match script.answers.get_mut(&key) {
            Some(queue) if queue.len() > 1 => queue.pop_front(),
            Some(queue) => queue.front().cloned(),
            None => script.model.as_mut().map(|model| model(&request)),
        };
        script.requests.push(request);
        answer
    };
    let answer = answer.unwrap_or_else(|| Answer::errors(404, &[]));
    let length = answer.body.len();
    let (sent, cut) = match answer.end {
        End::Whole => (answer.body, false),
        End::CloseAfter(bytes) => (answer.body[..bytes.min(length)].to_vec(), true),
        End::Hang => std::future::pending().await,
    };
    let mut response = Response::new(Scripted { rest: Some(sent.into()), cut, length });
    *response.status_mut() = StatusCode::from_u16(answer.status).expect("a scripted status");
    for (name, value) in answer.headers {
        let name: hyper::header::HeaderName = name.parse().expect("a scripted header name");
        response.headers_mut().append(name, value.parse().expect("a scripted header value"));
    }
    if length > 0 {
        response.headers_mut().insert("content-length", length.into());
    }
    response
}

/// A body that may break off before its announced length.
struct Scripted {
    rest: Option<Bytes>,
    cut: bool,
    length: usize,
}

impl Body for Scripted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.rest.take() {
            Some(bytes) if !bytes.is_empty() => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            _ if self.cut => {
                self.cut = false;
                Poll::Ready(Some(Err(io::Error::other("scripted end"))))
            }
            _ => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.length == 0 && !self.cut
    }
}
