//! From bytes to records: lines, what of them is a record, and what became of the others.

use std::borrow::Cow;
use std::io::{self, BufRead};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::anchors::CHECKPOINT;
use crate::audit::chain::{self, LineHash};

/// How each record begins. Quotes within a value are escaped, so these bytes stand nowhere else:
/// where they appear within a line, another line before them was cut off.
const BEGIN: &[u8] = br#"{"time":""#;
/// How each line of the agent's own log begins where that is JSON. For the same reason these bytes
/// stand nowhere else in it or in a record. A container's log holds both.
const LOG_BEGIN: &[u8] = br#"{"timestamp":""#;
/// Longest line that is taken in whole; ours are far shorter.
const LINE_BYTES_MAX: usize = 256 * 1024;

/// A line or the part of one that should be a record.
#[derive(Debug)]
pub(super) enum Piece<'a> {
    Record(Record<'a>),
    Bad(Bad),
}

/// A record whose hash is that of its bytes.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) time: &'a str,
    pub(super) instance: &'a str,
    pub(super) seq: u64,
    pub(super) prev: LineHash,
    pub(super) hash: LineHash,
    /// How many records it says were not kept.
    pub(super) lost: u64,
}

/// Something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) class: Class,
    /// Whose record it says it is, and which one, as far as that can still be read.
    pub(super) instance: Option<String>,
    pub(super) seq: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A record that is not as it was written.
    Altered,
    /// The beginning of a record, and nothing more: what a crash leaves.
    Torn,
    /// Nothing of a record in it.
    Foreign,
}

/// The fields verification needs; further ones are covered by the hash all the same.
#[derive(Deserialize)]
struct Fields<'a> {
    time: &'a str,
    seq: u64,
    instance: &'a str,
    prev: &'a str,
    #[serde(default)]
    lost: u64,
}

/// A line of the agent's own log.
#[derive(Deserialize)]
struct LogLine<'a> {
    #[serde(rename = "level")]
    _level: IgnoredAny,
    #[serde(borrow)]
    message: Option<Cow<'a, str>>,
    instance: Option<IgnoredAny>,
    /// Only records have these: one in a log line's clothes is none.
    time: Option<IgnoredAny>,
    event: Option<IgnoredAny>,
    prev: Option<IgnoredAny>,
}

/// Calls `each` with every piece and the number of its line. Memory is bounded by the longest line
/// that is taken in.
pub(super) fn for_each(
    mut reader: impl BufRead,
    mut each: impl FnMut(u64, Piece<'_>),
) -> io::Result<()> {
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let Some(whole) = read_line(&mut reader, &mut line)? else { break };
        let mut parts = parts(&line).peekable();
        while let Some(part) = parts.next() {
            match piece(part, whole) {
                // What a log collector writes before each line.
                Some(Piece::Bad(bad)) if bad.class == Class::Foreign && parts.peek().is_some() => {}
                Some(piece) => each(number, piece),
                None => {}
            }
        }
    }
    Ok(())
}

/// Reads a line without its end; `None` at the end of the file, `false` if there was more of it
/// than is taken in.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    let (mut any, mut whole) = (false, true);
    loop {
        let buffer = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            buffer => buffer?,
        };
        if buffer.is_empty() {
            return Ok(any.then_some(whole));
        }
        any = true;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = &buffer[..end.unwrap_or(buffer.len())];
        let room = LINE_BYTES_MAX - line.len();
        line.extend_from_slice(&taken[..taken.len().min(room)]);
        whole &= taken.len() <= room;
        let used = taken.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(Some(whole));
        }
    }
}

/// A line, cut where records and lines of the agent's own log begin.
fn parts(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let braces = line.iter().enumerate().skip(1).filter(|(_, byte)| **byte == BEGIN[0]);
    let is_begin =
        |at: &usize| line[*at..].starts_with(BEGIN) || line[*at..].starts_with(LOG_BEGIN);
    let begins = braces.map(|(at, _)| at).filter(is_begin);
    let mut from = 0;
    let mut cuts = begins.chain([line.len()]);
    std::iter::from_fn(move || {
        let to = cuts.next()?;
        let part = &line[from..to];
        from = to;
        Some(part)
    })
}

/// What a part of a line is; `None` for nothing but white space, and for the agent's own log.
fn piece(part: &[u8], whole: bool) -> Option<Piece<'_>> {
    if part.iter().all(u8::is_ascii_whitespace) {
        return None;
    }
    match record(part) {
        Some(record) => Some(Piece::Record(record)),
        None if is_of_the_log(part) => None,
        None => Some(Piece::Bad(bad(part, whole))),
    }
}

fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let hash = chain::unseal(bytes)?;
    let fields: Fields<'_> = serde_json::from_slice(bytes).ok()?;
    let prev = LineHash::from_hex(fields.prev.as_bytes())?;
    let Fields { time, seq, instance, lost, .. } = fields;
    Some(Record { time, instance, seq, prev, hash, lost })
}

