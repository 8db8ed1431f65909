//! One host with a real systemd. v3.0.0 is live; v2.9.0 was never recorded, and is there as `backups/v2.9.0.tar.gz`, its env
//! file as `.env.production.backup`. `release import` finds both, and the host goes back to it.
//!
//! Before that, archives that would write elsewhere are refused, and v2.9.0 is never healthy once: v3.0.0 runs again. The
//! unit has `Restart=always`: had the agent ended the process behind systemd's back, it would have been there again at once,
//! and noted so. Afterwards somebody does end it like that: what comes back is v2.9.0.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::on_control;
use crate::control::Control;
use crate::ctl::Answer;
use crate::deployed::release::archive;
use crate::deployed::unit::{UNIT, UnitApp};
use crate::deployed::{Deployed, deploy};
use crate::facts::curl;
use crate::prober::Prober;
use crate::process::run;
use crate::scenario::{Found, Options, found};
use crate::wait;
use crate::zekka::{Version, write_secret};

/// The agent's patience, which is spent in full once.
const PATIENCE: &str = "6s";

const REVIVED_WITHIN: Duration = Duration::from_secs(20);

/// Answers that are seen before and after the rollback.
const ANSWERED: usize = 10;

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    options.say("Starting a host with systemd, and v3.0.0 on it …");
    let mut app = UnitApp::lay_out(control, "app-1")?;
    app.healthy_within = PATIENCE;
    deploy(&app, Version::V3_0_0).await?;
    app.add_agent(control).await?;
    control.ctl.record("v3.0.0").await?.expect_code(0)?;
    let backups = app.host.root.join("backups");
    let packed = archive(&control.binaries, Version::V2_9_0, &backups)?;
    let refused = hostile_archives_are_refused(control, &app, &backups, &packed).await?;

    let backup = app.host.root.join(".env.production.backup");
    write_secret(&backup, &app.env(Version::V2_9_0))?;
    let imported = control
        .ctl
        .run(&["release", "import", "v2.9.0", "-o", "json"])
        .await?
        .expect_code(0)?;
    ensure!(
        imported.json()?["missing"] == 0 && !app.host.release_dir(Version::V2_9_0).exists(),
        "an import only finds and keeps: {imported}"
    );
    let before = judge(&app, Version::V3_0_0)?;

    options.say("v2.9.0 will never be healthy. Rolling back …");
    app.host.set_fault(Version::V2_9_0, true, Duration::ZERO)?;
    let undone = control.ctl.roll_back("v2.9.0").await?.expect_code(5)?;
    let result = undone.json()?;
    ensure!(
        result["state"] == "undone" && result["blocked"] == false && result["problem"]["code"] == "RB0500",
        "it is {} because of {}: {undone}",
        result["state"],
        result["problem"]
    );
    let back = judge(&app, Version::V3_0_0)?;
    ensure!(back != before, "v3.0.0 was never stopped: {back}");

    options.say("v2.9.0 is healthy again. Rolling back …");
    app.host.clear_faults()?;
    let (effects, prober) = (app.host.effects()?.len(), Prober::start(app.url("/api/version"))?);
    prober.until_served(ANSWERED).await?;
    let answer = control.ctl.roll_back("v2.9.0").await?.expect_code(0)?;
    prober.until_served(ANSWERED).await?;
    let samples = prober.stop().await?;
    let pid = judge(&app, Version::V2_9_0)?;
    expect_content(&app, &packed)?;
    let noted = app.host.effects()?.split_off(effects);
    let expected = [("stop", "v3.0.0"), ("start", "v2.9.0")].map(|(e, v)| (e.to_owned(), v.to_owned()));
    ensure!(noted == expected, "the application noted {noted:?}, not {expected:?}");

    app.systemd.exec(&["sh", "-c", &format!("kill -KILL {pid}")])?;
    wait::until_true("systemd brings v2.9.0 back", REVIVED_WITHIN, async || {
        app.served().is_ok_and(|served| served.pid != u64::from(pid))
    })
    .await?;
    app.served()?.expect(Version::V2_9_0)?;
    let revived = app.facts()?;
    ensure!(revived.automatic_restarts == 1, "systemd says {revived:?}");

    let downtime = samples.downtime().context("users got answers")?;
    Ok(found(json!({
        "exit_code": answer.code,
        "state": answer.json()?["state"],
        "undone_exit_code": undone.code,
        "refused_archives": refused,
        "downtime_ms": downtime.longest.as_millis(),
    })))
}

