//! Upstream work in line for budget: renewals first, and never held up by an open breaker; the rest
//! in turns, so that nobody's flood is before everybody else's work.

use super::cache::Activity;
use super::mounts::ProbeKey;
use super::turns::Place;
use super::{FollowUp, Pending, State, Timer};
use crate::broker::budget::{Urgency, Wait};
use crate::broker::event::{Call, Done, EffectId, EntryId, SessionId, TokenId, ValueId};
use crate::clock::BootInstant;
use crate::domain::{SecretRef, SourceName};
use crate::source::{ErrorClass, SourceError};

/// Work that waits for budget.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Job {
    Login(SessionId),
    RenewToken(SessionId),
    EndSession(TokenId),
    Probe(ProbeKey),
    Fetch(EntryId),
    RenewLease(EntryId),
    Revoke(Revocation),
}

/// The work that has been made to wait for budget and counted for it, while it waits.
#[derive(Debug, Default)]
pub(super) struct WaitingJobs {
    /// The first of the urgent work, which is done in its order.
    urgent: bool,
    ordinary: Option<Place>,
}

/// A lease to end.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Revocation {
    pub secret: SecretRef,
    pub token: TokenId,
    pub value: ValueId,
    /// The entry that keeps the value until the answer; without one the job keeps it.
    pub keeper: Option<EntryId>,
}

impl State {
    /// Starts queued work as far as the budget goes.
    pub(super) fn pump(&mut self) {
        loop {
            let urgent = self.urgent.front();
            let urgency = if urgent.is_some() { Urgency::Renewal } else { Urgency::Ordinary };
            let Some(job) = urgent.or_else(|| self.ordinary.front()) else { return };
            let call = self.call_for(job);
            if call.is_some()
                && let Err(wait) = self.budget.take(self.now, urgency)
            {
                self.made_to_wait(urgency, wait);
                return;
            }
            let job = match urgency {
                Urgency::Renewal => {
                    self.waiting.urgent = false;
                    self.urgent.pop_front()
                }
                Urgency::Ordinary => self.ordinary.pop(),
            };
            let Some(job) = job else { return };
            match call {
                Some((source, pending, call)) => self.start(&job, &source, pending, call),
                None => self.unstartable(&job),
            }
        }
    }

    /// The work whose turn it is must wait: it is one hit, however often it is tried.
    fn made_to_wait(&mut self, urgency: Urgency, wait: Wait) {
        let known = match urgency {
            Urgency::Renewal => std::mem::replace(&mut self.waiting.urgent, true),
            Urgency::Ordinary => {
                let place = self.ordinary.front_place();
                std::mem::replace(&mut self.waiting.ordinary, place) == place
            }
        };
        if !known {
            self.budget.count(wait);
        }
        if let Wait::Until(at) = wait {
            self.deadlines.insert((at, Timer::Pump));
        }
    }

    fn start(&mut self, job: &Job, source: &SourceName, pending: Pending, call: Call) {
        let id = self.call(source, pending, call);
        if let Job::Fetch(entry) | Job::RenewLease(entry) = job
            && let Some(entry) = self.entries.get_mut(entry)
        {
            entry.activity = match job {
                Job::Fetch(_) => Activity::Fetching(id),
                _ => Activity::Renewing(id),
            };
        }
    }

    /// The call a job stands for, if it is still wanted.
    fn call_for(&self, job: &Job) -> Option<(SourceName, Pending, Call)> {
        match job {
            Job::Login(id) => {
                let (source, call) = self.login_call(*id)?;
                Some((source, Pending::Login(*id), call))
            }
            Job::RenewToken(id) => {
                let session = self.sessions.get(id)?;
                let current = session.current.as_ref()?;
                let call = Call::RenewToken { token: current.token, increment: current.first_ttl };
                let pending = Pending::RenewToken(*id, current.token);
                Some((session.key.source.clone(), pending, call))
            }
            Job::EndSession(token) => {
                let source = self.endings.get(token)?.source.clone();
                Some((source, Pending::EndSession(*token), Call::EndSession { token: *token }))
            }
            Job::Probe(key) => {
                Some((key.mount.0.clone(), Pending::Probe(key.clone()), self.probe_call(key)?))
            }
            Job::Fetch(id) => self.fetch_call(*id),
            Job::RenewLease(id) => self.renew_call(*id),
            Job::Revoke(Revocation { secret, token, value, keeper }) => {
                let call =
                    Call::RevokeLease { token: *token, value: *value, secret: secret.clone() };
                let source = secret.source.clone();
                let pending = Pending::RevokeLease(source.clone(), *keeper, *value);
                Some((source, pending, call))
            }
        }
    }

