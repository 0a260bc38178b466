//! Identities that nobody proved: what an operator supposes when asking what policy would decide,
//! and who a refused call was said to be about. Nothing is read with one.

use std::str::FromStr;
use std::sync::Arc;

use super::{Identity, Listener, ProofStrength, Subject};
use crate::domain::{
    ConsumerId, Namespace, Pod, PodName, PodUid, ServiceAccount, ServiceAccountName,
    ServiceAccountUid, VolumeName,
};

/// What a supposed pod and its account have in place of uids; no real one consists of zeros.
const UID: &str = "00000000-0000-0000-0000-000000000000";

/// The text names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is none of uid:NUMBER, volume:NAME and pod:NAMESPACE/SERVICEACCOUNT")]
pub struct SupposedError(String);

/// A pod that is supposed to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupposedPod {
    /// Its namespace.
    pub namespace: Namespace,
    /// The account it runs as.
    pub service_account: ServiceAccountName,
    /// Which door it comes through.
    pub listener: Listener,
    /// How it is proved.
    pub strength: ProofStrength,
    /// Which pod it is, if it is one that there is: policy then knows its labels.
    pub known: Option<(PodUid, PodName)>,
}

impl SupposedPod {
    /// A pod whose volume the kubelet publishes.
    pub fn with_volume(namespace: Namespace, service_account: ServiceAccountName) -> Self {
        let (listener, strength) = (Listener::Csi, ProofStrength::Token);
        Self { namespace, service_account, listener, strength, known: None }
    }

    /// The account it runs as.
    pub fn account(&self) -> ServiceAccount {
        let uid: ServiceAccountUid = UID.parse().expect("a uid of zeros");
        let (namespace, name) = (self.namespace.clone(), self.service_account.clone());
        ServiceAccount { namespace, name, uid }
    }
}

impl Identity {
    /// A pod. It is called `pod:NAMESPACE/SERVICEACCOUNT`, or as itself if it is one that there is.
    pub fn supposed_pod(supposed: &SupposedPod) -> Self {
        let account = supposed.account();
        let any = ConsumerId::supposed_pod(&account);
        let (uid, name) = supposed.known.clone().unwrap_or_else(|| {
            let name = "supposed".parse().expect("a pod's name");
            (UID.parse().expect("a uid of zeros"), name)
        });
        let pod = Pod { uid, name, account };
        let consumer = supposed.known.as_ref().map_or(any, |_| ConsumerId::pod(&pod));
        Self {
            subject: Subject::Pod(Arc::new(pod)),
            strength: supposed.strength,
            listener: supposed.listener,
            consumer,
            role: None,
        }
    }

    /// A process of this user on the host socket. Which groups it has is only known when it
    /// connects: here it is supposed to have these, or the one of the user's number.
    pub fn supposed_user(uid: u32, gids: &[u32], strength: ProofStrength) -> Self {
        let (gid, others) = gids.split_first().map_or((uid, gids), |(gid, others)| (*gid, others));
        Self::host_user(uid, gid, others, strength, Listener::Host)
    }

    /// Whom a person names: `uid:1000`, `volume:shop` or `pod:shop/web`.
    pub fn supposed(text: &str) -> Result<Self, SupposedError> {
        fn parsed<T: FromStr>(text: &str) -> Option<T> {
            text.parse().ok()
        }
        let identity = text.split_once(':').and_then(|(kind, name)| match kind {
            "uid" => Some(Self::supposed_user(parsed(name)?, &[], ProofStrength::PidFd)),
            "volume" => Some(Self::declared_volume(parsed::<VolumeName>(name)?)),
            "pod" => {
                let (namespace, account) = name.split_once('/')?;
                let pod = SupposedPod::with_volume(parsed(namespace)?, parsed(account)?);
                Some(Self::supposed_pod(&pod))
            }
            _ => None,
        });
        identity.ok_or_else(|| SupposedError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_called_what_it_was_asked_for_by() {
        for text in ["uid:1000", "volume:shop", "pod:shop/web"] {
            assert_eq!(Identity::supposed(text).unwrap().to_string(), text);
        }
        let bad = ["", "uid:x", "uid:", "pod:shop", "pod:shop/", "pod:Shop/web", "volume:", "x:1"];
        for text in bad {
            assert!(Identity::supposed(text).unwrap_err().to_string().contains(text), "{text}");
        }
    }

    #[test]
    fn a_user_has_the_groups_that_are_named_or_the_one_of_its_number() {
        let gids = |gids: &[u32]| {
            let identity = Identity::supposed_user(1000, gids, ProofStrength::PidFd);
            let Subject::HostUser { gids, .. } = identity.subject() else { panic!("no user") };
            gids.to_vec()
        };
        assert_eq!(gids(&[]), [1000]);
        assert_eq!(gids(&[27, 4, 27]), [27, 4]);
    }
}
