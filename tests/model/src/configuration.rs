//! What is explored: fleets, bounds, and which safeguards are left out to see that the checker notices.

use crate::coverage::Met;
use crate::fleet::{Fleet, Kind, Policy};
use crate::world::Budget;

/// One exploration.
#[derive(Clone, Debug)]
pub struct Configuration {
    pub name: &'static str,
    pub about: &'static str,
    /// The rollbacks, all of the same hosts. One runs from the beginning; several are started by operators.
    pub rollbacks: Vec<Fleet>,
    pub coordinators: usize,
    pub budget: Budget,
    /// So many of the last commits can be lost at once.
    pub lag: usize,
    /// What has to be met, beside the properties.
    pub expects: Vec<Met>,
    /// How it has to be possible that a rollback ends.
    pub endings: Vec<Ending>,
    pub dropped: Option<Safeguard>,
    /// Ends within seconds, also without optimisation of the dependencies.
    pub small: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Verified,
    Undone,
    Held,
    Partial,
}

/// What the model can leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Safeguard {
    /// The store takes appends from nobody but the leader.
    FencedAppends,
    /// Agents refuse a leader with a lower epoch than they have seen, and another one with the same.
    EpochCheck,
    /// An agent that was killed inside a step probes before it runs the step again.
    Probe,
    /// Nothing is dispatched before its intent is durable.
    IntentFirst,
    /// A new leader asks the ledgers. This one and the next five matter only where a store may lose commits.
    Recall,
    /// A rollback whose journal has lost events is held at once, whatever is in flight.
    HoldInDoubt,
    /// The store asks for the leader of a lease, not for its epoch alone.
    FencedByHolder,
    /// The store takes nothing under a lease that has run out.
    FencedInTime,
    /// A process never leads twice with the same epoch.
    FreshEpochs,
    /// A leader looks whether everything that the store has running runs here.
    Compare,
    /// A rollback whose components another one holds is refused.
    Scope,
    /// Agents stage what they say they have staged.
    HonestStage,
    /// A backup that is said to be there is there.
    HonestSnapshot,
    /// What is said to be live was looked at.
    HonestSight,
    /// What is said to have been taken back was taken back.
    HonestUndo,
    /// An outcome is answered again to whoever asks again.
    AnswerAgain,
}

const APP: Fleet = Fleet {
    hosts: &[Kind::App],
    policy: Policy::Undo,
    at_once: false,
    finish: false,
};

const PAIR: Fleet = Fleet {
    hosts: &[Kind::App, Kind::App],
    ..APP
};

const ORDINARY: [Ending; 3] = [Ending::Verified, Ending::Undone, Ending::Held];
const ORDINARY_BUT_HELD: [Ending; 2] = [Ending::Verified, Ending::Undone];

const TAKEOVERS: [Met; 8] = [
    Met::TakeoverInTheMiddle,
    Met::Fenced,
    Met::StaleAtAgent,
    Met::StaleAtItsTurn,
    Met::Late,
    Met::Duplicate,
    Met::Joined,
    Met::FromLedger,
];
const KILLS: [Met; 3] = [Met::FoundApplied, Met::FoundRepeatable, Met::RanAgain];
const LOSSES: [Met; 5] = [
    Met::CommitsLost,
    Met::Doubt,
    Met::Outdone,
    Met::EpochRepeated,
    Met::Conflict,
];

impl Configuration {
    fn new(name: &'static str, about: &'static str, fleet: Fleet, budget: Budget) -> Self {
        Self {
            name,
            about,
            rollbacks: vec![fleet],
            coordinators: 2,
            budget,
            lag: 0,
            expects: Vec::new(),
            endings: vec![Ending::Verified],
            dropped: None,
            small: true,
        }
    }

    pub fn without(mut self, safeguard: Safeguard) -> Self {
        self.dropped = Some(safeguard);
        self
    }

    fn expecting(mut self, met: &[Met], endings: &[Ending]) -> Self {
        self.expects = met.to_vec();
        self.endings = endings.to_vec();
        self
    }

    fn losing(mut self, commits: usize) -> Self {
        self.lag = commits;
        self
    }

