//! The sandbox: what a mounter that was taken over cannot do any more.

use std::process::Command;

use secrets_broker::mounter::sandbox;

use crate::rig::{Rig, in_own_namespace, key};

/// Calls with arguments that harm nothing where they are allowed: the kernel then answers with
/// anything but `EPERM`.
const DENIED: [(&str, libc::c_long, [libc::c_long; 6]); 31] = [
    ("socket(AF_INET)", libc::SYS_socket, [2, 1, 0, 0, 0, 0]),
    ("socket(AF_UNIX)", libc::SYS_socket, [1, 1, 0, 0, 0, 0]),
    ("socket(AF_NETLINK)", libc::SYS_socket, [16, 3, 0, 0, 0, 0]),
    ("socketpair", libc::SYS_socketpair, [1, 1, 0, 0, 0, 0]),
    ("connect", libc::SYS_connect, [-1, 0, 0, 0, 0, 0]),
    ("bind", libc::SYS_bind, [-1, 0, 0, 0, 0, 0]),
    ("execve", libc::SYS_execve, [0; 6]),
    ("execveat", libc::SYS_execveat, [-1, 0, 0, 0, 0, 0]),
    ("clone", libc::SYS_clone, [libc::CLONE_SIGHAND as libc::c_long, 0, 0, 0, 0, 0]),
    ("clone3", libc::SYS_clone3, [0; 6]),
    ("ptrace", libc::SYS_ptrace, [16, 0, 0, 0, 0, 0]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [0, 0, 0, 0, 0, 1]),
    ("bpf", libc::SYS_bpf, [-1, 0, 0, 0, 0, 0]),
    ("perf_event_open", libc::SYS_perf_event_open, [0, -2, -2, -1, -1, 0]),
    ("kexec_load", libc::SYS_kexec_load, [0, 1 << 20, 0, -1, 0, 0]),
    ("init_module", libc::SYS_init_module, [0; 6]),
    ("finit_module", libc::SYS_finit_module, [-1, 0, 0, 0, 0, 0]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [-1, 0, 0, 0, 0, 0]),
    ("setns", libc::SYS_setns, [-1, 0, 0, 0, 0, 0]),
    ("unshare", libc::SYS_unshare, [0; 6]),
    ("mount", libc::SYS_mount, [0; 6]),
    ("chroot", libc::SYS_chroot, [0; 6]),
    ("pivot_root", libc::SYS_pivot_root, [0; 6]),
    ("mknodat", libc::SYS_mknodat, [-1, 0, 0, 0, 0, 0]),
    ("keyctl", libc::SYS_keyctl, [-1, 0, 0, 0, 0, 0]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0; 6]),
    ("userfaultfd", libc::SYS_userfaultfd, [-1, 0, 0, 0, 0, 0]),
    ("memfd_create", libc::SYS_memfd_create, [0; 6]),
    ("setuid", libc::SYS_setuid, [-1, 0, 0, 0, 0, 0]),
    ("prctl", libc::SYS_prctl, [-1, 0, 0, 0, 0, 0]),
    // Writable and executable memory.
    ("mmap", libc::SYS_mmap, [0, 4096, 7, 0x22, -1, 0]),
];

/// The names of those that answer `EPERM`.
fn refused() -> Vec<&'static str> {
    let answers_eperm = |number, [a, b, c, d, e, f]: [libc::c_long; 6]| {
        #[expect(unsafe_code, reason = "no safe wrapper makes calls with harmless bad arguments")]
        // SAFETY: pointers are null and descriptors invalid, so the kernel touches no memory of
        // ours; the one new mapping is not of an address in use.
        let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
        result == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
    };
    let calls = DENIED.into_iter();
    calls.filter(|(_, number, of)| answers_eperm(*number, *of)).map(|(name, ..)| name).collect()
}

const SANDBOXED: &str = "MOUNTER_TEST_SANDBOXED";

/// The sandbox is for good, so children enter it and try.
#[test]
fn every_class_of_system_calls_that_is_denied_works_without_the_sandbox_and_fails_in_it() {
    let test = "denied::every_class_of_system_calls_that_is_denied_works_without_the_sandbox_and_\
                fails_in_it";
    match std::env::var(SANDBOXED).as_deref() {
        Ok("yes") => {
            if rustix::process::geteuid().is_root() {
                sandbox::drop_capabilities().unwrap();
            }
            rustix::thread::set_no_new_privs(true).unwrap();
            sandbox::confine_all_threads().unwrap();
            eprintln!("REFUSED {}", refused().join(","));
            // Whoever serves goes on to serve.
            assert!(std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" / "));
        }
        Ok(_) => eprintln!("REFUSED {}", refused().join(",")),
        Err(_) => {
            let all = DENIED.map(|(name, ..)| name).join(",");
            assert_eq!(child(test, "yes"), all);
            let root = rustix::process::geteuid().is_root();
            let weak = child(test, "no");
            if root {
                assert_eq!(weak, "", "the weak variant is refused these anyway");
            } else {
                eprintln!("NOT ROOT: without the sandbox the kernel refuses this user {weak}");
                assert!(!weak.contains("socket") && !weak.contains("exec"));
            }
        }
    }
}

fn child(test: &str, sandboxed: &str) -> String {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(SANDBOXED, sandboxed)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&child.stderr).into_owned();
    let refused = errors.lines().find_map(|line| line.strip_prefix("REFUSED "));
    refused.unwrap_or_else(|| panic!("{}: {errors}", child.status)).to_owned()
}

#[test]
fn every_thread_of_the_mounter_has_one_capability_and_a_filter() {
    if !in_own_namespace("denied::every_thread_of_the_mounter_has_one_capability_and_a_filter") {
        return;
    }
    let rig = Rig::start();
    drop(rig.publish(&key("secrets"), "t1"));
    let tasks = std::fs::read_dir(format!("/proc/{}/task", rig.mounter.pid())).unwrap();
    let mut seen = 0;
    for task in tasks {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().to_owned()
        };
        let sys_admin = format!("{:016x}", 1 << 21);
        for (set, bits) in [
            ("CapEff:", sys_admin.as_str()),
            ("CapPrm:", sys_admin.as_str()),
            ("CapBnd:", sys_admin.as_str()),
            ("CapInh:", "0000000000000000"),
            ("CapAmb:", "0000000000000000"),
            ("Seccomp:", "2"),
            ("NoNewPrivs:", "1"),
        ] {
            assert_eq!(field(set), bits, "{set} {status}");
        }
        seen += 1;
    }
    assert_eq!(seen, 6, "main, signals and four that serve");
    // No network: the socket it listens on, and no other.
    let sockets = || {
        let links = std::fs::read_dir(format!("/proc/{}/fd", rig.mounter.pid())).unwrap();
        let is_socket = |link: &std::fs::DirEntry| {
            let to = std::fs::read_link(link.path());
            to.is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
        };
        links.filter_map(Result::ok).filter(is_socket).count()
    };
    // The connection of the last request is closed a moment after its answer.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while sockets() != 1 {
        assert!(std::time::Instant::now() < deadline, "{} sockets", sockets());
        std::thread::yield_now();
    }
}
