//! What a plan is about: every component that the release names on a reachable host, and what each one can do.
//!
//! Reasons to refuse are collected over the whole fleet before the first is reported.

use std::collections::BTreeSet;

use crate::ids::{ComponentName, HostName, Target};
use crate::plan::{Change, DatabaseChoice, Excused, Selection};
use crate::release::{
    Action, ObservedComponent, ObservedFleet, ObservedHost, Release, ReleaseEntry, Role, Serving, Upstreams,
};
use crate::runbook::{Runbook, Unreachable};

use super::refusal::{PlanRefused, Refusal};
use super::selection::{Part, Parts, Request};

/// One component in scope.
#[derive(Debug)]
pub(super) struct Member<'a> {
    pub change: Change,
    pub changes: bool,
    /// An app that changes or whose config does: it has to start anew.
    pub restarts: bool,
    /// It reads a config that changes.
    config_changes: bool,
    capabilities: &'a BTreeSet<Action>,
    reads: &'a BTreeSet<ComponentName>,
    backends: &'a Upstreams,
    out: &'a BTreeSet<Target>,
}

impl Member<'_> {
    pub fn can(&self, action: Action) -> bool {
        self.capabilities.contains(&action)
    }

    pub fn role(&self) -> Role {
        self.change.role
    }

    /// It was found down, and the plan brings it up whatever else changes.
    pub fn restored(&self) -> bool {
        self.change.restore
    }

    /// It serves nobody until the plan has brought it up. A proxy that lost some backends only serves.
    pub fn found_down(&self) -> bool {
        self.restored() && self.change.out.is_empty()
    }

    /// Stopping something that cannot be started again, or the reverse, helps nobody.
    pub fn can_pause(&self) -> bool {
        match self.role() {
            Role::App => self.can(Action::Stop) && self.can(Action::Start),
            Role::Proxy => self.can(Action::Drain) && self.can(Action::Resume),
            Role::Database | Role::Config => false,
        }
    }
}

#[derive(Debug)]
pub(super) struct Scope<'a> {
    /// Sorted by target: the members of a host stand together.
    pub members: Vec<Member<'a>>,
    pub excused: Vec<Excused>,
    pub selection: Selection,
    /// Sorted.
    pub outside: Vec<Target>,
    /// Of a database, or all that is in one.
    pub schema_changes: bool,
    pub anything_changes: bool,
}

