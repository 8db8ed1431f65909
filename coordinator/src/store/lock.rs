//! One process for each embedded store. The lease of that store does not run out, so nothing else would keep two
//! coordinators on one file from leading both.
//!
//! The lock is the kernel's (`flock`): it ends with the process, however that ends. What is written in the file is for
//! people, and may be of a process that is gone.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::open::OpenError;

/// Held as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the directory in which this database is, in the name of a coordinator.
    pub fn take(database: &Path, name: &str) -> Result<Self, OpenError> {
        let path = database.with_file_name("coordinator.lock");
        let failed = |what| {
            let path = path.clone();
            move |source: std::io::Error| OpenError::File { what, path, source }
        };
        // Not truncated: whoever is refused reads who holds it.
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed("open the lock"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(failed("read the lock"))?;
                return Err(OpenError::InUse {
                    database: database.to_owned(),
                    holder: match holder.trim_end() {
                        "" => "another process".to_owned(),
                        named => named.to_owned(),
                    },
                });
            }
            Err(e) => return Err(failed("lock")(e.into())),
        }
        let holder = format!("coordinator {name} (process {})\n", std::process::id());
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(holder.as_bytes()));
        written.map_err(failed("write the lock"))?;
        Ok(Self { _file: file })
    }
}
