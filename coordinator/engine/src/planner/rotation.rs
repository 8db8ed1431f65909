//! Who serves while others restart: which applications of a batch are taken out of which proxies, and where a batch has
//! to be cut so that no upstream of a proxy loses its last backend.
//!
//! Only what keeps users served counts: a backend that is down takes nothing away when it restarts and is not drained.
//! Where nobody would be left (a proxy of one host's own applications), nothing is drained: the gap is there anyway.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{HostName, Target};
use crate::plan::Step;
use crate::release::Role;

use super::scope::{Member, Scope};

/// What one host does in the app phase.
#[derive(Debug)]
pub(super) struct HostLane<'a> {
    pub host: &'a [Member<'a>],
    pub steps: Vec<Step>,
}

/// One upstream of a proxy.
#[derive(Debug)]
struct Upstream<'a> {
    proxy: &'a Member<'a>,
    /// Backends that serve between two batches.
    up: usize,
    /// Of these, in the batch that is being put together.
    taken: usize,
    /// Its backends stand on several hosts, so that batches can leave one of them up.
    spread: bool,
}

/// One backend that is taken out of one proxy for the time of its restart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spared<'a> {
    pub proxy: &'a Member<'a>,
    pub backend: &'a Target,
    /// How many backends of this proxy are taken out side by side: a host does the moves of one component one after the
    /// other, and each needs its time.
    pub at_once: usize,
}

#[derive(Debug)]
pub(super) struct Rotation<'a> {
    upstreams: Vec<Upstream<'a>>,
    /// Backend → the upstreams (indices) that it serves in.
    of_backend: BTreeMap<&'a Target, Vec<usize>>,
    /// Proxy → backends that the batch which is being put together takes from it.
    taken: BTreeMap<&'a Target, BTreeSet<&'a Target>>,
}

impl<'a> Rotation<'a> {
    pub fn of(scope: &'a Scope<'a>) -> Self {
        let down: BTreeSet<&Target> = scope
            .of_role(Role::App)
            .filter(|m| m.restored())
            .map(|m| &m.change.target)
            .collect();
        let mut of_backend: BTreeMap<&Target, Vec<usize>> = BTreeMap::new();
        let mut upstreams = Vec::new();
        let proxies = scope.of_role(Role::Proxy);
        for (proxy, backends) in proxies.flat_map(|m| m.change.backends.iter().map(move |b| (m, b))) {
            for backend in backends {
                of_backend.entry(backend).or_default().push(upstreams.len());
            }
            let hosts: BTreeSet<&HostName> = backends.iter().map(|b| &b.host).collect();
            upstreams.push(Upstream {
                proxy,
                up: backends.iter().filter(|b| !down.contains(b)).count(),
                taken: 0,
                spread: hosts.len() > 1,
            });
        }
        Self {
            upstreams,
            of_backend,
            taken: BTreeMap::new(),
        }
    }

    /// Takes out of `waiting` what can go side by side while every upstream keeps a backend that serves. Never nothing: when
    /// each of them would take a last one, the first goes alone.
    pub fn next_batch(&mut self, waiting: &mut Vec<HostLane<'a>>) -> Vec<HostLane<'a>> {
        let mut batch = Vec::new();
        for lane in std::mem::take(waiting) {
            let takes = self.takes(lane.host);
            let fits = takes.iter().all(|(upstream, n)| {
                let upstream = &self.upstreams[*upstream];
                !upstream.spread || upstream.taken + n < upstream.up
            });
            if fits {
                self.take(lane.host);
                batch.push(lane);
            } else {
                waiting.push(lane);
            }
        }
        if batch.is_empty() && !waiting.is_empty() {
            let first = waiting.remove(0);
            self.take(first.host);
            batch.push(first);
        }
        batch
    }

    /// What is drained for a host of the batch that [`Rotation::next_batch`] has put together.
    pub fn spared(&self, host: &'a [Member<'a>]) -> Vec<Spared<'a>> {
        let mut spared = Vec::new();
        for member in host.iter().filter(|m| takes_away(m)) {
            let backend = &member.change.target;
            let mut of_proxy: BTreeMap<&Target, (&'a Member<'a>, bool)> = BTreeMap::new();
            for upstream in self.behind(backend) {
                let Upstream { proxy, up, taken, .. } = &self.upstreams[upstream];
                // Drained in all of its upstreams or in none.
                of_proxy.entry(&proxy.change.target).or_insert((proxy, true)).1 &= taken < up;
            }
            let drained = of_proxy.into_values().filter(|(_, somebody_stays)| *somebody_stays);
            spared.extend(drained.map(|(proxy, _)| Spared {
                proxy,
                backend,
                at_once: self.taken.get(&proxy.change.target).map_or(1, BTreeSet::len),
            }));
        }
        spared
    }

    /// The batch is behind: what it took serves again, and what was down before serves as well. Where a runbook goes on
    /// after a failure, this is only hoped for; the proxies' agents refuse to drain the last backend that they know of.
    pub fn batch_done(&mut self, batch: &[HostLane<'a>]) {
        for upstream in &mut self.upstreams {
            upstream.taken = 0;
        }
        self.taken.clear();
        for member in batch.iter().flat_map(|lane| lane.host).filter(|m| m.restored()) {
            for upstream in self.behind(&member.change.target).collect::<Vec<_>>() {
                self.upstreams[upstream].up += 1;
            }
        }
    }

    fn behind(&self, backend: &Target) -> impl Iterator<Item = usize> {
        self.of_backend.get(backend).into_iter().flatten().copied()
    }

    /// How many serving backends of which upstreams a host's lane takes away.
    fn takes(&self, host: &[Member<'_>]) -> BTreeMap<usize, usize> {
        let mut takes = BTreeMap::new();
        for member in host.iter().filter(|m| takes_away(m)) {
            for upstream in self.behind(&member.change.target) {
                *takes.entry(upstream).or_default() += 1;
            }
        }
        takes
    }

    fn take(&mut self, host: &'a [Member<'a>]) {
        for backend in host.iter().filter(|m| takes_away(m)).map(|m| &m.change.target) {
            for upstream in self.behind(backend).collect::<Vec<_>>() {
                let upstream = &mut self.upstreams[upstream];
                upstream.taken += 1;
                self.taken
                    .entry(&upstream.proxy.change.target)
                    .or_default()
                    .insert(backend);
            }
        }
    }
}

/// It serves now and will not for a moment. What was found down serves nobody until its batch has brought it up.
fn takes_away(member: &Member<'_>) -> bool {
    member.role() == Role::App && member.restarts && !member.restored()
}