/// This version runs, whomever one asks. Its PID, inside.
fn judge(app: &UnitApp, version: Version) -> Result<u32> {
    let unit = app.facts()?;
    ensure!(
        unit.state == "active (running)" && unit.automatic_restarts == 0 && unit.policy == "always",
        "systemd says {unit:?}"
    );
    let (current, dir) = (app.host.current(), app.host.release_dir(version));
    let link = std::fs::read_link(&current).context("read the link")?;
    ensure!(
        std::fs::canonicalize(&current).is_ok_and(|live| live == dir),
        "{} leads to {}",
        current.display(),
        link.display()
    );
    let cwd = app.cwd(unit.pid)?;
    ensure!(
        cwd == dir,
        "{UNIT} works in {}, not in {}",
        cwd.display(),
        dir.display()
    );
    let greeting = app.variable(unit.pid, "GREETING")?;
    ensure!(
        greeting.as_deref() == Some(version.greeting()),
        "{UNIT} has GREETING {greeting:?}"
    );
    let env = std::fs::read_to_string(app.host.env_file()).context("read the env file")?;
    ensure!(env == app.env(version), "the env file is {env:?}");
    let served = app.served()?;
    served.expect(version)?;
    ensure!(
        served.pid == u64::from(unit.pid),
        "process {} answers, {UNIT}'s is {}",
        served.pid,
        unit.pid
    );
    let health = curl(&app.url("/api/health"))?;
    ensure!(
        health.status == 200,
        "health answers {}: {}",
        health.status,
        health.body
    );
    Ok(unit.pid)
}

/// What is live is what tar and diff make of the archive.
fn expect_content(app: &UnitApp, packed: &Path) -> Result<()> {
    let temp = tempfile::tempdir().context("make a directory to unpack")?;
    run(Command::new("tar")
        .arg("--extract")
        .arg("--file")
        .arg(packed)
        .arg("--directory")
        .arg(temp.path()))?;
    let dir = app.host.release_dir(Version::V2_9_0);
    run(Command::new("diff")
        .args(["--recursive", "--brief"])
        .arg(temp.path().join(Version::V2_9_0.name()))
        .arg(&dir))
    .with_context(|| format!("{} is not what was packed", dir.display()))?;
    Ok(())
}

/// Puts archives beside the good one that lead out of their directory or are not what their checksum says, and imports
/// each. How many were refused.
async fn hostile_archives_are_refused(
    control: &Control,
    app: &UnitApp,
    backups: &Path,
    packed: &Path,
) -> Result<usize> {
    let temp = tempfile::tempdir().context("make a directory to pack")?;
    std::fs::write(temp.path().join("evil"), "written elsewhere\n").context("write a file to pack")?;
    std::os::unix::fs::symlink("/etc", temp.path().join("link")).context("make a link to pack")?;
    let pack = |name: &str, more: &[&str]| {
        let mut tar = Command::new("tar");
        tar.args(["--create", "--gzip", "--absolute-names", "--file"]);
        tar.arg(backups.join(name)).arg("--directory").arg(temp.path());
        run(tar.args(more)).map(drop)
    };
    // From the vault's or a release's directory, four levels lead to the host's.
    pack("v2.8.0.tar.gz", &["--transform=s,^,../../../../,", "evil"])?;
    pack("v2.8.1.tar.gz", &["--transform=s,^evil,link/evil,", "link", "evil"])?;
    pack("v2.8.2.tar.gz", &["--transform=s,^,/tmp/,", "evil"])?;
    std::fs::copy(packed, backups.join("v2.8.3.tar.gz")).context("copy the archive")?;
    let sum = format!("{}  v2.8.3.tar.gz\n", "0".repeat(64));
    std::fs::write(backups.join("v2.8.3.tar.gz.sha256"), sum).context("write a wrong checksum")?;

    let before = everything(control)?;
    let cases = [
        ("v2.8.0", "/../evil"),
        ("v2.8.1", "beneath"),
        ("v2.8.2", "absolute"),
        ("v2.8.3", "sha256"),
    ];
    for (name, why) in cases {
        let answer = control.ctl.run(&["release", "import", name, "-o", "json"]).await?;
        let answer = answer.expect_code(1)?;
        let json = answer.json()?;
        let findings = json["findings"].as_array().context("the answer lists findings")?;
        let api = findings.iter().find(|f| f["component"] == "api");
        let problem = api.map_or(&Value::Null, |f| &f["problem"]);
        let message = problem["message"].as_str().unwrap_or_default();
        ensure!(
            problem["code"] == "RB0513" && message.contains(why),
            "{name} was not refused for {why}: {answer}"
        );
    }
    let listed = control.ctl.run(&["release", "list"]).await?.expect_code(0)?;
    ensure!(
        cases.iter().all(|(name, _)| !listed.stdout.contains(name)),
        "a release was stored: {listed}"
    );
    expect_nothing_new(&before, &everything(control)?, &listed)?;
    for place in ["/etc/evil", "/tmp/evil"] {
        ensure!(
            app.systemd.exec(&["test", "!", "-e", place]).is_ok(),
            "{place} was written inside"
        );
    }
    Ok(cases.len())
}

/// Names of everything in the fleet's directory.
fn everything(control: &Control) -> Result<Vec<String>> {
    let out = run(Command::new("find").arg(control.dir()))?;
    Ok(out.lines().map(str::to_owned).collect())
}

fn expect_nothing_new(before: &[String], after: &[String], told: &Answer) -> Result<()> {
    let evil = |path: &&String| path.ends_with("/evil");
    let found: Vec<&String> = after.iter().filter(evil).filter(|p| !before.contains(p)).collect();
    ensure!(found.is_empty(), "{found:?} were written: {told}");
    Ok(())
}
