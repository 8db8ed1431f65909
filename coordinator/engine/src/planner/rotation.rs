//! Who serves while others restart: which applications of a batch are taken out of which proxies, and where a batch has
//! to be cut so that no upstream of a proxy loses its last backend.
//!
//! Only what keeps users served counts: a backend that is down, or was found out of the proxy, takes nothing away when it
//! restarts and is not drained. It counts from the end of its lane on, which gives it back, so it goes first where the
//! others would leave nobody before that.
//! Where nobody would be left (a proxy of one host's own applications), nothing is drained: the gap is there anyway.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::{HostName, Target};
use crate::plan::{Lane, Step};
use crate::release::Role;

use super::scope::{Member, Scope};

/// What one host does in the app phase.
#[derive(Debug)]
pub(super) struct HostLane<'a> {
    pub host: &'a [Member<'a>],
    pub steps: Vec<Step>,
    /// Of what the steps have moved, before anybody is sent there again.
    pub checks: Vec<Step>,
}

impl HostLane<'_> {
    /// Nobody is taken out of a proxy for it.
    pub fn plain(self) -> Lane {
        Lane {
            steps: self.steps.into_iter().chain(self.checks).collect(),
        }
    }
}

/// One upstream of a proxy.
#[derive(Debug)]
struct Upstream<'a> {
    proxy: &'a Member<'a>,
    /// Backends that serve between two batches.
    up: usize,
    /// Of these, in the batch that is being put together.
    taken: usize,
    /// Backends that do not serve yet: the lane of their host makes them.
    to_come: usize,
    /// Its backends stand on several hosts, so that batches can leave one of them up.
    spread: bool,
}

/// One backend that is out of one proxy for the time of its restart, and given back after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spared<'a> {
    pub proxy: &'a Member<'a>,
    pub backend: &'a Target,
    /// Nobody has to take it out.
    pub found_out: bool,
    /// The way back does not take it out: nobody else would serve, or it does not restart there.
    pub stays_in: bool,
    /// How many backends of this proxy are moved side by side: a host does the moves of one component one after the
    /// other, and each needs its time.
    pub at_once: usize,
}

#[derive(Debug)]
pub(super) struct Rotation<'a> {
    upstreams: Vec<Upstream<'a>>,
    /// Backend → the upstreams (indices) that it serves in.
    of_backend: BTreeMap<&'a Target, Vec<usize>>,
    /// Proxy → backends that the batch which is being put together takes from it, or gives back to it.
    moved: BTreeMap<&'a Target, BTreeSet<&'a Target>>,
}

impl<'a> Rotation<'a> {
    pub fn of(scope: &'a Scope<'a>) -> Self {
        let apps: BTreeMap<&Target, &Member<'_>> = scope.of_role(Role::App).map(|m| (&m.change.target, m)).collect();
        let mut of_backend: BTreeMap<&Target, Vec<usize>> = BTreeMap::new();
        let mut upstreams = Vec::new();
        let proxies = scope.of_role(Role::Proxy);
        for (proxy, backends) in proxies.flat_map(|m| m.change.backends.iter().map(move |b| (m, b))) {
            for backend in backends {
                of_backend.entry(backend).or_default().push(upstreams.len());
            }
            let hosts: BTreeSet<&HostName> = backends.iter().map(|b| &b.host).collect();
            let is_up = |b: &&Target| !is_out(proxy, b) && !apps.get(*b).is_some_and(|m| m.restored());
            let comes = |b: &&Target| apps.get(*b).is_some_and(|m| comes(proxy, m));
            upstreams.push(Upstream {
                proxy,
                up: backends.iter().filter(is_up).count(),
                taken: 0,
                to_come: backends.iter().filter(comes).count(),
                spread: hosts.len() > 1,
            });
        }
        Self {
            upstreams,
            of_backend,
            moved: BTreeMap::new(),
        }
    }

