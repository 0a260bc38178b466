//! The yardstick: a hyper server that knows one reply, in a process of its own.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs, io};

use bytes::Bytes;
use http::{Response, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

use crate::support::process::Process;

const ROLE: &str = "--bare-server";

/// Starts this same program again as a server at `<dir>/<name>.sock` that answers with `body`.
pub fn start(dir: &Path, name: &str, body: &str) -> (Process, PathBuf) {
    let (socket, file) = (dir.join(format!("{name}.sock")), dir.join(format!("{name}.body")));
    fs::write(&file, body).expect("write the reply");
    let mut command = Command::new(env::current_exe().expect("this program has a path"));
    command.arg(ROLE).arg(&socket).arg(&file);
    let mut process = Process::spawn(name, &command, dir);
    process.wait_until(Duration::from_secs(10), "the bare server listens", || socket.exists());
    (process, socket)
}

/// Serves and never returns, if this process was started as the server.
pub fn serve_if_asked() -> io::Result<()> {
    let arguments: Vec<_> = env::args_os().collect();
    let [_, role, socket, file] = &arguments[..] else { return Ok(()) };
    if role.as_os_str() != ROLE {
        return Ok(());
    }
    let body = Bytes::from(fs::read(file)?);
    // As the agent's own runtime.
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(1, 4))
        .enable_all()
        .build()?;
    runtime.block_on(serve(Path::new(socket), body))
}

async fn serve(socket: &Path, body: Bytes) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                let body = body.clone();
                connections.spawn(async move {
                    let service = service_fn(move |_| {
                        let reply = reply(body.clone());
                        async move { Ok::<_, Infallible>(reply) }
                    });
                    let http = http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }
    }
}

/// The headers of the agent's replies, none of them worked out.
fn reply(body: Bytes) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(body));
    let headers = reply.headers_mut();
    for (name, value) in [
        (header::HeaderName::from_static("x-cache"), "HIT"),
        (header::AGE, "1"),
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    reply
}
