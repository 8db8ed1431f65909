//! Fleets that never recorded anything: what the runbooks leave behind is found by its names, and made a release.
//!
//! [`zekka`] and [`zakops`] are the fleets of the two runbooks. Both are first asked for a release of which something is
//! missing: the answer must name all of it, host by host, and nothing may be stored.

pub mod zakops;
pub mod zekka;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::control::Control;
use crate::ctl::Answer;
use crate::deployed::Deployed;
use crate::deployed::PROXY;
use crate::zekka::Version;

const RELEASE: &str = "v2.9.0";

/// The command's exit status for an import that found too little.
const INCOMPLETE: i32 = 1;

/// A component, and what the answer must say of the place where it was looked for.
type Missing<'a> = (&'a str, &'a str);

/// Asks for the release while `missing`, and nothing else, cannot be found. People and programs must be told the same,
/// and nothing may come of it. `args` are further ones.
async fn expect_refused(control: &Control, args: &[&str], missing: &[Missing<'_>], all: usize) -> Result<()> {
    let command = [&["release", "import", RELEASE], args].concat();
    let answer = control.ctl.run(&command).await?.expect_code(INCOMPLETE)?;
    for (target, place) in missing {
        let (host, component) = target.split_once('/').context("a component is on a host")?;
        let row = row_of(&answer, host, component)?;
        ensure!(row.contains("NOT FOUND"), "{target} is said to be found: {row}");
        ensure!(
            answer.text().contains(place),
            "{place} of {target} is not named: {answer}"
        );
        // What to type if it shall be left out; a proxy has its backends' users to look after.
        let decision = if host == PROXY { "--as-is" } else { "--without" };
        let exception = format!("{decision} {target}");
        ensure!(
            answer.text().contains(&exception),
            "no {exception} is offered: {answer}"
        );
    }

    let answer = control.ctl.run(&[&command[..], &["-o", "json"]].concat()).await?;
    let json = answer.expect_code(INCOMPLETE)?.json()?;
    let findings = json["findings"].as_array().context("there are findings")?;
    ensure!(findings.len() == all, "{} of {all} components: {json}", findings.len());
    let named: BTreeSet<String> = findings
        .iter()
        .filter(|finding| !finding["problem"].is_null())
        .map(target_of)
        .collect();
    let expected: BTreeSet<String> = missing.iter().map(|(target, _)| (*target).to_owned()).collect();
    ensure!(named == expected, "{named:?} are missing, not {expected:?}: {json}");
    ensure!(
        json["release"].is_null() && json["missing"] == expected.len(),
        "the answer is of two minds: {json}"
    );
    for (target, place) in missing {
        let finding = findings.iter().find(|f| target_of(f) == *target);
        let message = finding.map(|f| f["problem"].to_string()).unwrap_or_default();
        ensure!(message.contains(place), "{place} of {target} is not named: {message}");
    }
    expect_stored(control, &[]).await?;
    let plan = control.ctl.run(&["fleet", "plan", "--to", RELEASE]).await?;
    ensure!(plan.code != 0 && plan.code != 2, "there is a plan for it: {plan}");
    Ok(())
}

/// Imports it for good; hands the answer out.
async fn import(control: &Control, args: &[&str]) -> Result<Value> {
    let command = [&["release", "import", RELEASE, "-o", "json"], args].concat();
    let json = control.ctl.run(&command).await?.expect_code(0)?.json()?;
    ensure!(json["missing"] == 0, "something is missing: {json}");
    let entries = json["release"]["entries"].as_array().context("a release is stored")?;
    for entry in entries {
        let summary = entry["summary"].as_str().unwrap_or_default();
        ensure!(summary.starts_with("imported"), "who recorded this? {entry}");
    }
    ensure!(json["release"]["stable"] == false, "nobody has seen it work: {json}");
    expect_stored(control, &[RELEASE]).await?;
    Ok(json)
}

async fn expect_stored(control: &Control, names: &[&str]) -> Result<()> {
    let answer = control.ctl.run(&["release", "list", "-o", "json"]).await?;
    let json = answer.expect_code(0)?.json()?;
    let stored: Vec<&str> = json["releases"]
        .as_array()
        .context("there is a list")?
        .iter()
        .filter_map(|release| release["name"].as_str())
        .collect();
    ensure!(stored == names, "{stored:?} are stored, not {names:?}");
    Ok(())
}

fn target_of(finding: &Value) -> String {
    let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("host"), text("component"))
}

/// The line of a table that begins with the two names.
fn row_of(answer: &Answer, host: &str, component: &str) -> Result<String> {
    let mut rows = answer.stdout.lines();
    let row = rows.find(|line| line.split_ascii_whitespace().take(2).eq([host, component]));
    Ok(row
        .with_context(|| format!("{host}/{component} has no row: {answer}"))?
        .to_owned())
}

/// The instances answer as this version, one by one.
fn expect_serving(apps: &[(&str, &dyn Deployed)], version: Version) -> Result<()> {
    for (host, app) in apps {
        app.served()?.expect(version).with_context(|| (*host).to_owned())?;
    }
    Ok(())
}
