//! The daemon goes away and comes back, in the middle of moves.

use rollback_agent::driver::{Action, Driver, Failure};
use rollback_proto::problem::Code;

use crate::docker::{Daemon, Docker};
use crate::fixture::{App, PLAIN, act};
use crate::host::eventually;

fn app(daemon: &Daemon) -> App {
    let docker = Docker::at(Some(daemon.socket()));
    let config = format!("socket = '{}'", daemon.socket().display());
    App::at(docker, PLAIN, &["--network", "none", "--restart", "always"], &config)
}

#[tokio::test]
async fn a_stopped_always_container_does_not_come_back_with_the_daemon() {
    let mut daemon = Daemon::start().await;
    let app = app(&daemon);
    // The trap itself: a container with `always` that is only stopped comes back with the daemon.
    let image = format!("{}:v2.9.0", app.docker.repository());
    let control = app.docker.name("control");
    let run = [
        "run",
        "-d",
        "--network",
        "none",
        "--restart",
        "always",
        "--name",
        &control,
        &image,
    ];
    app.docker.run(&run);
    app.docker.run(&["stop", &control]);
    assert!(!app.docker.running(&control));
    app.forward(Action::Stage).await.expect("stage");
    app.forward(Action::Stop).await.expect("stop");
    daemon.kill();
    daemon.run().await;
    eventually("the daemon starts what still has the policy", || {
        app.docker.running(&control)
    })
    .await;
    assert!(!app.docker.running(&app.name()), "stopped stays stopped");
    assert!(!app.docker.running(&app.staged()), "staged is not started");
    app.forward(Action::Switch).await.expect("switch");
    app.forward(Action::Start).await.expect("start");
    assert_eq!(app.image_of(&app.name()), app.old.digest);
}

#[tokio::test]
async fn a_daemon_that_is_restarted_in_the_middle_of_a_switch_is_waited_for() {
    let mut daemon = Daemon::start().await;
    let app = app(&daemon);
    app.forward(Action::Stage).await.expect("stage");
    app.forward(Action::Stop).await.expect("stop");
    app.docker.run(&["rename", &app.name(), &app.before()]);
    daemon.kill();
    daemon.spawn();
    // Between the renames, and the daemon is not there yet. Looking fails before anything is touched: the step fails or
    // converges, and says so; repeated, it converges.
    let first = app.forward(Action::Switch).await;
    match &first {
        Ok(_) => {}
        Err(Failure::Failed(problem) | Failure::Indeterminate(problem)) => {
            assert_eq!(problem.code, Code::EngineFailed);
        }
    }
    daemon.run_until_ready().await;
    app.forward(Action::Switch).await.expect("switch");
    assert_eq!(app.image_of(&app.name()), app.old.digest);
    assert_eq!(app.image_of(&app.before()), app.new.digest);
    app.forward(Action::Start).await.expect("start");
    assert!(app.driver.observe().await.is_ok());
}

#[tokio::test]
async fn a_switch_runs_into_a_daemon_that_dies_and_converges_when_it_is_back() {
    let mut daemon = Daemon::start().await;
    let app = app(&daemon);
    app.forward(Action::Stage).await.expect("stage");
    app.forward(Action::Stop).await.expect("stop");
    // The daemon is killed as soon as the first rename is seen on its disk, and started again at once.
    let (name, before) = (app.name(), app.before());
    let id = app.docker.inspect(&name, "{{.Id}}");
    let config = daemon.container_config(&id);
    let (driver, host) = (app.driver.clone(), &app.host);
    let switch = act(&driver, host, Action::Switch, &app.new, &app.old);
    let killer = async {
        eventually("the old container is renamed", || {
            std::fs::read_to_string(&config).is_ok_and(|text| text.contains(&before))
        })
        .await;
        daemon.kill();
        daemon.spawn();
    };
    let (switched, ()) = tokio::join!(switch, killer);
    daemon.run_until_ready().await;
    switched.expect("the switch waits for the daemon and goes on");
    assert_eq!(app.image_of(&name), app.old.digest);
    assert_eq!(app.image_of(&before), app.new.digest);
}

#[tokio::test]
async fn a_daemon_that_does_not_come_back_is_said_to_be_gone() {
    let mut daemon = Daemon::start().await;
    let app = app(&daemon);
    app.forward(Action::Stage).await.expect("stage");
    app.forward(Action::Stop).await.expect("stop");
    daemon.kill();
    match app.forward(Action::Switch).await {
        Err(Failure::Failed(problem)) => assert_eq!(problem.code, Code::EngineFailed, "nothing was touched yet"),
        other => panic!("{other:?}"),
    }
    assert_eq!(app.blockers().await.len(), 1);
    daemon.run().await;
    // No lasting error: the same driver goes on.
    app.forward(Action::Switch).await.expect("switch");
    app.forward(Action::Start).await.expect("start");
}
