//! Who serves while others restart: which applications of a batch are taken out of which proxies, and where a batch has
//! to be cut so that no proxy loses its last backend.
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

#[derive(Debug)]
struct Proxy<'a> {
    member: &'a Member<'a>,
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
    proxies: Vec<Proxy<'a>>,
    /// Backend → the proxies (indices) that it serves behind.
    of_backend: BTreeMap<&'a Target, Vec<usize>>,
}

impl<'a> Rotation<'a> {
    pub fn of(scope: &'a Scope<'a>) -> Self {
        let down: BTreeSet<&Target> = scope
            .of_role(Role::App)
            .filter(|m| m.restored())
            .map(|m| &m.change.target)
            .collect();
        let mut of_backend: BTreeMap<&Target, Vec<usize>> = BTreeMap::new();
        let mut proxies = Vec::new();
        for member in scope.of_role(Role::Proxy) {
            let backends = &member.change.backends;
            if backends.is_empty() {
                continue;
            }
            for backend in backends {
                of_backend.entry(backend).or_default().push(proxies.len());
            }
            let hosts: BTreeSet<&HostName> = backends.iter().map(|b| &b.host).collect();
            proxies.push(Proxy {
                member,
                up: backends.iter().filter(|b| !down.contains(b)).count(),
                taken: 0,
                spread: hosts.len() > 1,
            });
        }
        Self { proxies, of_backend }
    }

    /// Takes out of `waiting` what can go side by side while every proxy keeps a backend that serves. Never nothing: when
    /// each of them would take a last one, the first goes alone.
    pub fn next_batch(&mut self, waiting: &mut Vec<HostLane<'a>>) -> Vec<HostLane<'a>> {
        let mut batch = Vec::new();
        for lane in std::mem::take(waiting) {
            let takes = self.takes(lane.host);
            let fits = takes.iter().all(|(proxy, n)| {
                let proxy = &self.proxies[*proxy];
                !proxy.spread || proxy.taken + n < proxy.up
            });
            if fits {
                self.take(&takes);
                batch.push(lane);
            } else {
                waiting.push(lane);
            }
        }
        if batch.is_empty() && !waiting.is_empty() {
            let first = waiting.remove(0);
            self.take(&self.takes(first.host));
            batch.push(first);
        }
        batch
    }

    /// What is drained for a host of the batch that [`Rotation::next_batch`] has put together.
    pub fn spared(&self, host: &'a [Member<'a>]) -> Vec<Spared<'a>> {
        let mut spared = Vec::new();
        for member in host.iter().filter(|m| takes_away(m)) {
            let backend = &member.change.target;
            for proxy in self.behind(backend) {
                let proxy = &self.proxies[proxy];
                if proxy.taken < proxy.up {
                    spared.push(Spared {
                        proxy: proxy.member,
                        backend,
                        at_once: proxy.taken,
                    });
                }
            }
        }
        spared
    }

    /// The batch is behind: what it took serves again, and what was down before serves as well. Where a runbook goes on
    /// after a failure, this is only hoped for; the proxies' agents refuse to drain the last backend that they know of.
    pub fn batch_done(&mut self, batch: &[HostLane<'a>]) {
        for proxy in &mut self.proxies {
            proxy.taken = 0;
        }
        for member in batch.iter().flat_map(|lane| lane.host).filter(|m| m.restored()) {
            for proxy in self.behind(&member.change.target).collect::<Vec<_>>() {
                self.proxies[proxy].up += 1;
            }
        }
    }

    fn behind(&self, backend: &Target) -> impl Iterator<Item = usize> {
        self.of_backend.get(backend).into_iter().flatten().copied()
    }

    /// How many serving backends of which proxies a host's lane takes away.
    fn takes(&self, host: &[Member<'_>]) -> BTreeMap<usize, usize> {
        let mut takes = BTreeMap::new();
        for member in host.iter().filter(|m| takes_away(m)) {
            for proxy in self.behind(&member.change.target) {
                *takes.entry(proxy).or_default() += 1;
            }
        }
        takes
    }

    fn take(&mut self, takes: &BTreeMap<usize, usize>) {
        for (proxy, n) in takes {
            self.proxies[*proxy].taken += n;
        }
    }
}

/// It serves now and will not for a moment. What was found down serves nobody until its batch has brought it up.
fn takes_away(member: &Member<'_>) -> bool {
    member.role() == Role::App && member.restarts && !member.restored()
}
