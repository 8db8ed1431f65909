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

use std::path::PathBuf;

use anyhow::{Context, Result};

pub use self::build::{FleetBuilder, SMALL_DISK_FILES};
use crate::control::Control;
use crate::nginx::Nginx;
use crate::postgres::Postgres;
use crate::zekka::{AppHost, Version, Zekka};

/// Names of the hosts, in the order in which they are shown.
pub const HOSTS: [&str; 4] = ["app-1", "app-2", "db-1", "proxy-1"];

/// A running fleet: [`Control`], to which it dereferences, and zekka's servers. Ends with this value: in order by
/// [`Fleet::stop`], with force when dropped. The programs under test go first, then the servers, then the directory.
#[derive(Debug)]
pub struct Fleet {
    pub zekka: Zekka,
    pub nginx: Nginx,
    pub postgres: Postgres,
    _mounts: Vec<Mount>,
    control: Control,
}

impl std::ops::Deref for Fleet {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

impl std::ops::DerefMut for Fleet {
    fn deref_mut(&mut self) -> &mut Control {
        &mut self.control
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Before the servers that they work on, which go with the fields.
        self.control.end();
    }
}

impl Fleet {
    pub fn builder() -> FleetBuilder {
        FleetBuilder::default()
    }

    pub fn app(&self, name: &str) -> Result<&AppHost> {
        self.zekka
            .hosts
            .iter()
            .find(|h| h.name == name)
            .with_context(|| format!("{name} is a host of the application"))
    }

    /// Brings a version live by hand, as a deployment tool would.
    pub async fn deploy(&mut self, version: Version) -> Result<()> {
        self.zekka
            .deploy(&self.control.binaries, &self.postgres, &mut self.nginx, version)
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
        let apps = self.zekka.hosts.iter();
        let notes = apps.flat_map(|h| [h.root.join("log/app.log"), h.root.join("log/effects.log")]);
        self.control.tails(notes.chain([self.nginx.error_log()]))
    }

    /// Ends everything in order and removes the directory.
    pub async fn stop(mut self) -> Result<()> {
        self.control.stop().await?;
        self.nginx.stop().await?;
        self.zekka.hosts.iter().for_each(AppHost::end);
        self.postgres.stop().await
        // The rest is what dropping does.
    }

    /// Lets every process go and says how to use the fleet and how to end it. The builder must have been told.
    pub fn leave_running(mut self) -> Result<String> {
        self.nginx.let_go();
        self.postgres.let_go();
        self.zekka.let_go = true;
        let hints = [
            format!("curl -i {}", self.nginx.url("/api/version")),
            self.control.agent("db-1")?.tool_line("database list db"),
        ];
        self.control.leave_running(&hints)
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
