//! Starting and ending the daemon.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::installation::Installation;

/// Time for requests that are under way when the process is asked to end.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Starts `serve` in a process group of its own. Refuses while the PID file names a living process of ours.
pub fn launch(installation: &Installation) -> Result<()> {
    if let Some(pid) = running(installation) {
        installation.note("refused")?;
        bail!("zekka-app is running already, as process {}", pid.as_raw_nonzero());
    }
    let open = || {
        std::fs::File::options()
            .create(true)
            .append(true)
            .open(installation.log())
            .context("open the log")
    };
    let child = Command::new(std::env::current_exe()?)
        .arg("serve")
        .current_dir(&installation.release_dir)
        .stdin(Stdio::null())
        .stdout(open()?)
        .stderr(open()?)
        .process_group(0)
        .spawn()
        .context("start serve")?;
    let (path, temp) = (installation.pid_file(), installation.pid_file().with_extension("new"));
    std::fs::write(&temp, format!("{}\n", child.id())).context("write the PID file")?;
    std::fs::rename(&temp, &path).context("publish the PID file")
}

/// Asks the daemon to end and waits until it is gone. Succeeds when there is none.
pub fn stop(installation: &Installation) -> Result<()> {
    let Some(pid) = running(installation) else {
        return Ok(());
    };
    let handle = pidfd_open(pid, PidfdFlags::empty()).context("open a handle of the process")?;
    kill_process(pid, Signal::TERM).context("ask the process to end")?;
    let deadline = Instant::now() + STOP_WITHIN;
    let mut ended = [PollFd::new(&handle, PollFlags::IN)];
    let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
    if poll(&mut ended, Some(&left)).context("wait for the process")? == 0 {
        bail!(
            "process {} did not end within {} s",
            pid.as_raw_nonzero(),
            STOP_WITHIN.as_secs()
        );
    }
    match std::fs::remove_file(installation.pid_file()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context("remove the PID file"),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The living daemon, if the PID file names one. A process that is not of this installation got the PID later.
fn running(installation: &Installation) -> Option<Pid> {
    let pid: i32 = std::fs::read_to_string(installation.pid_file())
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    installation.holds(&exe).then(|| Pid::from_raw(pid)).flatten()
}
