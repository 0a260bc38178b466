//! Mount kinds: configured, or asked for once before the first read below a mount.

use std::collections::{BTreeMap, VecDeque};

use super::jobs::Job;
use super::session::{Purpose, SessionKey, Waiting};
use super::turns::Party;
use super::{FollowUp, State};
use crate::broker::ReadError;
use crate::broker::event::{Answer, Call, SubscriptionId, TokenId, WaiterId, Want};
use crate::domain::{ConsumerId, LoginIdentity, Mount, PathKind, SecretPath, SourceName};
use crate::source::{ConfiguredMount, ErrorClass, SourceError};

/// A mount of a source.
pub(super) type MountKey = (SourceName, SecretPath);

/// The question for a mount's kind, asked as one login identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbeKey {
    pub mount: MountKey,
    pub login: LoginIdentity,
}

/// A mount whose kind is not known yet. One login identity asks at a time: an answer is
/// everybody's, a refusal only its own, and then the next one asks.
#[derive(Default)]
pub(super) struct Probes {
    asking: Option<LoginIdentity>,
    /// Who has a token and waits for what the one who asks is told.
    ready: VecDeque<LoginIdentity>,
    by_login: BTreeMap<LoginIdentity, Probe>,
}

/// One login identity's part of it.
struct Probe {
    path: SecretPath,
    parked: Vec<Parked>,
    /// A dead token has already been replaced for it.
    retried: bool,
}

/// What waits for a mount's kind.
pub(super) enum Parked {
    Read(WaiterId, Want),
    Subscribe(SubscriptionId, Want),
    Resolve(WaiterId),
}

impl State {
    /// The mount a wanted secret lies below, if its kind is known already.
    pub(super) fn known_mount(&self, want: &Want) -> Option<Mount> {
        self.mount_kind(&want.secret.source, &want.mount)
    }

    fn mount_kind(&self, source: &SourceName, mount: &ConfiguredMount) -> Option<Mount> {
        let key = Self::mount_key(source, &mount.path);
        let kind = mount.kind.or_else(|| self.mounts.get(&key).copied())?;
        Some(Mount { path: mount.path.clone(), kind })
    }

    pub(super) fn resolve(
        &mut self,
        waiter: WaiterId,
        source: SourceName,
        login: LoginIdentity,
        mount: ConfiguredMount,
        path: SecretPath,
    ) {
        match self.mount_kind(&source, &mount) {
            Some(known) => self.answer(waiter, Answer::Mount(known)),
            None => {
                let key = ProbeKey { mount: (source, mount.path), login };
                self.probe(key, path, Parked::Resolve(waiter));
            }
        }
    }

    /// The question that a want of unknown kind waits for.
    pub(super) fn probe_key(want: &Want) -> ProbeKey {
        let mount = Self::mount_key(&want.secret.source, &want.mount.path);
        ProbeKey { mount, login: want.login.clone() }
    }

    pub(super) fn park(&mut self, parked: Parked) {
        let (Parked::Read(_, want) | Parked::Subscribe(_, want)) = &parked else { return };
        let (key, path) = (Self::probe_key(want), want.secret.path.clone());
        self.probe(key, path, parked);
    }

    fn probe(&mut self, key: ProbeKey, path: SecretPath, parked: Parked) {
        let probes = &mut self.probes.entry(key.mount.clone()).or_default().by_login;
        if let Some(probe) = probes.get_mut(&key.login) {
            probe.parked.push(parked);
            return;
        }
        let probe = Probe { path, parked: vec![parked], retried: false };
        probes.insert(key.login.clone(), probe);
        self.await_probe_token(key);
    }

    fn await_probe_token(&mut self, key: ProbeKey) {
        let session = self.kv_session(&key.mount.0, &key.login);
        self.await_token_for(session, Waiting::Probe(key));
    }

    pub(super) fn unpark(&mut self, key: &ProbeKey, subscription: SubscriptionId) {
        if let Some(probe) = self.probe_of(key) {
            probe.parked.retain(
                |parked| !matches!(parked, Parked::Subscribe(id, _) if *id == subscription),
            );
        }
    }

    /// Reads of a consumer that is gone: taken from every question that they wait for.
    pub(super) fn unpark_reads_of(&mut self, consumer: &ConsumerId) {
        let mut gone = Vec::new();
        for probe in self.probes.values_mut().flat_map(|probes| probes.by_login.values_mut()) {
            probe.parked.retain(|parked| match parked {
                Parked::Read(waiter, want) if want.consumer == *consumer => {
                    gone.push(*waiter);
                    false
                }
                _ => true,
            });
        }
        for waiter in gone {
            self.answer(waiter, Answer::Refused(ReadError::Busy));
        }
    }

    fn probe_of(&mut self, key: &ProbeKey) -> Option<&mut Probe> {
        self.probes.get_mut(&key.mount)?.by_login.get_mut(&key.login)
    }

