//! A real Docker engine: finding or starting one, what it says through its command-line client (never through the code
//! under test), and removing whatever a story made.
//!
//! Everything that a story makes carries the label `rollback.scenario=<run>`: images have it from their base image,
//! containers inherit it from their image (also those that an agent makes), networks and volumes are given it. It all
//! goes when the last clone of [`Docker`] goes; [`Docker::of`] a story's control outlives the agents.

mod facts;
mod images;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

pub use self::facts::{ContainerFacts, MountFacts, NetworkFacts};
pub use self::images::{AppImages, IMAGE_PORT};
use crate::control::{Control, Held};
use crate::process::{Daemon, End, Launch, run};

/// For a client's command. Building an image is the slowest.
const COMMAND_WITHIN: Duration = Duration::from_secs(120);

const ENGINE_WITHIN: Duration = Duration::from_secs(60);

/// The label's key; its value is the run.
pub const LABEL: &str = "rollback.scenario";

/// An engine and everything of one story in it. Clones are handles of the same.
#[derive(Clone, Debug)]
pub struct Docker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    run: String,
    let_go: AtomicBool,
    /// Ours, when none answered. Dropped after everything was removed.
    _engine: Option<Engine>,
}

/// `docker`, with the engine that it talks to.
#[derive(Clone, Debug)]
struct Client {
    program: PathBuf,
    /// DOCKER_HOST; `None` is the default, `/var/run/docker.sock`.
    host: Option<String>,
}

#[derive(Debug)]
struct Engine {
    _daemon: Daemon,
    _dir: TempDir,
}

impl Docker {
    /// The engine at DOCKER_HOST or `/var/run/docker.sock`, if one answers; otherwise one of our own, which needs root
    /// and keeps its images in the target directory.
    pub async fn ready() -> Result<Self> {
        let run = format!("{:08x}", rand::random::<u32>());
        let host = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
        let (client, engine) = match Client::that_is_answered(host) {
            Some(client) => (client, None),
            None => {
                let (host, engine) = start_engine().await?;
                let client = Client::that_is_answered(Some(host)).context("no docker client talks to our dockerd")?;
                (client, Some(engine))
            }
        };
        Ok(Self(Arc::new(Inner {
            client,
            run,
            let_go: AtomicBool::new(false),
            _engine: engine,
        })))
    }

    /// As [`Docker::ready`], for a story: what it makes ends after the agents.
    pub async fn of(control: &mut Control) -> Result<Self> {
        let docker = Self::ready().await?;
        control.hold(docker.clone());
        Ok(docker)
    }

    /// Distinguishes this story's names from those of others on the same engine.
    pub fn run_id(&self) -> &str {
        &self.0.run
    }

    /// `rollback.scenario=<run>`.
    pub fn label(&self) -> String {
        format!("{LABEL}={}", self.0.run)
    }

    /// A name that nobody else has: for containers, networks, volumes, compose projects.
    pub fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.0.run)
    }

    /// The path of the engine's socket.
    pub fn socket(&self) -> PathBuf {
        let host = self.0.client.host.as_deref().unwrap_or("unix:///var/run/docker.sock");
        PathBuf::from(host.strip_prefix("unix://").unwrap_or(host))
    }

    /// The variable with which other programs find the engine; `None` when they do without.
    pub fn host_variable(&self) -> Option<&str> {
        self.0.client.host.as_deref()
    }

    /// The key of a component that names the socket; nothing where the default will do.
    pub fn socket_key(&self) -> String {
        match self.host_variable() {
            Some(_) => format!("socket = \"{}\"\n", self.socket().display()),
            None => String::new(),
        }
    }

    /// Runs `docker ARGS…` to its end and hands stdout out.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.0.client.run(args)
    }

    /// A network of this story: `docker network create [ARGS…] NAME`.
    pub fn network(&self, what: &str, args: &[&str]) -> Result<String> {
        let (name, label) = (self.name(what), self.label());
        self.run(&[&["network", "create", "--label", &label][..], args, &[&name]].concat())?;
        Ok(name)
    }

    /// A named volume of this story.
    pub fn volume(&self, what: &str) -> Result<String> {
        let (name, label) = (self.name(what), self.label());
        self.run(&["volume", "create", "--label", &label, &name])?;
        Ok(name)
    }

    /// `docker compose` where there is a plugin, `docker-compose` otherwise, in a project's directory.
    pub fn compose(&self, project_dir: &Path, files: &[&str], args: &[&str]) -> Result<String> {
        self.compose_with(&[], project_dir, files, args)
    }

    /// As [`Docker::compose`], from a shell that has these variables.
    pub fn compose_with(
        &self,
        exported: &[(&str, &str)],
        project_dir: &Path,
        files: &[&str],
        args: &[&str],
    ) -> Result<String> {
        let mut command = if self.0.client.run(&["compose", "version"]).is_ok() {
            let mut command = self.0.client.command();
            command.arg("compose");
            command
        } else {
            let mut command = bounded(Path::new("docker-compose"));
            self.0.client.say_host(&mut command);
            command
        };
        for file in files {
            command.args(["-f", file]);
        }
        // What a person's shell may have must not decide what is deployed here.
        command.env_remove("IMAGE_TAG").env_remove("VERSION");
        command.envs(exported.iter().copied());
        run(command.args(args).current_dir(project_dir))
    }

    /// IDs of all containers of this story, also stopped ones.
    pub fn containers(&self) -> Result<Vec<String>> {
        self.0.list(&["ps", "--all", "--quiet", "--no-trunc"])
    }
}

