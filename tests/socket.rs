//! Sockets from outside: who is let in, and what bad clients cost.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use secrets_broker::delivery::socket::admission::Admission;
use secrets_broker::delivery::socket::caps::Caps;
use secrets_broker::delivery::socket::let_in::LetIn;
use secrets_broker::delivery::socket::transport::{Answer, Transport};
use secrets_broker::delivery::socket::{BoundSocket, Door, Limits, Place, client};
use secrets_broker::identity::Subject;
use secrets_broker::identity::self_test::NodeProof;
use secrets_broker::telemetry::{Limit, Metrics};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
/// How long a slow reply takes.
const SLOW: Duration = Duration::from_millis(200);
/// No test waits this long unless it fails.
const PATIENCE: Duration = Duration::from_secs(10);

fn place(path: &Path) -> Place {
    Place { path: path.to_owned(), mode: 0o666, gid: None, private: false }
}

struct Server {
    _directory: tempfile::TempDir,
    path: PathBuf,
    metrics: Metrics,
    stop: CancellationToken,
    /// Told when a slow reply has begun.
    slow: Arc<Notify>,
    task: JoinHandle<()>,
}

/// What the test service answers: the caller's uid, or as many bytes as the path says.
async fn reply(
    uid: u32,
    request: Request<hyper::body::Incoming>,
    slow: Arc<Notify>,
) -> Result<Answer, Infallible> {
    let body = match request.uri().path().trim_start_matches('/').parse::<usize>() {
        Ok(length) => Bytes::from(vec![b'x'; length]),
        Err(_) if request.uri().path() == "/slow" => {
            let _body = request.into_body().collect().await.unwrap();
            slow.notify_one();
            tokio::time::sleep(SLOW).await;
            Bytes::from("slow")
        }
        Err(_) => Bytes::from(format!("uid {uid}")),
    };
    Ok(Response::new(Full::new(body)))
}

fn serve(limits: Limits) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker.sock");
    let socket = BoundSocket::bind(&place(&path)).unwrap();
    let (metrics, stop) = (Metrics::new(), CancellationToken::new());
    let caps = Caps::new(limits, &metrics);
    let proof = Arc::new(NodeProof::not_asked());
    let admission = Admission::new("connections", limits.connections, &caps, &metrics);
    let transport = Transport::new(Door::Host, proof, admission, caps, metrics.clone());
    let slow = Arc::new(Notify::new());
    let begun = Arc::clone(&slow);
    let run = transport.run(socket, stop.clone(), move |caller: LetIn| {
        let LetIn::Named(caller) = caller else { panic!("no caller") };
        let Subject::HostUser { uid, .. } = *caller.identity.subject() else { panic!("no user") };
        let begun = Arc::clone(&begun);
        service_fn(move |request| {
            // The caller's place is held as long as the connection's service lives.
            let _place = &caller;
            Box::pin(reply(uid, request, Arc::clone(&begun)))
        })
    });
    Server { _directory: directory, path, metrics, stop, slow, task: tokio::spawn(run) }
}

impl Server {
    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    async fn is_serving(&self) {
        let (status, body) = client::get(&self.path, "/").await.unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert_eq!((status.as_u16(), body), (200, format!("uid {own}").into_bytes()));
    }

    fn refused(&self, reason: &'static str) -> u64 {
        let labels = [("socket", "host"), ("reason", reason)];
        self.metrics.refused.get_or_create(&labels).get()
    }

    fn limit(&self, name: &str) -> Limit {
        self.metrics.limits().into_iter().find(|limit| limit.name == name).unwrap()
    }
}