impl<'a> Scope<'a> {
    pub fn of(
        observed: &'a ObservedFleet,
        release: &Release,
        runbook: &Runbook,
        request: &Request,
    ) -> Result<Self, PlanRefused> {
        let mut refusals = Vec::new();
        // Such a plan would verify what is there, and be taken for a rollback.
        if !runbook.roles.iter().any(|role| runbook.changes(*role)) {
            refusals.push(Refusal::NothingToChange);
        }
        let mut members = Vec::new();
        let mut unreachable = Vec::new();

        let mut entries: Vec<&ReleaseEntry> = release.entries.iter().collect();
        // A stable sort of sorted entries is one pass.
        entries.sort_by(|a, b| a.target.cmp(&b.target));
        for pair in entries.windows(2) {
            if let [a, b] = pair
                && a.target == b.target
            {
                refusals.push(Refusal::NamedTwice {
                    target: a.target.clone(),
                });
            }
        }
        let parts = Parts::of(observed, &entries, runbook, request).map_err(|more| {
            refusals.extend(more);
            PlanRefused {
                reasons: std::mem::take(&mut refusals),
            }
        })?;
        let outside = parts.outside();
        entries.retain(|e| parts.part(&e.target) != Part::Outside);
        for of_host in entries.chunk_by(|a, b| a.target.host == b.target.host) {
            let Some(host) = of_host.first().map(|e| &e.target.host) else {
                continue;
            };
            match observed.get(host) {
                None => refusals.push(Refusal::UnknownHost { host: host.clone() }),
                // No policy leaves a database out: applications would be switched against a schema that nobody can see.
                Some(ObservedHost::Unreachable { reason }) if of_host.iter().any(|e| e.role == Role::Database) => {
                    refusals.push(Refusal::DatabaseUnreachable {
                        host: host.clone(),
                        reason: reason.clone(),
                    });
                }
                Some(ObservedHost::Unreachable { reason }) => {
                    unreachable.push(Excused {
                        host: host.clone(),
                        reason: reason.clone(),
                    });
                }
                Some(ObservedHost::Reachable(components)) => {
                    let first = members.len();
                    for entry in of_host {
                        let part = parts.part(&entry.target);
                        match member(entry, part, components.get(&entry.target.component), runbook) {
                            Ok(member) => members.push(member),
                            Err(refusal) => refusals.push(refusal),
                        }
                    }
                    mark_restarts(&mut members[first..]);
                }
            }
        }

        let excused = judge_unreachable(unreachable, runbook.unreachable, &mut refusals);
        let anything_changes = members.iter().any(|m| m.changes);
        for member in &members {
            refusals.extend(missing(member, anything_changes));
        }
        if members.is_empty() && refusals.is_empty() {
            refusals.push(if excused.is_empty() {
                Refusal::NothingInScope
            } else {
                Refusal::NobodyReachable {
                    hosts: excused.iter().map(|e| e.host.clone()).collect(),
                }
            });
        }
        if !refusals.is_empty() {
            return Err(PlanRefused { reasons: refusals });
        }
        count_backends(&mut members, observed);
        let schema_changes = members.iter().any(|m| m.changes && m.role() == Role::Database);
        Ok(Self {
            members,
            excused,
            selection: parts.selection,
            outside,
            schema_changes,
            anything_changes,
        })
    }

    /// Members host by host.
    pub fn hosts(&self) -> impl Iterator<Item = &[Member<'a>]> {
        self.members
            .chunk_by(|a, b| a.change.target.host == b.change.target.host)
    }

    pub fn of_role(&self, role: Role) -> impl Iterator<Item = &Member<'a>> {
        self.members.iter().filter(move |m| m.role() == role)
    }
}

fn member<'a>(
    entry: &ReleaseEntry,
    part: Part,
    observed: Option<&'a ObservedComponent>,
    runbook: &Runbook,
) -> Result<Member<'a>, Refusal> {
    let target = || entry.target.clone();
    let component = observed.ok_or_else(|| Refusal::UnknownComponent { target: target() })?;
    if component.role != entry.role {
        // The role decides the order and the backups, so a guess could cost data.
        return Err(Refusal::RoleDiffers {
            target: target(),
            recorded: entry.role,
            declared: component.role,
        });
    }
    let from = match &component.revision {
        Ok(revision) => revision.clone(),
        Err(reason) => {
            return Err(Refusal::Unobserved {
                target: target(),
                reason: reason.clone(),
            });
        }
    };
    let in_reach = part == Part::Selected && runbook.changes(component.role);
    let from_backup = in_reach && component.role == Role::Database && runbook.database == DatabaseChoice::Restore;
    if from_backup && !component.restores {
        return Err(Refusal::CannotRestore { target: target() });
    }
    let (to, left) = if in_reach {
        (entry.revision.clone(), None)
    } else {
        let left = (from != entry.revision).then(|| entry.revision.clone());
        (from.clone(), left)
    };
    let change = Change {
        target: target(),
        role: component.role,
        from,
        to,
        restore: is_down(component),
        // Counted when every member is known.
        backends: BTreeSet::new(),
        out: BTreeSet::new(),
        from_backup,
        left,
    };
    let changes = change.is_needed();
    Ok(Member {
        change,
        changes,
        restarts: false,
        config_changes: false,
        capabilities: &component.capabilities,
        reads: &component.reads,
        backends: &component.backends,
        out: &component.out,
    })
}

