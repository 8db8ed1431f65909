//! A container engine for tests: tiny images built from nothing, containers through the `docker` program (what the
//! driver says of itself proves nothing), and a daemon of the test's own that may be killed.
//!
//! Everything that is made has a name that begins with the test's own prefix and is removed at the end.

#![allow(dead_code, reason = "every test file uses another part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The content of the base image is known by this name; another content needs another one.
const BASE: &str = "rollbackctl-test-base:3";

/// Serves `/www` on `$PORT`; ends at once when it is told to. `/www/version` is the version of the image, unless the
/// container's `SERVED` says otherwise; `NEVER_READY` serves nothing.
const SERVE: &str = r#"#!/bin/sh
trap 'kill $child 2>/dev/null; exit 0' TERM INT
mkdir -p /www
echo "${SERVED:-$VERSION}" > /www/version
echo "serving $VERSION"
if [ -n "$NEVER_READY" ]; then echo "no database for $PASSWORD"; sleep 3600 & else httpd -f -p "${PORT:-8080}" -h /www & fi
child=$!
wait $child
"#;

/// One engine, and what a test made in it.
pub struct Docker {
    pub prefix: String,
    socket: Option<PathBuf>,
}

impl Docker {
    pub fn new() -> Self {
        Self::at(None)
    }

    pub fn at(socket: Option<PathBuf>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("rbt{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { prefix, socket }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        if let Some(socket) = &self.socket {
            command.arg("-H").arg(format!("unix://{}", socket.display()));
        }
        command.args(args).env("DOCKER_BUILDKIT", "0");
        command
    }

    /// Runs `docker`; stdout when it succeeds, both outputs when it does not.
    pub fn try_run(&self, args: &[&str]) -> Result<String, String> {
        let output = self.command(args).output().expect("the docker program");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(format!("{}{}", text(&output.stdout), text(&output.stderr))),
        }
    }

    pub fn run(&self, args: &[&str]) -> String {
        self.try_run(args)
            .unwrap_or_else(|said| panic!("docker {}: {said}", args.join(" ")))
    }

    /// A name that begins with the test's prefix.
    pub fn name(&self, rest: &str) -> String {
        format!("{}-{rest}", self.prefix)
    }

    /// The repository of the test's images.
    pub fn repository(&self) -> String {
        format!("{}/app", self.prefix)
    }

    /// An image of the application, with its `VERSION` and whatever else the lines of a Dockerfile say. Its id.
    pub fn image(&self, tag: &str, lines: &str) -> String {
        self.base();
        let reference = format!("{}:{tag}", self.repository());
        let text = format!(
            "FROM {BASE}\nENV VERSION={tag}\nLABEL made-for={}\nCMD [\"/serve\"]\n{lines}\n",
            self.prefix
        );
        self.build(&reference, &[("Dockerfile", text.as_bytes(), 0o644)]);
        self.image_id(&reference)
    }

    pub fn image_id(&self, reference: &str) -> String {
        self.run(&["image", "inspect", "-f", "{{.Id}}", reference])
    }

    /// Makes the base image, once per engine: several test programs may ask at the same time.
    fn base(&self) {
        let lock = std::fs::File::create(std::env::temp_dir().join("rollbackctl-test-base.lock")).expect("lock file");
        lock.lock().expect("lock");
        if self.try_run(&["image", "inspect", BASE]).is_ok() {
            return;
        }
        let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
        let text = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
                    RUN mkdir -p /tmp /www /data\nCOPY serve /serve\n";
        self.build(
            BASE,
            &[
                ("Dockerfile", text.as_bytes(), 0o644),
                ("busybox", &busybox, 0o755),
                ("serve", SERVE.as_bytes(), 0o755),
            ],
        );
    }

    /// Builds an image of these files: name, content, mode.
    pub fn build(&self, reference: &str, files: &[(&str, &[u8], u32)]) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        for (name, content, mode) in files {
            let path = dir.path().join(name);
            std::fs::write(&path, content).expect("write");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).expect("mode");
        }
        let dir = dir.path().to_str().expect("UTF-8");
        self.run(&["build", "-q", "--network", "none", "-t", reference, dir]);
    }

    /// One value of a container: a Go template.
    pub fn inspect(&self, container: &str, template: &str) -> String {
        self.run(&["container", "inspect", "-f", template, container])
    }

    /// Containers of this test: names, sorted.
    pub fn containers(&self) -> Vec<String> {
        let filter = format!("name=^/{}", self.prefix);
        let listed = self.run(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}}"]);
        let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    pub fn running(&self, container: &str) -> bool {
        self.inspect(container, "{{.State.Running}}") == "true"
    }

    fn listed(&self, args: &[&str]) -> Vec<String> {
        self.try_run(args)
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let by_name = format!("name={}", self.prefix);
        let by_label = format!("label=made-for={}", self.prefix);
        let mut volumes = Vec::new();
        for id in self.listed(&["ps", "-aq", "--filter", &by_name]) {
            // One that was made without a name and carried over by its name is not removed with the container.
            let mounted = "{{range .Mounts}}{{if eq .Type \"volume\"}}{{println .Name}}{{end}}{{end}}";
            volumes.extend(self.listed(&["inspect", "-f", mounted, &id]));
            let _ = self.try_run(&["rm", "-f", "-v", &id]);
        }
        for name in volumes.iter().filter(|name| !name.is_empty()) {
            let _ = self.try_run(&["volume", "rm", name]);
        }
        for id in self.listed(&["network", "ls", "-q", "--filter", &by_name]) {
            let _ = self.try_run(&["network", "rm", &id]);
        }
        for id in self.listed(&["volume", "ls", "-q", "--filter", &by_name]) {
            let _ = self.try_run(&["volume", "rm", &id]);
        }
        for id in self.listed(&["images", "-q", "--filter", &by_label]) {
            let _ = self.try_run(&["rmi", "-f", &id]);
        }
    }
}

