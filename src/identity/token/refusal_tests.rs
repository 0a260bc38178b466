//! Every way a token may lie, against this verifier and against one that leaves one check out.

use std::time::UNIX_EPOCH;

use hmac::{Hmac, KeyInit, Mac};
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::Sha256;

use super::cluster_keys::ClusterKeys;
use super::jwt::Unverified;
use super::lenient_verifier::{CHECKS, lenient};
use super::test_tokens::*;
use super::*;
use crate::domain::Token;

fn judge(text: &str) -> Result<PodClaims, TokenRefused> {
    let token = Token::new(text.as_bytes().to_vec());
    let token = token.map_err(|_| TokenRefused::Malformed("is no header's value"))?;
    let proved = expectations().verify(cluster(), &token, now())?;
    proved.matches(&info())?;
    Ok(proved)
}

/// One forged token, and the only check that stands between it and belief.
struct Case {
    name: &'static str,
    check: &'static str,
    token: String,
    refused: fn(&TokenRefused) -> bool,
}

macro_rules! case {
    ($name:literal, $check:literal, $token:expr, $refused:pat) => {
        Case {
            name: $name,
            check: $check,
            token: $token,
            refused: |refused| matches!(refused, $refused),
        }
    };
}

fn claims_cases() -> Vec<Case> {
    let signer = signer(Algorithm::Es256);
    let with = |pointer: &str, value: Value| signer.token(&claims_with(pointer, value));
    use TokenRefused as T;
    vec![
        case!("audience", "aud", with("/aud", json!(["other"])), T::Audience(_)),
        case!("no audience at all", "aud", with("/aud", json!([])), T::Audience(_)),
        case!(
            "audience with a hidden mark",
            "aud",
            with("/aud", json!("vault\u{200b}")),
            T::Audience(_)
        ),
        case!("audience by prefix", "aud", with("/aud", json!("vault.example")), T::Audience(_)),
        case!("issuer", "iss", with("/iss", json!("https://other.svc")), T::Issuer),
        case!("issuer with a slash", "iss", with("/iss", json!(format!("{ISSUER}/"))), T::Issuer),
        case!("expired", "exp", with("/exp", json!(NOW - 30)), T::Expired(_)),
        case!("not yet valid", "nbf", with("/nbf", json!(NOW + 31)), T::NotYetValid(_)),
    ]
}

fn pod_cases() -> Vec<Case> {
    let signer = signer(Algorithm::Es256);
    let with = |pointer: &str, value: Value| signer.token(&claims_with(pointer, value));
    let account = |namespace: &str, name: &str| {
        let mut claims = claims_with("/kubernetes.io/namespace", json!(namespace));
        claims["kubernetes.io"]["serviceaccount"]["name"] = json!(name);
        claims["sub"] = json!(format!("system:serviceaccount:{namespace}:{name}"));
        signer.token(&claims)
    };
    let other_uid = "8e3a1f0c-6f2b-4c1d-9a7e-0123456789ac";
    use TokenRefused as T;
    vec![
        case!(
            "pod name",
            "pod",
            with("/kubernetes.io/pod/name", json!("web-1")),
            T::Differs { field: "pod name", .. }
        ),
        case!(
            "pod uid",
            "pod",
            with("/kubernetes.io/pod/uid", json!(other_uid)),
            T::Differs { field: "pod uid", .. }
        ),
        case!(
            "pod name in other letters",
            "pod",
            with("/kubernetes.io/pod/name", json!("w\u{435}b-0")),
            T::Claims(_)
        ),
        case!(
            "no pod",
            "pod",
            signer.token(&claims_without("/kubernetes.io", "pod")),
            T::Claims(_)
        ),
        case!(
            "namespace",
            "account",
            account("bank", "web"),
            T::Differs { field: "namespace", .. }
        ),
        case!(
            "service account",
            "account",
            account("shop", "root"),
            T::Differs { field: "service account", .. }
        ),
        case!(
            "subject",
            "sub",
            with("/sub", json!("system:serviceaccount:shop:root")),
            T::Claims(_)
        ),
        case!(
            "account uid",
            "account uid",
            with("/kubernetes.io/serviceaccount/uid", json!(other_uid)),
            T::AccountReplaced { .. }
        ),
        case!("node", "node", with("/kubernetes.io/node/name", json!("node-2")), T::Node { .. }),
        case!(
            "no node",
            "node",
            signer.token(&claims_without("/kubernetes.io", "node")),
            T::Claims(_)
        ),
    ]
}

