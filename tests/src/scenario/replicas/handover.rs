//! SIGTERM of the leader in the middle of a rollback: it gives the lease back, and another replica goes on at once, on the
//! same trace.
//!
//! What is measured is the time from the signal until the next leader's first act: it asks an agent what was done there, by
//! the agent's log, or writes into the journal, by a trigger in the store's database; whatever comes first. (An event may
//! take longer than that and nobody be late: where a step is running, the next event is that step's end.) The time until
//! the first event is printed, too.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::ground::{Dice, Ground, builder, by_successors, now, p50_and_max, phase_at, to_of_round};
use super::obedience::Obedience;
use crate::collector::Collector;
use crate::scenario::trace::steps_of;
use crate::scenario::{Found, Options, expect_nothing, found, on_fleet};
use crate::zekka::Version;

const ROUNDS: usize = 10;

const GOES_ON_WITHIN: Duration = Duration::from_secs(1);

/// The middle of a rollback: nothing is left to hand over at its end.
const MIDDLE: (f64, f64) = (0.05, 0.85);

pub async fn tell(options: Options) -> Result<Found> {
    let rounds = options.rounds.unwrap_or(ROUNDS);
    let mut dice = Dice::new(options.seed);
    options.say(format!("--seed {}", dice.seed));
    let collector = Collector::start().await?;
    on_fleet(builder().otlp(collector.endpoint()), options, async |fleet| {
        let mut ground = Ground::prepare(fleet).await?;
        let (mut took, mut leases, mut events) = (Vec::new(), Vec::new(), Vec::new());
        let (mut handed, mut twice, mut spans) = (Vec::new(), Vec::new(), 0);
        for (round, moment) in dice.moments(rounds).into_iter().enumerate() {
            let to = to_of_round(round);
            let part = MIDDLE.0 + moment * (MIDDLE.1 - MIDDLE.0);
            let what = format!("round {} to {}, at {part:.2} of it (--seed {})", round + 1, to.name(), dice.seed);
            options.say(&what);
            let over = one(&mut ground, to, part, &collector).await.with_context(|| what.clone())?;
            took.push(over.first_act);
            leases.push(over.lease);
            events.push(over.first_event);
            spans += over.spans;
            twice.extend(over.duplicates.iter().map(|effect| format!("{what}: {effect}")));
            handed.push(json!({
                "phase": over.phase, "to": to.name(), "ms": over.first_act.as_millis(), "lease_ms": over.lease.as_millis(),
                "event_ms": over.first_event.as_millis(),
            }));
        }
        let stale = ground.fleet.store_server()?.recorder().stale_appends()?;
        expect_nothing("appends by somebody who did not lead", &stale)?;
        expect_nothing("effects that were there twice", &twice)?;
        let (p50, max) = p50_and_max(took.clone());
        ensure!(
            took.iter().all(|took| *took <= GOES_ON_WITHIN),
            "it took up to {max} ms until the next leader went on: {handed:?}"
        );
        Ok(found(json!({
            "rollbacks": rounds,
            "verified": rounds,
            "duplicate_effects": twice.len(),
            "handover_ms_p50": p50,
            "handover_ms_max": max,
            "lease_ms_max": p50_and_max(leases).1,
            "event_ms_max": p50_and_max(events).1,
            "spans": spans,
            "seed": dice.seed,
            "handovers": Value::Array(handed),
        })))
    })
    .await
}

struct HandedOver {
    phase: String,
    /// From the signal until another one has the lease.
    lease: Duration,
    /// From the signal until another one asks an agent or appends.
    first_act: Duration,
    /// From the signal until another one appends.
    first_event: Duration,
    duplicates: Vec<String>,
    /// Of the rollback's trace, which is whole.
    spans: usize,
}

async fn one(ground: &mut Ground<'_>, to: Version, part: f64, collector: &Collector) -> Result<HandedOver> {
    let obedience = Obedience::mark(ground.fleet)?;
    let swing = ground.begin(to).await?;
    let leader = swing.leader.clone();
    ground.wait_for_part(&swing, part).await?;
    let at = now();
    ground.fleet.replica(&leader.name)?.signal(Signal::TERM)?;
    let swung = ground.end(swing).await?;
    // It has ended by itself, with its last spans sent.
    ground.fleet.replica(&leader.name)?.stop().await?;
    ground.fleet.replica(&leader.name)?.run().await?;
    let (_, next, led) = ground
        .fleet
        .store_server()?
        .recorder()
        .lease_from(leader.epoch + 1)?
        .context("nobody took the lease")?;
    ensure!(
        next != leader.name,
        "the one that was asked to end took the lease again"
    );
    let first_event = by_successors(&swung.acts, &leader, at).first().map(|act| act.at);
    let first_event = first_event.context("the next leader appended nothing: the rollback had ended")?;
    let first_act = obedience
        .first_recall(at)?
        .map_or(first_event, |recall| recall.min(first_event));
    let result = swung.answer.json()?;
    let trace_id = result["trace_id"].as_str().context("the answer names the trace")?;
    let report = ground.fleet.ctl.report_of(&result).await?;
    let trace = collector.whole_trace(trace_id, &steps_of(&report)?).await?;
    Ok(HandedOver {
        phase: phase_at(&swung.acts, at),
        lease: led.saturating_sub(at),
        first_act: first_act.saturating_sub(at),
        first_event: first_event.saturating_sub(at),
        duplicates: swung.duplicates,
        spans: trace.spans,
    })
}
