//! Wiping on a real tmpfs directory: readers, deadlines, mapped files.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;

use super::*;
use crate::delivery::files::testing::at;

const GRACE: Duration = Duration::from_secs(30);

/// A directory with one retired revision holding `a` and `d/b`.
fn retired() -> (tempfile::TempDir, Root, RevisionName, PathBuf) {
    crate::sys::ignore_sigio().unwrap();
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = rustix::fs::open(dir.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    let name = RevisionName::new(jiff::Timestamp::UNIX_EPOCH, 1);
    let path = dir.path().join(name.as_str());
    std::fs::create_dir_all(path.join("d")).unwrap();
    std::fs::write(path.join("a"), "secret a").unwrap();
    std::fs::write(path.join("d/b"), "secret b").unwrap();
    (dir, Root::handed_over(root, "a test", || Ok(BTreeSet::new())), name, path)
}

#[test]
fn a_revision_nobody_reads_is_gone_after_its_grace() {
    let (_dir, root, name, path) = retired();
    let mut wiper = Wiper::default();
    wiper.retire(name, at(100), GRACE);
    assert_eq!(wiper.run(&root, at(129)), Some(at(130)));
    assert!(path.join("a").exists());
    assert_eq!(wiper.run(&root, at(130)), None);
    assert!(!path.exists());
    assert_eq!(wiper.forced, 0);
}

#[test]
fn an_open_reader_is_not_zeroed_until_it_closes() {
    let (_dir, root, name, path) = retired();
    let mut reader = File::open(path.join("a")).unwrap();
    let mut wiper = Wiper::default();
    wiper.retire(name, at(0), GRACE);
    assert_eq!(wiper.run(&root, at(30)), Some(at(35)));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "secret a");
    assert!(!path.join("d").exists(), "what nobody reads does not wait");
    drop(reader);
    assert_eq!(wiper.run(&root, at(35)), None);
    assert!(!path.exists());
    assert_eq!(wiper.forced, 0);
}

#[test]
fn past_the_deadline_the_bytes_are_zeroed_under_the_reader_and_counted() {
    let (_dir, root, name, path) = retired();
    let mut reader = File::open(path.join("a")).unwrap();
    let mut wiper = Wiper::default();
    wiper.retire(name, at(0), GRACE);
    let deadline = at(30) + GRACE * DEADLINE_GRACES;
    assert!(wiper.run(&root, deadline - Duration::from_secs(1)).is_some());
    assert_eq!(wiper.run(&root, deadline), None);
    assert_eq!((wiper.forced, path.exists()), (1, false));
    let mut rest = Vec::new();
    reader.rewind().unwrap();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

/// Goal: the bytes themselves are overwritten, not only cut off.
/// Method: the step before the truncation, on a file of more than one page.
#[test]
fn a_wiped_file_is_overwritten_before_it_is_cut() {
    let (_dir, _root, _name, path) = retired();
    let long = "x".repeat(10_000);
    std::fs::write(path.join("a"), &long).unwrap();
    let file = OwnedFd::from(File::options().read(true).write(true).open(path.join("a")).unwrap());
    zero(&file).unwrap();
    assert_eq!(std::fs::read(path.join("a")).unwrap(), vec![0; long.len()]);
}

#[test]
fn read_only_files_of_our_own_are_wiped_too() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, root, name, path) = retired();
    std::fs::set_permissions(path.join("a"), std::fs::Permissions::from_mode(0o400)).unwrap();
    wipe_unseen(root.dir.as_fd(), &name).unwrap();
    assert!(!path.exists());
}

#[test]
fn a_revision_that_is_not_there_is_no_error() {
    let (_dir, root, ..) = retired();
    let other = RevisionName::new(jiff::Timestamp::UNIX_EPOCH, 9);
    wipe_unseen(root.dir.as_fd(), &other).unwrap();
}

#[test]
fn what_the_mounter_knows_to_be_mounted_elsewhere_is_kept() {
    let (dir, root, name, path) = retired();
    let inode = std::os::unix::fs::MetadataExt::ino(&path.join("a").metadata().unwrap());
    let root = Root::handed_over(root.dir, "a test", move || Ok(BTreeSet::from([inode])));
    let mut wiper = Wiper::default();
    wiper.retire(name, at(0), GRACE);
    assert_eq!(wiper.run(&root, at(30)), Some(at(35)));
    assert_eq!(std::fs::read_to_string(path.join("a")).unwrap(), "secret a");
    assert!(!path.join("d").exists());
    drop(dir);
}

/// An open that breaks a lease waits 45 s unless it says that it does not.
#[test]
fn a_lease_on_a_file_holds_nobody_up_and_its_file_is_wiped_once_it_ends() {
    let (_dir, root, name, path) = retired();
    let leased = OwnedFd::from(File::open(path.join("a")).unwrap());
    crate::sys::take_write_lease(leased.as_fd()).unwrap();
    let began = std::time::Instant::now();
    let file = "a".parse().unwrap();
    let read = super::super::apply::read(root.dir.as_fd(), &name, &file).map(drop);
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let mut wiper = Wiper::default();
    wiper.retire(name, at(0), GRACE);
    let deadline = at(30) + GRACE * DEADLINE_GRACES;
    assert!(wiper.run(&root, at(30)).is_some() && wiper.run(&root, deadline).is_some());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(!path.join("d").exists() && path.join("a").exists());
    drop(leased);
    assert_eq!(wiper.run(&root, deadline + Duration::from_secs(5)), None);
    assert!(!path.exists());
}
