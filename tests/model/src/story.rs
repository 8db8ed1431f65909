//! A path told to a person.

use stateright::Path;

use crate::action::{Action, Heard, How, coordinator, term};
use crate::model::Fleetwide;
use crate::properties::ENDS;
use crate::world::{Cause, Key, Message, Reply, Said, Standing, World};

impl Fleetwide {
    pub(crate) fn tell(&self, action: &Action) -> String {
        let name = |key: Key| self.name(key);
        match *action {
            Action::Campaign { who, restarted } => {
                let how = if restarted { ", a new process," } else { "" };
                format!("{}{how} takes the lease", coordinator(who))
            }
            Action::Read { who } => format!("{} reads the journal", coordinator(who)),
            Action::Recall { who, host, heard } => {
                let heard = match heard {
                    Heard::Answer => "",
                    Heard::Nothing => ", and does not hear the answer",
                    Heard::NeverAsked => ", and the question does not arrive",
                };
                format!("{} asks host-{host} for its ledger{heard}", coordinator(who))
            }
            Action::Resume { who } => format!("{} goes on with what it read", coordinator(who)),
            Action::Compare { who } => {
                format!("{} sees that the store lost the end of a rollback", coordinator(who))
            }
            Action::Request { who, rollback } => {
                format!("an operator asks {} for rollback {rollback}", coordinator(who))
            }
            Action::Steer { who, rollback, hand } => {
                format!(
                    "an operator has {} do this to rollback {rollback}: {hand:?}",
                    coordinator(who)
                )
            }
            Action::Ask { who, key } => format!("{} asks for {} under the new ledger", coordinator(who), name(key)),
            Action::GiveUp { who, key } => format!("{} gives {} up", coordinator(who), name(key)),
            Action::Arrive { message, fails } => {
                let fails = if fails { ", which finds something wrong" } else { "" };
                format!("arrives: {}{fails}", self.tell_message(message))
            }
            Action::Begin { host, key } => format!("host-{host}: the intent of {} is durable, or refused", name(key)),
            Action::Drive { host, key, how } => {
                let how = match how {
                    How::Well => "takes effect",
                    How::Fails => "fails",
                    How::FailsAfter => "takes effect, and says that it failed",
                    How::Unsure { applied: true } => "takes effect, and cannot tell",
                    How::Unsure { applied: false } => "does nothing, and cannot tell",
                };
                format!("host-{host}: {} {how}", name(key))
            }
            Action::Finish { host, key } => format!("host-{host}: the result of {} is durable", name(key)),
            Action::Kill { host, unsure } => {
                let found = if unsure {
                    "the probe cannot tell"
                } else {
                    "the probe tells what became of its step"
                };
                format!("host-{host}: the agent is killed and starts again; {found}")
            }
            Action::Wipe { host } => format!("host-{host}: the agent starts again with an empty ledger"),
            Action::Register { host } => format!("host-{host}: the agent registers its new ledger"),
            Action::FailOver { lost } => format!("the store fails over and loses the last {lost} commits"),
        }
    }

    fn name(&self, key: Key) -> String {
        let of = if self.rollbacks() > 1 {
            format!(" of rollback {}", key.rollback)
        } else {
            String::new()
        };
        format!("[{}{of}]", self.subject(key).name(key.step))
    }

    fn tell_message(&self, message: Message) -> String {
        match message {
            Message::Execute { term: t, key, .. } => format!("the request for {} of {}", self.name(key), term(t)),
            Message::Answer { serial, key, reply } => {
                let said = match reply {
                    Reply::Said(Said::Done(_)) => "done".to_owned(),
                    Reply::Said(Said::Failed) => "failed".to_owned(),
                    Reply::Said(Said::Unknown(Cause::Step | Cause::Journal)) => "nobody can tell".to_owned(),
                    Reply::LedgerLost => "the ledger is another one".to_owned(),
                    Reply::Stale(epoch) => format!("refused, epoch {epoch} was seen"),
                };
                format!("the answer \"{said}\" to {} in term {serial}", self.name(key))
            }
        }
    }

    /// The last state in a few lines.
    fn sum_up(&self, world: &World) -> String {
        let mut lines = vec![format!("the lease: {}", term(world.store.now.lease))];
        for rollback in 0..self.rollbacks() {
            let journal = self.journal(world, rollback);
            let state = match journal.end {
                _ if journal.is_damaged() => "cannot be read".to_owned(),
                Some(end) => format!("ended: {end:?}"),
                None if journal.seq == 0 => "not created".to_owned(),
                None => {
                    let steps = journal
                        .outstanding
                        .iter()
                        .map(|step| self.name(Key { rollback, step: *step }));
                    format!("waits for {}", steps.collect::<Vec<_>>().join(", "))
                }
            };
            lines.push(format!(
                "the journal of rollback {rollback}, {} events: {state}",
                journal.seq
            ));
        }
        for (who, c) in world.coordinators.iter().enumerate() {
            let standing = match &c.standing {
                Standing::Following => "follows".to_owned(),
                Standing::TakingOver { term: t, .. } => format!("takes over with {}", term(*t)),
                Standing::Leading { term: t, .. } => format!("believes to lead with {}", term(*t)),
            };
            lines.push(format!("{} {standing}", coordinator(who)));
        }
        for (host, agent) in world.agents.iter().enumerate() {
            let ledger = agent
                .ledger
                .iter()
                .map(|(key, entry)| format!("{} {entry:?}", self.name(*key)));
            lines.push(format!(
                "host-{host}: {:?}; ledger: {}",
                agent.component,
                ledger.collect::<Vec<_>>().join(", ")
            ));
        }
        lines.iter().map(|line| format!("      = {line}\n")).collect()
    }

    /// How a violation comes about.
    pub(crate) fn narrate(&self, property: &str, path: Path<World, Action>) -> String {
        let last = path.last_state().clone();
        let actions = path.into_actions();
        let mut told = String::new();
        for (number, action) in (1..).zip(&actions) {
            told += &format!("  {number:>3}. {}\n", self.tell(action));
        }
        told += &self.sum_up(&last);
        if property == ENDS {
            let walk = self.calm_walk(&last);
            let shown = walk.len().min(12);
            for action in &walk[walk.len() - shown..] {
                told += &format!("    … {}\n", self.tell(action));
            }
            told += "    … and from there nothing happens any more, or the same for ever\n";
        }
        told
    }
}
