//! The release-dir driver: directories, links and the vault. Processes are in `release_process.rs`.

mod host;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;

use host::{Host, failed, names, read, revision, write};
use rollback_agent::driver::release_dir::{ReleaseDirConfig, ReleaseDirDriver};
use rollback_agent::driver::{Action, Driver, Finding, Probe, Revision, Severity};
use rollback_proto::problem::Code;

struct Fleet {
    host: Host,
    root: PathBuf,
    driver: ReleaseDirDriver,
    old: Revision,
    new: Revision,
}

impl Fleet {
    fn release(&self, name: &str) -> PathBuf {
        self.root.join("releases").join(name)
    }

    fn link(&self) -> String {
        std::fs::read_link(self.root.join("current"))
            .expect("a link")
            .to_string_lossy()
            .into_owned()
    }

    async fn prepare(&self) -> Vec<Finding> {
        self.driver
            .prepare(&self.host.step(Action::Prepare, &self.new, &self.old))
            .await
    }

    async fn blockers(&self) -> Vec<Code> {
        let found = self.prepare().await;
        found
            .iter()
            .filter(|f| f.severity == Severity::Blocker)
            .map(|f| f.problem.code)
            .collect()
    }
}

fn driver(host: &Host, extra: &str) -> ReleaseDirDriver {
    let text = format!("root = '{}'\n{extra}", host.path().join("app").display());
    let config: ReleaseDirConfig = toml::from_str(&text).expect("config");
    ReleaseDirDriver::new("part", config, Arc::clone(&host.vault)).expect("driver")
}

fn make_release(host: &Host, version: &str) {
    let dir = host.path().join("app/releases").join(version);
    write(&dir.join("app.js"), &format!("// {version}"));
    write(&dir.join("lib/deep/data"), "x");
    host::script(&dir.join("bin/run"), "exit 0");
    std::fs::create_dir_all(dir.join("empty")).expect("directory");
    symlink("lib/deep", dir.join("shortcut")).expect("link");
    std::fs::set_permissions(dir.join("lib"), std::fs::Permissions::from_mode(0o750)).expect("mode");
}

/// v2.9.0 was recorded, v3.0.0 is live; both directories are there.
async fn fleet_with(extra: &str) -> Fleet {
    let host = Host::new();
    let root = host.path().join("app");
    make_release(&host, "v2.9.0");
    make_release(&host, "v3.0.0");
    symlink("releases/v2.9.0", root.join("current")).expect("link");
    let driver = driver(&host, extra);
    let old = driver.retain("rel").await.expect("retain").revision;
    std::fs::remove_file(root.join("current")).expect("remove");
    symlink("releases/v3.0.0", root.join("current")).expect("link");
    let new = driver.observe().await.expect("observe").revision;
    assert_eq!((old.version.as_str(), new.version.as_str()), ("v2.9.0", "v3.0.0"));
    Fleet {
        host,
        root,
        driver,
        old,
        new,
    }
}

async fn fleet() -> Fleet {
    fleet_with("").await
}

#[tokio::test]
async fn switches_the_link_and_undoes_it() {
    let f = fleet().await;
    assert!(f.prepare().await.is_empty(), "{:?}", f.prepare().await);
    let step = |action| f.host.step(action, &f.new, &f.old);
    f.driver.stage(&step(Action::Stage)).await.expect("stage");
    assert_eq!(f.link(), "releases/v3.0.0");
    assert!(matches!(
        f.driver.probe(&step(Action::Switch)).await,
        Probe::Repeatable(_)
    ));
    // A killed switch leaves its temporary link.
    symlink("releases/v2.9.0", f.root.join(".current.rollbackctl-rb-1")).expect("link");
    for _ in 0..2 {
        let done = f.driver.switch(&step(Action::Switch)).await.expect("switch");
        assert_eq!(done.observed, Some(f.old.clone()));
        assert_eq!(f.link(), "releases/v2.9.0");
    }
    assert!(matches!(f.driver.probe(&step(Action::Switch)).await, Probe::Applied(_)));
    f.driver
        .switch(&f.host.step(Action::Switch, &f.old, &f.new))
        .await
        .expect("undo");
    assert_eq!(f.link(), "releases/v3.0.0");
    f.driver.finish(&step(Action::Finish)).await.expect("finish");
    assert_eq!(names(&f.root), ["current", "releases"], "nothing is left beside");
}

