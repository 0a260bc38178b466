//! Cgroups for this process to be in: a v2 hierarchy's, made below a name of its own.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// A directory of the hierarchy; leaving it puts this process back and removes what was made.
pub struct Cgroups {
    mount: PathBuf,
    before: String,
    /// The kubelet's root, as a path in the hierarchy.
    pub root: String,
}

impl Cgroups {
    /// Needs root and a v2 hierarchy; why not, otherwise.
    pub fn make() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let v2 = fields.find(|fields| fields.get(2) == Some(&"cgroup2"));
        let mount = v2.and_then(|fields| fields.get(1).map(PathBuf::from));
        let mount = mount.ok_or("no cgroup v2 hierarchy is mounted")?;
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        let before = own.lines().find_map(|line| line.strip_prefix("0::"));
        let before = before.ok_or("this process is in no v2 cgroup")?.to_owned();
        let root = format!("/sbbench{}/kubepods", std::process::id());
        let made = Self { mount, before, root };
        fs::create_dir_all(made.directory(&made.root))
            .map_err(|error| format!("cannot make cgroups: {error}"))?;
        Ok(made)
    }

    /// Puts this process into a container of a pod.
    pub fn enter(&self, pod: &str) -> io::Result<()> {
        let container = format!("{}/burstable/pod{pod}/{:0>64}", self.root, 7);
        let directory = self.directory(&container);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("cgroup.procs"), "0")
    }

    /// Puts this process back where it was.
    pub fn leave(&self) -> io::Result<()> {
        fs::write(self.directory(&self.before).join("cgroup.procs"), "0")
    }

    fn directory(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // Whatever is left is empty and has this process's id in its name.
        let _ = self.leave();
        let _ = self.directory(&self.root).parent().map_or(Ok(()), remove);
    }
}

/// Removes a directory with all below it; none of them holds files that can be removed.
fn remove(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}
