//! When keys are asked for, and what stays when nobody answers.

use std::fs;
use std::task::{Context, Poll};

use super::super::test_tokens::{jwks, signer};
use super::super::{Algorithm, KeysFileError};
use super::*;

fn at(seconds: u64) -> BootInstant {
    BootInstant::from_nanos(seconds * 1_000_000_000)
}

fn nowhere(directory: &std::path::Path) -> KeySource {
    let server = ApiServer::At {
        address: "https://127.0.0.1:1".to_owned(),
        ca_file: directory.join("ca.crt"),
        token_file: directory.join("token"),
    };
    KeySource::ApiServer { server, directory: directory.to_owned() }
}

#[tokio::test]
async fn unknown_keys_are_looked_for_at_most_once_in_thirty_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("jwks.json");
    let write = |algorithm| fs::write(&file, jwks(&[signer(algorithm)])).unwrap();
    let known = |keys: &Keys, algorithm| keys.current().keys().get(signer(algorithm).kid).is_some();
    let keys = Keys::open(KeySource::File(file.clone()), false).await;
    assert_eq!(keys.current().keys().len(), 0);

    write(Algorithm::Es256);
    keys.newer_than(&keys.current(), at(100)).await.unwrap();
    assert!(known(&keys, Algorithm::Es256));
    write(Algorithm::Es384);
    let paused = keys.newer_than(&keys.current(), at(129)).await;
    assert!(matches!(paused, Err(KeysError::Paused(_))), "{paused:?}");
    assert!(known(&keys, Algorithm::Es256));
    keys.newer_than(&keys.current(), at(130)).await.unwrap();
    assert!(known(&keys, Algorithm::Es384) && !known(&keys, Algorithm::Es256));
}

#[tokio::test]
async fn who_waited_for_anothers_request_takes_its_answer() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("jwks.json");
    fs::write(&file, jwks(&[signer(Algorithm::Es256)])).unwrap();
    let keys = Keys::open(KeySource::File(file), false).await;
    let seen = keys.current();
    let (first, second, third) = tokio::join!(
        keys.newer_than(&seen, at(100)),
        keys.newer_than(&seen, at(100)),
        keys.newer_than(&seen, at(101)),
    );
    assert!(first.is_ok() && second.is_ok() && third.is_ok());
    let again = keys.newer_than(&keys.current(), at(102)).await;
    assert!(matches!(again, Err(KeysError::Paused(_))), "{again:?}");
}

#[tokio::test]
async fn a_request_that_its_caller_gives_up_is_finished_for_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("jwks.json");
    fs::write(&file, jwks(&[signer(Algorithm::Es256)])).unwrap();
    let keys = Keys::open(KeySource::File(file), false).await;
    let seen = keys.current();
    let mut given_up = Box::pin(keys.newer_than(&seen, at(100)));
    let is_under_way = |cx: &mut Context<'_>| Poll::Ready(given_up.as_mut().poll(cx).is_pending());
    assert!(std::future::poll_fn(is_under_way).await);
    drop(given_up);
    // The next one finds keys in place of a pause.
    keys.newer_than(&seen, at(101)).await.unwrap();
    assert!(keys.current().keys().get(signer(Algorithm::Es256).kid).is_some());
}

#[tokio::test]
async fn a_failed_request_keeps_the_keys_and_counts_for_the_pause() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("jwks.json");
    fs::write(&file, jwks(&[signer(Algorithm::Es256)])).unwrap();
    let keys = Keys::open(KeySource::File(file.clone()), false).await;
    keys.newer_than(&keys.current(), at(0)).await.unwrap();
    fs::write(&file, "{\"keys\":[]}").unwrap();
    let failed = keys.newer_than(&keys.current(), at(30)).await;
    assert!(matches!(failed, Err(KeysError::Jwks(JwksError::NoUsableKey))), "{failed:?}");
    assert_eq!(keys.current().keys().len(), 1);
    let paused = keys.newer_than(&keys.current(), at(59)).await;
    assert!(matches!(paused, Err(KeysError::Paused(_))), "{paused:?}");
    fs::remove_file(&file).unwrap();
    let failed = keys.newer_than(&keys.current(), at(60)).await;
    assert!(matches!(failed, Err(KeysError::File(KeysFileError::Io { .. }))), "{failed:?}");
    assert_eq!(keys.current().keys().len(), 1);
}

#[tokio::test]
async fn the_kept_copy_counts_from_the_start_and_a_damaged_one_does_not_stop_it() {
    let directory = tempfile::tempdir().unwrap();
    let jwks = jwks(&[signer(Algorithm::Es256), signer(Algorithm::Rs256)]);
    let copy = Document::new(Some("https://issuer".to_owned()), jwks.as_bytes()).unwrap();
    keys_file::save_copy(directory.path(), &copy.to_json().unwrap()).unwrap();
    let keys = Keys::open(nowhere(directory.path()), true).await;
    assert_eq!(keys.current().keys().len(), 2);
    assert_eq!(keys.current().issuer(), Some("https://issuer"));
    let failed = keys.newer_than(&keys.current(), at(0)).await;
    assert!(matches!(failed, Err(KeysError::ApiServer(_))), "{failed:?}");
    assert_eq!(keys.current().keys().len(), 2);

    for damaged in ["", "{}", "{\"issuer\":null,\"jwks\":{\"keys\":[]}}"] {
        keys_file::save_copy(directory.path(), damaged.as_bytes()).unwrap();
        let keys = Keys::open(nowhere(directory.path()), true).await;
        assert_eq!(keys.current().keys().len(), 0, "{damaged}");
    }
}

#[tokio::test]
async fn an_address_without_tls_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for address in ["http://127.0.0.1:1", "127.0.0.1:1", "", "https://"] {
        let server = ApiServer::At {
            address: address.to_owned(),
            ca_file: directory.path().join("ca.crt"),
            token_file: directory.path().join("token"),
        };
        let refused = Connection::new(server).get(JWKS, JWKS_BYTES_MAX).await;
        assert!(matches!(refused, Err(ApiServerError::Address)), "{address}");
    }
}
