//! The mounts of pods' volumes below one kubelet's root, and what may be done to them.
//!
//! A volume's tmpfs is mounted at `<kubelet root>/plugins/<driver>/volumes/<uid>~<name>`, where no
//! pod comes, and carries the driver's name as its source, by which a successor knows it.
//! Nothing is remembered here: the kernel's mounts are the record.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::protocol::{INODES_PER_REPLY, VOLUMES_PER_REPLY};
use super::table::{MountTable, On};
use super::target::{KubeletRoot, TARGET_DIRECTORY, Target, TargetError, VolumeKey};
use super::tree::{self, if_there, make_directory, open_directory, place_of};
use super::{Failure, Mounted, TmpfsSize, failed, selinux, tmpfs};
use crate::domain::CsiDriverName;
use crate::mountinfo::{self, MountLine};

/// Directories on the way to the private ones, as the kubelet makes them.
const DIRECTORY_MODE: u32 = 0o750;
/// The private ones.
const PRIVATE_MODE: u32 = 0o700;
/// More mounts of ours on top of each other than any race could leave behind.
const LAYERS_MAX: usize = 8;

/// Which node's volumes, and for whom.
#[derive(Debug, Clone)]
pub struct MountsConfig {
    /// The kubelet's root directory.
    pub kubelet_root: KubeletRoot,
    /// The CSI driver that the volumes belong to.
    pub driver: CsiDriverName,
    /// Who fills the volumes: the owner of their root directories.
    pub agent_uid: u32,
}

/// Why the mounts cannot be managed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} '{path}'; the kubelet's root must be there, and the mounter must be root")]
pub struct OpenError {
    what: &'static str,
    path: String,
    source: io::Error,
}

/// The mounts below one kubelet's root. One call at a time: whoever shares it locks it.
#[derive(Debug)]
pub struct Mounts {
    config: MountsConfig,
    kubelet: OwnedFd,
    private: OwnedFd,
    /// The SELinux label of new volumes, where the node has such labels.
    label: Option<&'static str>,
    propagates: bool,
}

impl Mounts {
    /// Opens the kubelet's root and makes the private directory in it.
    pub fn open(config: MountsConfig) -> Result<Self, OpenError> {
        let root = config.kubelet_root.as_str();
        let fail = |what, path: &str| {
            let path = path.to_owned();
            move |errno: Errno| OpenError { what, path, source: errno.into() }
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let kubelet = open(root, flags, Mode::empty()).map_err(fail("open", root))?;
        let mut path = root.to_owned();
        let mut private = open_directory(kubelet.as_fd(), ".").map_err(fail("open", root))?;
        let steps = [
            ("plugins", DIRECTORY_MODE),
            (config.driver.as_str(), DIRECTORY_MODE),
            ("volumes", PRIVATE_MODE),
        ];
        for (name, mode) in steps {
            path = format!("{path}/{name}");
            make_directory(private.as_fd(), name, mode).map_err(fail("make", &path))?;
            private = open_directory(private.as_fd(), name).map_err(fail("open", &path))?;
        }
        let stat = fstat(&private).map_err(fail("look at", &path))?;
        if stat.st_uid != geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            return Err(fail("keep to itself (it must be ours, with mode 0700)", &path)(
                Errno::PERM,
            ));
        }
        let line = mount_line(&kubelet).map_err(|source| OpenError {
            what: "find the mount of",
            path: root.to_owned(),
            source,
        })?;
        let propagates = line.as_ref().is_some_and(|line| line.shared);
        Ok(Self { label: selinux::label(line.as_ref()), propagates, config, kubelet, private })
    }

    /// Whether mounts made here appear in the kubelet's mount namespace too: not if this one is
    /// another that is not shared with it.
    pub fn propagate(&self) -> bool {
        self.propagates
    }

    /// The kubelet's root, which targets are parsed against.
    pub fn kubelet_root(&self) -> &KubeletRoot {
        &self.config.kubelet_root
    }

    /// Makes or finds a volume's tmpfs; its root, and whether it stays out of swap.
    pub(super) fn prepare(
        &self,
        key: &VolumeKey,
        size: TmpfsSize,
    ) -> Result<(OwnedFd, bool), Failure> {
        let name = key.directory();
        make_directory(self.private.as_fd(), &name, PRIVATE_MODE)
            .map_err(failed("make the volume's private directory"))?;
        let table = MountTable::default();
        let directory = self.private_directory(key)?.ok_or(Failure::NotPrepared)?;
        let (mount, noswap) = match self.ours(&directory, &table, "its private directory")? {
            Some(line) => {
                let noswap = line.has_noswap();
                if let Err(error) = tmpfs::resize(directory.as_fd(), size, noswap) {
                    tracing::warn!(volume = %key, %error, "volume keeps its present size");
                }
                (directory, noswap)
            }
            None => {
                let made = self.create(key, size).map_err(failed("make a tmpfs"))?;
                let (mount, directory) = (made.0.as_fd(), directory.as_fd());
                tmpfs::attach(mount, directory).map_err(failed("mount the tmpfs"))?;
                made
            }
        };
        let root = tmpfs::detached_root(mount.as_fd()).map_err(failed("open the tmpfs"))?;
        Ok((root, noswap))
    }

