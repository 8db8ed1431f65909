//! From every state, once failures stop, the rollback ends.
//!
//! Exploring alone does not show that: the paths in which nothing more goes wrong are among all the others. So from every
//! state one of them is walked: agents finish what they are at, a new leader is found if there is none, messages arrive.
//! States on a walk that ended well are remembered, so that each is walked from once.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use crate::action::{Action, Heard, How};
use crate::configuration::Safeguard;
use crate::coverage::Notes;
use crate::model::Fleetwide;
use crate::world::{Hand, Message, Stage, Standing, World};

/// Longer than any walk that ends: a step takes five actions, and plans here have few of them.
const PATIENCE: usize = 400;

/// Fingerprints of states from which a walk has ended well.
#[derive(Debug, Default)]
pub struct Calm(Mutex<HashSet<u64>>);

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

impl Fleetwide {
    pub(crate) fn ends_once_failures_stop(&self, world: &World) -> bool {
        let mut walked = Vec::new();
        let mut now = world.clone();
        for _ in 0..PATIENCE {
            let here = fingerprint(&now);
            if self.ended(&now) || self.known().contains(&here) {
                self.known().extend(walked);
                return true;
            }
            walked.push(here);
            match self.calm_step(&now) {
                Some(next) => now = next,
                None => return false,
            }
        }
        false
    }

    /// What a walk did last, for the story of one that does not end.
    pub(crate) fn calm_walk(&self, world: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut now = world.clone();
        while actions.len() < PATIENCE
            && !self.ended(&now)
            && let Some((action, next)) = self.calm_move(&now)
        {
            actions.push(action);
            now = next;
        }
        actions
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.calm.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self, world: &World) -> bool {
        !self.anything_runs(world)
    }

    fn calm_step(&self, world: &World) -> Option<World> {
        self.calm_move(world).map(|(_, next)| next)
    }

    /// The first thing that changes anything.
    fn calm_move(&self, world: &World) -> Option<(Action, World)> {
        let candidates = self.calm_actions(world);
        candidates.into_iter().find_map(|action| {
            let next = self.step(world, &action, &mut Notes::default())?;
            Some((action, next))
        })
    }

    fn calm_actions(&self, world: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        for (host, agent) in world.agents.iter().enumerate() {
            if agent.registered != agent.generation {
                actions.push(Action::Register { host });
            }
            let busy = agent.tasks.values().any(|t| t.stage != Stage::Queued);
            for (key, task) in &agent.tasks {
                let key = *key;
                match task.stage {
                    Stage::Queued if busy => {}
                    Stage::Queued => actions.push(Action::Begin { host, key }),
                    Stage::Begun => actions.push(Action::Drive {
                        host,
                        key,
                        how: How::Well,
                    }),
                    Stage::Driven { .. } => actions.push(Action::Finish { host, key }),
                }
            }
        }
        let lease = world.store.now.lease;
        let holds = |standing: &Standing| standing.term() == Some(lease) && self.holds_lease(world, lease);
        // One whose lease has run out is told so when it renews it.
        let holder = world.coordinators.iter().position(|c| holds(&c.standing));
        match holder.map(|who| (who, &world.coordinators[who].standing)) {
            None | Some((_, Standing::Following)) => actions.push(Action::Campaign {
                who: 0,
                restarted: false,
            }),
            Some((who, Standing::TakingOver { asked, .. })) => {
                actions.push(Action::Read { who });
                let left = (0..self.hosts()).filter(|host| asked & (1 << host) == 0);
                let heard = Heard::Answer;
                actions.extend(left.map(|host| Action::Recall { who, host, heard }));
                actions.push(Action::Resume { who });
            }
            Some((who, Standing::Leading { running, .. })) => {
                if !self.lacks(Safeguard::Compare) {
                    actions.push(Action::Compare { who });
                }
                for message in &world.wire {
                    let its_own = match message {
                        Message::Answer { serial, .. } => *serial == lease.serial,
                        Message::Execute { term, .. } => *term == lease,
                    };
                    if its_own {
                        actions.push(Action::Arrive {
                            message: *message,
                            fails: false,
                        });
                    }
                }
                for (rollback, local) in (0..).zip(running) {
                    let outstanding = local.map(|local| self.machine.node(local).outstanding.clone());
                    for step in outstanding.into_iter().flatten() {
                        let key = crate::world::Key { rollback, step };
                        actions.push(Action::Ask { who, key });
                    }
                    // Whoever paused it lets it go on, or ends it.
                    if local.is_some_and(|local| self.machine.node(local).stands_still) {
                        actions.extend([Hand::Resume, Hand::Undo].map(|hand| Action::Steer { who, rollback, hand }));
                    }
                }
            }
        }
        actions
    }
}
