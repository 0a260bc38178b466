//! Tokens of others, strange ones and forged ones, shown where the victim's own is asked for.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::door::Door;
use crate::place::{VICTIM, attacker, in_cluster, victim, victims_token};
use crate::rig::{CONNECTIONS, Rig, Tally};
use crate::weak::{TRUSTS_PID, Weakness};
use crate::weak_tokens::{
    ACCOUNT, ALGORITHM, AUDIENCE, CLOCK, ISSUER, KEY, NAMESPACE, NEEDS_NONE, NODES, POD, SUBJECT,
    UID, UNSIGNED, believed, is_the_victims, public_mac,
};
use crate::{agent, cluster};

/// In seconds; tokens last for half of it.
const TWO_HOURS: i64 = 7200;

/// One token that is not the victim's own, or none.
pub(crate) struct Forgery {
    pub(crate) what: &'static str,
    pub(crate) token: Option<String>,
    /// What its refusal says.
    pub(crate) says: &'static str,
    /// The mistake that believes it.
    pub(crate) meant: Weakness,
}

/// All there are.
pub(crate) fn forgeries() -> Vec<Forgery> {
    let rows = [of_others(), of_other_worlds(), of_nobody()].into_iter().flatten();
    let forgery = |(what, token, says, meant)| Forgery { what, token: Some(token), says, meant };
    let no_token =
        Forgery { what: "no token", token: None, says: "audience 'vault'", meant: NEEDS_NONE };
    rows.map(forgery).chain([no_token]).collect()
}

/// What it is, the token, what its refusal says, and the mistake that believes it.
type Row = (&'static str, String, &'static str, Weakness);

/// The victim's claims, changed before the cluster signed them.
fn with(change: impl FnOnce(&mut Value)) -> String {
    let mut claims = in_cluster(&victim()).claims();
    change(&mut claims);
    cluster::signed(&cluster::header(), &claims)
}

/// The same in what the API server says of the pod.
fn with_pod(change: impl FnOnce(&mut Value)) -> String {
    with(|claims| change(&mut claims["kubernetes.io"]))
}

fn with_account(namespace: &str, account: &str) -> String {
    with(|claims| {
        claims["sub"] = json!(format!("system:serviceaccount:{namespace}:{account}"));
        claims["kubernetes.io"]["namespace"] = json!(namespace);
        claims["kubernetes.io"]["serviceaccount"]["name"] = json!(account);
    })
}

/// The cluster's own, for other pods.
fn of_others() -> Vec<Row> {
    let other_uid = cluster::uid();
    let another = json!({ "name": "web-1", "uid": other_uid });
    let root = "system:serviceaccount:shop:root";
    vec![
        ("another pod's", in_cluster(&attacker()).token(), "token's namespace", POD),
        (
            "of the account's other pod",
            with_pod(|kube| kube["pod"] = another),
            "token's pod name",
            POD,
        ),
        (
            "of a pod of the same name before it",
            with_pod(|kube| kube["pod"]["uid"] = json!(other_uid)),
            "token's pod uid",
            UID,
        ),
        (
            "of the account and no pod",
            with_pod(|kube| _ = kube.as_object_mut().unwrap().remove("pod")),
            "name no pod",
            POD,
        ),
        ("of another namespace", with_account("bank", "web"), "token's namespace", NAMESPACE),
        ("of another account", with_account("shop", "root"), "token's service account", ACCOUNT),
        ("of another subject", with(|claims| claims["sub"] = json!(root)), "another sub", SUBJECT),
    ]
}

