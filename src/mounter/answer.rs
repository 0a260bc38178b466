//! Answers one request, and logs it with its outcome.

use std::os::fd::OwnedFd;

use super::Failure;
use super::exchange::Answer;
use super::mounts::Mounts;
use super::protocol::{Reply, Request};
use super::target::Target;

/// Does what is asked. Blocks on system calls.
pub(super) fn answer(mounts: &Mounts, request: &Request) -> Answer {
    match carry_out(mounts, request) {
        Ok(answer) => {
            if request.changes_something() {
                tracing::info!(%request, "done");
            } else {
                tracing::debug!(%request, "answered");
            }
            answer
        }
        Err(failure) => {
            tracing::warn!(%request, error = %failure, "refused");
            (Reply::Failed(failure), None)
        }
    }
}

fn carry_out(mounts: &Mounts, request: &Request) -> Result<Answer, Failure> {
    let target = |path: &str| Target::parse(mounts.kubelet_root(), path);
    let (reply, root): (Reply, Option<OwnedFd>) = match request {
        Request::Prepare { key, size } => {
            let (root, noswap) = mounts.prepare(key, *size)?;
            (Reply::Prepared { noswap }, Some(root))
        }
        Request::Bind { key, target: path } => {
            mounts.bind(key, &target(path)?)?;
            (Reply::Done, None)
        }
        Request::Unbind { target: path } => {
            mounts.unbind(&target(path)?)?;
            (Reply::Done, None)
        }
        Request::Discard { key } => {
            mounts.discard(key)?;
            (Reply::Done, None)
        }
        Request::List { after } => {
            let (volumes, more) = mounts.list(after.as_ref())?;
            (Reply::Volumes { volumes, more }, None)
        }
        Request::MountedBelow { key } => (Reply::Inodes(mounts.mounted_below(key)?), None),
    };
    Ok((reply, root))
}
