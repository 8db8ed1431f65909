//! A mark that a run of the tool on the live database is at work, which outlives the agent that began it: the kernel's lock
//! on a file that the tool has as its standard input, and so have the programs that it starts. It is free when the last of
//! them has ended. A session in the server would be no such mark: between two of them, and before the first, the tool is at
//! work just as well.
//!
//! The file is empty and stays empty: who reads it finds the end of the input.

use std::fs::File;
use std::sync::Arc;

use rollback_proto::problem::Problem;

use crate::driver::postgres::config::PostgresConfig;
use crate::driver::postgres::lock_file::{self, Lock};
use crate::driver::postgres::scratch;

/// `None` while a run has it.
pub(super) fn take(config: &PostgresConfig, component: &str) -> Result<Option<Arc<File>>, Problem> {
    let name = format!(".lock-tool-{}", scratch::short(component));
    let path = config.backups_dir()?.join(name);
    Ok(match lock_file::take(&path)? {
        Lock::Taken(file) => Some(Arc::new(file)),
        Lock::Busy(_) => None,
    })
}
