//! AES-256-GCM in the format of an existing Node tool: `ENC:<iv hex>:<tag hex>:<ciphertext hex>`.
//!
//! The IV has 16 bytes, as that tool draws it, not GCM's usual 12: values made with
//! `createCipheriv('aes-256-gcm', key, iv)` open here and the reverse.

use std::fmt;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use aes_gcm::aead::consts::U16;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::Aes256;
use aes_gcm::{AesGcm, Nonce, Tag};
use zeroize::Zeroizing;

use crate::domain::SecretBytes;

type Cipher = AesGcm<Aes256, U16>;

/// Length of an AES-256 key.
const KEY_BYTES: usize = 32;
/// Length of the IV, fixed by the format.
const IV_BYTES: usize = 16;
/// Length of the authentication tag; shorter tags are never accepted.
const TAG_BYTES: usize = 16;
/// A key file holds 64 digits and a line end; anything longer than this is some other file.
const KEY_FILE_BYTES_MAX: u64 = 4096;
/// One byte more, so that reading to the end never grows and copies the buffer.
const KEY_FILE_CAPACITY: usize = 4097;
/// What every encrypted value starts with.
const PREFIX: &str = "ENC:";

/// An AES-256 key, written as 64 hex digits in files and variables.
pub struct Key(Arc<SecretBytes>);

/// What is wrong with the text of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFormat {
    /// Nothing but white space.
    #[error("is empty")]
    Empty,
    /// Not 64 characters.
    #[error("has {0} characters")]
    Length(usize),
    /// Something that is no hex digit, counted from 1.
    #[error("has something other than a hex digit at position {0}")]
    Digit(usize),
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("key file '{}' cannot be read", file.display())]
    Read {
        /// The key file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// People besides the owner could read or replace the key.
    #[error(
        "key file '{}' is {problem}: chmod 0400 it, or set defaultMode 0400 on a Kubernetes \
         Secret volume",
        file.display()
    )]
    Exposed {
        /// The key file.
        file: PathBuf,
        /// Who can do what.
        problem: &'static str,
    },
    /// The file's text is no key.
    #[error("key file '{}' {problem}; a key is 64 hex digits", file.display())]
    FileFormat {
        /// The key file.
        file: PathBuf,
        /// What is wrong with it.
        problem: KeyFormat,
    },
    /// The variable is not set.
    #[error("environment variable '{0}' is not set; it must hold a key of 64 hex digits")]
    Unset(String),
    /// The variable's text is no key.
    #[error("environment variable '{variable}' {problem}; a key is 64 hex digits")]
    EnvFormat {
        /// The variable.
        variable: String,
        /// What is wrong with it.
        problem: KeyFormat,
    },
    /// Raw key bytes of another length.
    #[error("an AES-256 key has 32 bytes, not {0}")]
    RawLength(usize),
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes: {0}")]
    Random(getrandom::Error),
}

impl Key {
    /// Reads a key file: 64 hex digits, upper or lower case, and at most one line end.
    ///
    /// The file must belong to root or to us, nobody else may write it, others may not read it, and
    /// a group may read it only if root owns it: that is what `fsGroup` makes of a Secret volume.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let read_error = |source| KeyError::Read { file: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        let own_uid = rustix::process::geteuid().as_raw();
        if let Some(problem) = exposure(metadata.uid(), metadata.mode(), own_uid) {
            return Err(KeyError::Exposed { file: path.to_owned(), problem });
        }
        let mut text = Zeroizing::new(Vec::with_capacity(KEY_FILE_CAPACITY));
        file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut text).map_err(read_error)?;
        Self::from_hex(&text)
            .map_err(|problem| KeyError::FileFormat { file: path.to_owned(), problem })
    }

    /// Reads a key from an environment variable. It stays readable in `/proc/<pid>/environ` for
    /// root and this user; prefer a file.
    pub fn from_env(variable: &str) -> Result<Self, KeyError> {
        let text =
            std::env::var_os(variable).ok_or_else(|| KeyError::Unset(variable.to_owned()))?;
        Self::from_hex(&Zeroizing::new(text.into_vec()))
            .map_err(|problem| KeyError::EnvFormat { variable: variable.to_owned(), problem })
    }

    /// Parses 64 hex digits and at most one line end.
    pub fn from_hex(text: &[u8]) -> Result<Self, KeyFormat> {
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.trim_ascii().is_empty() {
            return Err(KeyFormat::Empty);
        }
        if let Some(position) = text.iter().position(|byte| !byte.is_ascii_hexdigit()) {
            return Err(KeyFormat::Digit(position + 1));
        }
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        hex::decode_to_slice(text, bytes.as_mut()).map_err(|_| KeyFormat::Length(text.len()))?;
        Ok(Self(Arc::new(SecretBytes::new(bytes.to_vec()))))
    }

    /// Takes 32 raw bytes as the configuration shares them.
    pub fn from_shared(bytes: Arc<SecretBytes>) -> Result<Self, KeyError> {
        match bytes.len() {
            KEY_BYTES => Ok(Self(bytes)),
            other => Err(KeyError::RawLength(other)),
        }
    }

    /// The raw bytes, for [`Key::from_shared`] elsewhere.
    pub fn shared(&self) -> Arc<SecretBytes> {
        Arc::clone(&self.0)
    }

    /// Draws a new key from the operating system.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = vec![0; KEY_BYTES];
        getrandom::fill(&mut bytes).map_err(KeyError::Random)?;
        Ok(Self(Arc::new(SecretBytes::new(bytes))))
    }

    /// The key as 64 hex digits, for a key file.
    pub fn to_hex(&self) -> SecretBytes {
        SecretBytes::new(hex::encode(self.0.expose()).into_bytes())
    }

    fn cipher(&self) -> Cipher {
        Cipher::new_from_slice(self.0.expose()).expect("every constructor checks the length")
    }
}

