//! The model as the checker sees it: where it begins, what can happen next, and what comes of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Mutex;

use stateright::{Model, Property};

use crate::action::{Action, Heard, How};
use crate::calm::Calm;
use crate::configuration::{Configuration, Safeguard};
use crate::coverage::{Coverage, Notes};
use crate::engine::{Machine, NEW, Node};
use crate::fleet::{Fleet, Subject};
use crate::properties;
use crate::world::{
    Agent, Budget, Committed, Component, Coordinator, Faults, Fence, Hand, Key, Message, Reply, Revised, Stage,
    Standing, Store, Term, World,
};

/// A configuration, with the real engine in it.
#[derive(Debug)]
pub struct Fleetwide {
    pub configuration: Configuration,
    pub machine: Machine,
    pub coverage: Coverage,
    pub(crate) calm: Calm,
    /// Properties that were found to be violated.
    pub(crate) violated: Mutex<HashSet<&'static str>>,
}

impl Fleetwide {
    pub fn new(configuration: Configuration) -> Self {
        let subjects = configuration.rollbacks.iter().map(Fleet::subject).collect();
        Self {
            machine: Machine::new(subjects),
            coverage: Coverage::default(),
            calm: Calm::default(),
            violated: Mutex::default(),
            configuration,
        }
    }

    pub(crate) fn lacks(&self, safeguard: Safeguard) -> bool {
        self.configuration.dropped == Some(safeguard)
    }

    pub(crate) fn subject(&self, key: Key) -> &Subject {
        &self.machine.subjects[usize::from(key.rollback)]
    }

    /// All rollbacks are of the same hosts.
    pub(crate) fn hosts(&self) -> usize {
        self.machine.subjects[0].hosts.len()
    }

    pub(crate) fn rollbacks(&self) -> u8 {
        u8::try_from(self.machine.subjects.len()).expect("a few")
    }

    /// Operators start the rollbacks. With one alone, it runs from the beginning.
    pub(crate) fn is_started_by_request(&self) -> bool {
        self.machine.subjects.len() > 1
    }

    /// The store may go back in time.
    pub(crate) fn may_lose_commits(&self) -> bool {
        self.configuration.lag > 0
    }

    pub(crate) fn journal(&self, world: &World, rollback: u8) -> std::sync::Arc<Node> {
        self.machine.node(world.store.now.journals[usize::from(rollback)])
    }

    pub(crate) fn anything_runs(&self, world: &World) -> bool {
        (0..self.rollbacks()).any(|r| self.journal(world, r).is_running())
    }

    fn beginning(&self) -> World {
        let fence = Fence { epoch: 1, leader: 0 };
        let term = Term { fence, serial: 1 };
        let agents = self.machine.subjects[0].hosts.iter().map(|host| Agent {
            seen: None,
            generation: 0,
            registered: 0,
            ledger: BTreeMap::new(),
            tasks: BTreeMap::new(),
            component: Component {
                revision: if host.moves { Revised::Origin } else { Revised::Target },
                staged: false,
                snapshot: false,
                running: true,
                drained: false,
            },
            taken: BTreeSet::new(),
        });
        let rollbacks = self.machine.subjects.len();
        let mut world = World {
            store: Store {
                now: Committed {
                    journals: vec![NEW; rollbacks],
                    lease: term,
                },
                past: Vec::new(),
                serial: 1,
            },
            coordinators: (0..self.configuration.coordinators)
                .map(|who| Coordinator {
                    identity: u8::try_from(who).expect("a few"),
                    had: 0,
                    standing: Standing::Following,
                })
                .collect(),
            agents: agents.collect(),
            wire: BTreeSet::new(),
            left: self.configuration.budget,
            faults: Faults::default(),
        };
        world.coordinators[0].standing = Standing::Leading {
            term,
            running: vec![None; rollbacks],
        };
        if !self.is_started_by_request() {
            self.create(&mut world, 0, 0);
            // What is lost here was written later: that a rollback was lost altogether is for people to find out.
            world.store.past.clear();
        }
        world
    }

    /// One action. `None`: it changes nothing.
    pub(crate) fn step(&self, world: &World, action: &Action, notes: &mut Notes) -> Option<World> {
        let mut next = world.clone();
        let w = &mut next;
        match *action {
            Action::Campaign { who, restarted } => {
                w.left.takeovers = w.left.takeovers.saturating_sub(1);
                if restarted {
                    w.coordinators[who].identity = w.store.serial + 10;
                    w.coordinators[who].had = 0;
                }
                self.campaign(w, who, 0, notes);
            }
            Action::Read { who } => self.read(w, who),
            Action::Recall { who, host, heard } => self.recall(w, who, host, heard, notes),
            Action::Resume { who } => self.resume(w, who, notes),
            Action::Compare { who } => self.compare(w, who, notes),
            Action::Request { who, rollback } => self.request(w, who, rollback, notes),
            Action::Steer { who, rollback, hand } => self.steer(w, who, rollback, hand, notes),
            Action::Ask { who, key } => self.ask_under_present_ledger(w, who, key),
            Action::GiveUp { who, key } => self.give_up(w, who, key, notes),
            Action::Arrive { message, fails } => match message {
                Message::Execute { term, key, generation } => {
                    self.execute(w, term, key, generation, fails, notes);
                }
                Message::Answer { serial, key, reply } => self.hear(w, serial, key, reply, notes),
            },
            Action::Begin { host, key } => self.begin(w, host, key, notes),
            Action::Drive { host, key, how } => self.drive(w, host, key, how, notes),
            Action::Finish { host, key } => self.finish(w, host, key),
            Action::Kill { host, unsure } => self.kill(w, host, unsure, notes),
            Action::Wipe { host } => self.wipe(w, host),
            Action::Register { host } => w.agents[host].registered = w.agents[host].generation,
            Action::FailOver { lost } => self.fail_over(w, lost, notes),
        }
        self.tidy(w);
        (next != *world).then_some(next)
    }

