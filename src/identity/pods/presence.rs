//! The second source: what the node itself still has of a pod.
//!
//! | witness | says "present" | says "absent" |
//! |---|---|---|
//! | [`kubelet_directories`] | the kubelet's directory of the pod is there | it is not |
//! | [`processes`] | a process is in the pod's cgroup | none is |
//! | the CSI driver | never | the kubelet took the pod's last volume away; the directory knows it |

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::domain::PodUid;
use crate::mountinfo::{self, MountLine};

/// Longest cgroup file read.
const CGROUP_BYTES_MAX: u64 = 64 * 1024;

/// Whether a pod is still on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    Present,
    /// Nothing of it is left.
    Absent,
    /// This process cannot see it.
    Unknown,
}

/// Somebody who may know of pods; answers for all of them at once, in their order. Blocks.
pub type Witness = Box<dyn Fn(&[PodUid]) -> Vec<Presence> + Send + Sync>;

impl Presence {
    /// What several witnesses come to: whoever sees something of a pod is right, and one that can
    /// look and sees nothing is believed where nobody does.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Present, _) | (_, Self::Present) => Self::Present,
            (Self::Absent, _) | (_, Self::Absent) => Self::Absent,
            (Self::Unknown, Self::Unknown) => Self::Unknown,
        }
    }
}

/// Asks every witness about every pod.
pub(super) fn ask(witnesses: &[Witness], pods: &[PodUid]) -> BTreeMap<PodUid, Presence> {
    let mut all: BTreeMap<PodUid, Presence> =
        pods.iter().map(|pod| (pod.clone(), Presence::Unknown)).collect();
    for witness in witnesses {
        for (pod, answer) in pods.iter().zip(witness(pods)) {
            all.entry(pod.clone()).and_modify(|presence| *presence = presence.and(answer));
        }
    }
    all
}

/// Looks for pods' directories below the kubelet's root, which the kubelet removes when a pod's
/// containers have ended and its volumes are taken away.
pub fn kubelet_directories(kubelet_root: &str) -> Witness {
    let directory = PathBuf::from(kubelet_root).join("pods");
    Box::new(move |pods| {
        // In a container that is not shown the kubelet's directory everything is missing.
        let is_shown = directory.is_dir();
        let look = |pod: &PodUid| match directory.join(pod.as_str()).symlink_metadata() {
            Ok(_) => Presence::Present,
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_shown => Presence::Absent,
            Err(_) => Presence::Unknown,
        };
        pods.iter().map(look).collect()
    })
}

/// Looks for processes in pods' cgroups: a pod that has none has ended. For an agent in `own_pod`
/// that sees the node's processes, which the self-test has proved; `None` where `/proc` is mounted
/// so that it hides some.
pub fn processes(own_pod: PodUid) -> Option<Witness> {
    let proc = Path::new("/proc");
    let mounts = mountinfo::read().ok()?;
    let hides = mounts.iter().filter(|mount| mount.mount_point == proc).any(hides_processes);
    (!hides).then(|| processes_in(proc.to_owned(), own_pod))
}

fn hides_processes(mount: &MountLine) -> bool {
    let mut options = mount.options.split(',').chain(mount.super_options.split(','));
    options.any(|option| {
        option.starts_with("subset=")
            || option.strip_prefix("hidepid=").is_some_and(|how| !matches!(how, "0" | "off"))
    })
}

fn processes_in(proc: PathBuf, own_pod: PodUid) -> Witness {
    Box::new(move |pods| {
        let mut seen: Vec<bool> = pods.iter().map(|pod| *pod == own_pod).collect();
        let looked = each_cgroup(&proc, |cgroup| {
            for (seen, pod) in seen.iter_mut().zip(pods) {
                *seen = *seen || names(cgroup, pod);
            }
        });
        let unseen = if looked.is_ok() { Presence::Absent } else { Presence::Unknown };
        seen.iter().map(|seen| if *seen { Presence::Present } else { unseen }).collect()
    })
}

