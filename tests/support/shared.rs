//! Servers that all tests of one binary share: started by the first test that asks, ended at exit.

use std::sync::{Arc, Mutex, Once};

use super::kubernetes::Kubernetes;
use super::node::{ADDRESS, Node};
use super::postgres::{LOOPBACK, Postgres};

pub const NAMESPACE: &str = "secrets-broker";
pub const AGENT: &str = "secrets-broker";
pub const REVIEWER: &str = "vault-reviewer";

#[derive(Clone)]
pub struct Shared {
    pub kubernetes: Arc<Kubernetes>,
    pub postgres: Arc<Postgres>,
}

static SHARED: Mutex<Option<Shared>> = Mutex::new(None);
static NODE: Mutex<Option<Arc<Node>>> = Mutex::new(None);

pub fn shared() -> Shared {
    shared_around(Kubernetes::start, &[LOOPBACK])
}

/// The node of this test binary.
pub fn node() -> Arc<Node> {
    let mut node = NODE.lock().expect("the node started in an earlier test");
    node.get_or_insert_with(|| {
        end_at_exit();
        Arc::new(Node::start())
    })
    .clone()
}

/// The shared servers, with the node's Kubernetes as theirs and a PostgreSQL that its pods reach.
pub fn shared_beside(node: &Node) -> Shared {
    shared_around(|| Arc::clone(&node.kubernetes), &[LOOPBACK, ADDRESS])
}

fn shared_around<K: Into<Arc<Kubernetes>>>(
    kubernetes: impl FnOnce() -> K,
    postgres: &[&str],
) -> Shared {
    let mut shared = SHARED.lock().expect("the shared servers started in an earlier test");
    shared.get_or_insert_with(|| start(kubernetes, postgres)).clone()
}

fn start<K: Into<Arc<Kubernetes>>>(kubernetes: impl FnOnce() -> K, postgres: &[&str]) -> Shared {
    end_at_exit();
    std::thread::scope(|scope| {
        let postgres = scope.spawn(|| Postgres::start_at(postgres));
        let kubernetes = kubernetes().into();
        kubernetes.create_namespace(NAMESPACE);
        kubernetes.create_service_account(NAMESPACE, AGENT);
        kubernetes.create_service_account(NAMESPACE, REVIEWER);
        kubernetes.let_review_tokens(NAMESPACE, REVIEWER);
        let postgres = postgres.join().expect("PostgreSQL starts");
        Shared { kubernetes, postgres: Arc::new(postgres) }
    })
}

/// Statics are never dropped; without this their directories and pods would stay.
fn end_at_exit() {
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| {
        #[expect(unsafe_code, reason = "no safe wrapper registers an exit function")]
        // SAFETY: registers a plain function that lives as long as the program.
        let status = unsafe { libc::atexit(end) };
        assert_eq!(status, 0, "atexit takes at least 32 functions");
    });
}

extern "C" fn end() {
    if let Ok(mut shared) = SHARED.lock() {
        shared.take();
    }
    if let Ok(mut node) = NODE.lock() {
        node.take();
    }
}
