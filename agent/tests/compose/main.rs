//! The compose driver, on a real engine with a real docker-compose.

mod at_rest;
#[path = "../docker/mod.rs"]
mod docker;
#[path = "../host/mod.rs"]
mod host;
mod project;
mod rebuild;

use std::os::unix::fs::PermissionsExt;

use host::{failed, names, read, write};
use project::{Project, Rollback, run};
use rollback_agent::driver::compose::ComposeDriver;
use rollback_agent::driver::{Action, Driver, Health, Probe, Severity};
use rollback_proto::problem::Code;

/// v2.9.0 was recorded, v3.0.0 was deployed by hand afterwards and runs.
async fn deployed<'a>(project: &'a Project, driver: &'a ComposeDriver) -> Rollback<'a> {
    project.by_hand(&["up", "-d"]);
    let to = driver.retain("v2.9.0").await.expect("retain").revision;
    project.declare("v3.0.0");
    project.by_hand(&["up", "-d"]);
    let from = driver.observe().await.expect("observe").revision;
    assert_eq!((from.version.as_str(), to.version.as_str()), ("v3.0.0", "v2.9.0"));
    Rollback {
        project,
        driver,
        from,
        to,
    }
}

/// Multi-file project: the override file counts. `.env` is changed atomically, comments, mode and other lines are kept.
/// Dependencies are not touched (`--no-deps`). The config-hash is Compose's own: `up -d` by hand recreates nothing.
#[tokio::test]
async fn rolls_back_and_undoes() {
    let project = Project::new();
    let env = project.dir.join(".env");
    let driver = project.driver();
    let rollback = deployed(&project, &driver).await;
    std::fs::set_permissions(&env, std::fs::Permissions::from_mode(0o640)).expect("mode");
    let before = project.containers();
    let cache = project.container("cache");
    assert_eq!(rollback.findings().await.len(), 0, "{:?}", rollback.findings().await);

    rollback.step(Action::Stage).await.expect("stage");
    assert_eq!(project.containers(), before, "staging touches no container");
    assert!(matches!(rollback.probe(Action::Stop).await, Probe::Repeatable(_)));
    for _ in 0..2 {
        rollback.step(Action::Stop).await.expect("stop");
    }
    assert!(matches!(rollback.probe(Action::Stop).await, Probe::Applied(_)));
    let stopped = driver.observe().await.expect("observe");
    assert_eq!(
        (stopped.revision, stopped.health),
        (rollback.from.clone(), Health::Stopped)
    );
    let problem = failed(rollback.step(Action::Start).await);
    assert_eq!(
        problem.code,
        Code::WrongRevision,
        "the variable is not switched yet: {problem}"
    );

    assert!(matches!(rollback.probe(Action::Switch).await, Probe::Repeatable(_)));
    // What a killed switch leaves.
    write(&project.dir.join("..env.rollbackctl-rb-0"), "IMAGE_TAG=half");
    for _ in 0..2 {
        let done = rollback.step(Action::Switch).await.expect("switch");
        assert_eq!(done.observed, Some(rollback.to.clone()));
    }
    assert!(matches!(rollback.probe(Action::Switch).await, Probe::Applied(_)));
    let wanted = format!(
        "# ports\nPORT={}\nIMAGE_TAG=v2.9.0 # what runs\nPASSWORD='a # b'\n",
        project.port
    );
    assert_eq!(read(&env), wanted);
    assert_eq!(
        std::fs::metadata(&env).expect("stat").permissions().mode() & 0o777,
        0o640
    );
    let switched = driver.observe().await.expect("observe");
    assert_eq!(
        (switched.revision, switched.health),
        (rollback.to.clone(), Health::Stopped)
    );

    assert!(matches!(rollback.probe(Action::Start).await, Probe::Repeatable(_)));
    for _ in 0..2 {
        let done = rollback.step(Action::Start).await.expect("start");
        assert_eq!(done.observed, Some(rollback.to.clone()));
    }
    assert!(matches!(rollback.probe(Action::Start).await, Probe::Applied(_)));
    rollback.step(Action::Verify).await.expect("verify");
    rollback.step(Action::Finish).await.expect("finish");
    assert_eq!(
        names(&project.dir),
        [".env", "app.env", "docker-compose.override.yml", "docker-compose.yml"]
    );
    let after = project.containers();
    assert_eq!(
        after[&cache], before[&cache],
        "--no-deps: the dependency is the same process"
    );
    assert_eq!(project.inspect("app", "{{.Config.Image}}"), project.app("v2.9.0"));
    assert_eq!(project.inspect("app", "{{.Config.Labels.from}}"), "override");
    project.by_hand(&["up", "-d"]);
    assert_eq!(
        project.containers(),
        after,
        "config-hash never forged: nothing is recreated by hand"
    );

    let undo = rollback.undo();
    undo.run().await;
    let seen = driver.observe().await.expect("observe");
    assert_eq!((seen.revision, seen.health), (rollback.from.clone(), Health::Healthy));
    assert_eq!(project.containers()[&cache], before[&cache]);
    assert!(read(&env).contains("IMAGE_TAG=v3.0.0 # what runs"));
}