/// Down, and able to come up again. One that is not able is only verified, which will say so.
fn is_down(component: &ObservedComponent) -> bool {
    let up = match (component.role, component.serving) {
        (Role::App, Serving::Stopped) => Action::Start,
        (Role::Proxy, Serving::Drained) => Action::Resume,
        (Role::Database | Role::Config, Serving::Yes | Serving::Stopped | Serving::Drained)
        | (Role::App, Serving::Yes | Serving::Drained)
        | (Role::Proxy, Serving::Yes | Serving::Stopped) => return false,
    };
    component.capabilities.contains(&up)
}

/// For the proxies that can take backends out: on which of them users can count, and which are out already. One that was
/// found in maintenance serves nobody, and is resumed as a whole.
fn count_backends(members: &mut [Member<'_>], observed: &ObservedFleet) {
    let restored: BTreeSet<Target> = members
        .iter()
        .filter(|m| m.restored())
        .map(|m| m.change.target.clone())
        .collect();
    let serves = |backend: &Target| match observed.get(&backend.host) {
        Some(ObservedHost::Reachable(components)) => components
            .get(&backend.component)
            .is_some_and(|c| c.role == Role::App && (c.serving == Serving::Yes || restored.contains(backend))),
        Some(ObservedHost::Unreachable { .. }) | None => false,
    };
    let proxies = members.iter_mut().filter(|m| m.role() == Role::Proxy);
    for proxy in proxies.filter(|m| m.can_pause()) {
        if proxy.restored() {
            proxy.change.out = proxy.out.clone();
        }
        if proxy.found_down() {
            continue;
        }
        let serving = |upstream: &BTreeSet<Target>| upstream.iter().filter(|b| serves(b)).cloned().collect();
        let upstreams = proxy.backends.iter().map(serving);
        proxy.change.backends = upstreams
            .filter(|upstream: &BTreeSet<Target>| !upstream.is_empty())
            .collect();
    }
}

/// Of one host: which apps have to start anew.
fn mark_restarts(of_host: &mut [Member<'_>]) {
    let configs: BTreeSet<ComponentName> = of_host
        .iter()
        .filter(|m| m.changes && m.role() == Role::Config)
        .map(|m| m.change.target.component.clone())
        .collect();
    for member in of_host.iter_mut().filter(|m| m.change.role == Role::App) {
        member.config_changes = member.reads.iter().any(|name| configs.contains(name));
        member.restarts = member.changes || member.config_changes;
    }
}

/// The actions that the plan will ask of this member and that it does not have.
fn missing(member: &Member<'_>, anything_changes: bool) -> Vec<Refusal> {
    let mut needed = vec![Action::Verify];
    if member.changes {
        needed.extend([Action::Prepare, Action::Stage, Action::Discard, Action::Switch]);
    }
    if member.role() == Role::Database && anything_changes {
        needed.push(Action::Snapshot);
    }
    if member.config_changes {
        // Without these it would go on with the old config, or be put back with the new one.
        needed.extend([Action::Stop, Action::Start]);
    }
    let target = &member.change.target;
    needed
        .into_iter()
        .filter(|action| !member.can(*action))
        .map(|action| Refusal::MissingCapability {
            target: target.clone(),
            action,
        })
        .collect()
}

fn judge_unreachable(hosts: Vec<Excused>, policy: Unreachable, refusals: &mut Vec<Refusal>) -> Vec<Excused> {
    match policy {
        Unreachable::SkipAll => hosts,
        Unreachable::Skip(allowed) if hosts.len() <= allowed => hosts,
        Unreachable::Skip(allowed) => {
            let hosts: Vec<HostName> = hosts.into_iter().map(|e| e.host).collect();
            refusals.push(Refusal::TooManyUnreachable { hosts, allowed });
            Vec::new()
        }
        Unreachable::Block => {
            let block = |Excused { host, reason }| Refusal::HostUnreachable { host, reason };
            refusals.extend(hosts.into_iter().map(block));
            Vec::new()
        }
    }
}
