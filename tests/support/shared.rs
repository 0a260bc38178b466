//! Servers that all tests of one binary share: started by the first test that asks, ended at exit.

use std::sync::{Arc, Mutex, Once};

use super::kubernetes::Kubernetes;
use super::postgres::Postgres;

pub const NAMESPACE: &str = "secrets-broker";
pub const AGENT: &str = "secrets-broker";
pub const REVIEWER: &str = "vault-reviewer";

#[derive(Clone)]
pub struct Shared {
    pub kubernetes: Arc<Kubernetes>,
    pub postgres: Arc<Postgres>,
}

static SHARED: Mutex<Option<Shared>> = Mutex::new(None);

pub fn shared() -> Shared {
    let mut shared = SHARED.lock().expect("the shared servers started in an earlier test");
    shared.get_or_insert_with(start).clone()
}

fn start() -> Shared {
    // Statics are never dropped; without this their directories would stay.
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| {
        #[expect(unsafe_code, reason = "no safe wrapper registers an exit function")]
        // SAFETY: registers a plain function that lives as long as the program.
        let status = unsafe { libc::atexit(end) };
        assert_eq!(status, 0, "atexit takes at least 32 functions");
    });
    std::thread::scope(|scope| {
        let postgres = scope.spawn(Postgres::start);
        let kubernetes = Kubernetes::start();
        kubernetes.create_namespace(NAMESPACE);
        kubernetes.create_service_account(NAMESPACE, AGENT);
        kubernetes.create_service_account(NAMESPACE, REVIEWER);
        kubernetes.let_review_tokens(NAMESPACE, REVIEWER);
        let postgres = postgres.join().expect("PostgreSQL starts");
        Shared { kubernetes: Arc::new(kubernetes), postgres: Arc::new(postgres) }
    })
}

extern "C" fn end() {
    if let Ok(mut shared) = SHARED.lock() {
        shared.take();
    }
}
