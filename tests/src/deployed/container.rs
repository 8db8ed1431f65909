//! One container, made by `docker run`.

use anyhow::Result;

use super::{Deployed, key};
use crate::docker::{AppImages, ContainerFacts, Docker, IMAGE_PORT};
use crate::process;
use crate::zekka::Version;

#[derive(Clone, Debug)]
pub struct ContainerApp {
    docker: Docker,
    images: AppImages,
    /// Of the container.
    pub name: String,
    pub port: u16,
    /// Further arguments of `docker run`: volumes, networks, variables.
    pub run_args: Vec<String>,
}

impl ContainerApp {
    pub fn new(docker: &Docker, images: &AppImages, host: &str) -> Result<Self> {
        Ok(Self {
            docker: docker.clone(),
            images: images.clone(),
            name: docker.name(&format!("zekka-{host}")),
            port: process::free_port()?,
            run_args: Vec::new(),
        })
    }

    pub fn facts(&self) -> Result<ContainerFacts> {
        self.docker.inspect(&self.name)
    }
}

impl Deployed for ContainerApp {
    fn port(&self) -> u16 {
        self.port
    }

    fn install(&self, version: Version) -> Result<()> {
        if self.facts().is_ok() {
            self.docker.run(&["rm", "--force", "--volumes", &self.name])?;
        }
        let publish = format!("127.0.0.1:{}:{IMAGE_PORT}", self.port);
        let begin = ["run", "--detach", "--restart", "unless-stopped", "--name", &self.name];
        let more: Vec<&str> = self.run_args.iter().map(String::as_str).collect();
        let image = self.images.name(version);
        self.docker
            .run(&[&begin[..], &["--publish", &publish], &more, &[&image]].concat())
            .map(drop)
    }

    fn component(&self) -> String {
        [
            "[[component]]\nname = \"api\"\nkind = \"container\"\n".to_owned(),
            key("container", &self.name),
            key("image", self.images.repository()),
            self.docker.socket_key(),
            self.health(),
        ]
        .concat()
    }
}
