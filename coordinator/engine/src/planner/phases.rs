//! Drafts the phases, one function each, in the order in which they run. Empty lanes, batches and phases are left out.
//!
//! What `from` and `to` mean: `to` is the revision expected to be live after the step, `from` the one before. A stop
//! leaves the observed revision in place (observed → observed), a start after the switch expects the target (target →
//! target), drain and resume name whatever is live at that moment. The undo exchanges them, so the undo of that stop is
//! a start that expects the observed revision. Steps that leave the service alone carry the change that they serve.
//!
//! What was found down is brought up in its phase, changed or not. Where the plan has to pause it, the pause is planned
//! all the same (somebody may have started it since) and has no undo, so that the way back leaves it down. Where the plan
//! does not pause it, bringing it up has no undo: serving users is never taken back.
//!
//! A backend that was found out is much the same. Where its application restarts, it is given back when that is done, and
//! the way back takes it out again first, so that no user meets the restart there either; unless it is the only one that
//! serves by then.

use std::collections::{BTreeSet, VecDeque};

use crate::ids::{StepId, Target};
use crate::plan::{Batch, Lane, Phase, PhaseName, Step, Undo};
use crate::release::{Action, Role};
use crate::runbook::Runbook;

use super::batches::cut;
use super::rotation::{HostLane, Rotation, Spared};
use super::scope::{Member, Scope};

pub(super) struct Drafter<'a> {
    scope: &'a Scope<'a>,
    runbook: &'a Runbook,
    /// Hosts with something to do in the app phase.
    worked_on: usize,
}

impl<'a> Drafter<'a> {
    pub fn new(scope: &'a Scope<'a>, runbook: &'a Runbook) -> Self {
        let mut drafter = Self {
            scope,
            runbook,
            worked_on: 0,
        };
        let works = |host: &&[Member<'_>]| !drafter.app_steps(host, scope.schema_changes).is_empty();
        drafter.worked_on = scope.hosts().filter(works).count();
        drafter
    }

    pub fn draft(&self) -> Vec<Phase> {
        let before_finish = [
            self.phase(PhaseName::Preflight, vec![self.of_changing(Action::Prepare)]),
            self.phase(PhaseName::Stage, vec![self.of_changing(Action::Stage)]),
            self.phase(PhaseName::Protect, vec![self.protect()]),
            self.phase(PhaseName::Quiesce, self.quiesce()),
            self.phase(PhaseName::Database, vec![self.database()]),
            self.app(),
            self.phase(PhaseName::Proxy, vec![self.proxy()]),
            self.phase(PhaseName::Verify, vec![self.verify()]),
        ];
        let mut phases: Vec<Phase> = before_finish.into_iter().flatten().collect();
        let finish = self.phase(PhaseName::Finish, vec![self.finish(&phases)]);
        phases.extend(finish);
        phases
    }

    fn of_changing(&self, action: Action) -> Vec<Lane> {
        self.scope
            .members
            .iter()
            .filter(|m| m.changes)
            .map(|m| lane(vec![self.step(m, action)]))
            .collect()
    }

    /// Databases always, even those that stay: the apps around them change, and a backup is the cheapest regret.
    fn protect(&self) -> Vec<Lane> {
        let wanted = |m: &&Member<'_>| match m.role() {
            Role::Database => self.scope.anything_changes,
            Role::Config | Role::App | Role::Proxy => m.changes && m.can(Action::Snapshot),
        };
        self.scope
            .members
            .iter()
            .filter(wanted)
            .map(|m| lane(vec![self.step(m, Action::Snapshot)]))
            .collect()
    }

    /// Users get a maintenance answer first, then the writers stop: all of them, because the schema changes under all.
    fn quiesce(&self) -> Vec<Vec<Lane>> {
        if !self.scope.schema_changes {
            return Vec::new();
        }
        let pause = |role, action| -> Vec<Lane> {
            let members = self.scope.of_role(role).filter(|m| self.pauses(m));
            members.map(|m| lane(vec![self.step(m, action)])).collect()
        };
        vec![pause(Role::Proxy, Action::Drain), pause(Role::App, Action::Stop)]
    }

    fn database(&self) -> Vec<Lane> {
        let changing = self.scope.of_role(Role::Database).filter(|m| m.changes);
        changing.map(|m| lane(vec![self.step(m, Action::Switch)])).collect()
    }

