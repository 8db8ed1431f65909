//! Processes of the host, read from `/proc`: who is alive, who descends from whom, where they run.
//!
//! A PID alone names nobody for long. An [`Identity`] is a PID with the instant at which that process began, and a
//! process is signalled or waited for by identity only. A zombie counts as gone: it serves nobody, and in a container
//! whose first process does not reap, it stays for ever.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rollback_proto::problem::{Code, Problem};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::files::io_problem;

/// Ticks per second in `/proc/PID/stat`: fixed by Linux's ABI, whatever the kernel's own clock.
const USER_HZ: u64 = 100;

/// How much later than its PID file's time a process may seem to begin: the boot time is known in whole seconds.
const PID_FILE_SLACK: Duration = Duration::from_secs(2);

/// One process, for as long as the machine is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks from boot to the process's start.
    pub began: u64,
    /// Its process group.
    pub group: i32,
    pub parent: i32,
}

/// The living process with this PID. `None` when there is none, or only a zombie.
pub fn identity(pid: i32) -> Option<Identity> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold spaces and parentheses itself.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    // `starttime` is field 22 of stat(5); the iterator now stands before field 6.
    let began = fields.nth(16)?.parse().ok()?;
    Some(Identity {
        pid,
        began,
        group,
        parent,
    })
}

/// Is it this very process, not a later one with its PID?
pub fn alive(process: Identity) -> bool {
    identity(process.pid).is_some_and(|now| now.began == process.began)
}

/// Every living process that the filter accepts. Costs a walk through `/proc`.
fn living(accept: impl Fn(&Identity) -> bool) -> Vec<Identity> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(identity)
        .filter(|process| accept(process))
        .collect()
}

pub fn group_members(group: i32) -> Vec<Identity> {
    living(|process| process.group == group)
}

/// Living children. Asks the kernel's list where there is one, and walks through `/proc` elsewhere.
pub fn children(parent: i32) -> Vec<Identity> {
    match std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")) {
        Ok(list) => list
            .split_ascii_whitespace()
            .filter_map(|pid| identity(pid.parse().ok()?))
            .collect(),
        Err(_) => living(|process| process.parent == parent),
    }
}

/// The command line, arguments joined by spaces; daemons write what they are there.
pub fn title(pid: i32) -> Option<String> {
    let raw = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&raw).replace('\0', " ").trim_end().to_owned())
}

pub fn arguments(pid: i32) -> Vec<String> {
    let raw = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    raw.split(|b| *b == 0)
        .filter(|a| !a.is_empty())
        .map(|a| String::from_utf8_lossy(a).into_owned())
        .collect()
}

/// The working directory, resolved. A directory that was removed or moved away has another name than it had.
pub fn cwd(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

pub fn exe(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// The environment that the process was started with. `None` when we may not read it.
pub fn environment(pid: i32) -> Option<BTreeMap<Vec<u8>, Vec<u8>>> {
    let raw = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let pair = |entry: &[u8]| {
        let at = entry.iter().position(|b| *b == b'=')?;
        Some((entry[..at].to_vec(), entry[at + 1..].to_vec()))
    };
    Some(raw.split(|b| *b == 0).filter_map(pair).collect())
}

/// Everybody who was started with this variable, or by somebody who was.
pub fn started_with(name: &str, value: &OsStr) -> Vec<Identity> {
    let has = |process: &Identity| {
        let environment = environment(process.pid);
        environment.is_some_and(|all| all.get(name.as_bytes()).is_some_and(|found| found == value.as_bytes()))
    };
    living(has)
}

/// The living process that a PID file names. `None` when the file is absent or stale: nobody has the PID, or somebody
/// who began after the file was written.
pub fn from_pid_file(path: &Path) -> Result<Option<Identity>, Problem> {
    let (text, written) =
        match std::fs::read_to_string(path).and_then(|t| Ok((t, std::fs::metadata(path)?.modified()?))) {
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_problem("read the PID file", path, &e)),
        };
    // Daemons truncate before they write: an empty file is one that is being written.
    if text.trim().is_empty() {
        return Ok(None);
    }
    let pid: i32 = text
        .trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 1)
        .ok_or_else(|| Problem::new(Code::BadLayout, format!("{} does not hold a PID", path.display())))?;
    Ok(identity(pid).filter(|process| match started_at(*process) {
        Some(start) => start <= written + PID_FILE_SLACK,
        None => true,
    }))
}

/// When the process began, to about a second. `None` when the system does not say when it was booted.
pub fn started_at(process: Identity) -> Option<SystemTime> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = stat
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(boot) + Duration::from_millis(process.began * 1000 / USER_HZ))
}

/// Bytes of the process that are in memory. `None` when it is gone.
pub fn resident(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// A handle that can never come to mean another process.
fn handle(process: Identity) -> Option<OwnedFd> {
    let fd = rustix::process::pidfd_open(Pid::from_raw(process.pid)?, PidfdFlags::NONBLOCK).ok()?;
    // The PID may have changed hands before the handle was opened, not afterwards.
    alive(process).then_some(fd)
}

/// Signals this very process. Succeeds when it is gone already.
pub fn signal(process: Identity, signal: Signal) -> Result<(), Problem> {
    let Some(fd) = handle(process) else { return Ok(()) };
    match rustix::process::pidfd_send_signal(&fd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(Problem::new(
            Code::StillRunning,
            format!("signal process {}: {e}", process.pid),
        )),
    }
}

/// Waits until the process is gone; `false` when the deadline passes first. Woken by the kernel, not by a timer.
pub async fn wait_gone(process: Identity, deadline: Instant) -> bool {
    let deadline = tokio::time::Instant::from_std(deadline);
    #[expect(
        deprecated,
        reason = "the replacement is unsafe; what it asks for, a descriptor that is owned, is given"
    )]
    if let Some(fd) = handle(process).and_then(|fd| tokio::io::unix::AsyncFd::new(fd).ok()) {
        // An error of the handle says nothing about the process: the loop below decides.
        let _ = tokio::time::timeout_at(deadline, fd.readable()).await;
    }
    // Between the exit that woke us and the zombie state in /proc there may be an instant.
    while alive(process) {
        if tokio::time::Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_itself_and_its_children() {
        let me = i32::try_from(std::process::id()).expect("PIDs fit");
        let own = identity(me).expect("this process is alive");
        assert!(alive(own));
        assert!(
            !alive(Identity {
                began: own.began + 1,
                ..own
            }),
            "another start is another process"
        );
        assert!(group_members(own.group).iter().any(|p| p.pid == me));
        assert!(cwd(me).is_some());
    }

    #[test]
    fn a_pid_file_older_than_the_process_is_stale() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("pid");
        std::fs::write(&path, format!("{}\n", std::process::id())).expect("write");
        assert!(from_pid_file(&path).expect("read").is_some());
        let file = std::fs::File::options().write(true).open(&path).expect("open");
        file.set_modified(SystemTime::now() - Duration::from_secs(3600))
            .expect("set time");
        assert_eq!(
            from_pid_file(&path).expect("read"),
            None,
            "the PID was given to a later process"
        );
        std::fs::write(&path, "").expect("write");
        assert_eq!(from_pid_file(&path).expect("read"), None);
        std::fs::write(&path, "-1").expect("write");
        assert_eq!(from_pid_file(&path).expect_err("not a PID").code, Code::BadLayout);
    }
}
