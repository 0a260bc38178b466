//! A connection to the node's socket until its caller is named, which takes a request: the pod's
//! token comes with one. From then on it is a connection like any other.

use std::sync::{Arc, Mutex, PoisonError};

use http::header::CONNECTION;
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use super::let_in::{Caller, Placed};
use super::node_door::{Introduced, NodeDoor, NotIntroduced};
use super::request::Refusal;
use super::routes::{Answering, Connection};
use super::transport::Answer;
use super::{Server, answer};
use crate::audit::AuditEvent;
use crate::clock::BootInstant;
use crate::domain::Pod;
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
    pod: Arc<Pod>,
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
        match self.connection(now) {
            Some(Ok(connection)) => return connection.call(request),
            Some(Err(why)) => return Answering::Now(Some(self.refuse(&why))),
            None => {}
        }
        if let Err(wait) = self.placed.admitted.budget().take_request(now) {
            self.server.deps.metrics.limited.inc();
            let most = self.server.caps.limits.body_bytes;
            return Answering::over_budget(wait, request.into_body(), most);
        }
        Answering::Later(Box::pin(Arc::clone(self).introduce_and_answer(request)))
    }

    /// The named caller's connection, unless it has to be named anew or is locked out.
    fn connection(&self, now: BootInstant) -> Option<Result<Arc<Connection>, NotIntroduced>> {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let named = named.as_ref()?;
        if named.until.is_some_and(|until| now >= until) {
            return None;
        }
        let open = self.door.check_locked_out(&named.pod, now);
        Some(open.map(|()| Arc::clone(&named.connection)))
    }

    async fn introduce_and_answer(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        let (parts, body) = request.into_parts();
        let Placed { pod, peer, admitted } = &self.placed;
        // What naming costs, before anybody is asked: whoever gives up has had it.
        admitted.budget().charge_denial(BootInstant::now());
        let Introduced { identity, pod: named_pod, until } =
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
            *named = Some(Named { connection: Arc::clone(&connection), pod: named_pod, until });
        }
        connection.answer(parts, body).await
    }

    fn refuse(&self, why: &NotIntroduced) -> Answer {
        let (deps, now) = (&self.server.deps, BootInstant::now());
        if let NotIntroduced::Refused(identity, refused) = why {
            deps.metrics.proofs_refused.inc();
            let reason = Chain(refused).to_string();
            let locked_out = refused.is_forgery() && self.door.forged(identity, now);
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
        let mut answer = answer::refusal(&Refusal::from(why));
        // Whoever is nobody yet keeps no place meanwhile.
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        deps.metrics.count("refused", answer.status().as_u16(), "none");
        answer
    }
}
