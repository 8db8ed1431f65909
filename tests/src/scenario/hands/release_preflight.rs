//! Before v3.1.0 is deployed: could the fleet come back from it? The checklist says yes, line by line. Then a host loses
//! what v3.0.0 is made of, an application is unhealthy, and somebody has deployed by hand what nobody recorded: each is
//! named where it belongs, with exit code 3, and nothing was touched by asking.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::ground::{NEW, OLD};
use crate::control::Control;
use crate::facts::Facts;
use crate::fleet::Fleet;
use crate::scenario::blocked_preflight::forget_release;
use crate::scenario::{Found, Options, expect_nothing, expect_running, found, on_fleet};

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| story(fleet, options).await).await
}

async fn story(fleet: &mut Fleet, options: Options) -> Result<Found> {
    fleet.deploy_both().await?;
    fleet.agent("db-1")?.tool(&["database", "backup", "db"])?;
    let before = expect_running(fleet, NEW)?;
    let well = checklist(fleet, &["--rehearse"], 0).await?;
    let names: Vec<&str> = well.iter().filter_map(|item| item["name"].as_str()).collect();
    for name in ["backup", "recorded", "artifacts", "plan", "health", "migration"] {
        ensure!(names.contains(&name), "the checklist has no {name}: {names:?}");
    }
    expect_nothing(
        "the checklist touches something",
        &Facts::gather(fleet)?.changes_since(&before, true),
    )?;

    options.say("All is well. app-1 gets unhealthy, and app-2 loses v2.9.0 …");
    fleet.app("app-1")?.set_fault(NEW, true, Duration::ZERO)?;
    forget_release(fleet, fleet.app("app-2")?)?;
    let ill = checklist(fleet, &[], 3).await?;
    let blocked: Vec<&str> = ill
        .iter()
        .filter(|item| item["severity"] == "blocker")
        .filter_map(|item| item["name"].as_str())
        .collect();
    for (name, host) in [("health", "app-1"), ("artifacts", "app-2")] {
        let item = ill
            .iter()
            .find(|item| item["name"] == name)
            .context("the item is there")?;
        ensure!(
            item["severity"] == "blocker" && item.to_string().contains(host),
            "{name} is to name {host}: {item}"
        );
    }
    ensure!(blocked.contains(&"plan"), "to {} there is no way: {ill:?}", OLD.name());
    Ok(found(json!({ "items": names, "blocked": blocked })))
}

async fn checklist(control: &Control, args: &[&str], code: i32) -> Result<Vec<Value>> {
    let args = [&["release", "preflight", "-o", "json"], args].concat();
    let answer = control.ctl.run(&args).await?.expect_code(code)?.json()?;
    answer["items"].as_array().cloned().context("the checklist has items")
}
