//! The agent killed between any two sub-steps, for real: another process runs the step and dies at the named point.

use std::process::Stdio;

use rollback_agent::driver::{Action, Driver as _, Probe};
use rollback_proto::problem::Code;

use super::{PLENTY, Restored, bare_step, driver_of};

const SELF: &str = "restore::kills::the_process_that_is_killed";

/// Runs in the other process: one step, as the environment says.
#[tokio::test]
#[ignore = "the tests below run it in a process of its own, and kill it"]
async fn the_process_that_is_killed() {
    let var = |name: &str| std::env::var(name).expect(name);
    let (config, vault) = (var("RB_CONFIG"), var("RB_VAULT"));
    let driver = driver_of(&config, &vault);
    let (action, undo) = match var("RB_STEP").as_str() {
        "stage" => (Action::Stage, false),
        "switch" => (Action::Switch, false),
        "undo" => (Action::Switch, true),
        other => panic!("no step {other}"),
    };
    let step = bare_step(&var("RB_ROLLBACK"), action, &var("RB_FROM"), &var("RB_TO"), &vault)
        .from_backup(true, Some(PLENTY))
        .reversing(undo);
    let result = if action == Action::Stage {
        driver.stage(&step).await
    } else {
        driver.switch(&step).await
    };
    result.expect("the step, where it was not killed");
}

impl Restored {
    /// Runs a step in another process, which must not survive the point.
    pub(super) async fn killed_at(&self, step: &str, point: &str) {
        let (from, to) = if step == "undo" {
            (&self.old, &self.new)
        } else {
            (&self.new, &self.old)
        };
        let dir = self.f.dir.path().display();
        let config = format!(
            "database = '{}'\nhost = '{}'\nmigrations = '{dir}/migrations'\nbackups = '{dir}/backups'\nbin_dir = '{}'",
            self.f.database,
            self.f.cluster.socket.display(),
            self.f.cluster.bin.display()
        );
        let output = tokio::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--ignored", "--exact", SELF, "--nocapture"])
            .env("RB_CONFIG", config)
            .env("RB_VAULT", self.f.dir.path().join("vault"))
            .env("RB_STEP", step)
            .env("RB_ROLLBACK", &self.f.rollback)
            .env("RB_FROM", &from.digest)
            .env("RB_TO", &to.digest)
            .env("ROLLBACK_KILL_AT", point)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .expect("run this program");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() && output.status.code().is_none(),
            "{step} was not killed at {point}: {said}"
        );
    }

    async fn is_open(&self) -> bool {
        let sql = format!(
            "SELECT datallowconn::text FROM pg_database WHERE datname = '{}'",
            self.f.database
        );
        self.f.cluster.text("postgres", &sql).await == "true"
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stage_killed_anywhere_and_repeated() {
    let r = Restored::new(false).await;
    for operation in [
        "look_at_database.after",
        "sha256_dump.after",
        "createdb.after",
        "pg_restore.after",
        "verify_figures.after",
        "carry.after",
    ] {
        r.killed_at("stage", &format!("ACTION_STAGE.{operation}")).await;
        let probe = r.f.driver.probe(&r.step(Action::Stage, None)).await;
        assert!(matches!(probe, Probe::Repeatable(_)), "{operation}: {probe:?}");
        r.assert_untouched().await;
    }
    r.killed_at("stage", "restore.staged").await;
    r.stage().await.expect("repeat");
    assert_eq!(r.databases("rollbackctl_side").await.len(), 1);
    r.switch(Some(PLENTY)).await.expect("switch");
    r.assert_restored().await;
    // A stage that is repeated then does no harm.
    r.stage().await.expect("nothing to do");
    r.assert_restored().await;
}

/// Points of an exchange, and whether the databases have their new names there and accept connections.
const POINTS: [(&str, bool, bool); 14] = [
    ("ACTION_SWITCH.connect.after", false, true),
    ("ACTION_SWITCH.read_schema.after", false, true),
    ("restore.noted", false, true),
    ("ACTION_SWITCH.disallow.after", false, false),
    ("restore.disallowed", false, false),
    ("ACTION_SWITCH.terminate.after", false, false),
    ("restore.terminated", false, false),
    ("restore.counted", false, false),
    ("ACTION_SWITCH.terminate.after#2", false, false),
    ("ACTION_SWITCH.rename.before", false, false),
    ("ACTION_SWITCH.rename.after", true, true),
    ("restore.renamed", true, true),
    ("restore.allowed", true, true),
    ("ACTION_SWITCH.smoke_test.after", true, true),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switch_and_undo_killed_anywhere_and_repeated() {
    let r = Restored::new(false).await;
    r.stage().await.expect("stage");
    for (point, exchanged, open) in POINTS {
        r.killed_at("switch", point).await;
        assert_eq!(r.is_open().await, open, "{point}");
        if !open {
            let problem = r.f.driver.observe().await.expect_err("closed");
            assert_eq!(problem.code, Code::DatabaseUnclear, "{point}: {problem}");
            assert!(problem.message.contains(&r.f.rollback), "{point}: {problem}");
        }
        match r.probe().await {
            Probe::Applied(done) => assert!(exchanged && done.loss.is_some(), "{point}: {done:?}"),
            Probe::Repeatable(seen) => assert!(seen.contains("are exchanged") == exchanged, "{point}: {seen}"),
            Probe::Indeterminate(problem) => panic!("{point}: {problem}"),
        }
        let done = r
            .switch(Some(PLENTY))
            .await
            .unwrap_or_else(|e| panic!("{point}: {e:?}"));
        assert_eq!(super::written(&done.loss.expect("a loss")), super::WRITTEN, "{point}");
        r.assert_restored().await;

        let undo = if point.starts_with("restore.") {
            format!("undo.{point}")
        } else {
            point.to_owned()
        };
        r.killed_at("undo", &undo).await;
        assert_eq!(r.is_open().await, open, "{undo}");
        match r.f.driver.probe(&r.undo_step(Action::Switch)).await {
            Probe::Applied(_) => assert!(exchanged, "{undo}"),
            Probe::Repeatable(_) => assert!(!exchanged, "{undo}"),
            Probe::Indeterminate(problem) => panic!("{undo}: {problem}"),
        }
        r.undo().await.unwrap_or_else(|e| panic!("{undo}: {e:?}"));
        r.assert_untouched().await;
    }
    // Killed, and given up: clearing up opens the database again.
    r.killed_at("switch", "restore.counted").await;
    r.discard().await;
    assert!(r.is_open().await);
    r.assert_untouched().await;
    assert!(r.databases("_").await.is_empty());
    r.f.assert_clean().await;
    // Nothing is noted any more: an undo has nothing to do.
    r.undo().await.expect("undo");
}
