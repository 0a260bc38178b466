//! A process that does as it is told, one line at a time: the test's own binary, started anew.
//!
//! It has one thread, so it may fork. It ends with its input.

#![expect(unsafe_code, reason = "fork, clone3 with a chosen pid, the exit of one thread, exec")]

use std::ffi::CString;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Gid, Uid};
use rustix::io::{Errno, FdFlags, fcntl_setfd, read, write};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::thread::UnshareFlags;

use crate::agent;

/// What makes this binary a puppet.
pub(crate) const ARGUMENT: &str = "puppet";

/// How long it waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

type Outcome = Result<String, Box<dyn std::error::Error>>;

/// What it holds.
#[derive(Default)]
struct Puppet {
    sockets: Vec<OwnedFd>,
    meeting: Option<UnixListener>,
    created: Option<Created>,
}

/// A process that it made, which shares its descriptors.
struct Created {
    pid: Pid,
    /// Takes paths to connect to, and gives the descriptors of the connections.
    orders: BufReader<UnixStream>,
    /// Its own end.
    _theirs: UnixStream,
}

/// Obeys until the input ends.
pub(crate) fn obey() {
    Puppet::default().obey();
}

impl Puppet {
    fn obey(mut self) {
        while let Some(line) = read_line() {
            let answer = match self.act(&line) {
                Ok(answer) => format!("ok {answer}\n"),
                Err(error) => format!("error {error}\n"),
            };
            if write(std::io::stdout(), answer.as_bytes()).is_err() {
                break;
            }
            if line == "leave-main-thread" {
                std::thread::spawn(|| self.obey());
                // SAFETY: ends this thread only; nothing on its stack is shared with the other.
                unsafe { libc::syscall(libc::SYS_exit, 0) };
                unreachable!("this thread has exited");
            }
        }
        self.end_created();
        std::process::exit(0);
    }

    fn act(&mut self, line: &str) -> Outcome {
        let words: Vec<&str> = line.split(' ').collect();
        match *words.as_slice() {
            ["connect", path] => self.connect(path)?,
            ["hang-up"] => self.sockets.clear(),
            // Who was refused already is told so by `hear`.
            ["ask"] => _ = write(self.socket()?, agent::request(None).as_bytes()),
            ["ask", token] => _ = write(self.socket()?, agent::request(Some(token)).as_bytes()),
            ["hear"] => return self.hear(),
            ["hear-out"] => return self.hear_out(),
            // SAFETY: the program that ran here before left this descriptor open for us.
            ["adopt", fd] => self.sockets.push(unsafe { OwnedFd::from_raw_fd(fd.parse()?) }),
            ["make", path] => std::fs::create_dir_all(path)?,
            ["enter", path] => std::fs::write(Path::new(path).join("cgroup.procs"), "0")?,
            ["become", uid, gid] => become_user(uid, gid, &[])?,
            ["become", uid, gid, ref groups @ ..] => become_user(uid, gid, groups)?,
            ["call-itself", ..] => {
                let name = CString::new(line.strip_prefix("call-itself ").unwrap_or_default())?;
                rustix::thread::set_name(&name)?;
            }
            ["own-mounts"] => own_mounts(UnshareFlags::NEWNS)?,
            ["own-users"] => own_mounts(UnshareFlags::NEWNS | UnshareFlags::NEWUSER)?,
            ["bind", from, to] => mount_bind(from, to)?,
            ["await", path] => {
                drop(std::fs::remove_file(path));
                self.meeting = Some(UnixListener::bind(path)?);
            }
            ["pass", path] => pass(self.socket()?, path)?,
            ["take"] => self.take()?,
            ["create", pid] => self.created = Some(create(pid.parse()?)?),
            ["created-connects", path] => self.created_connects(path)?,
            ["end-created"] => self.end_created(),
            ["fork-and-exit"] => return fork_and_exit(),
            ["exec", ref program @ ..] => self.exec(program)?,
            ["leave-main-thread" | "exit"] => {}
            _ => return Err(format!("no such act: {line}").into()),
        }
        if line == "exit" {
            write(std::io::stdout(), b"ok\n")?;
            std::process::exit(0);
        }
        Ok(String::new())
    }

    fn socket(&self) -> Result<&OwnedFd, String> {
        self.sockets.last().ok_or_else(|| "not connected".to_owned())
    }

    fn connect(&mut self, path: &str) -> std::io::Result<()> {
        self.hold(UnixStream::connect(path)?)
    }

    fn hold(&mut self, stream: UnixStream) -> std::io::Result<()> {
        // A server that neither answers nor hangs up is an error.
        stream.set_read_timeout(Some(PATIENCE))?;
        self.sockets.push(stream.into());
        Ok(())
    }

