//! Processes that the harness starts, and what `/proc` says of any process.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::wait;

/// Time for a daemon to end before it is killed.
const END_WITHIN: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Well-known servers are below.
const FIRST_PORT: u16 = 12_000;
/// Of ports at random.
const TRIES: usize = 100;

/// How a daemon is ended when nobody asks it to: the quickest way in which it leaves no children behind.
#[derive(Clone, Copy, Debug, Default)]
pub enum End {
    /// It has no children of its own.
    #[default]
    Kill,
    /// nginx: workers end with their master.
    Term,
    /// PostgreSQL: immediate shutdown.
    Quit,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "KILL",
            Self::Term => "TERM",
            Self::Quit => "QUIT",
        }
    }

    fn signal(self) -> Signal {
        match self {
            Self::Kill => Signal::KILL,
            Self::Term => Signal::TERM,
            Self::Quit => Signal::QUIT,
        }
    }
}

/// How a daemon is started.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// A system account; the caller must be root. Without it: the caller's own.
    pub user: Option<&'static str>,
    /// A group of its own, by number, by which its packets are told from others'. The caller must be root; with `user` it
    /// does not count.
    pub group: Option<u32>,
    pub end: End,
    /// Lives on when the harness has ended: for a fleet that is kept.
    pub outlives_us: bool,
    /// Exported, besides what the harness has in its own environment.
    pub env: BTreeMap<String, String>,
}

/// A daemon that the harness started. Killed when dropped, unless it was let go.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    end: End,
    let_go: AtomicBool,
}

impl Daemon {
    /// Starts a program; stdout and stderr are appended to `log`. Unless it shall outlive us, the kernel ends it when
    /// the thread that called this ends: a harness that is killed leaves nothing behind, either.
    pub fn start(name: &str, launch: &Launch, program: &Path, args: &[&str], log: &Path) -> Result<Self> {
        let mut command = Command::new("setpriv");
        if !launch.outlives_us {
            command.args(["--pdeathsig", launch.end.name()]);
        }
        if let Some(user) = launch.user {
            command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
        } else if let Some(group) = launch.group {
            command.args(["--regid", &group.to_string(), "--clear-groups"]);
        }
        if let Some(parent) = log.parent() {
            std::fs::create_dir_all(parent).context("make the directory of logs")?;
        }
        let open = || {
            std::fs::File::options()
                .create(true)
                .append(true)
                .open(log)
                .context("open the log")
        };
        command
            .arg("--")
            .arg(program)
            .args(args)
            .envs(&launch.env)
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?);
        // Ctrl-C in a terminal is for the harness, which then ends the fleet in order.
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            end: launch.end,
            let_go: AtomicBool::new(false),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its exit status, once it has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child
            .wait()
            .with_context(|| format!("wait for {}", self.name))
            .map(drop)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("signal {}", self.name))
    }

    /// Asks it to end and waits for it.
    pub async fn stop(&mut self, signal: Signal, within: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended() {
            return Ok(status);
        }
        self.signal(signal)?;
        let what = format!("{} ends", self.name);
        wait::until(&what, within, async || self.ended()).await
    }

    /// Waits until a file appears, or fails at once when the daemon has ended instead.
    pub async fn wait_ready(&mut self, ready_file: &Path, within: Duration) -> Result<String> {
        let what = format!("{} writes {}", self.name, ready_file.display());
        let text = wait::until(&what, within, async || match std::fs::read_to_string(ready_file) {
            Ok(text) => Some(Ok(text)),
            Err(_) => self.ended().map(Err),
        });
        match text.await? {
            Ok(text) => Ok(text),
            Err(status) => anyhow::bail!(
                "{} ended with {status}; its log ends so:\n{}",
                self.name,
                tail(&self.log, 20)
            ),
        }
    }

    /// Drops the handle and leaves the process running.
    pub fn let_go(&self) {
        self.let_go.store(true, Ordering::Relaxed);
    }
}

impl crate::control::Held for Daemon {
    fn let_go(&mut self) -> String {
        Daemon::let_go(self);
        // The script that ends a kept fleet finds its processes by itself.
        String::new()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.let_go.load(Ordering::Relaxed) || self.ended().is_some() {
            return;
        }
        // It may end in between; there is nobody to tell.
        let _ = self.signal(self.end.signal());
        if !ends_within(self.pid(), END_WITHIN) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Blocks until the kernel says that a process has ended; `false` when the time has passed.
fn ends_within(pid: u32, within: Timespec) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return true;
    };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return true;
    };
    poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&within)).is_ok_and(|ready| ready > 0)
}

pub fn kill(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("a PID is positive")?;
    kill_process(pid, signal).context("kill")
}

/// Runs a program to its end; a status other than 0 is an error with what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {shown}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{shown} ended with {}: {stderr}",
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// State letter and parent of a process; `None` when it is gone. A zombie counts as gone.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, 'Z' | 'X')).then_some((state, parent))
}

pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some()
}

/// Living children, in order.
pub fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<u32> = pids
        .filter(|pid| stat(*pid).is_some_and(|(_, p)| p == parent))
        .collect();
    found.sort_unstable();
    found
}

/// The environment that a process was started with.
pub fn environ(pid: u32) -> Result<BTreeMap<String, String>> {
    let raw = std::fs::read(format!("/proc/{pid}/environ")).with_context(|| format!("read environ of {pid}"))?;
    let entries = raw.split(|b| *b == 0).map(String::from_utf8_lossy);
    Ok(entries
        .filter_map(|e| e.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect())
}

/// The PID that a file holds, if that process lives.
pub fn from_pid_file(path: &Path) -> Option<u32> {
    let pid = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    is_alive(pid).then_some(pid)
}

/// The last lines of a file.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path)
        .map(|b| String::from_utf8_lossy(&b).into_owned())
        .unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A port that was free a moment ago, for servers that cannot be told to choose one. It is none of those that the kernel
/// gives to whoever connects: a server that is started again later would find it taken by some client's end.
pub fn free_port() -> Result<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").context("read the range of ports")?;
    let first: u16 = range
        .split_ascii_whitespace()
        .next()
        .and_then(|first| first.parse().ok())
        .context("the range of ports begins with a number")?;
    let candidates = FIRST_PORT..first.max(FIRST_PORT + 1);
    for _ in 0..TRIES {
        let port = rand::random_range(candidates.clone());
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port in {candidates:?}")
}
