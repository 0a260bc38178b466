//! Publish calls that no kubelet would make, as root of the host makes them: each names the victim
//! somewhere, and shows what is not its own.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::cluster::{AUDIENCE, Pod, passed_on, uid};
use crate::csi_driver::{NodePublishVolumeRequest, TOKENS};
use crate::door::Door;
use crate::driver::Driver;
use crate::place::{ATTACKER, VICTIM, attacker, in_cluster, victim, victims_token};
use crate::rig::{CONNECTIONS, Rig, Tally};
use crate::tokens::forgeries;
use crate::weak::{BELIEVES_TOKEN, Weakness};
use crate::weak_tokens::{self, NEEDS_NONE, is_the_victims};

const PODINFO: Weakness = "believes podInfo";
const TARGET: Weakness = "believes the target path";
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
const NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const ACCOUNT: &str = "csi.storage.k8s.io/serviceAccount.name";

/// One call.
struct Call {
    what: String,
    request: NodePublishVolumeRequest,
    /// What its refusal says.
    says: &'static str,
    /// The mistake that believes it.
    meant: Weakness,
}

/// Every call that is no good at any time.
fn calls(driver: &Driver) -> Vec<Call> {
    let good = driver.request(&in_cluster(&victim()));
    let mut calls = with_forged_tokens(&good);
    calls.extend(of_two_pods(driver, &good));
    calls
}

/// For the victim, with each token that is not its own: where the kubelet puts tokens, and where
/// older ones did.
fn with_forged_tokens(good: &NodePublishVolumeRequest) -> Vec<Call> {
    let mut calls = Vec::new();
    for forgery in forgeries() {
        // Placement is no part of a call; who needs no token believes what the kubelet says.
        let meant = if forgery.meant == NEEDS_NONE { PODINFO } else { forgery.meant };
        let mut without = good.clone();
        without.secrets.clear();
        let mut call = |place: &str, request| {
            let what = format!("{}, {place}", forgery.what);
            calls.push(Call { what, request, says: forgery.says, meant });
        };
        let Some(token) = &forgery.token else {
            call("anywhere", without);
            continue;
        };
        let tokens = || (TOKENS.to_owned(), passed_on(token));
        let (mut among_secrets, mut among_attributes) = (without.clone(), without);
        among_secrets.secrets.extend([tokens()]);
        among_attributes.volume_context.extend([tokens()]);
        call("among the secrets", among_secrets);
        call("among the attributes", among_attributes);
    }
    let mut for_another = good.clone();
    let tokens = passed_on(&victims_token()).replace(&format!("\"{AUDIENCE}\""), "\"else\"");
    for_another.secrets.insert(TOKENS.to_owned(), tokens);
    calls.push(Call {
        what: "a token passed on for another audience only".to_owned(),
        request: for_another,
        says: "audience 'vault'",
        meant: weak_tokens::AUDIENCE,
    });
    calls
}

/// For a volume that is there, after the victim's account was made anew.
fn of_a_later_account(driver: &Driver) -> Call {
    let later = Pod { account_uid: uid(), ..in_cluster(&victim()) };
    Call {
        what: "a token of a later account of that name".to_owned(),
        request: driver.request(&later),
        says: "the account was replaced",
        meant: weak_tokens::ACCOUNT_UID,
    }
}

