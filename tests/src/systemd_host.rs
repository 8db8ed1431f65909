//! A host with a real systemd: a container whose first process is `/sbin/init`, in the network of this machine.
//!
//! ```text
//! let host = SystemdHost::start(fleet_dir, programs)?;          // both directories are there inside, at the same paths
//! host.install_unit("zekka.service", "[Service]\nExecStart=…")?;
//! host.exec(&["systemctl", "start", "zekka.service"])?;
//! ```
//!
//! Invariants:
//! - Programs that were built here run inside: the image is this machine's own release of Debian.
//! - Ports on loopback are the same inside and outside.
//! - Units that would meddle with the machine's network, clock, kernel or devices are masked in the image.
//! - The container is removed by its id when the host is dropped, and by docker when its init ends.
//!
//! It stands alone (the standard library, `anyhow` and `rustix`), so that tests of the agent can use this very file.

// Said, because a file that is taken from elsewhere would look for it beside itself.
#[path = "systemd_host/image.rs"]
mod image;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// A quarter of a second where nothing else is at work.
const BOOT_WITHIN: Duration = Duration::from_secs(60);

/// How the engine runs systemd: control groups of its own below the container's, and what it needs in order to mount.
const RUN: [&str; 18] = [
    "run",
    "--detach",
    "--rm",
    "--network=host",
    "--cap-add=SYS_ADMIN",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--cgroupns=host",
    "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
    "--tmpfs=/run",
    "--tmpfs=/run/lock",
    // Programs that tests put there are executed.
    "--tmpfs=/tmp:exec",
    "--env=container=docker",
    "--stop-signal=SIGRTMIN+3",
    "--label=rollback-tests",
    "--log-driver=none",
    "--pull=never",
    "--init=false",
];

#[derive(Debug)]
pub struct SystemdHost {
    /// The container's whole id.
    id: String,
    let_go: AtomicBool,
}

impl SystemdHost {
    /// Starts one and waits until systemd has brought it up. `dir` is there inside at the same path, writable, and so is
    /// `programs`, read-only: the directory of the programs under test. The image is made when it is missing.
    pub fn start(dir: &Path, programs: &Path) -> Result<Self> {
        let image = image::ready()?;
        let dir = format!("--volume={0}:{0}:rw", dir.display());
        let programs = format!("--volume={0}:{0}:ro", programs.display());
        let mut args = RUN.to_vec();
        args.extend([dir.as_str(), &programs, &image, "/sbin/init"]);
        let id = docker(&args).context("start the container")?;
        let host = Self {
            id: id.trim().to_owned(),
            let_go: AtomicBool::new(false),
        };
        host.wait_booted()?;
        Ok(host)
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The container shall outlive this value: whoever asks for that removes it by its id.
    pub fn let_go(&self) {
        self.let_go.store(true, Ordering::Relaxed);
    }

    /// Runs a program inside, to its end; a status other than 0 is an error with what it said.
    pub fn exec(&self, argv: &[&str]) -> Result<String> {
        self.exec_with(&[], argv)
    }

    /// The same with further options of `docker exec`: `--detach`, `--env=NAME=value`, `--user=nobody`.
    pub fn exec_with(&self, options: &[&str], argv: &[&str]) -> Result<String> {
        let mut args = vec!["exec"];
        args.extend(options);
        args.push(&self.id);
        args.extend(argv);
        docker(&args)
    }

    /// Writes a unit and lets systemd read it.
    pub fn install_unit(&self, name: &str, text: &str) -> Result<()> {
        let mut child = Command::new("docker")
            .args(["exec", "--interactive", &self.id, "tee"])
            .arg(format!("/etc/systemd/system/{name}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("start docker")?;
        let mut pipe = child.stdin.take().context("a pipe was asked for")?;
        std::io::Write::write_all(&mut pipe, text.as_bytes()).context("write the unit")?;
        drop(pipe);
        ensure!(child.wait().context("wait for docker")?.success(), "write unit {name}");
        self.exec(&["systemctl", "daemon-reload"]).map(drop)
    }

    /// `systemctl is-system-running --wait` waits in systemd itself, but only once its bus is there.
    fn wait_booted(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let Err(e) = self.exec(&["systemctl", "is-system-running", "--wait"]) else {
                return Ok(());
            };
            // It has booted, and one of its own units did not come up.
            let degraded = format!("{e:#}").contains("degraded");
            if degraded || begun.elapsed() > BOOT_WITHIN {
                let failed = self.exec(&["systemctl", "--no-pager", "--failed"]);
                return Err(e).with_context(|| format!("systemd comes up in the container; failed: {failed:?}"));
            }
        }
    }
}

impl Drop for SystemdHost {
    fn drop(&mut self) {
        if !self.let_go.load(Ordering::Relaxed) {
            // It is gone already, or docker is: there is nobody to tell.
            let _ = docker(&["rm", "--force", &self.id]);
        }
    }
}

/// Runs docker to its end; a status other than 0 is an error with what it said.
fn docker(args: &[&str]) -> Result<String> {
    let output = Command::new("docker")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("start docker")?;
    ensure!(
        output.status.success(),
        "docker {} ended with {}: {}{}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
