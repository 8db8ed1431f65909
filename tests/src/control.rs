//! The programs under test, without any particular servers: a coordinator or several replicas of it, an operator's
//! rollbackctl, and an agent on every host that a story asks for, in one temporary directory.
//!
//! ```text
//! <dir>/coordinator/          what `rollback-coordinator init` makes
//! <dir>/coord-2/ …            what `rollback-coordinator replica` makes, one for each replica
//! <dir>/store/                the PostgreSQL server that holds their journal, where it is not SQLite
//! <dir>/hosts/<name>/agent/   agent.toml, pki, state (ledger, vault)
//! <dir>/hosts/<name>/…        whatever a story deploys there
//! <dir>/log/                  one file per process
//! ```
//!
//! Invariant: the programs end before anything that is [held](Control::hold) for them, and the directory goes last. An
//! agent that is still at work could otherwise make anew what was removed already.

mod keep;
mod replicas;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

pub use self::replicas::{Leading, Standing};
use crate::agent::{Agent, AgentSpec};
use crate::binaries::Binaries;
use crate::coordinator::Coordinator;
use crate::ctl::Ctl;
use crate::process;
use crate::store_server::StoreServer;
use crate::wait;

/// Lines of each log that are shown when something failed.
const TAIL: usize = 25;

const CONNECTED_WITHIN: Duration = Duration::from_secs(30);

/// What the programs are started with.
#[derive(Clone, Debug, Default)]
pub struct ControlOptions {
    /// They shall outlive the harness.
    pub keep: bool,
    /// All of them export their spans there.
    pub otlp: Option<String>,
    pub store: StoreKind,
    /// Coordinators beside the first one. They need a store that can be shared.
    pub further_replicas: usize,
    /// Keys of `[leadership]` that are not as shipped, by their names: `ttl = "1s"`.
    pub leadership: BTreeMap<&'static str, String>,
    /// How often the leader checks which releases the fleet could go back to: `1s`. Without it never: what
    /// agents are asked in a story is what the story asks.
    pub readiness: Option<String>,
    /// The servers that the harness starts keep what they wrote when the host loses power, as figures of time want it.
    pub durable: bool,
}

/// Where the coordinators keep their journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreKind {
    #[default]
    Sqlite,
    Postgres,
}

/// What ends with a story, and not before the programs under test.
pub trait Held: Send + std::fmt::Debug {
    /// It shall outlive the harness. Answers with lines of shell that end it.
    fn let_go(&mut self) -> String;
}

/// Fields are dropped in the order in which they stand.
#[derive(Debug)]
pub struct Control {
    pub agents: BTreeMap<String, Agent>,
    /// The one that made the fleet's CA and its first operator. Most fleets have no other.
    pub coordinator: Coordinator,
    /// The other replicas, which lead as often.
    pub further: Vec<Coordinator>,
    /// Where they all keep their journal, unless it is SQLite. It ends after them.
    pub store_server: Option<StoreServer>,
    pub binaries: Binaries,
    /// The first operator's.
    pub ctl: Ctl,
    /// Exported to the agents that are started from here on.
    pub agent_env: BTreeMap<String, String>,
    options: ControlOptions,
    held: Vec<Box<dyn Held>>,
    dir: TempDir,
}

/// The fleet's directory, before anything runs in it.
pub(crate) fn make_dir() -> Result<TempDir> {
    let dir = tempfile::Builder::new()
        .prefix("rollback-fleet-")
        .tempdir()
        .context("make the fleet's directory")?;
    // PostgreSQL's and nginx's accounts have to get through.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).context("open the directory")?;
    Ok(dir)
}

