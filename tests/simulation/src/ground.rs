//! The components of the simulated hosts as they really are. They outlive agents that crash, as processes and files do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rollback_engine::ids::Target;
use rollback_engine::release::{Revision, Role};
use rollback_proto::v1::Action;

use crate::recorder::{Deed, Picture, Recorder, Seen, Standing};
use crate::seed::{Fleet, Temper};

#[derive(Debug)]
pub struct Machine {
    pub role: Role,
    pub pausable: bool,
    pub revision: Revision,
    /// Digests that were staged beside the live revision.
    pub staged: BTreeSet<String>,
    pub backed_up: bool,
    pub running: bool,
    pub drained: bool,
    /// Of a proxy: backends that get no requests.
    pub out: BTreeSet<String>,
    /// A switch was cut off where its driver cannot tell how far it came.
    pub torn: bool,
    /// Mutating moves in progress.
    busy: u32,
}

impl Machine {
    pub fn serves(&self) -> bool {
        self.running && !self.drained && self.out.is_empty() && !self.torn
    }
}

/// How a move goes.
#[derive(Clone, Debug)]
pub struct Script {
    pub before: Duration,
    pub after: Duration,
    pub fails: bool,
    /// It passes through a state that its driver does not know, for this long.
    pub tears: Option<Duration>,
}

/// A cheap handle.
#[derive(Clone, Debug)]
pub struct Ground(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    recorder: Recorder,
    temper: Temper,
    machines: Mutex<BTreeMap<Target, Machine>>,
    dice: Mutex<StdRng>,
}

impl Ground {
    /// Everything runs the newer release.
    pub fn new(seed: u64, fleet: &Fleet, temper: Temper, recorder: Recorder) -> Self {
        let machines = fleet.components().map(|component| {
            let machine = Machine {
                role: component.role,
                pausable: component.pausable(),
                revision: component.live.clone(),
                staged: BTreeSet::new(),
                backed_up: false,
                running: true,
                drained: false,
                out: BTreeSet::new(),
                torn: false,
                busy: 0,
            };
            (component.target.clone(), machine)
        });
        Self(Arc::new(Inner {
            recorder,
            temper,
            machines: Mutex::new(machines.collect()),
            dice: Mutex::new(StdRng::seed_from_u64(seed ^ 0x6772_6f75_6e64)),
        }))
    }

    pub fn recorder(&self) -> &Recorder {
        &self.0.recorder
    }

    pub fn picture(&self) -> Picture {
        let stands = |machine: &Machine| Standing {
            revision: machine.revision.clone(),
            serves: machine.serves(),
        };
        self.machines()
            .iter()
            .map(|(target, m)| (target.clone(), stands(m)))
            .collect()
    }

    /// Reads or changes one component.
    pub fn with<T>(&self, target: &Target, work: impl FnOnce(&mut Machine) -> T) -> T {
        work(
            self.machines()
                .get_mut(target)
                .expect("drivers are made for components of the ground"),
        )
    }

    pub fn script(&self, deed: &Deed) -> Script {
        let mut dice = self.0.dice.lock().unwrap_or_else(PoisonError::into_inner);
        let temper = &self.0.temper;
        let slow = dice.random_bool(temper.slow_moves);
        let longest = if slow { 6000 } else { temper.pace };
        let mut pause = || Duration::from_millis(dice.random_range(2..longest));
        let (before, after) = (pause(), pause() / 3);
        let tears = (deed.action == Action::Switch && dice.random_bool(temper.tears))
            .then(|| Duration::from_millis(dice.random_range(50..1500)));
        Script {
            before,
            after,
            fails: temper.fails(deed),
            tears,
        }
    }

    /// A mutating move of this component begins. It ends when the answer is dropped.
    pub fn begin(&self, target: &Target) -> Busy {
        let busy = self.with(target, |machine| {
            machine.busy += 1;
            machine.busy
        });
        if busy > 1 {
            self.wrong(format!("{target}: {busy} mutating moves at the same time"));
        }
        Busy(self.clone(), target.clone())
    }

    /// The move takes effect.
    pub fn effect(&self, deed: &Deed, to: &Revision) {
        let wrong = self.with(&deed.target, |machine| machine.apply(deed, to));
        if let Some(wrong) = wrong {
            self.wrong(format!("{deed}: {wrong}"));
        }
        self.recorder().note(Seen::Effect { deed: deed.clone() });
    }

    fn wrong(&self, what: String) {
        self.recorder().note(Seen::Wrong { what });
    }

    fn machines(&self) -> MutexGuard<'_, BTreeMap<Target, Machine>> {
        self.0.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    /// Says what is wrong about doing it now.
    fn apply(&mut self, deed: &Deed, to: &Revision) -> Option<&'static str> {
        let mut wrong = None;
        match deed.action {
            Action::Unspecified | Action::Prepare | Action::Verify => {}
            Action::Stage => _ = self.staged.insert(to.digest.0.clone()),
            Action::Discard | Action::Finish => self.staged.clear(),
            Action::Snapshot => self.backed_up = true,
            Action::Drain => match &deed.backend {
                Some(backend) => _ = self.out.insert(backend.clone()),
                None => self.drained = true,
            },
            Action::Resume => match &deed.backend {
                Some(backend) => _ = self.out.remove(backend),
                None => {
                    self.drained = false;
                    self.out.clear();
                }
            },
            Action::Stop => self.running = false,
            Action::Start => self.running = true,
            Action::Switch => {
                if self.pausable && self.role == Role::App && self.running {
                    wrong = Some("switched while it runs");
                }
                if !deed.undo && !self.staged.contains(&to.digest.0) {
                    wrong = Some("switched to what was never staged");
                }
                if !deed.undo && self.role == Role::Database && !self.backed_up {
                    wrong = Some("switched without a backup");
                }
                self.revision = to.clone();
                self.torn = false;
            }
        }
        wrong
    }
}

/// A move in progress.
#[derive(Debug)]
pub struct Busy(Ground, Target);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.with(&self.1, |machine| machine.busy -= 1);
    }
}
