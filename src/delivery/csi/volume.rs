//! One published volume: its task makes it, keeps it and takes it away, one command at a time.
//!
//! A call that its caller gives up runs to its end here all the same, so nothing is left half done;
//! a new volume that nobody heard of goes again, and is made anew for a caller that comes back.
//! What a pod may be using is never taken away by a failure, only by the kubelet's unpublish; what
//! of it is not kept is tried again.

use std::fmt::Display;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::delivery::files::mount;
use crate::domain::{ConsumerId, VolumeName};
use crate::identity::token::PodClaims;
use crate::mounter::{MounterError, Target, VolumeKey};
use crate::sys;
use crate::telemetry::Chain;

use super::attributes::{Attributes, Deliver};
use super::command::{Command, End};
use super::error::CsiError;
use super::first_fill::first_fill;
use super::kept::{self, Kept};
use super::known::Known;
use super::records::VolumeRecord;
use super::request::Publish;
use super::roles::check_role;
use super::volumes::Shared;

/// The first pause before a volume that is not kept is taken up again, or one that nobody wants is
/// taken away again; each is twice the last.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest one.
const RETRY_MOST: Duration = Duration::from_secs(30);

const NOT_KEPT: &str = "the volume is not kept";

/// Owns one volume.
pub(super) struct Volume {
    shared: Arc<Shared>,
    key: VolumeKey,
    /// A pod may be using it: a publish was answered, or a predecessor left it.
    in_use: bool,
    /// Of a volume that is not in use: what could not be taken away yet.
    known: Option<Known>,
    /// Something of it is on the node that this process does not know more about.
    is_left: bool,
    /// Its line in status, while its record is not understood.
    not_understood: Option<VolumeName>,
    retry_in: Duration,
}

impl Volume {
    pub(super) fn new(shared: Arc<Shared>, key: VolumeKey) -> Self {
        Self {
            shared,
            key,
            in_use: false,
            known: None,
            is_left: false,
            not_understood: None,
            retry_in: RETRY_FIRST,
        }
    }

    /// A volume that a predecessor left. Without its record, the kubelet's next call says what
    /// there is to know about it.
    pub(super) fn left(shared: Arc<Shared>, key: VolumeKey) -> Self {
        Self { in_use: true, ..Self::new(shared, key) }
    }

    /// Takes up a volume that a predecessor published; its pod delivers a token with the kubelet's
    /// next call. What does not succeed now is tried again; a record that is not understood waits
    /// for that call.
    pub(super) async fn adopt(&mut self, record: VolumeRecord) -> Result<(), CsiError> {
        let pairs = record.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let attributes = Attributes::parse(pairs).map_err(CsiError::Invalid);
        self.shared.pods.volume_published(&self.key.pod, self.key.volume.as_str());
        let attributes = attributes.inspect_err(|error| {
            let name = VolumeName::of_pod(&record.pod, &self.key.volume);
            let alarm = format!("{NOT_KEPT} before the kubelet's next call: its record: {error}");
            kept::not_understood(&self.shared, &self.key, &name, alarm);
            self.not_understood = Some(name);
        })?;
        let mut known = Known::new(&self.key, record, attributes);
        known.recorded = true;
        let outcome = self.keep(&mut known).await;
        self.known = Some(known);
        outcome
    }

    /// Serves commands until nothing of the volume is left, or the agent stops.
    pub(super) async fn run(mut self, commands: &mut mpsc::Receiver<Command>) -> End {
        let shared = Arc::clone(&self.shared);
        let (pods, pod) = (self.shared.pods.clone(), self.key.pod.clone());
        let end = loop {
            let known = self.known.as_ref();
            let is_kept = |known: &Known| known.is_kept() || known.is_released;
            let to_do =
                known.map_or(!self.in_use && self.is_left, |known| !self.in_use || !is_kept(known));
            let is_open_door = known.is_some_and(Known::is_open_door);
            let kept = self.known.as_mut().and_then(|known| known.kept.as_mut());
            // Every arm is cancel-safe: a command or an end that was not taken stays there.
            tokio::select! {
                () = shared.stages.work.cancelled() => break End::Stopped,
                Some(ended) = Kept::ended(kept) => {
                    tracing::error!(volume = %self.key, ended, "a volume is not kept any more");
                    if let Some(known) = &self.known {
                        self.not_kept(known, &ended);
                    }
                }
                () = pods.gone(&pod), if is_open_door => self.close().await,
                () = tokio::time::sleep(self.retry_in), if to_do => {
                    if self.try_again().await {
                        break End::Nothing(None);
                    }
                }
                command = commands.recv() => match command {
                    None => break End::Stopped,
                    Some(Command::Publish { publish, claims, patience, reply }) => {
                        let is_new = !self.in_use;
                        let outcome = self.publish(*publish, &claims, patience).await;
                        if outcome.is_ok() && is_new && reply.is_closed() {
                            // Its caller may have a successor that took it away before it began.
                            self.in_use = false;
                        } else if outcome.is_ok() {
                            pods.volume_published(&pod, self.key.volume.as_str());
                        } else if !self.in_use && self.known.is_none() && !self.is_left {
                            // After a final refusal the kubelet may never come again.
                            break End::Nothing(Some((reply, outcome)));
                        }
                        // A caller that is gone asks again.
                        let _ = reply.send(outcome);
                    }
                    Some(Command::Unpublish { target, reply }) => {
                        let outcome = self.unpublish(&target).await;
                        if outcome.is_ok() {
                            break End::Nothing(Some((reply, outcome)));
                        }
                        let _ = reply.send(outcome);
                    }
                },
            }
        };
        if let End::Nothing(_) = end {
            pods.volume_unpublished(&pod, self.key.volume.as_str());
        }
        if let Some(mut kept) = self.known.take().and_then(|known| known.kept) {
            // The files' task finishes the swap it is in.
            kept.stop().await;
        }
        end
    }

