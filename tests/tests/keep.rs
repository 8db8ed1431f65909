//! A fleet that is kept: it outlives the harness, and its script ends all of it, also what was restarted by hand, and
//! nobody else.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use fleet_tests::ctl::Ctl;
use fleet_tests::fleet::Fleet;
use fleet_tests::process::{is_alive, run};

#[tokio::test(flavor = "multi_thread")]
async fn the_script_ends_what_belongs_to_the_fleet_and_nobody_else() {
    if let Err(error) = story().await {
        panic!("{error:#}");
    }
}

async fn story() -> Result<()> {
    let mut fleet = Fleet::builder().keep(true).start().await?;
    fleet.deploy_both().await?;
    let dir = fleet.dir().to_owned();
    let (program, config) = (
        fleet.agent("app-1")?.program().to_owned(),
        fleet.agent("app-1")?.spec.config(),
    );
    fleet.agent("app-1")?.kill()?;
    let ctl = fleet.ctl.clone();
    let said = fleet.leave_running()?;
    let reader = strangers(&dir, &program, &config, &ctl).await;
    // Whatever was found, nothing is left behind.
    let ended = run(Command::new("sh").arg(dir.join("stop")));
    let mut reader = reader.with_context(|| said)?;
    let alive = is_alive(reader.id());
    reader.kill().context("end the reader")?;
    reader.wait().context("wait for the reader")?;
    ended?;
    ensure!(alive, "a stranger was ended");
    ensure!(!dir.exists(), "{} is left over", dir.display());
    let left = of_fleet(&dir);
    ensure!(left.is_empty(), "these live on: {left:?}");
    Ok(())
}

/// Starts app-1's agent by hand, so that no file of the harness knows its PID; and a reader of the fleet's log, which
/// has the directory in its command line, and whose PID the application's file names.
async fn strangers(dir: &Path, program: &Path, config: &Path, ctl: &Ctl) -> Result<Child> {
    ctl.run(&["release", "list"]).await?.expect_code(0)?;
    let quiet = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.process_group(0).spawn()
    };
    let mut agent = Command::new(program);
    let mut agent = quiet(agent.args(["run", "--config"]).arg(config)).context("start an agent by hand")?;
    // Reaped here, or it would live on as a zombie of ours.
    std::thread::spawn(move || agent.wait());
    let reader =
        quiet(Command::new("tail").arg("-f").arg(dir.join("log/coordinator.log"))).context("start a reader")?;
    std::fs::write(dir.join("hosts/app-2/opt/zekka/run/app.pid"), reader.id().to_string())
        .context("write a stranger's PID")?;
    Ok(reader)
}

/// Living processes with the directory in their command lines.
fn of_fleet(dir: &Path) -> Vec<PathBuf> {
    let needle = format!("{}/", dir.display());
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let holds = |path: &PathBuf| {
        std::fs::read(path.join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&needle))
    };
    entries.flatten().map(|e| e.path()).filter(holds).collect()
}