    pub(super) fn probe_ready(&mut self, key: ProbeKey) {
        if let Some(probes) = self.probes.get_mut(&key.mount)
            && probes.by_login.contains_key(&key.login)
        {
            probes.ready.push_back(key.login);
            self.ask_next(key.mount);
        }
    }

    /// The next login identity asks, unless one does.
    fn ask_next(&mut self, mount: MountKey) {
        let Some(probes) = self.probes.get_mut(&mount) else { return };
        if probes.asking.is_none()
            && let Some(login) = probes.ready.pop_front()
        {
            probes.asking = Some(login.clone());
            let party = Party::Login(login.clone());
            self.ordinary.push(party, Job::Probe(ProbeKey { mount, login }));
        }
    }

    /// The call that asks, while its login identity has a token.
    pub(super) fn probe_call(&self, key: &ProbeKey) -> Option<Call> {
        let path = self.probes.get(&key.mount)?.by_login.get(&key.login)?.path.clone();
        Some(Call::Probe { token: self.probe_token(key)?, path })
    }

    fn probe_token(&self, key: &ProbeKey) -> Option<TokenId> {
        let (source, login, purpose) = (key.mount.0.clone(), key.login.clone(), Purpose::Kv);
        let id = self.session_index.get(&SessionKey { source, login, purpose })?;
        Some(self.sessions.get(id)?.current.as_ref()?.token)
    }

    /// One was told the kind: everybody goes on, whatever their own login has come to.
    pub(super) fn probed(&mut self, key: &ProbeKey, mount: &Mount) {
        let Some(probes) = self.probes.remove(&key.mount) else { return };
        // The answer may name a longer mount path than the configured one only by mistake.
        self.mounts.insert(key.mount.clone(), mount.kind);
        let mount = Mount { path: key.mount.1.clone(), kind: mount.kind };
        for parked in probes.by_login.into_values().flat_map(|probe| probe.parked) {
            match parked {
                Parked::Read(waiter, want) => self.read(waiter, want),
                Parked::Subscribe(id, want) => self.subscribe_known(id, want, &mount),
                Parked::Resolve(waiter) => self.answer(waiter, Answer::Mount(mount.clone())),
            }
        }
    }

    /// The kind could not be asked for as this login identity. Its subscribers hear of it and ask
    /// again by subscribing anew; nothing is remembered, so the next read asks again.
    pub(super) fn probe_failed(&mut self, key: &ProbeKey, error: &SourceError) {
        let Some(probes) = self.probes.get_mut(&key.mount) else { return };
        let Some(probe) = probes.by_login.remove(&key.login) else { return };
        probes.asking.take_if(|login| *login == key.login);
        if probes.by_login.is_empty() {
            self.probes.remove(&key.mount);
        }
        self.refuse_parked(probe.parked, key, error);
        let session = self.kv_session(&key.mount.0, &key.login);
        self.follow_ups.push_back(FollowUp::CheckSession(session));
        self.ask_next(key.mount.clone());
    }

    fn refuse_parked(&mut self, all: Vec<Parked>, key: &ProbeKey, error: &SourceError) {
        let message = if error.class == ErrorClass::Denied {
            let (source, mount) = &key.mount;
            format!(
                "the kind of mount '{mount}' could not be asked for ({}); \
                 set [sources.{source}.mounts] {mount} = \"kv1\", \"kv2\", \"database\" or \
                 \"other\"",
                error.message
            )
        } else {
            error.message.clone()
        };
        let class = error.class;
        for parked in all {
            match parked {
                Parked::Read(waiter, _) | Parked::Resolve(waiter) => {
                    let retry_after = error.retry_after;
                    let message = message.clone();
                    let refused = ReadError::Source { class, message, retry_after };
                    self.answer(waiter, Answer::Refused(refused));
                }
                Parked::Subscribe(id, _) => {
                    self.subscriptions.remove(&id);
                    self.refuse_subscription(id, class, message.clone());
                }
            }
        }
    }

    /// A probe came back without an answer. A dead token is replaced once, like for a read.
    pub(super) fn probe_returned(&mut self, key: &ProbeKey, error: &SourceError) {
        if error.class == ErrorClass::TokenEnded
            && let Some(probe) = self.probe_of(key).filter(|probe| !probe.retried)
        {
            probe.retried = true;
            let session = self.kv_session(&key.mount.0, &key.login);
            if let Some(token) = self.probe_token(key) {
                self.token_ended(session, token);
            }
            self.probe_again(key);
            return;
        }
        self.probe_failed(key, error);
    }

    /// Its token went away: it waits for another one, and who has one asks meanwhile.
    pub(super) fn probe_again(&mut self, key: &ProbeKey) {
        let Some(probes) = self.probes.get_mut(&key.mount) else { return };
        probes.asking.take_if(|login| *login == key.login);
        if probes.by_login.contains_key(&key.login) {
            self.await_probe_token(key.clone());
        }
        self.ask_next(key.mount.clone());
    }

    /// Only KV and static reads are shared by login identity.
    pub(super) fn is_shared(kind: PathKind) -> bool {
        kind != PathKind::Minting
    }
}
