//! The hosts, and what is deployed by hand on each.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::control::Control;
use crate::deployed::compose::ComposeApp;
use crate::deployed::container::ContainerApp;
use crate::deployed::database::{self, Database};
use crate::deployed::git::GitApp;
use crate::deployed::release::{ReleaseApp, archive};
use crate::deployed::unit::{UNIT, UnitApp};
use crate::deployed::{Deployed, PROXY, deploy, nginx_before};
use crate::docker::{AppImages, Docker};
use crate::nginx::Nginx;
use crate::pm2::Pm2;
use crate::postgres::{DATABASE, ROLE};
use crate::zekka::{Version, write_secret};

/// Where v2.9.0 runs when it is imported: everywhere but on app-4.
pub const AS_IS: [&str; 8] = [
    "app-1/api",
    "app-2/api",
    "app-3/api",
    "app-3/env",
    "app-5/api",
    "app-5/env",
    "db-1/db",
    "proxy-1/proxy",
];

/// How many `[[check]]`s there are on all hosts.
pub const CHECKS: usize = 10;

#[derive(Debug)]
pub struct Fleet {
    pub docker: Docker,
    pub images: AppImages,
    pub container: ContainerApp,
    pub compose: ComposeApp,
    pub git: GitApp,
    pub unit: UnitApp,
    pub release: ReleaseApp,
    pub database: Database,
    pub nginx: Nginx,
    /// What app-3's command leaves behind.
    pub touched: PathBuf,
}

impl Fleet {
    /// v2.9.0 everywhere, but v3.0.0 on app-4. Then the agents.
    pub async fn deploy(control: &mut Control) -> Result<Self> {
        let docker = Docker::of(control).await?;
        let images = AppImages::build(&docker, &control.binaries)?;
        let redis = docker.redis_image()?;
        let database = Database::of(control).await?;
        let pm2 = Pm2::of(control, "app-3")?;
        let container = ContainerApp::new(&docker, &images, "app-1")?;
        let compose = ComposeApp::lay_out(&docker, &images, &redis, "app-2", &control.host_dir("app-2"))?;
        let git = GitApp::lay_out(&pm2, &control.host_dir("app-3").join("opt/zekka"))?;
        let mut unit = UnitApp::lay_out(control, "app-4")?;
        let mut release = ReleaseApp::of(control, "app-5")?;
        release.more_env = format!("DATABASE_URL={}\n", database.postgres.url());
        unit.checks = [
            check("journal", "api", &format!("log = {{ journald = \"{UNIT}\" }}")),
            check(
                "unit",
                "api",
                &format!("process = {{ unit = \"{UNIT}\", max_restarts = 0, max_memory = \"512MB\" }}"),
            ),
        ]
        .concat();

        database.install(Version::V2_9_0)?;
        let first: [&dyn Deployed; 4] = [&container, &compose, &git, &release];
        for app in first {
            deploy(app, Version::V2_9_0).await?;
        }
        deploy(&unit, Version::V3_0_0).await?;
        archive(&control.binaries, Version::V2_9_0, &unit.host.root.join("backups"))?;
        let backup = unit.host.root.join(".env.production.backup");
        write_secret(&backup, &unit.env(Version::V2_9_0))?;

        let apps: [(&str, &dyn Deployed); 5] = [
            ("app-1", &container),
            ("app-2", &compose),
            ("app-3", &git),
            ("app-4", &unit),
            ("app-5", &release),
        ];
        let nginx = nginx_before(control, &apps, Version::V2_9_0).await?;
        let fleet = Self {
            touched: control.host_dir("app-3").join("asked"),
            docker,
            images,
            container,
            compose,
            git,
            unit,
            release,
            database,
            nginx,
        };
        fleet.add_agents(control).await?;
        Ok(fleet)
    }

