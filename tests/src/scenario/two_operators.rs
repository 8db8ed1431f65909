//! Two operators start the same rollback at once. One does it; the other one's command ends with 6 and names the
//! rollback that holds the fleet.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::coordinator_killed::Marks;
use super::{Found, Options, expect_running, found, on_fleet};
use crate::ctl::rollback_to;
use crate::fleet::Fleet;
use crate::zekka::Version;

/// Keeps the first rollback busy until the second command has its answer.
const SLOW_START: Duration = Duration::from_secs(2);

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| {
        fleet.deploy_both().await?;
        for host in &fleet.zekka.hosts {
            host.set_fault(Version::V2_9_0, false, SLOW_START)?;
        }
        let second = fleet.operator("second")?;
        let marks = Marks::set(fleet)?;
        let args = rollback_to("v2.9.0");
        let (first, second) = (fleet.ctl.start(&args, false)?, second.start(&args, false)?);
        let (first, second) = tokio::try_join!(first.answer(), second.answer())?;
        let (winner, loser) = if first.code == 0 {
            (first, second)
        } else {
            (second, first)
        };
        let (winner, loser) = (winner.expect_code(0)?, loser.expect_code(6)?);
        let id = winner.json()?["rollback_id"].as_str().unwrap_or_default().to_owned();
        ensure!(
            !id.is_empty() && loser.text().contains(&id),
            "who lost is told which rollback runs: {loser}"
        );
        ensure!(loser.text().contains("RB0203"), "who lost is told a code: {loser}");
        expect_running(fleet, Version::V2_9_0)?;
        marks.expect_once(fleet)?;
        Ok(found(
            json!({ "exit_codes": [winner.code, loser.code], "rollback_id": id }),
        ))
    })
    .await
}
