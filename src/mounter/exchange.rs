//! Turns a [`Mounter`]'s calls into requests and their replies into results, for both mounters.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use async_trait::async_trait;

use super::protocol::{ProtocolError, Reply, Request};
use super::{Mounted, Mounter, MounterError, Prepared, Target, TmpfsSize, VolumeKey};

/// Whoever has requests answered.
pub(super) trait Exchange: Clone + Send + Sync + 'static {
    /// The answer to one request. A [`Reply::Prepared`] comes with a descriptor, no other does.
    /// Blocks.
    fn exchange(&self, request: &Request) -> Result<Answer, MounterError>;
}

/// A reply and the descriptor that came with it.
pub(super) type Answer = (Reply, Option<OwnedFd>);

/// Has a request answered on the blocking pool.
async fn ask(to: &impl Exchange, request: Request) -> Result<Answer, MounterError> {
    let (to, asked) = (to.clone(), request.to_string());
    match tokio::task::spawn_blocking(move || ask_here(&to, &request)).await {
        Ok(answer) => answer,
        Err(_) => Err(MounterError::Interrupted { request: asked }),
    }
}

/// Has a request answered; a refusal becomes an error. Blocks.
fn ask_here(to: &impl Exchange, request: &Request) -> Result<Answer, MounterError> {
    match to.exchange(request)? {
        (Reply::Failed(failure), _) => {
            Err(MounterError::Failed { request: request.to_string(), failure })
        }
        answer => Ok(answer),
    }
}

fn unexpected(request: &str) -> MounterError {
    MounterError::Answer { request: request.to_owned(), source: ProtocolError::Unexpected }
}

async fn done(to: &impl Exchange, request: Request) -> Result<(), MounterError> {
    let asked = request.to_string();
    match ask(to, request).await? {
        (Reply::Done, None) => Ok(()),
        _ => Err(unexpected(&asked)),
    }
}

#[async_trait]
impl<T: Exchange> Mounter for T {
    async fn prepare(&self, key: &VolumeKey, size: TmpfsSize) -> Result<Prepared, MounterError> {
        let request = Request::Prepare { key: key.clone(), size };
        let asked = request.to_string();
        match ask(self, request).await? {
            (Reply::Prepared { noswap }, Some(root)) => Ok(Prepared {
                root,
                description: if noswap {
                    "tmpfs noswap"
                } else {
                    "tmpfs (no noswap: kernel before 6.4)"
                },
            }),
            _ => Err(unexpected(&asked)),
        }
    }

    async fn bind(&self, key: &VolumeKey, target: &Target) -> Result<(), MounterError> {
        let target = target.as_str().to_owned();
        done(self, Request::Bind { key: key.clone(), target }).await
    }

    async fn unbind(&self, target: &Target) -> Result<(), MounterError> {
        done(self, Request::Unbind { target: target.as_str().to_owned() }).await
    }

    async fn discard(&self, key: &VolumeKey) -> Result<(), MounterError> {
        done(self, Request::Discard { key: key.clone() }).await
    }

    async fn list(&self) -> Result<Vec<Mounted>, MounterError> {
        let mut found: Vec<Mounted> = Vec::new();
        loop {
            let after = found.last().map(|last| last.key.clone());
            let request = Request::List { after: after.clone() };
            let asked = request.to_string();
            let (Reply::Volumes { volumes, more }, None) = ask(self, request).await? else {
                return Err(unexpected(&asked));
            };
            // Every page moves on, so this ends with the directory.
            let moves_on = volumes.first().is_some_and(|first| after < Some(first.key.clone()));
            found.extend(volumes);
            match (more, moves_on) {
                (false, _) => return Ok(found),
                (true, true) => {}
                (true, false) => return Err(unexpected(&asked)),
            }
        }
    }

    fn mounted_below(&self, key: &VolumeKey) -> Result<BTreeSet<u64>, MounterError> {
        let request = Request::MountedBelow { key: key.clone() };
        match ask_here(self, &request)? {
            (Reply::Inodes(inodes), None) => Ok(inodes.into_iter().collect()),
            _ => Err(unexpected(&request.to_string())),
        }
    }
}
