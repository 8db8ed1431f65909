//! app-2 is gone, with its agent and its application, and v3.0.0 has to go. The default runbook refuses: it would not reach
//! every host. `emergency` goes without it, in one batch, and yet no database is touched before there is a backup of it,
//! which PostgreSQL's own tools can read. Its time is compared with that of the default runbook on the whole fleet. When app-2
//! is back, it drifts, and `fleet converge` starts v2.9.0 there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::ground::{NEW, OLD, expect_refused, roll_back};
use crate::facts::{Facts, curl};
use crate::fleet::Fleet;
use crate::process::run;
use crate::scenario::{Found, Options, expect_nothing, expect_running, found, on_fleet};

/// What every archive of `pg_dump` begins with.
const ARCHIVE: &[u8] = b"PGDMP";

/// Who is told that a host is gone has not been kept waiting for it.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);

pub async fn tell(options: Options) -> Result<Found> {
    on_fleet(Fleet::builder(), options, async |fleet| story(fleet, options).await).await
}

async fn story(fleet: &mut Fleet, options: Options) -> Result<Found> {
    fleet.deploy_both().await?;
    options.say("Back and forth on the whole fleet by the default runbook, for comparison …");
    let default = roll_back(&fleet.ctl, &["--to", OLD.name()])
        .await?
        .expect_code(0)?
        .json()?;
    roll_back(&fleet.ctl, &["--to", NEW.name()]).await?.expect_code(0)?;
    let before = expect_running(fleet, NEW)?;

    options.say("app-2 is gone. The default runbook …");
    fleet.agent("app-2")?.kill()?;
    fleet.app("app-2")?.end();
    let gone = Facts::gather(fleet)?;
    let asked = Instant::now();
    let args = ["fleet", "rollback", "--to", OLD.name(), "--yes", "-o", "json"];
    expect_refused(&fleet.ctl, &args, "RB0", &["app-2"])
        .await?
        .expect_code(3)?;
    let refused_after = asked.elapsed();
    ensure!(
        refused_after <= REFUSED_WITHIN,
        "it took {refused_after:?} to say that app-2 is gone"
    );
    let untouched = Facts::gather(fleet)?.changes_since(&gone, true);
    expect_nothing("what is refused touches something", &untouched)?;

    options.say("… refuses. Emergency …");
    let known = archives(&fleet.host_dir("db-1").join("backups"))?;
    let args = ["--to", OLD.name(), "--runbook", "emergency"];
    let answer = roll_back(&fleet.ctl, &args).await?.expect_code(4)?;
    let emergency = answer.json()?;
    ensure!(
        emergency["state"] == "partial" && answer.text().contains("app-2"),
        "it is partial, and names app-2: {answer}"
    );
    let after = Facts::gather(fleet)?;
    let mut misfits = after.misfits(OLD);
    misfits.retain(|misfit| !misfit.contains("app-2"));
    expect_nothing("v2.9.0 does not run on the rest of the fleet", &misfits)?;
    ensure!(
        after.apps["app-2"] == gone.apps["app-2"] && after.apps["app-2"].link == before.apps["app-2"].link,
        "app-2 is not there, and was touched"
    );
    let served = curl(&fleet.nginx.url("/api/deals"))?.status;
    ensure!(served == 200, "users are answered with {served}");

    let backups = archives(&fleet.host_dir("db-1").join("backups"))?;
    let made: Vec<&PathBuf> = backups.difference(&known).collect();
    let backup = made
        .last()
        .with_context(|| format!("no backup was made: there are {backups:?}"))?;
    let list = run(Command::new(fleet.postgres.bin().join("pg_restore"))
        .arg("--list")
        .arg(backup))?;
    ensure!(
        list.contains("deal_events"),
        "the backup is not of v3.0.0's database: {list}"
    );

    options.say("app-2 is back, with v3.0.0 and nothing running. Converging …");
    fleet.agent("app-2")?.run().await?;
    fleet.wait_connected(&["app-2"]).await?;
    let converged = fleet.ctl.run(&["fleet", "converge", "--yes", "-o", "json"]).await?;
    let converged = converged.expect_code(0)?.json()?;
    expect_running(fleet, OLD)?;
    Ok(found(json!({
        "states": [emergency["state"], converged["state"]],
        "emergency_ms": emergency["ms"],
        "default_ms": default["ms"],
        "default_refused_after_ms": refused_after.as_millis(),
        "backups_made": made.len(),
        "backup_bytes": std::fs::metadata(backup).context("look at the backup")?.len(),
    })))
}

/// Archives of `pg_dump` below a directory, whatever they are called.
fn archives(dir: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        let entries = match std::fs::read_dir(&next) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.with_context(|| format!("list {}", next.display()))?,
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                pending.push(path);
            } else if std::fs::read(&path).context("read a backup")?.starts_with(ARCHIVE) {
                found.insert(path);
            }
        }
    }
    Ok(found)
}
