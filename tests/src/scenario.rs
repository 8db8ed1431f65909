//! Stories told on a real fleet: the demo, and the faults that a rollback must survive. `scenario list` names them.
//!
//! A scenario ends well only if every one of its expectations was met; it says what it found as one JSON object.

mod agent_killed;
mod blocked_preflight;
mod coordinator_killed;
pub mod database;
pub mod deployments;
mod forth_and_back;
mod handbook;
pub mod hands;
mod held_then_recovered;
mod kill_sweep;
pub mod many_hosts;
mod points;
pub mod replicas;
mod restored_from_vault;
mod rolling;
pub mod store_faults;
mod store_taken_back;
mod trace;
mod two_operators;
mod undo_on_unhealthy;
mod zekka;

use std::time::Instant;

use anyhow::{Result, bail};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde_json::{Map, Value, json};

use crate::facts::Facts;
use crate::fleet::{Fleet, FleetBuilder};
use crate::zekka::Version;

/// How a scenario is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Leave the fleet up.
    pub keep: bool,
    /// Say nothing but the result.
    pub quiet: bool,
    /// How often a scenario that repeats itself does so; others do not care.
    pub rounds: Option<usize>,
    /// How large the database of a scenario that measures one is, in MiB; others do not care.
    pub size_mib: Option<u64>,
    /// Of a scenario that throws dice, to repeat what it did; others do not care.
    pub seed: Option<u64>,
}

impl Options {
    /// Says what happens, to whoever watches.
    pub fn say(&self, text: impl AsRef<str>) {
        if !self.quiet {
            eprintln!("{}", text.as_ref());
        }
    }
}

/// What a scenario found: the fields of its JSON object.
pub type Found = Map<String, Value>;

type Tell = fn(Options) -> LocalBoxFuture<'static, Result<Found>>;

#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    /// One line.
    pub about: &'static str,
    tell: Tell,
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scenario")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The stories of zekka's fleet.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "zekka",
        about: "the demo: v3.0.0 is bad, the whole fleet goes back to v2.9.0 while a user never stops asking",
        tell: |o| zekka::tell(o).boxed_local(),
    },
    Scenario {
        name: "handbook",
        about: "docs/operating.md, carried out: every command of it typed on the demo fleet (UPDATE_DOCS=1 writes its outputs)",
        tell: |o| handbook::tell(o).boxed_local(),
    },
    Scenario {
        name: "undo-on-unhealthy",
        about: "v2.9.0 never gets healthy on one host: everything is undone, v3.0.0 runs again everywhere",
        tell: |o| undo_on_unhealthy::tell(o).boxed_local(),
    },
    Scenario {
        name: "forth-and-back",
        about: "back to v2.9.0 and forward to v3.0.0 again: the column's and the table's data are there again",
        tell: |o| forth_and_back::tell(o).boxed_local(),
    },
    Scenario {
        name: "rolling",
        about: "no schema changes: host after host goes back, each one healthy before the next, while users are served",
        tell: |o| rolling::tell(o).boxed_local(),
    },
    Scenario {
        name: "blocked-preflight",
        about: "one host has lost v2.9.0 and its vault copy: preflight blocks and nothing is touched",
        tell: |o| blocked_preflight::tell(o).boxed_local(),
    },
    Scenario {
        name: "restored-from-vault",
        about: "one host has lost v2.9.0's directory: it comes back from the agent's vault",
        tell: |o| restored_from_vault::tell(o).boxed_local(),
    },
    Scenario {
        name: "coordinator-killed",
        about: "kill -9 of the coordinator in the app phase: it goes on from its journal, no step took effect twice",
        tell: |o| coordinator_killed::tell(o).boxed_local(),
    },
    Scenario {
        name: "agent-killed",
        about: "kill -9 of agents inside a migration and inside a start: the rollback goes on to its end by itself",
        tell: |o| agent_killed::tell(o).boxed_local(),
    },
    Scenario {
        name: "kill-sweep",
        about: "back and forth on one fleet; every round kill -9s the coordinator or an agent in another phase (--rounds)",
        tell: |o| kill_sweep::tell(o).boxed_local(),
    },
    Scenario {
        name: "held-then-recovered",
        about: "a rollback is held with the application stopped: the command that it names brings users back, twice",
        tell: |o| held_then_recovered::tell(o).boxed_local(),
    },
    Scenario {
        name: "two-operators",
        about: "two operators roll back at once: one does, the other is told who holds the fleet",
        tell: |o| two_operators::tell(o).boxed_local(),
    },
    Scenario {
        name: "store-taken-back",
        about: "the store is replaced by an older backup in the middle of a rollback: agents remember, it is held and says so",
        tell: |o| store_taken_back::tell(o).boxed_local(),
    },
    Scenario {
        name: "thousand-hosts",
        about: "1,000 agents: how long --help, fleet status and fleet readiness take (programs built with --release)",
        tell: |o| many_hosts::tell(o).boxed_local(),
    },
    Scenario {
        name: "trace",
        about: "one trace from rollbackctl through coordinator and agents, received over OTLP and whole",
        tell: |o| trace::tell(o).boxed_local(),
    },
];

