//! The env-file driver against real files.

mod host;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use host::{Host, failed, names, read, revision, write};
use rollback_agent::driver::env_file::{EnvFileConfig, EnvFileDriver};
use rollback_agent::driver::{Action, Driver, Probe, Revision, Severity};
use rollback_proto::problem::Code;

struct Fleet {
    host: Host,
    path: PathBuf,
    driver: EnvFileDriver,
    old: Revision,
    new: Revision,
}

/// v2.9.0 was recorded, v3.0.0 is live.
async fn fleet() -> Fleet {
    let host = Host::new();
    let path = host.path().join("etc/app.env");
    write(&path, "SAME=1\nPASSWORD=hunter2\n");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("mode");
    let config = EnvFileConfig { path: path.clone() };
    let driver = EnvFileDriver::new("part", config, Arc::clone(&host.vault)).expect("driver");
    let old = driver.retain("v2.9.0").await.expect("retain").revision;
    write(&path, "SAME=1\nPASSWORD=correct-horse\nNEW=battery\n");
    let new = driver.observe().await.expect("observe").revision;
    assert_eq!(old.version, "v2.9.0");
    assert_ne!(old, new);
    Fleet {
        host,
        path,
        driver,
        old,
        new,
    }
}

#[tokio::test]
async fn goes_back_and_forth_with_mode_kept() {
    let f = fleet().await;
    let step = |action| f.host.step(action, &f.new, &f.old);
    let findings = f.driver.prepare(&step(Action::Prepare)).await;
    assert!(
        findings.iter().all(|finding| finding.severity == Severity::Ok),
        "{findings:?}"
    );
    f.driver.snapshot(&step(Action::Snapshot)).await.expect("snapshot");
    f.driver.stage(&step(Action::Stage)).await.expect("stage");
    assert!(
        read(&f.path).contains("correct-horse"),
        "staging must not change the live file"
    );
    assert_eq!(names(f.path.parent().expect("parent")).len(), 2, "one file is staged");
    assert!(matches!(
        f.driver.probe(&step(Action::Switch)).await,
        Probe::Repeatable(_)
    ));
    for _ in 0..2 {
        let done = f.driver.switch(&step(Action::Switch)).await.expect("switch");
        assert_eq!(done.observed, Some(f.old.clone()));
    }
    assert_eq!(read(&f.path), "SAME=1\nPASSWORD=hunter2\n");
    assert!(matches!(f.driver.probe(&step(Action::Switch)).await, Probe::Applied(_)));
    // Undo: nothing is staged for it.
    let back = f.host.step(Action::Switch, &f.old, &f.new);
    f.driver.switch(&back).await.expect("undo");
    assert!(read(&f.path).contains("correct-horse"));
    let mode = std::fs::metadata(&f.path).expect("stat").permissions().mode() & 0o7777;
    assert_eq!(mode, 0o640);
    f.driver.finish(&step(Action::Finish)).await.expect("finish");
    assert_eq!(
        names(f.path.parent().expect("parent")),
        ["app.env"],
        "nothing is left beside"
    );
}

#[tokio::test]
async fn names_are_reported_and_values_never() {
    let f = fleet().await;
    let step = f.host.step(Action::Prepare, &f.new, &f.old);
    let mut said = format!("{:?}", f.driver.prepare(&step).await);
    assert!(said.contains("NEW, PASSWORD"), "{said}");
    said += &format!("{:?}", f.driver.observe().await);
    said += &format!("{:?}", f.driver.stage(&step).await);
    write(&f.path, "PASSWORD=tr0ub4dor\n");
    said += &format!("{:?}", f.driver.prepare(&step).await);
    said += &format!("{:?}", f.driver.switch(&step).await);
    said += &format!(
        "{:?} {:?}",
        f.driver,
        f.driver.probe(&f.host.step(Action::Switch, &f.new, &f.old)).await
    );
    for secret in ["hunter2", "correct-horse", "battery", "tr0ub4dor"] {
        assert!(!said.contains(secret), "{secret} in {said}");
    }
}

#[tokio::test]
async fn a_file_that_somebody_changed_is_not_touched() {
    let f = fleet().await;
    f.driver
        .stage(&f.host.step(Action::Stage, &f.new, &f.old))
        .await
        .expect("stage");
    write(&f.path, "MINE=1\n");
    let problem = failed(f.driver.switch(&f.host.step(Action::Switch, &f.new, &f.old)).await);
    assert_eq!(problem.code, Code::WrongRevision);
    assert_eq!(read(&f.path), "MINE=1\n");
    assert!(matches!(
        f.driver.probe(&f.host.step(Action::Switch, &f.new, &f.old)).await,
        Probe::Indeterminate(_)
    ));
}

#[tokio::test]
async fn what_the_vault_lacks_is_found_before_anything_is_touched() {
    let f = fleet().await;
    let never = revision("v1.0.0", &format!("sha256:{}", "0".repeat(64)));
    let findings = f.driver.prepare(&f.host.step(Action::Prepare, &f.new, &never)).await;
    assert_eq!(findings[0].problem.code, Code::RevisionMissing);
    failed(f.driver.stage(&f.host.step(Action::Stage, &f.new, &never)).await);
    failed(f.driver.switch(&f.host.step(Action::Switch, &f.new, &never)).await);
    assert!(read(&f.path).contains("correct-horse"));
}

