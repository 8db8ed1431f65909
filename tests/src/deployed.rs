//! The sample application, deployed in every way that the runbooks know, each by hand: as the runbook or a deployment
//! tool does it, without the programs under test.
//!
//! | room | how it is deployed | who runs it |
//! |---|---|---|
//! | [`container`] | `docker run` | the engine |
//! | [`compose`] | IMAGE_TAG in `.env`, `docker-compose up -d` | Compose |
//! | [`rebuilt`] | `git checkout`, `docker-compose build`, `up -d` | Compose |
//! | [`git`] | a worktree of a tag, `npm ci`, a link | pm2 |
//! | [`release`] | an archive that is unpacked, a link | itself (`launch` and `stop`) |
//! | [`unit`] | the same | systemd |
//! | [`database`] | migrations, by psql | PostgreSQL |
//!
//! All but the database are [`Deployed`]: a story can have several kinds in one list.

pub mod compose;
pub mod container;
pub mod database;
pub mod git;
pub mod rebuilt;
pub mod release;
pub mod unit;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::control::Control;
use crate::facts::curl;
use crate::nginx::Nginx;
use crate::wait;
use crate::zekka::Version;

/// The host of [`behind_nginx`]'s proxy.
pub const PROXY: &str = "proxy-1";

const SERVED_WITHIN: Duration = Duration::from_secs(30);

/// How long an agent shall wait for the application: node and containers on a busy machine take their time.
pub const HEALTHY_WITHIN: &str = "20s";

/// One instance of the application on one host.
pub trait Deployed: std::fmt::Debug + Send {
    /// Port on 127.0.0.1.
    fn port(&self) -> u16;

    /// Brings a version live by hand. May return before it serves: [`deploy`] waits.
    fn install(&self, version: Version) -> Result<()>;

    /// The `[[component]]` tables for the agent of its host. The application is called `api`.
    fn component(&self) -> String;

    /// host:port, as nginx wants it.
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// What the instance says of itself now.
    fn served(&self) -> Result<Served> {
        served(&self.url("/api/version"))
    }

    /// How long its agent shall wait for it.
    fn healthy_within(&self) -> &'static str {
        HEALTHY_WITHIN
    }

    /// `health` of a component: the keys that all kinds share.
    fn health(&self) -> String {
        format!(
            "health = {{ http = \"{}\", version = \"/api/version\", within = \"{}\" }}\n",
            self.url("/api/health"),
            self.healthy_within()
        )
    }
}

/// Brings a version live by hand and waits until it is what the instance serves.
pub async fn deploy(app: &dyn Deployed, version: Version) -> Result<()> {
    app.install(version)
        .with_context(|| format!("deploy {}", version.name()))?;
    wait_served(app, version).await
}

/// Waits until an instance serves a version.
pub async fn wait_served(app: &dyn Deployed, version: Version) -> Result<()> {
    let what = format!("{} is served at {}", version.name(), app.address());
    wait::until_true(&what, SERVED_WITHIN, async || {
        app.served().is_ok_and(|served| served.version == version.name())
    })
    .await
}

/// Puts an agent on every host and nginx, with an agent, in front of them on `proxy-1`: hosts are taken out of nginx before
/// they are stopped. The instances serve already.
pub async fn behind_nginx(control: &mut Control, apps: &[(&str, &dyn Deployed)], site: Version) -> Result<Nginx> {
    let nginx = nginx_before(control, apps, site).await?;
    agents_behind(control, &nginx, apps).await?;
    Ok(nginx)
}

/// The first half of [`behind_nginx`]: nginx in front of the instances, and no agents yet.
pub async fn nginx_before(control: &mut Control, apps: &[(&str, &dyn Deployed)], site: Version) -> Result<Nginx> {
    let addresses: Vec<String> = apps.iter().map(|(_, app)| app.address()).collect();
    Nginx::in_front_of(control, PROXY, &addresses, "", site.name()).await
}

/// The second half of [`behind_nginx`]: an agent on every host.
pub async fn agents_behind(control: &mut Control, nginx: &Nginx, apps: &[(&str, &dyn Deployed)]) -> Result<()> {
    for (host, app) in apps {
        control.start_agent(host, "app", &app.component()).await?;
    }
    let backends = apps.iter().map(|(host, app)| (format!("{host}/api"), app.address()));
    control
        .start_agent(PROXY, "proxy", &nginx.component(&backends.collect()))
        .await?;
    let hosts: Vec<&str> = apps.iter().map(|(host, _)| *host).chain([PROXY]).collect();
    control.wait_connected(&hosts).await
}

/// What `/api/version` answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub version: String,
    pub greeting: String,
    /// As the process sees itself: 1 in a container.
    pub pid: u64,
    /// The host's name as the process sees it: the container's ID in one.
    pub host: String,
}

impl Served {
    /// Is it this version, with this version's greeting?
    pub fn expect(&self, version: Version) -> Result<()> {
        ensure!(
            self.version == version.name() && self.greeting == version.greeting(),
            "{} with the greeting {:?} is served, not {} with {:?}",
            self.version,
            self.greeting,
            version.name(),
            version.greeting()
        );
        Ok(())
    }
}

/// Asks with curl.
pub fn served(url: &str) -> Result<Served> {
    let answer = curl(url)?;
    ensure!(answer.status == 200, "{url} answers {}: {}", answer.status, answer.body);
    let json: serde_json::Value = serde_json::from_str(&answer.body).context("parse the answer")?;
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    Ok(Served {
        version: text("version"),
        greeting: text("greeting"),
        pid: json["pid"].as_u64().unwrap_or_default(),
        host: text("host"),
    })
}

/// A key of a component whose value is a string.
fn key(name: &str, value: impl std::fmt::Display) -> String {
    format!("{name} = \"{value}\"\n")
}
