//! Starting a fleet.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Fleet, HOSTS, Mount};
use crate::control::{Control, ControlOptions, StoreKind};
use crate::effects;
use crate::nginx::Nginx;
use crate::postgres::{ClusterOptions, Postgres};
use crate::process::run;
use crate::zekka::{AppHost, Version, Zekka};

/// Files and directories that a small disk has room for.
pub const SMALL_DISK_FILES: u32 = 64;

/// What a fleet shall be like. The default is small and quick.
#[derive(Clone, Debug)]
pub struct FleetBuilder {
    rows: u64,
    durable: bool,
    keep: bool,
    otlp: Option<String>,
    site_extra: BTreeMap<Version, String>,
    down_extra: BTreeMap<Version, String>,
    pg_bin_dir: Option<PathBuf>,
    small_disk: Option<(&'static str, u32)>,
    store: StoreKind,
    replicas: usize,
    leadership: BTreeMap<&'static str, String>,
    readiness: Option<String>,
    effects: bool,
}

impl Default for FleetBuilder {
    fn default() -> Self {
        Self {
            rows: 2_000,
            durable: false,
            keep: false,
            otlp: None,
            site_extra: BTreeMap::new(),
            down_extra: BTreeMap::new(),
            pg_bin_dir: None,
            small_disk: None,
            store: StoreKind::default(),
            replicas: 1,
            leadership: BTreeMap::new(),
            readiness: None,
            effects: false,
        }
    }
}

impl FleetBuilder {
    /// Deals in the database.
    #[must_use]
    pub fn rows(mut self, rows: u64) -> Self {
        self.rows = rows;
        self
    }

    /// PostgreSQL with fsync, for figures that mean something.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// The fleet shall outlive the harness.
    #[must_use]
    pub fn keep(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// All programs export their spans there.
    #[must_use]
    pub fn otlp(mut self, endpoint: &str) -> Self {
        self.otlp = Some(endpoint.to_owned());
        self
    }

    /// More lines for the server block of a version's nginx site.
    #[must_use]
    pub fn site_extra(mut self, version: Version, lines: &str) -> Self {
        self.site_extra.insert(version, lines.to_owned());
        self
    }

    /// SQL in front of a version's own down migration.
    #[must_use]
    pub fn down_extra(mut self, version: Version, sql: &str) -> Self {
        self.down_extra.insert(version, sql.to_owned());
        self
    }

    /// The directory in which db-1's agent finds `pg_dump` and `pg_restore`.
    #[must_use]
    pub fn pg_bin_dir(mut self, dir: &Path) -> Self {
        self.pg_bin_dir = Some(dir.to_owned());
        self
    }

    /// The releases of one app host are on a disk of their own of so many MiB and [`SMALL_DISK_FILES`] files.
    #[must_use]
    pub fn small_disk(mut self, host: &'static str, mib: u32) -> Self {
        self.small_disk = Some((host, mib));
        self
    }

    /// Where the coordinator keeps its journal.
    #[must_use]
    pub fn store(mut self, store: StoreKind) -> Self {
        self.store = store;
        self
    }

    /// So many coordinators, with their journal in one PostgreSQL.
    #[must_use]
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self.store = StoreKind::Postgres;
        self
    }

    /// A key of `[leadership]` that is not as shipped: `ttl`, `renew`, `step_down`.
    #[must_use]
    pub fn leadership(mut self, key: &'static str, value: &str) -> Self {
        self.leadership.insert(key, value.to_owned());
        self
    }

    /// How often the leader checks which releases the fleet could go back to: `1s`.
    #[must_use]
    pub fn readiness(mut self, every: &str) -> Self {
        self.readiness = Some(every.to_owned());
        self
    }

    /// PostgreSQL keeps what a record of [`effects`] asks it for.
    #[must_use]
    pub fn effects(mut self) -> Self {
        self.effects = true;
        self
    }

