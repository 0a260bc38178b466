//! Mount kinds: configured, or asked for once before the first read below a mount.

use super::jobs::Job;
use super::session::Waiting;
use super::{FollowUp, State};
use crate::broker::ReadError;
use crate::broker::event::{Answer, SubscriptionId, WaiterId, Want};
use crate::domain::{LoginIdentity, Mount, PathKind, SecretPath, SourceName};
use crate::source::{ConfiguredMount, ErrorClass, SourceError};

/// A mount of a source.
pub(super) type MountKey = (SourceName, SecretPath);

/// A mount whose kind is being asked for, and who waits for it.
pub(super) struct Probe {
    pub path: SecretPath,
    pub login: LoginIdentity,
    pub parked: Vec<Parked>,
    /// A dead token has already been replaced for it.
    pub retried: bool,
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
            None => self.probe((source, mount.path), login, path, Parked::Resolve(waiter)),
        }
    }

    pub(super) fn park(&mut self, parked: Parked) {
        let (Parked::Read(_, want) | Parked::Subscribe(_, want)) = &parked else { return };
        let key = Self::mount_key(&want.secret.source, &want.mount.path);
        let (login, path) = (want.login.clone(), want.secret.path.clone());
        self.probe(key, login, path, parked);
    }

    fn probe(&mut self, key: MountKey, login: LoginIdentity, path: SecretPath, parked: Parked) {
        if let Some(probe) = self.probes.get_mut(&key) {
            probe.parked.push(parked);
            return;
        }
        let probe = Probe { path, login: login.clone(), parked: vec![parked], retried: false };
        self.probes.insert(key.clone(), probe);
        let session = self.kv_session(&key.0, &login);
        self.await_token_for(session, Waiting::Probe(key));
    }

    pub(super) fn unpark(&mut self, key: &MountKey, subscription: SubscriptionId) {
        if let Some(probe) = self.probes.get_mut(key) {
            probe.parked.retain(
                |parked| !matches!(parked, Parked::Subscribe(id, _) if *id == subscription),
            );
        }
    }

    pub(super) fn probe_ready(&mut self, key: MountKey) {
        self.ordinary.push_back(Job::Probe(key));
    }

    pub(super) fn probed(&mut self, key: &MountKey, mount: &Mount) {
        let Some(probe) = self.probes.remove(key) else { return };
        // The answer may name a longer mount path than the configured one only by mistake.
        self.mounts.insert(key.clone(), mount.kind);
        let mount = Mount { path: key.1.clone(), kind: mount.kind };
        for parked in probe.parked {
            match parked {
                Parked::Read(waiter, want) => self.read(waiter, want),
                Parked::Subscribe(id, want) => self.subscribe_known(id, want, &mount),
                Parked::Resolve(waiter) => self.answer(waiter, Answer::Mount(mount.clone())),
            }
        }
    }

    /// The kind could not be asked for. Subscribers hear of it and ask again by subscribing anew;
    /// nothing is remembered, so the next read asks again.
    pub(super) fn probe_failed(&mut self, key: &MountKey, error: &SourceError) {
        let Some(probe) = self.probes.remove(key) else { return };
        let message = if error.class == ErrorClass::Denied {
            let (source, mount) = key;
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
        for parked in probe.parked {
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
        let session = self.kv_session(&key.0, &probe.login);
        self.follow_ups.push_back(FollowUp::CheckSession(session));
    }

    /// A probe came back without an answer. A dead token is replaced once, like for a read.
    pub(super) fn probe_returned(&mut self, key: &MountKey, error: &SourceError) {
        if error.class == ErrorClass::TokenEnded
            && let Some(probe) = self.probes.get_mut(key).filter(|probe| !probe.retried)
        {
            probe.retried = true;
            let login = probe.login.clone();
            let session = self.kv_session(&key.0, &login);
            let token = self.sessions.get(&session).and_then(|s| Some(s.current.as_ref()?.token));
            if let Some(token) = token {
                self.token_ended(session, token);
            }
            self.probe_again(key);
            return;
        }
        self.probe_failed(key, error);
    }

    pub(super) fn probe_again(&mut self, key: &MountKey) {
        if let Some(login) = self.probes.get(key).map(|probe| probe.login.clone()) {
            let session = self.kv_session(&key.0, &login);
            self.await_token_for(session, Waiting::Probe(key.clone()));
        }
    }

    /// Only KV and static reads are shared by login identity.
    pub(super) fn is_shared(kind: PathKind) -> bool {
        kind != PathKind::Minting
    }
}