/// Hands out the text of every process's cgroup file. One that ends meanwhile is passed over.
fn each_cgroup(proc: &Path, mut tell: impl FnMut(&str)) -> io::Result<()> {
    let mut text = Vec::new();
    for entry in proc.read_dir()? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        text.clear();
        let file = File::open(entry.path().join("cgroup"));
        match file.and_then(|file| file.take(CGROUP_BYTES_MAX).read_to_end(&mut text)) {
            Ok(_) => tell(&String::from_utf8_lossy(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a process's cgroup file names a pod, as either of the kubelet's drivers spells it. Asked
/// loosely: who puts another pod's name there has that pod believed to be there, and no more.
fn names(cgroup: &str, pod: &PodUid) -> bool {
    cgroup.contains(pod.as_str()) || cgroup.contains(&pod.as_str().replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::pods::tests::uid;

    use Presence::{Absent, Present, Unknown};

    #[test]
    fn who_sees_something_is_right_and_who_sees_nothing_is_right_among_the_blind() {
        for (one, other, both) in [
            (Present, Absent, Present),
            (Present, Unknown, Present),
            (Absent, Unknown, Absent),
            (Present, Present, Present),
            (Absent, Absent, Absent),
            (Unknown, Unknown, Unknown),
        ] {
            assert_eq!((one.and(other), other.and(one)), (both, both), "{one:?} {other:?}");
        }
    }

    #[test]
    fn every_witness_is_asked_once_about_all_pods() {
        let says = |answers: [Presence; 3]| -> Witness {
            Box::new(move |pods| {
                assert_eq!(pods, [uid(0), uid(1), uid(2)]);
                answers.to_vec()
            })
        };
        let pods = [uid(0), uid(1), uid(2)];
        let all = ask(&[says([Absent, Absent, Unknown]), says([Present, Unknown, Unknown])], &pods);
        assert_eq!(all.into_values().collect::<Vec<_>>(), [Present, Absent, Unknown]);
        assert_eq!(ask(&[], &pods[..1])[&uid(0)], Unknown);
    }

    #[test]
    fn a_pod_without_its_directory_is_absent_only_where_the_others_can_be_seen() {
        let root = tempfile::tempdir().unwrap();
        let witness = kubelet_directories(root.path().to_str().unwrap());
        assert_eq!(witness(&[uid(0)]), [Unknown]);
        std::fs::create_dir_all(root.path().join("pods").join(uid(0).as_str())).unwrap();
        assert_eq!(witness(&[uid(0), uid(1)]), [Present, Absent]);
    }

    /// A `/proc` with these processes' cgroup files.
    fn proc(cgroups: &[&str]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        for (pid, cgroup) in cgroups.iter().enumerate() {
            let process = proc.path().join(format!("{}", pid + 1));
            std::fs::create_dir(&process).unwrap();
            std::fs::write(process.join("cgroup"), cgroup).unwrap();
        }
        std::fs::create_dir(proc.path().join("sys")).unwrap();
        proc
    }

    #[test]
    fn a_pod_is_present_while_a_process_is_in_its_cgroup_however_that_is_written() {
        let id = "4f3c0e6c2f7b8d9e0a1b2c3d4e5f60718293a4b5c6d7e8f90123456789abcdef";
        let slice = uid(1).as_str().replace('-', "_");
        let proc = proc(&[
            "0::/init.scope\n",
            &format!("4:pids:/\n2:memory:/kubepods/burstable/pod{}/{id}\n0::/\n", uid(0)),
            &format!("0::/../../kubepods-pod{slice}.slice/cri-containerd-{id}.scope/init\n"),
            &format!("0::/kubepods/pod{}/{id} (deleted)\n", uid(2)),
        ]);
        // A process that ends while it is looked at.
        std::fs::create_dir(proc.path().join("99")).unwrap();
        let witness = processes_in(proc.path().to_owned(), uid(4));
        let pods: Vec<PodUid> = (0..5).map(uid).collect();
        assert_eq!(witness(&pods), [Present, Present, Present, Absent, Present]);
    }

    #[test]
    fn who_cannot_look_at_all_processes_misses_no_pod() {
        let proc = proc(&[&format!("0::/kubepods/pod{}\n", uid(0))]);
        let nowhere = processes_in(proc.path().join("nowhere"), uid(4));
        assert_eq!(nowhere(&[uid(0), uid(4)]), [Unknown, Present]);
        // Not a file that was there and is not any more, so anything may be in it.
        std::fs::create_dir_all(proc.path().join("2/cgroup")).unwrap();
        let witness = processes_in(proc.path().to_owned(), uid(4));
        assert_eq!(witness(&[uid(1)]), [Unknown]);
    }

    #[test]
    fn a_proc_that_hides_processes_is_no_witness() {
        let mount = |options: &str| {
            let line = format!("22 1 0:20 / /proc rw,nosuid - proc proc {options}\n");
            mountinfo::parse(line.as_bytes()).remove(0)
        };
        assert!(!hides_processes(&mount("rw")) && !hides_processes(&mount("rw,hidepid=0")));
        for options in ["rw,hidepid=2", "rw,hidepid=invisible,gid=3", "rw,subset=pid"] {
            assert!(hides_processes(&mount(options)), "{options}");
        }
    }
}