/// `ln -sfn target current` onto a real directory puts the link inside it and exits 0.
#[tokio::test]
async fn trap_link_onto_a_real_directory() {
    let f = fleet().await;
    std::fs::remove_file(f.root.join("current")).expect("remove");
    write(&f.root.join("current/app.js"), "by hand");
    assert_eq!(f.blockers().await, [Code::BadLayout]);
    let problem = failed(f.driver.switch(&f.host.step(Action::Switch, &f.new, &f.old)).await);
    assert_eq!(problem.code, Code::BadLayout);
    assert_eq!(names(&f.root.join("current")), ["app.js"]);
}

#[tokio::test]
async fn adopts_a_real_directory_when_asked_and_can_go_back() {
    let f = fleet_with("adopt = true").await;
    std::fs::remove_file(f.root.join("current")).expect("remove");
    write(&f.root.join("current/app.js"), "by hand");
    let from = f.driver.observe().await.expect("observe").revision;
    assert!(from.version.starts_with("adopted-"));
    f.driver
        .switch(&f.host.step(Action::Switch, &from, &f.old))
        .await
        .expect("switch");
    assert_eq!(f.link(), "releases/v2.9.0");
    assert_eq!(read(&f.release(&from.version).join("app.js")), "by hand");
    assert_eq!(names(&f.root), ["current", "releases"]);
    f.driver
        .switch(&f.host.step(Action::Switch, &f.old, &from))
        .await
        .expect("undo");
    assert_eq!(read(&f.root.join("current/app.js")), "by hand");
    // Killed between the exchange and the move.
    std::fs::remove_file(f.root.join("current")).expect("remove");
    std::fs::rename(f.release(&from.version), f.root.join(".current.rollbackctl-rb-1")).expect("rename");
    symlink("releases/v2.9.0", f.root.join("current")).expect("link");
    f.driver
        .switch(&f.host.step(Action::Switch, &from, &f.old))
        .await
        .expect("goes on");
    assert_eq!(read(&f.release(&from.version).join("app.js")), "by hand");
}

#[tokio::test]
async fn a_deleted_release_comes_back_from_the_vault() {
    let f = fleet().await;
    std::fs::remove_dir_all(f.release("v2.9.0")).expect("remove");
    let findings = f.prepare().await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].severity, Severity::Warning);
    // A killed stage leaves half a tree.
    write(&f.root.join("releases/.staging~part~rb-1/half"), "x");
    let step = f.host.step(Action::Stage, &f.new, &f.old);
    f.driver.stage(&step).await.expect("stage");
    f.driver.stage(&step).await.expect("again");
    let dir = f.release("v2.9.0");
    assert_eq!(names(&dir), ["app.js", "bin", "empty", "lib", "shortcut"]);
    assert_eq!(
        std::fs::read_link(dir.join("shortcut"))
            .expect("link")
            .to_string_lossy(),
        "lib/deep"
    );
    let mode = |p: &str| std::fs::metadata(dir.join(p)).expect("stat").permissions().mode() & 0o777;
    assert_eq!((mode("bin/run"), mode("lib")), (0o755, 0o750));
    // The rollback is called off: what stage made goes, the live release stays.
    f.driver.discard(&step).await.expect("discard");
    assert_eq!(names(&f.root.join("releases")), ["v3.0.0"]);
    f.driver.discard(&step).await.expect("discard of nothing");
    // And an undo or a switch without stage brings it back, too.
    f.driver
        .switch(&f.host.step(Action::Switch, &f.new, &f.old))
        .await
        .expect("switch");
    assert_eq!(f.driver.observe().await.expect("observe").revision, f.old);
    f.driver.discard(&step).await.expect("discard");
    assert_eq!(
        f.driver
            .observe()
            .await
            .expect("the live release is never discarded")
            .revision,
        f.old
    );
}

