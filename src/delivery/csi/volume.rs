//! One published volume: its task makes it, keeps it and takes it away, one command at a time.
//!
//! A call that its caller gives up runs to its end here all the same, so nothing is left half done.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::delivery::files::mount::{MountError, Root};
use crate::delivery::files::publisher::Publisher;
use crate::delivery::files::status_file::Now;
use crate::delivery::files::{self, VolumeConfig, mount};
use crate::delivery::socket::PodDoor;
use crate::domain::{ServiceAccount, VolumeName};
use crate::identity::Identity;
use crate::identity::token::PodClaims;
use crate::mounter::{Prepared, Target, VolumeKey};

use super::attributes::{Attributes, Deliver};
use super::error::CsiError;
use super::first_fill::first_fill;
use super::pod_socket;
use super::published::{End, Published, end_of};
use super::records::VolumeRecord;
use super::request::Publish;
use super::roles::check_role;
use super::volumes::Shared;

/// What is asked of a volume's task.
pub(super) enum Command {
    Publish {
        publish: Box<Publish>,
        claims: PodClaims,
        patience: Duration,
        reply: oneshot::Sender<Result<(), CsiError>>,
    },
    Unpublish {
        target: Target,
        reply: oneshot::Sender<Result<(), CsiError>>,
    },
}

/// Owns one volume.
pub(super) struct Volume {
    shared: Arc<Shared>,
    key: VolumeKey,
    published: Option<Published>,
}

impl Volume {
    pub(super) fn new(shared: Arc<Shared>, key: VolumeKey) -> Self {
        Self { shared, key, published: None }
    }

