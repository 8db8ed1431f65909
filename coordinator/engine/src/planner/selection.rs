//! Which components of a release a plan is about: what was asked for, and what has to be there for its sake.
//!
//! - An application that is selected brings the configuration that it reads on its host: it was released with it.
//! - A configuration that changes brings the other applications that read it. They stay at their own revision, and start anew
//!   with it under eyes that watch, and not alone at some later time.
//! - A database that changes brings every application and proxy on the hosts that were asked for: they stay as they are, and are
//!   stopped for it. Hosts and labels are a line that this does not cross, and what was excluded stays untouched: only the
//!   operator knows whether something there uses the database, so the coordinator warns.
//! - A proxy that has one of these applications as a backend joins at its own revision, wherever it stands: it takes the
//!   application out while that restarts.
//!
//! What is named must exist, and must select something: a misspelt exclusion would take back what should have stayed.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{ComponentName, HostName, RollbackId, Target};
use crate::plan::{DatabaseChoice, Selection};
use crate::release::{ObservedComponent, ObservedFleet, ObservedHost, ReleaseEntry, Role};
use crate::runbook::Runbook;

use super::refusal::Refusal;

/// What is asked for beside the release and the policy.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub selection: Selection,
    /// The hosts that have every label of the selection. Not looked at when it names none.
    pub labelled: BTreeSet<HostName>,
    pub purpose: Purpose,
}

impl Request {
    /// The same with the services of the runbook, where none are asked for.
    #[must_use]
    pub fn within(&self, runbook: &Runbook) -> Self {
        let mut within = self.clone();
        if within.selection.services.is_empty() {
            within.selection.services.clone_from(&runbook.services);
        }
        within
    }

    /// Is it a part of what was asked for? More may join for its sake.
    pub fn selects(&self, target: &Target) -> bool {
        let services = &self.selection.services;
        let named = services.is_empty() || services.contains(&target.component);
        named && self.has_host(&target.host) && !self.excludes(target)
    }

    fn has_host(&self, host: &HostName) -> bool {
        let Selection { hosts, labels, .. } = &self.selection;
        (hosts.is_empty() || hosts.contains(host)) && (labels.is_empty() || self.labelled.contains(host))
    }

    fn excludes(&self, target: &Target) -> bool {
        self.selection.exclude_services.contains(&target.component)
            || self.selection.exclude_hosts.contains(&target.host)
    }
}

/// Why the fleet goes where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Away from what runs.
    #[default]
    Rollback,
    /// To where everything was before this rollback.
    Undo(RollbackId),
    /// Hosts go to where they shall be already. It says nothing of any release.
    Converge,
}

/// What a component of the release is to the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It goes to the release's revision, if the runbook changes its role.
    Selected,
    /// It stays at its own revision, for the sake of what is selected.
    Beside,
    Outside,
}

#[derive(Debug)]
pub(super) struct Parts<'a> {
    of: BTreeMap<&'a Target, Part>,
    /// As it was asked for, by the operator or else by the runbook.
    pub selection: Selection,
}

impl<'a> Parts<'a> {
    pub fn of(
        observed: &ObservedFleet,
        entries: &[&'a ReleaseEntry],
        runbook: &Runbook,
        request: &Request,
    ) -> Result<Self, Vec<Refusal>> {
        let refusals = misnamed(entries, runbook, &request.selection);
        if !refusals.is_empty() {
            return Err(refusals);
        }
        let line = request.within(runbook);
        if line.selection.is_everything() {
            return Ok(Self {
                of: entries.iter().map(|e| (&e.target, Part::Selected)).collect(),
                selection: line.selection,
            });
        }
        let resolver = Resolver {
            observed,
            entries,
            runbook,
            line: &line,
        };
        let of = resolver.resolve()?;
        let refusals = without_effect(&of, &request.selection);
        if !refusals.is_empty() {
            return Err(refusals);
        }
        Ok(Self {
            of,
            selection: line.selection,
        })
    }

    pub fn part(&self, target: &Target) -> Part {
        self.of.get(target).copied().unwrap_or(Part::Outside)
    }

    pub fn outside(&self) -> Vec<Target> {
        let outside = self.of.iter().filter(|(_, part)| **part == Part::Outside);
        outside.map(|(target, _)| (*target).clone()).collect()
    }
}

struct Resolver<'r, 'a> {
    observed: &'r ObservedFleet,
    entries: &'r [&'a ReleaseEntry],
    runbook: &'r Runbook,
    line: &'r Request,
}