/// Who besides its owner could read or replace a key file.
fn exposure(owner: u32, mode: u32, own_uid: u32) -> Option<&'static str> {
    match () {
        () if owner != 0 && owner != own_uid => Some("owned by another user"),
        () if mode & 0o022 != 0 => Some("writable by its group or by everybody"),
        () if mode & 0o004 != 0 => Some("readable by everybody"),
        () if mode & 0o040 != 0 && owner != 0 => Some("readable by its group"),
        () => None,
    }
}

/// A value encrypted with some [`Key`]. It holds no plaintext, so it may be printed and stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptedValue {
    iv: [u8; IV_BYTES],
    tag: [u8; TAG_BYTES],
    ciphertext: Vec<u8>,
}

/// Why an encrypted value could not be read or made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncryptionError {
    /// Not the format at all.
    #[error("is not an encrypted value: ENC:<iv hex>:<tag hex>:<ciphertext hex> is expected")]
    Format,
    /// One field is wrong.
    #[error("has {expected} expected as its {field}, and something else there")]
    Field {
        /// `iv`, `tag` or `ciphertext`.
        field: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
    /// The tag does not match.
    #[error("was encrypted with another key, or has been altered")]
    Refused,
    /// More than AES-GCM can take in one message.
    #[error("is too long for one AES-GCM message")]
    TooLong,
    /// The operating system gave no random bytes.
    #[error("cannot be encrypted: the operating system gave no random bytes")]
    Random,
}

impl EncryptedValue {
    /// Whether a text claims to be an encrypted value, well-formed or not.
    pub fn is_claimed_by(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// Encrypts under a fresh random IV. An empty plaintext is fine.
    pub fn encrypt(plain: &[u8], key: &Key) -> Result<Self, EncryptionError> {
        let mut iv = [0; IV_BYTES];
        getrandom::fill(&mut iv).map_err(|_| EncryptionError::Random)?;
        let mut buffer = Zeroizing::new(plain.to_vec());
        let tag = key
            .cipher()
            .encrypt_inout_detached(&Nonce::from(iv), b"", buffer.as_mut_slice().into())
            .map_err(|_| EncryptionError::TooLong)?;
        // Only ciphertext is left in the buffer now.
        Ok(Self { iv, tag: tag.into(), ciphertext: std::mem::take(&mut *buffer) })
    }

    /// Decrypts; refuses a wrong key and any altered bit alike.
    pub fn decrypt(&self, key: &Key) -> Result<SecretBytes, EncryptionError> {
        let mut buffer = Zeroizing::new(self.ciphertext.clone());
        key.cipher()
            .decrypt_inout_detached(
                &Nonce::from(self.iv),
                b"",
                buffer.as_mut_slice().into(),
                &Tag::<U16>::from(self.tag),
            )
            .map_err(|_| EncryptionError::Refused)?;
        Ok(SecretBytes::new(std::mem::take(&mut *buffer)))
    }
}

impl FromStr for EncryptedValue {
    type Err = EncryptionError;

    fn from_str(text: &str) -> Result<Self, EncryptionError> {
        let fields = text.strip_prefix(PREFIX).ok_or(EncryptionError::Format)?;
        let mut fields = fields.split(':');
        let (Some(iv), Some(tag), Some(ciphertext), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(EncryptionError::Format);
        };
        let wrong = |field, expected| move |_| EncryptionError::Field { field, expected };
        let mut value = Self { iv: [0; IV_BYTES], tag: [0; TAG_BYTES], ciphertext: Vec::new() };
        hex::decode_to_slice(iv, &mut value.iv).map_err(wrong("iv", "32 hex digits"))?;
        hex::decode_to_slice(tag, &mut value.tag).map_err(wrong("tag", "32 hex digits"))?;
        value.ciphertext =
            hex::decode(ciphertext).map_err(wrong("ciphertext", "an even number of hex digits"))?;
        Ok(value)
    }
}

impl fmt::Display for EncryptedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { iv, tag, ciphertext } = self;
        let (iv, tag) = (hex::encode(iv), hex::encode(tag));
        write!(f, "{PREFIX}{iv}:{tag}:{}", hex::encode(ciphertext))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn key() -> Key {
        Key::from_hex(KEY.as_bytes()).unwrap()
    }

