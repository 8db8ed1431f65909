//! Managed names that are links, and releases that are found by name.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use rollback_agent::driver::{Action, Driver, Probe};
use rollback_agent::processes;
use rollback_proto::problem::Code;

use crate::host::{failed, names, read, write};
use crate::proxy::{Proxy, Setup, proxy, proxy_with};

/// Debian's way: `sites/zekka` becomes a link to `available/zekka`.
fn as_link(p: &Proxy, absolute: bool) -> PathBuf {
    let target = p.conf.join("available/zekka");
    write(&target, &read(&p.site()));
    std::fs::remove_file(p.site()).expect("remove");
    if absolute {
        symlink(&target, p.site()).expect("link");
    } else {
        symlink("../available/zekka", p.site()).expect("link");
    }
    target
}

#[tokio::test]
async fn trap_a_managed_file_that_is_a_link_stays_one() {
    for absolute in [true, false] {
        let p = proxy().await;
        let target = as_link(&p, absolute);
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o640)).expect("mode");
        let link = std::fs::read_link(p.site()).expect("link");
        let seen = p.driver.observe().await.expect("observe").revision;
        assert_eq!(seen, p.new, "a link changes no content");
        assert!(p.blockers(&p.old).await.is_empty());
        p.driver
            .stage(&p.host.step(Action::Stage, &p.new, &p.old))
            .await
            .expect("stage");
        p.switch().await.expect("switch");
        assert_eq!(p.version().await, "v2.9.0");
        assert_eq!(std::fs::read_link(p.site()).expect("still a link"), link);
        assert!(read(&target).contains("v2.9.0"));
        let mode = std::fs::metadata(&target).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        p.undo().await.expect("undo");
        assert_eq!(p.version().await, "v3.0.0");
        assert_eq!(
            (names(&p.conf.join("sites")), names(&p.conf.join("available"))),
            (vec!["zekka".into()], vec!["zekka".into()])
        );
    }
}

/// What a link leads to stays when the link goes: it is available and not enabled.
#[tokio::test]
async fn a_site_that_a_release_did_not_have_is_unlinked_and_linked_again() {
    let p = proxy_with(Setup {
        files: &[("sites/admin", "# admin\n")],
        ..Setup::default()
    })
    .await;
    let admin = p.conf.join("sites/admin");
    let available = p.conf.join("available/admin");
    write(&available, "# admin\n");
    std::fs::remove_file(&admin).expect("remove");
    let step = |action| p.host.step(action, &p.new, &p.new);
    p.driver.snapshot(&step(Action::Snapshot)).await.expect("pin");
    let without = p.driver.observe().await.expect("observe").revision;
    symlink("../available/admin", &admin).expect("link");
    let with = p.driver.retain("v3.0.0").await.expect("retain").revision;
    let there = p.host.step(Action::Switch, &with, &without);
    p.driver.switch(&there).await.expect("switch");
    assert!(std::fs::symlink_metadata(&admin).is_err() && available.exists());
    assert!(matches!(p.driver.probe(&there).await, Probe::Applied(_)));
    let back = p.host.step(Action::Switch, &without, &with);
    p.driver.switch(&back).await.expect("undo");
    assert_eq!(
        std::fs::read_link(&admin).expect("a link"),
        PathBuf::from("../available/admin")
    );
}

#[tokio::test]
async fn trap_a_link_out_of_the_root_is_not_followed() {
    let p = proxy().await;
    let outside = p.host.path().join("outside");
    let text = read(&p.site());
    for link in [outside.clone(), PathBuf::from("../../outside"), PathBuf::from("zekka")] {
        write(&outside, &text);
        std::fs::remove_file(p.site()).expect("remove");
        symlink(&link, p.site()).expect("link");
        assert_eq!(p.blockers(&p.old).await, [Code::BadLayout], "{}", link.display());
        assert_eq!(failed(p.switch().await).code, Code::BadLayout);
        assert_eq!(read(&outside), text);
    }
}

#[tokio::test]
async fn resolve_finds_copies_by_the_names_that_people_give_them() {
    let p = proxy().await;
    let target = as_link(&p, true);
    let beside = |end: &str| p.conf.join(format!("available/zekka{end}"));
    let problem = p.driver.resolve("v2.9.0").await.expect_err("there is none");
    assert_eq!(problem.code, Code::Unresolved);
    for end in [".v2.9.0", "-v2.9.0", ".backup"] {
        let place = beside(end).display().to_string();
        assert!(problem.message.contains(&place), "{place}: {}", problem.message);
    }
    // The runbook's way, then the better ones: each wins over those before it.
    let live = read(&target);
    for end in [".backup", "-v2.9.0", ".v2.9.0"] {
        write(&beside(end), &live.replace("v3.0.0", &format!("old{end}")));
        let found = p.driver.resolve("v2.9.0").await.expect("resolve");
        assert!(
            found.summary.contains(&*beside(end).to_string_lossy()),
            "{}",
            found.summary
        );
        assert_eq!(found.summary.contains("says no release"), end == ".backup");
        assert_eq!(found.revision.version, "v2.9.0");
    }
    assert_eq!(
        p.driver.observe().await.expect("observe").revision,
        p.new,
        "nothing live changed"
    );
    let to = p.driver.resolve("v2.9.0").await.expect("resolve").revision;
    // It can come back after the copy is gone.
    std::fs::remove_file(beside(".v2.9.0")).expect("remove");
    p.driver
        .stage(&p.host.step(Action::Stage, &p.new, &to))
        .await
        .expect("stage");
    p.driver
        .switch(&p.host.step(Action::Switch, &p.new, &to))
        .await
        .expect("switch");
    assert_eq!(p.version().await, "old.v2.9.0");
    assert!(p.site().is_symlink());
    for bad in ["../x", "v2/9", ""] {
        assert_eq!(p.driver.resolve(bad).await.expect_err("bad").code, Code::BadName);
    }
}

#[tokio::test]
async fn trap_resolve_never_mixes_conventions() {
    let p = proxy_with(Setup {
        files: &[("sites/admin.conf", "# admin 3\n")],
        ..Setup::default()
    })
    .await;
    let workers = processes::children(p.master().pid);
    let site = |end: &str| p.conf.join(format!("sites/{end}"));
    write(&site("zekka.v2.9.0"), "# zekka 2\n");
    write(&site("admin.conf-v2.9.0"), "# admin 2\n");
    let problem = p.driver.resolve("v2.9.0").await.expect_err("a mixture");
    assert_eq!(problem.code, Code::Unresolved);
    let missing = site("admin.conf.v2.9.0").display().to_string();
    assert!(problem.message.contains(&missing), "{}", problem.message);
    write(&site("zekka.backup"), "# zekka 2\n");
    write(&site("admin.backup"), "# admin 2\n");
    let found = p.driver.resolve("v2.9.0").await.expect("whole");
    assert!(found.summary.contains("says no release"), "{}", found.summary);
    assert!(found.summary.contains("none of them includes"), "{}", found.summary);
    assert_eq!(processes::children(p.master().pid), workers);
}
