//! The real state machine, remembered: every state that the exploration reaches is computed once and gets a number.
//!
//! A journal is represented by the state that it replays to. That is exact for what the protocol does with a journal: what
//! a leader reads from it is this state, its length is part of it, and which steps have an intent can be read off it. Two
//! orders of events that lead to equal states are one state here, and that is why the exploration stays small. Events that
//! do not fit (two leaders wrote) make a journal [`Node::is_damaged`]; what was appended to such a one stays damaged.
//!
//! Time stands still: all timestamps are the same, since the engine only stores them.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use rollback_engine::event::{Command, Direction, Effect, Ending, Event, Outcome, Problem, StepResult};
use rollback_engine::machine::{self, Run, State, StepState};

use crate::fleet::Subject;
use crate::world::{Cause, Hand, Move, Said};

/// The code of a rollback that is held because the store lost what it had confirmed.
pub const JOURNAL_LOST: &str = "RB0903";
const FAILED: &str = "RB0504";
const UNKNOWN: &str = "RB0505";
const AT: Timestamp = Timestamp::UNIX_EPOCH;

/// A state of one rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// Before anything happened.
pub const NEW: NodeId = NodeId(0);

/// What comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stimulus {
    /// The rollback of this number.
    Create(u8),
    Resume,
    Ended(Move, Said),
    /// An operator's act.
    Steer(Hand),
    /// The journal has lost events.
    Hold,
}

/// How a rollback ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Verified,
    Undone,
    /// Not on these hosts, a bit for each.
    Partial(u8),
    Held {
        reason: bool,
        journal_lost: bool,
    },
}

#[derive(Debug)]
pub struct Node {
    /// `None`: damaged.
    state: Option<State>,
    /// Events until here.
    pub seq: u32,
    /// Executions without an end: what a leader that reads this asks for.
    pub outstanding: Vec<Move>,
    /// Executions with an intent.
    intended: BTreeSet<Move>,
    pub end: Option<End>,
    /// Nothing begins before an operator acts.
    pub stands_still: bool,
}

impl Node {
    pub fn is_damaged(&self) -> bool {
        self.state.is_none()
    }

    pub fn awaits(&self, step: Move) -> bool {
        self.outstanding.contains(&step)
    }

    pub fn intends(&self, step: Move) -> bool {
        self.intended.contains(&step)
    }

    /// It was created and has not ended.
    pub fn is_running(&self) -> bool {
        self.seq > 0 && self.end.is_none()
    }
}

/// Events that one command led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Written(u32);

/// What a command leads to.
#[derive(Clone, Debug)]
pub struct Transition {
    pub to: NodeId,
    /// `None`: nothing is to be written.
    pub written: Option<Written>,
    pub dispatch: Vec<Move>,
}

#[derive(Debug)]
pub struct Machine {
    pub subjects: Vec<Subject>,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    nodes: Vec<Arc<Node>>,
    /// By a hash of the state's text; equality decides.
    by_hash: HashMap<u64, Vec<NodeId>>,
    written: Vec<Arc<[Event]>>,
    transitions: HashMap<(NodeId, Stimulus), Option<Arc<Transition>>>,
    appended: HashMap<(NodeId, Written), NodeId>,
}

impl Machine {
    pub fn new(subjects: Vec<Subject>) -> Self {
        let machine = Self {
            subjects,
            known: RwLock::default(),
        };
        let new = machine.intern(Some(State::New), 0);
        assert_eq!(new, NEW, "the first state gets the first number");
        machine
    }

    pub fn node(&self, id: NodeId) -> Arc<Node> {
        Arc::clone(&self.read().nodes[index(id.0)])
    }

