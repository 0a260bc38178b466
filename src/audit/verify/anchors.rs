//! Checkpoints as verification finds them: in anchor files, and in the agent's own log, as text or
//! JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::VerifyError;
use crate::audit::chain::LineHash;

/// Checkpoints taken in; what an agent keeps is some thousands.
const CHECKPOINTS_MAX: usize = 1 << 20;
/// What the agent's log says with a checkpoint.
pub(super) const CHECKPOINT: &str = "audit checkpoint";
/// Words that stand once at the start of each line of a log of text, before anything that somebody
/// else has a say in.
const LEVELS: [&str; 5] = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"];

/// All checkpoints, by instance.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    by_instance: BTreeMap<String, Anchored>,
    /// The earliest time of a checkpoint; of instances that ended before nothing is known.
    pub(super) since: Option<String>,
    /// Lines that hold no checkpoint.
    pub(super) others: u64,
    count: usize,
}

/// The checkpoints of one instance.
#[derive(Debug, Default)]
pub(super) struct Anchored {
    hashes: BTreeSet<(u64, LineHash)>,
    /// The last records of files.
    rotations: BTreeSet<u64>,
    /// The time of the newest checkpoint.
    pub(super) until: String,
}

#[derive(Deserialize)]
struct Checkpoint<'a> {
    #[serde(alias = "timestamp", default)]
    time: &'a str,
    instance: &'a str,
    seq: u64,
    hash: &'a str,
    #[serde(default)]
    rotation: bool,
    /// Those of a log's line; a checkpoint in an anchor file has none.
    level: Option<IgnoredAny>,
    message: Option<&'a str>,
    /// A line of the log itself, which cannot vouch for itself.
    prev: Option<IgnoredAny>,
}

/// What checkpoints say of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Silent,
    Fits,
    Contradicts,
}

impl Anchors {
    pub(super) fn read(files: &[PathBuf]) -> Result<Self, VerifyError> {
        let mut anchors = Self::default();
        for path in files {
            let failed = |source| VerifyError::Read { path: path.clone(), source };
            let lines = BufReader::new(File::open(path).map_err(failed)?).split(b'\n');
            for line in lines {
                let line = line.map_err(failed)?;
                anchors.take(&String::from_utf8_lossy(&line));
            }
        }
        if anchors.by_instance.is_empty() { Err(VerifyError::NoCheckpoint) } else { Ok(anchors) }
    }

    fn take(&mut self, line: &str) {
        // Other messages of a log quote what strangers wrote, and that may look like a checkpoint.
        let checkpoint = json_in(line).map_or_else(|| from_text(line), from_json);
        let hash = checkpoint.as_ref().and_then(|c| LineHash::from_hex(c.hash.as_bytes()));
        let (Some(checkpoint), Some(hash)) = (checkpoint, hash) else {
            self.others += u64::from(!line.trim().is_empty());
            return;
        };
        if self.count >= CHECKPOINTS_MAX {
            self.others += 1;
            return;
        }
        self.count += 1;
        let time = checkpoint.time;
        if self.since.as_deref().is_none_or(|since| time < since) {
            self.since = Some(time.to_owned());
        }
        let anchored = self.by_instance.entry(checkpoint.instance.to_owned()).or_default();
        anchored.hashes.insert((checkpoint.seq, hash));
        if checkpoint.rotation {
            anchored.rotations.insert(checkpoint.seq);
        }
        if anchored.until.as_str() < time {
            time.clone_into(&mut anchored.until);
        }
    }

    pub(super) fn of(&self, instance: &str) -> Option<&Anchored> {
        self.by_instance.get(instance)
    }

    pub(super) fn instances(&self) -> impl Iterator<Item = (&String, &Anchored)> {
        self.by_instance.iter()
    }
}