#[tokio::test]
async fn a_damaged_release_is_moved_aside_not_overwritten() {
    let f = fleet().await;
    write(&f.release("v2.9.0").join("app.js"), "tampered");
    let step = f.host.step(Action::Stage, &f.new, &f.old);
    f.driver.stage(&step).await.expect("stage");
    assert_eq!(read(&f.release("v2.9.0").join("app.js")), "// v2.9.0");
    assert_eq!(read(&f.release(".v2.9.0.damaged-rb-1").join("app.js")), "tampered");
    f.driver.discard(&step).await.expect("discard");
    assert_eq!(
        read(&f.release("v2.9.0").join("app.js")),
        "tampered",
        "what was there is there again"
    );
    assert_eq!(names(&f.root.join("releases")), ["v2.9.0", "v3.0.0"]);
}

#[tokio::test]
async fn the_live_release_is_not_moved_for_another_content_of_its_version() {
    let f = fleet().await;
    // v2.9.0 was built anew in place, and is live.
    write(&f.release("v2.9.0").join("app.js"), "rebuilt");
    std::fs::remove_file(f.root.join("current")).expect("remove");
    symlink("releases/v2.9.0", f.root.join("current")).expect("link");
    let live = f.driver.observe().await.expect("observe").revision;
    f.driver
        .stage(&f.host.step(Action::Stage, &live, &f.old))
        .await
        .expect("stage");
    assert_eq!(read(&f.root.join("current/app.js")), "rebuilt");
    f.driver
        .switch(&f.host.step(Action::Switch, &live, &f.old))
        .await
        .expect("switch");
    let seen = f.driver.observe().await.expect("observe").revision;
    assert_eq!((seen.version.as_str(), &seen), ("v2.9.0", &f.old));
    f.driver
        .switch(&f.host.step(Action::Switch, &f.old, &live))
        .await
        .expect("undo");
    assert_eq!(read(&f.root.join("current/app.js")), "rebuilt");
}

#[tokio::test]
async fn a_release_that_is_nowhere_blocks() {
    let f = fleet().await;
    let never = revision("v1.0.0", &format!("sha256:{}", "0".repeat(64)));
    for to in [never, revision("v2.9.0", &format!("sha256:{}", "1".repeat(64)))] {
        let step = f.host.step(Action::Prepare, &f.new, &to);
        let findings = f.driver.prepare(&step).await;
        assert_eq!(findings[0].problem.code, Code::RevisionMissing);
        assert_eq!(findings[0].severity, Severity::Blocker);
        assert_eq!(failed(f.driver.stage(&step).await).code, Code::RevisionMissing);
        assert_eq!(failed(f.driver.switch(&step).await).code, Code::RevisionMissing);
    }
    assert_eq!(f.link(), "releases/v3.0.0");
    assert_eq!(names(&f.root.join("releases")), ["v2.9.0", "v3.0.0"]);
}

#[tokio::test]
async fn hostile_versions_are_refused() {
    let f = fleet().await;
    for version in ["../../etc", "-x", ".hidden", "a/b", ""] {
        let to = revision(version, &f.old.digest);
        let step = f.host.step(Action::Switch, &f.new, &to);
        assert_eq!(
            f.driver.prepare(&step).await[0].problem.code,
            Code::BadName,
            "{version}"
        );
        assert_eq!(failed(f.driver.stage(&step).await).code, Code::BadName, "{version}");
        assert_eq!(failed(f.driver.switch(&step).await).code, Code::BadName, "{version}");
    }
}

#[tokio::test]
async fn somebody_elses_link_is_not_touched() {
    let f = fleet().await;
    make_release(&f.host, "v4.0.0");
    write(&f.release("v4.0.0").join("app.js"), "four");
    for target in ["releases/v4.0.0", "/etc", "releases"] {
        std::fs::remove_file(f.root.join("current")).expect("remove");
        symlink(target, f.root.join("current")).expect("link");
        let step = f.host.step(Action::Switch, &f.new, &f.old);
        failed(f.driver.switch(&step).await);
        assert_eq!(f.link(), target);
        assert_eq!(f.blockers().await.len(), 1);
        assert!(matches!(f.driver.probe(&step).await, Probe::Indeterminate(_)));
    }
}

#[tokio::test]
async fn a_live_release_that_was_changed_blocks_unless_the_change_is_excluded() {
    let f = fleet().await;
    write(&f.release("v3.0.0").join("logs/app.log"), "a line");
    assert_eq!(f.blockers().await, [Code::RevisionDamaged]);
    let g = fleet_with("exclude = ['logs']").await;
    write(&g.release("v3.0.0").join("logs/app.log"), "a line");
    assert!(g.prepare().await.is_empty());
}