/// A shell's value overrides `.env`. Here the agent itself was started with the variable: with one that would bring the
/// bad release back.
#[tokio::test]
async fn trap_variable_in_the_agents_environment() {
    const NAME: &str = "trap_variable_in_the_agents_environment";
    if std::env::var("IMAGE_TAG").as_deref() != Ok("v3.0.0") {
        let again = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", NAME, "--nocapture"])
            .env("IMAGE_TAG", "v3.0.0")
            .output()
            .expect("run");
        let said = String::from_utf8_lossy(&again.stdout);
        assert!(again.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let project = Project::new();
    let driver = project.driver();
    let rollback = deployed(&project, &driver).await;
    rollback.run().await;
    let seen = driver.observe().await.expect("observe");
    assert_eq!((seen.revision, seen.health), (rollback.to.clone(), Health::Healthy));
    // The trap is real: in a shell with the variable, the same command leads elsewhere.
    let shell = [("IMAGE_TAG", "v3.0.0")];
    let up = run(
        &project.dir,
        &shell,
        &["docker-compose", "up", "-d", "--no-deps", "worker"],
    );
    assert!(up.status.success());
    assert_eq!(project.inspect("worker", "{{.Config.Image}}"), project.app("v3.0.0"));
}

/// The runbook's way: the variable was exported in a shell, `.env` has an older value or none.
#[tokio::test]
async fn trap_version_that_only_a_shell_knew() {
    let project = Project::new();
    let driver = project.driver();
    write(&project.dir.join(".env"), &format!("PORT={}", project.port));
    for version in ["v2.9.0", "v3.0.0"] {
        let up = run(&project.dir, &[("IMAGE_TAG", version)], &["docker-compose", "up", "-d"]);
        assert!(up.status.success(), "{up:?}");
        let seen = driver.retain(version).await.expect("retain");
        assert_eq!(seen.revision.version, version);
    }
    let from = driver.observe().await.expect("observe").revision;
    let to = driver.resolve("v2.9.0").await.expect("resolve").revision;
    let rollback = Rollback {
        project: &project,
        driver: &driver,
        from,
        to,
    };
    let findings = rollback.findings().await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].severity, Severity::Warning);
    rollback.run().await;
    assert_eq!(
        read(&project.dir.join(".env")),
        format!("PORT={}\nIMAGE_TAG=v2.9.0\n", project.port)
    );
    rollback.undo().run().await;
    assert_eq!(driver.observe().await.expect("observe").revision, rollback.from);
}

#[tokio::test]
async fn trap_image_pruned() {
    let project = Project::new();
    let driver = project.driver();
    let rollback = deployed(&project, &driver).await;
    let image = project.docker(&["inspect", "--format", "{{.Id}}", &project.app("v2.9.0")]);
    // Its name is taken away: `retain` gave it another, so it is still there.
    project.docker(&["rmi", &project.app("v2.9.0")]);
    assert_eq!(rollback.blockers().await, []);
    assert!(!rollback.findings().await.is_empty(), "said as a warning");
    for _ in 0..2 {
        rollback.step(Action::Stage).await.expect("stage");
    }
    assert_eq!(
        project.docker(&["inspect", "--format", "{{.Id}}", &project.app("v2.9.0")]),
        image
    );
    // Gone altogether: nothing is pulled, nothing is stopped.
    project.docker(&["rmi", "-f", &image]);
    assert_eq!(
        rollback.blockers().await,
        [Code::RevisionMissing, Code::RevisionMissing]
    );
    let before = project.containers();
    assert_eq!(failed(rollback.step(Action::Stage).await).code, Code::RevisionMissing);
    assert_eq!(project.containers(), before);
}

