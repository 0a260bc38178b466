//! Tells the service manager how far this process is: `sd_notify`, as systemd's `Type=notify`
//! expects it. Without a manager nothing is sent.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// The service manager's socket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("NOTIFY_SOCKET '{}' cannot be used; it is set by the service manager", address.display())]
pub struct NotifySocketError {
    address: OsString,
    #[source]
    source: io::Error,
}

/// The service manager, or nobody. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ServiceManager(Option<Arc<Manager>>);

#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Before, the manager would take the end of a reload for the end of the start.
    ready: AtomicBool,
}

impl ServiceManager {
    /// Nobody is told anything.
    pub fn none() -> Self {
        Self::default()
    }

    /// The manager that listens at `address`, which is the value of `$NOTIFY_SOCKET`: a path, or an
    /// abstract name after '@'.
    ///
    /// # Errors
    /// The address is neither, or no socket can be made.
    pub fn at(address: &OsStr) -> Result<Self, NotifySocketError> {
        let open = || {
            let parsed = match address.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
                [b'/', ..] => SocketAddr::from_pathname(address)?,
                _ => return Err(io::ErrorKind::InvalidInput.into()),
            };
            let socket = UnixDatagram::unbound()?;
            // A manager that does not read must not hold the agent up.
            socket.set_nonblocking(true)?;
            Ok(Manager { socket, address: parsed, ready: AtomicBool::new(false) })
        };
        match open() {
            Ok(manager) => Ok(Self(Some(Arc::new(manager)))),
            Err(source) => Err(NotifySocketError { address: address.to_owned(), source }),
        }
    }

    /// The start is over; `status` is one line for whoever looks.
    pub fn ready(&self, status: &str) {
        if let Some(manager) = &self.0 {
            manager.ready.store(true, Ordering::Relaxed);
            manager.send(&format!("READY=1\nSTATUS={status}"));
        }
    }

    /// Does `work`, a reload, and tells when it begins and how it ended.
    pub fn reload(&self, work: impl FnOnce() -> &'static str) {
        let manager = self.0.as_ref().filter(|manager| manager.ready.load(Ordering::Relaxed));
        if let Some(manager) = manager {
            manager.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_micros()));
        }
        let status = work();
        if let Some(manager) = manager {
            manager.send(&format!("READY=1\nSTATUS={status}"));
        }
    }

    /// The stop has begun.
    pub fn stopping(&self) {
        if let Some(manager) = &self.0 {
            manager.send("STOPPING=1\nSTATUS=stopping");
        }
    }
}

impl Manager {
    fn send(&self, message: &str) {
        if let Err(error) = self.socket.send_to_addr(message.as_bytes(), &self.address) {
            tracing::warn!(%error, "the service manager was not told the agent's state");
        }
    }
}

/// The clock that the manager compares with.
fn monotonic_micros() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(manager: &UnixDatagram) -> Vec<String> {
        manager.set_nonblocking(true).unwrap();
        let mut messages = Vec::new();
        let mut buffer = [0; 512];
        while let Ok(length) = manager.recv(&mut buffer) {
            messages.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        messages
    }

    #[test]
    fn a_manager_hears_ready_a_reload_between_two_states_and_the_stop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listening = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::at(path.as_os_str()).unwrap();
        manager.ready("serving");
        manager.reload(|| "new policy");
        manager.stopping();
        let told = told(&listening);
        assert_eq!(told[0], "READY=1\nSTATUS=serving");
        assert!(told[1].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{told:?}");
        assert_eq!(told[2], "READY=1\nSTATUS=new policy");
        assert_eq!(told[3], "STOPPING=1\nSTATUS=stopping");
        assert_eq!(told.len(), 4);
    }

    #[test]
    fn a_reload_during_the_start_does_not_end_the_start() {
        let name = format!("secrets-broker-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listening = UnixDatagram::bind_addr(&address).unwrap();
        let manager = ServiceManager::at(OsStr::new(&format!("@{name}"))).unwrap();
        let mut done = false;
        manager.reload(|| {
            done = true;
            "new policy"
        });
        assert!(done);
        assert_eq!(told(&listening), Vec::<String>::new());
    }

    #[test]
    fn an_address_that_is_none_is_refused_and_nobody_is_fine() {
        for address in ["", "relative", "vsock:2:1"] {
            assert!(ServiceManager::at(OsStr::new(address)).is_err(), "{address}");
        }
        ServiceManager::none().ready("serving");
        ServiceManager::none().stopping();
    }
}
