//! The door that all pods come through: they are looked at one after the other, and a process that
//! was refused a moment ago for having or asking too much is refused without another look.
//!
//! Of a flood no more than one look stands between another caller and its reply.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

use super::let_in::LetIn;
use super::refused::Refused;
use super::transport::Transport;
use crate::clock::BootInstant;
use crate::sys;

/// Refusals without a look between two turns of others.
const AT_ONCE: u32 = 16;
/// Processes that [`Lately`] knows, and for how long.
const LATELY_MAX: usize = 64;
const LATELY: Duration = Duration::from_millis(100);

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct InTurn {
    lately: Lately,
    again: u32,
}

impl InTurn {
    /// Lets somebody in or says why not; `None` when that is done with already. Between two looks
    /// other tasks have their turn. Cancelled, it leaves the stream to be dropped.
    pub(super) async fn look(
        &mut self,
        transport: &Transport,
        stream: BorrowedFd<'_>,
    ) -> Option<Result<LetIn, Refused>> {
        // The number proves nothing; it is used to refuse only.
        let pid = sys::peer_credentials(stream).ok().map(|peer| peer.pid).filter(|pid| *pid > 0);
        if let Some(refused) = pid.and_then(|pid| self.lately.told(pid, BootInstant::now())) {
            transport.refuse_unseen(stream, refused);
            self.again = self.again.wrapping_add(1);
            if self.again.is_multiple_of(AT_ONCE) {
                tokio::task::yield_now().await;
            }
            return None;
        }
        tokio::task::yield_now().await;
        // A panic ends this connection, as it does elsewhere. What is changed meanwhile is counters
        // and what is behind locks.
        let look = AssertUnwindSafe(|| transport.let_in(stream, None));
        let Ok(found) = panic::catch_unwind(look) else {
            transport.log_panic("while it was looked at");
            return None;
        };
        if let (Err(refused), Some(pid)) = (&found, pid) {
            self.lately.remember(pid, BootInstant::now(), refused);
        }
        Some(found)
    }
}

/// Processes that were refused a moment ago because they have or want too much. They are told the
/// same again without a look at who they are, which costs many times as much.
///
/// By number, which is no proof: whoever comes by the number of such a process meanwhile has to
/// come again.
#[derive(Debug, Default)]
struct Lately(VecDeque<(i32, BootInstant, Refused)>);

impl Lately {
    /// What this process was told a moment ago.
    fn told(&self, pid: i32, now: BootInstant) -> Option<&Refused> {
        let (.., told) =
            self.0.iter().find(|(known, at, _)| *known == pid && now.since(*at) < LATELY)?;
        Some(told)
    }

    /// Remembers what it is told now, in place of the oldest.
    fn remember(&mut self, pid: i32, now: BootInstant, refused: &Refused) {
        if !matches!(refused, Refused::TooManyOfCaller | Refused::TooOften) {
            return;
        }
        self.0.retain(|(known, at, _)| *known != pid && now.since(*at) < LATELY);
        self.0.truncate(LATELY_MAX - 1);
        self.0.push_front((pid, now, refused.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use super::super::admission::Admission;
    use super::super::caps::Caps;
    use super::super::door::{Door, PodDoor};
    use super::*;
    use crate::delivery::socket::Limits;
    use crate::delivery::testing::pod;
    use crate::identity::ProofStrength;
    use crate::identity::kubelet_cgroup::KubeletCgroup;
    use crate::identity::self_test::NodeProof;
    use crate::telemetry::Metrics;

    /// A pod's door, at which the test's process is nobody, wherever it runs.
    fn transport() -> Transport {
        let metrics = Metrics::new();
        let limits = Limits { requests_per_second_per_user: 1, ..Limits::default() };
        let caps = Caps::new(limits, &metrics);
        let admission = Admission::new("connections", 8, &caps, &metrics);
        let kubelet = Some(KubeletCgroup::configured("/nobodys/kubepods").unwrap());
        let strength = ProofStrength::PidFd;
        let proof = Arc::new(NodeProof { strength, limit: None, kubelet });
        let door = PodDoor { pod: Arc::new(pod()), volume: "web".parse().unwrap(), role: None };
        Transport::new(Door::Pod(door), proof, admission, caps, metrics)
    }

    #[tokio::test]
    async fn who_is_nobody_too_often_is_not_looked_at_for_a_moment() {
        let (transport, mut in_turn) = (transport(), InTurn::default());
        let look = async |in_turn: &mut InTurn| {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            let looked = in_turn.look(&transport, ours.as_fd()).await;
            looked.map(|found| found.err().map(|refused| refused.reason()))
        };
        let (nobody, too_often) = (Some("identity"), Some("requests_per_second_per_user"));
        assert_eq!(look(&mut in_turn).await, Some(nobody));
        let mut told = look(&mut in_turn).await;
        for _ in 0..100 {
            // On a busy machine its budget may have come back meanwhile.
            if told == Some(nobody) {
                told = look(&mut in_turn).await;
            }
        }
        assert_eq!(told, Some(too_often));
        // A moment that lasts.
        in_turn.lately.0[0].1 = BootInstant::now() + Duration::from_secs(3600);
        assert_eq!(look(&mut in_turn).await, None);
    }

    fn at(millis: u64) -> BootInstant {
        BootInstant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_process_is_told_the_same_for_a_moment_and_others_are_not() {
        let mut lately = Lately::default();
        lately.remember(7, at(0), &Refused::TooOften);
        assert_eq!(lately.told(7, at(99)), Some(&Refused::TooOften));
        assert_eq!(lately.told(8, at(99)), None);
        assert_eq!(lately.told(7, at(100)), None);
        lately.remember(7, at(100), &Refused::TooManyOfCaller);
        assert_eq!(lately.told(7, at(101)), Some(&Refused::TooManyOfCaller));
        assert_eq!(lately.0.len(), 1);
    }

    #[test]
    fn who_it_is_and_what_others_have_is_asked_each_time() {
        let mut lately = Lately::default();
        lately.remember(7, at(0), &Refused::Nobody("in another pod".to_owned()));
        lately.remember(7, at(0), &Refused::TooMany);
        assert_eq!(lately.told(7, at(0)), None);
    }

    #[test]
    fn the_oldest_is_forgotten_at_the_bound() {
        let mut lately = Lately::default();
        for pid in 0..=i32::try_from(LATELY_MAX).unwrap() {
            lately.remember(pid, at(0), &Refused::TooOften);
        }
        assert_eq!((lately.told(0, at(0)), lately.0.len()), (None, LATELY_MAX));
        assert!(lately.told(1, at(0)).is_some());
    }
}
