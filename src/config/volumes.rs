//! `[[volumes]]`: where they lie, what they lie on and what happens to their files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::document::{Place, Section};
use crate::config::settings::AgentConfig;
use crate::config::sources::Sources;
use crate::config::{Host, accounts, items, on_change};
use crate::delivery::files::{Backing, DeclaredVolume, FileOwnership, OnProblem, VolumeConfig};
use crate::delivery::socket::SocketConfig;
use crate::domain::VolumeName;

/// Permission bits a secret file may have: nobody but the agent writes it.
const FILE_BITS: u32 = 0o755;
/// Directories that belong to the system: no volume may cover one of them …
const SYSTEM: [&str; 26] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/dev/shm",
    "/etc",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/run/user",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/run",
    "/var/tmp",
];
/// … or lie below one of these.
const SYSTEM_TREES: [&str; 9] =
    ["/bin", "/boot", "/dev", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr"];

/// What volumes must keep clear of, and what they take over from `[policy]`.
pub(super) struct Surroundings {
    /// Owner and mode of files that nothing else is said about.
    ownership: FileOwnership,
    runtime_dir: PathBuf,
    operator_dir: PathBuf,
    sockets: Vec<PathBuf>,
    forbid_grace: Duration,
}

impl Surroundings {
    pub(super) fn new(
        host: &Host,
        agent: &AgentConfig,
        sockets: &SocketConfig,
        forbid_grace: Duration,
    ) -> Self {
        let operator = &sockets.operator.path;
        let node = sockets.node.as_ref().map(|node| &node.path);
        Self {
            ownership: FileOwnership { uid: host.uid, gid: host.gid, mode: 0o400 },
            runtime_dir: agent.runtime_dir.clone(),
            operator_dir: operator.parent().unwrap_or(operator).to_owned(),
            sockets: [&sockets.host.path, operator].into_iter().chain(node).cloned().collect(),
            forbid_grace,
        }
    }

    /// Why a volume cannot lie at this path.
    fn objection(&self, path: &Path) -> Option<String> {
        let shared_memory = path.starts_with("/dev/shm");
        if SYSTEM.iter().any(|system| path == Path::new(system)) {
            return Some("is a system directory, which a volume would hide".to_owned());
        }
        if let Some(tree) =
            SYSTEM_TREES.iter().find(|tree| path.starts_with(tree) && !shared_memory)
        {
            return Some(format!("lies below {tree}, which belongs to the system"));
        }
        if path.starts_with(&self.operator_dir) {
            return Some("lies in the operator socket's directory".to_owned());
        }
        let hidden = self.sockets.iter().chain([&self.runtime_dir]).find(|at| at.starts_with(path));
        hidden.map(|hidden| format!("would hide {}", hidden.display()))
    }
}

/// Every volume that is named, and those that are in order.
#[derive(Default)]
pub(super) struct Volumes {
    pub(super) names: Vec<(VolumeName, Place)>,
    pub(super) settings: Vec<DeclaredVolume>,
}

pub(super) fn read(root: &Section, sources: &Sources, surroundings: &Surroundings) -> Volumes {
    let mut volumes = Volumes::default();
    let mut paths: Vec<PathBuf> = Vec::new();
    for section in root.sections("volumes") {
        let name = name(&section, &mut volumes.names);
        let path = path(&section, surroundings, &mut paths);
        let volume = volume(&section, sources, surroundings, name, path);
        section.finish();
        volumes.settings.extend(volume);
    }
    volumes
}

fn name(section: &Section, names: &mut Vec<(VolumeName, Place)>) -> Option<VolumeName> {
    let field = section.require("name", "name the volume: grants and status use it")?;
    let name: VolumeName = field.parsed("use a-z, 0-9, '-', '_', '.'")?;
    if names.iter().any(|(other, _)| *other == name) {
        let message = format!("another volume is named \"{name}\" too");
        field.problem(message, "name it differently");
        return None;
    }
    names.push((name.clone(), field.place().clone()));
    Some(name)
}

fn path(
    section: &Section,
    surroundings: &Surroundings,
    paths: &mut Vec<PathBuf>,
) -> Option<PathBuf> {
    let remedy = "say where applications find it: path = \"/run/secrets-broker/volumes/…\"";
    let field = section.require("path", remedy)?;
    let path = field.absolute_path()?;
    let overlaps = |other: &&PathBuf| path.starts_with(other) || other.starts_with(&path);
    if let Some(other) = paths.iter().find(overlaps) {
        let message = format!("{} overlaps the volume at {}", field.quoted(), other.display());
        field.problem(message, "give every volume a directory of its own, none inside another");
    } else if let Some(objection) = surroundings.objection(&path) {
        let remedy = "use a directory of its own, for example below /run/secrets-broker/volumes";
        field.problem(format!("{} {objection}", field.quoted()), remedy);
    }
    paths.push(path.clone());
    Some(path)
}

fn volume(
    section: &Section,
    sources: &Sources,
    surroundings: &Surroundings,
    name: Option<VolumeName>,
    path: Option<PathBuf>,
) -> Option<DeclaredVolume> {
    let backing = backing(section);
    let defaults = ownership(section, surroundings.ownership);
    let items = items::read(section, sources, defaults);
    let actions = [("keep", OnProblem::Keep), ("remove", OnProblem::Remove)];
    let action = |name| section.choice(name, OnProblem::Keep, &actions);
    let config = VolumeConfig {
        defaults,
        on_stale: action("on_stale"),
        on_denied: action("on_denied"),
        on_gone: action("on_gone"),
        forbid_grace: section.duration("forbid_grace", surroundings.forbid_grace),
        retire_grace: section.duration("retire_grace", Duration::from_secs(30)),
        on_change: section.get("on_change").and_then(|field| on_change::read(&field)),
        on_change_batch: section.duration("on_change_batch", Duration::from_secs(1)),
        items,
        name: name?,
        path: path?,
    };
    Some(DeclaredVolume { config, backing })
}

fn backing(section: &Section) -> Backing {
    let own = section.choice("tmpfs", true, &[("own", true), ("existing", false)]);
    let size_bytes = section.size("size", 1 << 20);
    let inodes = u64::from(section.count("inodes", 128));
    let directory_mode = section.mode("directory_mode", 0o755, 0o755);
    if own {
        return Backing::OwnTmpfs { size_bytes, inodes, directory_mode };
    }
    for name in ["size", "inodes", "directory_mode"] {
        if let Some(field) = section.get(name) {
            let message = format!("{name} has no effect with tmpfs = \"existing\"");
            field.problem(message, "remove it, or set it where that tmpfs is mounted");
        }
    }
    Backing::ExistingTmpfs
}

/// `owner`, `group` and `mode` of a volume or item, where `outer` counts if one is not given.
pub(super) fn ownership(section: &Section, outer: FileOwnership) -> FileOwnership {
    let uid = section.get("owner").and_then(|field| accounts::user(&field)).unwrap_or(outer.uid);
    let group = section.get("group");
    let gid = group.as_ref().and_then(accounts::group).unwrap_or(outer.gid);
    let mode = section.mode("mode", outer.mode, FILE_BITS);
    if let Some(field) = group.filter(|_| mode & 0o040 == 0) {
        let message = format!("the group cannot read files of mode {mode:04o}");
        field.warning(message, "add mode = \"0440\", or remove group");
    }
    FileOwnership { uid, gid, mode }
}