    /// How many states of the machine were met.
    pub fn len(&self) -> usize {
        self.read().nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the machine makes of a command; `None` when it refuses it.
    pub fn transition(&self, from: NodeId, stimulus: Stimulus) -> Option<Arc<Transition>> {
        if let Some(known) = self.read().transitions.get(&(from, stimulus)) {
            return known.clone();
        }
        let node = self.node(from);
        let computed = self.compute(&node, stimulus).map(Arc::new);
        self.write().transitions.insert((from, stimulus), computed.clone());
        computed
    }

    fn compute(&self, node: &Node, stimulus: Stimulus) -> Option<Transition> {
        let mut state = node.state.clone()?;
        let events = match stimulus {
            Stimulus::Create(rollback) => {
                let create = self.subjects[usize::from(rollback)].create();
                machine::transition(&mut state, create).ok()?
            }
            Stimulus::Resume => machine::transition(&mut state, Command::TakeUp { at: AT }).ok()?,
            Stimulus::Ended(step, said) => {
                let ended = ended(&state, step, said);
                machine::transition(&mut state, ended).ok()?
            }
            Stimulus::Steer(hand) => {
                let (by, reason) = ("operator".to_owned(), String::new());
                let steer = Command::Steer {
                    at: AT,
                    by,
                    reason,
                    act: hand.act(),
                };
                machine::transition(&mut state, steer).ok()?
            }
            Stimulus::Hold => {
                let cause = problem(JOURNAL_LOST);
                machine::transition(&mut state, Command::Hold { at: AT, cause }).ok()?
            }
        };
        let dispatch = dispatches(machine::effects_of(&state, &events));
        let length = u32::try_from(events.len()).expect("a command leads to few events");
        let written = (!events.is_empty()).then(|| {
            let mut known = self.write();
            known.written.push(events.into());
            Written(u32::try_from(known.written.len() - 1).expect("there are few of them"))
        });
        Some(Transition {
            to: self.intern(Some(state), node.seq + length),
            written,
            dispatch,
        })
    }

    /// The journal after these events, as a leader would read it.
    pub fn append(&self, journal: NodeId, written: Written) -> NodeId {
        if let Some(known) = self.read().appended.get(&(journal, written)) {
            return *known;
        }
        let node = self.node(journal);
        let events = Arc::clone(&self.read().written[index(written.0)]);
        let mut state = node.state.clone();
        for event in events.iter() {
            // As for whoever reads it from the disk: one that does not fit makes all of it unreadable.
            state = state.and_then(|mut state| machine::apply(&mut state, event).ok().map(|()| state));
        }
        let length = u32::try_from(events.len()).expect("a command leads to few events");
        let appended = self.intern(state, node.seq + length);
        self.write().appended.insert((journal, written), appended);
        appended
    }

    fn intern(&self, state: Option<State>, seq: u32) -> NodeId {
        let mut hasher = DefaultHasher::new();
        format!("{seq} {state:?}").hash(&mut hasher);
        let hash = hasher.finish();
        let mut known = self.write();
        let same = known.by_hash.get(&hash).into_iter().flatten();
        let same = same.copied().find(|id| {
            let node = &known.nodes[index(id.0)];
            node.seq == seq && node.state == state
        });
        if let Some(id) = same {
            return id;
        }
        let id = NodeId(u32::try_from(known.nodes.len()).expect("there are few of them"));
        known.nodes.push(Arc::new(self.facts(state, seq)));
        known.by_hash.entry(hash).or_default().push(id);
        id
    }

    fn facts(&self, state: Option<State>, seq: u32) -> Node {
        let outstanding = state.as_ref().map(machine::outstanding).unwrap_or_default();
        let mut intended = BTreeSet::new();
        let steps = state
            .as_ref()
            .and_then(State::plan)
            .into_iter()
            .flat_map(|p| p.body.steps());
        for (step, planned) in (0..).zip(steps) {
            let state = state.as_ref().and_then(|s| s.step_state(planned.id));
            let (forward, back) = match state {
                None | Some(StepState::Pending) => (0, 0),
                Some(StepState::InFlight { attempt, .. }) => (*attempt, 0),
                Some(StepState::Ended { forward }) => (forward.attempt, 0),
                Some(StepState::Undoing { forward, attempt, .. }) => (forward.attempt, *attempt),
                Some(StepState::UndoEnded { forward, undo }) => (forward.attempt, undo.attempt),
            };
            let every = |back, last| (1..=number(last)).map(move |attempt| Move { step, back, attempt });
            intended.extend(every(false, forward).chain(every(true, back)));
        }
        let end = state.as_ref().and_then(State::ending).map(|ending| self.end(ending));
        Node {
            outstanding: dispatches(outstanding),
            intended,
            end,
            seq,
            stands_still: state.as_ref().and_then(State::run).is_some_and(Run::stands_still),
            state,
        }
    }

    fn end(&self, ending: &Ending) -> End {
        match ending {
            Ending::Verified => End::Verified,
            Ending::Undone { .. } => End::Undone,
            Ending::Partial { hosts, .. } => {
                let number = |name: &str| self.subjects.iter().find_map(|s| s.host_called(name));
                let numbers = hosts.iter().filter_map(|host| number(host.as_str()));
                End::Partial(numbers.fold(0, |bits, host| bits | 1 << host))
            }
            Ending::Held { cause } => End::Held {
                reason: !cause.code.is_empty() && !cause.message.is_empty(),
                journal_lost: cause.code == JOURNAL_LOST,
            },
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn index(id: u32) -> usize {
    usize::try_from(id).expect("32 bits fit")
}

fn dispatches(effects: Vec<Effect>) -> Vec<Move> {
    let dispatches = effects.into_iter().filter_map(|effect| match effect {
        Effect::Dispatch {
            step,
            direction,
            attempt,
        } => Some(Move {
            step: number(step.0),
            back: direction == Direction::Undo,
            attempt: number(attempt),
        }),
        Effect::Close => None,
    });
    dispatches.collect()
}

fn number(n: u32) -> u8 {
    u8::try_from(n).expect("plans here are short")
}

fn problem(code: &str) -> Problem {
    Problem {
        code: code.to_owned(),
        message: "it did not work".to_owned(),
        remedy: "look at it".to_owned(),
    }
}

fn ended(state: &State, step: Move, said: Said) -> Command {
    Command::StepEnded {
        at: AT,
        step: Subject::step_id(step),
        direction: if step.back { Direction::Undo } else { Direction::Forward },
        attempt: u32::from(step.attempt),
        outcome: outcome(state, step, said),
    }
}

fn outcome(state: &State, step: Move, said: Said) -> Outcome {
    let (result, observed) = match said {
        Said::Done(observed) => (StepResult::Succeeded, observed),
        Said::Failed => (StepResult::Failed(problem(FAILED)), None),
        Said::Unknown(Cause::Step) => (StepResult::Indeterminate(problem(UNKNOWN)), None),
        Said::Unknown(Cause::Journal) => (StepResult::Indeterminate(problem(JOURNAL_LOST)), None),
    };
    let observed = observed.and_then(|revised| {
        let target = &state.step(Subject::step_id(step))?.target;
        let change = state.plan()?.body.changes.iter().find(|c| &c.target == target)?;
        Some(revised.of(change).clone())
    });
    Outcome {
        result,
        findings: Vec::new(),
        observed,
        receipt: None,
        operations: Vec::new(),
        summary: String::new(),
        loss: None,
    }
}
