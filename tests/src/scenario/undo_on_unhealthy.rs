//! v2.9.0 comes up on app-1 and never gets healthy on app-2. Everything is undone: v3.0.0 runs again on all hosts, with
//! its schema, its env files and its site, and with the data that the down migration had dropped. Exit code 5.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Found, Options, expect_nothing, expect_running, found, on_fleet};
use crate::facts::StageData;
use crate::fleet::Fleet;
use crate::zekka::{STAGED, Version};

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| {
        fleet.deploy_both().await?;
        fleet.app("app-2")?.set_fault(Version::V2_9_0, true, Duration::ZERO)?;
        let before = expect_running(fleet, Version::V3_0_0)?;
        let stages = StageData::live(&fleet.postgres)?;
        ensure!(
            stages.staged_deals.rows == STAGED && stages.events.rows == STAGED,
            "v3.0.0 shall have data of its own: {stages:?}"
        );
        options.say("v2.9.0 will never be healthy on app-2. Rolling back …");
        let answer = fleet.ctl.roll_back("v2.9.0").await?.expect_code(5)?;
        let result = answer.json()?;
        ensure!(
            result["state"] == "undone" && result["blocked"] == false,
            "the state is {}",
            result["state"]
        );
        ensure!(
            answer.text().contains("app-2"),
            "the answer names the host that failed: {answer}"
        );
        ensure!(
            result["problem"]["code"] == "RB0500",
            "the problem is {}",
            result["problem"]
        );
        let after = expect_running(fleet, Version::V3_0_0)?;
        expect_nothing("not as before", &after.changes_since(&before, false))?;
        // Within the comparison above already, and said here by name: nothing of v3.0.0's own data is lost.
        let back = StageData::live(&fleet.postgres)?;
        ensure!(back == stages, "v3.0.0 had {stages:?}, and has {back:?}");
        for host in &fleet.zekka.hosts {
            let started = host
                .effects()?
                .iter()
                .filter(|e| **e == ("start".into(), "v2.9.0".into()))
                .count();
            // Once by the deployment, once by the rollback.
            ensure!(started == 2, "v2.9.0 was started {started} times on {}", host.name);
        }
        Ok(found(
            json!({ "exit_code": answer.code, "state": result["state"], "problem": result["problem"] }),
        ))
    })
    .await
}
