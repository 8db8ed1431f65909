//! The whole way there and back, names, and what is kept.

use std::time::{Duration, Instant};

use rollback_agent::driver::{Action, Driver, Health};
use rollback_proto::problem::Code;

use crate::docker::Docker;
use crate::fixture::{App, Images, PLAIN, act, driver, inside};
use crate::host::{Host, failed, free_port, revision};

#[tokio::test]
async fn goes_back_and_comes_again_with_the_very_same_container() {
    let port = free_port().to_string();
    let health = format!("health = {{ http = 'http://127.0.0.1:{port}/version', version = '/version' }}");
    let env = format!("PORT={port}");
    let app = App::new(PLAIN, &["--network", "host", "-e", &env], &health);
    let live = app.docker.inspect(&app.name(), "{{.Id}}");
    let seen = app.driver.observe().await.expect("observe");
    assert_eq!(
        (seen.revision.version.as_str(), seen.health),
        ("v3.0.0", Health::Healthy)
    );
    assert_eq!(app.blockers().await, []);

    app.forward(Action::Stage).await.expect("stage");
    assert!(app.docker.running(&app.name()), "staging does not touch what is live");
    assert!(!app.docker.running(&app.staged()));
    app.roll_back().await;
    assert_eq!(app.image_of(&app.name()), app.old.digest);
    assert_eq!(inside(&app.docker, &app.name(), &["cat", "/www/version"]), "v2.9.0");
    assert_eq!(app.docker.inspect(&app.before(), "{{.Id}}"), live);
    let verified = app.forward(Action::Verify).await.expect("verify");
    assert_eq!(verified.observed.as_ref(), Some(&app.old));

    app.undo().await;
    assert_eq!(
        app.docker.inspect(&app.name(), "{{.Id}}"),
        live,
        "the old container itself"
    );
    assert!(app.docker.running(&app.name()));
    app.forward(Action::Discard).await.expect("discard");
    assert_eq!(app.docker.containers(), [app.name()]);
}

#[tokio::test]
async fn keeps_one_container_for_an_instant_undo_until_the_next_rollback() {
    let app = App::new(PLAIN, &["--restart", "always"], "");
    app.roll_back().await;
    app.forward(Action::Finish).await.expect("finish");
    app.forward(Action::Finish).await.expect("finish again");
    assert_eq!(app.docker.containers(), [app.name(), app.before()]);
    assert!(!app.docker.running(&app.before()));
    let policy = "{{.HostConfig.RestartPolicy.Name}}";
    assert_eq!(app.docker.inspect(&app.before(), policy), "no");
    assert_eq!(app.docker.inspect(&app.name(), policy), "always");

    // The next rollback, to the newer one, under another id.
    let step = |action| {
        rollback_agent::step::StepContext::new(
            "rb-2".into(),
            "part".into(),
            action,
            app.old.clone(),
            app.new.clone(),
            Duration::from_secs(30),
            app.host.vault.clone(),
            std::sync::Arc::new(rollback_agent::step::NoProgress),
        )
    };
    assert!(app.driver.prepare(&step(Action::Prepare)).await.is_empty());
    app.driver.stage(&step(Action::Stage)).await.expect("stage");
    app.driver.stop(&step(Action::Stop)).await.expect("stop");
    app.driver.switch(&step(Action::Switch)).await.expect("switch");
    app.driver.start(&step(Action::Start)).await.expect("start");
    app.driver.finish(&step(Action::Finish)).await.expect("finish");
    assert_eq!(
        app.docker.containers(),
        [app.name(), app.docker.name("app.before-rb-2")]
    );
    assert_eq!(app.image_of(&app.docker.name("app.before-rb-2")), app.old.digest);
    assert_eq!(app.docker.inspect(&app.name(), policy), "always");
}

