//! What a changed policy would take from volumes, and whether that is too much to do it unasked.
//! Pure.

use std::collections::BTreeSet;

use crate::domain::{SecretRef, VolumeName};
use crate::identity::Identity;
use crate::policy::Denied;
use crate::status::{Interest, LossView};

/// Fewer volumes than this are never too many: on a host with one volume, every change is a whole.
const VOLUMES_HIT_MIN: usize = 2;

/// A secret that a volume may read now and could not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) volume: VolumeName,
    pub(super) secret: SecretRef,
    pub(super) denied: Denied,
}

/// Everything a changed policy would take.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Impact {
    /// How many volumes there are.
    pub(super) volumes: usize,
    /// How many of them would lose something.
    pub(super) volumes_hit: usize,
    /// What, in the order of the volumes.
    pub(super) losses: Vec<Loss>,
}

impl Impact {
    /// Compares what is allowed now with what would be: for every volume and each of its secrets.
    pub(super) fn of(
        interests: &[(VolumeName, Interest)],
        is_allowed: impl Fn(&Identity, &SecretRef) -> bool,
        would_be_denied: impl Fn(&Identity, &SecretRef) -> Option<Denied>,
    ) -> Self {
        let mut losses = Vec::new();
        for (volume, Interest { identity, secrets }) in interests {
            for secret in secrets {
                let denied = would_be_denied(identity, secret);
                if let Some(denied) = denied.filter(|_| is_allowed(identity, secret)) {
                    losses.push(Loss { volume: volume.clone(), secret: secret.clone(), denied });
                }
            }
        }
        let hit: BTreeSet<&VolumeName> = losses.iter().map(|loss| &loss.volume).collect();
        Self { volumes: interests.len(), volumes_hit: hit.len(), losses }
    }

    /// Whether more than `percent` of all volumes would lose something, and more than one.
    pub(super) fn is_too_much(&self, percent: u32) -> bool {
        let hit = self.volumes_hit as u128;
        self.volumes_hit >= VOLUMES_HIT_MIN
            && hit * 100 > self.volumes as u128 * u128::from(percent)
    }

    /// The losses for people.
    pub(super) fn views(&self) -> Vec<LossView> {
        let view = |loss: &Loss| LossView {
            volume: loss.volume.to_string(),
            secret: loss.secret.to_string(),
            rule: loss.denied.rule.as_ref().map(ToString::to_string),
            reason: loss.denied.reason.clone(),
        };
        self.losses.iter().map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn volumes(number: usize) -> Vec<(VolumeName, Interest)> {
        let volume = |index: usize| {
            let name: VolumeName = format!("v{index:03}").parse().unwrap();
            let secret = |path: &str| SecretRef {
                source: "vault".parse().unwrap(),
                path: path.parse().unwrap(),
                version: None,
            };
            let secrets = [secret("secret/data/a"), secret("secret/data/b")].into();
            let identity = Identity::declared_volume(name.clone());
            (name, Interest { identity, secrets })
        };
        (0..number).map(volume).collect()
    }

    fn denied() -> Option<Denied> {
        Some(Denied {
            rule: Some("stop".parse().unwrap()),
            reason: "forbidden".to_owned(),
            labels_unknown: false,
        })
    }

    /// The first `hit` of `total` volumes lose one of their two secrets.
    fn impact(hit: usize, total: usize) -> Impact {
        let all = volumes(total);
        let losing: Vec<Identity> =
            all[..hit].iter().map(|(_, interest)| interest.identity.clone()).collect();
        Impact::of(
            &all,
            |_, _| true,
            |who, secret| {
                denied().filter(|_| losing.contains(who) && secret.path.as_str().ends_with('a'))
            },
        )
    }

    #[test]
    fn more_than_a_tenth_of_the_volumes_and_more_than_one_is_too_much() {
        for (hit, total, held) in [
            (0, 0, false),
            (0, 20, false),
            (1, 1, false),
            (1, 5, false),
            (2, 2, true),
            (2, 19, true),
            (2, 20, false),
            (3, 20, true),
            (11, 110, false),
            (12, 110, true),
        ] {
            let impact = impact(hit, total);
            assert_eq!((impact.volumes_hit, impact.volumes), (hit, total));
            assert_eq!(impact.is_too_much(10), held, "{hit} of {total}");
        }
    }

    #[test]
    fn a_share_of_a_hundred_never_holds_anything() {
        assert!(!impact(7, 7).is_too_much(100));
    }

    #[test]
    fn what_was_forbidden_before_is_no_loss_and_new_access_is_none_either() {
        let all = volumes(3);
        let nothing = Impact::of(&all, |_, _| false, |_, _| denied());
        assert_eq!((nothing.volumes_hit, nothing.losses.len()), (0, 0));
        let more = Impact::of(&all, |_, _| false, |_, _| None);
        assert_eq!(more.volumes_hit, 0);
    }

    #[test]
    fn a_loss_names_volume_secret_and_rule() {
        let impact = impact(1, 2);
        let view = &impact.views()[0];
        assert_eq!((view.volume.as_str(), view.rule.as_deref()), ("v000", Some("stop")));
        assert_eq!(view.secret, "vault:secret/data/a");
    }

    proptest! {
        #[test]
        fn more_losses_or_a_lower_share_never_turn_a_hold_into_none(
            total in 0_usize..40, hit in 0_usize..40, percent in 1_u32..100
        ) {
            let hit = hit.min(total);
            if impact(hit, total).is_too_much(percent) {
                prop_assert!(impact(hit, total).is_too_much(percent - 1));
                if hit < total {
                    prop_assert!(impact(hit + 1, total).is_too_much(percent));
                }
            }
        }
    }
}