    /// Its pod is gone, whether or not the kubelet knows already.
    async fn close(&mut self) {
        let Some(known) = &mut self.known else { return };
        tracing::info!(volume = %self.key, "its pod is gone: the socket is closed");
        known.release(&self.shared.files.broker).await;
        let alarm = "its pod is gone: the socket is closed, and the kubelet still has the volume";
        kept::not_kept(&self.shared, &self.key, known, alarm.to_owned());
    }

    fn not_kept(&self, known: &Known, why: &dyn Display) {
        let alarm = format!("{NOT_KEPT}, which is tried again: {why}");
        kept::not_kept(&self.shared, &self.key, known, alarm);
    }

    /// Keeps what a pod uses, takes away what none does; whether nothing is left.
    async fn try_again(&mut self) -> bool {
        self.retry_in = (self.retry_in * 2).min(RETRY_MOST);
        if !self.in_use {
            let target = Target::of(&self.shared.config.kubelet_root, &self.key);
            let gone = self.unpublish(&target).await.is_ok();
            if gone {
                tracing::info!(volume = %self.key, "a volume that was left behind is taken away");
            }
            return gone;
        }
        let Some(mut known) = self.known.take() else { return false };
        match self.keep(&mut known).await {
            Ok(()) => tracing::info!(volume = %self.key, "a volume is kept again"),
            Err(error) => {
                tracing::warn!(volume = %self.key, error = %Chain(&error), "still not kept");
            }
        }
        self.known = Some(known);
        false
    }

    async fn publish(
        &mut self,
        mut publish: Publish,
        claims: &PodClaims,
        patience: Duration,
    ) -> Result<(), CsiError> {
        let _begun = (!self.in_use).then(|| self.shared.begun.one());
        if !self.in_use && self.shared.stages.intake.is_cancelled() {
            return Err(CsiError::Stopping);
        }
        // The kubelet takes a refusal as final: nothing may be left when it hears one.
        if let Some(left) = self.known.take_if(|_| !self.in_use) {
            self.take_back(left, &publish.target).await.map_err(CsiError::left)?;
        }
        let known = self.known.as_ref().map(|known| &known.record);
        publish.pod.account_uid_before = known.map(|record| record.pod.account.uid.clone());
        claims.matches(&publish.pod)?;
        check_role(&self.shared.config.tenant_roles, &publish.attributes, &claims.pod().account)
            .map_err(|problem| CsiError::Invalid(vec![problem]))?;
        let record = VolumeRecord {
            volume_id: publish.volume_id,
            pod: claims.pod().clone(),
            attributes: publish.attributes.written.clone(),
            fs_group: publish.fs_group,
        };
        if known.is_some_and(|known| *known != record) {
            return Err(CsiError::Different);
        }
        let Publish { attributes, target, token, .. } = publish;
        if let Some(name) = self.not_understood.take() {
            self.shared.files.board.remove(&name);
        }
        let known = self.known.take();
        let mut known = known.unwrap_or_else(|| Known::new(&self.key, record, attributes));
        known.is_released = false;
        let (tokens, account) =
            (self.shared.files.broker.login_tokens(), &known.record.pod.account);
        tokens.deliver(account, ConsumerId::volume(&known.name), token, claims.expires_at());
        let outcome = self.complete(&mut known, patience, &target).await;
        match outcome {
            Ok(()) => (self.in_use, self.retry_in) = (true, RETRY_FIRST),
            Err(failed) if !self.in_use => {
                let taken = self.take_back(known, &target).await;
                return Err(if taken.is_ok() { failed } else { failed.left() });
            }
            Err(_) => {}
        }
        self.known = Some(known);
        outcome
    }

