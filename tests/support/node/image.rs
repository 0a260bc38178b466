//! Images without a registry: a tar of files of this machine and a busybox.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, TempDir};

use super::run;

/// A file of an image.
#[derive(Clone)]
pub struct File {
    /// Where it is in the image: `/usr/bin/psql`.
    pub path: PathBuf,
    /// Where its content is on this machine.
    pub from: PathBuf,
    pub mode: u32,
}

/// A dynamically linked program as `/bin/<its name>`, with the libraries and the loader that it has
/// on this machine.
pub fn program_with_libraries(program: &Path) -> Vec<File> {
    let name = program.file_name().expect("a program's path");
    let executable =
        File { path: Path::new("/bin").join(name), from: program.to_owned(), mode: 0o755 };
    let listing = run(Command::new("ldd").arg(program));
    // "libc.so.6 => /lib/… (0x…)", "/lib64/ld-linux-x86-64.so.2 (0x…)"; the kernel's has no path.
    let libraries = listing.split_whitespace().filter(|word| word.starts_with('/'));
    let library = |path: &str| File { path: path.into(), from: path.into(), mode: 0o755 };
    std::iter::once(executable).chain(libraries.map(library)).collect()
}

/// An archive that `ctr images import` reads, as Docker saves one.
pub fn write_archive(dir: &Path, reference: &str, files: &[File]) -> NamedTempFile {
    let tree = TempDir::with_prefix_in("image-", dir).expect("create a directory");
    let layer = tree.path().join("layer.tar");
    pack(&lay_out(tree.path(), files), &layer);
    let content = fs::read(&layer).expect("read the layer");
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        // A pod's sandbox runs this as well, and lives as long as it does.
        "config": { "Env": ["PATH=/bin"], "Cmd": ["sleep", "infinity"] },
        "rootfs": {
            "type": "layers",
            "diff_ids": [format!("sha256:{}", hex::encode(Sha256::digest(content)))],
        },
    });
    let image = json!([
        { "Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"] },
    ]);
    let write = |name: &str, value: serde_json::Value| {
        fs::write(tree.path().join(name), value.to_string())
            .expect("write the image's description");
    };
    write("config.json", config);
    write("manifest.json", image);
    fs::remove_dir_all(tree.path().join("files")).expect("remove the layer's files");
    let archive = NamedTempFile::with_suffix_in(".tar", dir).expect("create a file");
    pack(tree.path(), archive.path());
    archive
}

/// The root directory of the image.
fn lay_out(tree: &Path, files: &[File]) -> PathBuf {
    let root = tree.join("files");
    let place = |file: &File| {
        let target = root.join(file.path.strip_prefix("/").expect("an absolute path"));
        fs::create_dir_all(target.parent().expect("a directory")).expect("create a directory");
        fs::copy(&file.from, &target)
            .unwrap_or_else(|error| panic!("copy {}: {error}", file.from.display()));
        set_mode(&target, file.mode);
    };
    files.iter().for_each(place);
    let busybox = busybox();
    place(&File { path: "/bin/busybox".into(), from: busybox.clone(), mode: 0o755 });
    for command in run(Command::new(busybox).arg("--list")).lines() {
        let link = root.join("bin").join(command);
        // It lists itself, and a real program may have one of its names.
        if !link.exists() {
            symlink("busybox", link).expect("link a command");
        }
    }
    fs::create_dir_all(root.join("tmp")).expect("create a directory");
    set_mode(&root.join("tmp"), 0o1777);
    root
}

fn pack(directory: &Path, archive: &Path) {
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--file").arg(archive).arg("--directory").arg(directory);
    tar.args(["--owner=0", "--group=0", "--numeric-owner", "--sort=name", "."]);
    run(&mut tar);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set a mode");
}

/// The statically linked one.
fn busybox() -> PathBuf {
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    let found = places.into_iter().find(|file| file.exists());
    found.expect("busybox is not installed: run tests/servers/build busybox")
}

/// As image configurations name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