    /// Starts everything but the application, enrolls the agents and waits until the coordinator is in touch with all.
    pub async fn start(self) -> Result<Fleet> {
        let options = ControlOptions {
            keep: self.keep,
            otlp: self.otlp.clone(),
            store: self.store,
            further_replicas: self.replicas.saturating_sub(1),
            leadership: self.leadership.clone(),
            readiness: self.readiness.clone(),
            durable: self.durable,
        };
        let control = Control::start(options).await?;
        let host = |name: &str| control.host_dir(name);
        for name in HOSTS {
            std::fs::create_dir_all(host(name)).with_context(|| format!("make {name}"))?;
        }

        let cluster = ClusterOptions {
            durable: self.durable,
            keep: self.keep,
            settings: if self.effects {
                effects::SETTINGS.to_vec()
            } else {
                Vec::new()
            },
            ..ClusterOptions::default()
        };
        let data = host("db-1").join("postgres");
        let postgres = Postgres::start(&data, &control.log("postgres"), &cluster).await?;
        let nginx = Nginx::lay_out(&host("proxy-1").join("nginx"), &control.log("nginx"), self.keep)?;
        let mut mounts = Vec::new();
        let mut hosts = Vec::new();
        for name in ["app-1", "app-2"] {
            let app = AppHost::lay_out(name, &host(name).join("opt/zekka"))?;
            if let Some((small, mib)) = self.small_disk
                && small == name
            {
                let releases = app.root.join("releases");
                let limits = format!("size={mib}m,nr_inodes={SMALL_DISK_FILES}");
                run(Command::new("mount")
                    .args(["-t", "tmpfs", "-o", &limits, "tmpfs"])
                    .arg(&releases))
                .context("mount a small disk (this needs root and CAP_SYS_ADMIN)")?;
                mounts.push(Mount(releases));
            }
            hosts.push(app);
        }
        nginx.write_upstream(&hosts.iter().map(AppHost::address).collect::<Vec<_>>())?;
        let mut fleet = Fleet {
            zekka: Zekka {
                hosts,
                migrations: host("db-1").join("migrations"),
                secret: format!("{:032x}", rand::random::<u128>()),
                site_extra: self.site_extra.clone(),
                down_extra: self.down_extra.clone(),
                rows: self.rows,
                let_go: false,
            },
            nginx,
            postgres,
            _mounts: mounts,
            control,
        };
        if let Err(error) = self.join(&mut fleet).await {
            anyhow::bail!("start the fleet: {error:#}\nthe logs end so:\n{}", fleet.tails());
        }
        Ok(fleet)
    }

    async fn join(&self, fleet: &mut Fleet) -> Result<()> {
        let apps = fleet.zekka.hosts.iter();
        let backends = apps.map(|h| (format!("{}/api", h.name), h.address())).collect();
        for name in HOSTS {
            let (components, tier) = match name {
                "db-1" => (self.database_component(fleet)?, "db"),
                "proxy-1" => (fleet.nginx.component(&backends), "proxy"),
                app => (app_components(fleet.app(app)?), "app"),
            };
            fleet.start_agent(name, tier, &components).await?;
        }
        fleet.wait_connected(&HOSTS).await
    }

    fn database_component(&self, fleet: &Fleet) -> Result<String> {
        let bin_dir = self.pg_bin_dir.as_deref().unwrap_or(fleet.postgres.bin());
        fleet
            .postgres
            .component(&fleet.host_dir("db-1"), &fleet.zekka.migrations, bin_dir)
    }
}

fn app_components(host: &AppHost) -> String {
    format!(
        "[[component]]\nname = \"env\"\nkind = \"env-file\"\npath = \"{env}\"\n\
         [[component]]\nname = \"api\"\nkind = \"release-dir\"\nroot = \"{root}\"\nreads = [\"env\"]\n\
         {process}\
         health = {{ http = \"{health}\", version = \"/api/version\", within = \"8s\" }}\n",
        env = host.env_file().display(),
        root = host.root.display(),
        process = host.process_key(),
        health = host.url("/api/health"),
    )
}