/// The victim's for another place, reader or time, or of another issuer.
fn of_other_worlds() -> Vec<Row> {
    let shifted = |by: i64| {
        with(|claims| {
            for claim in ["exp", "iat", "nbf"] {
                claims[claim] = json!(claims[claim].as_i64().unwrap() + by);
            }
        })
    };
    let audience = |audiences: Value| with(|claims| claims["aud"] = audiences);
    let node = json!("node-2");
    let issuer = json!("https://else");
    vec![
        ("of another node", with_pod(|kube| kube["node"]["name"] = node), "token's node", NODES),
        (
            "of no node yet",
            with_pod(|kube| _ = kube.as_object_mut().unwrap().remove("node")),
            "name no node",
            NODES,
        ),
        ("for another audience", audience(json!(["somebody"])), "aud lacks", AUDIENCE),
        ("for no audience", audience(json!([])), "aud lacks", AUDIENCE),
        ("of another issuer", with(|claims| claims["iss"] = issuer), "token's iss", ISSUER),
        ("that is over", shifted(-TWO_HOURS - TWO_HOURS / 2), "token expired", CLOCK),
        ("of later", shifted(TWO_HOURS), "valid only in", CLOCK),
    ]
}

/// What the cluster did not sign.
fn of_nobody() -> Vec<Row> {
    let own = victims_token();
    let (unsigned, _) = own.rsplit_once('.').unwrap();
    let claims = in_cluster(&victim()).claims();
    let header = |name: &str, value: &str| {
        let mut header = cluster::header();
        header[name] = json!(value);
        header
    };
    let named = |algorithm: &str| cluster::signed(&header("alg", algorithm), &claims);
    let without = |token: String| token[..=token.rfind('.').unwrap()].to_owned();
    let hmac = without(named("HS256"));
    let hmac = format!("{hmac}{}", encoded(&public_mac(hmac.trim_end_matches('.').as_bytes())));
    let stranger = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let strangers = stranger.sign(&SystemRandom::new(), unsigned.as_bytes()).unwrap();
    let attackers = in_cluster(&attacker()).token();
    let (_, attackers) = attackers.rsplit_once('.').unwrap();
    let unknown = cluster::signed(&header("kid", "else"), &claims);
    vec![
        ("without an algorithm", without(named("none")), "token's alg", ALGORITHM),
        ("with the public key as a secret", hmac, "token's alg", ALGORITHM),
        ("with another key's algorithm", named("RS256"), "token's alg", ALGORITHM),
        ("of an unknown key", unknown, "token's kid", KEY),
        (
            "with a stranger's signature",
            format!("{unsigned}.{}", encoded(strangers.as_ref())),
            "token's signature",
            UNSIGNED,
        ),
        ("without a signature", format!("{unsigned}."), "token's signature", UNSIGNED),
        (
            "of the attacker, changed into the victim's after signing",
            format!("{unsigned}.{attackers}"),
            "token's signature",
            UNSIGNED,
        ),
        ("that is none", "s3cr3t".to_owned(), "three parts", NEEDS_NONE),
    ]
}

fn encoded(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Shows each from where the victim's own would be believed: in the victim's container.
pub(crate) fn shown_in_the_victims_place(rig: &Rig, door: Door) -> Tally {
    let mut tally = Tally::default();
    let mut liar = rig.actor_in(&rig.place.container(VICTIM));
    let forgeries = forgeries();
    for _ in 0..=CONNECTIONS / forgeries.len() {
        for Forgery { what, token, says, meant } in &forgeries {
            rig.connect(&mut liar, door);
            let accepted = rig.accept(door);
            // After a few it would refuse the pod whatever it shows.
            rig.forgives();
            let heard = rig.answer(&mut liar, token.as_deref());
            liar.tell("hang-up");
            let mut weak = Vec::new();
            if accepted.believed.contains(&TRUSTS_PID) {
                weak.push(NEEDS_NONE);
                weak.extend(token.as_deref().map(believed).unwrap_or_default());
            }
            let is_good = token.as_deref().is_some_and(is_the_victims);
            assert!(!is_good, "{what}: who makes no mistake believes it, too");
            assert!(weak.contains(meant), "{what}: only {weak:?} believe it, not '{meant}'");
            let served = heard.contains(agent::SECRET);
            assert!(served || heard.contains(says), "{what}: refused, but not for it: {heard}");
            tally.count(served, &weak);
        }
        // Nothing but the token was wrong.
        rig.connect(&mut liar, door);
        let accepted = rig.accept(door);
        assert!(rig.serves(&mut liar, &accepted, door), "the victim's own is refused there");
        liar.tell("hang-up");
    }
    tally
}