    fn of_coordinator(&self, world: &World, who: usize, actions: &mut Vec<Action>) {
        let coordinator = &world.coordinators[who];
        let holds = coordinator.standing.term().is_some_and(|t| t == world.store.now.lease);
        // A leader that is killed and comes back itself is, to everybody else, another one that takes over; only where epochs
        // repeat do names matter.
        if world.left.takeovers > 0 && (self.anything_runs(world) || self.is_started_by_request()) {
            if !holds {
                actions.push(Action::Campaign { who, restarted: false });
            }
            if self.may_lose_commits() {
                actions.push(Action::Campaign { who, restarted: true });
            }
        }
        match &coordinator.standing {
            Standing::Following => {}
            Standing::TakingOver { read: None, .. } => actions.push(Action::Read { who }),
            Standing::TakingOver {
                read: Some(_), asked, ..
            } => {
                let left = (0..self.hosts()).find(|host| asked & (1 << host) == 0);
                match left {
                    None => actions.push(Action::Resume { who }),
                    // In the order of their names: the answers are taken in together, and hosts do not know of each other.
                    Some(host) => {
                        let mut recall = |heard| actions.push(Action::Recall { who, host, heard });
                        recall(Heard::Answer);
                        if world.left.silences > 0 {
                            recall(Heard::Nothing);
                            recall(Heard::NeverAsked);
                        }
                    }
                }
            }
            Standing::Leading { running, .. } => {
                if self.may_lose_commits() && !self.lacks(Safeguard::Compare) && self.runs_elsewhere(world, who) {
                    actions.push(Action::Compare { who });
                }
                if self.is_started_by_request() {
                    actions.extend((0..self.rollbacks()).map(|rollback| Action::Request { who, rollback }));
                }
                for (rollback, local) in (0..).zip(running) {
                    let Some(local) = local else { continue };
                    if world.left.acts > 0 {
                        actions.extend(Hand::ALL.map(|hand| Action::Steer { who, rollback, hand }));
                    }
                    for step in &self.machine.node(*local).outstanding {
                        let key = Key { rollback, step: *step };
                        if world.left.give_ups > 0 {
                            actions.push(Action::GiveUp { who, key });
                        }
                        if self.configuration.budget.wipes > 0 {
                            actions.push(Action::Ask { who, key });
                        }
                    }
                }
            }
        }
    }

    fn of_agent(&self, world: &World, host: usize, actions: &mut Vec<Action>) {
        let agent = &world.agents[host];
        let Budget { failures, unknowns, .. } = world.left;
        for (key, task) in &agent.tasks {
            let key = *key;
            match task.stage {
                Stage::Queued => {
                    if !agent.tasks.values().any(|t| t.stage != Stage::Queued) {
                        actions.push(Action::Begin { host, key });
                    }
                }
                Stage::Begun => {
                    let mut drive = |how| actions.push(Action::Drive { host, key, how });
                    drive(How::Well);
                    if failures > 0 {
                        drive(How::Fails);
                        drive(How::FailsAfter);
                    }
                    if unknowns > 0 {
                        drive(How::Unsure { applied: true });
                        drive(How::Unsure { applied: false });
                    }
                }
                Stage::Driven { .. } => actions.push(Action::Finish { host, key }),
            }
        }
        if world.left.kills > 0 && !agent.tasks.is_empty() {
            actions.push(Action::Kill { host, unsure: false });
            if unknowns > 0 && agent.tasks.values().any(|t| t.stage != Stage::Queued) {
                actions.push(Action::Kill { host, unsure: true });
            }
        }
        if world.left.wipes > 0 && self.anything_runs(world) {
            actions.push(Action::Wipe { host });
        }
        if agent.registered != agent.generation {
            actions.push(Action::Register { host });
        }
    }
}

impl Model for Fleetwide {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.beginning()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        // What is wrong already is not followed any further: it would only be wrong in more ways.
        if world.faults != Faults::default() {
            return;
        }
        for who in 0..world.coordinators.len() {
            self.of_coordinator(world, who, actions);
        }
        for host in 0..world.agents.len() {
            self.of_agent(world, host, actions);
        }
        for message in &world.wire {
            let arrive = |fails| Action::Arrive {
                message: *message,
                fails,
            };
            actions.push(arrive(false));
            let may_fail = match message {
                Message::Execute { key, .. } => !self.subject(*key).asked(key.step).mutates(),
                Message::Answer { .. } => false,
            };
            if may_fail && world.left.failures > 0 {
                actions.push(arrive(true));
            }
        }
        if world.left.failovers > 0 {
            actions.extend((1..=world.store.past.len()).map(|lost| Action::FailOver { lost }));
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut notes = Notes::default();
        let next = self.step(world, &action, &mut notes);
        self.coverage.add(notes);
        next
    }

    fn format_action(&self, action: &Action) -> String {
        self.tell(action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(&self.configuration)
    }
}

impl Reply {
    pub(crate) fn to(self, key: Key, serial: u8) -> Message {
        Message::Answer {
            serial,
            key,
            reply: self,
        }
    }
}
