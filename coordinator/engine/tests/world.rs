//! A model of the hosts: what the steps that the engine dispatches do to components, for the property tests.
//!
//! It knows nothing of plans. An app that starts loads its own revision and those of the configs that it reads, and
//! that is what its users see until it starts again: an undo that put files back but left the old process is not one.

use std::collections::{BTreeMap, BTreeSet};

use rollback_engine::ids::{Digest, Target};
use rollback_engine::plan::{DatabaseChoice, Move};
use rollback_engine::release::{Action, ObservedFleet, ObservedHost, Release, Role, Serving, Upstreams};
use rollback_engine::runbook::Runbook;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Component {
    role: Role,
    pausable: bool,
    reads: BTreeSet<Target>,
    revision: Digest,
    /// A database whose data are those of a backup.
    restored: bool,
    running: bool,
    drained: bool,
    /// Of a proxy: what it can hand requests to, and to which of these it hands none.
    backends: Upstreams,
    without: BTreeSet<Target>,
    /// What the running process was started with.
    loaded: BTreeMap<Target, Digest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    components: BTreeMap<Target, Component>,
    schema_changes: bool,
}

impl World {
    /// Everything runs what is on disk, but for what was observed to be down.
    pub fn of(observed: &ObservedFleet, schema_changes: bool) -> Self {
        let mut components = BTreeMap::new();
        for (host, state) in observed {
            let ObservedHost::Reachable(of_host) = state else {
                continue;
            };
            for (name, c) in of_host {
                let has = |a, b| c.capabilities.contains(&a) && c.capabilities.contains(&b);
                let pausable = match c.role {
                    Role::App => has(Action::Stop, Action::Start),
                    Role::Proxy => has(Action::Drain, Action::Resume),
                    Role::Database | Role::Config => false,
                };
                let component = Component {
                    role: c.role,
                    pausable,
                    reads: c
                        .reads
                        .iter()
                        .map(|r| Target {
                            host: host.clone(),
                            component: r.clone(),
                        })
                        .collect(),
                    revision: c.revision.as_ref().expect("an observed component").digest.clone(),
                    restored: false,
                    running: c.serving != Serving::Stopped,
                    drained: c.serving == Serving::Drained && c.out.is_empty(),
                    backends: c.backends.clone(),
                    without: c.out.clone(),
                    loaded: BTreeMap::new(),
                };
                components.insert(
                    Target {
                        host: host.clone(),
                        component: name.clone(),
                    },
                    component,
                );
            }
        }
        let mut world = Self {
            components,
            schema_changes,
        };
        for target in world.components.keys().cloned().collect::<Vec<_>>() {
            world.load(&target);
        }
        world
    }

    /// The same fleet as the release wants it, as far as the runbook changes it: everything serves.
    pub fn at_target(mut self, release: &Release, runbook: &Runbook) -> Self {
        for component in self.components.values_mut() {
            (component.running, component.drained) = (true, false);
            component.without.clear();
        }
        for entry in release.entries.iter().filter(|e| runbook.roles.contains(&e.role)) {
            let Some(component) = self.components.get_mut(&entry.target) else {
                continue;
            };
            if entry.role != Role::Database || runbook.database != DatabaseChoice::Keep {
                component.revision = entry.revision.digest.clone();
            }
            component.restored = entry.role == Role::Database && runbook.database == DatabaseChoice::Restore;
        }
        for target in self.components.keys().cloned().collect::<Vec<_>>() {
            self.load(&target);
        }
        self
    }

    /// Is this fleet as it was then, except that what was down may be up?
    pub fn is_back_at(&self, origin: &World) -> bool {
        let mut then = origin.clone();
        for (target, now) in &self.components {
            let was = then.component_mut(target);
            was.running |= now.running;
            was.drained &= now.drained;
            was.without.retain(|backend| now.without.contains(backend));
            then.load(target);
        }
        *self == then
    }

    /// Do users get an answer from it, through every backend that it has?
    pub fn serves(&self, target: &Target) -> bool {
        let component = self.component(target);
        component.running && !component.drained && component.without.is_empty()
    }

