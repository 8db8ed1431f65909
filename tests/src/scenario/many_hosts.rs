//! A fleet of a thousand hosts, most of whose agents share one process: what does an operator wait for?
//!
//! The coordinator and rollbackctl are the real ones, and so is every agent's server; only what is deployed is in memory.
//! `fleet status` asks every agent, every time. The figures are the median of five, from the start of the program to its end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Found, Options, found};
use crate::control::{Control, ControlOptions};
use crate::ctl::Ctl;
use crate::swarm::Swarm;
use crate::wait;

const THOUSAND: usize = 1000;
/// What the answer may take, of programs that were built to be quick.
const TARGET: Duration = Duration::from_millis(300);
const TIMES: usize = 5;
/// Hosts that have lost what is to be gone back to.
const PRUNED: usize = 5;
const CONNECTED_WITHIN: Duration = Duration::from_secs(120);
const CHECKED_WITHIN: Duration = Duration::from_secs(120);

pub async fn tell(options: Options) -> Result<Found> {
    let found = look(THOUSAND, options).await?;
    for (command, figure) in figures(&found) {
        let median = figure["median_ms"].as_f64().context("a median")?;
        options.say(format!("  {command:<32} {median:>6.0} ms"));
    }
    for (command, figure) in figures(&found) {
        let median = figure["median_ms"].as_f64().context("a median")?;
        ensure!(
            median < TARGET.as_secs_f64() * 1000.0,
            "{command} takes {median} ms, and is to take less than {} ms",
            TARGET.as_millis()
        );
    }
    Ok(found)
}

fn figures(found: &Found) -> impl Iterator<Item = (&String, &Value)> {
    found.get("commands").and_then(Value::as_object).into_iter().flatten()
}

/// Puts up a fleet of so many hosts, five of which could not go back, and times three commands. What they say is looked at,
/// too; how long they take is for the caller to judge.
pub async fn look(hosts: usize, options: Options) -> Result<Found> {
    // As shipped: a release that is recorded is looked at once, whatever the interval is.
    let mut control = Control::start(ControlOptions {
        readiness: Some("15m".to_owned()),
        ..ControlOptions::default()
    })
    .await?;
    let told = story(&mut control, hosts, options).await;
    match told {
        Ok(found) => {
            control.stop().await?;
            Ok(found)
        }
        Err(error) => Err(anyhow::anyhow!("{error:#}\nthe logs end so:\n{}", control.tails([]))),
    }
}

async fn story(control: &mut Control, hosts: usize, options: Options) -> Result<Found> {
    options.say(format!("Starting {hosts} agents …"));
    let begun = Instant::now();
    let mut swarm = Swarm::start(control, hosts).await?;
    let ctl = control.ctl.clone();
    wait::until_true(
        "the coordinator is in touch with all of them",
        CONNECTED_WITHIN,
        async || connected(&ctl).await == Some(hosts),
    )
    .await?;
    let connected_ms = millis(begun.elapsed());
    for version in ["v1.0.0", "v1.1.0"] {
        swarm.deploy(version).await?;
        if version == "v1.1.0" {
            swarm.prune("v1.0.0", PRUNED).await?;
        }
        ctl.run(&["release", "record", version]).await?.expect_code(0)?;
    }
    let begun = Instant::now();
    let readiness = wait::until(
        "the leader has looked whether v1.0.0 could come back",
        CHECKED_WITHIN,
        async || {
            let answer = ctl
                .run(&["fleet", "readiness", "--to", "v1.0.0", "-o", "json"])
                .await
                .ok()?;
            (answer.code == 3).then_some(answer)
        },
    )
    .await?;
    let checked_ms = millis(begun.elapsed());
    let blocked = blocked_hosts(&readiness.json()?);
    let pruned: Vec<String> = (1..=PRUNED.min(hosts)).map(|n| format!("host-{n:04}")).collect();
    ensure!(
        blocked == pruned,
        "these lost v1.0.0: {pruned:?}; these are named: {blocked:?}"
    );

    let status = ctl
        .run(&["fleet", "status", "-o", "json"])
        .await?
        .expect_code(0)?
        .json()?;
    let seen = status["hosts"].as_array().cloned().unwrap_or_default();
    let reachable = seen.iter().filter(|host| host["reachable"] == true).count();
    ensure!(
        reachable == hosts && status["release"] == "v1.1.0",
        "{reachable} of {hosts} hosts are seen, at {}",
        status["release"]
    );
    // Nothing here may come from memory: what is deployed now is in the next answer.
    swarm.deploy("v1.2.0").await?;
    let status = ctl
        .run(&["fleet", "status", "-o", "json"])
        .await?
        .expect_code(0)?
        .json()?;
    ensure!(
        status["release"].is_null(),
        "v1.2.0 is no recorded release: {}",
        status["release"]
    );

    let commands = [
        (&["--help"][..], 0),
        (&["fleet", "status"][..], 0),
        (&["fleet", "readiness"][..], 3),
    ];
    let mut figures = serde_json::Map::new();
    for (args, code) in commands {
        let figure = time(&ctl, args, code).await?;
        figures.insert(format!("rollbackctl {}", args.join(" ")), figure);
    }
    Ok(found(json!({
        "hosts": hosts,
        "connected_ms": connected_ms,
        "readiness_known_ms": checked_ms,
        "target_ms": millis(TARGET),
        "commands": figures,
    })))
}

/// The median of five, after one that warms up what the system keeps of files.
async fn time(ctl: &Ctl, args: &[&str], code: i32) -> Result<Value> {
    let mut taken = Vec::with_capacity(TIMES);
    let mut bytes = 0;
    for _ in 0..=TIMES {
        let begun = Instant::now();
        let answer = ctl.run(args).await?.expect_code(code)?;
        taken.push(millis(begun.elapsed()));
        bytes = answer.stdout.len();
    }
    taken.remove(0);
    taken.sort_by(f64::total_cmp);
    Ok(
        json!({ "median_ms": taken[TIMES / 2], "least_ms": taken[0], "most_ms": taken[TIMES - 1], "stdout_bytes": bytes }),
    )
}

async fn connected(ctl: &Ctl) -> Option<usize> {
    let answer = ctl.run(&["agent", "list", "-o", "json"]).await.ok()?.json().ok()?;
    let agents = answer["agents"].as_array()?;
    Some(agents.iter().filter(|agent| agent["connected"] == true).count())
}

/// Of the one release that was asked for.
fn blocked_hosts(readiness: &Value) -> Vec<String> {
    let findings = readiness["releases"][0]["findings"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let blockers = findings.iter().filter(|f| f["severity"] == "blocker");
    let mut hosts: Vec<String> = blockers.filter_map(|f| f["host"].as_str().map(str::to_owned)).collect();
    hosts.sort();
    hosts
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