/// A daemon of the test's own, without networks: its containers use `--network none`.
pub struct Daemon {
    dir: tempfile::TempDir,
    process: Option<std::process::Child>,
}

impl Daemon {
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("rbtd")
            .tempdir()
            .expect("temporary directory");
        let mut daemon = Self { dir, process: None };
        daemon.run().await;
        daemon
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Starts the daemon, again after [`Daemon::kill`], without waiting for it.
    pub fn spawn(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .expect("log");
        // In a network namespace of its own: a daemon without a bridge takes the host's `docker0` away, and with it the
        // network of the containers of the host's own daemon.
        let process = Command::new("unshare")
            .args(["--net", "--", "dockerd"])
            .args(["--data-root", &self.at("data"), "--exec-root", &self.at("exec")])
            .args([
                "--pidfile",
                &self.at("pid"),
                "-H",
                &format!("unix://{}", self.at("docker.sock")),
            ])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("dockerd");
        self.process = Some(process);
    }

    /// Where the daemon keeps a container's name and state.
    pub fn container_config(&self, id: &str) -> PathBuf {
        self.dir.path().join("data/containers").join(id).join("config.v2.json")
    }

    pub async fn run(&mut self) {
        self.spawn();
        self.run_until_ready().await;
    }

    pub async fn run_until_ready(&self) {
        let socket = self.socket();
        super::host::eventually("the daemon answers", || {
            Docker::at(Some(socket.clone())).try_run(&["version"]).is_ok()
        })
        .await;
    }

    /// As a crash or an update does. Containers run on.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill");
            process.wait().expect("wait");
        }
        // A killed daemon leaves both behind, and the next one refuses to start while the PID is in use by anybody.
        let _ = std::fs::remove_file(self.at("pid"));
        // Its containerd dies with it. Where nobody reaps orphans, it stays a zombie that the next daemon takes for alive.
        let _ = std::fs::remove_file(Path::new(&self.at("exec")).join("containerd/containerd.pid"));
        let _ = std::fs::remove_file(self.socket());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        use rustix::process::{Pid, Signal, kill_process};
        if self.process.is_none() {
            self.spawn();
        }
        let socket = self.socket();
        let docker = Docker::at(Some(socket));
        // It may just have been spawned. Each try takes as long as a program takes to start.
        for _ in 0..300 {
            if docker.try_run(&["version"]).is_ok() {
                break;
            }
        }
        for id in docker.listed(&["ps", "-aq"]) {
            let _ = docker.try_run(&["rm", "-f", &id]);
        }
        if let Some(mut process) = self.process.take() {
            if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
            let _ = process.wait();
        }
        // The daemon's containerd outlives a daemon that was killed.
        let pid = std::fs::read_to_string(Path::new(&self.at("exec")).join("containerd/containerd.pid"));
        if let Some(pid) = pid.ok().and_then(|p| p.trim().parse().ok()).and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        // A daemon that was killed leaves this mounted onto itself, and the directory could not be removed.
        let _ = Command::new("umount")
            .arg(self.at("data"))
            .stderr(Stdio::null())
            .status();
    }
}
