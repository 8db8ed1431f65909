//! Before v3.1.0 is deployed: could the fleet come back from it? Not as long as there is no backup; then the checklist says
//! yes, line by line, and has rehearsed the way down of the schema on a copy. Afterwards an application is unhealthy, a host
//! has lost what v2.9.0 is made of, and somebody has edited an env file by hand: each is named where it belongs, with exit
//! code 3. Asking touches nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::ground::NEW;
use crate::control::Control;
use crate::facts::Facts;
use crate::fleet::Fleet;
use crate::scenario::blocked_preflight::forget_release;
use crate::scenario::{Found, Options, expect_nothing, expect_running, found, on_fleet};

const ITEMS: [&str; 6] = ["recorded", "health", "backup", "plan", "artifacts", "migration"];

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| story(fleet, options).await).await
}

async fn story(fleet: &mut Fleet, options: Options) -> Result<Found> {
    fleet.deploy_both().await?;
    let before = expect_running(fleet, NEW)?;
    expect_blocked(&checklist(fleet, &[], 3).await?, &[("backup", "db-1")])?;
    fleet.agent("db-1")?.tool(&["database", "backup", "db"])?;
    let well = checklist(fleet, &["--rehearse"], 0).await?;
    expect_blocked(&well, &[])?;
    let names: Vec<&str> = well.iter().filter_map(|item| item["name"].as_str()).collect();
    ensure!(names == ITEMS, "the checklist has {names:?}");
    let rehearsed = well.iter().find(|item| item["name"] == "migration");
    let rehearsed = rehearsed.context("a migration is on the list")?;
    ensure!(
        rehearsed["severity"] == "ok" && rehearsed.to_string().contains("db-1"),
        "the way down was rehearsed: {rehearsed}"
    );
    expect_nothing(
        "the checklist touches something",
        &Facts::gather(fleet)?.changes_since(&before, true),
    )?;

    options.say("All is well. app-1 gets unhealthy, and app-2 loses v2.9.0 …");
    let app_1 = fleet.app("app-1")?;
    app_1.set_fault(NEW, true, Duration::ZERO)?;
    forget_release(fleet, fleet.app("app-2")?)?;
    let ill = checklist(fleet, &[], 3).await?;
    expect_blocked(&ill, &[("health", "app-1"), ("artifacts", "app-2")])?;

    options.say("… and somebody edits the env file of app-1 by hand. The way back is now to v3.0.0.");
    app_1.clear_faults()?;
    let env = std::fs::read_to_string(app_1.env_file()).context("read the env file")?;
    std::fs::write(app_1.env_file(), format!("{env}DEBUG=1\n")).context("edit the env file")?;
    expect_blocked(&checklist(fleet, &[], 3).await?, &[("recorded", "")])?;
    Ok(found(json!({
        "items": names,
        "rehearsed": rehearsed["evidence"],
        "blocked": ["backup", "health", "artifacts", "recorded"],
    })))
}

/// These items, and no others, stand in the way, and name these hosts.
fn expect_blocked(items: &[Value], wanted: &[(&str, &str)]) -> Result<()> {
    let blockers: Vec<&Value> = items.iter().filter(|item| item["severity"] == "blocker").collect();
    let right = blockers.len() == wanted.len()
        && blockers.iter().zip(wanted).all(|(item, (name, host))| {
            let remedied = item["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty());
            item["name"] == *name && item.to_string().contains(host) && remedied
        });
    ensure!(right, "{wanted:?} stand in the way, and not {blockers:?}");
    Ok(())
}

async fn checklist(control: &Control, args: &[&str], code: i32) -> Result<Vec<Value>> {
    let args = [&["release", "preflight", "-o", "json"], args].concat();
    let answer = control.ctl.run(&args).await?.expect_code(code)?.json()?;
    answer["items"].as_array().cloned().context("the checklist has items")
}
