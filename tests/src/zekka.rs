//! The sample application's releases, and installing them by hand: the part of a deployment tool.
//!
//! Files are in `tests/zekka`. v3.0.0 differs from v2.9.0 in everything that a release holds: its content, a migration
//! (a column and a table), the env file and the nginx site.

mod migrations;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::json;

use crate::binaries::Binaries;
use crate::nginx::{MANAGED_INCLUDE, Nginx, UPSTREAM_INCLUDE};
use crate::postgres::{DATABASE, Postgres};
use crate::process::{self, run};
use crate::wait;

const HEALTHY_WITHIN: Duration = Duration::from_secs(30);

/// Rows of data that v3.0.0 alone knows: in its column (as far as there are deals), and in its table.
pub const STAGED: u64 = 1_000;

/// The releases of the sample application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V2_9_0,
    /// Differs from v2.9.0 in content and env file only.
    V2_9_1,
    V3_0_0,
    /// Needs two migrations more than v3.0.0: a file with both ways, and an index that is made while others write.
    V3_1_0,
}

/// What a version is made of, before the values of a fleet are filled in.
struct Content {
    release: &'static str,
    env: &'static str,
    site: &'static str,
}

impl Version {
    /// Those that are built in every form. The database alone makes v3.1.0 worth a story.
    pub const ALL: [Self; 3] = [Self::V2_9_0, Self::V2_9_1, Self::V3_0_0];

    pub fn name(self) -> &'static str {
        match self {
            Self::V2_9_0 => "v2.9.0",
            Self::V2_9_1 => "v2.9.1",
            Self::V3_0_0 => "v3.0.0",
            Self::V3_1_0 => "v3.1.0",
        }
    }

    /// The highest migration that it needs.
    pub fn schema(self) -> i64 {
        match self {
            Self::V2_9_0 | Self::V2_9_1 => 1,
            Self::V3_0_0 => 2,
            Self::V3_1_0 => 4,
        }
    }

    /// GREETING in its env file, which `/api/version` repeats.
    pub fn greeting(self) -> &'static str {
        match self {
            Self::V2_9_0 => "steady",
            Self::V2_9_1 => "steadier",
            Self::V3_0_0 => "shiny",
            Self::V3_1_0 => "shinier",
        }
    }

    /// The version whose nginx site it is served with.
    pub fn site(self) -> Self {
        match self {
            Self::V2_9_0 | Self::V2_9_1 => Self::V2_9_0,
            Self::V3_0_0 | Self::V3_1_0 => Self::V3_0_0,
        }
    }

    fn content(self) -> Content {
        match self {
            Self::V2_9_0 => Content {
                release: include_str!("../zekka/v2.9.0/release.json"),
                env: include_str!("../zekka/v2.9.0/env.production"),
                site: include_str!("../zekka/v2.9.0/zekka.conf"),
            },
            Self::V2_9_1 => Content {
                release: include_str!("../zekka/v2.9.1/release.json"),
                env: include_str!("../zekka/v2.9.1/env.production"),
                site: include_str!("../zekka/v2.9.0/zekka.conf"),
            },
            Self::V3_0_0 => Content {
                release: include_str!("../zekka/v3.0.0/release.json"),
                env: include_str!("../zekka/v3.0.0/env.production"),
                site: include_str!("../zekka/v3.0.0/zekka.conf"),
            },
            Self::V3_1_0 => Content {
                release: include_str!("../zekka/v3.1.0/release.json"),
                env: include_str!("../zekka/v3.1.0/env.production"),
                site: include_str!("../zekka/v3.0.0/zekka.conf"),
            },
        }
    }

    /// What `release.json` says of it.
    pub fn release_json(self) -> &'static str {
        self.content().release
    }

    /// Lays its release out in a directory, as a deployment unpacks it.
    pub fn unpack(self, binaries: &Binaries, dir: &Path) -> Result<()> {
        for sub in ["bin", "public"] {
            std::fs::create_dir_all(dir.join(sub)).with_context(|| format!("make {sub}"))?;
        }
        std::fs::copy(binaries.path("zekka-app"), dir.join("bin/zekka-app")).context("copy zekka-app")?;
        std::fs::write(dir.join("release.json"), self.release_json()).context("write release.json")?;
        let page = format!("<!doctype html>\n<title>zekka {}</title>\n", self.name());
        std::fs::write(dir.join("public/index.html"), page).context("write index.html")
    }

    /// Does a deployment of it change the schema?
    fn migrates(self) -> bool {
        match self {
            Self::V2_9_0 | Self::V3_0_0 | Self::V3_1_0 => true,
            Self::V2_9_1 => false,
        }
    }
}