    async fn add_agents(&self, control: &mut Control) -> Result<()> {
        let backends = self
            .apps()
            .map(|(host, app)| (format!("{host}/api"), app.address()))
            .into();
        let proxy = self.nginx.component(&backends)
            + &check(
                "through-nginx",
                "proxy",
                &format!("http = \"{}\"", self.nginx.url("/api/health")),
            );
        let with_checks = |app: &dyn Deployed, checks: String| app.component() + &checks;
        let hosts = [
            ("app-1", "app", with_checks(&self.container, self.container_checks())),
            ("app-2", "app", with_checks(&self.compose, self.cache_check()?)),
            ("app-3", "app", with_checks(&self.git, self.command_check())),
            ("app-5", "app", with_checks(&self.release, self.release_checks())),
            (
                database::HOST,
                "db",
                self.database.component().to_owned() + &self.deals_check(control),
            ),
            (PROXY, "proxy", proxy),
        ];
        for (host, tier, components) in &hosts {
            control.start_agent(host, tier, components).await?;
        }
        self.unit.add_agent(control).await?;
        let names: Vec<&str> = hosts.iter().map(|(host, ..)| *host).collect();
        control.wait_connected(&names).await
    }

    fn container_checks(&self) -> String {
        let socket = match self.docker.host_variable() {
            Some(_) => format!(", socket = \"{}\"", self.docker.socket().display()),
            None => String::new(),
        };
        let name = &self.container.name;
        let process =
            format!("process = {{ container = \"{name}\", max_restarts = 0, max_memory = \"512MB\"{socket} }}");
        let log = format!("log = {{ container = \"{name}\"{socket} }}");
        check("container-log", "api", &log) + &check("container-process", "api", &process)
    }

    /// The address of redis in the project's network.
    pub fn cache(&self) -> Result<String> {
        let networks = self.compose.facts("cache")?.networks;
        let network = networks.into_values().next().context("redis is in a network")?;
        Ok(network.address)
    }

    fn cache_check(&self) -> Result<String> {
        let address = self.cache()?;
        Ok(check(
            "cache",
            "api",
            // It is asked in vain once.
            &format!("redis = {{ address = \"{address}:6379\" }}\nwithin = \"3s\""),
        ))
    }

    fn command_check(&self) -> String {
        let command = format!(
            "command = {{ run = [\"/usr/bin/touch\", \"{}\"] }}",
            self.touched.display()
        );
        check("command", "api", &command)
    }

    /// Removes what the command has left behind so far.
    pub fn forget_command(&self) -> Result<()> {
        match std::fs::remove_file(&self.touched) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context("forget the command"),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn release_checks(&self) -> String {
        let host = &self.release.host;
        let log = format!("log = {{ file = \"{}\" }}", host.root.join("log/app.log").display());
        let process = format!(
            "process = {{ pid_file = \"{}\", max_memory = \"512MB\", steady = \"1s\" }}",
            host.pid_file().display()
        );
        check("file-log", "api", &log) + &check("process", "api", &process)
    }

    fn deals_check(&self, control: &Control) -> String {
        let postgres = &self.database.postgres;
        let query = format!(
            "postgres = {{ host = \"{}\", port = {}, user = \"{ROLE}\", database = \"{DATABASE}\", \
             password_file = \"{}\", query = \"SELECT count(*) > 0 FROM deals\" }}",
            postgres.socket().display(),
            postgres.port(),
            control.host_dir(database::HOST).join("db.password").display(),
        );
        check("deals", "db", &query)
    }

    /// v3.0.0 by hand where it is not yet, its migration first.
    pub async fn upgrade(&mut self) -> Result<()> {
        self.database.install(Version::V3_0_0)?;
        let first: [&dyn Deployed; 4] = [&self.container, &self.compose, &self.git, &self.release];
        for app in first {
            deploy(app, Version::V3_0_0).await?;
        }
        self.nginx.write_site(Version::V3_0_0.name())?;
        self.nginx.reload().await
    }

    pub fn apps(&self) -> [(&'static str, &dyn Deployed); 5] {
        [
            ("app-1", &self.container),
            ("app-2", &self.compose),
            ("app-3", &self.git),
            ("app-4", &self.unit),
            ("app-5", &self.release),
        ]
    }

    /// What runs beside the components, and nobody asked to touch.
    pub fn bystanders(&self) -> Result<[String; 3]> {
        let cache = self.compose.facts("cache")?;
        let systemd = Arc::clone(&self.unit.systemd);
        let init = systemd.exec(&["systemctl", "show", "--property=UserspaceTimestampMonotonic", "--value"])?;
        Ok([
            cache.id + &cache.started_at,
            format!("{:?}", self.database.postgres.pid()),
            systemd.id().to_owned() + &init,
        ])
    }
}

fn check(name: &str, component: &str, asked: &str) -> String {
    format!("[[check]]\nname = \"{name}\"\ncomponent = \"{component}\"\n{asked}\n")
}
