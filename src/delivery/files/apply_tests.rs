//! The layout on a real directory, and what readers see while it changes.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::delivery::files::render::RenderedFile;
use crate::delivery::files::testing::own_files;

fn volume() -> (tempfile::TempDir, OwnedFd) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = rustix::fs::open(dir.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    (dir, root)
}

fn revision(number: u32) -> RevisionName {
    RevisionName::new(jiff::Timestamp::UNIX_EPOCH, number)
}

fn write(name: &str, content: &str, mode: u32) -> PlannedFile {
    PlannedFile::Write(RenderedFile {
        name: name.parse().unwrap(),
        content: Zeroizing::new(content.as_bytes().to_vec()),
        ownership: own_files(mode),
    })
}

fn publish_all(root: &OwnedFd, number: u32, files: &[PlannedFile]) -> Result<(), ApplyError> {
    let old = present(root.as_fd()).unwrap();
    publish(root.as_fd(), &revision(number), files, old.as_ref())?;
    link(root.as_fd(), &files.iter().map(PlannedFile::name).collect())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_revision_has_its_content_mode_and_directories_behind_one_link() {
    let (dir, root) = volume();
    publish_all(&root, 1, &[write("token", "t1", 0o440), write("tls/a/key", "k", 0o400)]).unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("token")).unwrap(), "t1");
    assert_eq!(std::fs::read_to_string(dir.path().join("tls/a/key")).unwrap(), "k");
    let mode = |name: &str| dir.path().join(name).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode("token"), mode("tls/a/key"), mode("tls/a"), mode("..data")),
        (0o440, 0o400, 0o755, 0o755)
    );
    let one = revision(1).to_string();
    assert_eq!(names(dir.path()), [one.as_str(), "..data", "tls", "token"]);
    assert_eq!(dir.path().join("tls").read_link().unwrap(), Path::new("..data/tls"));
}

#[test]
fn files_are_carried_over_and_names_that_are_gone_lose_their_link() {
    let (dir, root) = volume();
    publish_all(&root, 1, &[write("a", "1", 0o440), write("b", "2", 0o400)]).unwrap();
    let carry = PlannedFile::Carry("b".parse().unwrap());
    publish_all(&root, 2, &[carry, write("c", "3", 0o440)]).unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("b")).unwrap(), "2");
    assert_eq!(dir.path().join("b").metadata().unwrap().mode() & 0o777, 0o400);
    assert!(dir.path().join("a").symlink_metadata().is_err());
    let mut listed = list(root.as_fd(), &revision(2)).unwrap();
    listed.sort();
    assert_eq!(listed.iter().map(FileName::as_str).collect::<Vec<_>>(), ["b", "c"]);
}

#[test]
fn what_is_not_ours_is_never_replaced_or_followed() {
    let (dir, root) = volume();
    std::fs::write(dir.path().join("mine"), "precious").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
    for name in ["mine", "link", "link/below"] {
        let refused = publish_all(&root, 1, &[write(name, "x", 0o440)]);
        assert!(matches!(refused, Err(ApplyError::InTheWay(_))), "{name}");
    }
    publish_all(&root, 1, &[write("fine", "x", 0o440)]).unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("mine")).unwrap(), "precious");
    assert_eq!(dir.path().join("link").read_link().unwrap(), Path::new("/etc/passwd"));
}

#[test]
fn a_link_planted_inside_a_revision_is_not_followed() {
    let (dir, root) = volume();
    let outside = tempfile::tempdir_in("/dev/shm").unwrap();
    publish_all(&root, 1, &[write("d/a", "1", 0o440)]).unwrap();
    let inside = dir.path().join(revision(1).as_str()).join("d");
    std::fs::rename(&inside, inside.with_extension("moved")).unwrap();
    std::os::unix::fs::symlink(outside.path(), &inside).unwrap();
    std::fs::write(outside.path().join("a"), "foreign").unwrap();
    assert!(read(root.as_fd(), &revision(1), &"d/a".parse().unwrap()).is_err());
}

#[test]
fn a_revision_that_fails_half_way_leaves_nothing_behind() {
    let (dir, root) = volume();
    publish_all(&root, 1, &[write("a", "1", 0o440)]).unwrap();
    let missing = PlannedFile::Carry("nowhere".parse().unwrap());
    assert!(publish_all(&root, 2, &[write("a", "2", 0o440), missing]).is_err());
    assert_eq!(std::fs::read_to_string(dir.path().join("a")).unwrap(), "1");
    assert_eq!(names(dir.path()), [revision(1).as_str(), "..data", "a"]);
}

#[test]
fn an_unfinished_swap_of_a_dead_process_is_no_obstacle() {
    let (dir, root) = volume();
    std::os::unix::fs::symlink("..gone", dir.path().join("..data_tmp")).unwrap();
    publish_all(&root, 1, &[write("a", "1", 0o440)]).unwrap();
    assert_eq!(present(root.as_fd()).unwrap(), Some(revision(1)));
}

/// Goal: a reader that holds a directory descriptor sees both files of one revision, always.
/// Method: 2 000 swaps while readers open `..data` and read both files below it; as with the real
/// grace, replaced revisions outlive every reader.
#[test]
fn readers_by_directory_never_see_a_mix_or_a_missing_file() {
    const SWAPS_LEAST: u32 = 2_000;
    const FEW_READS: u32 = 10;
    let (dir, root) = volume();
    let pair = |n: u32| {
        [write("user", &format!("u{n}"), 0o440), write("password", &format!("u{n}"), 0o440)]
    };
    publish_all(&root, 0, &pair(0)).unwrap();
    let done = AtomicBool::new(false);
    let reads = [AtomicU32::new(0), AtomicU32::new(0)];
    let mut last = 0;
    std::thread::scope(|scope| {
        let (dir, done) = (&dir, &done);
        let reader = move |reads: &AtomicU32| {
            while !done.load(Ordering::Relaxed) {
                let data =
                    rustix::fs::open(dir.path().join("..data"), OFlags::DIRECTORY, Mode::empty())
                        .unwrap();
                let read = |name: &str| {
                    let file = rustix::fs::openat(&data, name, OFlags::RDONLY, Mode::empty())?;
                    let mut bytes = [0; 16];
                    let length = rustix::io::read(&file, &mut bytes)?;
                    Ok::<_, Errno>(bytes[..length].to_vec())
                };
                let (user, password) = (read("user").unwrap(), read("password").unwrap());
                assert_eq!(user, password);
                reads.fetch_add(1, Ordering::Relaxed);
            }
        };
        let readers = reads.each_ref().map(|reads| scope.spawn(move || reader(reads)));
        // On a busy machine a reader may have to wait for its turn.
        let few = |reads: &AtomicU32| reads.load(Ordering::Relaxed) <= FEW_READS;
        while last < SWAPS_LEAST
            || (reads.iter().any(few) && !readers.iter().any(|reader| reader.is_finished()))
        {
            last += 1;
            publish(root.as_fd(), &revision(last), &pair(last), Some(&revision(last - 1))).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
        assert!(!reads.iter().any(few), "{reads:?}");
    });
    for n in 0..last {
        wipe::wipe_unseen(root.as_fd(), &revision(n)).unwrap();
    }
    assert_eq!(revisions(root.as_fd()).unwrap(), [revision(last)]);
}
