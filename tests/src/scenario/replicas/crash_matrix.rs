//! kill -9 of the coordinator, or of an agent, before and after every durable write and every call: while a rollback is
//! carried out, while another coordinator takes it over, and while one hands it over. On SQLite the coordinator is started
//! again; on PostgreSQL there are two, and the other one takes over. The rollback then ends verified, undone, or held with
//! a reason, and what the hosts serve is what it says.
//!
//! Which places there are is found out, not listed: in one rollback of each kind nobody is killed, and every process writes
//! down all that it passes. A place is passed many times (the journal is appended to some dozens of times); of the
//! passings of one place [`PASSINGS`] are taken, spread over all of them. `--rounds N` takes N cases, spread over all.
//!
//! What a process passes by the clock (renewals, heartbeats) it may pass more seldom the next time. Such a case is counted
//! as missed, and is none.

mod case;
mod ground;
mod judge;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use self::case::{Case, Kind, all_cases};
use self::ground::Ground;
use self::judge::Verdict;
use super::ground::Dice;
use crate::control::{ControlOptions, StoreKind};
use crate::scenario::deployments::on_control_with;
use crate::scenario::{Found, Options, expect_nothing, found};

/// Of one place, by one process, in a rollback of one kind.
const PASSINGS: usize = 6;

/// As in `stale-leader`: nothing but the lease depends on it.
const LEADERSHIP: [(&str, &str); 3] = [("ttl", "1200ms"), ("renew", "300ms"), ("step_down", "800ms")];

const KINDS: [Kind; 3] = [Kind::Undisturbed, Kind::TakenOver, Kind::HandedOver];

pub async fn tell(options: Options) -> Result<Found> {
    let dice = Dice::new(options.seed);
    options.say(format!("--seed {}", dice.seed));
    let mut tally = Tally::default();
    for store in [StoreKind::Sqlite, StoreKind::Postgres] {
        let control = ControlOptions {
            store,
            further_replicas: match store {
                StoreKind::Sqlite => 0,
                StoreKind::Postgres => 1,
            },
            leadership: LEADERSHIP.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
            ..ControlOptions::default()
        };
        let told = on_control_with(control, options, async |control| {
            let mut ground = Ground::prepare(control, store).await?;
            matrix(&mut ground, store, &mut tally, options, dice.seed).await?;
            Ok(Found::new())
        });
        told.await?;
    }
    options.say(tally.to_json(dice.seed).to_string());
    expect_nothing("cases that ended wrong", &tally.wrong)?;
    Ok(found(tally.to_json(dice.seed)))
}

/// What came of all cases.
#[derive(Debug, Default)]
struct Tally {
    points: usize,
    cases: usize,
    missed: Vec<String>,
    verified: usize,
    undone: Vec<String>,
    held: Vec<String>,
    wrong: Vec<String>,
}

impl Tally {
    fn to_json(&self, seed: u64) -> Value {
        json!({
            "points": self.points,
            "cases": self.cases,
            "converged": self.verified + self.undone.len(),
            "verified": self.verified,
            "undone": self.undone.len(),
            "held": self.held.len(),
            "wrong": self.wrong.len(),
            "missed": self.missed.len(),
            "undone_cases": self.undone,
            "held_cases": self.held,
            "missed_cases": self.missed,
            "seed": seed,
        })
    }

    fn add(&mut self, case: String, verdict: Verdict) {
        match verdict {
            Verdict::Missed => {
                self.missed.push(case);
                return;
            }
            Verdict::Verified => self.verified += 1,
            Verdict::Undone(why) => self.undone.push(format!("{case}: {why}")),
            Verdict::Held(why) => self.held.push(format!("{case}: {why}")),
            Verdict::Wrong(why) => self.wrong.push(format!("{case}: {why}")),
        }
        self.cases += 1;
    }
}

async fn matrix(
    ground: &mut Ground<'_>,
    store: StoreKind,
    tally: &mut Tally,
    options: Options,
    seed: u64,
) -> Result<()> {
    let mut cases = Vec::new();
    for kind in KINDS {
        let passed = ground.learn(kind).await.with_context(|| format!("{store:?}: learn {kind:?}"))?;
        tally.points += passed.iter().map(|(_, points)| points.len()).sum::<usize>();
        cases.extend(all_cases(kind, passed, PASSINGS));
    }
    // Half of them on each store.
    let limit = options.rounds.filter(|rounds| *rounds > 0).map(|rounds| rounds.div_ceil(2));
    let mut left = spread(cases, limit, seed);
    options.say(format!("{store:?}: {} cases", left.len()));
    let wanted = limit.unwrap_or(usize::MAX);
    let begun_with = tally.cases;
    while let Some(case) = left.pop() {
        if tally.cases - begun_with >= wanted {
            break;
        }
        let name = format!("{store:?}, {}", case.describe());
        let verdict = ground.run(&case).await.with_context(|| name.clone())?;
        options.say(format!("{name}: {}", verdict.describe()));
        tally.add(name, verdict);
    }
    Ok(())
}

/// The wanted ones last, each place once before any place comes twice; behind them (in front, that is) what takes the
/// place of those that are missed.
fn spread(cases: Vec<Case>, limit: Option<usize>, seed: u64) -> Vec<Case> {
    let Some(limit) = limit else { return cases.into_iter().rev().collect() };
    let all = cases.len().max(1);
    let offset = usize::try_from(seed % u64::try_from(all).unwrap_or(1)).unwrap_or_default();
    let chosen: Vec<usize> = (0..limit.min(all)).map(|n| (n * all / limit.min(all) + offset) % all).collect();
    let mut rest: Vec<Case> = Vec::new();
    let mut wanted: Vec<Case> = Vec::new();
    for (n, case) in cases.into_iter().enumerate() {
        if chosen.contains(&n) { wanted.push(case) } else { rest.push(case) }
    }
    rest.extend(wanted);
    rest
}
