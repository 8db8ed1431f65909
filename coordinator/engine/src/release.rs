//! Revisions, the releases that name sets of them, and what a fleet was observed to be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{ComponentName, Digest, HostName, ReleaseName, Target};

/// The name of what is put together from the objectives of several releases. It is made for one plan and is not recorded.
pub const OBJECTIVES: &str = "objectives";

/// Where a component is. `version` is for people; equality is by `digest` alone.
#[derive(Clone, Debug, Eq, Serialize, Deserialize)]
pub struct Revision {
    pub version: String,
    pub digest: Digest,
}

impl PartialEq for Revision {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// What a component is to the order of a rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Database,
    Config,
    App,
    Proxy,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Database => "database",
            Role::Config => "config",
            Role::App => "app",
            Role::Proxy => "proxy",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One move of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Prepare,
    Stage,
    Discard,
    Snapshot,
    Drain,
    Resume,
    Stop,
    Start,
    Switch,
    Verify,
    Finish,
}

impl Action {
    pub const ALL: [Action; 11] = [
        Action::Prepare,
        Action::Stage,
        Action::Discard,
        Action::Snapshot,
        Action::Drain,
        Action::Resume,
        Action::Stop,
        Action::Start,
        Action::Switch,
        Action::Verify,
        Action::Finish,
    ];

    /// Can users notice this action? Those that they can are never dispatched before every host has staged.
    pub fn changes_service(self) -> bool {
        match self {
            Action::Drain | Action::Resume | Action::Stop | Action::Start | Action::Switch => true,
            Action::Prepare | Action::Stage | Action::Discard | Action::Snapshot | Action::Verify | Action::Finish => {
                false
            }
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Action::Prepare => "prepare",
            Action::Stage => "stage",
            Action::Discard => "discard",
            Action::Snapshot => "snapshot",
            Action::Drain => "drain",
            Action::Resume => "resume",
            Action::Stop => "stop",
            Action::Start => "start",
            Action::Switch => "switch",
            Action::Verify => "verify",
            Action::Finish => "finish",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One component's place in a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseEntry {
    pub target: Target,
    pub role: Role,
    pub revision: Revision,
    /// What retaining it said, for people: "vault, 214 files, 3.1 MB".
    #[serde(default)]
    pub summary: String,
}

/// A fleet-wide name for a set of revisions, recorded at deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub name: ReleaseName,
    #[serde(default)]
    pub commit: String,
    #[serde(default)]
    pub notes: String,
    pub recorded_at: Timestamp,
    pub recorded_by: String,
    /// Sorted by target.
    pub entries: Vec<ReleaseEntry>,
    /// A rollback to it was verified, or it was recorded as healthy everywhere.
    #[serde(default)]
    pub stable: bool,
    /// Of a release that was imported: its place among the others, before what ran then. When it was imported says nothing
    /// of its age, and "newer" decides what a fleet was taken back from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks_at: Option<Timestamp>,
    /// The last word of a person on `stable`. What a rollback finds out later may differ from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
}

/// A person says whether a release is stable, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub stable: bool,
    pub by: String,
    pub at: Timestamp,
    pub reason: String,
}

impl Release {
    /// Releases are older and newer by this.
    pub fn rank(&self) -> Timestamp {
        self.ranks_at.unwrap_or(self.recorded_at)
    }
}

/// Does a component do its work for users? What is down at its revision needs a start or a resume, not a switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Serving {
    /// Or nothing says otherwise: an unhealthy component runs, and a component without a check is taken to.
    #[default]
    Yes,
    /// Its process does not run.
    Stopped,
    /// It runs, but users get the maintenance answer, or some backend gets no requests.
    Drained,
}

/// The backends of a proxy, upstream by upstream: in each of them somebody has to serve.
pub type Upstreams = BTreeSet<BTreeSet<Target>>;

/// What the planner knows of one component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedComponent {
    pub role: Role,
    pub capabilities: BTreeSet<Action>,
    /// Components of the same host that this one reads when it starts.
    #[serde(default)]
    pub reads: BTreeSet<ComponentName>,
    /// Proxies: the components whose requests it can stop and give back, one by one.
    #[serde(default)]
    pub backends: Upstreams,
    /// Proxies that are drained: the backends that get no requests, while users are served by the others. Empty: the whole
    /// site answers with maintenance.
    #[serde(default)]
    pub out: BTreeSet<Target>,
    /// `Err` says why it could not be observed.
    pub revision: Result<Revision, String>,
    #[serde(default)]
    pub serving: Serving,
    /// Databases: it can be taken to a backup.
    #[serde(default)]
    pub restores: bool,
}

/// What the planner knows of one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObservedHost {
    Reachable(BTreeMap<ComponentName, ObservedComponent>),
    Unreachable { reason: String },
}

/// The fleet as it was observed, host by host.
pub type ObservedFleet = BTreeMap<HostName, ObservedHost>;
