//! Processors of their own for servers and load. Left to itself, the scheduler moves a server's
//! threads between the load's processor and the other one, and one and the same server has twice
//! the rate in one run that it has in the next.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processors of this machine, shared out: the last one is the load's, the others are the
/// servers'. A single one is everybody's.
pub struct Cores {
    servers: CpuSet,
    load: CpuSet,
}

impl Cores {
    /// Shares out what this process may use.
    pub fn share_out() -> io::Result<Self> {
        let (mut servers, mut load) = (sched_getaffinity(None)?, CpuSet::new());
        let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| servers.is_set(*cpu));
        let last = last.ok_or_else(|| io::Error::other("no processors"))?;
        load.set(last);
        if servers.count() > 1 {
            servers.unset(last);
        }
        Ok(Self { servers, load })
    }

    /// Puts this thread, and all that it starts from here on, where servers run.
    pub fn be_a_server(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.servers)?)
    }

    /// Puts this thread where the load runs.
    pub fn be_the_load(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.load)?)
    }
}
