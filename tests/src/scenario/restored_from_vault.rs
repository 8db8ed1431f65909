//! app-1 has lost v2.9.0's directory. The agent's vault has it: it is restored while staging, and the rollback ends at
//! the target with the same content as before.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Found, Options, expect_running, found, on_fleet};
use crate::fleet::Fleet;
use crate::zekka::Version;

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| {
        fleet.deploy(Version::V2_9_0).await?;
        fleet.ctl.record("v2.9.0").await?.expect_code(0)?;
        let good = expect_running(fleet, Version::V2_9_0)?;
        fleet.deploy(Version::V3_0_0).await?;
        fleet.ctl.record("v3.0.0").await?.expect_code(0)?;
        std::fs::remove_dir_all(fleet.app("app-1")?.release_dir(Version::V2_9_0)).context("remove the release")?;
        options.say("app-1 has lost v2.9.0's directory. Rolling back …");
        let answer = fleet.ctl.roll_back("v2.9.0").await?.expect_code(0)?;
        let after = expect_running(fleet, Version::V2_9_0)?;
        let (was, is) = (&good.apps["app-1"], &after.apps["app-1"]);
        ensure!(
            was.release_sha256 == is.release_sha256,
            "the restored release differs from what was recorded"
        );
        ensure!(
            is.releases == ["v2.9.0", "v3.0.0"],
            "left in releases: {:?}",
            is.releases
        );
        Ok(found(
            json!({ "exit_code": answer.code, "state": answer.json()?["state"] }),
        ))
    })
    .await
}
