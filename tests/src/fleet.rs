//! A whole fleet in one temporary directory: app-1, app-2, db-1, proxy-1 and a coordinator, as separate processes.
//!
//! ```text
//! <dir>/coordinator/               what `rollback-coordinator init` makes
//! <dir>/hosts/<name>/agent/        agent.toml, pki, state (ledger, vault)
//! <dir>/hosts/app-*/opt/zekka/     releases, current, .env.production, run, log
//! <dir>/hosts/db-1/                postgres, migrations, backups
//! <dir>/hosts/proxy-1/nginx/       etc, run, log
//! <dir>/log/                       one file per process
//! ```

mod build;
mod keep;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

pub use self::build::{FleetBuilder, SMALL_DISK_FILES};
use crate::agent::Agent;
use crate::binaries::Binaries;
use crate::coordinator::Coordinator;
use crate::ctl::Ctl;
use crate::nginx::Nginx;
use crate::postgres::Postgres;
use crate::process;
use crate::zekka::{AppHost, Version, Zekka};

/// Lines of each log that are shown when something failed.
const TAIL: usize = 25;

/// Names of the hosts, in the order in which they are shown.
pub const HOSTS: [&str; 4] = ["app-1", "app-2", "db-1", "proxy-1"];

/// A running fleet. Ends with this value: in order by [`Fleet::stop`], with force when dropped. Fields are dropped in
/// the order in which they stand: the programs under test, the servers, the directory.
#[derive(Debug)]
pub struct Fleet {
    pub binaries: Binaries,
    pub coordinator: Coordinator,
    pub agents: BTreeMap<String, Agent>,
    pub zekka: Zekka,
    pub nginx: Nginx,
    pub postgres: Postgres,
    /// The first operator's.
    pub ctl: Ctl,
    _mounts: Vec<Mount>,
    dir: TempDir,
}

impl Fleet {
    pub fn builder() -> FleetBuilder {
        FleetBuilder::default()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn host_dir(&self, host: &str) -> PathBuf {
        self.dir().join("hosts").join(host)
    }

    pub fn app(&self, name: &str) -> Result<&AppHost> {
        self.zekka
            .hosts
            .iter()
            .find(|h| h.name == name)
            .with_context(|| format!("{name} is a host of the application"))
    }

    pub fn agent(&mut self, name: &str) -> Result<&mut Agent> {
        self.agents
            .get_mut(name)
            .with_context(|| format!("{name} has an agent"))
    }

    /// Brings a version live by hand, as a deployment tool would.
    pub async fn deploy(&mut self, version: Version) -> Result<()> {
        self.zekka
            .deploy(&self.binaries, &self.postgres, &mut self.nginx, version)
            .await
    }

    /// Deploys and records v2.9.0, then deploys v3.0.0 and records it, too.
    pub async fn deploy_both(&mut self) -> Result<()> {
        for version in [Version::V2_9_0, Version::V3_0_0] {
            self.deploy(version).await?;
            self.ctl.record(version.name()).await?.expect_code(0)?;
        }
        Ok(())
    }

    /// The ends of all logs, for a failure's report.
    pub fn tails(&self) -> String {
        let mut logs: Vec<PathBuf> = std::fs::read_dir(self.dir().join("log"))
            .map(|entries| entries.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        logs.push(self.nginx.error_log());
        logs.extend(
            self.zekka
                .hosts
                .iter()
                .flat_map(|h| [h.root.join("log/app.log"), h.root.join("log/effects.log")]),
        );
        logs.sort();
        let shown = logs.iter().map(|log| {
            let name = log.strip_prefix(self.dir()).unwrap_or(log).display().to_string();
            format!("----- {name}\n{}\n", process::tail(log, TAIL))
        });
        shown.collect()
    }

    /// Ends everything in order and removes the directory.
    pub async fn stop(mut self) -> Result<()> {
        for agent in self.agents.values_mut() {
            agent.stop().await?;
        }
        self.coordinator.stop().await?;
        self.nginx.stop().await?;
        self.zekka.hosts.iter().for_each(AppHost::end);
        self.postgres.stop().await
        // The rest is what dropping does.
    }
}

/// A mounted file system.
#[derive(Debug)]
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        // Nothing can be done about a failure; the directory's removal will say so.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