/// A host of the application.
#[derive(Clone, Debug)]
pub struct AppHost {
    pub name: String,
    /// `/opt/zekka` of this host.
    pub root: PathBuf,
    pub port: u16,
}

impl AppHost {
    pub fn lay_out(name: &str, root: &Path) -> Result<Self> {
        for sub in ["releases", "run", "log"] {
            std::fs::create_dir_all(root.join(sub)).with_context(|| format!("make {sub}"))?;
        }
        Ok(Self {
            name: name.to_owned(),
            root: root.to_owned(),
            port: process::free_port()?,
        })
    }

    pub fn release_dir(&self, version: Version) -> PathBuf {
        self.root.join("releases").join(version.name())
    }

    pub fn env_file(&self) -> PathBuf {
        self.root.join(".env.production")
    }

    pub fn current(&self) -> PathBuf {
        self.root.join("current")
    }

    pub fn pid_file(&self) -> PathBuf {
        self.root.join("run/app.pid")
    }

    /// host:port, as nginx wants it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    pub fn pid(&self) -> Option<u32> {
        process::from_pid_file(&self.pid_file())
    }

    /// What the application noted of its starts and stops: (event, version).
    pub fn effects(&self) -> Result<Vec<(String, String)>> {
        let timed = self.timed_effects()?;
        Ok(timed.into_iter().map(|(_, event, version)| (event, version)).collect())
    }

    /// What the application noted of its starts and stops, and when: (time, event, version).
    pub fn timed_effects(&self) -> Result<Vec<(Timestamp, String, String)>> {
        let text = std::fs::read_to_string(self.root.join("log/effects.log")).context("read effects.log")?;
        let entry = |line: &str| -> Option<(Timestamp, String, String)> {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            let text = |key: &str| line[key].as_str().map(str::to_owned);
            Some((text("at")?.parse().ok()?, text("event")?, text("version")?))
        };
        text.lines()
            .map(|l| entry(l).with_context(|| format!("line of effects.log: {l}")))
            .collect()
    }

    /// Makes a version slow to start or never healthy, until changed again.
    pub fn set_fault(&self, version: Version, unhealthy: bool, start_delay: Duration) -> Result<()> {
        let delay = u64::try_from(start_delay.as_millis()).context("a delay in milliseconds")?;
        let faults = json!({ version.name(): { "unhealthy": unhealthy, "start_delay_ms": delay } });
        std::fs::write(self.root.join("faults.json"), faults.to_string()).context("write faults.json")
    }

    /// A version that is started does not begin to serve until [`AppHost::clear_faults`].
    pub fn hold_start(&self, version: Version) -> Result<()> {
        let faults = json!({ version.name(): { "start_held": true } });
        std::fs::write(self.root.join("faults.json"), faults.to_string()).context("write faults.json")
    }

    pub fn clear_faults(&self) -> Result<()> {
        std::fs::write(self.root.join("faults.json"), "{}").context("write faults.json")
    }

    fn call(&self, verb: &str) -> Result<()> {
        let env = std::fs::read_to_string(self.env_file()).context("read the env file")?;
        let pairs = env
            .lines()
            .filter(|l| !l.starts_with('#'))
            .filter_map(|l| l.split_once('='));
        let mut command = Command::new(self.current().join("bin/zekka-app"));
        command
            .arg(verb)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .envs(pairs)
            .current_dir("/");
        run(&mut command).map(drop)
    }

    /// Ends what runs here, and waits until it has ended.
    pub fn stop(&self) -> Result<()> {
        if self.pid().is_some() {
            self.call("stop")?;
        }
        Ok(())
    }

    /// Stops what runs, lets the env file be written, swaps the link and starts the version, which is unpacked already.
    pub fn replace(&self, version: Version, write_env: impl FnOnce() -> Result<()>) -> Result<()> {
        self.stop()?;
        write_env()?;
        let temp = self.root.join("current.new");
        std::os::unix::fs::symlink(Path::new("releases").join(version.name()), &temp).context("make the link")?;
        std::fs::rename(&temp, self.current()).context("swap the link")?;
        self.call("launch")
    }

    /// `process` of the agent's component: the application's own `launch` and `stop`.
    pub fn process_key(&self) -> String {
        let program = self.current().join("bin/zekka-app").display().to_string();
        format!(
            "process = {{ start = [\"{program}\", \"launch\"], stop = [\"{program}\", \"stop\"], \
             pid_file = \"{}\", env_file = \"{}\", log = \"{}\" }}\n",
            self.pid_file().display(),
            self.env_file().display(),
            self.root.join("log/app.log").display(),
        )
    }

    /// Ends the process whoever started it, with force if it must be.
    pub fn end(&self) {
        if let Some(pid) = self.pid() {
            // Nothing can be done about a failure, and the fleet goes on ending.
            let _ = process::kill(pid, Signal::KILL);
        }
    }
}