impl Control {
    /// Starts the coordinators, and waits until one of them leads. Agents come one by one, with [`Control::add_agent`].
    pub async fn start(options: ControlOptions) -> Result<Self> {
        let binaries = Binaries::ready()?;
        let dir = make_dir()?;
        let (coordinator, further, store_server) = replicas::set_up(&binaries, dir.path(), &options).await?;
        let ctl = Ctl::new(&binaries, &coordinator.context());
        let mut control = Self {
            agents: BTreeMap::new(),
            coordinator,
            further,
            store_server,
            binaries,
            ctl,
            agent_env: BTreeMap::new(),
            options,
            held: Vec::new(),
            dir,
        };
        if let Err(error) = control.run_coordinators().await {
            anyhow::bail!(
                "start the coordinators: {error:#}\nthe logs end so:\n{}",
                control.tails([])
            );
        }
        Ok(control)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory that stands for a host's file system. Made by whoever asks first.
    pub fn host_dir(&self, host: &str) -> PathBuf {
        self.dir().join("hosts").join(host)
    }

    /// Shall all of it outlive the harness?
    pub fn is_kept(&self) -> bool {
        self.options.keep
    }

    /// The log of a process.
    pub fn log(&self, name: &str) -> PathBuf {
        log_in(self.dir(), name)
    }

    pub fn agent(&mut self, name: &str) -> Result<&mut Agent> {
        self.agents
            .get_mut(name)
            .with_context(|| format!("{name} has an agent"))
    }

    /// Puts an agent on a host: enrolls it with a token that the operator made, runs it, and waits until the coordinator
    /// is in touch with it. `components` are its `[[component]]` tables as TOML.
    pub async fn add_agent(&mut self, host: &str, tier: &'static str, components: &str) -> Result<()> {
        self.start_agent(host, tier, components).await?;
        self.wait_connected(&[host]).await
    }

    /// As [`Control::add_agent`], and does not wait for the coordinator.
    pub async fn start_agent(&mut self, host: &str, tier: &'static str, components: &str) -> Result<()> {
        let spec = AgentSpec {
            name: host.to_owned(),
            host_dir: self.host_dir(host),
            coordinators: self.endpoints(),
            otlp: self.options.otlp.clone(),
            components: components.to_owned(),
            tier,
        };
        let log = self.log(&format!("agent-{host}"));
        let mut agent = Agent::enroll(&self.binaries, spec, &self.ctl, &log, self.options.keep).await?;
        for (name, value) in &self.agent_env {
            agent.export(name, value);
        }
        agent.run().await?;
        self.agents.insert(host.to_owned(), agent);
        Ok(())
    }

    /// Waits until [`Control::are_connected`].
    pub async fn wait_connected(&self, hosts: &[&str]) -> Result<()> {
        let what = format!("the coordinator is in touch with {}", hosts.join(", "));
        wait::until_true(&what, CONNECTED_WITHIN, async || self.are_connected(hosts).await).await
    }

    /// Does the coordinator (of several: the one that leads) say of every one of these hosts that it is connected, at the
    /// address that its agent has since it was started last?
    pub async fn are_connected(&self, hosts: &[&str]) -> bool {
        let Some(ctl) = self.ctl_of_leader().await else {
            return false;
        };
        let Ok(answer) = ctl.run(&["agent", "list", "-o", "json"]).await else {
            return false;
        };
        let Ok(json) = answer.json() else { return false };
        let agents = json["agents"].as_array().cloned().unwrap_or_default();
        let connected = |name: &&str| {
            let ours = self.agents.get(*name).map(Agent::address);
            let is_it = |a: &&serde_json::Value| a["name"] == **name && ours.is_none_or(|ours| a["address"] == ours);
            agents.iter().find(is_it).is_some_and(|a| a["connected"] == true)
        };
        hosts.iter().all(connected)
    }

    /// Keeps a value until the programs under test have ended, and drops it then: what cleans up when it goes, and what
    /// an agent works on.
    pub fn hold(&mut self, value: impl Held + 'static) {
        self.held.push(Box::new(value));
    }

    /// The ends of all logs, and of these files, for a failure's report.
    pub fn tails(&self, more: impl IntoIterator<Item = PathBuf>) -> String {
        let mut logs: Vec<PathBuf> = std::fs::read_dir(self.dir().join("log"))
            .map(|entries| entries.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        logs.extend(more);
        logs.sort();
        let shown = logs.iter().map(|log| {
            let name = log.strip_prefix(self.dir()).unwrap_or(log).display().to_string();
            format!("----- {name}\n{}\n", process::tail(log, TAIL))
        });
        shown.collect()
    }

    /// Ends the programs in order, so that they write what they have to write. The rest goes with the value.
    pub async fn stop(&mut self) -> Result<()> {
        for agent in self.agents.values_mut() {
            agent.stop().await?;
        }
        for coordinator in self.coordinators_mut() {
            coordinator.stop().await?;
        }
        Ok(())
    }

    /// Ends the programs with force, those that still run.
    pub fn end(&mut self) {
        for agent in self.agents.values_mut() {
            agent.end();
        }
        for coordinator in self.coordinators_mut() {
            coordinator.end();
        }
    }
}

fn log_in(dir: &Path, name: &str) -> PathBuf {
    dir.join("log").join(format!("{name}.log"))
}
