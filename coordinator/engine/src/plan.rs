//! The plan: what a rollback will do, step by step, sealed by a digest before anything starts.
//!
//! A plan is a list of phases; a phase is a list of batches that run one after the other; a batch is a set of lanes
//! that run side by side; a lane is a list of steps, possibly on several hosts, that run one after the other.
//!
//! Invariants (checked again by [`crate::lint`], which shares no code with the planner):
//! - steps are numbered in plan order, from 0, without gaps;
//! - every step that changes the service has an undo or is marked irreversible;
//! - nothing that changes the service stands before the last `stage` step;
//! - no database is switched before its snapshot, or while an application or a proxy that the plan pauses is up;
//! - a database goes to a backup only in a plan that was asked to do so, and its way back is to exchange the two again;
//! - while one backend of a proxy is drained, another one of it serves.

mod seal;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::event::Direction;
use crate::ids::{ComponentName, Digest, HostName, ReleaseName, RollbackId, StepId, Target};
use crate::release::{Action, Revision, Role, Upstreams};

pub use seal::{FORMAT, OpenError};

/// Phases in their one possible order. Which of them a plan has depends on the runbook and on what changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseName {
    Preflight,
    Stage,
    Protect,
    Quiesce,
    Database,
    App,
    Proxy,
    Verify,
    Finish,
}

impl PhaseName {
    pub const ALL: [PhaseName; 9] = [
        PhaseName::Preflight,
        PhaseName::Stage,
        PhaseName::Protect,
        PhaseName::Quiesce,
        PhaseName::Database,
        PhaseName::App,
        PhaseName::Proxy,
        PhaseName::Verify,
        PhaseName::Finish,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            PhaseName::Preflight => "preflight",
            PhaseName::Stage => "stage",
            PhaseName::Protect => "protect",
            PhaseName::Quiesce => "quiesce",
            PhaseName::Database => "database",
            PhaseName::App => "app",
            PhaseName::Proxy => "proxy",
            PhaseName::Verify => "verify",
            PhaseName::Finish => "finish",
        }
    }
}

impl fmt::Display for PhaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happens when a step of a phase fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Reverse every step that was begun, newest first.
    Undo,
    /// Stop where it is and wait for a person.
    Hold,
    /// Begin nothing new until an operator retries, skips or aborts.
    Pause,
    /// Note it and go on; the rollback cannot end better than `partial` when the step mattered.
    Continue,
}

/// How databases go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatabaseChoice {
    /// By migrations, when every one of them has a way down and that was rehearsed. Without a way down preflight blocks; a
    /// rehearsal that fails ends the rollback in `stage`, undone, with no database touched. Either says what a restore
    /// would cost, if there is a backup of the release.
    #[default]
    Auto,
    /// Not at all.
    Keep,
    /// By migrations, or not at all.
    Migrate,
    /// By restoring a backup of the release's schema. What was written since is lost, so it needs consent.
    Restore,
}

impl DatabaseChoice {
    pub fn is_auto(&self) -> bool {
        *self == DatabaseChoice::Auto
    }
}

/// How a step is reversed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Undo {
    /// The step changes nothing that anybody would want back (reads, backups).
    Nothing,
    /// Run this action with `from` and `to` exchanged.
    By(Action),
    /// There is no way back. Such steps come last and need consent.
    Impossible,
}

/// One action on one component of one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub id: StepId,
    pub target: Target,
    pub action: Action,
    /// The revision that is live before the step, when everything went as planned.
    pub from: Revision,
    /// The revision that is expected to be live after it. Steps that leave the live revision alone and belong to a
    /// change (prepare, stage, snapshot, verify, finish) carry that change's `from` and `to` instead.
    pub to: Revision,
    /// Milliseconds from dispatch.
    pub timeout_ms: u64,
    pub undo: Undo,
    /// `Drain` and `Resume` of a proxy: this one of its backends, and not the whole site. Left out of the sealed text when
    /// absent: plans from before this field keep their digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Target>,
    /// Of a change that restores a backup: as [`Change::from_backup`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_backup: bool,
}

/// What a step asks its agent for in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move<'a> {
    pub action: Action,
    pub from: &'a Revision,
    /// The revision that is expected to be live afterwards.
    pub to: &'a Revision,
    /// The same in both directions: what one takes out, the other gives back.
    pub backend: Option<&'a Target>,
    pub from_backup: bool,
    /// It takes an earlier step back. `from` and `to` alone do not tell: a database can be restored at its own schema.
    pub undo: bool,
}

impl Step {
    /// What it concerns, for people: "proxy-1/site", or "proxy-1/site (app-1/api)" for one backend of it.
    pub fn subject(&self) -> String {
        match &self.backend {
            Some(backend) => format!("{} ({backend})", self.target),
            None => self.target.to_string(),
        }
    }

    /// The hosts that are not as they should be when this step fails: with the proxy that cannot drain a backend, the
    /// backend's host is not reached either.
    pub fn hosts(&self) -> impl Iterator<Item = &HostName> {
        std::iter::once(&self.target.host).chain(self.backend.as_ref().map(|backend| &backend.host))
    }