    pub fn find(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|c| c.name == name)
    }

    pub fn all() -> Vec<Self> {
        [Self::small(), Self::large()].concat()
    }

    /// Of a store that keeps what it confirmed, and of one that does not, with bounds that end within seconds.
    fn small() -> Vec<Self> {
        let none = Budget::default();
        vec![
            Self::new(
                "one-host",
                "one host: takeovers, a killed agent, failing steps",
                APP,
                Budget {
                    takeovers: 2,
                    kills: 1,
                    failures: 2,
                    silences: 1,
                    ..none
                },
            )
            .expecting(&[&TAKEOVERS[..], &KILLS[..], &[Met::Silent]].concat(), &ORDINARY),
            Self::new(
                "unknown",
                "one host: outcomes that nobody knows, steps that are given up and take effect later",
                APP,
                Budget {
                    takeovers: 2,
                    kills: 1,
                    unknowns: 2,
                    give_ups: 1,
                    ..none
                },
            )
            .expecting(
                &[Met::FoundUnclear, Met::GaveUp, Met::LateEffect, Met::Fenced],
                &ORDINARY,
            ),
            Self::new(
                "database",
                "a database: backup before the change",
                Fleet {
                    hosts: &[Kind::Database],
                    finish: true,
                    ..APP
                },
                Budget {
                    takeovers: 1,
                    kills: 1,
                    failures: 2,
                    ..none
                },
            )
            .expecting(&KILLS, &ORDINARY),
            Self::new(
                "two-hosts",
                "two hosts, one after the other: a takeover and a failing step",
                PAIR,
                Budget {
                    takeovers: 1,
                    failures: 1,
                    ..none
                },
            )
            .expecting(&TAKEOVERS, &ORDINARY_BUT_HELD),
            Self::new(
                "lost-ledger",
                "one host whose ledger is lost",
                APP,
                Budget {
                    takeovers: 1,
                    wipes: 1,
                    failures: 1,
                    ..none
                },
            )
            .expecting(&[Met::LedgerLost], &ORDINARY),
            Self {
                rollbacks: vec![
                    Fleet {
                        hosts: &[Kind::AtTarget],
                        ..APP
                    };
                    2
                ],
                ..Self::new(
                    "two-operators",
                    "two requests for the same components, repeated, across takeovers",
                    APP,
                    Budget {
                        takeovers: 3,
                        failures: 1,
                        ..none
                    },
                )
            }
            .expecting(
                &[Met::ScopeHeld, Met::RequestRepeated, Met::Fenced],
                &[Ending::Verified, Ending::Undone],
            ),
            Self::new(
                "steered",
                "one host: an operator pauses, tries again, ends it; a takeover and failing steps",
                APP,
                Budget {
                    takeovers: 1,
                    failures: 2,
                    acts: 2,
                    ..none
                },
            )
            .expecting(
                &[Met::Steered, Met::TriedAgain, Met::TakeoverInTheMiddle, Met::Fenced],
                &ORDINARY,
            ),
            Self::new(
                "lost-commits",
                "one host, and a store that loses its last commits and gives epochs out again",
                APP,
                Budget {
                    takeovers: 2,
                    failovers: 1,
                    give_ups: 1,
                    ..none
                },
            )
            .losing(2)
            .expecting(&LOSSES, &ORDINARY),
        ]
    }

    /// With bounds that take minutes.
    fn large() -> Vec<Self> {
        let none = Budget::default();
        let large = vec![
            Self {
                coordinators: 3,
                ..Self::new(
                    "one-host-deep",
                    "one host, three coordinators, of which two may be stopped leaders at the same time",
                    APP,
                    Budget {
                        takeovers: 3,
                        kills: 1,
                        failures: 1,
                        ..none
                    },
                )
            }
            .expecting(&[&TAKEOVERS[..], &KILLS[..]].concat(), &ORDINARY_BUT_HELD),
            Self::new(
                "restarted",
                "an application that is stopped and started",
                Fleet {
                    hosts: &[Kind::Restarted],
                    finish: true,
                    ..APP
                },
                Budget {
                    takeovers: 2,
                    kills: 1,
                    failures: 2,
                    unknowns: 1,
                    give_ups: 1,
                    ..none
                },
            )
            .expecting(&[&TAKEOVERS[..], &KILLS[..]].concat(), &ORDINARY),
            Self::new(
                "two-at-once",
                "two hosts side by side: a takeover, killed agents, failing steps",
                Fleet { at_once: true, ..PAIR },
                Budget {
                    takeovers: 1,
                    kills: 1,
                    failures: 1,
                    ..none
                },
            )
            .expecting(&[&TAKEOVERS[..], &KILLS[..]].concat(), &ORDINARY_BUT_HELD),
            Self::new(
                "three-hosts",
                "three hosts, where the runbook goes on without those that fail",
                Fleet {
                    hosts: &[Kind::App, Kind::App, Kind::App],
                    policy: Policy::Continue,
                    ..APP
                },
                Budget {
                    takeovers: 1,
                    failures: 1,
                    ..none
                },
            )
            .expecting(
                &[Met::TakeoverInTheMiddle, Met::Fenced, Met::StaleAtAgent],
                &[Ending::Verified, Ending::Undone, Ending::Partial],
            ),
            Self::new(
                "database-and-app",
                "a database and an application that is stopped for it",
                Fleet {
                    hosts: &[Kind::Database, Kind::Restarted],
                    ..APP
                },
                Budget {
                    takeovers: 1,
                    failures: 2,
                    ..none
                },
            )
            .expecting(&TAKEOVERS, &ORDINARY),
            Self::new(
                "lost-ledger-deep",
                "two hosts, one of which loses its ledger",
                PAIR,
                Budget {
                    takeovers: 1,
                    wipes: 1,
                    ..none
                },
            )
            .expecting(&[Met::LedgerLost], &[Ending::Verified, Ending::Held]),
            Self::new(
                "lost-commits-deep",
                "two hosts, and a store that loses up to three commits while steps fail",
                Fleet { at_once: true, ..PAIR },
                Budget {
                    takeovers: 1,
                    failovers: 1,
                    failures: 1,
                    ..none
                },
            )
            .losing(3)
            .expecting(&[Met::CommitsLost, Met::Doubt, Met::Conflict], &ORDINARY),
        ];
        large.into_iter().map(|c| Self { small: false, ..c }).collect()
    }
}