fn signature_cases() -> Vec<Case> {
    let (rsa, p256, p384) = (Algorithm::Rs256, Algorithm::Es256, Algorithm::Es384);
    let claims = claims().to_string();
    let header = |alg: &str, kid: &str| json!({ "alg": alg, "kid": kid }).to_string();
    let signed =
        |by: Algorithm, alg: &str, kid: &str| signer(by).token_of(&header(alg, kid), &claims);
    let unsigned = |alg: &str| {
        let header = header(alg, signer(rsa).kid);
        format!("{}.{}.", encode(header.as_bytes()), encode(claims.as_bytes()))
    };
    let hmac = {
        let unsigned = unsigned("HS256");
        let mut mac = Hmac::<Sha256>::new_from_slice(&signer(rsa).public()).unwrap();
        mac.update(unsigned.trim_end_matches('.').as_bytes());
        format!("{unsigned}{}", encode(&mac.finalize().into_bytes()))
    };
    let stranger = Signer::new(p256, signer(p256).kid).token(&super::test_tokens::claims());
    use TokenRefused as T;
    vec![
        case!("none", "alg", unsigned("none"), T::Algorithm),
        case!("None", "alg", unsigned("None"), T::Algorithm),
        case!("public key as HMAC secret", "alg", hmac, T::Algorithm),
        case!(
            "ES256 over an RSA key",
            "alg",
            signed(rsa, "ES256", "key-rsa"),
            T::KeyOfAnotherType(_)
        ),
        case!(
            "RS256 over a P-256 key",
            "alg",
            signed(p256, "RS256", "key-256"),
            T::KeyOfAnotherType(_)
        ),
        case!(
            "ES256 over a P-384 key",
            "alg",
            signed(p384, "ES256", "key-384"),
            T::KeyOfAnotherType(_)
        ),
        case!("RS512", "alg", signed(rsa, "RS512", "key-rsa"), T::Algorithm),
        case!("kid of another key", "signature", signed(p256, "ES384", "key-384"), T::Signature),
        case!("a stranger's key", "signature", stranger, T::Signature),
        case!("unknown kid", "signature", signed(p256, "ES256", "key-new"), T::UnknownKey),
        case!("no signature", "signature", unsigned("RS256"), T::Signature),
    ]
}

