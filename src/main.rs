//! The `secrets-broker` binary: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    secrets_broker::cli::main()
}
