//! app-1 has neither v2.9.0's directory nor its copy in the vault any more. Preflight says so, nothing is touched: not
//! a file, not a process, not the schema. Exit code 3.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Found, Options, expect_nothing, expect_running, found, on_fleet};
use crate::control::Control;
use crate::facts::{Facts, sha256};
use crate::fleet::Fleet;
use crate::zekka::{AppHost, Version};

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| {
        fleet.deploy_both().await?;
        forget_release(fleet, fleet.app("app-1")?)?;
        let before = expect_running(fleet, Version::V3_0_0)?;
        options.say("app-1 has lost v2.9.0 and its vault copy. Rolling back …");
        let answer = fleet.ctl.roll_back("v2.9.0").await?.expect_code(3)?;
        let after = Facts::gather(fleet)?;
        expect_nothing("preflight touched something", &after.changes_since(&before, true))?;
        let result = answer.json()?;
        ensure!(
            result["blocked"] == true,
            "the answer says that it was blocked: {answer}"
        );
        let findings = result["findings"].as_array().context("the answer lists findings")?;
        let named = findings.iter().any(|f| {
            f["severity"] == "blocker" && f["host"] == "app-1" && f["component"] == "api" && f["code"] == "RB0501"
        });
        ensure!(named, "the finding names app-1/api and RB0501: {answer}");
        Ok(found(
            json!({ "exit_code": answer.code, "state": result["state"], "findings": findings.len() }),
        ))
    })
    .await
}

/// Removes v2.9.0's directory from a host, and from its vault what only v2.9.0 is made of.
pub(super) fn forget_release(control: &Control, host: &AppHost) -> Result<()> {
    let dir = host.release_dir(Version::V2_9_0);
    let objects = control.host_dir(&host.name).join("agent/state/vault/objects");
    for file in ["release.json", "public/index.html"] {
        let id = sha256(&std::fs::read(dir.join(file)).with_context(|| format!("read {file}"))?);
        let object = objects.join(&id[..2]).join(&id[2..]);
        std::fs::remove_file(&object).with_context(|| format!("remove {}", object.display()))?;
    }
    std::fs::remove_dir_all(&dir).context("remove the release")
}
