//! A container `app` at v3.0.0 that came after v2.9.0, and the steps of a rollback of it.

use std::sync::Arc;

use rollback_agent::driver::container::{ContainerConfig, ContainerDriver};
use rollback_agent::driver::{Action, Done, Driver, Failure, Finding, Revision, Severity};
use rollback_proto::problem::Code;

use crate::docker::Docker;
use crate::host::{Host, revision};

pub struct App {
    pub docker: Docker,
    pub host: Host,
    pub driver: ContainerDriver,
    pub old: Revision,
    pub new: Revision,
}

/// What the two images have besides their version.
pub struct Images<'a> {
    pub old: &'a str,
    pub new: &'a str,
}

pub const PLAIN: Images<'_> = Images { old: "", new: "" };

impl App {
    /// Builds both images and runs v3.0.0 with these arguments of `docker run`.
    pub fn new(images: Images<'_>, arguments: &[&str], config: &str) -> Self {
        Self::at(Docker::new(), images, arguments, config)
    }

    pub fn at(docker: Docker, images: Images<'_>, arguments: &[&str], config: &str) -> Self {
        let old = revision("v2.9.0", &docker.image("v2.9.0", images.old));
        let new = revision("v3.0.0", &docker.image("v3.0.0", images.new));
        let host = Host::new();
        let driver = driver(&docker, &host, config);
        let app = Self {
            docker,
            host,
            driver,
            old,
            new,
        };
        app.run(arguments);
        app
    }

    /// Runs v3.0.0 as somebody would by hand.
    pub fn run(&self, arguments: &[&str]) {
        let image = format!("{}:v3.0.0", self.docker.repository());
        let name = self.name();
        let (options, command) = match arguments.iter().position(|a| *a == "--") {
            Some(at) => (&arguments[..at], &arguments[at + 1..]),
            None => (arguments, &[][..]),
        };
        let mut all = vec!["run", "-d", "--name", &name];
        all.extend(options);
        all.push(&image);
        all.extend(command);
        self.docker.run(&all);
    }

    pub fn name(&self) -> String {
        self.docker.name("app")
    }

    pub fn before(&self) -> String {
        self.docker.name("app.before-rb-1")
    }

    pub fn staged(&self) -> String {
        self.docker.name("app.staged-rb-1")
    }

    pub fn image_of(&self, container: &str) -> String {
        self.docker.inspect(container, "{{.Image}}")
    }

    /// One forward step.
    pub async fn forward(&self, action: Action) -> Result<Done, Failure> {
        act(&self.driver, &self.host, action, &self.new, &self.old).await
    }

    /// One step of the undo.
    pub async fn back(&self, action: Action) -> Result<Done, Failure> {
        act(&self.driver, &self.host, action, &self.old, &self.new).await
    }

    /// Stage, stop, switch, start.
    pub async fn roll_back(&self) {
        for action in [Action::Stage, Action::Stop, Action::Switch, Action::Start] {
            self.forward(action)
                .await
                .unwrap_or_else(|failure| panic!("{action:?}: {failure:?}"));
        }
    }

    pub async fn undo(&self) {
        for action in [Action::Stop, Action::Switch, Action::Start] {
            self.back(action)
                .await
                .unwrap_or_else(|failure| panic!("{action:?}: {failure:?}"));
        }
    }

    pub async fn prepare(&self) -> Vec<Finding> {
        self.driver
            .prepare(&self.host.step(Action::Prepare, &self.new, &self.old))
            .await
    }

    pub async fn blockers(&self) -> Vec<(Code, String)> {
        let found = self.prepare().await;
        found
            .into_iter()
            .filter(|f| f.severity == Severity::Blocker)
            .map(|f| (f.problem.code, f.problem.message))
            .collect()
    }
}

pub async fn act(
    driver: &ContainerDriver,
    host: &Host,
    action: Action,
    from: &Revision,
    to: &Revision,
) -> Result<Done, Failure> {
    let step = host.step(action, from, to);
    match action {
        Action::Stage => driver.stage(&step).await,
        Action::Discard => driver.discard(&step).await,
        Action::Stop => driver.stop(&step).await,
        Action::Switch => driver.switch(&step).await,
        Action::Start => driver.start(&step).await,
        Action::Verify => driver.verify(&step).await,
        Action::Finish => driver.finish(&step).await,
        other => panic!("{other:?} is not a move of a container"),
    }
}

pub fn driver(docker: &Docker, host: &Host, config: &str) -> ContainerDriver {
    let text = format!(
        "container = '{}'\nimage = '{}'\nsteady = '200ms'\n{config}",
        docker.name("app"),
        docker.repository()
    );
    let config: ContainerConfig = toml::from_str(&text).expect("config");
    ContainerDriver::new("part", config, Arc::clone(&host.vault)).expect("driver")
}

/// Something that a container wrote, read by `docker exec`.
pub fn inside(docker: &Docker, container: &str, command: &[&str]) -> String {
    let mut all = vec!["exec", container];
    all.extend(command);
    docker.run(&all)
}
