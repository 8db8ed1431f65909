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

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
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
            leadership: LEADERSHIP
                .iter()
                .map(|(key, value)| (*key, (*value).to_owned()))
                .collect(),
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
        let passed = ground
            .learn(kind)
            .await
            .with_context(|| format!("{store:?}: learn {kind:?}"))?;
        tally.points += passed.iter().map(|(_, points)| points.len()).sum::<usize>();
        cases.extend(all_cases(kind, passed, PASSINGS));
    }
    // Half of them on each store.
    let limit = options
        .rounds
        .filter(|rounds| *rounds > 0)
        .map(|rounds| rounds.div_ceil(2));
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

/// Those that are wanted last, where they are taken from, spread evenly over all; before them, in any order, those that
/// take the place of what is missed.
fn spread(cases: Vec<Case>, limit: Option<usize>, seed: u64) -> Vec<Case> {
    let mut dice = StdRng::seed_from_u64(seed);
    let all = cases.len();
    let wanted = limit.unwrap_or(all).min(all);
    let offset = dice.random_range(0..all.max(1));
    let chosen: BTreeSet<usize> = (0..wanted).map(|n| (n * all / wanted + offset) % all).collect();
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for (n, case) in cases.into_iter().enumerate() {
        if chosen.contains(&n) {
            first.push(case)
        } else {
            rest.push(case)
        }
    }
    rest.shuffle(&mut dice);
    first.reverse();
    rest.extend(first);
    rest
}

#[cfg(test)]
mod tests {
    use super::case::{Kind, Victim, all_cases};
    use super::spread;
    use crate::scenario::points::Point;

    #[test]
    fn a_sample_is_taken_from_all_over_and_nothing_is_lost() {
        let point = |nth| Point {
            name: "store.append.before".to_owned(),
            nth,
        };
        let cases = || {
            all_cases(
                Kind::Undisturbed,
                vec![(Victim::Coordinator, (1..=12).map(point).collect())],
                12,
            )
        };
        let taken = |limit, seed| -> Vec<u32> {
            let mut left = spread(cases(), limit, seed);
            std::iter::from_fn(|| left.pop()).map(|case| case.point.nth).collect()
        };
        assert_eq!(taken(None, 1), (1..=12).collect::<Vec<_>>());
        for seed in 0..20 {
            let mut order = taken(Some(4), seed);
            let mut first: Vec<u32> = order[..4].iter().map(|nth| nth % 3).collect();
            first.dedup();
            assert_eq!(first.len(), 1, "every third one comes first: {order:?}");
            order.sort_unstable();
            assert_eq!(order, (1..=12).collect::<Vec<_>>());
        }
    }
}