impl Anchored {
    pub(super) fn judge(&self, seq: u64, hash: LineHash) -> Verdict {
        let (least, most) = (LineHash::from_bytes([0; 32]), LineHash::from_bytes([0xff; 32]));
        let mut of_seq = self.hashes.range((seq, least)..=(seq, most)).peekable();
        if of_seq.peek().is_none() {
            return Verdict::Silent;
        }
        if of_seq.all(|(_, said)| *said == hash) { Verdict::Fits } else { Verdict::Contradicts }
    }

    /// Whether the log went on in another file after this record.
    pub(super) fn is_rotation(&self, seq: u64) -> bool {
        self.rotations.contains(&seq)
    }

    /// The newest record that is covered; 0 if there is only the checkpoint of the start.
    pub(super) fn last_seq(&self) -> u64 {
        self.hashes.last().map_or(0, |(seq, _)| *seq)
    }
}

fn is_level(word: &&str) -> bool {
    LEVELS.contains(word)
}

/// The object that a line is, after whatever a collector puts before it; `None` for a line of text,
/// whose level stands before anything it quotes.
fn json_in(line: &str) -> Option<&str> {
    let (prefix, _) = line.split_once("{\"")?;
    let is_text = prefix.split_whitespace().any(|word| is_level(&word));
    (!is_text).then_some(&line[prefix.len()..])
}

/// `{"time":"2027-01-15T08:00:00.000000Z","instance":"ab","seq":7,"hash":"…","rotation":true}`, or
/// the same in the agent's log.
fn from_json(line: &str) -> Option<Checkpoint<'_>> {
    let checkpoint: Checkpoint<'_> = serde_json::from_str(line).ok()?;
    let of_a_log = checkpoint.level.is_some() || checkpoint.message.is_some();
    let fits = checkpoint.prev.is_none() && (!of_a_log || checkpoint.message == Some(CHECKPOINT));
    fits.then_some(checkpoint)
}