/// Good in itself, each part, but of two pods.
fn of_two_pods(driver: &Driver, good: &NodePublishVolumeRequest) -> Vec<Call> {
    let own = driver.request(&in_cluster(&attacker()));
    let named = |name: &str, value: &str| {
        let mut request = good.clone();
        request.volume_context.insert(name.to_owned(), value.to_owned());
        request
    };
    let at = |target: &NodePublishVolumeRequest, rest: &NodePublishVolumeRequest| {
        NodePublishVolumeRequest { target_path: target.target_path.clone(), ..rest.clone() }
    };
    let showing = |token: &NodePublishVolumeRequest, rest: &NodePublishVolumeRequest| {
        NodePublishVolumeRequest { secrets: token.secrets.clone(), ..rest.clone() }
    };
    let mut with_victims_uid = own.clone();
    with_victims_uid.volume_context.insert(POD_UID.to_owned(), VICTIM.to_owned());
    let row =
        |what: &str, request, says, meant| Call { what: what.to_owned(), request, says, meant };
    vec![
        row("another pod's name", named(POD_NAME, "web-1"), "token's pod name", BELIEVES_TOKEN),
        row("another pod's uid", named(POD_UID, ATTACKER), "another pod's", BELIEVES_TOKEN),
        row("another namespace", named(NAMESPACE, "bank"), "token's namespace", BELIEVES_TOKEN),
        row("another account", named(ACCOUNT, "root"), "token's service account", BELIEVES_TOKEN),
        row("the victim's target for another pod", at(good, &own), "another pod's", TARGET),
        row("another pod's target for the victim", at(&own, good), "another pod's", PODINFO),
        row(
            "the victim's uid and target for another pod",
            at(good, &with_victims_uid),
            "token's pod uid",
            TARGET,
        ),
        row(
            "another pod's target and token for the victim",
            at(&own, &showing(&own, good)),
            "another pod's",
            PODINFO,
        ),
        row(
            "the victim's token for another pod",
            showing(good, &own),
            "token's namespace",
            BELIEVES_TOKEN,
        ),
        row(
            "the victim's token and target for another pod",
            at(good, &showing(good, &own)),
            "another pod's",
            BELIEVES_TOKEN,
        ),
    ]
}

/// Which mistakes take the call for one that the victim's secret may answer.
fn believed(request: &NodePublishVolumeRequest) -> Vec<Weakness> {
    let context = &request.volume_context;
    let tokens = request.secrets.get(TOKENS).or_else(|| context.get(TOKENS));
    let tokens: BTreeMap<String, Value> =
        tokens.and_then(|tokens| serde_json::from_str(tokens).ok()).unwrap_or_default();
    let token = |tokens: &Value| tokens["token"].as_str().unwrap_or_default().to_owned();
    let ours = tokens.get(AUDIENCE).map(token).unwrap_or_default();
    let mut believed = weak_tokens::believed(&ours);
    if tokens.values().any(|each| is_the_victims(&token(each))) {
        believed.push(weak_tokens::AUDIENCE);
    }
    let others = [
        (PODINFO, context.get(POD_UID).is_some_and(|uid| uid == VICTIM)),
        (TARGET, request.target_path.contains(VICTIM)),
        (BELIEVES_TOKEN, is_the_victims(&ours)),
    ];
    believed.extend(others.into_iter().filter(|(_, falls)| *falls).map(|(name, _)| name));
    believed
}

/// Sends each before the victim's volume is there and while it is, again and again.
pub(crate) fn forged(rig: &Rig, _: Door) -> Tally {
    let driver = Driver::start(&rig.place);
    let first = calls(&driver);
    let later: Vec<Call> =
        calls(&driver).into_iter().chain([of_a_later_account(&driver)]).collect();
    let mut tally = Tally::default();
    for _ in 0..=CONNECTIONS / (first.len() + later.len()) {
        tally = tally.and(send(&driver, &first));
        if !tally.is_good() {
            return tally;
        }
        assert!(driver.is_clean(), "something of what was refused is left");
        // Nothing but what was forged was wrong.
        assert!(driver.publishes_the_victims(), "a good call is refused, too");
        tally = tally.and(send(&driver, &later));
        assert!(driver.publishes_the_victims(), "what ran does not go on");
        assert!(driver.takes_the_victims_back(), "something of the victim's is left");
    }
    tally
}

fn send(driver: &Driver, calls: &[Call]) -> Tally {
    let mut tally = Tally::default();
    let mut before = driver.copies_of_the_secret();
    for Call { what, request, says, meant } in calls {
        let weak = believed(request);
        assert!(weak.contains(meant), "{what}: only {weak:?} believe it, not '{meant}'");
        let answer = driver.send(request);
        let after = driver.copies_of_the_secret();
        let served = answer.is_ok() || after > before;
        before = after;
        let refused = answer.err().map(|refused| refused.message).unwrap_or_default();
        assert!(served || refused.contains(says), "{what}: refused, but not for it: {refused}");
        tally.count(served, &weak);
    }
    tally
}
