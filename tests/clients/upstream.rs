//! What of Vault no reply may hold: every lease id and token accessor there was while a client ran.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use crate::support::testbed::Testbed;

/// Often enough to see a session of the agent.
const INTERVAL: Duration = Duration::from_millis(50);
/// How Vault's service, batch and recovery tokens begin.
const TOKENS: [&str; 3] = ["hvs.", "hvb.", "hvr."];

#[derive(Default)]
pub(crate) struct Upstream {
    leases: BTreeSet<String>,
    accessors: BTreeSet<String>,
}

/// A running observation.
pub(crate) struct Watch<'scope> {
    stop: Arc<AtomicBool>,
    observer: ScopedJoinHandle<'scope, Upstream>,
}

impl Upstream {
    pub(crate) fn watch<'scope>(
        scope: &'scope Scope<'scope, '_>,
        bed: &'scope Testbed,
    ) -> Watch<'scope> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let observer = scope.spawn(move || {
            let mut seen = Upstream::default();
            while !stopped.load(Ordering::Relaxed) {
                seen.leases.extend(["shop", "watched"].iter().flat_map(|role| bed.leases(role)));
                seen.accessors.extend(bed.vault.list("auth/token/accessors"));
                thread::sleep(INTERVAL);
            }
            // A credential may have lived for less than a look takes.
            let log = bed.vault.audit_log();
            let issued =
                log.iter().filter_map(|entry| entry["response"]["secret"]["lease_id"].as_str());
            seen.leases.extend(issued.filter_map(|id| id.rsplit('/').next().map(str::to_owned)));
            seen
        });
        Watch { stop, observer }
    }

    pub(crate) fn assert_absent_from(&self, replies: &str) {
        assert!(replies.contains("green") && replies.contains("lease_id"), "replies were recorded");
        assert!(!self.leases.is_empty(), "a Vault lease was seen");
        // The root token has one as well.
        assert!(self.accessors.len() > 1, "a session of the agent was seen");
        for id in self.leases.iter().chain(&self.accessors) {
            assert!(!replies.contains(id.as_str()), "{id} is in a reply");
        }
        for start in TOKENS {
            assert!(!replies.contains(start), "a token is in a reply");
        }
    }
}

impl Watch<'_> {
    pub(crate) fn stop(self) -> Upstream {
        self.stop.store(true, Ordering::Relaxed);
        self.observer.join().expect("Vault answers the observer")
    }
}