impl<'a> Resolver<'_, 'a> {
    fn resolve(&self) -> Result<BTreeMap<&'a Target, Part>, Vec<Refusal>> {
        let selects = |e: &&&ReleaseEntry| self.line.selects(&e.target);
        let mut selected: BTreeSet<&'a Target> = self.entries.iter().filter(selects).map(|e| &e.target).collect();
        let read: Vec<&'a Target> = self.read_by(&selected).collect();
        selected.extend(read);
        if selected.is_empty() {
            return Err(vec![Refusal::NothingSelected]);
        }
        let (mut beside, refusals) = self.readers(&selected);
        if !refusals.is_empty() {
            return Err(refusals);
        }
        beside.extend(self.paused_for_database(&selected));
        let proxies: Vec<&'a Target> = self.in_front_of(&selected, &beside).collect();
        beside.extend(proxies);
        let part = |target: &'a Target| {
            if selected.contains(target) {
                Part::Selected
            } else if beside.contains(target) {
                Part::Beside
            } else {
                Part::Outside
            }
        };
        Ok(self.entries.iter().map(|e| (&e.target, part(&e.target))).collect())
    }

    fn of_role(&self, role: Role) -> impl Iterator<Item = &'a ReleaseEntry> {
        self.entries.iter().copied().filter(move |e| e.role == role)
    }

    /// Configurations that applications among these read. What an application on a host that does not answer reads is not
    /// known; the host is left out, and comes back with all of its configurations.
    fn read_by(&self, selected: &BTreeSet<&Target>) -> impl Iterator<Item = &'a Target> {
        let mut read: BTreeSet<(&HostName, &ComponentName)> = BTreeSet::new();
        let mut unknown: BTreeSet<&HostName> = BTreeSet::new();
        for app in self.of_role(Role::App).filter(|e| selected.contains(&e.target)) {
            let host = &app.target.host;
            match self.observed.get(host) {
                Some(ObservedHost::Reachable(_)) => {
                    let reads = self.component(&app.target).map(|c| &c.reads);
                    read.extend(reads.into_iter().flatten().map(|name| (host, name)));
                }
                Some(ObservedHost::Unreachable { .. }) | None => _ = unknown.insert(host),
            }
        }
        let configs = self.of_role(Role::Config).map(|e| &e.target);
        let brought = configs.filter(|t| read.contains(&(&t.host, &t.component)) || unknown.contains(&t.host));
        let brought: Vec<&'a Target> = brought.filter(|t| !self.line.excludes(t)).collect();
        brought.into_iter()
    }

    /// Applications that are not selected and read a configuration that changes.
    fn readers(&self, selected: &BTreeSet<&Target>) -> (BTreeSet<&'a Target>, Vec<Refusal>) {
        let configs = self.of_role(Role::Config).filter(|e| selected.contains(&e.target));
        let changing: BTreeSet<(&HostName, &ComponentName)> = configs
            .filter(|e| self.changes(e))
            .map(|e| (&e.target.host, &e.target.component))
            .collect();
        let mut beside = BTreeSet::new();
        let mut refusals = Vec::new();
        for app in self
            .of_role(Role::App)
            .map(|e| &e.target)
            .filter(|t| !selected.contains(t))
        {
            let reads = self.component(app).into_iter().flat_map(|c| &c.reads);
            let mut changing = reads.filter(|name| changing.contains(&(&app.host, name)));
            if let Some(config) = changing.next() {
                if self.line.excludes(app) {
                    refusals.push(Refusal::ReaderExcluded {
                        target: app.clone(),
                        config: config.clone(),
                    });
                }
                beside.insert(app);
            }
        }
        (beside, refusals)
    }

    fn paused_for_database(&self, selected: &BTreeSet<&Target>) -> Vec<&'a Target> {
        let mut databases = self.of_role(Role::Database).filter(|e| selected.contains(&e.target));
        if !databases.any(|e| self.changes(e)) {
            return Vec::new();
        }
        let paused = self
            .of_role(Role::App)
            .chain(self.of_role(Role::Proxy))
            .map(|e| &e.target);
        let inside = paused.filter(|t| self.line.has_host(&t.host) && !self.line.excludes(t));
        // A host that does not answer cannot be asked to stop anything, and was not asked for.
        inside.filter(|t| self.component(t).is_some()).collect()
    }

    fn in_front_of(
        &self,
        selected: &BTreeSet<&Target>,
        beside: &BTreeSet<&'a Target>,
    ) -> impl Iterator<Item = &'a Target> {
        let proxies = self.of_role(Role::Proxy).map(|e| &e.target);
        proxies.filter(move |t| {
            let backends = self.component(t).into_iter().flat_map(|c| c.backends.iter().flatten());
            let mut backends = backends.filter(|b| selected.contains(b) || beside.contains(b));
            backends.next().is_some() && !self.line.excludes(t)
        })
    }

    /// Does the plan move it? What cannot be observed is refused later, with the reason.
    fn changes(&self, entry: &ReleaseEntry) -> bool {
        let restored = entry.role == Role::Database && self.runbook.database == DatabaseChoice::Restore;
        let revision = self.component(&entry.target).and_then(|c| c.revision.as_ref().ok());
        let moves = revision.is_some_and(|revision| *revision != entry.revision);
        self.runbook.changes(entry.role) && (restored || moves)
    }

    fn component(&self, target: &Target) -> Option<&ObservedComponent> {
        match self.observed.get(&target.host)? {
            ObservedHost::Reachable(components) => components.get(&target.component),
            ObservedHost::Unreachable { .. } => None,
        }
    }
}

