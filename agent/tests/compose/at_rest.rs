//! Stopped means stopped, and running means running: restart policies, and containers without a health check.

use std::sync::Arc;
use std::time::Duration;

use rollback_agent::driver::compose::{ComposeConfig, ComposeDriver};
use rollback_agent::driver::{Action, Driver, Health, Probe};
use rollback_proto::problem::Code;

use crate::docker::{Daemon, Docker};
use crate::host::{Host, eventually, failed, write};
use crate::project::{Project, Rollback, run};

/// With `restart: always` a daemon that comes up starts what was stopped: in the middle of a change of the schema.
#[tokio::test]
async fn a_stopped_always_container_does_not_come_back_with_the_daemon() {
    let mut daemon = Daemon::start().await;
    let docker = Docker::at(Some(daemon.socket()));
    let host = Host::new();
    let dir = host.path().join(&docker.prefix);
    docker.image("v2.9.0", "");
    docker.image("v3.0.0", "");
    let service = format!("image: '{}:${{IMAGE_TAG}}', network_mode: none", docker.repository());
    let file = format!(
        "version: '3.8'\nservices:\n  app: {{{service}, restart: always}}\n  worker: {{{service}, restart: unless-stopped}}\n  control: {{{service}, restart: always}}\n"
    );
    write(&dir.join("docker-compose.yml"), &file);
    write(&dir.join(".env"), "IMAGE_TAG=v3.0.0\n");
    let address = format!("unix://{}", daemon.socket().display());
    let by_hand = |argv: &[&str]| {
        let output = run(
            &dir,
            &[("DOCKER_HOST", &address)],
            &[&["docker-compose"], argv].concat(),
        );
        assert!(output.status.success(), "{output:?}");
    };
    by_hand(&["up", "-d"]);
    let config = format!(
        "project_dir = '{}'\nservices = ['app', 'worker']\nvariable = 'IMAGE_TAG'\nsteady = '200ms'\nsocket = '{}'",
        dir.display(),
        daemon.socket().display()
    );
    let config: ComposeConfig = toml::from_str(&config).expect("config");
    let driver = ComposeDriver::new("part", config, Arc::clone(&host.vault)).expect("driver");
    let live = driver.retain("v3.0.0").await.expect("retain").revision;
    let old = driver.resolve("v2.9.0").await.expect("resolve").revision;
    let container = |service: &str| format!("{}_{service}_1", docker.prefix);
    let policy = |service: &str| docker.inspect(&container(service), "{{.HostConfig.RestartPolicy.Name}}");
    let step = |action, from, to| host.step_within(action, from, to, Duration::from_secs(120));

    // By hand the trap itself; and what somebody stopped before the rollback is no safer.
    by_hand(&["stop", "-t", "1", "control", "app"]);
    for _ in 0..2 {
        driver.stop(&step(Action::Stop, &live, &live)).await.expect("stop");
    }
    assert!(matches!(
        driver.probe(&step(Action::Stop, &live, &live)).await,
        Probe::Applied(_)
    ));
    daemon.kill();
    daemon.run().await;
    eventually("the daemon starts what still has the policy", || {
        docker.running(&container("control"))
    })
    .await;
    assert!(!docker.running(&container("app")), "stopped stays stopped");
    assert!(!docker.running(&container("worker")));

    // Started again at the same release, it is the same container, with its own policy.
    let id = docker.inspect(&container("app"), "{{.Id}}");
    for _ in 0..2 {
        driver.start(&step(Action::Start, &live, &live)).await.expect("start");
    }
    assert_eq!(docker.inspect(&container("app"), "{{.Id}}"), id);
    assert_eq!(
        (policy("app"), policy("worker")),
        ("always".into(), "unless-stopped".into())
    );
    driver.stop(&step(Action::Stop, &live, &live)).await.expect("stop");
    driver.switch(&step(Action::Switch, &live, &old)).await.expect("switch");
    driver.start(&step(Action::Start, &old, &old)).await.expect("start");
    assert_eq!(
        (policy("app"), policy("worker")),
        ("always".into(), "unless-stopped".into())
    );
}

/// Without a health check there is nothing but staying alive, and that takes a moment.
#[tokio::test]
async fn a_container_without_a_health_check_that_ends_soon_fails_the_start() {
    let project = Project::new();
    let config = project.config("");
    let config: String = config
        .lines()
        .filter(|l| !l.starts_with("health"))
        .map(|l| format!("{l}\n"))
        .collect();
    let driver = project.driver_of(&config);
    project.declare("v3.0.0");
    project.by_hand(&["up", "-d"]);
    project.image(
        "app",
        "v2.8.0",
        "CMD [\"/bin/busybox\", \"sh\", \"-c\", \"sleep 1; exit 3\"]",
    );
    let rollback = Rollback {
        project: &project,
        driver: &driver,
        from: driver.retain("v3.0.0").await.expect("retain").revision,
        to: driver.resolve("v2.8.0").await.expect("resolve").revision,
    };
    for action in [Action::Stage, Action::Stop, Action::Switch] {
        rollback.step(action).await.expect("before the start");
    }
    assert_eq!(failed(rollback.step(Action::Start).await).code, Code::Unhealthy);
    assert_eq!(driver.observe().await.expect("observe").health, Health::Stopped);
}

/// Of a start's time enough is kept to stop again what does not become healthy.
#[tokio::test]
async fn a_start_whose_time_is_over_leaves_nothing_running() {
    let project = Project::new();
    let driver = project.driver();
    project.declare("v3.0.0");
    project.by_hand(&["up", "-d"]);
    project.image("app", "v2.8.0", "CMD [\"/bin/busybox\", \"sleep\", \"1000000\"]");
    let from = driver.retain("v3.0.0").await.expect("retain").revision;
    let to = driver.resolve("v2.8.0").await.expect("resolve").revision;
    let rollback = Rollback {
        project: &project,
        driver: &driver,
        from,
        to: to.clone(),
    };
    for action in [Action::Stage, Action::Stop, Action::Switch] {
        rollback.step(action).await.expect("before the start");
    }
    // Less than the health check's own time.
    let start = project
        .host
        .step_within(Action::Start, &to, &to, Duration::from_secs(16));
    let problem = failed(driver.start(&start).await);
    assert_eq!(problem.code, Code::Unhealthy, "{problem}");
    assert_eq!(
        driver.observe().await.expect("observe").health,
        Health::Stopped,
        "{problem}"
    );
}
