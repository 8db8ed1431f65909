//! What `prepare` blocks, each with something on the real engine that would make a later move fail.

use rollback_agent::driver::{Action, Driver};
use rollback_proto::problem::Code;

use crate::docker::{Daemon, Docker};
use crate::fixture::{App, PLAIN, act, driver};
use crate::host::{Host, failed, free_port, revision};

#[tokio::test]
async fn auto_remove_is_refused() {
    let app = App::new(PLAIN, &["--rm"], "");
    let blockers = app.blockers().await;
    assert!(
        matches!(&blockers[..], [(Code::ContainerUnfit, message)] if message.contains("--rm")),
        "{blockers:?}"
    );
}

#[tokio::test]
async fn a_name_conflict_is_a_blocker_and_the_foreign_container_is_not_touched() {
    let app = App::new(PLAIN, &[], "");
    let image = format!("{}:v2.9.0", app.docker.repository());
    let id = app.docker.run(&["create", "--name", &app.before(), &image, "foreign"]);
    let blockers = app.blockers().await;
    assert!(
        matches!(&blockers[..], [(Code::ContainerUnfit, message)] if message.contains("before-rb-1")),
        "{blockers:?}"
    );
    app.docker.run(&["rm", &id]);
    let id = app.docker.run(&["create", "--name", &app.staged(), &image, "foreign"]);
    assert_eq!(app.blockers().await.len(), 1);
    assert_eq!(failed(app.forward(Action::Stage).await).code, Code::ContainerUnfit);
    app.forward(Action::Discard).await.expect("discard");
    assert_eq!(app.docker.inspect(&app.staged(), "{{.Id}}"), id);
}

#[tokio::test]
async fn ports_of_others_and_shared_networks_are_blockers() {
    let port = free_port();
    let publish = format!("{port}:8080");
    let app = App::new(PLAIN, &["-p", &publish], "");
    assert_eq!(app.blockers().await, []);
    let image = format!("{}:v2.9.0", app.docker.repository());
    let (guest, thief) = (app.docker.name("guest"), app.docker.name("thief"));
    let joined = format!("container:{}", app.name());
    app.docker
        .run(&["create", "--name", &guest, "--network", &joined, &image]);
    let blockers = app.blockers().await;
    assert!(
        matches!(&blockers[..], [(Code::ContainerUnfit, message)] if message.contains(&guest)),
        "{blockers:?}"
    );
    app.docker.run(&["rm", &guest]);
    app.docker.run(&["stop", "-t", "1", &app.name()]);
    app.docker.run(&["run", "-d", "--name", &thief, "-p", &publish, &image]);
    let blockers = app.blockers().await;
    assert!(
        matches!(&blockers[..], [(Code::ContainerUnfit, message), ..] if message.contains(&thief)),
        "{blockers:?}"
    );
}

#[tokio::test]
async fn a_port_that_was_taken_in_the_meantime_leaves_nothing_running() {
    let port = free_port();
    let publish = format!("{port}:8080");
    let app = App::new(PLAIN, &["-p", &publish, "--restart", "always"], "");
    for action in [Action::Stage, Action::Stop, Action::Switch] {
        app.forward(action).await.expect("move");
    }
    let image = format!("{}:v2.9.0", app.docker.repository());
    let thief = app.docker.name("thief");
    app.docker.run(&["run", "-d", "--name", &thief, "-p", &publish, &image]);
    let problem = failed(app.forward(Action::Start).await);
    assert!(problem.message.contains("port"), "{}", problem.message);
    assert!(!app.docker.running(&app.name()));
    app.docker.run(&["rm", "-f", &thief]);
    app.forward(Action::Start).await.expect("start, repeated");
    let policy = app.docker.inspect(&app.name(), "{{.HostConfig.RestartPolicy.Name}}");
    assert_eq!(policy, "always");
}

#[tokio::test]
async fn a_container_that_was_replaced_by_hand_is_not_touched() {
    let app = App::new(PLAIN, &[], "");
    let other = app.docker.image("v9.9.9", "");
    app.docker.run(&["rm", "-f", &app.name()]);
    let image = format!("{}:v9.9.9", app.docker.repository());
    app.docker.run(&["run", "-d", "--name", &app.name(), &image]);
    assert!(
        app.blockers()
            .await
            .iter()
            .any(|(code, _)| *code == Code::WrongRevision)
    );
    for action in [Action::Stage, Action::Switch, Action::Start] {
        assert_eq!(
            failed(app.forward(action).await).code,
            Code::WrongRevision,
            "{action:?}"
        );
    }
    assert_eq!(app.image_of(&app.name()), other);
    assert!(app.docker.running(&app.name()));
}

#[tokio::test]
async fn a_running_container_is_not_switched() {
    let app = App::new(PLAIN, &[], "");
    app.forward(Action::Stage).await.expect("stage");
    assert_eq!(failed(app.forward(Action::Switch).await).code, Code::StillRunning);
    assert!(app.docker.running(&app.name()));
}

