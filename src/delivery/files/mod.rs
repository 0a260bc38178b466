//! Volumes on a host: secrets as files on a tmpfs, one task per declared volume.
//!
//! | part | what it is |
//! |---|---|
//! | [`config`], [`name`], [`item_text`] | what is declared, and the names it may use |
//! | [`follow`] | one per secret: resolve, authorise, subscribe; writes the secret's [`level`] |
//! | [`level`] | pure: what each state of a secret means for its files |
//! | [`object`], [`mod@format`], [`render`] | pure: from secrets to file contents |
//! | [`plan`] | pure: wait, leave alone, or publish a revision |
//! | [`apply`], [`wipe`], [`mount`], [`status_file`] | the directory: swap, removal, tmpfs |
//! | [`publisher`] | one volume's directory over time, synchronous and told the time |
//! | [`on_change`], [`notifier`] | telling applications, in batches |
//!
//! ```text
//! broker ─ watch ─► follower ─┐
//! broker ─ watch ─► follower ─┴─ levels ─► volume task ─► publisher ─► tmpfs
//!                                              └─► status board, audit, notifier
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::audit::{Audit, AuditEvent};
use crate::broker::Broker;
use crate::clock::{self, BootInstant, BootTimer};
use crate::domain::VolumeName;
use crate::identity::Identity;
use crate::policy::Policy;
use crate::shutdown::{Stage, Stages, Supervisor};
use crate::status::{Interest, VolumeBoard};
use crate::sys;

pub mod apply;
pub mod config;
pub mod follow;
pub mod format;
pub mod item_text;
pub mod level;
pub mod mount;
pub mod name;
pub mod notifier;
pub mod object;
pub mod on_change;
pub mod plan;
pub mod publisher;
pub mod render;
pub mod status_file;
pub mod wipe;

#[cfg(test)]
mod testing;

pub use config::{
    Backing, DeclaredVolume, FileOwnership, ItemConfig, ItemContent, OnProblem, VolumeConfig,
    check_names,
};
pub use format::Format;
pub use item_text::{ItemText, ItemTextError};
pub use name::{FileName, FileNameError};
pub use on_change::{Argv, OnChange, OnChangeRefused, ReloadSignal, UnitName};

use follow::Follower;
use level::Levels;
use notifier::Notifier;
use publisher::{Published, Publisher, Settled};
use status_file::Now;

/// How often a volume without a root is tried again.
const MOUNT_RETRY: Duration = Duration::from_secs(30);

/// What a volume's task works with. Cheap to clone.
#[derive(Clone)]
pub struct Deps {
    /// Where secrets come from.
    pub broker: Broker,
    /// Whether the volume may have them.
    pub policy: Policy,
    /// Where decisions and revisions are recorded.
    pub audit: Audit,
    /// Where status finds the volume.
    pub board: VolumeBoard,
}

/// Starts one supervised task per volume; they end when `work` is cancelled.
pub fn spawn_volumes(
    volumes: Vec<DeclaredVolume>,
    deps: &Deps,
    stages: &Stages,
    supervisor: &mut Supervisor,
) {
    for volume in volumes {
        let task = run_volume(volume, deps.clone(), stages.work.clone());
        supervisor.spawn("volume", Stage::Work, task);
    }
}

/// Keeps one declared volume's files current until `work` is cancelled; files and mount stay
/// behind.
///
/// A volume that cannot be mounted or published is an alarm on the board, not an error. An error
/// means this process cannot keep its promises at all: no timer, no signal mask, a panic.
pub async fn run_volume(
    volume: DeclaredVolume,
    deps: Deps,
    work: CancellationToken,
) -> anyhow::Result<()> {
    let volume = Arc::new(volume);
    let Some(publisher) = open(&volume, &deps.board, &work).await? else { return Ok(()) };
    let identity = Identity::declared_volume(volume.config.name.clone());
    keep(publisher, identity, deps, work).await
}