#[tokio::test]
async fn finish_leaves_containers_of_others_alone() {
    let app = App::new(PLAIN, &[], "keep = false");
    let foreign = app.docker.name("app.before-by-hand");
    app.docker.run(&[
        "create",
        "--name",
        &foreign,
        &format!("{}:v2.9.0", app.docker.repository()),
    ]);
    app.roll_back().await;
    app.forward(Action::Finish).await.expect("finish");
    assert_eq!(app.docker.containers(), [app.name(), foreign]);
}

#[tokio::test]
async fn never_healthy_leaves_nothing_running_and_the_old_one_is_back_within_its_own_start_time() {
    let images = Images {
        old: "ENV NEVER_READY=1",
        new: "",
    };
    let port = free_port().to_string();
    let health =
        format!("health = {{ http = 'http://127.0.0.1:{port}/version', version = '/version', within = '2s' }}");
    let env = format!("PORT={port}");
    let secret = "PASSWORD=correct-horse";
    let arguments = ["--network", "host", "-e", &env, "-e", secret, "--restart", "always"];
    let app = App::new(images, &arguments, &health);
    app.forward(Action::Stop).await.expect("stop");
    // What the old one takes to start: the measure of its way back.
    let begun = Instant::now();
    act(&app.driver, &app.host, Action::Start, &app.new, &app.new)
        .await
        .expect("start");
    let own = begun.elapsed();

    for action in [Action::Stage, Action::Stop, Action::Switch] {
        app.forward(action).await.expect("move");
    }
    let problem = failed(app.forward(Action::Start).await);
    assert_eq!(problem.code, Code::Unhealthy);
    // The undo takes the container and its log away; what it was given stays on the host.
    assert!(
        problem.message.contains("no database for [PASSWORD]") && !problem.message.contains("correct-horse"),
        "{problem}"
    );
    assert!(!app.docker.running(&app.name()) && !app.docker.running(&app.before()));
    let policy = app.docker.inspect(&app.name(), "{{.HostConfig.RestartPolicy.Name}}");
    assert_eq!(policy, "no", "nothing brings it up again");

    let begun = Instant::now();
    app.undo().await;
    let undo = begun.elapsed();
    assert!(app.docker.running(&app.name()));
    assert_eq!(app.image_of(&app.name()), app.new.digest);
    let ratio = undo.as_secs_f64() / own.as_secs_f64();
    // The renames cost something, on a busy machine more.
    assert!(
        ratio < 2.0 || undo < own + Duration::from_millis(400),
        "start {own:?}, undo {undo:?}: {ratio:.2} times"
    );
}

#[tokio::test]
async fn a_container_that_ends_at_once_is_told_from_one_that_runs() {
    let images = Images {
        old: "ENTRYPOINT [\"sh\", \"-c\", \"exit 7\"]",
        new: "",
    };
    let app = App::new(images, &[], "");
    for action in [Action::Stage, Action::Stop, Action::Switch] {
        app.forward(action).await.expect("move");
    }
    let problem = failed(app.forward(Action::Start).await);
    assert_eq!(problem.code, Code::Unhealthy);
    assert!(problem.message.contains("status 7"), "{}", problem.message);
    app.undo().await;
    assert!(app.docker.running(&app.name()));
}

#[tokio::test]
async fn resolves_a_release_by_its_tag_and_says_where_it_looked() {
    let docker = Docker::new();
    let host = Host::new();
    let id = docker.image("2.9.0", "");
    let driver = driver(&docker, &host, "");
    let found = driver.resolve("v2.9.0").await.expect("resolve");
    assert_eq!(found.revision, revision("", &id));
    assert_eq!(found.revision.version, "2.9.0");
    let problem = driver.resolve("v2.8.0").await.expect_err("no such image");
    assert_eq!(problem.code, Code::Unresolved);
    for place in ["app:v2.8.0", "app:2.8.0"] {
        assert!(problem.message.contains(place), "{}", problem.message);
    }
}