/// Everything until the server closes; fails the test if it does not close.
async fn read_to_end(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    // A reset is a close too.
    let _ = read.expect("the server keeps the connection open");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn this_process_is_a_host_user_and_is_answered() {
    let server = serve(Limits::default());
    server.is_serving().await;
}

#[tokio::test]
async fn a_client_that_sends_half_a_request_costs_only_its_own_connection() {
    let limits = Limits { header_timeout: Duration::from_millis(40), ..Limits::default() };
    let server = serve(limits);
    let mut silent = server.connect().await;
    let mut half = server.connect().await;
    half.write_all(b"GET / HTTP/1.1\r\nx-").await.unwrap();
    server.is_serving().await;
    // Trickling does not help: the head has to be complete in time.
    let trickle = async {
        while half.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, trickle).await.expect("trickling keeps the connection");
    assert_eq!(read_to_end(&mut silent).await, "");
    assert_eq!(server.refused("slow_request"), 2);
    server.is_serving().await;
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_after_its_idle_time_not_its_header_time() {
    let limits = Limits {
        header_timeout: Duration::from_millis(20),
        idle_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = serve(limits);
    let mut stream = server.connect().await;
    let mut scrap = [0_u8; 1024];
    for _ in 0..2 {
        stream.write_all(GET).await.unwrap();
        assert!(stream.read(&mut scrap).await.unwrap() > 0);
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert_eq!(read_to_end(&mut stream).await, "");
    assert_eq!(server.refused("slow_request"), 0);
}

#[tokio::test]
async fn who_asked_before_it_sent_its_body_is_not_dropped_while_it_is_answered() {
    let short = SLOW / 5;
    let limits = Limits { header_timeout: short, idle_timeout: short, ..Limits::default() };
    let server = serve(limits);
    let mut stream = server.connect().await;
    let mut scrap = [0_u8; 1024];
    let head =
        b"POST /slow HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    for _ in 0..2 {
        stream.write_all(head).await.unwrap();
        let length = stream.read(&mut scrap).await.unwrap();
        assert_eq!(&scrap[..length], b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"{}").await.unwrap();
        let length = stream.read(&mut scrap).await.unwrap();
        assert!(scrap[..length].starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    assert_eq!(server.refused("slow_request"), 0);
}

#[tokio::test]
async fn a_client_that_does_not_read_its_reply_is_dropped() {
    let limits = Limits { write_timeout: Duration::from_millis(40), ..Limits::default() };
    let server = serve(limits);
    let mut stream = server.connect().await;
    stream.write_all(b"GET /16777216 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let dropped = async {
        while server.refused("slow_reader") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, dropped).await.expect("the connection is kept");
    assert!(read_to_end(&mut stream).await.len() < 16_777_216);
}

#[tokio::test]
async fn huge_and_malformed_requests_end_with_4xx_and_a_closed_connection() {
    let limits = Limits { header_bytes: 8192, ..Limits::default() };
    let server = serve(limits);
    let huge_header = format!("GET / HTTP/1.1\r\nx-big: {}\r\n\r\n", "a".repeat(9000));
    let huge_target = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(70_000));
    let many = "x-a: b\r\n".repeat(500);
    let many_headers = format!("GET / HTTP/1.1\r\n{many}\r\n");
    let rows = [
        (huge_header.as_str(), "HTTP/1.1 431"),
        (&huge_target, "HTTP/1.1 4"),
        (&many_headers, "HTTP/1.1 431"),
        ("nonsense\r\n\r\n", "HTTP/1.1 400"),
        ("GET / HTTP/1.1\r\nbad header\r\n\r\n", "HTTP/1.1 400"),
        ("GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", "HTTP/1.1 400"),
        ("GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "HTTP/1.1 400"),
        ("\0\0\0\0\r\n\r\n", "HTTP/1.1 400"),
    ];
    for (request, expected) in rows {
        let mut stream = server.connect().await;
        // The server may close before it has read everything.
        let _ = stream.write_all(request.as_bytes()).await;
        let answer = read_to_end(&mut stream).await;
        let start: String = request.chars().take(40).collect();
        assert!(answer.starts_with(expected), "{start:?}: {answer:?}");
    }
    server.is_serving().await;
    // The reply comes before the connection's end, which counts.
    let counted = async {
        while server.limit("request_header_bytes").hits < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("long heads are not counted");
    assert_eq!(server.limit("request_header_bytes"), Limit::each("request_header_bytes", 8192, 3));
}

#[tokio::test]
async fn connections_that_are_refused_take_no_places() {
    let server = serve(Limits { connections: 3, connections_per_user: 1, ..Limits::default() });
    let mut admitted = server.connect().await;
    admitted.write_all(GET).await.unwrap();
    assert!(admitted.read(&mut [0; 1024]).await.unwrap() > 0);
    let mut open = Vec::new();
    for _ in 0..10 {
        let mut stream = server.connect().await;
        let answer = read_to_end(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
        // It stays at this end.
        open.push(stream);
    }
    assert_eq!((server.refused("connections_per_user"), server.refused("connections")), (10, 0));
}

#[tokio::test]
async fn one_users_connections_are_capped_and_freed() {
    let server = serve(Limits { connections_per_user: 2, ..Limits::default() });
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(GET).await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        open.push(stream);
    }
    let mut third = server.connect().await;
    let answer = read_to_end(&mut third).await;
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    assert!(answer.contains(r#"{"errors":["too many connections of this caller"]}"#), "{answer}");
    assert_eq!(server.refused("connections_per_user"), 1);
    let reached = Limit::each("connections_per_user", 2, 1);
    assert_eq!(server.limit("connections_per_user"), reached);

    drop(open);
    let freed = async {
        while client::get(&server.path, "/").await.map_or(0, |(status, _)| status.as_u16()) != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.expect("places are never freed");
}

#[tokio::test]
async fn all_connections_together_are_capped() {
    let server = serve(Limits { connections: 1, ..Limits::default() });
    let mut first = server.connect().await;
    first.write_all(GET).await.unwrap();
    assert!(first.read(&mut [0; 1024]).await.unwrap() > 0);
    let answer = read_to_end(&mut server.connect().await).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(server.refused("connections"), 1);
    assert_eq!(server.limit("connections"), Limit::shared("connections", 1, 1, 1));
}

/// What the child of the next test does: connects, hands its connection on, and exits.
#[test]
#[expect(clippy::zombie_processes, reason = "this process exits first, on purpose")]
fn child_that_hands_its_connection_on() {
    use std::io::{Read, Write};
    let Some(path) = std::env::var_os("TEST_SOCKET_TO_HAND_ON") else { return };
    let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    stream.write_all(GET).unwrap();
    assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
    // `cat` ends when the server closes the connection.
    let stdin = std::os::fd::OwnedFd::from(stream);
    std::process::Command::new("cat").stdin(stdin).spawn().unwrap();
}

#[tokio::test]
async fn a_connection_that_was_handed_on_ends_with_the_process_that_made_it() {
    let server = serve(Limits::default());
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_hands_its_connection_on"])
        .env("TEST_SOCKET_TO_HAND_ON", &server.path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let dropped = async {
        while server.refused("peer_exited") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, dropped).await.expect("the connection outlives its maker");
    assert!(child.wait().unwrap().success());
    server.is_serving().await;
}

#[tokio::test]
async fn at_the_stop_running_replies_finish_idle_connections_close_and_the_path_goes() {
    let server = serve(Limits::default());
    let mut idle = server.connect().await;
    idle.write_all(GET).await.unwrap();
    assert!(idle.read(&mut [0; 1024]).await.unwrap() > 0);
    let mut busy = server.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    server.slow.notified().await;

    server.stop.cancel();
    assert!(read_to_end(&mut busy).await.ends_with("slow"));
    assert_eq!(read_to_end(&mut idle).await, "");
    tokio::time::timeout(PATIENCE, server.task).await.expect("the server stops").unwrap();
    assert!(!server.path.exists());
    let error = client::get(&server.path, "/").await.unwrap_err();
    assert!(matches!(error, client::ClientError::NoAgent(_)), "{error}");
}