    /// A job whose token went away while it waited in line gets in line for another.
    fn unstartable(&mut self, job: &Job) {
        match job {
            Job::Fetch(id) => {
                let entry = self.entries.get_mut(id);
                if let Some(entry) =
                    entry.filter(|entry| matches!(entry.activity, Activity::InLine(_)))
                {
                    entry.activity = Activity::Queued;
                    let session = entry.session;
                    self.await_token(session, *id);
                }
            }
            Job::Probe(key) => self.probe_again(key),
            _ => {}
        }
    }

    fn fetch_call(&self, id: EntryId) -> Option<(SourceName, Pending, Call)> {
        let entry = self.entries.get(&id)?;
        let Activity::InLine(_) = entry.activity else { return None };
        let token = self.sessions.get(&entry.session)?.current.as_ref()?.token;
        let secret = entry.key.secret.clone();
        let source = secret.source.clone();
        Some((source, Pending::Fetch(id, token), Call::Fetch { token, secret, kind: entry.kind }))
    }

    fn renew_call(&self, id: EntryId) -> Option<(SourceName, Pending, Call)> {
        let entry =
            self.entries.get(&id).filter(|entry| entry.activity == Activity::RenewQueued)?;
        let held = entry.current?;
        let increment = held.lease?.first_duration;
        let (token, value) = (held.token, held.value);
        let secret = entry.key.secret.clone();
        let source = secret.source.clone();
        let call = Call::RenewLease { token, value, increment, secret };
        Some((source, Pending::RenewLease(id, value), call))
    }

    /// While a source's breaker is open, ordinary work for it fails at once with the reason.
    /// Nobody waits for the end of a session: it is put off.
    pub(super) fn fail_fast(&mut self) {
        let now = self.now;
        if self.ordinary.is_empty() || self.sources.values().all(|s| s.is_open(now).is_none()) {
            return;
        }
        let doomed = |(place, job): (Place, &Job)| {
            let Some((source, ..)) = self.call_for(job) else { return Some(place) };
            self.sources.get(&source)?.is_open(now).map(|_| place)
        };
        for place in self.ordinary.iter().filter_map(doomed).collect::<Vec<_>>() {
            let Some(job) = self.ordinary.take(place) else { continue };
            let Some((source, pending, _)) = self.call_for(&job) else {
                self.unstartable(&job);
                continue;
            };
            let until = self.sources.get(&source).and_then(|health| health.is_open(now));
            if let Pending::EndSession(token) = pending {
                self.postpone_ending(token, until.unwrap_or(now));
                continue;
            }
            let message = self.known_failure(&job, &source);
            let mut error = SourceError::new(ErrorClass::Unreachable, message);
            error.retry_after = until.map(|until| now.until(until));
            self.dispatch(pending, now, Err(error));
        }
    }

    /// What a job that fails fast is told: its own last failure. The source's last failure may
    /// have been about somebody else's path; only status shows that.
    fn known_failure(&self, job: &Job, source: &SourceName) -> String {
        let own = match job {
            Job::Fetch(id) => self.entries.get(id).and_then(|entry| entry.problem.as_ref()),
            _ => None,
        };
        let own = own.filter(|problem| problem.class == ErrorClass::Unreachable);
        own.map_or_else(
            || format!("source {source} is unreachable and is tried again soon"),
            |problem| problem.message.clone(),
        )
    }

    /// A call came back: budget and health first, then what it was for.
    pub(super) fn completed(
        &mut self,
        effect: EffectId,
        left_at: BootInstant,
        outcome: Result<Done, SourceError>,
    ) {
        let Some(pending) = self.pending.remove(&effect) else { return };
        self.budget.give_back();
        if let Some(source) = self.source_of(&pending)
            && let Some(health) = self.sources.get_mut(&source)
        {
            health.in_flight = health.in_flight.saturating_sub(1);
            match &outcome {
                // One account that lacks a token must not stop the others.
                Err(error) if !error.asked => {}
                Err(error) if error.class == ErrorClass::Unreachable => {
                    let retry_after = error.retry_after;
                    health.unanswered(self.now, &error.message, retry_after, &mut self.rng);
                }
                _ if health.answered(self.now) => {
                    self.follow_ups.push_back(FollowUp::Recovered(source));
                }
                _ => {}
            }
        }
        self.dispatch(pending, left_at, outcome);
    }