    /// Makes a volume's tmpfs, with a label where the node wants one; whether it stays out of swap.
    fn create(&self, key: &VolumeKey, size: TmpfsSize) -> Result<(OwnedFd, bool), Errno> {
        let create =
            |label| tmpfs::create(self.config.driver.as_str(), size, self.config.agent_uid, label);
        match create(self.label) {
            Err(error) if self.label.is_some() && selinux::refuses_labels(error) => {
                tracing::warn!(
                    volume = %key, label = self.label, %error,
                    "volume has no SELinux label, so its pod may not be able to read it: let the \
                     node's policy give container runtimes' volumes this one"
                );
                create(None)
            }
            made => made,
        }
    }

    /// Binds a volume onto its target.
    pub(super) fn bind(&self, key: &VolumeKey, target: &Target) -> Result<(), Failure> {
        if target.key() != key {
            return Err(Failure::OtherVolume);
        }
        // Not looked up in the table: `prepare` did, and only who may mount on the node, and so may
        // do anything there, could put something else in its place.
        let private = self.private_directory(key)?.ok_or(Failure::NotPrepared)?;
        let volume = place_of(&private).map_err(failed("look at the volume"))?;
        if !volume.is_root {
            return Err(Failure::NotPrepared);
        }
        if !tmpfs::holds(&private) {
            return Err(foreign("no tmpfs", "its private directory"));
        }
        let parent = self.target_parent(key)?.ok_or(Failure::NoPodDirectory)?;
        make_directory(parent.as_fd(), TARGET_DIRECTORY, DIRECTORY_MODE)
            .map_err(failed("make the target"))?;
        let directory =
            open_directory(parent.as_fd(), TARGET_DIRECTORY).map_err(failed("open the target"))?;
        match self.ours(&directory, &MountTable::default(), "the target")? {
            Some(bound) if bound.device == volume.device => return Ok(()),
            Some(_) => return Err(foreign("tmpfs of another volume", "the target")),
            None => {}
        }
        let copy = tmpfs::read_only_copy(private.as_fd())
            .map_err(failed("copy the mount (this takes Linux 5.12)"))?;
        tmpfs::attach(copy.as_fd(), directory.as_fd()).map_err(failed("mount the target"))?;
        // The directory may have been moved or covered after it was opened.
        let bound = place_of(&copy).map_err(failed("look at the target"))?;
        let reached = open_directory(parent.as_fd(), TARGET_DIRECTORY);
        if reached.and_then(|reached| place_of(&reached)) != Ok(bound) {
            tmpfs::detach(copy.as_fd()).map_err(failed("unmount a target that was moved away"))?;
            return Err(foreign("something that came meanwhile", "the target"));
        }
        Ok(())
    }

    /// Unmounts a target and removes its directory.
    pub(super) fn unbind(&self, target: &Target) -> Result<(), Failure> {
        self.unless_something_is_in_the_way(target.key(), (), || {
            let Some(parent) = self.target_parent(target.key())? else { return Ok(()) };
            self.clear(&parent, TARGET_DIRECTORY, "the target")
        })
    }

    /// Unmounts a volume's tmpfs and removes its private directory.
    pub(super) fn discard(&self, key: &VolumeKey) -> Result<(), Failure> {
        if self.bound(key, &MountTable::default())? {
            return Err(Failure::StillBound);
        }
        self.clear(&self.private, &key.directory(), "its private directory")
    }

    /// The volumes behind `after`, in order, at most [`VOLUMES_PER_REPLY`]; whether there are more.
    pub(super) fn list(&self, after: Option<&VolumeKey>) -> Result<(Vec<Mounted>, bool), Failure> {
        let names = tree::names(&self.private).map_err(failed("list the private directory"))?;
        let keys: BTreeSet<VolumeKey> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let table = MountTable::default();
        // Without it nothing could be told of any volume.
        table.lines()?;
        let mut rest = keys.into_iter().filter(|key| after.is_none_or(|after| key > after));
        let page: Vec<Mounted> = rest
            .by_ref()
            .take(VOLUMES_PER_REPLY)
            .map(|key| Mounted { bound: self.may_be_bound(&key, &table), key })
            .collect();
        Ok((page, rest.next().is_some()))
    }

    /// Inodes of a volume that are mounted somewhere by themselves.
    pub(super) fn mounted_below(&self, key: &VolumeKey) -> Result<Vec<u64>, Failure> {
        let table = MountTable::default();
        let private = self.private_directory(key)?.ok_or(Failure::NotPrepared)?;
        let line = self.ours(&private, &table, "its private directory")?;
        let line = line.ok_or(Failure::NotPrepared)?;
        let mut inodes = BTreeSet::new();
        for mounted in table.lines()?.iter().filter(|other| other.device == line.device) {
            let Ok(path) = mounted.root.strip_prefix("/") else { continue };
            if path == Path::new("") {
                continue;
            }
            // Not text, or deleted since: the wiper finds no name for it either.
            let Some(path) = path.to_str() else { continue };
            let file = match tree::open_beneath(private.as_fd(), path, OFlags::PATH) {
                // Deleted is `<path>//deleted`, and there may be another file of that name.
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                found => found.map_err(failed("look at a mounted file"))?,
            };
            inodes.insert(fstat(&file).map_err(failed("look at a mounted file"))?.st_ino);
        }
        if inodes.len() > INODES_PER_REPLY {
            return Err(Failure::TooManyMounted(INODES_PER_REPLY));
        }
        Ok(inodes.into_iter().collect())
    }