    /// Mounts, fills, records, binds: what of it is not done yet. A pod that runs is not disturbed
    /// by a call that only brings its new token: it has a revision, and what is wrong with the
    /// secrets is in its status.
    async fn complete(
        &self,
        known: &mut Known,
        patience: Duration,
        target: &Target,
    ) -> Result<(), CsiError> {
        self.keep(known).await?;
        // A socket is there at once.
        if let (Deliver::Files(_), false) = (&known.attributes.deliver, self.runs_with(known)) {
            // What is complete is not refused by a stop.
            tokio::select! {
                biased;
                filled = first_fill(&self.shared.files.board, &known.name, patience) => filled?,
                () = self.stop_of_new_volumes() => return Err(CsiError::Stopping),
            }
        }
        if !known.recorded {
            self.write_record(&known.record).await?;
            known.recorded = true;
        }
        Ok(self.shared.mounter.bind(&self.key, target).await?)
    }

    /// Whether a pod uses it and has files.
    fn runs_with(&self, known: &Known) -> bool {
        let status = self.shared.files.board.get(&known.name);
        self.in_use && status.is_some_and(|status| status.revision.is_some())
    }

    /// Waits until the agent stops; of a volume that a pod uses, for ever.
    async fn stop_of_new_volumes(&self) {
        match self.in_use {
            true => std::future::pending().await,
            false => self.shared.stages.intake.cancelled().await,
        }
    }

    /// Has the tmpfs made or found and keeps its files, or answers on its socket, unless that is
    /// under way.
    async fn keep(&self, known: &mut Known) -> Result<(), CsiError> {
        if known.is_kept() {
            return Ok(());
        }
        if known.reservation.is_none() {
            let (budget, size) = (&self.shared.budget, self.shared.config.volume_size);
            // What a pod uses takes its memory whether it is kept or not.
            let reservation =
                if self.in_use { budget.count(size) } else { budget.reserve(size)? };
            known.reservation = Some(reservation);
        }
        let begun = Kept::begin(&self.shared, &self.key, known).await;
        if let (Err(error), true) = (&begun, self.in_use) {
            self.not_kept(known, &Chain(error));
        }
        known.kept = Some(begun?);
        Ok(())
    }

    /// No container is left: the secrets end even if their mount does not yet.
    async fn unpublish(&mut self, target: &Target) -> Result<(), CsiError> {
        let unbound = self.unbind(target).await;
        self.in_use = false;
        match self.known.take() {
            Some(known) => self.take_away(known).await?,
            // Nothing of it is in this process.
            None => {
                self.is_left = true;
                self.remove(None).await?;
                if let Some(name) = self.not_understood.take() {
                    self.shared.files.board.remove(&name);
                }
            }
        }
        self.is_left = unbound.is_err();
        Ok(unbound?)
    }

    /// Takes away what no pod has seen. The mounter may have bound it though its answer was lost.
    async fn take_back(&mut self, known: Known, target: &Target) -> Result<(), CsiError> {
        // If it is bound and stays so, the mounter does not discard it.
        let _ = self.unbind(target).await;
        self.take_away(known).await
    }

    async fn unbind(&self, target: &Target) -> Result<(), MounterError> {
        let unbound = self.shared.mounter.unbind(target).await;
        unbound.inspect_err(|error| {
            tracing::warn!(volume = %self.key, error = %Chain(error), "cannot unbind a volume");
        })
    }

    /// Ends the interest in the secrets, wipes the files, gives the tmpfs back. What does not
    /// succeed is known on, with its memory, and tried again.
    async fn take_away(&mut self, mut known: Known) -> Result<(), CsiError> {
        known.release(&self.shared.files.broker).await;
        self.shared.files.board.remove(&known.name);
        let taken = self.remove(known.kept.as_ref()).await;
        if let Err(error) = &taken {
            let error = Chain(error);
            tracing::warn!(volume = %self.key, %error, "a volume is left behind for now");
            let alarm =
                format!("the volume cannot be taken away yet, which is tried again: {error}");
            kept::not_kept(&self.shared, &self.key, &known, alarm);
            self.known = Some(known);
        }
        taken
    }

    async fn remove(&self, kept: Option<&Kept>) -> Result<(), CsiError> {
        if let Err(error) = self.overwrite(kept).await {
            let error = format!("{error:#}");
            tracing::warn!(volume = %self.key, error, "not all files are overwritten");
        }
        self.shared.mounter.discard(&self.key).await?;
        self.remove_record().await
    }

    /// Overwrites and removes the files, also those that only a predecessor kept.
    async fn overwrite(&self, kept: Option<&Kept>) -> anyhow::Result<()> {
        let Shared { mounter, config, .. } = &*self.shared;
        let root = match kept {
            Some(kept) => kept.root(),
            None if mounter.list().await?.iter().any(|mounted| mounted.key == self.key) => {
                Arc::new(mounter.prepare(&self.key, config.volume_size).await?.root)
            }
            None => return Ok(()),
        };
        // Overwriting takes leases, and no files' task may have run yet.
        sys::ignore_sigio()?;
        Ok(tokio::task::spawn_blocking(move || mount::clear(root.as_fd())).await??)
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

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