    /// What the other end answered, in one line; nothing if it hung up.
    fn hear(&self) -> Outcome {
        let mut reply = [0; 4096];
        match read(self.socket()?, &mut reply) {
            Ok(length) => Ok(String::from_utf8_lossy(&reply[..length]).replace(['\r', '\n'], " ")),
            Err(Errno::CONNRESET) => Ok(String::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn hear_out(&self) -> Outcome {
        let mut all = String::new();
        loop {
            match self.hear()? {
                more if more.is_empty() => return Ok(all),
                more => all += &more,
            }
        }
    }

    fn take(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let (stream, _) = self.meeting.as_ref().ok_or("nobody is awaited")?.accept()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::empty())?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.sockets.extend(descriptors);
            }
        }
        Ok(())
    }

    /// Answers first, since afterwards somebody else runs here.
    fn exec(&self, program: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
        fcntl_setfd(self.socket()?, FdFlags::empty())?;
        let words: Result<Vec<CString>, _> =
            program.iter().map(|word| CString::new(*word)).collect();
        let words = words?;
        let mut arguments: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
        arguments.push(std::ptr::null());
        write(std::io::stdout(), format!("ok {}\n", self.socket()?.as_raw_fd()).as_bytes())?;
        // SAFETY: the strings are terminated and the list ends with a null pointer.
        unsafe { libc::execv(arguments[0], arguments.as_ptr()) };
        Err(std::io::Error::last_os_error().into())
    }

    fn created_connects(&mut self, path: &str) -> Result<(), Box<dyn std::error::Error>> {
        let orders = &mut self.created.as_mut().ok_or("nobody was created")?.orders;
        writeln!(orders.get_mut(), "{path}")?;
        let mut fd = String::new();
        orders.read_line(&mut fd)?;
        // SAFETY: that process has this descriptor in our common table, and leaves it to us.
        let stream = unsafe { OwnedFd::from_raw_fd(fd.trim().parse()?) };
        Ok(self.hold(stream.into())?)
    }

    fn end_created(&mut self) {
        if let Some(Created { pid, .. }) = self.created.take() {
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

fn read_line() -> Option<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while read(std::io::stdin(), &mut byte).ok()? == 1 {
        if byte[0] == b'\n' {
            return String::from_utf8(line).ok();
        }
        line.push(byte[0]);
    }
    None
}

fn become_user(uid: &str, gid: &str, groups: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
    let (uid, gid) = (Uid::from_raw(uid.parse()?), Gid::from_raw(gid.parse()?));
    let groups: Result<Vec<Gid>, _> = groups.iter().map(|g| g.parse().map(Gid::from_raw)).collect();
    rustix::thread::set_thread_groups(&groups?)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // Otherwise its own files in /proc belong to root.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
    Ok(())
}

fn own_mounts(flags: UnshareFlags) -> Result<(), Box<dyn std::error::Error>> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // SAFETY: no file descriptor table is unshared, which is what this call cannot vouch for.
    unsafe { rustix::thread::unshare_unsafe(flags)? };
    if flags.contains(UnshareFlags::NEWUSER) {
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

fn pass(socket: &OwnedFd, path: &str) -> Result<(), Box<dyn std::error::Error>> {
    let stream = UnixStream::connect(path)?;
    let descriptors = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(&stream, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// The child goes on with what the parent held; the parent is gone when this returns in the child.
fn fork_and_exit() -> Outcome {
    let parent = rustix::process::getpid();
    let handle = rustix::process::pidfd_open(parent, rustix::process::PidfdFlags::empty())?;
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error().into()),
        0 => {
            let mut fds = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None)?;
            Ok(std::process::id().to_string())
        }
        // SAFETY: ends the process at once; buffers are not flushed, and nothing was buffered.
        _ => unsafe { libc::_exit(0) },
    }
}

/// A process with a pid of our choice, which connects as it is told until it is ended.
fn create(pid: i32) -> Result<Created, Box<dyn std::error::Error>> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(PATIENCE))?;
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(libc::CLONE_FILES.unsigned_abs());
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.set_tid = (&raw const pid) as u64;
    arguments.set_tid_size = 1;
    // SAFETY: like fork in a process of one thread; the arguments live as long as the call.
    let created = unsafe {
        libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>())
    };
    match created {
        -1 => Err(std::io::Error::last_os_error().into()),
        0 => connect_as_told(&theirs),
        _ => {
            let pid = Pid::from_raw(pid).ok_or("no pid")?;
            Ok(Created { pid, orders: BufReader::new(ours), _theirs: theirs })
        }
    }
}

fn connect_as_told(orders: &UnixStream) -> ! {
    for path in BufReader::new(orders).lines().map_while(Result::ok) {
        let Ok(stream) = UnixStream::connect(path) else { break };
        let mut answer = orders;
        if writeln!(answer, "{}", stream.into_raw_fd()).is_err() {
            break;
        }
    }
    // SAFETY: ends the process at once, which owns no descriptor alone.
    unsafe { libc::_exit(1) }
}
