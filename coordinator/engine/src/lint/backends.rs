//! Backends that are drained one by one: each is given back, nothing happens to its application outside of that, and
//! somebody always serves. What was found out of a proxy that serves is given back without a drain, once.
//!
//! Lanes of a batch run side by side, so the worst case counts: all that any lane of the batch takes down is down at once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::LintError;
use crate::ids::Target;
use crate::plan::{Batch, Change, Lane, PlanBody, Step, Undo};
use crate::release::{Action, Role};

/// Proxy and backend: found out, and not given back yet.
type Out<'a> = HashSet<(&'a Target, &'a Target)>;

pub(super) fn check(body: &PlanBody, errors: &mut Vec<LintError>) {
    let changes: HashMap<&Target, &Change> = body.changes.iter().map(|c| (&c.target, c)).collect();
    let with_backends = |c: &&Change| !c.backends.is_empty() || !c.out.is_empty();
    for change in body.changes.iter().filter(with_backends) {
        // One to restore that names nobody who is out is in maintenance.
        if change.role != Role::Proxy || change.restore == change.out.is_empty() {
            errors.push(LintError::NoBackends {
                target: change.target.clone(),
            });
        }
    }
    let mut down: HashSet<&Target> = body.changes.iter().filter(|c| c.restore).map(|c| &c.target).collect();
    let proxies = body.changes.iter();
    let mut out: Out<'_> = proxies
        .flat_map(|c| c.out.iter().map(move |b| (&c.target, b)))
        .collect();
    for batch in body.phases.iter().flat_map(|p| &p.batches) {
        somebody_serves(batch, &changes, &down, &out, errors);
        for lane in &batch.lanes {
            check_lane(lane, &changes, &mut out, errors);
        }
        for step in steps(batch) {
            if step.action == Action::Stop {
                down.insert(&step.target);
            } else if step.action == Action::Start {
                down.remove(&step.target);
            }
        }
    }
}

fn steps(batch: &Batch) -> impl Iterator<Item = &Step> {
    batch.lanes.iter().flat_map(|lane| &lane.steps)
}

fn check_lane<'a>(lane: &'a Lane, changes: &HashMap<&Target, &Change>, out: &mut Out<'a>, errors: &mut Vec<LintError>) {
    // Drained in this lane and not given back yet, and whether its application was touched since.
    let mut drained: BTreeMap<(&Target, &Target), (&Step, bool)> = BTreeMap::new();
    let mut given_back: HashSet<&Target> = HashSet::new();
    let mut touched: HashSet<&Target> = HashSet::new();
    for step in &lane.steps {
        let Some(backend) = &step.backend else {
            if step.action.changes_service() {
                touched.insert(&step.target);
                for ((_, backend), (_, since)) in &mut drained {
                    *since |= **backend == step.target;
                }
                if given_back.contains(&step.target) {
                    errors.push(LintError::NotSpared {
                        step: step.id,
                        backend: step.target.clone(),
                    });
                }
            }
            continue;
        };
        let upstreams = changes.get(&step.target).map(|c| &c.backends);
        let declared = upstreams
            .into_iter()
            .flatten()
            .any(|upstream| upstream.contains(backend));
        if !declared || !changes.contains_key(backend) {
            errors.push(LintError::UnknownBackend {
                step: step.id,
                backend: backend.clone(),
            });
        }
        let pair = (&step.target, backend);
        let (fits, undo_fits) = match step.action {
            // Drained twice, or too late, or out already.
            Action::Drain => {
                let late = touched.contains(backend) || out.contains(&pair);
                let fits = drained.insert(pair, (step, false)).is_none() && !late;
                (fits, step.undo == Undo::By(Action::Resume))
            }
            // Whether the way back takes out what was found out does not matter to those who are served.
            Action::Resume if out.remove(&pair) => {
                given_back.insert(backend);
                let undo_fits = matches!(step.undo, Undo::By(Action::Drain) | Undo::Nothing);
                (touched.contains(backend), undo_fits)
            }
            Action::Resume => {
                given_back.insert(backend);
                // Never drained, or for nothing.
                let fits = drained.remove(&pair).is_some_and(|(_, since)| since);
                (fits, step.undo == Undo::By(Action::Drain))
            }
            Action::Prepare
            | Action::Stage
            | Action::Discard
            | Action::Snapshot
            | Action::Stop
            | Action::Start
            | Action::Switch
            | Action::Verify
            | Action::Finish => {
                errors.push(LintError::NotOfOneBackend {
                    step: step.id,
                    action: step.action,
                });
                continue;
            }
        };
        if !fits {
            errors.push(LintError::NotSpared {
                step: step.id,
                backend: backend.clone(),
            });
        }
        if !undo_fits {
            errors.push(LintError::WrongUndo {
                step: step.id,
                action: step.action,
            });
        }
    }
    errors.extend(
        drained
            .into_iter()
            .map(|((_, backend), (step, _))| LintError::NotGivenBack {
                step: step.id,
                backend: backend.clone(),
            }),
    );
}

/// In every upstream of a proxy that loses a backend in this batch, forward or on the way back, one stays that the batch
/// leaves alone, that is up, and that is in.
fn somebody_serves(
    batch: &Batch,
    changes: &HashMap<&Target, &Change>,
    down: &HashSet<&Target>,
    out: &Out<'_>,
    errors: &mut Vec<LintError>,
) {
    let mut firsts: BTreeMap<(&Target, &BTreeSet<Target>), &Step> = BTreeMap::new();
    let mut away: HashSet<&Target> = HashSet::new();
    for step in steps(batch).filter(|s| s.action.changes_service()) {
        match &step.backend {
            Some(backend) => {
                let loses = step.action == Action::Drain || step.undo == Undo::By(Action::Drain);
                let upstreams = changes.get(&step.target).filter(|_| loses).map(|c| &c.backends);
                for upstream in upstreams.into_iter().flatten().filter(|u| u.contains(backend)) {
                    firsts.entry((&step.target, upstream)).or_insert(step);
                }
                away.insert(backend);
            }
            None => _ = away.insert(&step.target),
        }
    }
    for ((proxy, upstream), step) in firsts {
        let serves = |b: &&Target| !away.contains(b) && !down.contains(b) && !out.contains(&(proxy, *b));
        let mut staying = upstream.iter().filter(serves);
        if staying.next().is_none() {
            errors.push(LintError::NobodyServes {
                step: step.id,
                target: proxy.clone(),
            });
        }
    }
}
