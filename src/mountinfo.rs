//! The grammar of `/proc/self/mountinfo` (proc(5)). Pure, but for [`read`].

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, openat};

/// One mount of this mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountLine {
    /// The mount's id, as `statx` tells it too; reused once the mount is gone.
    pub id: u64,
    /// `major:minor` of the file system.
    pub device: (u32, u32),
    /// Which part of the file system is mounted, as a path in it.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The options of this mount.
    pub options: String,
    /// Whether what is mounted below it appears in other mount namespaces.
    pub shared: bool,
    /// Its type.
    pub fs_type: String,
    /// What was given as its source.
    pub source: String,
    /// The file system's own options.
    pub super_options: String,
}

impl MountLine {
    /// Whether it is a tmpfs that stays out of swap.
    pub fn has_noswap(&self) -> bool {
        self.super_options.split(',').any(|option| option == "noswap")
    }
}

/// Reads the mounts of this namespace.
pub fn read() -> std::io::Result<Vec<MountLine>> {
    // The mounter's filter has no place for the older `open`, which musl's and rustix' are.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut file = File::from(openat(CWD, "/proc/self/mountinfo", flags, Mode::empty())?);
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(parse(&text))
}

/// Parses; a line that does not fit the grammar is left out.
pub fn parse(text: &[u8]) -> Vec<MountLine> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = std::str::from_utf8(fields.nth(1)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    let options = text(fields.next()?);
    let mut shared = false;
    // Optional fields end at a lone hyphen.
    for field in fields.by_ref().take_while(|field| *field != b"-") {
        shared |= field.starts_with(b"shared:");
    }
    let fs_type = text(fields.next()?);
    let source = path(fields.next()?).to_string_lossy().into_owned();
    let super_options = text(fields.next()?);
    Some(MountLine {
        id,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        mount_point,
        options,
        shared,
        fs_type,
        source,
        super_options,
    })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

/// Undoes the kernel's `\ooo` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        };
        match tail.get(..3).filter(|_| byte == b'\\').and_then(octal) {
            Some(decoded) => {
                out.push(decoded);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_any_number_of_optional_fields_are_read() {
        let text =
            b"42 27 0:39 / /run/a\\040b rw,nosuid - tmpfs secrets-broker rw,size=1024k,noswap\n\
            43 27 0:39 /..x/token /etc/t rw shared:1 master:2 - tmpfs secrets-broker rw\n\
            garbage\n";
        let lines = parse(text);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].mount_point, PathBuf::from("/run/a b"));
        assert_eq!((lines[0].device, lines[0].fs_type.as_str()), ((0, 39), "tmpfs"));
        assert_eq!(lines[1].source, "secrets-broker");
        assert_eq!((lines[0].id, lines[1].id), (42, 43));
        assert_eq!((lines[0].shared, lines[1].shared), (false, true));
        assert_eq!(lines[1].root, PathBuf::from("/..x/token"));
        assert_eq!(lines[0].options, "rw,nosuid");
        assert!(lines[0].super_options.contains("noswap"));
    }
}
