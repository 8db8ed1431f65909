//! The agent's configuration: one TOML file, read and validated once into [`Settings`].
//!
//! Invariants:
//! - A key that is not known is an error, with its line and a guess at what was meant.
//! - What is here is all that the agent will ever do: no call adds a component, a path or a program.
//!
//! Each kind of component has its own keys, which its driver declares; [`component::Kind`] lists the kinds.

pub mod component;
mod document;
mod mistake;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rollback_proto::telemetry;
use rollback_proto::tls::CredentialFiles;

use self::component::Component;
pub use self::mistake::{ConfigError, Mistake};
use crate::application::ProcessConfig;
use crate::driver::Driver;
use crate::driver::checked::{Checked, NamedCheck};
use crate::driver::postgres::PostgresDriver;
use crate::vault::Vault;

/// A driver and the name of the component that it is for.
pub type NamedDriver = (String, Arc<dyn Driver>);

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This host's name in the fleet: the one that its certificate carries.
    pub name: String,
    pub listen: SocketAddr,
    /// `host:port`. `None`: follows from `listen`, see [`Settings::address`].
    pub advertise: Option<String>,
    /// `host:port` of each coordinator, at least one.
    pub coordinators: Vec<String>,
    /// Holds the ledger and the vault.
    pub state: PathBuf,
    /// Holds the CA's certificate, ours, and our key.
    pub pki: PathBuf,
    pub labels: BTreeMap<String, String>,
    pub telemetry: telemetry::Settings,
    /// In the order of the file.
    pub components: Vec<Component>,
    /// What the verification of a component asks besides its driver.
    pub checks: Vec<NamedCheck>,
}

impl Settings {
    /// Reads and validates a file. Touches nothing else.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|mistake| ConfigError::Wrong {
            path: path.to_owned(),
            mistake,
        })
    }

    pub fn parse(text: &str) -> Result<Self, Mistake> {
        document::read(text)
    }

    /// Makes the drivers, and checks what only they can: the values of their keys, and that `reads` names components
    /// of this host.
    pub fn drivers(&self, vault: &Arc<Vault>) -> Result<Vec<NamedDriver>, Mistake> {
        let mut drivers: Vec<NamedDriver> = Vec::with_capacity(self.components.len());
        for component in &self.components {
            let driver = component
                .kind
                .driver(&component.name, Arc::clone(vault))
                .map_err(|problem| Mistake::at(component.line, problem.message))?;
            for read in driver.info().reads {
                if read == component.name {
                    return Err(Mistake::at(component.line, format!("component {read} reads itself")));
                }
                if !self.components.iter().any(|c| c.name == read) {
                    let known = self.components.iter().map(|c| c.name.as_str());
                    return Err(Mistake::at(
                        component.line,
                        format!(
                            "component {} reads {read:?}, which is not a component of this host",
                            component.name
                        ),
                    )
                    .meant(&read, known));
                }
            }
            let checks: Vec<NamedCheck> = self
                .checks
                .iter()
                .filter(|c| c.component == component.name)
                .cloned()
                .collect();
            let driver = if checks.is_empty() {
                driver
            } else {
                Arc::new(Checked::new(driver, checks).hiding(self.env_files()))
            };
            drivers.push((component.name.clone(), driver));
        }
        Ok(drivers)
    }

    /// The driver of a database, with what only databases can do. `None`: no component of this name is one.
    pub fn database(&self, component: &str, vault: &Arc<Vault>) -> Result<Option<PostgresDriver>, Mistake> {
        let found = self.components.iter().find(|c| c.name == component);
        let Some((component, component::Kind::Postgres(config))) = found.map(|c| (c, &c.kind)) else {
            return Ok(None);
        };
        PostgresDriver::new(&component.name, config.as_ref().clone(), Arc::clone(vault))
            .map(Some)
            .map_err(|problem| Mistake::at(component.line, problem.message))
    }

    /// The names of the databases among the components.
    pub fn databases(&self) -> Vec<&str> {
        let databases = self
            .components
            .iter()
            .filter(|c| matches!(c.kind, component::Kind::Postgres(_)));
        databases.map(|c| c.name.as_str()).collect()
    }

    /// The env files among the components, and those that applications are started with: what is in them is quoted to
    /// nobody.
    pub fn env_files(&self) -> Vec<PathBuf> {
        let given = |process: &Option<ProcessConfig>| process.as_ref().and_then(ProcessConfig::env_file);
        let paths = |c: &Component| -> Vec<PathBuf> {
            match &c.kind {
                component::Kind::EnvFile(config) => vec![config.path.clone()],
                component::Kind::Container(config) => config.env_file.iter().cloned().collect(),
                component::Kind::Compose(config) => {
                    let files = config.env_files.iter();
                    files.map(|file| config.project_dir.join(file)).collect()
                }
                component::Kind::ReleaseDir(config) => given(&config.process).into_iter().collect(),
                component::Kind::Git(config) => given(&config.process).into_iter().collect(),
                component::Kind::Nginx(_) | component::Kind::Postgres(_) => Vec::new(),
            }
        };
        let all: BTreeSet<PathBuf> = self.components.iter().flat_map(paths).collect();
        all.into_iter().collect()
    }

    /// Where the coordinator finds us, given where we listen. Without `advertise` it is that address; where that is no
    /// address (`0.0.0.0`), it is this host's name.
    pub fn address(&self, bound: SocketAddr) -> String {
        match &self.advertise {
            Some(address) => address.clone(),
            None if bound.ip().is_unspecified() => format!("{}:{}", self.name, bound.port()),
            None => bound.to_string(),
        }
    }

    pub fn vault_dir(&self) -> PathBuf {
        self.state.join("vault")
    }

    pub fn credential_files(&self) -> CredentialFiles {
        crate::pki::files(&self.pki)
    }
}

#[cfg(test)]
mod tests;
