//! One rollback is one trace: one root, spans of all three programs, every step, unbroken parent links.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Found, Options, expect_running, found, on_fleet};
use crate::collector::Collector;
use crate::fleet::Fleet;
use crate::zekka::Version;

pub async fn tell(options: Options) -> Result<Found> {
    let collector = Collector::start().await?;
    let builder = Fleet::builder().otlp(collector.endpoint());
    on_fleet(builder, options, async |fleet| {
        fleet.deploy_both().await?;
        let answer = fleet.ctl.roll_back("v2.9.0").await?.expect_code(0)?;
        expect_running(fleet, Version::V2_9_0)?;
        let result = answer.json()?;
        let trace_id = result["trace_id"].as_str().context("the answer names the trace")?;
        let report = fleet.ctl.report_of(&result).await?;
        ensure!(
            report["trace_id"] == trace_id,
            "the report names another trace: {}",
            report["trace_id"]
        );
        let steps = steps_of(&report)?;
        let trace = collector.whole_trace(trace_id, &steps).await?;
        options.say(format!(
            "{} spans of trace {trace_id}: {:?}",
            trace.spans, trace.services
        ));
        Ok(found(json!({
            "trace_id": trace_id,
            "spans": trace.spans,
            "services": trace.services,
            "steps": steps.len(),
        })))
    })
    .await
}

/// Ids of the steps that a report lists.
pub(super) fn steps_of(report: &Value) -> Result<BTreeSet<String>> {
    let steps = report["steps"].as_array().context("the report lists steps")?;
    ensure!(steps.len() > 10, "the report lists only {} steps", steps.len());
    Ok(steps.iter().map(|s| s["id"].to_string()).collect())
}