fn bad(bytes: &[u8], whole: bool) -> Bad {
    let seq = after(bytes, br#""seq":"#).and_then(|rest| {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
    });
    let instance = after(bytes, br#""instance":""#).and_then(|rest| {
        let end = rest.iter().position(|byte| *byte == b'"')?;
        std::str::from_utf8(&rest[..end]).ok().map(str::to_owned)
    });
    let class = if bytes.starts_with(BEGIN) && whole && is_beginning(bytes) {
        Class::Torn
    } else if bytes.starts_with(BEGIN) || chain::is_sealed(bytes) || instance.is_some() {
        Class::Altered
    } else {
        Class::Foreign
    };
    Bad { class, instance, seq }
}

/// Whether it is one of the agent's other lines. Only checkpoints name an instance there.
fn is_of_the_log(bytes: &[u8]) -> bool {
    if !bytes.starts_with(LOG_BEGIN) {
        return false;
    }
    serde_json::from_slice::<LogLine<'_>>(bytes).is_ok_and(|line| {
        let is_record = line.time.is_some() || line.event.is_some() || line.prev.is_some();
        let is_checkpoint = line.message.as_deref() == Some(CHECKPOINT);
        !is_record && (line.instance.is_none() || is_checkpoint)
    })
}

/// Whether more bytes could make a record of it.
fn is_beginning(bytes: &[u8]) -> bool {
    let parsed = serde_json::from_slice::<IgnoredAny>(bytes);
    parsed.is_err_and(|error| error.is_eof()) && chain::is_unfinished(bytes)
}

fn after<'a>(bytes: &'a [u8], what: &[u8]) -> Option<&'a [u8]> {
    let at = bytes.windows(what.len()).position(|window| window == what)?;
    Some(&bytes[at + what.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Vec<u8> {
        let text = r#"{"time":"2027","seq":7,"instance":"ab","message":"a\"{\\","prev":""#;
        let mut line = format!("{text}{}\"}}", LineHash::genesis("ab")).into_bytes();
        chain::seal(&mut line);
        line.pop();
        line
    }

    fn pieces(bytes: &[u8]) -> Vec<(u64, String)> {
        let mut found = Vec::new();
        let shown = |number, piece: Piece<'_>| {
            let what = match piece {
                Piece::Record(record) => format!("record {}", record.seq),
                Piece::Bad(bad) => format!("{:?} {:?}", bad.class, bad.seq),
            };
            found.push((number, what));
        };
        for_each(bytes, shown).unwrap();
        found
    }

    #[test]
    fn every_beginning_of_a_record_is_torn_and_no_changed_byte_makes_one() {
        let line = line();
        for length in BEGIN.len()..line.len() {
            assert_eq!(bad(&line[..length], true).class, Class::Torn, "{length}");
        }
        for at in 0..line.len() {
            for byte in [b'x', b'"', b'\\', b'\n', b'{', b'}', b'0', 0xff] {
                let mut changed = line.clone();
                changed[at] = byte;
                if changed != line && byte != b'\n' {
                    assert_eq!(bad(&changed, true).class, Class::Altered, "{at} {byte}");
                }
            }
        }
    }

    #[test]
    fn a_line_after_a_torn_one_on_the_same_line_and_one_with_a_prefix_are_found() {
        let line = line();
        let torn = [&line[..30], &line[..], b"\n"].concat();
        assert_eq!(pieces(&torn), [(1, "Torn Some(7)".into()), (1, "record 7".into())]);
        let joined = [&line[..], b"x", &line[..], b"\n"].concat();
        assert_eq!(pieces(&joined), [(1, "Altered Some(7)".into()), (1, "record 7".into())]);
        let noise = [b"\n \n2027 stdout F ".as_slice(), &line[..], b"\nhello"].concat();
        assert_eq!(pieces(&noise), [(3, "record 7".into()), (4, "Foreign None".into())]);
    }

    #[test]
    fn what_the_agents_log_says_of_an_instance_beside_the_records_is_none() {
        let hash = LineHash::genesis("ab");
        let said =
            format!(r#""message":"audit checkpoint","instance":"ab","seq":7,"hash":"{hash}""#);
        let log = format!(r#"2027 stderr F {{"timestamp":"2027","level":"INFO",{said}}}"#);
        assert_eq!(pieces(log.as_bytes()), []);
        let record = r#"{"time":"2027","seq":7,"instance":"ab","event":"decision"}"#;
        for altered in [
            log.replace(r#""timestamp""#, r#""time""#),
            log.replace(r#""level":"INFO","#, ""),
            log.replace(r#""level""#, r#""prev":"","level""#),
            log.replace(r#""level""#, r#""event":"decision","level""#),
            log.replace(r#""level""#, r#""time":"2027","level""#),
            log.replace("audit checkpoint", "a decision"),
            format!(r#"{record}{{"timestamp":"","level":""}}"#),
            format!("{record}{log}"),
        ] {
            assert_eq!(
                pieces(altered.as_bytes()).last().unwrap().1,
                "Altered Some(7)",
                "{altered}"
            );
        }
    }

    #[test]
    fn an_endless_line_takes_bounded_memory_and_does_not_hide_the_next() {
        let line = line();
        let long = [&line[..30], &vec![b'x'; 3 * LINE_BYTES_MAX], b"\n", &line[..]].concat();
        assert_eq!(pieces(&long), [(1, "Altered Some(7)".into()), (2, "record 7".into())]);
        let mut kept = Vec::new();
        read_line(&mut long.as_slice(), &mut kept).unwrap();
        assert_eq!(kept.len(), LINE_BYTES_MAX);
    }
}
