//! `rollback-agent`: see [`rollback_agent::cli`] for what it can be told.

use std::process::ExitCode;

fn main() -> ExitCode {
    rollback_agent::cli::main()
}