#[tokio::test]
async fn trap_tag_moved() {
    let project = Project::new();
    let driver = project.driver();
    let rollback = deployed(&project, &driver).await;
    let old = project.docker(&["inspect", "--format", "{{.Id}}", &project.app("v2.9.0")]);
    project.docker(&["tag", &project.app("v3.0.0"), &project.app("v2.9.0")]);
    assert_eq!(rollback.blockers().await, [Code::NameMoved, Code::NameMoved]);
    assert_eq!(failed(rollback.step(Action::Stage).await).code, Code::NameMoved);
    // Moved after it was prepared: nothing is started.
    rollback.step(Action::Stop).await.expect("stop");
    rollback.step(Action::Switch).await.expect("switch");
    assert_eq!(failed(rollback.step(Action::Start).await).code, Code::NameMoved);
    assert_eq!(driver.observe().await.expect("observe").health, Health::Stopped);
    // The live release's own tag moved: there would be no way back.
    project.docker(&["tag", &old, &project.app("v2.9.0")]);
    let undo = rollback.undo();
    undo.step(Action::Switch).await.expect("switch back");
    undo.step(Action::Start).await.expect("start again");
    project.docker(&["tag", &old, &project.app("v3.0.0")]);
    assert_eq!(rollback.blockers().await, [Code::NameMoved, Code::NameMoved]);
}

#[tokio::test]
async fn a_container_that_ends_again_and_again_fails_and_undo_brings_the_old_one_back() {
    // Ends again and again: `restart: always`.
    never_healthy(
        "CMD [\"/bin/busybox\", \"sh\", \"-c\", \"echo no database; exit 3\"]",
        &["status 3", "no database"],
    )
    .await;
}

#[tokio::test]
async fn a_container_that_runs_and_is_called_unhealthy_fails_and_undo_brings_the_old_one_back() {
    let broken = "HEALTHCHECK --interval=1s --retries=1 CMD [\"/bin/busybox\", \"false\"]\n\
                  CMD [\"/bin/busybox\", \"sleep\", \"1000000\"]";
    never_healthy(broken, &["unhealthy"]).await;
}

async fn never_healthy(broken: &str, said: &[&str]) {
    let project = Project::new();
    let driver = project.driver();
    let mut rollback = deployed(&project, &driver).await;
    project.image("app", "v2.8.0", broken);
    rollback.to = driver.resolve("v2.8.0").await.expect("resolve").revision;
    for action in [Action::Stage, Action::Stop, Action::Switch] {
        rollback.step(action).await.expect("before the start");
    }
    let problem = failed(rollback.step(Action::Start).await);
    assert_eq!(problem.code, Code::Unhealthy, "{problem}");
    assert!(said.iter().all(|part| problem.message.contains(part)), "{problem}");
    let health = driver.observe().await.expect("observe").health;
    assert_eq!(health, Health::Stopped, "nothing is left running");
    let undo = rollback.undo();
    for action in [Action::Stop, Action::Switch, Action::Start, Action::Verify] {
        undo.step(action).await.expect("undo");
    }
    let seen = driver.observe().await.expect("observe");
    assert_eq!((seen.revision, seen.health), (rollback.from.clone(), Health::Healthy));
}

/// Compose renames the old container before it makes the new one. Killed between the two, it leaves a container with a
/// name of its own making. A number of containers that was given by hand is kept all the same.
#[tokio::test]
async fn a_start_that_was_killed_half_way_converges() {
    let project = Project::new();
    let driver = project.driver();
    let rollback = deployed(&project, &driver).await;
    project.by_hand(&["up", "-d", "--scale", "worker=2"]);
    for action in [Action::Stage, Action::Stop, Action::Switch] {
        rollback.step(action).await.expect("before the start");
    }
    let old = project.container("app");
    let id = project.inspect("app", "{{.Id}}");
    project.docker(&["rename", &old, &format!("{}_{old}", &id[..12])]);
    assert!(matches!(rollback.probe(Action::Start).await, Probe::Repeatable(_)));
    rollback.step(Action::Start).await.expect("start");
    let containers = project.containers();
    let names: Vec<&str> = containers.keys().map(|n| n.trim_start_matches(&project.name)).collect();
    assert_eq!(names, ["_app_1", "_cache_1", "_worker_1", "_worker_2"]);
    assert!(
        containers.values().all(|state| state.ends_with("true")),
        "{containers:?}"
    );
    rollback.step(Action::Verify).await.expect("verify");
}

