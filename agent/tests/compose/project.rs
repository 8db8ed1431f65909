//! A real Compose project on the real engine: images of busybox's web server that serve their version, in a directory
//! of their own, under a project name of their own. Everything of it is gone when it is dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rollback_agent::driver::compose::{ComposeConfig, ComposeDriver};
use rollback_agent::driver::{Action, Done, Driver, Failure, Finding, Probe, Revision, Severity};
use rollback_proto::problem::Code;

use crate::host::{Host, free_port, write};

pub const COMPOSE_FILE: &str = r#"version: "3.8"
services:
  app:
    image: "NAME/app:${IMAGE_TAG}"
    restart: always
    env_file: app.env
    environment: {OVERRIDDEN: "by the compose file"}
    depends_on: [cache]
    ports: ["127.0.0.1:${PORT}:8080"]
  worker:
    image: "NAME/app:${IMAGE_TAG}"
    command: ["/bin/busybox", "sleep", "1000000"]
  cache:
    image: "NAME/cache:1"
"#;

const OVERRIDE_FILE: &str = "version: \"3.8\"\nservices:\n  app:\n    labels: {from: override}\n";

static COUNT: AtomicUsize = AtomicUsize::new(0);

pub struct Project {
    pub host: Host,
    pub name: String,
    pub dir: PathBuf,
    pub port: u16,
}

/// Runs a program as a person would, with nothing of this process's environment.
pub fn run(dir: &Path, env: &[(&str, &str)], argv: &[&str]) -> Output {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).current_dir(dir).env_clear();
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", dir);
    command.envs(env.iter().copied()).output().expect("run")
}

pub fn text(dir: &Path, argv: &[&str]) -> String {
    let output = run(dir, &[], argv);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{argv:?}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

impl Project {
    /// A directory with nothing in it, and images of these versions.
    pub fn empty(subdirectory: &str) -> Self {
        let host = Host::new();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("rbtcompose{}-{count}", std::process::id());
        let dir = host.path().join(subdirectory).join(&name);
        std::fs::create_dir_all(&dir).expect("directory");
        Self {
            port: free_port(),
            host,
            name,
            dir,
        }
    }

    /// v3.0.0 is declared, v2.9.0 is here, too; nothing runs.
    pub fn new() -> Self {
        let project = Self::empty("srv");
        project.image("app", "v2.9.0", "");
        project.image("app", "v3.0.0", "");
        project.image("cache", "1", "CMD [\"/bin/busybox\", \"sleep\", \"1000000\"]");
        write(&project.dir.join("docker-compose.yml"), &project.filled(COMPOSE_FILE));
        write(&project.dir.join("docker-compose.override.yml"), OVERRIDE_FILE);
        write(&project.dir.join("app.env"), "SECRET=hunter2\nOVERRIDDEN=by the file\n");
        project.declare("v2.9.0");
        project
    }

    pub fn filled(&self, text: &str) -> String {
        text.replace("NAME", &self.name)
    }

    pub fn declare(&self, tag: &str) {
        let text = format!(
            "# ports\nPORT={}\nIMAGE_TAG={tag} # what runs\nPASSWORD='a # b'\n",
            self.port
        );
        write(&self.dir.join(".env"), &text);
    }

    /// The Dockerfile of a version; `extra` may replace what it runs.
    pub fn dockerfile(&self, version: &str, extra: &str) -> String {
        format!(
            "FROM scratch\nCOPY busybox /bin/busybox\nLABEL rollbackctl.test={} version={version}\n\
             COPY www /www\nSTOPSIGNAL SIGKILL\n\
             CMD [\"/bin/busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n{extra}\n",
            self.name
        )
    }

    pub fn sources(&self, dir: &Path, version: &str, extra: &str) {
        std::fs::create_dir_all(dir).expect("directory");
        std::fs::copy("/bin/busybox", dir.join("busybox")).expect("busybox-static is installed");
        write(&dir.join("www/version"), version);
        write(&dir.join("Dockerfile"), &self.dockerfile(version, extra));
    }

    pub fn image(&self, image: &str, version: &str, extra: &str) -> String {
        let context = self.host.path().join(format!("build-{image}-{version}"));
        self.sources(&context, version, extra);
        let reference = format!("{}/{image}:{version}", self.name);
        let context = context.to_string_lossy();
        text(&self.dir, &["docker", "build", "-q", "-t", &reference, &context])
    }

    pub fn app(&self, version: &str) -> String {
        format!("{}/app:{version}", self.name)
    }

    pub fn docker(&self, argv: &[&str]) -> String {
        text(&self.dir, &[&["docker"], argv].concat())
    }

    /// `docker-compose …` in the project directory.
    pub fn by_hand(&self, argv: &[&str]) -> String {
        text(&self.dir, &[&["docker-compose"], argv].concat())
    }

    pub fn config(&self, extra: &str) -> String {
        format!(
            "project_dir = '{}'\nservices = ['app', 'worker']\nvariable = 'IMAGE_TAG'\nenv_files = ['app.env']\n\
             health = {{ http = 'http://127.0.0.1:{}/version', version = '/version', within = '20s' }}\n{extra}",
            self.dir.display(),
            self.port
        )
    }

    pub fn driver_of(&self, config: &str) -> ComposeDriver {
        let config: ComposeConfig = toml::from_str(config).expect("config");
        ComposeDriver::new("part", config, Arc::clone(&self.host.vault)).expect("driver")
    }

    pub fn driver(&self) -> ComposeDriver {
        self.driver_of(&self.config(""))
    }

    /// Id and start time of the containers, by name.
    pub fn containers(&self) -> BTreeMap<String, String> {
        let label = format!("label=com.docker.compose.project={}", self.name);
        let ids = self.docker(&["ps", "-aq", "--filter", &label]);
        ids.lines()
            .map(|id| {
                let format = "{{.Name}}|{{.Id}} {{.State.StartedAt}} {{.State.Running}}";
                let line = self.docker(&["inspect", "--format", format, id]);
                let (name, rest) = line.split_once('|').expect("a name");
                (name.trim_start_matches('/').to_owned(), rest.to_owned())
            })
            .collect()
    }

    pub fn container(&self, service: &str) -> String {
        format!("{}_{service}_1", self.name)
    }

    pub fn inspect(&self, service: &str, format: &str) -> String {
        self.docker(&["inspect", "--format", format, &self.container(service)])
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let remove = |list: &[&str], remove: &[&str]| {
            let output = run(Path::new("/"), &[], list);
            let found = String::from_utf8_lossy(&output.stdout).into_owned();
            // One by one: an image may be gone together with the one before.
            for id in found.lines() {
                let _ = run(Path::new("/"), &[], &[remove, &[id]].concat());
            }
        };
        let label = format!("label=com.docker.compose.project={}", self.name);
        let image = format!("label=rollbackctl.test={}", self.name);
        remove(&["docker", "ps", "-aq", "--filter", &label], &["docker", "rm", "-f"]);
        remove(
            &["docker", "network", "ls", "-q", "--filter", &label],
            &["docker", "network", "rm"],
        );
        remove(
            &["docker", "images", "-q", "--filter", &image],
            &["docker", "rmi", "-f"],
        );
    }
}

/// A rollback on a project, step by step.
pub struct Rollback<'a> {
    pub project: &'a Project,
    pub driver: &'a ComposeDriver,
    pub from: Revision,
    pub to: Revision,
}

