//! What the mounter gives up before it serves: every capability but one, and most system calls.
//!
//! The list below is what serving takes on the C libraries we build with; everything else answers
//! `EPERM`. Not on it, on purpose: sockets of any kind, new programs and processes, tracing, other
//! namespaces, bpf, performance events, kernel modules, kexec, file handles, executable memory.

use std::collections::BTreeMap;

use rustix::io::Errno;
use rustix::mm::munlockall;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Mounting takes it. Nothing else is needed: what the mounter touches belongs to root, as it does.
const KEPT: CapabilitySet = CapabilitySet::SYS_ADMIN;
/// Capabilities the kernel could know; it refuses numbers behind its last one.
const CAPABILITIES_MAX: u32 = 64;

/// Why the sandbox could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A capability stayed.
    #[error(
        "cannot give up capabilities; run the mounter as root with CAP_SYS_ADMIN and CAP_SETPCAP"
    )]
    Capabilities(#[source] std::io::Error),
    /// The kernel took no filter.
    #[error("cannot filter system calls; the kernel needs CONFIG_SECCOMP_FILTER")]
    Filter(#[source] seccompiler::Error),
    /// No filter exists for this processor.
    #[error("system calls cannot be filtered on this processor")]
    Processor(#[source] seccompiler::BackendError),
}

/// Gives up everything but `CAP_SYS_ADMIN`, for this thread and those it starts from now on.
pub fn drop_capabilities() -> Result<(), SandboxError> {
    drop_all_but_kept().map_err(|errno| SandboxError::Capabilities(errno.into()))
}

fn drop_all_but_kept() -> Result<(), Errno> {
    // Under a limit, locked memory makes later allocations fail once CAP_IPC_LOCK is gone. There is
    // nothing to lock: no file's content is ever read here.
    munlockall()?;
    for number in 0..CAPABILITIES_MAX {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if capability == KEPT {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Err(Errno::INVAL) => break,
            removed => removed?,
        }
    }
    clear_ambient_capability_set()?;
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: KEPT, permitted: KEPT, inheritable })?;
    set_no_new_privs(true)
}

/// Filters the system calls of every thread of this process, for good.
pub fn confine_all_threads() -> Result<(), SandboxError> {
    let program = program().map_err(SandboxError::Processor)?;
    seccompiler::apply_filter_all_threads(&program).map_err(SandboxError::Filter)
}

fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let processor = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules()?, refused, SeccompAction::Allow, processor)?.try_into()
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for group in [MOUNTS, FILES, PACKETS, MEMORY, PROCESS] {
        rules.extend(group.iter().map(|number| (*number, Vec::new())));
    }
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(number, vec![never_executable()?]);
    }
    Ok(rules)
}

/// The third argument of `mmap` and `mprotect` without `PROT_EXEC`.
fn never_executable() -> Result<SeccompRule, seccompiler::BackendError> {
    let executable = SeccompCmpOp::MaskedEq(u64::from(libc::PROT_EXEC.unsigned_abs()));
    let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, executable, 0)?;
    SeccompRule::new(vec![condition])
}

const MOUNTS: &[i64] = &[
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_umount2,
];

const FILES: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
];

/// On sockets that are there, or that a connection brings, and on the peer's process.
const PACKETS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_ppoll,
];

const MEMORY: &[i64] =
    &[libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_getrandom];

const PROCESS: &[i64] = &[
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