fn form_cases() -> Vec<Case> {
    let signer = signer(Algorithm::Es256);
    let good = signer.token(&claims());
    let header = signer.header().to_string();
    let text = claims().to_string();
    let twice =
        |member: &str| signer.token_of(&header, &text.replacen('{', &format!("{{{member},"), 1));
    let with_header =
        |more: &str| signer.token_of(&header.replacen('{', &format!("{{{more},"), 1), &text);
    let pod = r#""pod":{"name":"web-0","#;
    let nested = text.replacen(pod, &format!(r#"{pod}"uid":"x","#), 1);
    let mut long = claims();
    long["more"] = json!("x".repeat(16 * 1024));
    use TokenRefused as T;
    vec![
        case!("padding", "form", format!("{good}=="), T::Malformed(_)),
        case!("a fourth part", "form", format!("{good}.x"), T::Malformed(_)),
        case!("an empty fourth part", "form", format!("{good}."), T::Malformed(_)),
        case!("a line end", "form", format!("{good}\n"), T::Malformed(_)),
        case!("over-long", "form", signer.token(&long), T::TooLong(_)),
        case!("aud twice", "form", twice("\"aud\":\"other\""), T::Claims(_)),
        case!("aud twice, escaped", "form", twice("\"\\u0061ud\":\"other\""), T::Claims(_)),
        case!("uid twice", "form", signer.token_of(&header, &nested), T::Claims(_)),
        case!(
            "text after the claims",
            "form",
            signer.token_of(&header, &format!("{text} {{}}")),
            T::Claims(_)
        ),
        case!("crit", "form", with_header("\"crit\":[\"b64\"],\"b64\":true"), T::Malformed(_)),
        case!("alg twice", "form", with_header("\"alg\":\"none\""), T::Malformed(_)),
        case!("a key in the header", "form", with_header("\"jwk\":{}"), T::Malformed(_)),
        case!("another typ", "form", with_header("\"typ\":\"at+jwt\""), T::Malformed(_)),
    ]
}

fn cases() -> Vec<Case> {
    [claims_cases(), pod_cases(), signature_cases(), form_cases()].into_iter().flatten().collect()
}

#[test]
fn a_token_as_the_api_server_issues_it_proves_its_pod() {
    for algorithm in Algorithm::ALL {
        let proved = judge(&signer(algorithm).token(&claims())).unwrap();
        assert_eq!(proved.pod().to_string(), "shop/web-0");
        assert_eq!(proved.pod().account.uid.as_str(), ACCOUNT_UID);
        assert_eq!(proved.node().as_str(), "node-1");
        assert_eq!(proved.expires_at(), now() + Duration::from_secs(600));
    }
    let signer = signer(Algorithm::Es256);
    judge(&signer.token(&claims_with("/aud", json!("vault")))).unwrap();
    judge(&signer.token(&claims_with("/aud", json!(["other", "vault"])))).unwrap();
    let header = json!({ "alg": "ES256", "kid": signer.kid, "typ": "JWT" }).to_string();
    judge(&signer.token_of(&header, &claims().to_string())).unwrap();
}

#[test]
fn every_forged_token_is_refused_for_its_reason_and_never_quoted() {
    for case in cases() {
        let refused = judge(&case.token).err().unwrap_or_else(|| panic!("{}: believed", case.name));
        assert!((case.refused)(&refused), "{}: {refused:?}", case.name);
        let text = format!("{refused} {refused:?}");
        for part in case.token.split('.').filter(|part| part.len() > 8) {
            assert!(!text.contains(part), "{}: {text}", case.name);
        }
        assert!(!text.contains("system:serviceaccount"), "{}: {text}", case.name);
    }
}

/// The same table would notice a verifier with any one check missing, and only with that one.
#[test]
fn a_verifier_that_leaves_a_check_out_believes_exactly_what_that_check_refuses() {
    let good = signer(Algorithm::Rs256).token(&claims());
    let cases = cases();
    for left_out in CHECKS {
        assert!(lenient(&good, left_out), "{left_out}");
        for case in &cases {
            let believed = lenient(&case.token, left_out);
            assert_eq!(believed, case.check == left_out, "{}, without {left_out}", case.name);
        }
    }
}

#[test]
fn an_algorithm_that_is_configured_away_is_refused() {
    let only = Expectations { algorithms: vec![Algorithm::Es384], ..expectations() };
    for algorithm in Algorithm::ALL {
        let token = token(&signer(algorithm).token(&claims()));
        let judged = only.verify(cluster(), &token, now());
        assert_eq!(judged.is_ok(), algorithm == Algorithm::Es384, "{algorithm}");
    }
}

#[test]
fn clocks_may_be_apart_by_thirty_seconds_and_no_more() {
    let signer = signer(Algorithm::Es256);
    let believed = |claim: &str, at: u64| {
        judge(&signer.token(&claims_with(&format!("/{claim}"), json!(at)))).is_ok()
    };
    assert!(believed("exp", NOW - 29) && !believed("exp", NOW - 30));
    assert!(believed("nbf", NOW + 30) && !believed("nbf", NOW + 31));
    for impossible in [json!(u64::MAX), json!(-1), json!(1.9e9), json!("1900000600"), json!(null)] {
        let token = signer.token(&claims_with("/exp", impossible.clone()));
        assert!(matches!(judge(&token), Err(TokenRefused::Claims(_))), "{impossible}");
    }
    let late = token(&signer.token(&claims()));
    let before_1970 = UNIX_EPOCH - Duration::from_secs(1);
    let judged = expectations().verify(cluster(), &late, before_1970);
    assert!(matches!(judged, Err(TokenRefused::NotYetValid(_))));
}

#[test]
fn the_discovered_issuer_counts_only_where_none_is_configured() {
    let token = token(&signer(Algorithm::Es256).token(&claims()));
    let keys = jwks(&[signer(Algorithm::Es256)]);
    let judged = |configured: &[&str], discovered: Option<&str>| {
        let issuers = configured.iter().map(|issuer| (*issuer).to_owned()).collect();
        let expectations = Expectations { issuers, ..expectations() };
        let discovered = discovered.map(str::to_owned);
        let cluster = ClusterKeys::new(discovered, keys.as_bytes()).unwrap();
        expectations.verify(&cluster, &token, now()).map(drop)
    };
    assert!(judged(&[], Some(ISSUER)).is_ok());
    assert!(judged(&["https://old", ISSUER], None).is_ok());
    assert!(matches!(judged(&[], None), Err(TokenRefused::IssuerUnknown)));
    assert!(matches!(judged(&[], Some("https://other")), Err(TokenRefused::Issuer)));
    assert!(matches!(judged(&["https://other"], Some(ISSUER)), Err(TokenRefused::Issuer)));
}

#[test]
fn a_volume_published_for_the_first_time_takes_the_account_the_token_proves() {
    let proved = judge(&signer(Algorithm::Es256).token(&claims())).unwrap();
    let first = PodInfo { account_uid_before: None, ..info() };
    assert!(proved.matches(&first).is_ok());
}

#[test]
fn what_is_no_token_is_refused_before_any_key_is_looked_up() {
    for text in ["a", ".", "..", "...", "a.b", "a.b.c", "e30.e30.e30", "W10.e30.e30"] {
        assert!(Unverified::parse(&token(text)).is_err(), "{text}");
    }
    let listed = encode(br#"["ES256","key-256","JWT"]"#);
    assert!(Unverified::parse(&token(&format!("{listed}.e30.e30"))).is_err());
}

proptest! {
    #[test]
    fn a_token_with_one_flipped_bit_is_refused(
        which in 0..Algorithm::ALL.len(),
        at in any::<prop::sample::Index>(),
        bit in 0..7u32,
    ) {
        let good = signer(Algorithm::ALL[which]).token(&claims());
        let mut bytes = good.into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        let text = String::from_utf8(bytes).unwrap();
        prop_assert!(judge(&text).is_err());
    }

    #[test]
    fn no_bytes_make_the_parser_panic(text in "[ -~]{0,200}", payload in any::<Vec<u8>>()) {
        if let Ok(token) = Token::new(text.into_bytes()) {
            let _ = Unverified::parse(&token);
        }
        let signer = signer(Algorithm::Es256);
        let header = encode(signer.header().to_string().as_bytes());
        let signed = format!("{header}.{}", encode(&payload));
        let signature = encode(&signer.sign(signed.as_bytes()));
        let judged = judge(&format!("{signed}.{signature}"));
        prop_assert!(judged.is_err());
    }
}