    /// The step's move in this direction; `None`: it has no way back, or needs none.
    pub fn in_direction(&self, direction: Direction) -> Option<Move<'_>> {
        match (direction, self.undo) {
            (Direction::Forward, _) => Some(Move {
                action: self.action,
                from: &self.from,
                to: &self.to,
                backend: self.backend.as_ref(),
                from_backup: self.from_backup,
                undo: false,
            }),
            (Direction::Undo, Undo::By(action)) => Some(Move {
                action,
                from: &self.to,
                to: &self.from,
                backend: self.backend.as_ref(),
                from_backup: self.from_backup,
                undo: true,
            }),
            (Direction::Undo, Undo::Nothing | Undo::Impossible) => None,
        }
    }
}

impl PlanBody {
    /// Every step, in plan order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.phases
            .iter()
            .flat_map(|p| &p.batches)
            .flat_map(|b| &b.lanes)
            .flat_map(|l| &l.steps)
    }

    /// The databases that lose what was written since their backups.
    pub fn restored_databases(&self) -> impl Iterator<Item = &Target> {
        self.changes.iter().filter(|c| c.from_backup).map(|c| &c.target)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub lanes: Vec<Lane>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    pub name: PhaseName,
    pub on_failure: OnFailure,
    /// Where failures are gone on from: no more hosts than this may be left behind, then it is held. Left out when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<u32>,
    pub batches: Vec<Batch>,
}

/// One component in scope: where it is and where it shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub target: Target,
    pub role: Role,
    pub from: Revision,
    pub to: Revision,
    /// It was found down (an app stopped, a proxy drained), and the plan brings it up. Left out of the sealed text when
    /// false: plans from before this field keep their digests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restore: bool,
    /// Proxies whose backends may be drained one by one: of each upstream, those that serve users, now or as soon as the
    /// plan has brought them up. The plan carries them so that it can be seen in it that somebody always serves. Left out
    /// when empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub backends: Upstreams,
    /// Proxies to restore that serve users all the same: the backends that were found out. Each is given back when it
    /// serves the target, or with the proxy at the end. Left out when empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub out: BTreeSet<Target>,
    /// A database that is taken to a backup beside it, whether its schema moves or not: `from` and `to` may be equal. Left
    /// out when false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_backup: bool,
    /// The release's revision, when it is not that of `to`: the plan leaves the component where it is, on purpose. Left out
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Revision>,
}

impl Change {
    /// False: the component stays what it is and is only verified, or brought up.
    pub fn is_needed(&self) -> bool {
        self.moves() || self.from_backup
    }

    /// It goes to another revision.
    pub fn moves(&self) -> bool {
        self.from != self.to
    }
}

/// A host of the release that the runbook's policy leaves out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excused {
    pub host: HostName,
    pub reason: String,
}

/// The part of a release that was asked for, as it was asked for. Everything empty: all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Selection {
    /// Component names. An application brings the configuration that it reads.
    pub services: BTreeSet<ComponentName>,
    pub hosts: BTreeSet<HostName>,
    /// "key=value"; which hosts these are is resolved before the planner is asked.
    pub labels: BTreeSet<String>,
    pub exclude_services: BTreeSet<ComponentName>,
    pub exclude_hosts: BTreeSet<HostName>,
}

impl Selection {
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}

/// A second operator has to approve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalRule {
    /// Milliseconds from the creation of the rollback.
    pub within_ms: u64,
}

/// A plan before it is sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanBody {
    /// Of this format. Readers refuse formats that they do not know.
    pub format: u32,
    pub release: ReleaseName,
    /// Name and version: "default@1".
    pub runbook: String,
    /// Left out when it is `auto`: plans from before this field keep their digests.
    #[serde(default, skip_serializing_if = "DatabaseChoice::is_auto")]
    pub database: DatabaseChoice,
    /// What was asked for. Left out when it is everything.
    #[serde(default, skip_serializing_if = "Selection::is_everything")]
    pub selection: Selection,
    /// Components of the release that are not in the selection. Left out when none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outside: Vec<Target>,
    /// Left out when nobody has to approve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalRule>,
    /// It takes this rollback back. Left out when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo_of: Option<RollbackId>,
    /// Hosts that were left out are brought to the target without being asked, as soon as they are back. Left out when not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub converges: bool,
    /// When it is verified, the releases that it takes the fleet back from are held. Left out when not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub holds: bool,
    /// A database changes: its schema, or all that is in it.
    pub schema_changes: bool,
    /// Every component in scope, sorted by target; also those that are at the target already.
    pub changes: Vec<Change>,
    pub excused: Vec<Excused>,
    pub phases: Vec<Phase>,
}

/// An immutable plan. The digest covers the whole body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub body: PlanBody,
    pub digest: Digest,
}

/// A plan that was read from somewhere does not have the digest that it says it has.
#[derive(Debug, thiserror::Error)]
#[error("plan digest is {found}, but its content has {computed}")]
pub struct SealBroken {
    pub found: Digest,
    pub computed: Digest,
}
