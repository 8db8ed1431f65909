//! A git repository with a Compose project inside, whose image is built on the host: "full rollback, rebuild from a git
//! tag" of zakops.
//!
//! ```text
//! <repository>/Dockerfile, release.json                tagged v2.9.0, v2.9.1, v3.0.0
//! <repository>/infra/docker/docker-compose.production.yml
//! <repository>/infra/docker/.env                       VERSION, not in git
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::git::Repository;
use super::{Deployed, key};
use crate::docker::{AppImages, ContainerFacts, Docker, IMAGE_PORT, LABEL};
use crate::process;
use crate::zekka::Version;

pub const FILE: &str = "docker-compose.production.yml";

#[derive(Clone, Debug)]
pub struct RebuiltApp {
    docker: Docker,
    pub repository: Repository,
    /// Of the Compose project, because its directory's name is everybody's.
    pub project: String,
    pub port: u16,
}

impl RebuiltApp {
    pub fn lay_out(docker: &Docker, images: &AppImages, host: &str, parent: &Path) -> Result<Self> {
        let project = docker.name(&format!("zakops-{host}"));
        let repository = Repository::init(&parent.join("zakops-backend"))?;
        let port = process::free_port()?;
        let run = docker.run_id();
        let file = format!(
            "version: \"3.7\"\n\
             services:\n\
             \x20 api:\n\
             \x20   image: {project}:${{VERSION}}\n\
             \x20   build:\n\
             \x20     context: ../..\n\
             \x20   restart: unless-stopped\n\
             \x20   ports: [\"127.0.0.1:{port}:{IMAGE_PORT}\"]\n\
             networks:\n\x20 default:\n\x20   labels:\n\x20     {LABEL}: \"{run}\"\n"
        );
        let compose = format!("infra/docker/{FILE}");
        for version in Version::ALL {
            let dockerfile = format!(
                "FROM {}\nCOPY release.json /app/\nENV GREETING={}\n",
                images.base(),
                version.greeting()
            );
            let files = [
                ("Dockerfile", dockerfile.as_str()),
                ("release.json", version.release_json()),
                (compose.as_str(), file.as_str()),
                (".gitignore", ".env\n"),
            ];
            repository.commit(version, &files)?;
        }
        Ok(Self {
            docker: docker.clone(),
            repository,
            project,
            port,
        })
    }

    pub fn project_dir(&self) -> PathBuf {
        self.repository.dir.join("infra/docker")
    }

    pub fn env_file(&self) -> PathBuf {
        self.project_dir().join(".env")
    }

    /// Runs Compose in the project, as a person there would.
    pub fn compose(&self, args: &[&str]) -> Result<String> {
        self.docker.compose(&self.project_dir(), &[FILE], args)
    }

    pub fn facts(&self) -> Result<ContainerFacts> {
        let id = self.compose(&["ps", "-q", "api"])?;
        self.docker.inspect(id.trim())
    }

    /// The ID of the image that was built of a version.
    pub fn image_id(&self, version: Version) -> Result<String> {
        self.docker.image_id(&self.image(version))
    }

    /// The image that is built of a version.
    pub fn image(&self, version: Version) -> String {
        format!("{}:{}", self.project, version.name())
    }
}

impl Deployed for RebuiltApp {
    fn port(&self) -> u16 {
        self.port
    }

    fn install(&self, version: Version) -> Result<()> {
        self.repository.git(&["checkout", "--quiet", version.name()])?;
        let env = format!("COMPOSE_PROJECT_NAME={}\nVERSION={}\n", self.project, version.name());
        std::fs::write(self.env_file(), env).context("write .env")?;
        self.compose(&["build"])?;
        self.compose(&["up", "-d"]).map(drop)
    }

    fn component(&self) -> String {
        [
            "[[component]]\nname = \"api\"\nkind = \"compose\"\n".to_owned(),
            key("project_dir", self.project_dir().display()),
            format!("files = [\"{FILE}\"]\nservices = [\"api\"]\n"),
            key("project", &self.project),
            key("variable", "VERSION"),
            format!("rebuild = {{ repository = \"{}\" }}\n", self.repository.dir.display()),
            self.docker.socket_key(),
            self.health(),
        ]
        .concat()
    }
}
