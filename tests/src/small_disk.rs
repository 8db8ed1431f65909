//! A disk that can be filled up: a tmpfs of a few MiB, and ballast on it. Takes root and CAP_SYS_ADMIN.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};

use crate::control::Held;
use crate::process::run;

const BALLAST: &str = ".ballast";

/// A mounted disk. What is on it goes with this value, which must outlive those who write there.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
    let_go: AtomicBool,
}

impl SmallDisk {
    /// Mounts one over an empty directory.
    pub fn mount(at: &Path, mib: u32) -> Result<Self> {
        std::fs::create_dir_all(at).context("make the mount point")?;
        let size = format!("size={mib}m");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(at))
        .context("mount a small disk (this needs root and CAP_SYS_ADMIN)")?;
        Ok(Self {
            at: at.to_owned(),
            let_go: AtomicBool::new(false),
        })
    }

    /// Writes until the disk takes no more byte. What others write from here on fails with ENOSPC, unless they have room
    /// in a file already.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.at.join(BALLAST))
            .context("open the ballast")?;
        let block = vec![0x5a_u8; 64 * 1024];
        // The last blocks are smaller, so that there is no room for a page, either.
        for size in [block.len(), 4096, 1] {
            loop {
                match ballast.write(&block[..size]) {
                    Ok(written) => ensure!(written > 0, "the disk takes nothing and says nothing"),
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("write ballast"),
                }
            }
        }
        Ok(())
    }

    /// Takes the ballast away.
    pub fn free(&self) -> Result<()> {
        std::fs::remove_file(self.at.join(BALLAST)).context("remove the ballast")
    }
}

impl Held for Arc<SmallDisk> {
    fn let_go(&mut self) -> String {
        self.let_go.store(true, Ordering::Relaxed);
        format!("umount --lazy {}\n", self.at.display())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if !self.let_go.load(Ordering::Relaxed) {
            // Nothing can be done about a failure; the directory's removal will say so.
            let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
        }
    }
}
