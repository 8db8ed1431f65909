//! Places at which a test can have this process killed, as by `kill -9`: between two sub-steps of something that has to
//! be recognised after it was cut off anywhere.
//!
//! `ROLLBACK_KILL_AT=name` kills at the first passing of that point, `name#3` at the third. `ROLLBACK_KILL_LOG=path` writes
//! the name of every point that is passed to the end of that file, a line each: so a test finds out which points there are.
//! Builds without debug assertions (releases) have no such places: the variables do nothing there.
//!
//! The `fail` crate was weighed: it brings a second generation of `rand`, and its actions end a thread, not the process.

use std::fs::File;
use std::io::Write as _;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

struct Aim {
    name: String,
    /// Passings that are still let through.
    spared: AtomicU32,
}

static AIM: LazyLock<Option<Aim>> = LazyLock::new(|| {
    let asked = std::env::var("ROLLBACK_KILL_AT").ok()?;
    let (name, nth) = match asked.rsplit_once('#') {
        Some((name, nth)) => (name, nth.parse().ok()?),
        None => (asked.as_str(), 1_u32),
    };
    Some(Aim {
        name: name.to_owned(),
        spared: AtomicU32::new(nth.saturating_sub(1)),
    })
});

static LOG: LazyLock<Option<File>> = LazyLock::new(|| {
    let path = std::env::var_os("ROLLBACK_KILL_LOG")?;
    File::options().create(true).append(true).open(path).ok()
});

/// Does not come back if this is the point that was asked for. The name is made only when somebody asked for one, or for all.
pub fn pass(name: impl FnOnce() -> String) {
    if !cfg!(debug_assertions) {
        return;
    }
    if AIM.is_none() && LOG.is_none() {
        return;
    }
    let name = name();
    if let Some(mut log) = LOG.as_ref() {
        // One write, so that the lines of two passings do not mix. A log that lacks one shows in the test.
        let _ = log.write_all(format!("{name}\n").as_bytes());
    }
    let Some(aim) = AIM.as_ref() else { return };
    if aim.name != name {
        return;
    }
    let spared = aim
        .spared
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    if spared.is_err() {
        // Nobody is told, and nothing is closed.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
