//! One record per published volume, on disk before the call is answered, so that a successor keeps
//! the files current. It holds no token and no secret.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::{Pod, ServiceAccount};
use crate::mounter::VolumeKey;

use super::attributes::ATTRIBUTES_BYTES_MAX;

/// Of the format; another one is not read.
const VERSION: u32 = 1;
/// Longest record: attributes are bounded (escaped they take six times as much), names are short.
const RECORD_BYTES_MAX: u64 = 7 * ATTRIBUTES_BYTES_MAX as u64;
const SUFFIX: &str = ".json";

/// What there is to know about a published volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeRecord {
    /// The kubelet's id of it.
    pub(super) volume_id: String,
    /// The pod.
    pub(super) pod: Pod,
    /// The tenant's attributes as they were written.
    pub(super) attributes: BTreeMap<String, String>,
    /// The pod's `fsGroup`.
    pub(super) fs_group: Option<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    volume_id: String,
    namespace: String,
    pod: String,
    pod_uid: String,
    service_account: String,
    service_account_uid: String,
    attributes: BTreeMap<String, String>,
    fs_group: Option<u32>,
}

impl VolumeRecord {
    fn to_json(&self) -> io::Result<Vec<u8>> {
        let account = &self.pod.account;
        let written = Written {
            version: VERSION,
            volume_id: self.volume_id.clone(),
            namespace: account.namespace.to_string(),
            pod: self.pod.name.to_string(),
            pod_uid: self.pod.uid.to_string(),
            service_account: account.name.to_string(),
            service_account_uid: account.uid.to_string(),
            attributes: self.attributes.clone(),
            fs_group: self.fs_group,
        };
        Ok(serde_json::to_vec(&written)?)
    }

    fn from_json(bytes: &[u8]) -> io::Result<Self> {
        let bad = |what: &dyn std::fmt::Display| {
            io::Error::new(io::ErrorKind::InvalidData, what.to_string())
        };
        let written: Written = serde_json::from_slice(bytes)?;
        if written.version != VERSION {
            return Err(bad(&"written by another version"));
        }
        let account = ServiceAccount {
            namespace: written.namespace.parse().map_err(|error| bad(&error))?,
            name: written.service_account.parse().map_err(|error| bad(&error))?,
            uid: written.service_account_uid.parse().map_err(|error| bad(&error))?,
        };
        let pod = Pod {
            uid: written.pod_uid.parse().map_err(|error| bad(&error))?,
            name: written.pod.parse().map_err(|error| bad(&error))?,
            account,
        };
        let Written { volume_id, attributes, fs_group, .. } = written;
        Ok(Self { volume_id, pod, attributes, fs_group })
    }
}

/// The directory of records. Blocking; every file is small.
#[derive(Debug, Clone)]
pub(super) struct Records(PathBuf);

impl Records {
    /// Makes the directory if it is missing, closed to everybody else.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        Ok(Self(directory.to_owned()))
    }

    /// Puts a record in place of the last one, in one step. What a failure leaves is removed.
    pub(super) fn write(&self, key: &VolumeKey, record: &VolumeRecord) -> io::Result<()> {
        let temporary = self.0.join(format!(".{}", key.directory()));
        let written = write(&temporary, record);
        let placed = written.and_then(|()| fs::rename(&temporary, self.path(key)));
        placed.inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    /// Takes a record away; one that is not there is away.
    pub(super) fn remove(&self, key: &VolumeKey) -> io::Result<()> {
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Every record that can be read. A damaged one is set aside with a warning: the kubelet's next
    /// publish writes it anew.
    pub(super) fn all(&self) -> io::Result<BTreeMap<VolumeKey, VolumeRecord>> {
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(key) = name.and_then(|name| name.strip_suffix(SUFFIX)) else { continue };
            match key.parse::<VolumeKey>().map_err(io::Error::other).and_then(|key| {
                let record = read(&path)?;
                if record.pod.uid == key.pod { Ok((key, record)) } else { Err(mismatch()) }
            }) {
                Ok((key, record)) => drop(records.insert(key, record)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a volume's record is damaged");
                }
            }
        }
        Ok(records)
    }

    fn path(&self, key: &VolumeKey) -> PathBuf {
        self.0.join(format!("{}{SUFFIX}", key.directory()))
    }
}

fn write(path: &Path, record: &VolumeRecord) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&record.to_json()?)?;
    file.sync_all()
}

fn mismatch() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is another pod's")
}

fn read(path: &Path) -> io::Result<VolumeRecord> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(
        &mut io::Read::take(fs::File::open(path)?, RECORD_BYTES_MAX),
        &mut bytes,
    )?;
    VolumeRecord::from_json(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> VolumeRecord {
        let account = ServiceAccount {
            namespace: "shop".parse().unwrap(),
            name: "web".parse().unwrap(),
            uid: "0a".parse().unwrap(),
        };
        VolumeRecord {
            volume_id: "csi-1".to_owned(),
            pod: Pod { uid: "1b".parse().unwrap(), name: "web-0".parse().unwrap(), account },
            attributes: BTreeMap::from([("secret".to_owned(), "kv/a#k".to_owned())]),
            fs_group: Some(2000),
        }
    }

    #[test]
    fn what_is_written_is_found_by_a_successor_and_damage_only_costs_its_own_record() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("volumes")).unwrap();
        let key: VolumeKey = "1b~db".parse().unwrap();
        records.write(&key, &record()).unwrap();
        for (name, text) in [
            ("2c~db.json", "{}".to_owned()),
            ("3d~db.json", fs::read_to_string(records.path(&key)).unwrap()),
            ("nonsense.json", String::new()),
            (".1b~other", "half".to_owned()),
        ] {
            fs::write(records.0.join(name), text).unwrap();
        }
        let found = Records::open(&records.0).unwrap().all().unwrap();
        assert_eq!(found, BTreeMap::from([(key.clone(), record())]));
        records.remove(&key).unwrap();
        records.remove(&key).unwrap();
        assert!(records.all().unwrap().is_empty());
    }
}
