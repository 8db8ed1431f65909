//! A Compose project of two files: the application, whose tag is in `.env`, and redis, which is never touched.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Deployed, key};
use crate::docker::{AppImages, ContainerFacts, Docker, IMAGE_PORT, LABEL};
use crate::process;
use crate::zekka::Version;

pub const FILES: [&str; 2] = ["docker-compose.yml", "docker-compose.production.yml"];

#[derive(Clone, Debug)]
pub struct ComposeApp {
    docker: Docker,
    /// Directory and name of the project.
    pub dir: PathBuf,
    pub port: u16,
}

impl ComposeApp {
    /// Writes the project into a directory of its own beneath `parent`; `redis` is the name of an image.
    pub fn lay_out(docker: &Docker, images: &AppImages, redis: &str, host: &str, parent: &Path) -> Result<Self> {
        let app = Self {
            docker: docker.clone(),
            // Compose takes the directory's name for the project's.
            dir: parent.join(docker.name(&format!("zekka-{host}"))),
            port: process::free_port()?,
        };
        std::fs::create_dir_all(&app.dir).context("make the project's directory")?;
        let (run, repository, port) = (docker.run_id(), images.repository(), app.port);
        let labels = format!("    labels:\n      {LABEL}: \"{run}\"\n");
        let base = format!(
            "version: \"3.7\"\n\
             services:\n\
             \x20 app:\n\
             \x20   image: {repository}:${{IMAGE_TAG}}\n\
             \x20   environment:\n\
             \x20     REDIS_URL: redis://cache:6379\n\
             \x20   depends_on: [cache]\n\
             \x20 cache:\n\
             \x20   image: {redis}\n\
             \x20   volumes: [\"cache:/data\"]\n\
             volumes:\n\x20 cache:\n{labels}\
             networks:\n\x20 default:\n{labels}"
        );
        let production = format!(
            "version: \"3.7\"\n\
             services:\n\
             \x20 app:\n\
             \x20   restart: unless-stopped\n\
             \x20   ports: [\"127.0.0.1:{port}:{IMAGE_PORT}\"]\n\
             \x20   environment:\n\
             \x20     NODE_ENV: production\n\
             \x20 cache:\n\
             \x20   restart: unless-stopped\n"
        );
        for (name, text) in FILES.iter().zip([base, production]) {
            std::fs::write(app.dir.join(name), text).with_context(|| format!("write {name}"))?;
        }
        Ok(app)
    }

    /// The file with the version.
    pub fn env_file(&self) -> PathBuf {
        self.dir.join(".env")
    }

    /// Runs Compose in the project, as a person there would.
    pub fn compose(&self, args: &[&str]) -> Result<String> {
        self.docker.compose(&self.dir, &FILES, args)
    }

    /// The commands of the runbook's Docker method, as they are written there; curl is left to the caller. The version is
    /// in the shell alone: `.env` goes on naming the other one.
    pub fn follow_runbook(&self, version: Version) -> Result<()> {
        let exported = [("IMAGE_TAG", version.name())];
        self.compose(&["down"])?;
        self.docker
            .compose_with(&exported, &self.dir, &FILES, &["up", "-d"])
            .map(drop)
    }

    /// The container of a service: `app` or `cache`.
    pub fn facts(&self, service: &str) -> Result<ContainerFacts> {
        let id = self.compose(&["ps", "-q", service])?;
        self.docker.inspect(id.trim())
    }

    /// Names a version, as an editor would.
    pub fn write_tag(&self, version: Version) -> Result<()> {
        let text = format!("# which image\nIMAGE_TAG={}\nLOG_LEVEL=info\n", version.name());
        std::fs::write(self.env_file(), text).context("write .env")
    }
}

impl Deployed for ComposeApp {
    fn port(&self) -> u16 {
        self.port
    }

    fn install(&self, version: Version) -> Result<()> {
        self.write_tag(version)?;
        self.compose(&["up", "-d"]).map(drop)
    }

    fn component(&self) -> String {
        [
            "[[component]]\nname = \"api\"\nkind = \"compose\"\n".to_owned(),
            key("project_dir", self.dir.display()),
            format!("files = {FILES:?}\nservices = [\"app\"]\n"),
            key("variable", "IMAGE_TAG"),
            self.docker.socket_key(),
            self.health(),
        ]
        .concat()
    }
}