/// Names that are of nothing in the release, or not for this runbook.
fn misnamed(entries: &[&ReleaseEntry], runbook: &Runbook, asked: &Selection) -> Vec<Refusal> {
    let services: BTreeSet<&ComponentName> = entries.iter().map(|e| &e.target.component).collect();
    let hosts: BTreeSet<&HostName> = entries.iter().map(|e| &e.target.host).collect();
    let mut refusals = Vec::new();
    for service in asked
        .services
        .iter()
        .chain(&asked.exclude_services)
        .chain(&runbook.services)
    {
        if !services.contains(service) {
            refusals.push(Refusal::UnknownService {
                service: service.clone(),
                known: nearest_first(service.as_str(), &services, ComponentName::as_str),
            });
        }
    }
    for host in asked.hosts.iter().chain(&asked.exclude_hosts) {
        if !hosts.contains(host) {
            refusals.push(Refusal::HostNotInRelease {
                host: host.clone(),
                known: nearest_first(host.as_str(), &hosts, HostName::as_str),
            });
        }
    }
    let others = asked
        .services
        .difference(&runbook.services)
        .filter(|s| services.contains(s));
    if !runbook.services.is_empty() {
        refusals.extend(others.map(|service| Refusal::ServiceNotOfRunbook {
            service: service.clone(),
            runbook: runbook.label(),
            services: runbook.services.iter().cloned().collect(),
        }));
    }
    refusals
}

/// What was meant is among the first.
fn nearest_first<T: Clone>(word: &str, names: &BTreeSet<&T>, text: impl Fn(&T) -> &str) -> Vec<T> {
    let mut names: Vec<T> = names.iter().copied().cloned().collect();
    names.sort_by_cached_key(|name| strsim::osa_distance(word, text(name)));
    names
}

/// Names that select nothing, because something else that was asked for takes it out again.
fn without_effect(of: &BTreeMap<&Target, Part>, asked: &Selection) -> Vec<Refusal> {
    let selected = || {
        of.iter()
            .filter(|(_, part)| **part == Part::Selected)
            .map(|(target, _)| target)
    };
    let services = asked
        .services
        .iter()
        .filter(|s| !selected().any(|t| t.component == **s));
    let hosts = asked.hosts.iter().filter(|h| !selected().any(|t| t.host == **h));
    let names = services.map(ToString::to_string).chain(hosts.map(ToString::to_string));
    names.map(|name| Refusal::SelectsNothing { name }).collect()
}