/// Pruning is for a daemon of the test's own: it would take images of other tests away.
#[tokio::test]
async fn a_pruned_image_is_blocked_at_preflight_and_spared_when_retained() {
    let daemon = Daemon::start().await;
    let docker = Docker::at(Some(daemon.socket()));
    let host = Host::new();
    let config = format!("socket = '{}'", daemon.socket().display());
    let driver = driver(&docker, &host, &config);
    let (old, new) = (docker.image("v2.9.0", ""), docker.image("v3.0.0", ""));
    let name = docker.name("app");
    let run = |tag: &str| {
        let image = format!("{}:{tag}", docker.repository());
        docker.run(&["run", "-d", "--network", "none", "--name", &name, &image]);
    };
    run("v2.9.0");
    let kept = driver.retain("rel-1").await.expect("retain").revision;
    assert_eq!((kept.version.as_str(), kept.digest.as_str()), ("v2.9.0", old.as_str()));
    docker.run(&["rm", "-f", &name]);
    run("v3.0.0");
    let live = driver.observe().await.expect("observe").revision;
    assert_eq!(live, revision("", &new));
    let prepare = async || {
        let findings = driver.prepare(&host.step(Action::Prepare, &live, &kept)).await;
        findings.into_iter().map(|f| f.problem.code).collect::<Vec<_>>()
    };

    // Somebody takes the application's tag away and prunes: without our tag the image would be gone.
    docker.run(&["rmi", &format!("{}:v2.9.0", docker.repository())]);
    docker.run(&["image", "prune", "-f"]);
    assert_eq!(docker.image_id(&old), old);
    assert_eq!(prepare().await, []);
    act(&driver, &host, Action::Stage, &live, &kept).await.expect("stage");
    act(&driver, &host, Action::Discard, &live, &kept)
        .await
        .expect("discard");

    // Nothing but a container spares an image from -a.
    docker.run(&["image", "prune", "-a", "-f"]);
    assert_eq!(prepare().await, [Code::RevisionMissing]);
    let problem = failed(act(&driver, &host, Action::Stage, &live, &kept).await);
    assert_eq!(problem.code, Code::RevisionMissing);
}

/// A link follows the container, not the name: the linked one would go on asking the old one, and not start again.
#[tokio::test]
async fn a_container_that_is_linked_to_the_live_one_is_a_blocker() {
    let app = App::new(PLAIN, &[], "");
    let (guest, link) = (app.docker.name("guest"), format!("{}:api", app.name()));
    let image = format!("{}:v2.9.0", app.docker.repository());
    app.docker.run(&["create", "--name", &guest, "--link", &link, &image]);
    let blockers = app.blockers().await;
    assert!(
        matches!(&blockers[..], [(Code::ContainerUnfit, message)] if message.contains(&guest) && message.contains("link")),
        "{blockers:?}"
    );
}

#[tokio::test]
async fn a_port_of_another_protocol_is_another_port() {
    let port = free_port();
    let (tcp, udp) = (format!("{port}:8080/tcp"), format!("{port}:8080/udp"));
    let app = App::new(PLAIN, &["-p", &tcp], "");
    let image = format!("{}:v2.9.0", app.docker.repository());
    app.docker
        .run(&["run", "-d", "--name", &app.docker.name("other"), "-p", &udp, &image]);
    assert_eq!(app.blockers().await, []);
}

/// It would not be started again: nothing of ours knows how.
#[tokio::test]
async fn what_was_deployed_by_hand_since_the_plan_is_not_stopped() {
    let app = App::new(PLAIN, &[], "");
    app.forward(Action::Stage).await.expect("stage");
    app.docker.image("v9.9.9", "");
    app.docker.run(&["rm", "-f", &app.name()]);
    let image = format!("{}:v9.9.9", app.docker.repository());
    app.docker.run(&["run", "-d", "--name", &app.name(), &image]);
    let stop = act(&app.driver, &app.host, Action::Stop, &app.new, &app.new).await;
    assert_eq!(failed(stop).code, Code::WrongRevision);
    assert!(app.docker.running(&app.name()));
}

/// A value that was given beside the file has precedence over it, and cannot be told from a file that was edited since.
#[tokio::test]
async fn a_value_that_is_not_the_env_files_is_said_before_it_is_lost() {
    let host = Host::new();
    let file = host.path().join("app.env");
    crate::host::write(&file, "PASSWORD=hunter2\nPORT=8080\n");
    let path = file.to_str().expect("UTF-8").to_owned();
    let config = format!("env_file = '{path}'");
    let app = App::new(PLAIN, &["--env-file", &path, "-e", "PORT=8081"], &config);
    let found = app.prepare().await;
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!(finding.severity, rollback_agent::driver::Severity::Warning);
    let said = finding.problem.to_string();
    assert!(
        said.contains("PORT") && !said.contains("PASSWORD") && !said.contains("808"),
        "{said}"
    );
}
