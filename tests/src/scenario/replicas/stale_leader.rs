//! The leader is stopped with SIGSTOP at a moment of a rollback that was drawn before; its lease runs out, and another
//! replica takes over. Then it wakes up, in the middle of the same rollback or after its end. It appends nothing, no agent
//! obeys it, it steps down, and says so on `/readyz` and in its log.
//!
//! Who appended is noted by triggers in the store's database, whom the agents obeyed is in their ledgers and logs. The
//! lease is short here, so that many rounds take little time; no other timing depends on it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::ground::{Dice, Ground, builder, now, phase_at, to_of_round};
use super::obedience::Obedience;
use crate::control::{Leading, Standing};
use crate::scenario::{Found, Options, expect_nothing, found, on_fleet};
use crate::wait;
use crate::zekka::Version;

const ROUNDS: usize = 100;

/// `[leadership]`, scaled down from 6 s, 1.5 s and 4 s.
const TIMINGS: [(&str, &str); 3] = [("ttl", "1200ms"), ("renew", "300ms"), ("step_down", "800ms")];

/// From the stop until another one leads: the lease runs out, and followers look for that.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(10);

/// From waking up until `/readyz` tells that it follows.
const STEPS_DOWN_WITHIN: Duration = Duration::from_secs(5);

/// Moments later than this part of a rollback's time are often behind its end.
const LATEST: f64 = 0.9;

pub async fn tell(options: Options) -> Result<Found> {
    let rounds = options.rounds.unwrap_or(ROUNDS);
    let mut dice = Dice::new(options.seed);
    options.say(format!("--seed {}", dice.seed));
    let builder = TIMINGS
        .iter()
        .fold(builder(), |builder, (key, value)| builder.leadership(key, value));
    on_fleet(builder, options, async |fleet| {
        let mut ground = Ground::prepare(fleet).await?;
        let (mut stale_steps, mut refused, mut twice) = (Vec::new(), 0, Vec::new());
        let (mut stepped_down, mut woken_inside, mut stops) = (0, 0, Vec::new());
        for (round, moment) in dice.moments(rounds).into_iter().enumerate() {
            let to = to_of_round(round);
            let part = moment * LATEST;
            // Beside the rollback, which goes on, or when that has ended.
            let wakes_inside = dice.flip().then(|| dice.part_of(ground.takes(to).mul_f64(1.0 - part)));
            let what = format!(
                "round {} to {}, at {part:.2} of it (--seed {})",
                round + 1,
                to.name(),
                dice.seed
            );
            options.say(&what);
            let woken = one(&mut ground, to, part, wakes_inside)
                .await
                .with_context(|| what.clone())?;
            stepped_down += 1;
            refused += woken.refused;
            woken_inside += usize::from(woken.inside);
            stale_steps.extend(woken.stale_steps.iter().map(|step| format!("{what}: {step}")));
            twice.extend(woken.duplicates.iter().map(|effect| format!("{what}: {effect}")));
            stops.push(json!({ "phase": woken.phase, "woken_inside": woken.inside, "to": to.name() }));
        }
        let stale_appends = ground.fleet.store_server()?.recorder().stale_appends()?;
        expect_nothing("appends by somebody who did not lead", &stale_appends)?;
        expect_nothing("steps of somebody who did not lead", &stale_steps)?;
        expect_nothing("effects that were there twice", &twice)?;
        Ok(found(json!({
            "rounds": rounds,
            "verified": rounds,
            "stale_appends": stale_appends.len(),
            "stale_steps": stale_steps.len(),
            "refused_steps": refused,
            "stepped_down": stepped_down,
            "woken_inside": woken_inside,
            "duplicate_effects": twice.len(),
            "seed": dice.seed,
            "stops": Value::Array(stops),
        })))
    })
    .await
}

struct Woken {
    phase: String,
    /// The rollback was still going on.
    inside: bool,
    stale_steps: Vec<String>,
    /// Attempts of such steps that agents refused.
    refused: usize,
    duplicates: Vec<String>,
}

async fn one(ground: &mut Ground<'_>, to: Version, part: f64, wakes_inside: Option<Duration>) -> Result<Woken> {
    let obedience = Obedience::mark(ground.fleet)?;
    let swing = ground.begin_unwatched(to).await?;
    let old = swing.leader.clone();
    ground.wait_for_part(&swing, part).await?;
    let stopped = now();
    let log_mark = std::fs::read(ground.fleet.replica(&old.name)?.log())
        .context("read its log")?
        .len();
    ground.fleet.replica(&old.name)?.signal(Signal::STOP)?;
    let next = ground.wait_taken_over(&old, TAKEN_OVER_WITHIN).await;
    match (&next, wakes_inside) {
        (Ok(_), Some(after)) => wait::moment(after).await,
        (Ok(_), None) => ground.wait_ended(swing.began).await?,
        (Err(_), _) => {}
    }
    let woken = now();
    ground.fleet.replica(&old.name)?.signal(Signal::CONT)?;
    let (next, swung) = (next?, ground.end(swing).await?);
    ensure!(next.name != old.name, "the one that is stopped leads: {next:?}");
    expect_stepped_down(ground, &old, log_mark).await?;
    let store = ground.fleet.store_server()?;
    let (epoch, _, led) = store
        .recorder()
        .lease_from(next.epoch)?
        .context("the next lease was noted")?;
    let obeyed = obedience.since(ground.fleet, epoch, led).await?;
    let last = swung.acts.last().map(|act| act.at);
    Ok(Woken {
        phase: phase_at(&swung.acts, stopped),
        inside: wakes_inside.is_some() && last.is_some_and(|last| last > woken),
        stale_steps: obeyed.stale,
        refused: obeyed.refused,
        duplicates: swung.duplicates,
    })
}

/// It follows, and says that it stepped down: on `/readyz`, where the reason stays for a while, and in its log.
async fn expect_stepped_down(ground: &mut Ground<'_>, old: &Leading, log_mark: usize) -> Result<()> {
    let says_so = wait::until(
        "the woken leader says on /readyz that it stepped down",
        STEPS_DOWN_WITHIN,
        async || {
            let standings = ground.fleet.standings().await;
            let (_, standing) = standings.into_iter().find(|(name, _)| *name == old.name)?;
            match standing {
                Standing::Following(text) if text.contains("stepped down") => Some(()),
                Standing::Following(_) | Standing::Leading(_) | Standing::Unready(_) | Standing::Silent => None,
            }
        },
    );
    if let Err(error) = says_so.await {
        bail!("{error:#}; they say: {:?}", ground.fleet.standings().await);
    }
    let log = std::fs::read(ground.fleet.replica(&old.name)?.log()).context("read its log")?;
    let said = String::from_utf8_lossy(&log[log_mark..]).into_owned();
    ensure!(
        said.contains("stepped down"),
        "its log does not say that it stepped down:\n{said}"
    );
    Ok(())
}