    /// Does this proxy hand requests to that backend?
    pub fn is_in(&self, proxy: &Target, backend: &Target) -> bool {
        !self.component(proxy).without.contains(backend)
    }

    /// Can it hand a request to anybody of an upstream? Backends that are not in this world count as gone.
    pub fn has_backend(&self, proxy: &Target, upstream: &BTreeSet<Target>) -> bool {
        let proxy = self.component(proxy);
        let takes = |b: &Target| self.components.get(b).is_some_and(|c| c.running) && !proxy.without.contains(b);
        upstream.iter().any(takes)
    }

    /// Does everything that it hands requests to answer?
    pub fn all_backends_run(&self, proxy: &Target) -> bool {
        let mut backends = self.component(proxy).backends.iter().flatten();
        backends.all(|b| self.components.get(b).is_some_and(|c| c.running))
    }

    /// An agent does not take the last backend out of its proxy; it knows only what it has taken out itself.
    pub fn would_be_last(&self, proxy: &Target, backend: &Target) -> bool {
        let proxy = self.component(proxy);
        let gone = |b: &Target| b == backend || proxy.without.contains(b);
        let mut of_backend = proxy.backends.iter().filter(|upstream| upstream.contains(backend));
        of_backend.any(|upstream| upstream.iter().all(gone))
    }

    pub fn revision(&self, target: &Target) -> &Digest {
        &self.component(target).revision
    }

    /// A step takes effect. `Err`: it must not have been dispatched in this state.
    pub fn carry_out(&mut self, target: &Target, asked: Move<'_>) -> Result<(), String> {
        match asked.action {
            Action::Prepare | Action::Stage | Action::Discard | Action::Snapshot | Action::Verify | Action::Finish => {}
            Action::Stop => {
                self.component_mut(target).running = false;
                self.load(target);
            }
            Action::Drain => match asked.backend {
                Some(backend) => _ = self.component_mut(target).without.insert(backend.clone()),
                None => self.component_mut(target).drained = true,
            },
            Action::Resume => match asked.backend {
                Some(backend) => _ = self.component_mut(target).without.remove(backend),
                None => {
                    let proxy = self.component_mut(target);
                    proxy.drained = false;
                    proxy.without.clear();
                }
            },
            Action::Start => {
                self.component_mut(target).running = true;
                self.load(target);
            }
            Action::Switch => {
                self.may_switch(target)?;
                self.component_mut(target).revision = asked.to.digest.clone();
                if asked.from_backup {
                    self.component_mut(target).restored = !asked.undo;
                }
                let component = self.component(target);
                // What cannot be stopped and started takes its new revision up by itself.
                if component.role != Role::App || !component.pausable {
                    self.load(target);
                }
            }
        }
        Ok(())
    }

    /// Nobody writes while the schema changes; no app runs while its own files are exchanged.
    pub fn may_switch(&self, target: &Target) -> Result<(), String> {
        let component = self.component(target);
        match component.role {
            Role::Database if self.schema_changes => {
                let busy = self.components.iter().find(|(_, c)| {
                    c.pausable
                        && match c.role {
                            Role::App => c.running,
                            Role::Proxy => !c.drained,
                            Role::Database | Role::Config => false,
                        }
                });
                busy.map_or(Ok(()), |(busy, _)| {
                    Err(format!("{target} is switched while {busy} is not paused"))
                })
            }
            Role::App if component.pausable && component.running => Err(format!("{target} is switched while it runs")),
            Role::Database | Role::App | Role::Config | Role::Proxy => Ok(()),
        }
    }

    /// A process that does not run has loaded nothing.
    fn load(&mut self, target: &Target) {
        let component = self.component(target);
        if !component.running {
            self.component_mut(target).loaded.clear();
            return;
        }
        let read = component
            .reads
            .iter()
            .chain([target])
            .filter_map(|t| self.components.get_key_value(t));
        let loaded = read.map(|(t, c)| (t.clone(), c.revision.clone())).collect();
        self.component_mut(target).loaded = loaded;
    }

    fn component(&self, target: &Target) -> &Component {
        self.components.get(target).expect("a component of the fleet")
    }

    fn component_mut(&mut self, target: &Target) -> &mut Component {
        self.components.get_mut(target).expect("a component of the fleet")
    }
}
