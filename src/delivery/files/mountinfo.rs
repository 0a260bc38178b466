//! The grammar of `/proc/self/mountinfo` (proc(5)). Pure, but for [`read`].

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount of this mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountLine {
    /// `major:minor` of the file system.
    pub device: (u32, u32),
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Its type.
    pub fs_type: String,
    /// What was given as its source.
    pub source: String,
    /// The file system's own options.
    pub super_options: String,
}

/// Reads the mounts of this namespace.
pub fn read() -> std::io::Result<Vec<MountLine>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Parses; a line that does not fit the grammar is left out.
pub fn parse(text: &[u8]) -> Vec<MountLine> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let mount_point = unescape(fields.nth(1)?);
    // Optional fields end at a lone hyphen.
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = OsString::from_vec(unescape(fields.next()?)).to_string_lossy().into_owned();
    let super_options = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(MountLine {
        device: (major.parse().ok()?, minor.parse().ok()?),
        mount_point: OsString::from_vec(mount_point).into(),
        fs_type,
        source,
        super_options,
    })
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
        assert!(lines[0].super_options.contains("noswap"));
    }
}
