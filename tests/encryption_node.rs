//! Encrypted values go both ways between this crate and the `aes-256-gcm` of a real Node.

use std::io::Write;
use std::process::{Command, Stdio};

use secrets_broker::encryption::{EncryptedValue, EncryptionError, Key};

/// Plaintexts of every length around a block, none, text, and bytes that are not UTF-8.
fn plaintexts() -> Vec<Vec<u8>> {
    let mut plaintexts: Vec<Vec<u8>> = (0..34).map(|length| vec![b'x'; length]).collect();
    plaintexts.push("pässwörd \u{1f511}\n".into());
    plaintexts.push((0..=255).collect());
    plaintexts.push(vec![0; 100_000]);
    plaintexts
}

/// Runs one of the scripts on lines of input.
fn node(script: &str, key: &Key, input: &[String]) -> Vec<String> {
    let script = format!("{}/tests/encryption/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut child = Command::new("node")
        .arg(script)
        .arg(String::from_utf8(key.to_hex().expose().to_vec()).unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node is installed");
    let text = input.iter().fold(String::new(), |text, line| text + line + "\n");
    // Both scripts read everything before they write.
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn values_made_by_node_open_here() {
    let key = Key::generate().unwrap();
    let plaintexts = plaintexts();
    let hexed: Vec<String> = plaintexts.iter().map(hex::encode).collect();
    let values = node("encrypt.js", &key, &hexed);
    assert_eq!(values.len(), plaintexts.len());
    for (value, plaintext) in values.iter().zip(&plaintexts) {
        let parsed: EncryptedValue = value.parse().unwrap();
        assert_eq!(parsed.to_string(), *value);
        assert_eq!(parsed.decrypt(&key).unwrap().expose(), plaintext.as_slice());
        let refused = parsed.decrypt(&Key::generate().unwrap()).err();
        assert_eq!(refused, Some(EncryptionError::Refused));
    }
}

#[test]
fn values_made_here_open_in_node_and_altered_ones_do_not() {
    let key = Key::generate().unwrap();
    let plaintexts = plaintexts();
    let values: Vec<String> = plaintexts
        .iter()
        .map(|plaintext| EncryptedValue::encrypt(plaintext, &key).unwrap().to_string())
        .collect();
    let expected: Vec<String> = plaintexts.iter().map(hex::encode).collect();
    assert_eq!(node("decrypt.js", &key, &values), expected);

    let altered = |value: &String| {
        let (front, last) = value.split_at(value.len() - 1);
        format!("{front}{}", if last == "0" { "1" } else { "0" })
    };
    // The empty plaintext has no ciphertext to alter, so it is left out.
    let altered: Vec<String> = values[1..].iter().map(altered).collect();
    assert!(node("decrypt.js", &key, &altered).iter().all(|line| line == "refused"));
}
