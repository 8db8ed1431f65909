//! Forgets what cannot matter any more, so that states that differ in nothing that anybody could notice are one state.
//!
//! Each rule drops something whose every possible effect is "nothing changes", now and from here on: an answer that nobody
//! waits for (the machine refuses it), a request that its agent will refuse or answer to nobody for ever, and the standing
//! of a leader that has nothing to do and no lease. While a ledger may still be lost, an agent's memory can go back, and
//! requests are kept.

use crate::configuration::Safeguard;
use crate::model::Fleetwide;
use crate::world::{Entry, Key, Message, Standing, World};

impl Fleetwide {
    pub(crate) fn tidy(&self, w: &mut World) {
        let World {
            store,
            coordinators,
            agents,
            wire,
            left,
            ..
        } = w;
        if !self.is_started_by_request() {
            for coordinator in coordinators.iter_mut() {
                if let Standing::Leading { term, running } = &coordinator.standing
                    && *term != store.now.lease
                    && running.iter().all(Option::is_none)
                {
                    coordinator.standing = Standing::Following;
                }
            }
        }
        let waits = |serial: u8, key: Key| {
            coordinators.iter().any(|c| match &c.standing {
                Standing::Leading { term, running } if term.serial == serial => {
                    let local = running[usize::from(key.rollback)];
                    local.is_some_and(|local| self.machine.node(local).awaits(key.step))
                }
                Standing::Leading { .. } | Standing::TakingOver { .. } | Standing::Following => false,
            })
        };
        let alive = |serial: u8| {
            coordinators
                .iter()
                .any(|c| c.standing.term().is_some_and(|t| t.serial == serial))
        };
        for agent in agents.iter_mut() {
            for task in agent.tasks.values_mut() {
                task.asked_by.retain(|serial, _| alive(*serial));
            }
        }
        wire.retain(|message| match message {
            Message::Answer { serial, key, .. } => waits(*serial, *key),
            Message::Execute { term, key, .. } => {
                if waits(term.serial, *key) || left.wipes > 0 {
                    return true;
                }
                let subject = self.subject(*key);
                let agent = &agents[subject.host(key.step)];
                let obeyed = agent.seen == Some(term.fence);
                let refused = !self.lacks(Safeguard::EpochCheck)
                    && agent
                        .seen
                        .is_some_and(|known| known != term.fence && term.fence.epoch <= known.epoch);
                let reads = !subject.asked(key.step).mutates();
                let known = matches!(agent.ledger.get(key), Some(Entry::Ended(_)));
                !(refused || (obeyed && (reads || known)))
            }
        });
    }
}