#[tokio::test]
async fn a_truncated_staged_file_is_not_switched_in() {
    let f = fleet().await;
    f.driver
        .stage(&f.host.step(Action::Stage, &f.new, &f.old))
        .await
        .expect("stage");
    let dir = f.path.parent().expect("parent");
    let staged = names(dir)
        .into_iter()
        .find(|name| name != "app.env")
        .expect("a staged file");
    // As a kill in the middle of writing leaves it.
    write(&dir.join(&staged), "SAME");
    f.driver
        .switch(&f.host.step(Action::Switch, &f.new, &f.old))
        .await
        .expect("switch");
    assert_eq!(read(&f.path), "SAME=1\nPASSWORD=hunter2\n");
}

#[tokio::test]
async fn links_and_open_directories_are_refused() {
    let f = fleet().await;
    let dir = f.path.parent().expect("parent").to_owned();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).expect("mode");
    let problem = failed(f.driver.switch(&f.host.step(Action::Switch, &f.new, &f.old)).await);
    assert_eq!(problem.code, Code::BadLayout);
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).expect("mode");
    let elsewhere = f.host.path().join("elsewhere");
    std::fs::rename(&f.path, &elsewhere).expect("rename");
    std::os::unix::fs::symlink(&elsewhere, &f.path).expect("link");
    assert_eq!(f.driver.observe().await.expect_err("a link").code, Code::BadLayout);
    assert_eq!(
        failed(f.driver.switch(&f.host.step(Action::Switch, &f.new, &f.old)).await).code,
        Code::BadLayout
    );
    assert!(read(&elsewhere).contains("correct-horse"));
}

#[tokio::test]
async fn what_a_rollback_that_was_held_left_is_removed_by_the_next() {
    let f = fleet().await;
    let dir = f.path.parent().expect("parent");
    write(&dir.join(".app.env.rollbackctl-rb-0"), "PASSWORD=hunter1\n");
    write(&dir.join(".other.env.rollbackctl-rb-0"), "somebody else's");
    let step = |action| f.host.step(action, &f.new, &f.old);
    f.driver.stage(&step(Action::Stage)).await.expect("stage");
    let staged = [".app.env.rollbackctl-rb-1", ".other.env.rollbackctl-rb-0", "app.env"];
    assert_eq!(names(dir), staged);
    f.driver.discard(&step(Action::Discard)).await.expect("discard");
    assert_eq!(names(dir), [".other.env.rollbackctl-rb-0", "app.env"]);
}

/// The application that reads the file: what it was given is in its environment, and in no message, even when it writes
/// it into its own log and does not start.
#[tokio::test]
async fn what_an_application_writes_of_its_secrets_is_not_passed_on() {
    use rollback_agent::driver::release_dir::{ReleaseDirConfig, ReleaseDirDriver};

    let host = Host::new();
    let root = host.path().join("app");
    write(&root.join("releases/v2.9.0/app"), "x");
    std::os::unix::fs::symlink("releases/v2.9.0", root.join("current")).expect("link");
    write(&root.join("env"), "PASSWORD=hunter2-secret\n");
    let log = root.join("log");
    let text = format!("echo \"cannot log in with $PASSWORD\" > {}; exit 3", log.display());
    host::script(&root.join("start"), &text);
    let config: ReleaseDirConfig = toml::from_str(&format!(
        "root = '{0}'\n[process]\nstart = ['{0}/start']\npid_file = '{0}/pid'\nlog = '{0}/log'\nenv_file = '{0}/env'\n",
        root.display()
    ))
    .expect("config");
    let driver = ReleaseDirDriver::new("part", config, Arc::clone(&host.vault)).expect("driver");
    let live = driver.observe().await.expect("observe").revision;
    let problem = failed(driver.start(&host.step(Action::Start, &live, &live)).await);
    assert!(
        read(&log).contains("hunter2-secret"),
        "the application was given the value"
    );
    assert!(problem.message.contains("cannot log in with [PASSWORD]"), "{problem}");
}

/// Contents are shared: by components, and by releases under one digest.
#[tokio::test]
async fn what_is_forgotten_is_gone_and_what_others_have_stays() {
    let f = fleet().await;
    let twin = f.host.path().join("etc/twin.env");
    write(&twin, "SAME=1\nPASSWORD=hunter2\n");
    let config = EnvFileConfig { path: twin };
    let twin = EnvFileDriver::new("twin", config, Arc::clone(&f.host.vault)).expect("driver");
    assert_eq!(twin.retain("v2.9.0").await.expect("retain").revision, f.old);
    let step = f.host.step(Action::Prepare, &f.new, &f.old);

    let said = f.driver.forget(&f.old, &[]).await.expect("forget");
    assert!(said.contains("belongs to others"), "{said}");
    let findings = f.driver.prepare(&step).await;
    assert!(
        findings.iter().any(|found| found.problem.code == Code::RevisionMissing),
        "{findings:?}"
    );
    assert_eq!(
        f.driver.forget(&f.old, &[]).await.expect("again"),
        "nothing was kept for it"
    );
    // The other one comes back all the same.
    assert_eq!(twin.retain("v2.9.0").await.expect("retain").revision, f.old);
    let stage = f.host.step(Action::Stage, &f.new, &f.old);
    twin.stage(&stage).await.expect("its content is there");
    let said = twin.forget(&f.old, &[]).await.expect("forget");
    assert!(said.starts_with("1 objects, "), "{said}");
}
