//! Callers on pods' sockets: curl, each in its pod's cgroup.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::pod_cgroups::inside;

/// Between a reply and its status, and behind each status; neither is in any reply.
const STATUS: char = '\u{1d}';
const END: char = '\u{1e}';

/// One reply with its head.
pub struct Reply {
    pub status: u16,
    pub text: String,
}

/// What a process in this cgroup gets of these paths (`/v1/…`) from the socket in a directory, all
/// on one connection.
pub fn ask(cgroup: PathBuf, directory: &Path, paths: &[String]) -> Vec<Reply> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--include", "--noproxy", "*", "--unix-socket", "broker.sock"]);
    curl.args(["--write-out", &format!("{STATUS}%{{http_code}}{END}"), "--config", "-"]);
    // A socket's whole path is longer than its address may be.
    let mut child = inside(&[cgroup], &curl)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start curl");
    let urls = paths.iter().map(|path| format!("url = \"http://localhost{path}\"\n"));
    let mut input = child.stdin.take().expect("its input");
    input.write_all(urls.collect::<String>().as_bytes()).expect("name the paths");
    drop(input);
    let output = child.wait_with_output().expect("run curl");
    let text = String::from_utf8_lossy(&output.stdout);
    let replies = text.split_terminator(END).map(|reply| {
        let (text, status) = reply.rsplit_once(STATUS).expect("curl writes a status");
        Reply { status: status.parse().expect("a number"), text: text.to_owned() }
    });
    let replies: Vec<Reply> = replies.collect();
    assert_eq!(replies.len(), paths.len(), "a reply for each path: {}", output.status);
    replies
}
