//! A connection to the node's socket until its caller is named, which takes a request: the pod's
//! token comes with one. From then on it is a connection like any other.

use std::sync::{Arc, Mutex, PoisonError};

use http::Request;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use super::node_door::{Introduced, NodeDoor, NotIntroduced};
use super::request::Refusal;
use super::routes::{Answering, Connection};
use super::transport::{Answer, Caller, Placed};
use super::{Server, answer};
use crate::audit::AuditEvent;
use crate::clock::BootInstant;
use crate::identity::Subject;
use crate::telemetry::Chain;

/// A caller of which only the pod is known.
pub(super) struct Introduction {
    placed: Placed,
    door: Arc<NodeDoor>,
    server: Server,
    stop: CancellationToken,
    named: Mutex<Option<Named>>,
}

/// The connection of a caller that was named.
struct Named {
    connection: Arc<Connection>,
    until: Option<BootInstant>,
}

impl Introduction {
    /// For a caller that was placed; `stop` ends its long polls.
    pub(super) fn new(
        placed: Placed,
        door: Arc<NodeDoor>,
        server: Server,
        stop: CancellationToken,
    ) -> Self {
        Self { placed, door, server, stop, named: Mutex::default() }
    }

    /// Answers a request: the caller is named by the first one, and anew when its token has ended.
    pub(super) fn call(self: &Arc<Self>, request: Request<Incoming>) -> Answering {
        let now = BootInstant::now();
        if let Some(connection) = self.connection(now) {
            return connection.call(request);
        }
        if let Err(wait) = self.placed.admitted.budget().take_request(now) {
            self.server.deps.metrics.limited.inc();
            return Answering::over_budget(wait);
        }
        Answering::Later(Box::pin(Arc::clone(self).introduce_and_answer(request)))
    }

    fn connection(&self, now: BootInstant) -> Option<Arc<Connection>> {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let named = named.as_ref()?;
        named.until.is_none_or(|until| now < until).then(|| Arc::clone(&named.connection))
    }

    async fn introduce_and_answer(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        let (parts, body) = request.into_parts();
        let Placed { pod, peer, admitted } = &self.placed;
        let Introduced { identity, until } =
            match self.door.introduce(peer, pod, &parts.headers).await {
                Ok(introduced) => introduced,
                Err(why) => return self.refuse(&why),
            };
        let caller = Caller { identity, peer: Arc::clone(peer), admitted: Arc::clone(admitted) };
        let connection = Connection::new(caller, self.server.clone(), self.stop.clone());
        // Naming it took its time.
        if let Err(refusal) = connection.check_alive() {
            return answer::refusal(&refusal);
        }
        {
            let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
            *named = Some(Named { connection: Arc::clone(&connection), until });
        }
        connection.answer(parts, body).await
    }

    fn refuse(&self, why: &NotIntroduced) -> Answer {
        let (deps, now) = (&self.server.deps, BootInstant::now());
        self.placed.admitted.budget().charge_denial(now);
        if let NotIntroduced::Refused(identity, refused) = why {
            deps.metrics.proofs_refused.inc();
            let reason = Chain(refused).to_string();
            let mut locked_out = false;
            if let (true, Subject::Pod(pod)) = (refused.is_forgery(), identity.subject()) {
                locked_out = self.door.forged(pod, now);
            }
            if locked_out {
                deps.metrics.lock_outs.inc();
                tracing::warn!(pod = %identity, "locked out of the node socket: forged tokens");
            }
            let event =
                AuditEvent::Proof { identity: identity.as_ref().clone(), reason, locked_out };
            if deps.audit.record(event).is_err() {
                tracing::warn!(
                    pod = %identity,
                    "audit log is not accepting records: a refused proof is not recorded"
                );
            }
        }
        let answer = answer::refusal(&Refusal::from(why));
        deps.metrics.count("refused", answer.status().as_u16(), "none");
        answer
    }
}
