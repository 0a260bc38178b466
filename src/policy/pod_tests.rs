//! Policy for pods: the source decides about their own identity unless a rule forbids, and whatever
//! else they read a grant has to give them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::tests::{config, decide, grant};
use super::*;
use crate::domain::{Pod, ServiceAccount};
use crate::identity::ProofStrength;

fn account(namespace: &str, name: &str) -> ServiceAccount {
    let (namespace, name) = (namespace.parse().unwrap(), name.parse().unwrap());
    ServiceAccount { namespace, name, uid: "5a".parse().unwrap() }
}

fn pod(namespace: &str, name: &str) -> Arc<Pod> {
    let account = account(namespace, name);
    Arc::new(Pod { uid: "1b".parse().unwrap(), name: "web-0".parse().unwrap(), account })
}

/// A pod whose volume the kubelet published.
fn published(namespace: &str, name: &str) -> Identity {
    Identity::published_pod(pod(namespace, name), &"v".parse().unwrap(), None)
}

/// The same pod on its socket, on a node that cannot place callers.
fn on_own_socket(namespace: &str, name: &str) -> Identity {
    Identity::on_own_socket(pod(namespace, name), &"v".parse().unwrap(), None)
}

/// The source decides about what pods read as themselves.
fn own(grants: Vec<GrantConfig>) -> PolicyConfig {
    PolicyConfig { own_identity: BTreeSet::from(["vault".parse().unwrap()]), ..config(grants) }
}

fn pods(namespace: &str, service_account: Option<&str>) -> Who {
    let service_account = service_account.map(|name| name.parse().unwrap());
    Who::Pods { namespace: namespace.parse().unwrap(), service_account, labels: Default::default() }
}

#[test]
fn a_pod_reads_as_itself_where_the_source_decides_and_nobody_else_does() {
    let permit = decide(&own(Vec::new()), &published("shop", "web"), "secret/data/a").unwrap();
    assert_eq!((permit.rule.as_str(), permit.share), ("own-identity", Share::Consumer));
    assert_eq!(permit.login, LoginIdentity::service_account(account("shop", "web"), None));
    let user =
        Identity::host_user(0, 0, &[], ProofStrength::PidFd, crate::identity::Listener::Host);
    assert!(decide(&own(Vec::new()), &user, "secret/data/a").is_err());
    assert!(decide(&config(Vec::new()), &published("shop", "web"), "secret/data/a").is_err());
}

#[test]
fn a_socket_alone_proves_enough_only_where_a_grant_says_so() {
    let caller = on_own_socket("shop", "web");
    assert!(decide(&own(Vec::new()), &caller, "secret/data/a").is_err());
    let mut weak = grant("weak", pods("shop", None), &["secret/**"]);
    assert!(decide(&own(vec![weak.clone()]), &caller, "secret/data/a").is_err());
    weak.min_proof = ProofStrength::SocketOnly;
    assert!(decide(&own(vec![weak]), &caller, "secret/data/a").is_ok());
}

#[test]
fn a_rule_may_forbid_what_the_source_would_allow() {
    let mut forbid = grant("no", pods("shop", Some("web")), &["secret/data/a"]);
    forbid.effect = Effect::Forbid;
    let config = own(vec![forbid]);
    let denied = decide(&config, &published("shop", "web"), "secret/data/a").unwrap_err();
    assert_eq!(denied.rule, Some("no".parse().unwrap()));
    for (namespace, name, path) in [
        ("shop", "web", "secret/data/b"),
        ("shop", "api", "secret/data/a"),
        ("x", "web", "secret/data/a"),
    ] {
        assert!(
            decide(&config, &published(namespace, name), path).is_ok(),
            "{namespace}/{name} {path}"
        );
    }
}

#[test]
fn a_grant_of_the_agents_login_reaches_only_the_pods_it_names_and_their_own_paths() {
    let mut lent =
        grant("lent", pods("shop", None), &["secret/data/{namespace}/{serviceaccount}/*"]);
    (lent.login, lent.share) = (GrantLogin::Agent, Share::Agent);
    let config = config(vec![lent]);
    let permit = decide(&config, &published("shop", "web"), "secret/data/shop/web/k").unwrap();
    assert_eq!((permit.login, permit.share), (LoginIdentity::Agent, Share::Agent));
    for (namespace, name, path) in [
        ("shop", "web", "secret/data/shop/api/k"),
        ("shop", "web", "secret/data/other/web/k"),
        ("other", "web", "secret/data/other/web/k"),
        ("shop", "api", "secret/data/shop/web/k"),
    ] {
        assert!(
            decide(&config, &published(namespace, name), path).is_err(),
            "{namespace}/{name} {path}"
        );
    }
}

#[test]
fn what_a_service_account_shares_is_not_anothers_of_the_same_name() {
    let mut shared = grant("shared", pods("shop", None), &["database/**"]);
    shared.share = Share::ServiceAccount;
    let policy =
        Policy::new(CompiledPolicy::compile(&own(vec![shared])).unwrap_or_else(|_| panic!()));
    let secret = super::tests::secret("database/creds/a");
    let owner = |uid: &str| {
        let account = ServiceAccount { uid: uid.parse().unwrap(), ..account("shop", "web") };
        let pod = Pod { account, ..(*pod("shop", "web")).clone() };
        let identity = Identity::published_pod(Arc::new(pod), &"v".parse().unwrap(), None);
        let authorized = policy.authorize(&identity, &secret, BootInstant::from_nanos(1)).unwrap();
        authorized.dynamic_owner().cloned()
    };
    assert_eq!(owner("5a"), owner("5a"));
    assert_ne!(owner("5a"), owner("5b"));
}

#[test]
fn on_the_nodes_socket_only_what_the_agent_reads_for_pods_is_permitted() {
    let caller = |strength| Identity::on_node_socket(pod("shop", "web"), strength);
    let proved = caller(ProofStrength::Token);
    // The source would decide about the pod's own identity, but the pod cannot log in here.
    assert!(decide(&own(Vec::new()), &proved, "secret/data/a").is_err());
    let own_login = grant("own", pods("shop", None), &["secret/data/a"]);
    let denied = decide(&own(vec![own_login.clone()]), &proved, "secret/data/a").unwrap_err();
    assert!(denied.reason.contains("login = \"agent\""), "{}", denied.reason);
    let mut lent = grant("lent", pods("shop", None), &["secret/data/a"]);
    (lent.login, lent.min_proof) = (GrantLogin::Agent, ProofStrength::Token);
    let both = own(vec![own_login, lent]);
    let permit = decide(&both, &proved, "secret/data/a").unwrap();
    assert_eq!((permit.rule.as_str(), permit.login), ("lent", LoginIdentity::Agent));
    // Which account of its name an unproved pod runs as may matter to a rule: it is refused.
    let mut by_uid = grant("one-account", pods("shop", None), &["secret/data/a"]);
    (by_uid.login, by_uid.min_proof) = (GrantLogin::Agent, ProofStrength::PeerCred);
    let placed = |when: &str| {
        by_uid.when = Some(when.to_owned());
        decide(&own(vec![by_uid.clone()]), &caller(ProofStrength::PidFd), "secret/data/a")
    };
    let mut placed = placed;
    assert!(placed("context.hour >= 0").is_ok());
    let denied = placed("principal.service_account_uid != \"5b\"").unwrap_err();
    assert!(denied.reason.contains("not proved"), "{}", denied.reason);
    // A placement alone is less than this grant asks for.
    assert!(decide(&both, &caller(ProofStrength::PidFd), "secret/data/a").is_err());
}