#[tokio::test]
async fn a_damaged_vault_is_noticed_before_the_release_has_its_name() {
    let f = fleet().await;
    std::fs::remove_dir_all(f.release("v2.9.0")).expect("remove");
    let objects = f.host.path().join("vault/objects");
    let mut spoiled = 0;
    for dir in names(&objects) {
        for name in names(&objects.join(&dir)) {
            let path = objects.join(&dir).join(name);
            if read(&path) == "// v2.9.0" {
                write(&path, "// v6.6.6");
                spoiled += 1;
            }
        }
    }
    assert_eq!(spoiled, 1);
    let step = f.host.step(Action::Stage, &f.new, &f.old);
    assert_eq!(failed(f.driver.stage(&step).await).code, Code::RevisionDamaged);
    assert_eq!(names(&f.root.join("releases")), ["v3.0.0"], "nothing is left behind");
}

/// Needs root and the right to mount a small file system.
#[tokio::test]
async fn a_full_disk_while_staging_leaves_nothing() {
    let f = fleet().await;
    let small = f.root.join("releases");
    let big: String = "x".repeat(3 << 20);
    write(&f.release("v2.9.0").join("big"), &big);
    std::fs::remove_file(f.root.join("current")).expect("remove");
    symlink("releases/v2.9.0", f.root.join("current")).expect("link");
    let old = f.driver.retain("rel").await.expect("retain").revision;
    std::fs::remove_dir_all(f.release("v2.9.0")).expect("remove");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&small)
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    assert!(
        mounted,
        "this test mounts a small tmpfs: run it as root, with the right to mount"
    );
    let result = f.driver.stage(&f.host.step(Action::Stage, &f.new, &old)).await;
    let left = names(&small);
    let unmounted = std::process::Command::new("umount")
        .arg(&small)
        .status()
        .expect("umount");
    assert!(unmounted.success());
    assert_eq!(failed(result).code, Code::DiskFull);
    assert!(left.is_empty(), "{left:?}");
    assert!(!f.root.join(".rollbackctl").exists() || names(&f.root.join(".rollbackctl")).is_empty());
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let host = Host::new();
    for extra in [
        "releases = '../x'",
        "current = '/x'",
        "exclude = ['/x']",
        "reads = ['../x']",
        "process = { start = [] }",
        "process = { start = ['x'] }",
        "process = { start = ['x'], stop = ['y'] }",
        "process = { start = ['x'], pid_file = 'relative' }",
    ] {
        let text = format!("root = '{}'\n{extra}", host.path().display());
        let config: ReleaseDirConfig = toml::from_str(&text).expect("well-formed");
        let problem = ReleaseDirDriver::new("part", config, Arc::clone(&host.vault)).expect_err(extra);
        assert!(
            matches!(problem.code, Code::BadConfig | Code::BadName),
            "{extra}: {problem}"
        );
    }
    assert!(toml::from_str::<ReleaseDirConfig>("root = '/x'\nunknown = 1").is_err());
}

#[tokio::test]
async fn what_is_forgotten_leaves_the_vault_and_not_the_disk() {
    let f = fleet().await;
    f.driver.retain("v3.0.0").await.expect("retain");
    // Both have lib/deep/data and bin/run; app.js is the old one's own.
    let said = f
        .driver
        .forget(&f.old, std::slice::from_ref(&f.new))
        .await
        .expect("forget");
    assert!(said.starts_with("1 objects, "), "{said}");
    assert!(f.release("v2.9.0").is_dir(), "that directory is somebody else's");
    std::fs::remove_dir_all(f.release("v2.9.0")).expect("remove");
    assert_eq!(f.blockers().await, [Code::RevisionMissing]);
    // The other one comes out of the vault as it was recorded.
    make_release(&f.host, "v2.9.0");
    std::fs::remove_file(f.root.join("current")).expect("remove");
    symlink("releases/v2.9.0", f.root.join("current")).expect("link");
    std::fs::remove_dir_all(f.release("v3.0.0")).expect("remove");
    let stage = f.host.step(Action::Stage, &f.old, &f.new);
    f.driver.stage(&stage).await.expect("stage");
    assert_eq!(read(&f.release("v3.0.0/app.js")), "// v3.0.0");
}
