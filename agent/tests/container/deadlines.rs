//! Time and space run out in the middle of a move: what is left must be known, and the way back open.

use std::process::Command;
use std::time::{Duration, Instant};

use rollback_agent::driver::{Action, Driver, Health};
use rollback_proto::problem::Code;

use crate::fixture::{App, Images, PLAIN};
use crate::host::{failed, free_port};

/// The engine goes on stopping after a step was given up, and kills what the undo has just started again.
#[tokio::test]
async fn a_container_that_does_not_stop_is_killed_before_the_step_is_given_up() {
    let deaf = ["--", "sh", "-c", "trap '' TERM; while :; do sleep 1; done"];
    let app = App::new(PLAIN, &deaf, "stop_timeout = '60s'");
    let limit = Duration::from_secs(4);
    let begun = Instant::now();
    let stop = app.host.step_within(Action::Stop, &app.new, &app.new, limit);
    app.driver.stop(&stop).await.expect("stop");
    assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
    assert!(!app.docker.running(&app.name()));
}

/// What is kept of the step's time for stopping again leaves some to become healthy, however short the step is.
#[tokio::test]
async fn a_start_with_little_time_still_waits_for_health() {
    let port = free_port().to_string();
    let env = format!("PORT={port}");
    let health = format!(
        "stop_timeout = '60s'\nhealth = {{ http = 'http://127.0.0.1:{port}/version', version = '/version', within = '20s' }}"
    );
    let slow = [
        "--network",
        "host",
        "-e",
        &env,
        "--",
        "sh",
        "-c",
        "sleep 2; exec /serve",
    ];
    let app = App::new(PLAIN, &slow, &health);
    app.docker.run(&["kill", &app.name()]);
    let start = app
        .host
        .step_within(Action::Start, &app.new, &app.new, Duration::from_secs(12));
    app.driver.start(&start).await.expect("start");
}

/// The engine waits longer and longer before it starts such a container again: between two deaths it looks steady.
#[tokio::test]
async fn a_container_that_is_restarted_again_and_again_is_not_steady() {
    let images = Images {
        old: "ENTRYPOINT [\"sh\", \"-c\", \"exit 7\"]",
        new: "",
    };
    let app = App::new(images, &["--restart", "always"], "");
    for action in [Action::Stage, Action::Stop, Action::Switch] {
        app.forward(action).await.expect("move");
    }
    let problem = failed(app.forward(Action::Start).await);
    assert_eq!(problem.code, Code::Unhealthy);
    assert!(problem.message.contains("again and again"), "{}", problem.message);
    assert!(!app.docker.running(&app.name()));
    app.undo().await;
    assert_eq!(app.driver.observe().await.expect("observe").health, Health::Healthy);
}

/// A file system of a few pages over the vault.
struct Small(std::path::PathBuf);

impl Small {
    fn over(dir: std::path::PathBuf) -> Self {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=128k", "tmpfs"])
            .arg(&dir)
            .status();
        assert!(mounted.expect("mount").success());
        Self(dir)
    }

    fn fill(&self) {
        let full = std::fs::write(self.0.join("ballast"), vec![0; 1 << 20]).expect_err("no space");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_blocks_neither_the_start_nor_the_way_back() {
    let app = App::new(PLAIN, &["--restart", "always"], "");
    let live = app.docker.inspect(&app.name(), "{{.Id}}");
    let vault = Small::over(app.host.path().join("vault"));
    for action in [Action::Stage, Action::Stop, Action::Switch] {
        app.forward(action).await.expect("move");
    }
    vault.fill();
    app.forward(Action::Start).await.expect("start");
    app.undo().await;
    assert_eq!(app.docker.inspect(&app.name(), "{{.Id}}"), live);
    assert!(app.docker.running(&app.name()));
    let policy = app.docker.inspect(&app.name(), "{{.HostConfig.RestartPolicy.Name}}");
    assert_eq!(policy, "always");
}
