//! The agent was killed inside a switch: every half state is made by hand, recognised, and left by the same switch.

use rollback_agent::driver::{Action, Driver, Probe};
use rollback_proto::problem::Code;

use crate::fixture::{App, PLAIN};
use crate::host::failed;

impl App {
    async fn probe(&self, action: Action) -> Probe {
        self.driver.probe(&self.host.step(action, &self.new, &self.old)).await
    }

    async fn probe_back(&self, action: Action) -> Probe {
        self.driver.probe(&self.host.step(action, &self.old, &self.new)).await
    }
}

#[tokio::test]
async fn a_switch_that_was_killed_between_the_renames_goes_on() {
    let app = App::new(PLAIN, &[], "");
    app.forward(Action::Stage).await.expect("stage");
    app.forward(Action::Stop).await.expect("stop");
    assert!(matches!(app.probe(Action::Switch).await, Probe::Repeatable(_)));

    app.docker.run(&["rename", &app.name(), &app.before()]);
    assert!(matches!(app.probe(Action::Switch).await, Probe::Repeatable(why) if why.contains("between")));
    app.forward(Action::Switch).await.expect("switch");
    assert_eq!(app.image_of(&app.name()), app.old.digest);
    assert!(matches!(app.probe(Action::Switch).await, Probe::Applied(_)));
    app.forward(Action::Switch).await.expect("switch again");
    app.forward(Action::Start).await.expect("start");

    // The undo, killed at the same point.
    app.back(Action::Stop).await.expect("stop");
    app.docker.run(&["rename", &app.name(), &app.staged()]);
    assert!(matches!(app.probe_back(Action::Switch).await, Probe::Repeatable(_)));
    app.back(Action::Switch).await.expect("switch");
    app.back(Action::Start).await.expect("start");
    assert_eq!(app.image_of(&app.name()), app.new.digest);
    assert!(app.docker.running(&app.name()));
}

#[tokio::test]
async fn an_undo_of_a_half_done_switch_puts_the_old_name_back() {
    let app = App::new(PLAIN, &["--restart", "always"], "");
    let live = app.docker.inspect(&app.name(), "{{.Id}}");
    app.forward(Action::Stage).await.expect("stage");
    app.forward(Action::Stop).await.expect("stop");
    app.docker.run(&["rename", &app.name(), &app.before()]);
    app.back(Action::Switch).await.expect("switch");
    app.back(Action::Start).await.expect("start");
    assert_eq!(app.docker.inspect(&app.name(), "{{.Id}}"), live);
    let policy = app.docker.inspect(&app.name(), "{{.HostConfig.RestartPolicy.Name}}");
    assert_eq!(policy, "always");
}

#[tokio::test]
async fn a_switch_whose_staged_container_is_gone_makes_it_again_or_puts_the_old_one_back() {
    let app = App::new(PLAIN, &[], "");
    app.forward(Action::Stage).await.expect("stage");
    app.forward(Action::Stop).await.expect("stop");
    app.docker.run(&["rename", &app.name(), &app.before()]);
    app.docker.run(&["rm", &app.staged()]);
    app.forward(Action::Switch).await.expect("switch");
    assert_eq!(app.image_of(&app.name()), app.old.digest);
    assert_eq!(app.image_of(&app.before()), app.new.digest);
}

#[tokio::test]
async fn a_state_that_no_switch_makes_asks_for_a_person() {
    let app = App::new(PLAIN, &[], "");
    app.docker.run(&["rm", "-f", &app.name()]);
    assert!(matches!(
        app.probe(Action::Switch).await,
        Probe::Indeterminate(problem) if problem.code == Code::ContainerUnfit
    ));
    assert_eq!(failed(app.forward(Action::Switch).await).code, Code::ContainerUnfit);
}

#[tokio::test]
async fn stop_and_start_that_were_killed_are_recognised() {
    let app = App::new(PLAIN, &["--restart", "unless-stopped"], "");
    assert!(matches!(app.probe(Action::Stop).await, Probe::Repeatable(_)));
    // Killed after the policy was taken away by the first half of a stop: it is known what it was.
    app.forward(Action::Stop).await.expect("stop");
    assert!(matches!(app.probe(Action::Stop).await, Probe::Applied(_)));
    app.docker.run(&["start", &app.name()]);
    assert!(matches!(app.probe(Action::Stop).await, Probe::Repeatable(_)));
    app.forward(Action::Stop).await.expect("stop again");
    assert!(matches!(app.probe_back(Action::Start).await, Probe::Repeatable(_)));
    // Started, and killed before the policy came back.
    app.docker.run(&["start", &app.name()]);
    assert!(matches!(app.probe_back(Action::Start).await, Probe::Repeatable(_)));
    app.back(Action::Start).await.expect("start");
    assert!(matches!(app.probe_back(Action::Start).await, Probe::Applied(_)));
    let policy = app.docker.inspect(&app.name(), "{{.HostConfig.RestartPolicy.Name}}");
    assert_eq!(policy, "unless-stopped");
}

/// Whoever looks at 3 a.m. must not be told to invent a container while the old one stands under another name.
#[tokio::test]
async fn between_the_renames_it_is_said_where_the_containers_are() {
    let app = App::new(PLAIN, &[], "");
    app.forward(Action::Stage).await.expect("stage");
    app.forward(Action::Stop).await.expect("stop");
    app.docker.run(&["rename", &app.name(), &app.before()]);
    let problem = app.driver.observe().await.expect_err("nothing has the name");
    let said = problem.to_string();
    assert!(said.contains(&app.before()) && said.contains(&app.staged()), "{said}");
    assert!(!said.contains("by hand once"), "{said}");
}