    /// Serves commands until the volume is gone, or the agent stops: then everything stays.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        work: CancellationToken,
    ) {
        let (pods, broker) = (self.shared.pods.clone(), self.shared.files.broker.clone());
        loop {
            // Every arm is cancel-safe: a command or an end that was not taken stays there.
            tokio::select! {
                () = work.cancelled() => break,
                end = end_of(self.published.as_mut(), &pods) => match (end, &mut self.published) {
                    (End::PodGone, Some(published)) => {
                        tracing::info!(volume = %self.key, "its pod is gone: the socket is closed");
                        published.release(&broker).await;
                    }
                    (End::Failed(why), _) => {
                        tracing::error!(volume = %self.key, why, "a volume is not kept any more");
                    }
                    (End::PodGone, None) => {}
                },
                command = commands.recv() => match command {
                    None => break,
                    Some(Command::Publish { publish, claims, patience, reply }) => {
                        let outcome = self.publish(*publish, &claims, patience).await;
                        if outcome.is_ok() {
                            pods.volume_published(&self.key.pod, self.key.volume.as_str());
                        }
                        // A caller that is gone asks again.
                        let _ = reply.send(outcome);
                    }
                    Some(Command::Unpublish { target, reply }) => {
                        let outcome = self.unpublish(&target).await;
                        let gone = outcome.is_ok();
                        if gone {
                            pods.volume_unpublished(&self.key.pod, self.key.volume.as_str());
                        }
                        let _ = reply.send(outcome);
                        if gone {
                            break;
                        }
                    }
                },
            }
        }
        if let Some(mut published) = self.published.take() {
            // The files' task finishes the swap it is in.
            published.stop.cancel();
            while published.keeping.join_next().await.is_some() {}
        }
    }

    /// Takes up a volume that a predecessor published; its pod delivers a token with the kubelet's
    /// next call.
    pub(super) async fn adopt(&mut self, record: VolumeRecord) -> Result<(), CsiError> {
        let pairs = record.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let attributes = Attributes::parse(pairs).map_err(CsiError::Invalid)?;
        let identity = self.identity(&record, &attributes);
        let published = self.open(record, &attributes, identity).await?;
        self.published = Some(published);
        self.shared.pods.volume_published(&self.key.pod, self.key.volume.as_str());
        Ok(())
    }

    async fn publish(
        &mut self,
        mut publish: Publish,
        claims: &PodClaims,
        patience: Duration,
    ) -> Result<(), CsiError> {
        let known = self.published.as_ref().map(|published| &published.record);
        publish.pod.account_uid_before = known.map(|record| record.pod.account.uid.clone());
        claims.matches(&publish.pod)?;
        self.check_role(&publish.attributes, &claims.pod().account)?;
        let record = VolumeRecord {
            volume_id: publish.volume_id,
            pod: claims.pod().clone(),
            attributes: publish.attributes.written.clone(),
            fs_group: publish.fs_group,
        };
        if known.is_some_and(|known| *known != record) {
            return Err(CsiError::Different);
        }
        let identity = self.identity(&record, &publish.attributes);
        let (tokens, account) = (self.shared.files.broker.login_tokens(), &record.pod.account);
        let member = identity.consumer().clone();
        tokens.deliver(account, member.clone(), publish.token, claims.expires_at());
        let Publish { attributes, target, .. } = publish;
        if let Some(published) = self.published.take() {
            return self.republish(published, &attributes, identity, patience, &target).await;
        }
        let made = self.make(&record, &attributes, identity, patience, &target).await;
        if self.published.is_none() {
            self.shared.files.broker.login_tokens().withdraw(&record.pod.account, &member);
        }
        made
    }

    fn check_role(
        &self,
        attributes: &Attributes,
        account: &ServiceAccount,
    ) -> Result<(), CsiError> {
        check_role(&self.shared.config.tenant_roles, attributes, account)
            .map_err(|problem| CsiError::Invalid(vec![problem]))
    }

    /// A pod that runs is never disturbed by a call that only brings its new token: it has a
    /// revision, and what is wrong with the secrets is in its status. A volume that was taken up
    /// without files, after a restart of the node, is filled first.
    async fn republish(
        &mut self,
        mut published: Published,
        attributes: &Attributes,
        identity: Identity,
        patience: Duration,
        target: &Target,
    ) -> Result<(), CsiError> {
        if published.keeping.is_empty() {
            let Published { record, reservation, .. } = published;
            drop(reservation);
            published = self.open(record, attributes, identity).await?;
        }
        let name = published.name.clone();
        self.published = Some(published);
        self.filled(&name, attributes, patience).await?;
        Ok(self.shared.mounter.bind(&self.key, target).await?)
    }

    /// Waits until the pod finds everything; a socket is there at once.
    async fn filled(
        &self,
        name: &VolumeName,
        attributes: &Attributes,
        patience: Duration,
    ) -> Result<(), CsiError> {
        match attributes.deliver {
            Deliver::Files(_) => first_fill(&self.shared.files.board, name, patience).await,
            Deliver::Socket => Ok(()),
        }
    }

    /// Mounts, fills, records, binds; whatever fails takes back what was done before it, unless
    /// files were there already: a pod that runs may be using those.
    async fn make(
        &mut self,
        record: &VolumeRecord,
        attributes: &Attributes,
        identity: Identity,
        patience: Duration,
        target: &Target,
    ) -> Result<(), CsiError> {
        let mut published = self.open(record.clone(), attributes, identity).await?;
        let finished = async {
            self.filled(&published.name, attributes, patience).await?;
            self.write_record(record).await?;
            Ok(self.shared.mounter.bind(&self.key, target).await?)
        };
        let outcome = finished.await;
        if outcome.is_ok() || published.had_files {
            self.published = Some(published);
        } else if let Err(left) = self.take_away(&mut published).await {
            tracing::warn!(volume = %self.key, error = %left, "a volume is left behind");
        }
        outcome
    }

    /// Has the tmpfs made or found and starts to keep its files, or to answer on its socket.
    async fn open(
        &self,
        record: VolumeRecord,
        attributes: &Attributes,
        identity: Identity,
    ) -> Result<Published, CsiError> {
        let shared = &self.shared;
        let reservation = shared.budget.reserve(shared.config.volume_size)?;
        let prepared = shared.mounter.prepare(&self.key, shared.config.volume_size).await?;
        let name = VolumeName::of_pod(&record.pod, &self.key.volume);
        let config = self.volume_config(name.clone(), attributes, record.fs_group);
        let root = prepared.root.try_clone();
        let root = root.map_err(|source| unusable("keep open", &config, source))?;
        let (stop, mut keeping) = (CancellationToken::new(), JoinSet::new());
        let had_files = match attributes.deliver {
            Deliver::Files(_) => {
                let publisher = self.publisher(prepared, config).await?;
                let had_files = publisher.has_revision();
                keeping.spawn(files::keep(publisher, identity, shared.files.clone(), stop.clone()));
                had_files
            }
            Deliver::Socket => {
                let owner = attributes.socket_ownership(record.fs_group);
                let socket = pod_socket::bind(prepared.root, owner)?;
                let status = pod_socket::status(&config, prepared.description);
                shared.files.board.publish(status);
                let (pod, role) = (Arc::new(record.pod.clone()), attributes.role.clone());
                let door = PodDoor { pod, volume: name.clone(), role };
                keeping.spawn(pod_socket::keep(shared.server.clone(), socket, door, stop.clone()));
                false
            }
        };
        Ok(Published {
            record,
            name,
            had_files,
            root,
            is_door: attributes.deliver == Deliver::Socket,
            stop,
            keeping,
            is_released: false,
            reservation,
        })
    }

    /// Opens the volume's files, with what a predecessor left of them.
    async fn publisher(
        &self,
        prepared: Prepared,
        config: VolumeConfig,
    ) -> Result<Publisher, CsiError> {
        let (mounter, key) = (Arc::clone(&self.shared.mounter), self.key.clone());
        let handle = tokio::runtime::Handle::current();
        let root = Root::handed_over(prepared.root, prepared.description, move || {
            // On the blocking pool, where the files' side asks.
            handle.block_on(mounter.mounted_below(&key)).map_err(std::io::Error::other)
        });
        let opening = move || Publisher::on(root, Arc::new(config), Now::read());
        Ok(tokio::task::spawn_blocking(opening).await.map_err(|_| CsiError::Stopping)??)
    }

    fn volume_config(
        &self,
        name: VolumeName,
        attributes: &Attributes,
        fs_group: Option<u32>,
    ) -> VolumeConfig {
        let config = &self.shared.config;
        VolumeConfig {
            name,
            path: Target::of(&config.kubelet_root, &self.key).as_str().into(),
            items: attributes.items(&config.source, fs_group),
            ..config.volume_defaults()
        }
    }

    fn identity(&self, record: &VolumeRecord, attributes: &Attributes) -> Identity {
        let name = VolumeName::of_pod(&record.pod, &self.key.volume);
        Identity::published_pod(Arc::new(record.pod.clone()), &name, attributes.role.clone())
    }

    async fn unpublish(&mut self, target: &Target) -> Result<(), CsiError> {
        self.shared.mounter.unbind(target).await?;
        match self.published.take() {
            Some(mut published) => {
                let taken = self.take_away(&mut published).await;
                if taken.is_err() {
                    // The kubelet asks again, and this goes on where it was.
                    self.published = Some(published);
                }
                taken
            }
            None => {
                self.shared.mounter.discard(&self.key).await?;
                self.remove_record().await
            }
        }
    }

    /// Ends the interest in the secrets, wipes the files, gives the tmpfs back. May be repeated.
    async fn take_away(&self, published: &mut Published) -> Result<(), CsiError> {
        published.release(&self.shared.files.broker).await;
        self.shared.files.board.remove(&published.name);
        let root = published.root.try_clone().map_err(CsiError::Record)?;
        let wiped = tokio::task::spawn_blocking(move || mount::clear(root.as_fd())).await;
        if let Ok(Err(error)) = wiped {
            tracing::warn!(volume = %self.key, %error, "a volume's files are not all overwritten");
        }
        self.shared.mounter.discard(&self.key).await?;
        self.remove_record().await
    }

    async fn write_record(&self, record: &VolumeRecord) -> Result<(), CsiError> {
        let (records, key, record) =
            (self.shared.records.clone(), self.key.clone(), record.clone());
        let writing = move || records.write(&key, &record);
        let written = tokio::task::spawn_blocking(writing).await;
        written.map_err(|_| CsiError::Stopping)?.map_err(CsiError::Record)
    }

    async fn remove_record(&self) -> Result<(), CsiError> {
        let (records, key) = (self.shared.records.clone(), self.key.clone());
        let removed = tokio::task::spawn_blocking(move || records.remove(&key)).await;
        removed.map_err(|_| CsiError::Stopping)?.map_err(CsiError::Record)
    }
}

fn unusable(what: &'static str, config: &VolumeConfig, source: std::io::Error) -> MountError {
    MountError::Io { what, path: config.path.clone(), source }
}