/// Everything that belongs to an installation of the sample application.
#[derive(Debug)]
pub struct Zekka {
    pub hosts: Vec<AppHost>,
    pub migrations: PathBuf,
    /// A value that must never be seen outside the hosts.
    pub secret: String,
    /// More lines for the server block of a version's nginx site.
    pub site_extra: BTreeMap<Version, String>,
    /// SQL in front of a version's own down migration.
    pub down_extra: BTreeMap<Version, String>,
    /// Deals in the database; users are a hundredth of that.
    pub rows: u64,
    /// The daemons outlive this value.
    pub let_go: bool,
}

impl Drop for Zekka {
    fn drop(&mut self) {
        if !self.let_go {
            self.hosts.iter().for_each(AppHost::end);
        }
    }
}

impl Zekka {
    /// One whose applications are somebody else's affair: what is left is the database's part.
    pub fn without_hosts(migrations: PathBuf) -> Self {
        Self {
            hosts: Vec::new(),
            migrations,
            secret: format!("{:032x}", rand::random::<u128>()),
            site_extra: BTreeMap::new(),
            down_extra: BTreeMap::new(),
            rows: 2_000,
            let_go: true,
        }
    }

    pub fn render_env(&self, postgres: &Postgres, host: &AppHost, version: Version) -> String {
        let text = version.content().env.replace("{database_url}", &postgres.url());
        text.replace("{port}", &host.port.to_string())
            .replace("{secret}", &self.secret)
    }

    pub fn render_site(&self, nginx: &Nginx, version: Version) -> String {
        let extra = self.site_extra.get(&version).map_or("", String::as_str);
        let text = version.content().site.replace("{port}", &nginx.port().to_string());
        text.replace("{extra}", extra)
            .replace("{managed_include}", MANAGED_INCLUDE)
            .replace("{upstream_include}", UPSTREAM_INCLUDE)
    }

    /// Puts the files of all migrations that the version needs where the agent finds them, and applies those that are not
    /// applied yet.
    fn migrate_up(&self, postgres: &Postgres, version: Version) -> Result<()> {
        std::fs::create_dir_all(&self.migrations).context("make the directory of migrations")?;
        postgres.migrate(
            "SET client_min_messages = warning; CREATE TABLE IF NOT EXISTS schema_migrations \
             (version bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())",
        )?;
        let applied = postgres.psql(DATABASE, "SELECT version FROM schema_migrations")?;
        let applied: Vec<&str> = applied.lines().collect();
        for migration in migrations::ALL.iter().filter(|m| m.number <= version.schema()) {
            if applied.contains(&migration.number.to_string().as_str()) {
                continue;
            }
            let own = migration.number == version.schema();
            let before = self.down_extra.get(&version).filter(|_| own).map_or("", String::as_str);
            migration.write(&self.migrations, before)?;
            migration.apply(postgres)?;
        }
        Ok(())
    }