    #[test]
    fn a_key_is_64_hex_digits_with_at_most_one_line_end() {
        let upper = KEY.to_uppercase();
        for good in [KEY.to_owned(), format!("{KEY}\n"), format!("{KEY}\r\n"), upper] {
            assert_eq!(Key::from_hex(good.as_bytes()).unwrap().to_hex().expose(), KEY.as_bytes());
        }
        let format = |text: &str| Key::from_hex(text.as_bytes()).err().unwrap();
        assert_eq!(format(""), KeyFormat::Empty);
        assert_eq!(format(" \n"), KeyFormat::Empty);
        assert_eq!(format(&KEY[1..]), KeyFormat::Length(63));
        assert_eq!(format(&format!("{KEY}00")), KeyFormat::Length(66));
        assert_eq!(format(&format!("{KEY}\n\n")), KeyFormat::Digit(65));
        assert_eq!(format(&format!(" {KEY}")), KeyFormat::Digit(1));
        assert_eq!(format(&KEY.replace("0a", "zq")), KeyFormat::Digit(21));
    }

    #[test]
    fn a_key_file_that_others_could_read_or_replace_is_refused_by_name() {
        for (owner, mode, own_uid, good) in [
            (0, 0o100_400, 0, true),
            (0, 0o100_440, 1000, true),
            (1000, 0o100_600, 1000, true),
            (1000, 0o100_640, 1000, false),
            (0, 0o100_644, 0, false),
            (0, 0o100_620, 0, false),
            (0, 0o100_602, 0, false),
            (1001, 0o100_400, 1000, false),
        ] {
            assert_eq!(exposure(owner, mode, own_uid).is_none(), good, "{owner} {mode:o}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, KEY).unwrap();
        assert!(Key::from_file(file.path()).is_ok());
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        let message = Key::from_file(file.path()).err().unwrap().to_string();
        assert!(message.contains(&*file.path().to_string_lossy()), "{message}");
        assert!(message.contains("readable by everybody"), "{message}");
    }

    #[test]
    fn no_key_error_repeats_what_the_file_or_variable_holds() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "hunter2hunter2").unwrap();
        let error = Key::from_file(file.path()).err().unwrap();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let message = Key::from_env("SECRETS_BROKER_NO_SUCH_KEY").err().unwrap().to_string();
        assert!(message.contains("'SECRETS_BROKER_NO_SUCH_KEY' is not set"), "{message}");
    }

    #[test]
    fn every_altered_byte_and_every_other_key_is_refused() {
        let value = EncryptedValue::encrypt(b"shop-password", &key()).unwrap();
        let altered = |change: &dyn Fn(&mut EncryptedValue)| {
            let mut other = value.clone();
            change(&mut other);
            other.decrypt(&key()).err()
        };
        for at in 0..IV_BYTES {
            assert_eq!(altered(&|v| v.iv[at] ^= 1), Some(EncryptionError::Refused));
            assert_eq!(altered(&|v| v.tag[at] ^= 0x80), Some(EncryptionError::Refused));
        }
        for at in 0..value.ciphertext.len() {
            assert_eq!(altered(&|v| v.ciphertext[at] ^= 1), Some(EncryptionError::Refused));
        }
        assert_eq!(altered(&|v| v.ciphertext.truncate(3)), Some(EncryptionError::Refused));
        let other = Key::generate().unwrap();
        assert_eq!(value.decrypt(&other).err(), Some(EncryptionError::Refused));
    }

    #[test]
    fn a_malformed_value_is_refused_with_the_field_named_and_nothing_repeated() {
        let (iv, tag) = ("0".repeat(32), "f".repeat(32));
        let error = |text: String| text.parse::<EncryptedValue>().unwrap_err();
        for not_the_format in ["hunter2", "enc:00:00:00", "ENC:00:00", "ENC:00:00:00:00"] {
            assert_eq!(error(not_the_format.to_owned()), EncryptionError::Format);
        }
        for (text, expected) in [
            (format!("ENC:{}:{tag}:00", &iv[1..]), "iv"),
            (format!("ENC:{}:{tag}:00", &iv[8..]), "iv"),
            (format!("ENC:{iv}:{tag}00:00"), "tag"),
            (format!("ENC:{iv}:{tag}:000"), "ciphertext"),
            (format!("ENC:{iv}:{tag}:hunter2!"), "ciphertext"),
            (format!("ENC:{iv}:{tag}:00\n"), "ciphertext"),
        ] {
            let error = error(text);
            assert!(matches!(error, EncryptionError::Field { field, .. } if field == expected));
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    proptest! {
        #[test]
        fn whatever_is_encrypted_comes_back_through_text_in_either_case(
            plain in proptest::collection::vec(any::<u8>(), 0..200), upper: bool
        ) {
            let value = EncryptedValue::encrypt(&plain, &key()).unwrap();
            let text = value.to_string();
            let text = if upper { format!("ENC{}", text[3..].to_uppercase()) } else { text };
            let parsed: EncryptedValue = text.parse().unwrap();
            prop_assert_eq!(&parsed, &value);
            let opened = parsed.decrypt(&key()).unwrap();
            prop_assert_eq!(opened.expose(), plain.as_slice());
        }
    }
}