#[tokio::test]
async fn trap_env_file_is_read_when_the_container_is_made() {
    let project = Project::new();
    let driver = project.driver();
    let rollback = deployed(&project, &driver).await;
    driver.retain("v3.0.0").await.expect("retain");
    let verify = Rollback {
        to: rollback.from.clone(),
        ..rollback.undo()
    };
    // `OVERRIDDEN` is in the file with another value, and that is right.
    verify.step(Action::Verify).await.expect("verify");
    write(&project.dir.join("app.env"), "SECRET=hunter3\nOVERRIDDEN=by the file\n");
    let problem = failed(verify.step(Action::Verify).await);
    assert_eq!(problem.code, Code::WrongRevision);
    assert!(
        problem.message.contains("SECRET") && !problem.message.contains("hunter"),
        "{problem}"
    );
    // Only a config of the application changed: it is stopped and started at the same release.
    verify.step(Action::Stop).await.expect("stop");
    verify.step(Action::Start).await.expect("start");
    assert!(project.inspect("app", "{{.Config.Env}}").contains("SECRET=hunter3"));
    verify.step(Action::Verify).await.expect("verify");
}

#[tokio::test]
async fn resolves_by_image_tag_and_says_where_it_looked() {
    let project = Project::new();
    let driver = project.driver();
    let found = driver.resolve("v2.9.0").await.expect("resolve").revision;
    project.by_hand(&["up", "-d"]);
    assert_eq!(driver.observe().await.expect("observe").revision, found);
    let bare = project.driver_of(&project.config("version = 'v{version}'"));
    assert_eq!(bare.resolve("2.9.0").await.expect("resolve").revision, found);
    let problem = driver.resolve("v1.0.0").await.expect_err("not here");
    assert_eq!(problem.code, Code::Unresolved);
    assert!(problem.message.contains(&project.app("v1.0.0")), "{problem}");
    // A variable that no image's name has in it would make every release the same.
    let config = project.config("").replace("IMAGE_TAG", "IMAGE_TGA");
    let problem = project.driver_of(&config).resolve("v2.9.0").await.expect_err("unused");
    assert_eq!(problem.code, Code::Unresolved);
    assert!(problem.message.contains("IMAGE_TGA"), "{problem}");
}

#[tokio::test]
async fn prepare_refuses_another_project_and_a_compose_that_is_not_there() {
    let project = Project::new();
    let driver = project.driver();
    let rollback = deployed(&project, &driver).await;
    let other = project.driver_of(&project.config("project = 'rbt-other'"));
    let findings = Rollback {
        driver: &other,
        ..rollback.undo()
    }
    .findings()
    .await;
    let blocker = findings
        .iter()
        .find(|f| f.severity == Severity::Blocker)
        .expect("a blocker");
    assert!(blocker.problem.message.contains(&project.name), "{findings:?}");
    let none = project.driver_of(&project.config("binary = '/nowhere/docker-compose'"));
    let codes = Rollback {
        driver: &none,
        ..rollback.undo()
    }
    .blockers()
    .await;
    assert_eq!(codes, [Code::ComposeFailed]);
}

#[tokio::test]
async fn what_is_forgotten_gives_images_free_that_no_other_release_has() {
    let project = Project::new();
    let driver = project.driver();
    let rollback = deployed(&project, &driver).await;
    let kept = |id: &str| {
        let name = format!("rollbackctl/kept:{}", id.trim_start_matches("sha256:"));
        run(&project.dir, &[], &["docker", "image", "inspect", &name])
            .status
            .success()
    };
    let id = |tag: &str| project.docker(&["image", "inspect", "-f", "{{.Id}}", &project.app(tag)]);
    let (old, new) = (id("v2.9.0"), id("v3.0.0"));
    driver.retain("v3.0.0").await.expect("retain");
    assert!(kept(&old) && kept(&new));
    for said in ["our names of 1 images are gone", "no image was kept for it alone"] {
        assert_eq!(driver.forget(&rollback.to, &[]).await.expect("forget"), said);
    }
    assert!(!kept(&old) && kept(&new));
    assert_eq!(rollback.blockers().await, [Code::RevisionMissing]);
}
