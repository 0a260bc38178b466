//! A closed loop of clients on a Unix socket: raw bytes out, whole replies in, latencies kept.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::report::{median, percentile};

/// Longest reply.
const REPLY_MAX: usize = 16 * 1024;

/// How clients connect.
#[derive(Clone, Copy)]
pub enum Connections {
    /// This many, each kept open.
    Kept(usize),
    /// This many clients, each with a new connection for every request.
    New(usize),
}

/// What a load saw.
pub struct Seen {
    pub requests: usize,
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
}

/// Asks for `targets` in turn over `socket` during `length`. Anything but a complete 200 is an
/// error. Connections that are kept are there before that, and have asked for each target once:
/// what a new connection costs is what the others show.
pub fn run(
    socket: &Path,
    targets: &[String],
    connections: Connections,
    length: Duration,
) -> io::Result<Seen> {
    // One thread: the second core of the smallest machine belongs to the server.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let end = match connections {
        Connections::Kept(_) => "",
        Connections::New(_) => "connection: close\r\n",
    };
    let request =
        |target: &String| format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{end}\r\n").into();
    let requests: Arc<[Vec<u8>]> = targets.iter().map(request).collect();
    runtime.block_on(async {
        let mut streams = Vec::new();
        if let Connections::Kept(clients) = connections {
            for _ in 0..clients {
                streams.push(used(socket, &requests).await?);
            }
        }
        let mut tasks = JoinSet::new();
        let started = Instant::now();
        for stream in streams {
            tasks.spawn(keep_alive(stream, Arc::clone(&requests), started, length));
        }
        if let Connections::New(clients) = connections {
            for _ in 0..clients {
                let requests = Arc::clone(&requests);
                tasks.spawn(reconnect(socket.to_owned(), requests, started, length));
            }
        }
        let mut nanos = Vec::new();
        while let Some(done) = tasks.join_next().await {
            nanos.extend(done.map_err(io::Error::other)??);
        }
        let elapsed = started.elapsed();
        nanos.sort_unstable();
        Ok(Seen {
            requests: nanos.len(),
            per_second: nanos.len() as f64 / elapsed.as_secs_f64(),
            p50: percentile(&nanos, 0.50),
            p99: percentile(&nanos, 0.99),
        })
    })
}

/// A connection on which each request was made once.
async fn used(socket: &Path, requests: &[Vec<u8>]) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut buffer = vec![0; REPLY_MAX];
    for request in requests {
        exchange(&mut stream, request, &mut buffer).await?;
    }
    Ok(stream)
}

async fn keep_alive(
    mut stream: UnixStream,
    requests: Arc<[Vec<u8>]>,
    started: Instant,
    length: Duration,
) -> io::Result<Vec<u32>> {
    let mut nanos = Vec::new();
    let mut buffer = vec![0; REPLY_MAX];
    for request in requests.iter().cycle() {
        if started.elapsed() >= length {
            break;
        }
        let sent = Instant::now();
        exchange(&mut stream, request, &mut buffer).await?;
        nanos.push(nanos_since(sent));
    }
    Ok(nanos)
}

async fn reconnect(
    socket: PathBuf,
    requests: Arc<[Vec<u8>]>,
    started: Instant,
    length: Duration,
) -> io::Result<Vec<u32>> {
    let mut nanos = Vec::new();
    let mut buffer = vec![0; REPLY_MAX];
    for request in requests.iter().cycle() {
        if started.elapsed() >= length {
            break;
        }
        let sent = Instant::now();
        let mut stream = UnixStream::connect(&socket).await?;
        exchange(&mut stream, request, &mut buffer).await?;
        nanos.push(nanos_since(sent));
    }
    Ok(nanos)
}

/// Asks for each target once; the body of the last reply.
pub fn body(socket: &Path, targets: &[String]) -> io::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut reply = Vec::new();
        for target in targets {
            let close = "connection: close";
            let request = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{close}\r\n\r\n");
            let mut stream = UnixStream::connect(socket).await?;
            stream.write_all(request.as_bytes()).await?;
            reply.clear();
            stream.read_to_end(&mut reply).await?;
            if !complete(&reply)? {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "half a reply"));
            }
        }
        let head = find(&reply, b"\r\n\r\n").ok_or_else(|| io::Error::other("no targets"))?;
        String::from_utf8(reply.split_off(head + 4)).map_err(io::Error::other)
    })
}

/// A table's cell: the medians of what several loads saw.
pub fn figures<'a>(seen: impl Iterator<Item = &'a Seen> + Clone) -> String {
    let middle = |of: fn(&Seen) -> f64| median(seen.clone().map(of));
    format!(
        "{:.1} k, {:.0} / {:.0}",
        middle(|seen| seen.per_second / 1e3),
        middle(|seen| seen.p50.as_secs_f64() * 1e6),
        middle(|seen| seen.p99.as_secs_f64() * 1e6),
    )
}

fn nanos_since(sent: Instant) -> u32 {
    u32::try_from(sent.elapsed().as_nanos()).unwrap_or(u32::MAX)
}

/// One request and its reply, which must fit the buffer.
async fn exchange(stream: &mut UnixStream, request: &[u8], buffer: &mut [u8]) -> io::Result<()> {
    stream.write_all(request).await?;
    let mut filled = 0;
    loop {
        match stream.read(&mut buffer[filled..]).await? {
            0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "half a reply")),
            read => filled += read,
        }
        if complete(&buffer[..filled])? {
            return Ok(());
        }
    }
}

/// Whether this is a whole reply; an error if it is not a 200.
fn complete(reply: &[u8]) -> io::Result<bool> {
    let Some(head) = find(reply, b"\r\n\r\n") else { return Ok(false) };
    if !reply.starts_with(b"HTTP/1.1 200 ") {
        let text = String::from_utf8_lossy(reply).into_owned();
        return Err(io::Error::other(format!("not a 200: {text}")));
    }
    let length = find(&reply[..head], b"content-length: ").and_then(|at| {
        let digits = reply[at + 16..head].iter().take_while(|byte| byte.is_ascii_digit());
        std::str::from_utf8(&digits.copied().collect::<Vec<u8>>()).ok()?.parse::<usize>().ok()
    });
    let length = length.ok_or_else(|| io::Error::other("no content-length"))?;
    Ok(reply.len() >= head + 4 + length)
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