    fn private_directory(&self, key: &VolumeKey) -> Result<Option<OwnedFd>, Failure> {
        if_there(open_directory(self.private.as_fd(), &key.directory()))
            .map_err(failed("open the volume's private directory"))
    }

    fn target_parent(&self, key: &VolumeKey) -> Result<Option<OwnedFd>, Failure> {
        if_there(open_directory(self.kubelet.as_fd(), &key.target_parent()))
            .map_err(failed("open the pod's directory"))
    }

    /// Whether the volume's target has a mount of ours on it.
    fn bound(&self, key: &VolumeKey, table: &MountTable) -> Result<bool, Failure> {
        self.unless_something_is_in_the_way(key, false, || {
            let Some(parent) = self.target_parent(key)? else { return Ok(false) };
            let target = if_there(open_directory(parent.as_fd(), TARGET_DIRECTORY))
                .map_err(failed("open the target"))?;
            let Some(target) = target else { return Ok(false) };
            match table.on(&target)? {
                On::Mount(line) => Ok(self.is_ours(line)),
                On::Nothing | On::Unknown => Ok(false),
            }
        })
    }

    /// The same of one volume among all: what cannot be found out about it must not hide the
    /// others, and a pod may be using it.
    fn may_be_bound(&self, key: &VolumeKey, table: &MountTable) -> bool {
        self.bound(key, table).unwrap_or_else(|error| {
            tracing::warn!(volume = %key, %error, "cannot tell whether a volume is bound");
            true
        })
    }

    /// What is found at a target, or `nothing` where a link or a file stands in the way of a volume
    /// that is mounted in its private place only: binding passes neither, so nothing of it is
    /// behind.
    fn unless_something_is_in_the_way<T>(
        &self,
        key: &VolumeKey,
        nothing: T,
        find: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match find() {
            Err(Failure::System { errno: libc::ELOOP | libc::ENOTDIR, .. })
                if !self.has_copies(key)? =>
            {
                Ok(nothing)
            }
            found => found,
        }
    }

    /// Whether the volume's tmpfs is mounted outside of its private place.
    fn has_copies(&self, key: &VolumeKey) -> Result<bool, Failure> {
        let table = MountTable::default();
        let Some(directory) = self.private_directory(key)? else { return Ok(false) };
        let line = self.ours(&directory, &table, "its private directory")?;
        let Some(line) = line else { return Ok(false) };
        let is_copy = |other: &MountLine| {
            other.device == line.device && other.id != line.id && self.is_ours(other)
        };
        Ok(table.lines()?.iter().any(is_copy))
    }

    /// Our mount on an open directory, if one is there; anything else there is a failure.
    fn ours<'a>(
        &self,
        directory: &OwnedFd,
        table: &'a MountTable,
        place: &str,
    ) -> Result<Option<&'a MountLine>, Failure> {
        match table.on(directory)? {
            On::Nothing => Ok(None),
            On::Mount(line) if self.is_ours(line) => Ok(Some(line)),
            On::Mount(line) => Err(foreign(&line.fs_type, place)),
            On::Unknown => Err(foreign("something that came or went meanwhile", place)),
        }
    }

    /// A whole tmpfs of this driver's, not a file or directory of one.
    fn is_ours(&self, line: &MountLine) -> bool {
        line.fs_type == "tmpfs"
            && line.source == self.config.driver.as_str()
            && line.root == Path::new("/")
    }

    /// Unmounts what is ours on a directory, layer by layer, and removes the directory.
    fn clear(&self, parent: &OwnedFd, name: &str, place: &str) -> Result<(), Failure> {
        for _ in 0..LAYERS_MAX {
            let directory = if_there(open_directory(parent.as_fd(), name))
                .map_err(failed("open what is to be removed"))?;
            let Some(directory) = directory else { return Ok(()) };
            if self.ours(&directory, &MountTable::default(), place)?.is_none() {
                break;
            }
            tmpfs::detach(directory.as_fd()).map_err(failed("unmount"))?;
        }
        tree::remove_directory(parent.as_fd(), name).map_err(failed("remove the directory"))
    }
}

/// The mount that an open directory lies on.
fn mount_line(directory: &OwnedFd) -> io::Result<Option<MountLine>> {
    let mount = place_of(directory)?.mount;
    Ok(mountinfo::read()?.into_iter().find(|line| line.id == mount))
}

fn foreign(what: &str, place: &str) -> Failure {
    Failure::Foreign(what.to_owned(), place.to_owned())
}

impl From<TargetError> for Failure {
    fn from(error: TargetError) -> Self {
        Self::Target(error)
    }
}
