//! kill -9 of the leader at a moment of every rollback that was drawn before: another replica takes over when the lease
//! has run out, rollbackctl goes on watching there and ends with 0, and nothing took effect twice.
//!
//! The moments are spread: of N rollbacks one is hit in each Nth part of the time that an undisturbed one takes. What is
//! measured is the time from the kill until the next step begins: until the new leader's first intent of a step is
//! written into the journal, by the clock of the store's server, noted by a trigger there. Where no step was left to
//! begin: until its first event of any kind.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::ground::{Dice, Ground, builder, by_successors, now, p50_and_max, phase_at, to_of_round};
use crate::scenario::{Found, Options, expect_nothing, found, on_fleet};
use crate::zekka::Version;

const ROUNDS: usize = 20;

/// The lease's TTL, as shipped, and two seconds.
const RESUMES_WITHIN: Duration = Duration::from_secs(8);

/// Moments later than this part of a rollback's time are often behind its end.
const LATEST: f64 = 0.95;

pub async fn tell(options: Options) -> Result<Found> {
    let rounds = options.rounds.unwrap_or(ROUNDS);
    let mut dice = Dice::new(options.seed);
    options.say(format!("--seed {}", dice.seed));
    on_fleet(builder(), options, async |fleet| {
        let mut ground = Ground::prepare(fleet).await?;
        let (mut kills, mut resumed, mut first_acts, mut twice) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut too_late = 0;
        for (round, moment) in dice.moments(rounds).into_iter().enumerate() {
            let to = to_of_round(round);
            let what = format!(
                "round {} to {}, at {moment:.2} of it (--seed {})",
                round + 1,
                to.name(),
                dice.seed
            );
            options.say(&what);
            let killed = one(&mut ground, to, moment * LATEST)
                .await
                .with_context(|| what.clone())?;
            let Some(resume) = killed.resume else {
                too_late += 1;
                continue;
            };
            ensure!(
                resume <= RESUMES_WITHIN,
                "{what}: {} ms from the kill to the next step",
                resume.as_millis()
            );
            resumed.push(resume);
            first_acts.extend(killed.first_act);
            twice.extend(killed.duplicates.iter().map(|effect| format!("{what}: {effect}")));
            kills.push(json!({
                "phase": killed.phase, "killed": killed.name, "to": to.name(), "resume_ms": resume.as_millis(),
            }));
        }
        let stale = ground.fleet.store_server()?.recorder().stale_appends()?;
        expect_nothing("appends by somebody who did not lead", &stale)?;
        expect_nothing("effects that were there twice", &twice)?;
        ensure!(
            resumed.len() * 4 >= rounds * 3,
            "{too_late} of {rounds} kills came after the end"
        );
        let (p50, max) = p50_and_max(resumed.clone());
        let phases: BTreeSet<String> = kills
            .iter()
            .filter_map(|kill| kill["phase"].as_str().map(str::to_owned))
            .collect();
        Ok(found(json!({
            "rollbacks": rounds,
            "verified": rounds,
            "killed_too_late": too_late,
            "duplicate_effects": twice.len(),
            "resume_ms_p50": p50,
            "resume_ms_max": max,
            "first_act_ms_max": p50_and_max(first_acts).1,
            "phases_met": phases,
            "seed": dice.seed,
            "kills": Value::Array(kills),
        })))
    })
    .await
}

struct Killed {
    name: String,
    phase: String,
    /// `None`: the rollback had ended already.
    resume: Option<Duration>,
    first_act: Option<Duration>,
    duplicates: Vec<String>,
}

async fn one(ground: &mut Ground<'_>, to: Version, moment: f64) -> Result<Killed> {
    let swing = ground.begin(to).await?;
    let leader = swing.leader.clone();
    ground.wait_for_part(&swing, moment).await?;
    let at = now();
    ground.fleet.replica(&leader.name)?.kill()?;
    let swung = ground.end(swing).await?;
    ground.fleet.replica(&leader.name)?.run().await?;
    let theirs = by_successors(&swung.acts, &leader, at);
    let first_act = theirs.first().map(|act| act.at - at);
    let next_step = theirs
        .iter()
        .find(|act| act.kind == "step_intended")
        .map(|act| act.at - at);
    Ok(Killed {
        name: leader.name,
        phase: phase_at(&swung.acts, at),
        resume: next_step.or(first_act),
        first_act,
        duplicates: swung.duplicates,
    })
}