    /// Takes out of `waiting` what can go side by side while every upstream keeps a backend that serves. Never nothing: when
    /// each of them would take a last one, one goes alone. That is one of a later batch if it brings an upstream the backend
    /// that it lacks, or else the first, and users notice.
    pub fn next_batch(
        &mut self,
        waiting: &mut Vec<HostLane<'a>>,
        later: &mut VecDeque<Vec<HostLane<'a>>>,
    ) -> Vec<HostLane<'a>> {
        let mut batch = Vec::new();
        for lane in std::mem::take(waiting) {
            if self.blocked(lane.host).next().is_none() {
                self.take(lane.host);
                batch.push(lane);
            } else {
                waiting.push(lane);
            }
        }
        if batch.is_empty() && !waiting.is_empty() {
            let lane = self.helper(waiting, later).unwrap_or_else(|| waiting.remove(0));
            self.take(lane.host);
            batch.push(lane);
        }
        batch
    }

    /// Takes a lane out of the later batches that can go now and after which somebody else serves where the first that waits
    /// would leave nobody.
    fn helper(&self, waiting: &[HostLane<'a>], later: &mut VecDeque<Vec<HostLane<'a>>>) -> Option<HostLane<'a>> {
        let lacking: BTreeSet<usize> = self
            .blocked(waiting.first()?.host)
            .filter(|upstream| self.upstreams[*upstream].to_come > 0)
            .collect();
        if lacking.is_empty() {
            return None;
        }
        let helps = |lane: &HostLane<'a>| {
            self.brings(lane.host).iter().any(|upstream| lacking.contains(upstream))
                && self.blocked(lane.host).next().is_none()
        };
        later.iter_mut().find_map(|lanes| {
            let index = lanes.iter().position(helps)?;
            Some(lanes.remove(index))
        })
    }

    /// The upstreams that would have nobody left if this host's lane joined the batch.
    fn blocked(&self, host: &[Member<'_>]) -> impl Iterator<Item = usize> {
        let takes = self.takes(host).into_iter();
        let left = takes.filter(|(upstream, n)| {
            let upstream = &self.upstreams[*upstream];
            upstream.spread && upstream.taken + n >= upstream.up
        });
        left.map(|(upstream, _)| upstream)
    }

    /// What is drained and given back for a host of the batch that [`Rotation::next_batch`] has put together.
    pub fn spared(&self, host: &'a [Member<'a>]) -> Vec<Spared<'a>> {
        let mut spared = Vec::new();
        for member in host {
            let backend = &member.change.target;
            let mut of_proxy: BTreeMap<&Target, (&'a Member<'a>, bool)> = BTreeMap::new();
            for upstream in self.behind(backend) {
                let Upstream { proxy, up, taken, .. } = &self.upstreams[upstream];
                // Drained in all of its upstreams or in none.
                of_proxy.entry(&proxy.change.target).or_insert((proxy, true)).1 &= taken < up;
            }
            for (proxy, somebody_stays) in of_proxy.into_values() {
                let found_out = is_out(proxy, backend);
                let moves = if found_out {
                    comes(proxy, member)
                } else {
                    takes_away(proxy, member) && somebody_stays
                };
                if moves {
                    spared.push(Spared {
                        proxy,
                        backend,
                        found_out,
                        stays_in: found_out && !(member.restarts && somebody_stays),
                        at_once: self.moved.get(&proxy.change.target).map_or(1, BTreeSet::len),
                    });
                }
            }
        }
        spared
    }

    /// The batch is behind: what it took serves again, and what was down or out before serves as well. Where a runbook goes on
    /// after a failure, this is only hoped for; the proxies' agents refuse to drain the last backend that they know of.
    pub fn batch_done(&mut self, batch: &[HostLane<'a>]) {
        for upstream in &mut self.upstreams {
            upstream.taken = 0;
        }
        self.moved.clear();
        for upstream in batch.iter().flat_map(|lane| self.brings(lane.host)).collect::<Vec<_>>() {
            let upstream = &mut self.upstreams[upstream];
            upstream.up += 1;
            upstream.to_come -= 1;
        }
    }

    fn behind(&self, backend: &Target) -> impl Iterator<Item = usize> {
        self.of_backend.get(backend).into_iter().flatten().copied()
    }

    /// How many serving backends of which upstreams a host's lane takes away.
    fn takes(&self, host: &[Member<'_>]) -> BTreeMap<usize, usize> {
        let mut takes = BTreeMap::new();
        for member in host {
            let behind = self.behind(&member.change.target);
            for upstream in behind.filter(|u| takes_away(self.upstreams[*u].proxy, member)) {
                *takes.entry(upstream).or_default() += 1;
            }
        }
        takes
    }

    /// The upstreams to which a host's lane gives a backend that did not serve before, once for each.
    fn brings(&self, host: &[Member<'_>]) -> Vec<usize> {
        let mut brings = Vec::new();
        for member in host {
            let behind = self.behind(&member.change.target);
            brings.extend(behind.filter(|u| comes(self.upstreams[*u].proxy, member)));
        }
        brings
    }

    fn take(&mut self, host: &'a [Member<'a>]) {
        for member in host {
            let backend = &member.change.target;
            for upstream in self.behind(backend).collect::<Vec<_>>() {
                let upstream = &mut self.upstreams[upstream];
                let takes = takes_away(upstream.proxy, member);
                upstream.taken += usize::from(takes);
                if takes || (is_out(upstream.proxy, backend) && comes(upstream.proxy, member)) {
                    self.moved
                        .entry(&upstream.proxy.change.target)
                        .or_default()
                        .insert(backend);
                }
            }
        }
    }
}

fn is_out(proxy: &Member<'_>, backend: &Target) -> bool {
    proxy.change.out.contains(backend)
}

/// It serves by this proxy now and will not for a moment. What was found down or out serves nobody until its batch is done.
fn takes_away(proxy: &Member<'_>, member: &Member<'_>) -> bool {
    member.role() == Role::App && member.restarts && !member.restored() && !is_out(proxy, &member.change.target)
}

/// It does not serve by this proxy now, and will at the end of its host's lane. What is out and is not touched comes back
/// with the proxy.
fn comes(proxy: &Member<'_>, member: &Member<'_>) -> bool {
    let out = is_out(proxy, &member.change.target);
    member.role() == Role::App && (member.restored() || (out && member.restarts))
}