impl Held for Docker {
    fn let_go(&mut self) -> String {
        self.0.let_go.store(true, Ordering::Relaxed);
        let (docker, label) = (self.0.client.program.display(), self.label());
        let host = self
            .host_variable()
            .map(|h| format!("DOCKER_HOST={h}; export DOCKER_HOST\n"));
        let kinds = [
            ("ps -aq", "rm -f -v"),
            ("network ls -q", "network rm"),
            ("volume ls -q", "volume rm -f"),
            ("image ls -aq", "rmi -f"),
        ];
        // Several times: an image with children is refused, and goes when they have gone.
        let kinds = kinds.iter().chain(std::iter::repeat_n(&kinds[3], 4));
        let lines = kinds.map(|(list, remove)| {
            format!(
                "ids=$({docker} {list} --filter label={label})\n[ -z \"$ids\" ] || {docker} {remove} $ids >/dev/null 2>&1\n"
            )
        });
        host.into_iter().chain(lines).collect()
    }
}

impl Inner {
    fn list(&self, args: &[&str]) -> Result<Vec<String>> {
        let filter = format!("label={LABEL}={}", self.run);
        let out = self.client.run(&[args, &["--filter", &filter]].concat())?;
        let mut ids: Vec<String> = out.lines().map(str::to_owned).collect();
        // An image with two tags is listed twice.
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    fn remove_all(&self) -> Result<()> {
        let kinds: [(&[&str], &[&str]); 3] = [
            (&["ps", "--all", "--quiet"], &["rm", "--force", "--volumes"]),
            (&["network", "ls", "--quiet"], &["network", "rm"]),
            (&["volume", "ls", "--quiet"], &["volume", "rm", "--force"]),
        ];
        for (list, remove) in kinds {
            let ids = self.list(list)?;
            if !ids.is_empty() {
                let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                self.client.run(&[remove, &ids].concat())?;
            }
        }
        // An image with children is refused; it can go when they have gone, and goes with the last of them by itself
        // when it has no name. So: again, for as long as that gets on.
        let mut left = self.list(&["image", "ls", "--all", "--quiet"])?;
        while !left.is_empty() {
            let ids: Vec<&str> = left.iter().map(String::as_str).collect();
            let refused = self.client.run(&[&["rmi", "--force"], &ids[..]].concat()).err();
            let now = self.list(&["image", "ls", "--all", "--quiet"])?;
            if let Some(error) = refused
                && now.len() == left.len()
            {
                return Err(error);
            }
            left = now;
        }
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.let_go.load(Ordering::Relaxed)
            && let Err(error) = self.remove_all()
        {
            // Nobody to hand it to; whoever watches can clean up by the label.
            eprintln!("remove what has the label {LABEL}={}: {error:#}", self.run);
        }
    }
}

impl Client {
    /// The distribution's client first: it fits the distribution's engine. Another one may come first on the path.
    fn that_is_answered(host: Option<String>) -> Option<Self> {
        ["/usr/bin/docker", "docker"]
            .map(|program| Self {
                program: program.into(),
                host: host.clone(),
            })
            .into_iter()
            .find(|client| client.run(&["version"]).is_ok())
    }

    fn command(&self) -> Command {
        let mut command = bounded(&self.program);
        self.say_host(&mut command);
        // The plain builder: the other one wants a plugin, and a registry for its frontend.
        command.env("DOCKER_BUILDKIT", "0");
        command
    }

    fn say_host(&self, command: &mut Command) {
        match &self.host {
            Some(host) => command.env("DOCKER_HOST", host),
            None => command.env_remove("DOCKER_HOST"),
        };
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        run(self.command().args(args))
    }
}

/// A program that is ended when it takes too long.
fn bounded(program: &Path) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", &COMMAND_WITHIN.as_secs().to_string()])
        .arg(program);
    command
}

/// A dockerd of our own, as `tests/with-docker.sh` starts it, and its DOCKER_HOST.
async fn start_engine() -> Result<(String, Engine)> {
    if !rustix::process::geteuid().is_root() {
        bail!("no Docker engine answers, and only root can start one: run the tests as root, or start Docker");
    }
    let dir = tempfile::tempdir().context("make the engine's directory")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("with-docker.sh");
    let (ready, log) = (dir.path().join("ready"), dir.path().join("log"));
    let say = "echo \"$DOCKER_HOST\" >\"$1.new\" && mv \"$1.new\" \"$1\" && exec sleep infinity";
    let args = ["sh", "-c", say, "sh", &ready.display().to_string()];
    let launch = Launch {
        end: End::Term,
        ..Launch::default()
    };
    let mut daemon = Daemon::start("a Docker engine", &launch, &script, &args, &log)?;
    let host = daemon.wait_ready(&ready, ENGINE_WITHIN).await?.trim().to_owned();
    let engine = Engine {
        _daemon: daemon,
        _dir: dir,
    };
    Ok((host, engine))
}