#[tokio::test]
async fn a_changed_env_file_reaches_the_container_and_the_undo_brings_the_old_one_back() {
    let host = Host::new();
    let file = host.path().join("app.env");
    crate::host::write(&file, "MODE=new\nONLY_NEW=1\nQUOTED=\"as is\"\n");
    let path = file.to_str().expect("UTF-8").to_owned();
    let app = App::new(
        PLAIN,
        &["--env-file", &path, "-e", "BY_HAND=stays"],
        &format!("env_file = '{path}'\nreads = ['env']"),
    );
    let live = app.docker.inspect(&app.name(), "{{.Id}}");
    let environment = || inside(&app.docker, &app.name(), &["env"]);

    // Only the file changes: stop, the file, start. No switch of the container.
    app.forward(Action::Stop).await.expect("stop");
    crate::host::write(&file, "MODE=old\nQUOTED=\"as is\"\n");
    let same = async |action| act(&app.driver, &app.host, action, &app.new, &app.new).await;
    same(Action::Start).await.expect("start");
    let has = environment();
    assert!(has.contains("MODE=old\n") && has.contains("BY_HAND=stays") && has.contains("QUOTED=\"as is\""));
    assert!(!has.contains("ONLY_NEW"), "{has}");
    assert_eq!(app.image_of(&app.name()), app.new.digest);
    same(Action::Start).await.expect("start again changes nothing");

    // The mirror image.
    same(Action::Stop).await.expect("stop");
    crate::host::write(&file, "MODE=new\nONLY_NEW=1\nQUOTED=\"as is\"\n");
    same(Action::Start).await.expect("start");
    assert_eq!(app.docker.inspect(&app.name(), "{{.Id}}"), live, "the very container");
    same(Action::Finish).await.expect("finish");

    // Both change: the file is switched between the stop and the switch of the container.
    app.forward(Action::Stage).await.expect("stage");
    app.forward(Action::Stop).await.expect("stop");
    crate::host::write(&file, "MODE=older\n");
    app.forward(Action::Switch).await.expect("switch");
    app.forward(Action::Start).await.expect("start");
    let has = environment();
    assert!(has.contains("MODE=older\n") && has.contains("BY_HAND=stays"), "{has}");
    assert!(!has.contains("QUOTED") && has.contains("VERSION=v2.9.0"), "{has}");
    app.back(Action::Stop).await.expect("stop");
    app.back(Action::Switch).await.expect("switch");
    crate::host::write(&file, "MODE=new\nONLY_NEW=1\nQUOTED=\"as is\"\n");
    app.back(Action::Start).await.expect("start");
    assert_eq!(app.docker.inspect(&app.name(), "{{.Id}}"), live);
}

#[tokio::test]
async fn what_is_forgotten_loses_our_tag_and_goes_when_nothing_else_needs_it() {
    let app = App::new(PLAIN, &[], "");
    let own = |tag: &str| format!("{}:{tag}", app.docker.repository());
    let there = |digest: &str| app.docker.try_run(&["image", "inspect", digest]).is_ok();
    app.driver.retain("v3.0.0").await.expect("retain");
    app.driver.resolve("v2.9.0").await.expect("resolve");
    // It has a name of its own: that one is not ours to take.
    let said = app.driver.forget(&app.old, &[]).await.expect("forget");
    assert!(said.ends_with("is gone"), "{said}");
    assert!(there(&own("v2.9.0")));
    assert_eq!(
        app.driver.forget(&app.old, &[]).await.expect("again"),
        "nothing was kept for it"
    );

    app.driver.resolve("v2.9.0").await.expect("resolve");
    app.docker.run(&["rmi", &own("v2.9.0")]);
    assert!(there(&app.old.digest), "our tag keeps it");
    app.driver.forget(&app.old, &[]).await.expect("forget");
    assert!(!there(&app.old.digest));
    // Containers go before releases: a stopped one is somebody's way back.
    app.docker.run(&["rmi", "-f", &own("v3.0.0")]);
    let said = app.driver.forget(&app.new, &[]).await.expect("forget");
    assert!(said.contains("a container was made of it"), "{said}");
    assert!(there(&app.new.digest));
}