/// Keeps the files of a volume whose root is ready current until `stop`; they stay behind.
///
/// # Errors
/// As [`run_volume`].
pub async fn keep(
    mut publisher: Publisher,
    identity: Identity,
    deps: Deps,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    // Before the first lease is taken: by default SIGIO ends the process.
    sys::ignore_sigio().context("cannot ignore SIGIO")?;
    let config = publisher.config();
    let (levels_sender, mut levels) = watch::channel(Levels::new());
    let mut followers = follow_all(&config, &identity, &deps, &levels_sender);
    let mut notifier = Notifier::new(config.on_change.clone(), config.on_change_batch);
    let timer = BootTimer::new().context("cannot make a timer")?;
    while !stop.is_cancelled() {
        let current = levels.borrow_and_update().clone();
        let secrets = current.values().filter_map(|level| level.secret.clone()).collect();
        deps.board.reads(&config.name, Interest { identity: identity.clone(), secrets });
        let settled;
        (publisher, settled) = settle(publisher, current).await?;
        let next = report(&config.name, &deps, &mut notifier, settled);
        timer.arm(next).context("cannot arm a timer")?;
        tokio::select! {
            () = stop.cancelled() => {}
            // Cancel-safe: levels are read anew, and an unseen change stays unseen.
            _ = levels.changed() => {}
            // Cancel-safe: an unread expiry stays readable.
            fired = timer.fired() => fired.context("cannot read a timer")?,
            // Cancel-safe: the result stays in the set.
            () = notifier.finished() => {}
            Some(ended) = followers.join_next() => {
                ended.context("a volume's follower panicked")?;
            }
        }
    }
    notifier.finish().await;
    Ok(())
}

/// Opens the volume's root, however long that takes; `None` if the agent stops first.
async fn open(
    volume: &Arc<DeclaredVolume>,
    board: &VolumeBoard,
    work: &CancellationToken,
) -> anyhow::Result<Option<Publisher>> {
    let config = &volume.config;
    loop {
        let wanted = Arc::clone(volume);
        let opening = move || Publisher::open(&wanted, Now::read());
        let opened =
            tokio::task::spawn_blocking(opening).await.context("opening a volume panicked")?;
        let error = match opened {
            Ok(publisher) => return Ok(Some(publisher)),
            Err(error) => format!("{:#}", anyhow::Error::new(error)),
        };
        tracing::error!(volume = %config.name, error, "a volume has nothing to lie on");
        board.publish(publisher::unopened(config, error));
        tokio::select! {
            () = work.cancelled() => return Ok(None),
            slept = clock::sleep(MOUNT_RETRY) => slept.context("cannot make a timer")?,
        }
    }
}

fn follow_all(
    config: &VolumeConfig,
    identity: &Identity,
    deps: &Deps,
    levels: &watch::Sender<Levels>,
) -> JoinSet<std::convert::Infallible> {
    let mut followers = JoinSet::new();
    for reference in config.references() {
        let follower = Follower {
            reference,
            identity: identity.clone(),
            forbid_grace: config.forbid_grace,
            levels: levels.clone(),
            broker: deps.broker.clone(),
            policy: deps.policy.clone(),
            audit: deps.audit.clone(),
            recorded: None,
        };
        followers.spawn(follower.run());
    }
    followers
}

/// One round on the blocking pool, where a dropped future cannot interrupt a swap.
async fn settle(mut publisher: Publisher, levels: Levels) -> anyhow::Result<(Publisher, Settled)> {
    let round = move || {
        let settled = publisher.settle(&levels, Now::read());
        (publisher, settled)
    };
    tokio::task::spawn_blocking(round).await.context("a volume's round panicked")
}

/// Passes a round's outcome on and says when the next one is due by time.
fn report(
    volume: &VolumeName,
    deps: &Deps,
    notifier: &mut Notifier,
    settled: Settled,
) -> Option<BootInstant> {
    let Settled { mut status, published, next } = settled;
    let now = BootInstant::now();
    if let Some(Published { revision, replaced, empty }) = published {
        tracing::info!(%volume, %revision, "published a revision");
        let action = if empty { "removed" } else { "published" };
        let revision = revision.to_string();
        let event = AuditEvent::Volume { volume: volume.clone(), action, revision };
        // The decision to read was recorded before; a swap is never held up by the log.
        if let Err(error) = deps.audit.record(event) {
            tracing::warn!(%volume, %error, "a revision is missing from the audit log");
        }
        if replaced {
            notifier.changed(now);
        }
    }
    notifier.run_due(now);
    if let Some(failure) = notifier.failure() {
        let alarm = status.alarm.map_or(String::new(), |alarm| format!("{alarm}; "));
        status.alarm = Some(format!("{alarm}on_change: {failure}"));
    }
    deps.board.publish(status);
    next.into_iter().chain(notifier.due()).min()
}
