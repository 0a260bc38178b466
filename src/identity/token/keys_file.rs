//! Key sets on disk: the copy this agent keeps for an outage of the API server, and files given.
//!
//! Whoever can write the copy can forge every pod, so it counts only if nobody else could.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::jwks::JWKS_BYTES_MAX;

const NAME: &str = "cluster-keys.json";
const NEW_NAME: &str = "cluster-keys.json.new";
/// The key set and an issuer around it.
const COPY_BYTES_MAX: usize = JWKS_BYTES_MAX + 4096;
/// Write bits of group and others.
const OTHERS_WRITE: u32 = 0o022;

/// Why a file with keys was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeysFileError {
    /// The system refused.
    #[error("keys file '{}': {source}; check the path and its owner", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A pipe, a device, a directory.
    #[error("keys file '{}' is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Over the bound.
    #[error("keys file '{}' is longer than {COPY_BYTES_MAX} bytes", .0.display())]
    TooLong(PathBuf),
    /// Somebody else may have written it.
    #[error(
        "keys file '{}' could be written by others than the agent's user; remove it, it is \
         fetched anew", .0.display()
    )]
    Writable(PathBuf),
}

/// Reads the copy in `directory`; `None` if there is none yet.
pub(super) fn load_copy(directory: &Path) -> Result<Option<Vec<u8>>, KeysFileError> {
    let file = directory.join(NAME);
    let opened =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(&file);
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(KeysFileError::Io { file, source }),
    };
    let metadata = opened.metadata().map_err(failed(&file))?;
    let own = metadata.uid() == rustix::process::geteuid().as_raw();
    if !own || metadata.mode() & OTHERS_WRITE != 0 {
        return Err(KeysFileError::Writable(file));
    }
    read(opened, &file).map(Some)
}

/// Replaces the copy in `directory`, which is made if missing: complete or not at all, mode 0600.
pub(super) fn save_copy(directory: &Path, content: &[u8]) -> Result<(), KeysFileError> {
    let (file, new) = (directory.join(NAME), directory.join(NEW_NAME));
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed(directory))?;
    let write = || {
        // Left by a crash.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        opened.write_all(content)?;
        opened.sync_all()?;
        fs::rename(&new, &file)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(failed(&file))
}

/// Reads a key set that an operator named; it may be a link, as in a ConfigMap's volume.
pub(super) fn read_given(file: &Path) -> Result<Vec<u8>, KeysFileError> {
    // Not blocking: a FIFO would hold this thread for ever.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file);
    read(opened.map_err(failed(file))?, file)
}

fn read(opened: File, file: &Path) -> Result<Vec<u8>, KeysFileError> {
    if !opened.metadata().map_err(failed(file))?.is_file() {
        return Err(KeysFileError::NotAFile(file.to_owned()));
    }
    let mut content = Vec::new();
    let bound = COPY_BYTES_MAX as u64 + 1;
    opened.take(bound).read_to_end(&mut content).map_err(failed(file))?;
    if content.len() > COPY_BYTES_MAX {
        return Err(KeysFileError::TooLong(file.to_owned()));
    }
    Ok(content)
}

fn failed(file: &Path) -> impl Fn(io::Error) -> KeysFileError {
    move |source| KeysFileError::Io { file: file.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn the_copy_is_private_replaced_whole_and_read_back() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("state/tokens");
        assert!(load_copy(&directory).unwrap().is_none());
        save_copy(&directory, b"first").unwrap();
        fs::write(directory.join(NEW_NAME), "left by a crash").unwrap();
        save_copy(&directory, b"second").unwrap();
        assert_eq!(load_copy(&directory).unwrap().unwrap(), b"second");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join(NAME))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }

    #[test]
    fn a_copy_that_others_could_have_written_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(NAME);
        save_copy(directory.path(), b"keys").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(matches!(load_copy(directory.path()), Err(KeysFileError::Writable(_))));

        let elsewhere = directory.path().join("elsewhere");
        fs::rename(&file, &elsewhere).unwrap();
        symlink(&elsewhere, &file).unwrap();
        assert!(load_copy(directory.path()).is_err(), "a link");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(load_copy(directory.path()).is_err(), "a directory");
    }

    #[test]
    fn a_file_without_end_is_not_read_to_its_end() {
        assert!(matches!(read_given(Path::new("/dev/zero")), Err(KeysFileError::NotAFile(_))));
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(COPY_BYTES_MAX as u64 + 1).unwrap();
        assert!(matches!(read_given(file.path()), Err(KeysFileError::TooLong(_))));
    }
}