    fn app(&self) -> Option<Phase> {
        let quiesced = self.scope.schema_changes;
        let lanes = self.scope.hosts().map(|host| {
            let steps = self.app_steps(host, quiesced);
            let checks = self.app_checks(host, &steps);
            HostLane { host, steps, checks }
        });
        let lanes: Vec<HostLane<'_>> = lanes.filter(|lane| !lane.steps.is_empty()).collect();
        let batches = if quiesced {
            // Everybody is down already: a limit would only keep them down for longer.
            let all = lanes.len();
            cut(lanes, &self.runbook.batches_when_quiesced, all)
        } else {
            let limit = self.runbook.max_unavailable.of(lanes.len());
            cut(lanes, &self.runbook.batches, limit)
        };
        let batches = if quiesced || self.runbook.all_at_once() {
            let plain = |batch: Vec<HostLane<'_>>| batch.into_iter().map(HostLane::plain).collect();
            batches.into_iter().map(plain).collect()
        } else {
            self.in_rotation(batches)
        };
        self.phase(PhaseName::App, batches)
    }

    /// Each host's lane between the drains and the resumes of its applications, in batches that leave somebody serving.
    fn in_rotation(&self, batches: Vec<Vec<HostLane<'a>>>) -> Vec<Vec<Lane>> {
        let mut rotation = Rotation::of(self.scope);
        let mut cut = Vec::new();
        let mut batches = VecDeque::from(batches);
        while let Some(mut waiting) = batches.pop_front() {
            while !waiting.is_empty() {
                let batch = rotation.next_batch(&mut waiting, &mut batches);
                let spare = |l: &HostLane<'a>| {
                    let spared = rotation.spared(l.host);
                    let to_drain = spared.iter().filter(|s| !s.found_out);
                    let drains = to_drain.map(|s| self.backend_step(s, Action::Drain));
                    let resumes = spared.iter().map(|s| self.backend_step(s, Action::Resume));
                    lane(
                        drains
                            .chain(l.steps.iter().chain(&l.checks).cloned())
                            .chain(resumes)
                            .collect(),
                    )
                };
                cut.push(batch.iter().map(spare).collect());
                rotation.batch_done(&batch);
            }
        }
        cut
    }

    /// "config + app" of one host; see the planner's module documentation for why it has this shape.
    fn app_steps(&self, host: &[Member<'_>], quiesced: bool) -> Vec<Step> {
        let of = |role: Role| host.iter().filter(move |m| m.role() == role);
        let to_start = |m: &&Member<'_>| self.pauses(m) || m.restored();
        let mut steps = Vec::new();
        if !quiesced {
            let to_stop = of(Role::App).filter(|m| self.pauses(m));
            steps.extend(to_stop.map(|m| self.step(m, Action::Stop)));
        }
        for role in [Role::Config, Role::App] {
            steps.extend(of(role).filter(|m| m.changes).map(|m| self.step(m, Action::Switch)));
        }
        steps.extend(of(Role::App).filter(to_start).map(|m| self.step(m, Action::Start)));
        steps
    }

    /// The applications that the lane of a host has moved are verified before they get requests again, and before the next batch
    /// begins. Configurations cannot be seen to work but by them.
    fn app_checks(&self, host: &[Member<'_>], steps: &[Step]) -> Vec<Step> {
        if !self.runbook.checks.after_batch {
            return Vec::new();
        }
        let moved: BTreeSet<&Target> = steps.iter().map(|s| &s.target).collect();
        let apps = host
            .iter()
            .filter(|m| m.role() == Role::App && moved.contains(&m.change.target));
        apps.map(|m| self.step(m, Action::Verify)).collect()
    }

    fn proxy(&self) -> Vec<Lane> {
        let steps = |m: &Member<'_>| {
            let switch = m.changes.then(|| self.step(m, Action::Switch));
            let to_resume = self.pauses(m) || m.restored();
            let resume = to_resume.then(|| self.step(m, Action::Resume));
            lane(switch.into_iter().chain(resume).collect())
        };
        self.scope.of_role(Role::Proxy).map(steps).collect()
    }

    fn verify(&self) -> Vec<Lane> {
        self.scope
            .members
            .iter()
            .map(|m| lane(vec![self.step(m, Action::Verify)]))
            .collect()
    }

    /// Everything that the rollback left something beside: staged, backed up, or changed. Draining a backend leaves nothing.
    fn finish(&self, phases: &[Phase]) -> Vec<Lane> {
        let steps = phases
            .iter()
            .flat_map(|p| &p.batches)
            .flat_map(|b| &b.lanes)
            .flat_map(|l| &l.steps);
        let touched: BTreeSet<&Target> = steps
            .filter(|s| s.backend.is_none())
            .filter(|s| s.action.changes_service() || matches!(s.action, Action::Stage | Action::Snapshot))
            .map(|s| &s.target)
            .collect();
        let members = self.scope.members.iter();
        members
            .filter(|m| m.can(Action::Finish) && touched.contains(&m.change.target))
            .map(|m| lane(vec![self.step(m, Action::Finish)]))
            .collect()
    }

    /// Does the plan stop or drain it on its way?
    fn pauses(&self, member: &Member<'_>) -> bool {
        member.can_pause() && (self.scope.schema_changes || member.restarts)
    }

    fn step(&self, member: &Member<'_>, action: Action) -> Step {
        let change = &member.change;
        let (from, to) = match action {
            Action::Prepare
            | Action::Stage
            | Action::Discard
            | Action::Snapshot
            | Action::Switch
            | Action::Verify
            | Action::Finish => (&change.from, &change.to),
            Action::Stop | Action::Drain => (&change.from, &change.from),
            Action::Start | Action::Resume => (&change.to, &change.to),
        };
        let undo = match action {
            Action::Prepare | Action::Discard | Action::Snapshot | Action::Verify | Action::Finish => Undo::Nothing,
            Action::Drain | Action::Stop if member.found_down() => Undo::Nothing,
            Action::Resume | Action::Start if member.restored() && !self.pauses(member) => Undo::Nothing,
            Action::Stage => Undo::By(Action::Discard),
            Action::Drain => Undo::By(Action::Resume),
            Action::Resume => Undo::By(Action::Drain),
            Action::Stop => Undo::By(Action::Start),
            Action::Start => Undo::By(Action::Stop),
            Action::Switch => Undo::By(Action::Switch),
        };
        // A step has one timeout for both directions: a stop of one minute may need two to start again.
        let time_for = |action| self.runbook.timeout_ms(action, member.role());
        let timeout_ms = match undo {
            Undo::By(back) => time_for(action).max(time_for(back)),
            Undo::Nothing | Undo::Impossible => time_for(action),
        };
        Step {
            id: StepId(0),
            target: change.target.clone(),
            action,
            from: from.clone(),
            to: to.clone(),
            timeout_ms,
            undo,
            backend: None,
            from_backup: change.from_backup,
        }
    }

    /// Takes one backend out of a proxy, or gives it back. The proxy itself is switched later, if at all, so what is live
    /// now stays live; and it serves, so its way back is that of any move, whatever becomes of the proxy as a whole. Only
    /// what was given back without having been taken may stay.
    fn backend_step(&self, spared: &Spared<'_>, action: Action) -> Step {
        let back = if action == Action::Drain {
            Action::Resume
        } else {
            Action::Drain
        };
        let undo = if spared.stays_in { Undo::Nothing } else { Undo::By(back) };
        let change = &spared.proxy.change;
        let time_for = |action| self.runbook.timeout_ms(action, Role::Proxy);
        let one = time_for(action).max(time_for(back));
        let turns = u64::try_from(spared.at_once).unwrap_or(u64::MAX);
        Step {
            id: StepId(0),
            target: change.target.clone(),
            action,
            from: change.from.clone(),
            to: change.from.clone(),
            timeout_ms: one.saturating_mul(turns),
            undo,
            backend: Some(spared.backend.clone()),
            from_backup: false,
        }
    }

    /// Where a phase can be gone on from after a failure: how many hosts may be left behind. `None`: any number.
    fn limit(&self, name: PhaseName) -> Option<u32> {
        match name {
            PhaseName::App | PhaseName::Proxy | PhaseName::Verify => {}
            PhaseName::Preflight
            | PhaseName::Stage
            | PhaseName::Protect
            | PhaseName::Quiesce
            | PhaseName::Database
            | PhaseName::Finish => return None,
        }
        let hosts = self.worked_on;
        let limit = self.runbook.max_unavailable.of(hosts);
        (limit < hosts).then(|| u32::try_from(limit).unwrap_or(u32::MAX))
    }

    fn phase(&self, name: PhaseName, batches: Vec<Vec<Lane>>) -> Option<Phase> {
        let batches: Vec<Batch> = batches
            .into_iter()
            .map(|lanes| Batch {
                lanes: without_empty(lanes),
            })
            .filter(|batch| !batch.lanes.is_empty())
            .collect();
        (!batches.is_empty()).then(|| Phase {
            name,
            on_failure: self.runbook.on_failure(name),
            max_unavailable: self.limit(name),
            batches,
        })
    }
}

fn lane(steps: Vec<Step>) -> Lane {
    Lane { steps }
}

fn without_empty(lanes: Vec<Lane>) -> Vec<Lane> {
    lanes.into_iter().filter(|lane| !lane.steps.is_empty()).collect()
}
