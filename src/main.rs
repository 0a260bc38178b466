//! The `secrets-broker` binary: a wiping allocator, process hardening, then arguments to exit code.

use std::process::ExitCode;

use secrets_broker::sys::WipingAllocator;

/// Library buffers that held a secret are zeroed when they are freed.
#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator;

fn main() -> ExitCode {
    secrets_broker::sys::keep_one_heap();
    // Before the first thread and the first secret.
    let hardened = secrets_broker::hardening::harden();
    secrets_broker::cli::main(&hardened)
}