/// `2027-01-15T08:00:00.000000Z  INFO audit checkpoint instance=ab seq=7 hash=… rotation=false`,
/// after whatever a collector puts before each line.
fn from_text(line: &str) -> Option<Checkpoint<'_>> {
    let is_time = |word: &&str| word.len() >= 20 && word.as_bytes()[10] == b'T';
    let words = || line.split_whitespace();
    let time = words().take_while(|word| !is_level(word)).filter(is_time).last();
    let mut rest = words().skip_while(|word| !is_level(word));
    let mut said = ["INFO"].into_iter().chain(CHECKPOINT.split(' '));
    if !said.all(|word| rest.next() == Some(word)) {
        return None;
    }
    let mut field = |name: &str| rest.next()?.strip_prefix(name)?.strip_prefix('=');
    let checkpoint = Checkpoint {
        time: time.unwrap_or_default(),
        instance: field("instance")?,
        seq: field("seq")?.parse().ok()?,
        hash: field("hash")?,
        rotation: false,
        level: None,
        message: None,
        prev: None,
    };
    // Earlier versions said nothing of it.
    let Some(last) = rest.next() else { return Some(checkpoint) };
    let rotation = last.strip_prefix("rotation=")?.parse().ok()?;
    rest.next().is_none().then_some(Checkpoint { rotation, ..checkpoint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_found_in_all_the_forms_they_are_kept_in() {
        let hash = LineHash::genesis("a");
        let mut anchors = Anchors::default();
        let (json, level) = (r#""instance":"a","seq":"#, r#""level":"INFO","#);
        let at = |second| format!("2027-01-15T08:00:0{second}.000000Z");
        for line in [
            format!(r#"{{"time":"{}",{json}1,"hash":"{hash}"}}"#, at(1)),
            format!(
                r#"{{"timestamp":"{}",{level}"message":"{CHECKPOINT}",{json}2,"hash":"{hash}"}}"#,
                at(2)
            ),
            format!("{}  INFO {CHECKPOINT} instance=a seq=3 hash={hash} rotation=true", at(3)),
            format!("{}  INFO something else", at(0)),
            format!(r#"{{"time":"{}",{json}4,"ha"#, at(0)),
            format!(r#"{{"time":"{}",{json}5,"prev":"{hash}","hash":"{hash}"}}"#, at(0)),
        ] {
            anchors.take(&line);
        }
        assert_eq!(anchors.others, 3);
        assert_eq!(anchors.since, Some(at(1)));
        let anchored = anchors.of("a").unwrap();
        assert_eq!((anchored.last_seq(), anchored.until.clone()), (3, at(3)));
        for seq in 1..=3 {
            assert_eq!(anchored.judge(seq, hash), Verdict::Fits);
            assert_eq!(anchored.judge(seq, LineHash::genesis("b")), Verdict::Contradicts);
        }
        assert_eq!(anchored.judge(4, hash), Verdict::Silent);
        assert_eq!([1, 2, 3].map(|seq| anchored.is_rotation(seq)), [false, false, true]);
    }

    /// A pod's owner writes what the agent's log then quotes.
    #[test]
    fn what_a_message_quotes_is_no_checkpoint() {
        let hash = LineHash::genesis("a");
        let fields = format!("instance=a seq=9 hash={hash} rotation=true");
        let forged = format!("2027-01-15T08:00:09.000000Z  INFO {CHECKPOINT} {fields}");
        let time = "2027-01-15T08:00:01.000000Z";
        let mut anchors = Anchors::default();
        let (quoted, own) = (format!("{forged:?}"), r#""instance":"a","#);
        let json = format!(r#""seq":9,"hash":"{hash}""#);
        let lines = [
            format!("{time}  WARN a call is refused message={quoted}"),
            format!("{time}  WARN {forged}"),
            format!("{time}  INFO {forged}"),
            format!("{time}  INFO {CHECKPOINT} {fields} more"),
            format!("{time}  INFO {CHECKPOINT} of {fields}"),
            format!(
                r#"{time}  WARN refused {{"level":"INFO","message":"{CHECKPOINT}",{own}{json}}}"#
            ),
            format!(
                r#"{time} stderr F {{"level":"WARN","message":"{CHECKPOINT} of",{own}{json}}}"#
            ),
            format!(r#"{{"timestamp":"{time}","level":"WARN","message":{quoted}}}"#),
            format!(r#"{{"level":"WARN","message":"refused","instance":"a",{json}}}"#),
            format!(r#"{{"level":"INFO","instance":"a",{json}}}"#),
            format!(r#"{{"message":{quoted},"instance":"a",{json}}}"#),
        ];
        for line in &lines {
            anchors.take(line);
        }
        assert!(anchors.by_instance.is_empty(), "{anchors:?}");
        assert_eq!(anchors.others, lines.len() as u64);
    }

    #[test]
    fn a_collectors_prefix_hides_no_checkpoint() {
        let hash = LineHash::genesis("a");
        let prefix = "2027-01-15T08:00:01.000000001Z stderr F";
        let time = "2027-01-15T08:00:01.000000Z";
        let text = format!("{time}  INFO {CHECKPOINT} instance=a seq=9 hash={hash} rotation=false");
        let said = format!(r#""message":"{CHECKPOINT}","instance":"b","seq":9,"hash":"{hash}""#);
        let json = format!(r#"{{"timestamp":"{time}","level":"INFO",{said},"rotation":false}}"#);
        let mut anchors = Anchors::default();
        let labels = r#"2027-01-15T08:00:01Z {app="secrets-broker"}"#;
        for line in [format!("{labels} {text}"), format!("{prefix} {json}")] {
            anchors.take(&line);
        }
        assert_eq!(anchors.others, 0);
        anchors.take(&format!("{prefix} {text}"));
        for instance in ["a", "b"] {
            let anchored = anchors.of(instance).unwrap();
            assert_eq!((anchored.last_seq(), anchored.until.as_str()), (9, time));
        }
    }
}