/// How a scenario ended.
#[derive(Debug)]
pub struct Report {
    pub ok: bool,
    /// One JSON object: `scenario`, `ok`, `seconds`, and what was found, or `error`.
    pub json: Value,
    /// The whole story of a failure.
    pub error: Option<String>,
}

impl Scenario {
    /// Those of zekka's fleet, those of other deployments, those of databases, those of several coordinators, and
    /// those of the operator's hands.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        ALL.iter()
            .chain(deployments::ALL)
            .chain(database::ALL)
            .chain(replicas::ALL)
            .chain(store_faults::ALL)
            .chain(hands::ALL)
    }

    pub fn find(name: &str) -> Option<&'static Self> {
        Self::all().find(|s| s.name == name)
    }

    /// For tests: tells the scenario of this name without a word, and panics with the whole story when it fails.
    pub async fn expect(name: &str) {
        let scenario = Self::find(name).expect("the scenario exists");
        let options = Options {
            quiet: true,
            ..Options::default()
        };
        if let Some(error) = scenario.run(options).await.error {
            panic!("{name}: {error}");
        }
    }

    pub async fn run(&self, options: Options) -> Report {
        let begun = Instant::now();
        let result = (self.tell)(options).await;
        let seconds = (begun.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        let mut json = json!({ "scenario": self.name, "ok": result.is_ok(), "seconds": seconds });
        match result {
            Ok(found) => {
                if let Value::Object(object) = &mut json {
                    object.extend(found);
                }
                Report {
                    ok: true,
                    json,
                    error: None,
                }
            }
            Err(error) => {
                let whole = format!("{error:#}");
                // The logs' ends are for people; the object is for programs.
                json["error"] = whole.lines().next().unwrap_or_default().into();
                Report {
                    ok: false,
                    json,
                    error: Some(whole),
                }
            }
        }
    }
}

/// Starts a fleet, tells the story on it and ends it. A failure carries the ends of all logs.
async fn on_fleet(
    builder: FleetBuilder,
    options: Options,
    story: impl AsyncFnOnce(&mut Fleet) -> Result<Found>,
) -> Result<Found> {
    options.say("Starting PostgreSQL, nginx, the coordinator and four agents …");
    let mut fleet = builder.keep(options.keep).start().await?;
    let told = story(&mut fleet).await;
    if let Err(error) = &told {
        options.say(format!("FAILED: {error:#}"));
    }
    if options.keep {
        options.say(fleet.leave_running()?);
        return told;
    }
    let tails = told.as_ref().err().map(|_| fleet.tails());
    match (told, tails) {
        (Err(error), Some(tails)) => Err(anyhow::anyhow!("{error:#}\nthe logs end so:\n{tails}")),
        (told, _) => {
            fleet.stop().await?;
            told
        }
    }
}

/// Fails with everything that is not as expected.
pub fn expect_nothing(what: &str, misfits: &[String]) -> Result<()> {
    if misfits.is_empty() {
        return Ok(());
    }
    bail!("{what}: {}", misfits.join("; "))
}

/// This version, and nothing else, runs everywhere.
pub fn expect_running(fleet: &Fleet, version: Version) -> Result<Facts> {
    let facts = Facts::gather(fleet)?;
    expect_nothing(
        &format!("{} does not run everywhere", version.name()),
        &facts.misfits(version),
    )?;
    Ok(facts)
}

/// The object's fields.
fn found(value: Value) -> Found {
    match value {
        Value::Object(object) => object,
        other => Map::from_iter([("found".to_owned(), other)]),
    }
}
