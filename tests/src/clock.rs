//! A wall clock of one process that can be moved while it runs: libfaketime, with an offset in a file.
//!
//! Only what programs read as the time of day moves. CLOCK_MONOTONIC and the times of files stay as they are, as they do
//! when an administrator sets a host's clock.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// An offset that a process follows from its start on.
#[derive(Clone, Debug)]
pub struct WallClock {
    offset: PathBuf,
    library: PathBuf,
}

impl WallClock {
    /// One that is right, with its offset in a file of this name.
    pub fn new(offset: &Path) -> Result<Self> {
        let clock = Self {
            offset: offset.to_owned(),
            library: library()?,
        };
        clock.shift(0)?;
        Ok(clock)
    }

    /// What a process must have in its environment to go by this clock.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.offset.display().to_string()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
            // The file counts at the next look at the clock, not a while later.
            ("FAKETIME_NO_CACHE", "1".to_owned()),
        ]
    }

    /// Moves it to so many seconds beside the right time.
    pub fn shift(&self, seconds: i64) -> Result<()> {
        // By rename: a reader in between must not find an empty file.
        let new = self.offset.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n")).context("write the clock's offset")?;
        std::fs::rename(&new, &self.offset).context("move the clock")
    }
}

/// Where Debian's package puts it, for programs with threads.
fn library() -> Result<PathBuf> {
    let dirs = std::fs::read_dir("/usr/lib").context("list /usr/lib")?;
    let paths = dirs.flatten().map(|d| d.path().join("faketime/libfaketimeMT.so.1"));
    paths
        .chain([PathBuf::from("/usr/lib/faketime/libfaketimeMT.so.1")])
        .find(|path| path.exists())
        .context("there is no libfaketime: tests/install-dependencies.sh installs the package faketime")
}
