//! What is known of a volume that is published or being published.

use std::sync::Arc;

use crate::broker::Broker;
use crate::domain::{ConsumerId, VolumeName};
use crate::identity::Identity;
use crate::mounter::VolumeKey;

use super::attributes::{Attributes, Deliver};
use super::kept::Kept;
use super::records::VolumeRecord;
use super::volumes::Reservation;

/// A volume that is published or being published.
pub(super) struct Known {
    pub(super) record: VolumeRecord,
    pub(super) attributes: Attributes,
    pub(super) name: VolumeName,
    /// Its record is on disk.
    pub(super) recorded: bool,
    pub(super) reservation: Option<Reservation>,
    /// None while its tmpfs could not be opened yet.
    pub(super) kept: Option<Kept>,
    /// The broker was told that nobody reads here any more.
    pub(super) is_released: bool,
}

impl Known {
    pub(super) fn new(key: &VolumeKey, record: VolumeRecord, attributes: Attributes) -> Self {
        let name = VolumeName::of_pod(&record.pod, &key.volume);
        let (recorded, is_released) = (false, false);
        Self { record, attributes, name, recorded, reservation: None, kept: None, is_released }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.kept.as_ref().is_some_and(Kept::is_running)
    }

    /// It holds a socket, which closes when its pod is gone. Files wait for the kubelet.
    pub(super) fn is_open_door(&self) -> bool {
        matches!(self.attributes.deliver, Deliver::Socket) && !self.is_released
    }

    /// Ends whatever serves the pod, and with it the interest in the secrets: once, however often
    /// it is asked for.
    pub(super) async fn release(&mut self, broker: &Broker) {
        if let Some(kept) = &mut self.kept {
            kept.stop().await;
        }
        if std::mem::replace(&mut self.is_released, true) {
            return;
        }
        let member = ConsumerId::volume(&self.name);
        broker.login_tokens().withdraw(&self.record.pod.account, &member);
        broker.consumer_gone(member).await;
    }

    /// Who the pod is to policy and to the broker.
    pub(super) fn identity(&self) -> Identity {
        let (pod, role) = (Arc::new(self.record.pod.clone()), self.attributes.role.clone());
        Identity::published_pod(pod, &self.name, role)
    }
}
