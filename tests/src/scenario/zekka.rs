//! The demo. v2.9.0 runs and is recorded; v3.0.0 is deployed over it and is bad; one command takes the whole fleet back.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Found, Options, expect_nothing, expect_running, found, on_fleet};
use crate::collector::Collector;
use crate::ctl::{Answer, rollback_to};
use crate::facts::{Facts, StageData, curl};
use crate::figures::Figures;
use crate::fleet::Fleet;
use crate::prober::{Downtime, Prober};
use crate::scenario::trace::steps_of;
use crate::wait;
use crate::zekka::{STAGED, Version};

/// Enough that dump, restore and migration take measurable time.
const DEALS: u64 = 200_000;

/// Requests after the rollback that show whether anything is still wrong.
const REQUESTS_AFTER: usize = 100;

pub async fn tell(options: Options) -> Result<Found> {
    let collector = Collector::start().await?;
    let builder = Fleet::builder()
        .rows(DEALS)
        .durable()
        .readiness("15m")
        .otlp(collector.endpoint());
    on_fleet(builder, options, async |fleet| story(fleet, &collector, options).await).await
}

async fn story(fleet: &mut Fleet, collector: &Collector, options: Options) -> Result<Found> {
    options.say(format!("Deploying v2.9.0 with {DEALS} deals, and recording it …"));
    fleet.deploy(Version::V2_9_0).await?;
    fleet.ctl.record("v2.9.0").await?.expect_code(0)?;
    let good = expect_running(fleet, Version::V2_9_0)?;
    options.say("Deploying v3.0.0 (a migration, another env file, another nginx site), and recording it …");
    fleet.deploy(Version::V3_0_0).await?;
    fleet.ctl.record("v3.0.0").await?.expect_code(0)?;
    let before = expect_running(fleet, Version::V3_0_0)?;
    let stages = StageData::live(&fleet.postgres)?;
    ensure!(
        stages.staged_deals.rows == STAGED && stages.events.rows == STAGED,
        "v3.0.0 shall have data of its own: {stages:?}"
    );
    let errors = share_of_errors(fleet)?;
    options.say(format!(
        "Users see errors: {:.0} % of the requests for deals fail.\n",
        errors * 100.0
    ));
    ensure!(
        errors > 0.2,
        "v3.0.0 shall be bad, but only {errors} of its answers are errors"
    );

    let prober = Prober::start(fleet.nginx.url("/api/deals"))?;
    options.say("$ rollbackctl fleet rollback --to v2.9.0");
    let begun = Instant::now();
    let mut args = rollback_to("v2.9.0").to_vec();
    args.extend([
        "--reason",
        "every second request for deals fails",
        "--incident",
        "INC-2107",
    ]);
    let answer = fleet.ctl.start(&args, !options.quiet)?.answer().await?.expect_code(0)?;
    let ended = Instant::now();
    let samples = after_more_requests(prober, fleet).await?;

    options.say("\nChecking without the program's word …");
    let after = expect_running(fleet, Version::V2_9_0)?;
    check_facts(&good, &before, &after)?;
    let [schema] = after.kept_schemas.as_slice() else {
        anyhow::bail!("schemas that keep v3.0.0's data: {:?}", after.kept_schemas);
    };
    let kept = StageData::kept(&fleet.postgres, schema)?;
    ensure!(kept == stages, "v3.0.0 had {stages:?}, and kept is {kept:?}");
    check_secrets(fleet, collector, &answer)?;
    let samples = samples.since(begun);
    let downtime = samples.downtime().context("users got answers")?;
    ensure!(
        downtime.failed_after == 0,
        "{} requests failed after v2.9.0 had come back",
        downtime.failed_after
    );
    let result = answer.json()?;
    let report = fleet.ctl.report_of(&result).await?;
    let trace_id = result["trace_id"]
        .as_str()
        .context("the answer names the trace")?
        .to_owned();
    let trace = collector.whole_trace(&trace_id, &steps_of(&report)?).await?;
    let figures = Figures::of_report(&report)?;
    show(options, &figures, &downtime, &trace_id, trace.spans)?;

    let mut all = figures.to_json();
    if let Value::Object(all) = &mut all {
        all.extend(found(json!({
            "command_ms": (ended - begun).as_millis(),
            "downtime_ms": downtime.longest.as_millis(),
            "failed_requests": downtime.failed_inside,
            "requests": downtime.requests,
            "failed_after": downtime.failed_after,
            "errors_before": errors,
            "deals": DEALS,
            "kept_rows": kept.staged_deals.rows + kept.events.rows,
            "trace_id": trace_id,
            "spans": trace.spans,
        })));
    }
    Ok(found(all))
}

