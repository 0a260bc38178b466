//! What a changed policy would take from one volume: of one of its secrets.

use super::SharedSources;
use crate::clock::BootInstant;
use crate::domain::{Mount, PathKind, SecretRef};
use crate::identity::Identity;
use crate::policy::{CompiledPolicy, Denied, Policy};

/// Whether a volume has this secret now. Where labels are not known, after a restart in an outage,
/// it may have what a predecessor put there.
pub(super) fn is_kept(policy: &Policy, identity: &Identity, secret: &SecretRef) -> bool {
    match policy.authorize(identity, secret, BootInstant::now()) {
        Ok(_) => true,
        Err(denied) => denied.labels_unknown,
    }
}

/// Whether to read this may create a credential: it may where the mount's kind is not configured.
pub(super) fn may_mint(sources: &SharedSources, secret: &SecretRef) -> bool {
    let source = sources.get(&secret.source);
    let Some(mount) = source.and_then(|source| source.mount_of(&secret.path)) else { return true };
    let Some(kind) = mount.kind else { return true };
    Mount { path: mount.path, kind }.path_kind(&secret.path) == PathKind::Minting
}

/// What a changed policy denies. To read with another login, or to have a credential that is shared
/// otherwise, is to lose what there is: those credentials end, and the source may give no others.
pub(super) fn loss(
    policy: &Policy,
    proposed: &CompiledPolicy,
    identity: &Identity,
    secret: &SecretRef,
    may_mint: bool,
) -> Option<Denied> {
    let now = policy.authorize(identity, secret, BootInstant::now());
    let then = match policy.suppose(proposed, identity, secret) {
        // As now: as long as the labels are not known, nothing is taken away.
        Err(denied) if denied.labels_unknown && now.is_err() => return None,
        Err(denied) => return Some(denied),
        Ok(then) => then,
    };
    let now = now.ok()?;
    let reason = if then.login != *now.login() {
        format!("it would be read as {} in place of {}", then.login, now.login())
    } else if may_mint && then.dynamic_owner.as_ref() != now.dynamic_owner() {
        "its credential would be shared otherwise, so the one there is would end".to_owned()
    } else {
        return None;
    };
    Some(Denied { rule: Some(then.rule), reason, labels_unknown: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice::from_ref;
    use std::sync::Arc;

    use crate::domain::{Pod, ServiceAccount};
    use crate::identity::ProofStrength;
    use crate::policy::{Effect, GrantConfig, GrantLogin, PolicyConfig, Share, Who};

    fn lent() -> GrantConfig {
        GrantConfig {
            name: "lent".parse().unwrap(),
            effect: Effect::Permit,
            who: Who::AnyPod,
            source: "vault".parse().unwrap(),
            paths: vec!["secret/**".parse().unwrap()],
            share: Share::Consumer,
            login: GrantLogin::Agent,
            min_proof: ProofStrength::PeerCred,
            when: None,
        }
    }

    fn compiled(grants: &[GrantConfig], own_identity: bool) -> CompiledPolicy {
        let own_identity = own_identity.then(|| "vault".parse().unwrap()).into_iter().collect();
        let grants = grants.to_vec();
        let config =
            PolicyConfig { grants, own_identity, knows_labels: true, ..PolicyConfig::default() };
        CompiledPolicy::compile(&config).ok().unwrap()
    }

    fn pod() -> Identity {
        let account = ServiceAccount {
            namespace: "shop".parse().unwrap(),
            name: "web".parse().unwrap(),
            uid: "5a".parse().unwrap(),
        };
        let pod = Pod { uid: "1b".parse().unwrap(), name: "web-0".parse().unwrap(), account };
        Identity::published_pod(Arc::new(pod), &"v".parse().unwrap(), None)
    }

    fn secret() -> SecretRef {
        let path = "secret/data/a".parse().unwrap();
        SecretRef { source: "vault".parse().unwrap(), path, version: None }
    }

    #[test]
    fn to_read_with_another_login_is_to_lose_what_was_read_with_this_one() {
        let (pod, secret, policy) = (pod(), secret(), Policy::new(compiled(&[lent()], true)));
        let lost =
            |grants: &[GrantConfig]| loss(&policy, &compiled(grants, true), &pod, &secret, true);
        assert_eq!(lost(&[lent()]), None);
        let own = GrantConfig { login: GrantLogin::ServiceAccount, ..lent() };
        for grants in [vec![], vec![own]] {
            let reason = lost(&grants).unwrap().reason;
            assert!(reason.contains("in place of agent"), "{reason}");
        }
    }

    /// Permits that do not agree share nothing: to write a second one changes what the first did.
    #[test]
    fn to_share_with_others_than_now_is_to_lose_the_credential_there_is() {
        let (pod, secret) = (pod(), secret());
        let shared = GrantConfig { share: Share::Agent, ..lent() };
        let policy = Policy::new(compiled(from_ref(&shared), false));
        let lost = |grants: &[GrantConfig], may_mint| {
            loss(&policy, &compiled(grants, false), &pod, &secret, may_mint)
        };
        assert_eq!(lost(from_ref(&shared), true), None);
        let second = GrantConfig { name: "second".parse().unwrap(), ..lent() };
        for grants in [vec![lent()], vec![shared, second]] {
            // Of what creates nothing, all have the same.
            assert_eq!(lost(&grants, false), None);
            let reason = lost(&grants, true).unwrap().reason;
            assert!(reason.contains("would end"), "{reason}");
        }
    }

    #[test]
    fn what_stays_since_labels_are_not_known_can_be_lost() {
        let labels = [("tier".parse().unwrap(), "web".parse().unwrap())].into();
        let namespace = "shop".parse().unwrap();
        let who = Who::Pods { namespace, service_account: None, labels };
        let by_label = GrantConfig { who, ..lent() };
        let (pod, secret) = (pod(), secret());
        let policy = Policy::new(compiled(from_ref(&by_label), false));
        assert!(is_kept(&policy, &pod, &secret));
        let lost = |policy: &Policy, grants: &[GrantConfig]| {
            loss(policy, &compiled(grants, false), &pod, &secret, true)
        };
        assert_eq!(lost(&policy, from_ref(&by_label)), None);
        assert!(lost(&policy, &[]).is_some());
        // What is permitted now may be what those labels do not permit.
        assert!(lost(&Policy::new(compiled(&[lent()], false)), &[by_label]).is_some());
        assert!(!is_kept(&Policy::new(compiled(&[], false)), &pod, &secret));
    }
}
