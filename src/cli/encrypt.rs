//! `encrypt` and `decrypt`: values for the configuration and the local file, stdin to stdout.
//!
//! `echo` and an editor end a text with a line end that belongs to no password, so `encrypt` drops
//! one from the end of its input unless `--keep-newline` says otherwise. `decrypt` writes exactly
//! what was encrypted, plus a line end only when it writes to a terminal.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgGroup, Args};
use zeroize::Zeroizing;

use crate::encryption::{EncryptedValue, Key};

/// Largest input of either command; a secret is far smaller.
const INPUT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Of the options in this group exactly one is given.
const KEY_CHOICE: &str = "key_choice";

/// Where the key comes from.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new(KEY_CHOICE).required(true))]
pub struct KeyArgs {
    /// File with the key: 64 hex digits, readable by its owner only.
    #[arg(long, value_name = "FILE", group = KEY_CHOICE)]
    key_file: Option<PathBuf>,
    /// Name of the environment variable that holds the key: 64 hex digits.
    #[arg(long, value_name = "NAME", group = KEY_CHOICE)]
    key_env: Option<String>,
}

/// Encrypts standard input; prints ENC:<iv>:<tag>:<ciphertext>.
#[derive(Debug, Args)]
pub struct EncryptArgs {
    /// Prints a new key, 64 hex digits, and does nothing else.
    #[arg(long, group = KEY_CHOICE, conflicts_with = "keep_newline")]
    generate_key: bool,
    #[command(flatten)]
    key: KeyArgs,
    /// Encrypts a line end at the end of the input too, instead of dropping it.
    #[arg(long)]
    keep_newline: bool,
}

/// Decrypts one ENC: value from standard input; prints the plaintext.
#[derive(Debug, Args)]
pub struct DecryptArgs {
    #[command(flatten)]
    key: KeyArgs,
}

/// Runs `encrypt`. Exit code 0 on success; every failure is an error without the plaintext.
pub fn encrypt(args: EncryptArgs) -> anyhow::Result<ExitCode> {
    if args.generate_key {
        return print(Key::generate()?.to_hex().expose(), LineEnd::Always);
    }
    let key = args.key.read()?;
    prompt("value to encrypt, then Ctrl-D (it is shown while typed; better pipe it in):");
    let input = read_input(std::io::stdin().lock())?;
    let plain = if args.keep_newline { &input[..] } else { without_line_end(&input) };
    let value = EncryptedValue::encrypt(plain, &key)
        .map_err(|error| anyhow::anyhow!("standard input {error}"))?;
    print(value.to_string().as_bytes(), LineEnd::Always)
}

/// Runs `decrypt`. Exit code 0 on success; a wrong key or altered value is an error.
pub fn decrypt(args: DecryptArgs) -> anyhow::Result<ExitCode> {
    let key = args.key.read()?;
    prompt("ENC: value to decrypt, then Ctrl-D:");
    let input = read_input(std::io::stdin().lock())?;
    let plain = open(&input, &key)?;
    print(plain.expose(), LineEnd::OnTerminal)
}

impl KeyArgs {
    fn read(&self) -> anyhow::Result<Key> {
        match (&self.key_file, &self.key_env) {
            (Some(file), _) => Ok(Key::from_file(file)?),
            (None, Some(variable)) => Ok(Key::from_env(variable)?),
            (None, None) => anyhow::bail!("a key is needed: give --key-file or --key-env"),
        }
    }
}

fn open(input: &[u8], key: &Key) -> anyhow::Result<crate::domain::SecretBytes> {
    let text = std::str::from_utf8(input).unwrap_or_default().trim();
    text.parse::<EncryptedValue>()
        .and_then(|value| value.decrypt(key))
        .map_err(|error| anyhow::anyhow!("standard input {error}"))
}

/// Reads everything into one buffer that never moves, so that no copy is left behind.
fn read_input(input: impl Read) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(INPUT_BYTES_MAX + 1));
    input.take(INPUT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).context("standard input")?;
    anyhow::ensure!(bytes.len() <= INPUT_BYTES_MAX, "standard input is longer than 4 MiB");
    Ok(bytes)
}

/// Drops one line end, Unix or DOS.
fn without_line_end(input: &[u8]) -> &[u8] {
    match input.strip_suffix(b"\n") {
        Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
        None => input,
    }
}

fn prompt(text: &str) {
    if std::io::stdin().is_terminal() {
        eprintln!("{text}");
    }
}

enum LineEnd {
    Always,
    OnTerminal,
}

fn print(bytes: &[u8], line_end: LineEnd) -> anyhow::Result<ExitCode> {
    let mut output = std::io::stdout().lock();
    output.write_all(bytes).context("standard output")?;
    if matches!(line_end, LineEnd::Always) || output.is_terminal() {
        output.write_all(b"\n").context("standard output")?;
    }
    output.flush().context("standard output")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Encrypt {
        #[command(flatten)]
        args: EncryptArgs,
    }

    #[derive(Debug, Parser)]
    struct Decrypt {
        #[command(flatten)]
        args: DecryptArgs,
    }

    #[test]
    fn a_key_comes_from_exactly_one_place() {
        for (arguments, good) in [
            (vec!["--key-file", "k"], true),
            (vec!["--key-env", "K", "--keep-newline"], true),
            (vec!["--generate-key"], true),
            (vec!["--key-file", "k", "--key-env", "K"], false),
            (vec!["--generate-key", "--key-env", "K"], false),
            (vec!["--generate-key", "--keep-newline"], false),
            (vec!["--keep-newline"], false),
            (vec![], false),
        ] {
            let parsed = Encrypt::try_parse_from([&["encrypt"], &arguments[..]].concat());
            assert_eq!(parsed.is_ok(), good, "{arguments:?}");
        }
        assert!(Decrypt::try_parse_from(["decrypt"]).is_err());
        assert!(Decrypt::try_parse_from(["decrypt", "--key-env", "K"]).is_ok());
    }

    #[test]
    fn one_line_end_is_dropped_and_no_more() {
        for (input, plain) in [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("", "")]
        {
            assert_eq!(without_line_end(input.as_bytes()), plain.as_bytes(), "{input:?}");
        }
        assert_eq!(without_line_end(b"a\r"), b"a\r");
    }

    #[test]
    fn a_value_opens_with_white_space_around_it_and_errors_repeat_nothing() {
        let key = Key::generate().unwrap();
        let value = EncryptedValue::encrypt(b"hunter2", &key).unwrap();
        let opened = open(format!("  {value}\n").as_bytes(), &key).unwrap();
        assert_eq!(opened.expose(), b"hunter2");
        for (input, key) in
            [("hunter2".to_owned(), key), (value.to_string(), Key::generate().unwrap())]
        {
            let error = open(input.as_bytes(), &key).err().unwrap();
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn an_input_over_the_bound_is_refused() {
        assert_eq!(read_input(&b"abc"[..]).unwrap().as_slice(), b"abc");
        assert!(read_input(std::io::repeat(b'x')).is_err());
    }
}
