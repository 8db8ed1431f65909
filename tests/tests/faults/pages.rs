//! What the coordinator's HTTP pages say after all those faults and the rollback that went well in the end.

use anyhow::{Context, Result, ensure};
use fleet_tests::facts::curl;
use fleet_tests::fleet::Fleet;

/// How the attempts of this test ended, in the order of the alphabet.
const ENDED: [(&str, &str); 3] = [("blocked", "2"), ("undone", "4"), ("verified", "1")];

pub fn say_what_happened(fleet: &Fleet) -> Result<()> {
    for (path, said) in [("/healthz", "ok"), ("/readyz", "leading with epoch 1")] {
        let answer = curl(&fleet.coordinator.page(path))?;
        ensure!(
            answer.status == 200 && answer.body.trim() == said,
            "{path} answers {} {:?}",
            answer.status,
            answer.body
        );
    }
    let nothing = curl(&fleet.coordinator.page("/other"))?;
    ensure!(nothing.status == 404, "/other answers {}", nothing.status);

    let answer = curl(&fleet.coordinator.page("/metrics"))?;
    let kind = answer.header("content-type");
    ensure!(
        answer.status == 200 && kind.starts_with("application/openmetrics-text"),
        "/metrics answers {} of type {kind}",
        answer.status
    );
    let text = &answer.body;
    ensure!(text.trim_end().ends_with("# EOF"), "the text has no end: {text}");
    let mut ended: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|l| l.strip_prefix("rollback_rollbacks_ended_total{outcome=\""))
        .filter_map(|rest| rest.split_once("\"} "))
        .collect();
    ended.sort_unstable();
    ensure!(ended == ENDED, "rollbacks ended so: {ended:?}");
    for (name, value) in [
        ("rollback_rollbacks_started_total", "7"),
        ("rollback_agents_connected", "4"),
        ("rollback_agents_registered", "4"),
        ("rollback_rollbacks_running", "0"),
        ("rollback_leader_epoch", "1"),
        ("rollback_fatal_total", "0"),
    ] {
        let found = value_of(text, name).with_context(|| format!("{name} is not there: {text}"))?;
        ensure!(found == value, "{name} is {found}, not {value}");
    }
    for name in [
        "rollback_steps_ended_total{outcome=\"succeeded\"}",
        "rollback_steps_ended_total{outcome=\"failed\"}",
        "rollback_journal_append_seconds_count",
    ] {
        let count: f64 = value_of(text, name)
            .with_context(|| format!("{name} is not there"))?
            .parse()?;
        ensure!(count > 0.0, "{name} is {count}");
    }
    Ok(())
}

fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|l| l.strip_prefix(name));
    lines.find_map(|rest| rest.strip_prefix(' '))
}
