//! `[[component]]`: a name, a kind, and the keys of that kind. A new kind of component is added here and under
//! `driver/`, and nowhere else.

use std::sync::Arc;

use rollback_proto::problem::Problem;
use serde::Deserialize;
use toml::de::ValueDeserializer;

use crate::driver::Driver;
use crate::driver::compose::{ComposeConfig, ComposeDriver};
use crate::driver::container::{ContainerConfig, ContainerDriver};
use crate::driver::env_file::{EnvFileConfig, EnvFileDriver};
use crate::driver::git::{GitConfig, GitDriver};
use crate::driver::nginx::{NginxConfig, NginxDriver};
use crate::driver::postgres::{PostgresConfig, PostgresDriver};
use crate::driver::release_dir::{ReleaseDirConfig, ReleaseDirDriver};
use crate::vault::Vault;

/// A component as configured.
#[derive(Clone, Debug)]
pub struct Component {
    pub name: String,
    pub kind: Kind,
    /// Where it stands in the file.
    pub line: usize,
}

/// The kinds, each with its own keys.
#[derive(Clone, Debug)]
pub enum Kind {
    Container(Box<ContainerConfig>),
    Compose(Box<ComposeConfig>),
    ReleaseDir(Box<ReleaseDirConfig>),
    Git(Box<GitConfig>),
    EnvFile(EnvFileConfig),
    Nginx(Box<NginxConfig>),
    Postgres(Box<PostgresConfig>),
}

/// What `kind` may be.
pub const KINDS: [&str; 7] = [
    "container",
    "compose",
    "release-dir",
    "git",
    "env-file",
    "nginx",
    "postgres",
];

impl Kind {
    /// The keys besides `name` and `kind`. `None`: there is no such kind.
    pub(super) fn read(kind: &str, keys: ValueDeserializer<'_>) -> Option<Result<Self, toml::de::Error>> {
        Some(match kind {
            "container" => Deserialize::deserialize(keys).map(|c| Kind::Container(Box::new(c))),
            "compose" => Deserialize::deserialize(keys).map(|c| Kind::Compose(Box::new(c))),
            "release-dir" => Deserialize::deserialize(keys).map(|c| Kind::ReleaseDir(Box::new(c))),
            "git" => Deserialize::deserialize(keys).map(|c| Kind::Git(Box::new(c))),
            "env-file" => Deserialize::deserialize(keys).map(Kind::EnvFile),
            "nginx" => Deserialize::deserialize(keys).map(|c| Kind::Nginx(Box::new(c))),
            "postgres" => Deserialize::deserialize(keys).map(|c| Kind::Postgres(Box::new(c))),
            _ => return None,
        })
    }

    pub(super) fn driver(&self, component: &str, vault: Arc<Vault>) -> Result<Arc<dyn Driver>, Problem> {
        Ok(match self.clone() {
            Kind::Container(config) => Arc::new(ContainerDriver::new(component, *config, vault)?),
            Kind::Compose(config) => Arc::new(ComposeDriver::new(component, *config, vault)?),
            Kind::ReleaseDir(config) => Arc::new(ReleaseDirDriver::new(component, *config, vault)?),
            Kind::Git(config) => Arc::new(GitDriver::new(component, *config, vault)?),
            Kind::EnvFile(config) => Arc::new(EnvFileDriver::new(component, config, vault)?),
            Kind::Nginx(config) => Arc::new(NginxDriver::new(component, *config, vault)?),
            Kind::Postgres(config) => Arc::new(PostgresDriver::new(component, *config, vault)?),
        })
    }
}
