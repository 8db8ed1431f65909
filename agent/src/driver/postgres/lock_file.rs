//! A lock of the kernel's on a file: it ends with the last process that has the file open, however that ends. The file stays.

use std::fs::File;
use std::path::Path;

use rollback_proto::problem::Problem;
use rustix::fs::FlockOperation;

use super::staging::file_problem;
use crate::files::open_private;

/// The file, open for reading and writing.
#[derive(Debug)]
pub(super) enum Lock {
    /// Held for as long as the file is open.
    Taken(File),
    /// Somebody else has it.
    Busy(File),
}

/// Takes the lock if it is free, and does not wait. The file is made (0600) when there is none; its content is left as it is.
pub(super) fn take(path: &Path) -> Result<Lock, Problem> {
    let failed = |e: std::io::Error| file_problem(format!("lock {}", path.display()), &e);
    let file = open_private(path).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock::Taken(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(Lock::Busy(file)),
        Err(e) => Err(failed(e.into())),
    }
}
