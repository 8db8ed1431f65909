//! `kill -9` of the agent while the tool runs: the tool goes on without it.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rollback_agent::driver::postgres::PostgresDriver;
use rollback_agent::driver::{Action, Driver as _, Probe, Revision};
use rollback_agent::step::{NoProgress, StepContext};
use rollback_agent::vault::Vault;

use super::{NAMES, file, tooled, two_releases};
use crate::fixture::{CONTENT, Fixture};

/// What the other process is told: configuration, directory, rollback, and the digests of both ends.
const TOLD: &str = "TEST_SWITCH";

/// This test is also that other process.
const ITSELF: &str = "tool::killed::a_tool_that_outlives_the_agent_is_waited_for";

/// The agent, as a process that can be killed.
async fn switch_as_told(told: &str) {
    let told: Vec<&str> = told.split('\n').collect();
    let text = std::fs::read_to_string(told[0]).expect("read the configuration");
    let vault = Arc::new(Vault::open(told[1]).expect("vault"));
    let driver = PostgresDriver::new("db", toml::from_str(&text).expect("configuration"), vault.clone());
    let revision = |digest: &str| Revision {
        version: String::new(),
        digest: digest.to_owned(),
    };
    let step = StepContext::new(
        told[2].to_owned(),
        "db".to_owned(),
        Action::Switch,
        revision(told[3]),
        revision(told[4]),
        Duration::from_secs(60),
        vault,
        Arc::new(NoProgress),
    );
    let done = driver.expect("driver").switch(&step).await;
    panic!("nobody killed it: {done:?}");
}

fn begin(f: &Fixture, from: &Revision, to: &Revision) -> Child {
    let tool = f.config.tool.as_ref().expect("a tool");
    let text = format!(
        "database = '{}'\nhost = '{}'\nbackups = '{}'\nbin_dir = '{}'\n[tool]\ndirectory = '{}'\nstatus = {:?}\n\
         applied = '{}'\ndown = {:?}\nup = {:?}\ntables = {:?}\n[tool.env]\nPATH = '{}'",
        f.database,
        f.config.host,
        f.config.backups.display(),
        f.cluster.bin.display(),
        tool.directory.display(),
        tool.status,
        tool.applied.as_deref().unwrap_or_default(),
        tool.down,
        tool.up,
        tool.tables,
        tool.env["PATH"],
    );
    let config = f.dir.path().join("config.toml");
    std::fs::write(&config, text).expect("write the configuration");
    let paths = format!("{}\n{}", config.display(), f.dir.path().join("vault").display());
    let told = format!("{paths}\n{}\n{}\n{}", f.rollback, from.digest, to.digest);
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", ITSELF])
        .env(TOLD, told)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start another of this program")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_that_outlives_the_agent_is_waited_for() {
    if let Ok(told) = std::env::var(TOLD) {
        return switch_as_told(&told).await;
    }
    let f = tooled(&[]).await;
    let (old, new) = two_releases(&f).await;
    let before = f.text(CONTENT).await;
    f.stage(&new, &old).await.expect("stage");
    // As slow to begin as npm: for a while the tool has no session in the server.
    let script = std::fs::read_to_string(file(&f, "tool.sh")).expect("read the tool");
    let slow = format!("case $1 in status) ;; *) touch begun; sleep 1.5 ;; esac\n{script}");
    std::fs::write(file(&f, "tool.sh"), slow).expect("write");
    for (from, to, names) in [
        (&new, &old, "2024-users 2024-scores"),
        (&old, &new, "2024-users 2024-notes"),
    ] {
        let mut agent = begin(&f, from, to);
        while !file(&f, "begun").exists() {
            let ended = agent.try_wait().expect("wait");
            assert!(ended.is_none(), "{ended:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        agent.kill().expect("kill -9");
        agent.wait().expect("wait");
        match f.driver.probe(&f.step(Action::Switch, from, to)).await {
            Probe::Repeatable(why) => assert!(why.contains("after 1 of 2 parts"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(f.text(NAMES).await, names);
        f.switch(from, to).await.expect("go on");
        std::fs::remove_file(file(&f, "begun")).expect("remove");
    }
    assert_eq!(
        (f.observe().await.digest, f.text(CONTENT).await),
        (new.digest.clone(), before)
    );
    f.finish(&new, &new).await;
    assert_eq!(f.kept_schemas().await, "0");
}
