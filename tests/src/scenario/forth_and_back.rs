//! v3.0.0 with data of its own goes back to v2.9.0, and then forward again. What the first rollback took out of the
//! database is kept, and the second one puts it back: nothing that users entered is lost on the way.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Found, Options, expect_running, found, on_fleet};
use crate::facts::StageData;
use crate::fleet::Fleet;
use crate::zekka::{STAGED, Version};

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| {
        fleet.deploy_both().await?;
        let before = expect_running(fleet, Version::V3_0_0)?;
        let stages = StageData::live(&fleet.postgres)?;
        ensure!(
            stages.staged_deals.rows == STAGED && stages.events.rows == STAGED,
            "v3.0.0 shall have data of its own: {stages:?}"
        );
        options.say("Rolling back to v2.9.0 …");
        let back = fleet.ctl.roll_back("v2.9.0").await?.expect_code(0)?.json()?;
        let between = expect_running(fleet, Version::V2_9_0)?;
        ensure!(
            !between.data.tables.contains_key("public.deal_events"),
            "v2.9.0 knows no events, and there are: {:?}",
            between.data.tables
        );
        options.say("… and forward to v3.0.0 again …");
        let forth = fleet.ctl.roll_back("v3.0.0").await?.expect_code(0)?.json()?;
        let after = expect_running(fleet, Version::V3_0_0)?;
        for (direction, result) in [("back", &back), ("forth", &forth)] {
            ensure!(
                result["state"] == "verified",
                "the way {direction} ended {}",
                result["state"]
            );
        }
        ensure!(
            after.schema_sha256 == before.schema_sha256,
            "the schema is not as it was"
        );
        let again = StageData::live(&fleet.postgres)?;
        ensure!(again == stages, "v3.0.0 had {stages:?}, and has {again:?}");
        let (was, is) = (
            before.data.of_the_application(),
            after.data.clone().of_the_application(),
        );
        ensure!(was == is, "the database held {was:?}, and holds {is:?}");
        // Going forward says nothing against what was left: it is still what one would go back to.
        let previous = fleet
            .ctl
            .run(&["fleet", "plan", "--to", "previous"])
            .await?
            .expect_code(2)?;
        ensure!(
            previous.text().contains("v2.9.0"),
            "the release before v3.0.0 is v2.9.0: {previous}"
        );
        Ok(found(json!({
            "back": back["state"],
            "forth": forth["state"],
            "rows_back": again.staged_deals.rows + again.events.rows,
            "kept_schemas_left": after.kept_schemas.len(),
        })))
    })
    .await
}