fn share_of_errors(fleet: &Fleet) -> Result<f64> {
    const ASKED: u32 = 20;
    let mut errors = 0;
    for _ in 0..ASKED {
        errors += u32::from(curl(&fleet.nginx.url("/api/deals"))?.status >= 500);
    }
    Ok(f64::from(errors) / f64::from(ASKED))
}

/// Lets the prober go on until there is enough to see whether anything fails afterwards.
async fn after_more_requests(prober: Prober, fleet: &Fleet) -> Result<crate::prober::Samples> {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build()?;
    let url = fleet.nginx.url("/api/deals");
    let mut left = REQUESTS_AFTER;
    wait::until_true("users asked after the rollback", Duration::from_secs(30), async || {
        let answered = client.get(&url).send().await.is_ok_and(|a| a.status().is_success());
        left = left.saturating_sub(usize::from(answered));
        left == 0
    })
    .await?;
    prober.stop().await
}

/// What must be as it was under v2.9.0, and what must be new.
fn check_facts(good: &Facts, before: &Facts, after: &Facts) -> Result<()> {
    let mut misfits = Vec::new();
    for (host, now) in &after.apps {
        let (Some(good), Some(bad)) = (good.apps.get(host), before.apps.get(host)) else {
            continue;
        };
        for (what, right) in [
            ("content of the release", now.release_sha256 == good.release_sha256),
            ("env file", now.env_sha256 == good.env_sha256),
            ("secret of the process", now.process_secret == good.process_secret),
            (
                "process, which must be a new one",
                now.pid.is_some() && now.pid != bad.pid,
            ),
        ] {
            if !right {
                misfits.push(format!("{host}: {what}"));
            }
        }
    }
    for (what, right) in [
        ("the schema", after.schema_sha256 == good.schema_sha256),
        ("what tables hold", after.data.tables == good.data.tables),
        ("where sequences are", after.data.sequences == good.data.sequences),
        ("the site's file", after.site_sha256 == good.site_sha256),
        (
            "the databases, of which none may be left over",
            after.databases == good.databases,
        ),
        (
            "nginx's files, of which none may be left over",
            after.nginx_files == before.nginx_files,
        ),
        (
            "nginx's workers, which must be new",
            after.workers.iter().all(|pid| !before.workers.contains(pid)),
        ),
    ] {
        if !right {
            misfits.push(what.to_owned());
        }
    }
    expect_nothing("not as it must be after the rollback", &misfits)
}

/// Values of env files and passwords stay on their hosts: not in the coordinator's store, nor in logs, spans, answers.
fn check_secrets(fleet: &Fleet, collector: &Collector, answer: &Answer) -> Result<()> {
    let secrets = [fleet.zekka.secret.as_str(), fleet.postgres.password()];
    let holds = |bytes: &[u8]| {
        secrets
            .iter()
            .any(|s| bytes.windows(s.len()).any(|w| w == s.as_bytes()))
    };
    let mut leaks = Vec::new();
    for dir in [fleet.coordinator.dir().join("state"), fleet.dir().join("log")] {
        for entry in std::fs::read_dir(&dir)
            .with_context(|| format!("list {}", dir.display()))?
            .flatten()
        {
            if entry.path().is_file() && holds(&std::fs::read(entry.path()).context("read")?) {
                leaks.push(entry.path().display().to_string());
            }
        }
    }
    if holds(answer.text().as_bytes()) {
        leaks.push("the answer of rollbackctl".to_owned());
    }
    if collector
        .spans()
        .iter()
        .any(|span| holds(format!("{span:?}").as_bytes()))
    {
        leaks.push("a span".to_owned());
    }
    expect_nothing("a secret was found in", &leaks)
}

fn show(options: Options, figures: &Figures, downtime: &Downtime, trace: &str, spans: usize) -> Result<()> {
    if options.quiet {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{}\n", figures.tables())?;
    writeln!(out, "downtime        {} ms", downtime.longest.as_millis())?;
    writeln!(
        out,
        "failed requests {} of {}",
        downtime.failed_inside, downtime.requests
    )?;
    writeln!(
        out,
        "overhead        {:.1} %; {:.1} % when operations that only look count, too",
        figures.overhead_ratio() * 100.0,
        figures.strict_overhead_ratio() * 100.0
    )?;
    writeln!(out, "trace           {trace} ({spans} spans)\n")?;
    Ok(())
}