    fn seed(&self, postgres: &Postgres) -> Result<()> {
        let (users, deals) = ((self.rows / 100).max(1), self.rows);
        postgres.migrate(&format!(
            "INSERT INTO users (email) SELECT 'user' || n || '@zekka.example' FROM generate_series(1, {users}) n;\
             INSERT INTO deals (owner, title, amount) \
             SELECT 1 + n % {users}, 'Deal ' || n || ' ' || md5(n::text), (n * 7919) % 1000000 \
             FROM generate_series(1, {deals}) n;"
        ))
    }

    /// Data that only v3.0.0 knows, in its column and in its table. The table's sequence is ahead of its rows, so that
    /// one that was made anew from them would show.
    fn seed_stages(&self, postgres: &Postgres) -> Result<()> {
        let staged = self.rows.min(STAGED);
        postgres.migrate(&format!(
            "UPDATE deals SET stage = CASE WHEN id % 2 = 0 THEN 'won' ELSE 'stalled at ' || id END WHERE id <= {staged};\
             INSERT INTO deal_events (deal, stage, happened_at) \
             SELECT 1 + n % {staged}, 'step ' || n, timestamptz '2026-01-01 00:00:00Z' + n * interval '1 minute' \
             FROM generate_series(1, {STAGED} + 10) n;\
             DELETE FROM deal_events WHERE id > {STAGED};"
        ))
    }

    /// The down file of the highest migration that a version needs.
    pub fn down_file(&self, version: Version) -> PathBuf {
        let highest = migrations::ALL.iter().rfind(|m| m.number <= version.schema());
        let name = highest.map_or("none", |migration| migration.name);
        self.migrations.join(format!("{name}.down.sql"))
    }

    /// The database's part of a deployment: the migration that the version brings, and data that it would have made.
    pub fn deploy_database(&self, postgres: &Postgres, version: Version) -> Result<()> {
        if version.migrates() {
            self.migrate_up(postgres, version)?;
        }
        match version {
            Version::V2_9_0 => self.seed(postgres),
            Version::V2_9_1 => Ok(()),
            Version::V3_0_0 => self.seed_stages(postgres),
            Version::V3_1_0 => {
                self.seed_stages(postgres)?;
                postgres.migrate("UPDATE users SET display_name = 'User number ' || id WHERE id % 2 = 0")
            }
        }
    }

    /// Brings a version live on every host and waits until every one of them serves it.
    pub async fn deploy(
        &self,
        binaries: &Binaries,
        postgres: &Postgres,
        nginx: &mut Nginx,
        version: Version,
    ) -> Result<()> {
        for host in &self.hosts {
            version.unpack(binaries, &host.release_dir(version))?;
        }
        self.deploy_database(postgres, version)?;
        self.replace_all(postgres, version)?;
        std::fs::write(nginx.site(), self.render_site(nginx, version)).context("write the site")?;
        if nginx.pid().is_some() {
            nginx.reload().await?;
        } else {
            nginx.start().await?;
        }
        self.wait_healthy(version).await
    }

    /// Starts a version, which is unpacked already, on every host, in place of what runs there.
    pub fn replace_all(&self, postgres: &Postgres, version: Version) -> Result<()> {
        self.hosts.iter().try_for_each(|host| {
            host.replace(version, || {
                write_secret(&host.env_file(), &self.render_env(postgres, host, version))
            })
        })
    }

    /// Waits until every host says that it is healthy.
    pub async fn wait_healthy(&self, version: Version) -> Result<()> {
        let client = reqwest::Client::new();
        for host in &self.hosts {
            let what = format!("{} of {} is healthy", version.name(), host.name);
            wait::until_true(&what, HEALTHY_WITHIN, async || {
                let answer = client.get(host.url("/api/health")).send().await;
                answer.is_ok_and(|a| a.status().is_success())
            })
            .await?;
        }
        Ok(())
    }
}

/// Writes a file that only its owner may read.
pub fn write_secret(path: &Path, text: &str) -> Result<()> {
    rollback_proto::tls::write_private(path, text.as_bytes()).with_context(|| format!("write {}", path.display()))
}
