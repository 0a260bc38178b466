//! A volume that is there: what serves it, and when that ends.

use std::os::fd::OwnedFd;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::records::VolumeRecord;
use super::volumes::Reservation;
use crate::broker::Broker;
use crate::domain::{ConsumerId, VolumeName};
use crate::identity::pods::PodDirectory;

/// A volume that is there.
pub(super) struct Published {
    pub(super) record: VolumeRecord,
    pub(super) name: VolumeName,
    /// A predecessor's revision was there when this process opened it.
    pub(super) had_files: bool,
    /// Keeps the tmpfs within reach for the wipe at its end.
    pub(super) root: OwnedFd,
    /// It holds a socket, which closes when its pod is gone. Files wait for the kubelet to take
    /// them away.
    pub(super) is_door: bool,
    pub(super) stop: CancellationToken,
    pub(super) keeping: JoinSet<anyhow::Result<()>>,
    /// The broker was told that nobody reads here any more.
    pub(super) is_released: bool,
    pub(super) reservation: Reservation,
}

/// Why a volume is not served any more although the kubelet did not take it away.
pub(super) enum End {
    /// Nothing of its pod is left on the node.
    PodGone,
    /// Its task ended by itself, which it never should.
    Failed(String),
}

impl Published {
    /// Ends whatever serves the pod, and with it the interest in the secrets: once, however often
    /// it is asked for.
    pub(super) async fn release(&mut self, broker: &Broker) {
        self.stop.cancel();
        while self.keeping.join_next().await.is_some() {}
        if std::mem::replace(&mut self.is_released, true) {
            return;
        }
        let member = ConsumerId::volume(&self.name);
        broker.login_tokens().withdraw(&self.record.pod.account, &member);
        broker.consumer_gone(member).await;
    }

    async fn failed(&mut self) -> String {
        match self.keeping.join_next().await {
            Some(Ok(Ok(()))) => "its task ended".to_owned(),
            Some(Ok(Err(error))) => format!("{error:#}"),
            Some(Err(error)) => error.to_string(),
            None => std::future::pending().await,
        }
    }
}

/// Waits until the volume, if there is one, is to end or has ended. Cancel-safe.
pub(super) async fn end_of(published: Option<&mut Published>, pods: &PodDirectory) -> End {
    let Some(published) = published else { return std::future::pending().await };
    let pod =
        (published.is_door && !published.is_released).then(|| published.record.pod.uid.clone());
    let gone = async {
        match &pod {
            Some(pod) => pods.gone(pod).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = gone => End::PodGone,
        why = published.failed() => End::Failed(why),
    }
}
