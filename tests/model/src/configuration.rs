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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safeguard {
    /// The store takes appends whoever leads.
    FencedAppends,
    /// Agents obey every leader.
    EpochCheck,
    /// An agent that was killed inside a step probes before it runs the step again.
    Probe,
    /// Nothing is dispatched before its intent is durable.
    IntentFirst,
    /// A new leader asks the ledgers.
    Recall,
    /// A rollback whose components another one holds is refused.
    Scope,
    /// Agents stage what they say they have staged.
    HonestStage,
    /// A backup that is said to be there is there.
    HonestSnapshot,
    /// A verification looks.
    HonestVerify,
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

impl Configuration {
    fn new(name: &'static str, about: &'static str, fleet: Fleet, budget: Budget) -> Self {
        Self {
            name,
            about,
            rollbacks: vec![fleet],
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

    fn large(mut self) -> Self {
        self.small = false;
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
        let none = Budget::default();
        let takeovers = [
            Met::TakeoverInTheMiddle,
            Met::Fenced,
            Met::StaleAtAgent,
            Met::StaleAtItsTurn,
            Met::Late,
            Met::Duplicate,
            Met::Joined,
            Met::FromLedger,
        ];
        let kills = [Met::FoundApplied, Met::FoundRepeatable, Met::RanAgain];
        vec![
            Self::new(
                "one-host",
                "one host: takeovers, a killed agent, failing steps",
                APP,
                Budget {
                    takeovers: 2,
                    kills: 1,
                    failures: 1,
                    ..none
                },
            )
            .expecting(
                &[&takeovers[..], &kills[..]].concat(),
                &[Ending::Verified, Ending::Undone, Ending::Held],
            ),
            Self::new(
                "unknown",
                "one host: outcomes that nobody knows, steps that are given up and take effect later",
                APP,
                Budget {
                    takeovers: 1,
                    kills: 1,
                    unknowns: 1,
                    give_ups: 1,
                    ..none
                },
            )
            .expecting(
                &[Met::FoundUnclear, Met::GaveUp, Met::LateEffect, Met::Fenced],
                &[Ending::Verified, Ending::Undone, Ending::Held],
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
                    failures: 1,
                    ..none
                },
            )
            .expecting(&kills, &[Ending::Verified, Ending::Undone, Ending::Held]),
            Self::new(
                "two-hosts",
                "two hosts, one after the other: a takeover and a failing step",
                Fleet {
                    hosts: &[Kind::App, Kind::App],
                    ..APP
                },
                Budget {
                    takeovers: 1,
                    failures: 1,
                    ..none
                },
            )
            .expecting(&takeovers, &[Ending::Verified, Ending::Undone, Ending::Held]),
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
            .expecting(&[Met::LedgerLost], &[Ending::Verified, Ending::Undone, Ending::Held]),
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
            .expecting(
                &[Met::CommitsLost, Met::Doubt, Met::Outdone, Met::EpochRepeated, Met::Conflict],
                &[Ending::Verified, Ending::Undone, Ending::Held],
            ),
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
                    "two requests for the same components, repeated, across a takeover",
                    APP,
                    Budget {
                        takeovers: 2,
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
                "one-host-deep",
                "one host: three takeovers, two kills, two failures, an unknown",
                APP,
                Budget {
                    takeovers: 3,
                    kills: 2,
                    failures: 2,
                    unknowns: 1,
                    ..none
                },
            )
            .expecting(
                &[&takeovers[..], &kills[..]].concat(),
                &[Ending::Verified, Ending::Undone, Ending::Held],
            )
            .large(),
            Self::new(
                "restarted",
                "an application that is stopped and started, and a failing step",
                Fleet {
                    hosts: &[Kind::Restarted],
                    finish: true,
                    ..APP
                },
                Budget {
                    takeovers: 2,
                    kills: 1,
                    failures: 1,
                    unknowns: 1,
                    ..none
                },
            )
            .expecting(
                &[&takeovers[..], &kills[..]].concat(),
                &[Ending::Verified, Ending::Undone, Ending::Held],
            )
            .large(),
            Self::new(
                "two-at-once",
                "two hosts side by side: takeovers, a killed agent, a failing step",
                Fleet {
                    hosts: &[Kind::App, Kind::App],
                    at_once: true,
                    ..APP
                },
                Budget {
                    takeovers: 1,
                    kills: 1,
                    failures: 1,
                    ..none
                },
            )
            .expecting(
                &[&takeovers[..], &kills[..]].concat(),
                &[Ending::Verified, Ending::Undone, Ending::Held],
            )
            .large(),
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
            )
            .large(),
            Self::new(
                "database-and-app",
                "a database and an application that is stopped for it",
                Fleet {
                    hosts: &[Kind::Database, Kind::Restarted],
                    ..APP
                },
                Budget {
                    takeovers: 1,
                    failures: 1,
                    ..none
                },
            )
            .expecting(&takeovers, &[Ending::Verified, Ending::Undone, Ending::Held])
            .large(),
            Self::new(
                "lost-commits-deep",
                "two hosts, and a store that loses up to three commits while steps fail",
                Fleet {
                    hosts: &[Kind::App, Kind::App],
                    at_once: true,
                    ..APP
                },
                Budget {
                    takeovers: 1,
                    failovers: 1,
                    failures: 1,
                    ..none
                },
            )
            .losing(3)
            .expecting(
                &[Met::CommitsLost, Met::Doubt, Met::Outdone],
                &[Ending::Verified, Ending::Undone, Ending::Held],
            )
            .large(),
        ]
    }
}