    fn source_of(&self, pending: &Pending) -> Option<SourceName> {
        match pending {
            Pending::Login(id) | Pending::RenewToken(id, _) | Pending::PersistSession(id) => {
                Some(self.sessions.get(id)?.key.source.clone())
            }
            Pending::EndSession(token) => Some(self.endings.get(token)?.source.clone()),
            Pending::Probe(key) => Some(key.mount.0.clone()),
            Pending::RevokeLease(source, ..) => Some(source.clone()),
            Pending::Fetch(id, _) | Pending::RenewLease(id, _) | Pending::PersistLease(id) => {
                Some(self.entries.get(id)?.key.secret.source.clone())
            }
        }
    }

    fn dispatch(
        &mut self,
        pending: Pending,
        left_at: BootInstant,
        outcome: Result<Done, SourceError>,
    ) {
        match (pending, outcome) {
            (Pending::Login(id), Ok(Done::LoggedIn { token, terms, kind })) => {
                self.logged_in(id, left_at, token, terms, kind);
            }
            (Pending::Login(id), Err(error)) => self.login_failed(id, error),
            (Pending::RenewToken(id, token), Ok(Done::TokenRenewed(terms))) => {
                self.token_renewed(id, token, left_at, terms);
            }
            (Pending::RenewToken(id, token), Err(error)) => {
                self.token_renewal_failed(id, token, error);
            }
            (Pending::EndSession(token), outcome) => {
                self.session_ended(token, outcome.map(|_| ()));
            }
            (Pending::Probe(key), Ok(Done::Probed(mount))) => self.probed(&key, &mount),
            (Pending::Probe(key), Err(error)) => self.probe_returned(&key, &error),
            (Pending::Fetch(id, token), Ok(Done::Fetched(fetched))) => {
                self.with_entry(id, |state, entry| state.fetched(entry, token, left_at, fetched));
                self.fetch_over(id);
            }
            (Pending::Fetch(id, token), Err(error)) => {
                self.token_verdict(id, token, &error);
                self.with_entry(id, |state, entry| state.fetch_failed(entry, error));
                self.fetch_over(id);
            }
            (Pending::RenewLease(id, value), Ok(Done::LeaseRenewed(terms))) => {
                self.with_entry(id, |state, entry| {
                    state.lease_renewed(entry, value, left_at, terms);
                });
            }
            (Pending::RenewLease(id, value), Err(error)) => {
                let token = self.entries.get(&id).and_then(|e| e.current).map(|held| held.token);
                if let Some(token) = token {
                    self.token_verdict(id, token, &error);
                }
                self.with_entry(id, |state, entry| state.renewal_failed(entry, value, error));
            }
            (Pending::RevokeLease(_, None, value), _) => self.drop_value(value),
            (Pending::RevokeLease(_, Some(id), value), outcome) => {
                self.with_entry(id, |state, entry| {
                    state.revoked(entry, value, &outcome.map(|_| ()));
                });
            }
            // A call answered with another call's result would be a defect of the task.
            (pending, outcome) => debug_assert!(false, "{pending:?} came back as {outcome:?}"),
        }
    }

    /// Perhaps it was the last that a succeeded token was kept for.
    fn fetch_over(&mut self, id: EntryId) {
        let session = self.entries.get(&id).map(|entry| entry.session);
        let has_succeeded = |id: &SessionId| {
            self.sessions.get(id).is_some_and(|session| !session.retiring.is_empty())
        };
        if let Some(session) = session.filter(has_succeeded) {
            self.follow_ups.push_back(FollowUp::CheckSession(session));
        }
    }

    /// A call told that its token is dead: the session hears of it before the entry does.
    fn token_verdict(&mut self, id: EntryId, token: TokenId, error: &SourceError) {
        if error.class == ErrorClass::TokenEnded
            && let Some(session) = self.entries.get(&id).map(|entry| entry.session)
        {
            self.token_ended(session, token);
        }
    }
}