impl Rollback<'_> {
    pub fn undo(&self) -> Self {
        Self {
            project: self.project,
            driver: self.driver,
            from: self.to.clone(),
            to: self.from.clone(),
        }
    }

    pub async fn findings(&self) -> Vec<Finding> {
        let step = self.project.host.step(Action::Prepare, &self.from, &self.to);
        self.driver.prepare(&step).await
    }

    pub async fn blockers(&self) -> Vec<Code> {
        let blockers = self
            .findings()
            .await
            .into_iter()
            .filter(|f| f.severity == Severity::Blocker);
        blockers.map(|f| f.problem.code).collect()
    }

    pub async fn step(&self, action: Action) -> Result<Done, Failure> {
        let limit = std::time::Duration::from_secs(120);
        let step = self.project.host.step_within(action, &self.from, &self.to, limit);
        match action {
            Action::Stage => self.driver.stage(&step).await,
            Action::Discard => self.driver.discard(&step).await,
            Action::Switch => self.driver.switch(&step).await,
            Action::Stop => self.driver.stop(&step).await,
            Action::Start => self.driver.start(&step).await,
            Action::Verify => self.driver.verify(&step).await,
            Action::Finish => self.driver.finish(&step).await,
            other => panic!("no move: {other:?}"),
        }
    }

    pub async fn probe(&self, action: Action) -> Probe {
        let step = self.project.host.step(action, &self.from, &self.to);
        self.driver.probe(&step).await
    }

    /// Everything, in the planner's order.
    pub async fn run(&self) {
        for action in [
            Action::Stage,
            Action::Stop,
            Action::Switch,
            Action::Start,
            Action::Verify,
            Action::Finish,
        ] {
            let done = self.step(action).await;
            assert!(done.is_ok(), "{action:?}: {done:?}");
        }
    }
}
