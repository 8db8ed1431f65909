//! Worktrees: made beside the live one, used again, and never at the cost of somebody's work.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rollback_agent::driver::git::GitDriver;
use rollback_agent::driver::{Action, Driver, Probe, Severity};
use rollback_agent::processes;
use rollback_agent::step::{NoProgress, StepContext};
use rollback_agent::vault::Vault;
use rollback_proto::problem::Code;

use crate::fixture::{driver, fleet, fleet_with, git};
use crate::host::{eventually, failed, names, read, revision, script, write};

#[tokio::test]
async fn stages_switches_undoes_and_every_move_may_be_repeated() {
    let f = fleet().await;
    assert!(f.findings().await.is_empty(), "{:?}", f.findings().await);
    for _ in 0..2 {
        f.driver.stage(&f.step(Action::Stage)).await.expect("stage");
        assert_eq!(f.link(), "v3.0.0", "staging is beside the live release");
    }
    assert_eq!(names(&f.root.join("releases")), ["v2.9.0", "v3.0.0"]);
    assert!(matches!(
        f.driver.probe(&f.step(Action::Switch)).await,
        Probe::Repeatable(_)
    ));
    // A killed switch leaves its temporary link.
    symlink("releases/v2.9.0", f.root.join(".current.rollbackctl-rb-1")).expect("link");
    for _ in 0..2 {
        let done = f.driver.switch(&f.step(Action::Switch)).await.expect("switch");
        assert_eq!(done.observed, Some(f.old.clone()));
        assert_eq!(read(&f.root.join("current/app.js")), "// v2.9.0");
    }
    assert!(matches!(
        f.driver.probe(&f.step(Action::Switch)).await,
        Probe::Applied(_)
    ));
    f.driver.switch(&f.back(Action::Switch)).await.expect("undo");
    assert_eq!(f.link(), "v3.0.0");
    f.driver.switch(&f.step(Action::Switch)).await.expect("switch");
    f.driver.finish(&f.step(Action::Finish)).await.expect("finish");
    // What is over is not ours to discard, and the other release is there for the way forward.
    f.driver.discard(&f.step(Action::Discard)).await.expect("discard");
    assert_eq!(names(&f.root.join("releases")), ["v2.9.0", "v3.0.0"]);
    assert_eq!(names(&f.root), [".rollbackctl", "current", "releases", "repo"]);
    f.driver
        .switch(&f.back(Action::Switch))
        .await
        .expect("forward, without staging anything");
    assert_eq!(f.link(), "v3.0.0");
}

#[tokio::test]
async fn discard_removes_what_stage_made_and_nothing_else() {
    let f = fleet().await;
    f.driver.stage(&f.step(Action::Stage)).await.expect("stage");
    write(&f.release("by-hand/app.js"), "not ours");
    f.driver.discard(&f.step(Action::Discard)).await.expect("discard");
    assert_eq!(names(&f.root.join("releases")), ["by-hand", "v3.0.0"]);
    assert!(!git(&f.repository(), &["worktree", "list"]).contains("v2.9.0"));
    f.driver
        .discard(&f.step(Action::Discard))
        .await
        .expect("discard of nothing");
    // Nor what is live, nor what somebody has changed since.
    f.stage_and_switch().await;
    f.driver.discard(&f.step(Action::Discard)).await.expect("discard");
    assert_eq!(read(&f.root.join("current/app.js")), "// v2.9.0");
    f.driver.switch(&f.back(Action::Switch)).await.expect("undo");
    write(&f.release("v2.9.0/app.js"), "work of hours");
    let done = f.driver.discard(&f.step(Action::Discard)).await.expect("discard");
    assert!(done.summary.contains("v2.9.0"), "{}", done.summary);
    assert_eq!(read(&f.release("v2.9.0/app.js")), "work of hours");
}

/// `git checkout v2.9.0` overwrites a local file without a word when it is ignored and v2.9.0 has it.
#[tokio::test]
async fn trap_checkout_overwrites_an_ignored_local_file() {
    let f = fleet_with("", |repository| {
        write(&repository.join("local.conf"), "the default");
        git(repository, &["add", "--force", "local.conf"]);
    })
    .await;
    git(&f.repository(), &["rm", "--quiet", "--cached", "local.conf"]);
    git(
        &f.repository(),
        &["commit", "--quiet", "-m", "everybody has an own one"],
    );
    git(&f.release("v3.0.0"), &["checkout", "--quiet", "--detach", "main"]);
    write(&f.release("v3.0.0/local.conf"), "of this host");
    write(&f.repository().join("local.conf"), "of this person");
    // The trap itself, so that this test can fail.
    let victim = f.host.path().join("victim");
    git(
        &f.repository(),
        &[
            "worktree",
            "add",
            "--quiet",
            "--detach",
            &victim.to_string_lossy(),
            "main",
        ],
    );
    write(&victim.join("local.conf"), "of this host");
    git(&victim, &["checkout", "--quiet", "v2.9.0"]);
    assert_eq!(read(&victim.join("local.conf")), "the default", "git does it any more?");

    let from = f.driver.observe().await.expect("observe").revision;
    let step = |action| f.host.step(action, &from, &f.old);
    f.driver.stage(&step(Action::Stage)).await.expect("stage");
    f.driver.switch(&step(Action::Switch)).await.expect("switch");
    assert_eq!(read(&f.root.join("current/local.conf")), "the default");
    assert_eq!(read(&f.release("v3.0.0/local.conf")), "of this host");
    assert_eq!(read(&f.repository().join("local.conf")), "of this person");
}

#[tokio::test]
async fn trap_a_dirty_tree_is_a_finding_and_survives() {
    let f = fleet().await;
    write(&f.release("v3.0.0/app.js"), "// mended at night");
    let seen = f.driver.observe().await.expect("observe");
    assert_eq!(seen.revision, f.new);
    assert!(seen.detail.contains("app.js"), "{}", seen.detail);
    let findings = f.findings().await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(
        (findings[0].severity, findings[0].problem.code),
        (Severity::Warning, Code::GitUnfit)
    );
    f.stage_and_switch().await;
    // Undo means what was there, and not what should have been there.
    f.driver.switch(&f.back(Action::Switch)).await.expect("undo");
    assert_eq!(read(&f.root.join("current/app.js")), "// mended at night");
    // Whereas a rollback to this release means the release.
    f.stage_and_switch().await;
    f.driver.finish(&f.step(Action::Finish)).await.expect("finish");
    f.driver
        .stage(&f.back(Action::Stage))
        .await
        .expect("stage the release that was left");
    f.driver.switch(&f.back(Action::Switch)).await.expect("switch");
    assert_eq!(read(&f.root.join("current/app.js")), "// v3.0.0");
    assert!(f.link().starts_with("v3.0.0+"), "{}", f.link());
    assert_eq!(read(&f.release("v3.0.0/app.js")), "// mended at night");
}

#[tokio::test]
async fn trap_hooks_of_the_repository_are_not_run() {
    let f = fleet().await;
    let witness = f.host.path().join("ran");
    for hook in ["post-checkout", "reference-transaction", "post-index-change"] {
        script(
            &f.repository().join(".git/hooks").join(hook),
            &format!("echo {hook} >> {}", witness.display()),
        );
    }
    f.stage_and_switch().await;
    f.driver.finish(&f.step(Action::Finish)).await.expect("finish");
    assert!(!witness.exists(), "{}", read(&witness));
}

/// A replaced object puts other content under the same commit id.
#[tokio::test]
async fn trap_a_replaced_commit() {
    let f = fleet().await;
    git(&f.repository(), &["replace", "v2.9.0", "v3.0.0"]);
    f.stage_and_switch().await;
    assert_eq!(read(&f.root.join("current/app.js")), "// v2.9.0");
}

#[tokio::test]
async fn trap_killed_inside_stage() {
    let f = fleet_with(
        "install = ['sh', '-c', 'mkdir node_modules && echo done > node_modules/mark']",
        |_| {},
    )
    .await;
    f.driver.stage(&f.step(Action::Stage)).await.expect("stage");
    // As a kill in `git worktree add` leaves it: half of the files, no index, a lock, and our note says that it was begun.
    let note = f.root.join(".rollbackctl/tree~part~v2.9.0.json");
    let text: serde_json::Value = serde_json::from_str(&read(&note)).expect("a note");
    let mut begun = text.clone();
    begun["state"] = "making".into();
    let admin = f.repository().join(".git/worktrees/v2.9.0");
    let killed_here: [&dyn Fn(); 4] = [
        &|| {
            std::fs::remove_file(f.release("v2.9.0/app.js")).expect("remove");
            std::fs::remove_file(admin.join("index")).expect("remove");
            write(&admin.join("index.lock"), "");
            write(&admin.join("locked"), "initializing");
        },
        // In the install program.
        &|| std::fs::remove_dir_all(f.release("v2.9.0/node_modules")).expect("remove"),
        // Before git had made its own notes.
        &|| {
            std::fs::remove_dir_all(&admin).expect("remove");
            std::fs::remove_file(f.release("v2.9.0/.git")).expect("remove");
        },
        // Inside of our own clearing up.
        &|| std::fs::remove_dir_all(f.release("v2.9.0")).expect("remove"),
    ];
    for (case, kill) in killed_here.iter().enumerate() {
        kill();
        write(&note, &begun.to_string());
        let problem = failed(f.driver.switch(&f.step(Action::Switch)).await);
        assert_eq!(
            problem.code,
            Code::RevisionMissing,
            "case {case}: half a release became live"
        );
        f.driver.stage(&f.step(Action::Stage)).await.expect("again");
        assert_eq!(names(&f.root.join("releases")), ["v2.9.0", "v3.0.0"], "case {case}");
        assert_eq!(read(&f.release("v2.9.0/app.js")), "// v2.9.0", "case {case}");
        assert_eq!(read(&f.release("v2.9.0/node_modules/mark")), "done\n", "case {case}");
    }
    kill_and_discard(&f, &note, &begun).await;
}

async fn kill_and_discard(f: &crate::fixture::Fleet, note: &std::path::Path, begun: &serde_json::Value) {
    write(note, &begun.to_string());
    f.driver.discard(&f.step(Action::Discard)).await.expect("discard");
    assert_eq!(names(&f.root.join("releases")), ["v3.0.0"]);
    assert_eq!(
        git(&f.repository(), &["worktree", "list", "--porcelain"])
            .matches("worktree ")
            .count(),
        2
    );
}

/// A killed `git update-ref` leaves its lock for ever.
#[tokio::test]
async fn trap_a_lock_that_a_killed_git_left() {
    let f = fleet().await;
    let commit = f.old.digest.trim_start_matches("git:");
    let keeper = f.repository().join(".git/refs/rollbackctl/part").join(commit);
    std::fs::remove_file(&keeper).expect("the ref that resolve made");
    let lock = keeper.with_extension("lock");
    write(&lock, "");
    let problem = f.driver.resolve("v2.9.0").await.expect_err("somebody may be at work");
    assert!(problem.message.contains(".lock"), "{}", problem.message);
    let file = std::fs::File::options().write(true).open(&lock).expect("open");
    file.set_modified(SystemTime::now() - Duration::from_secs(120))
        .expect("set time");
    f.driver.stage(&f.step(Action::Stage)).await.expect("stage");
    assert_eq!(read(&keeper).trim(), commit);
}

#[tokio::test]
async fn a_worktree_whose_installed_files_are_gone_is_not_used() {
    let f = fleet_with(
        "install = ['sh', '-c', 'mkdir node_modules && echo x > node_modules/mark']",
        |_| {},
    )
    .await;
    f.driver.stage(&f.step(Action::Stage)).await.expect("stage");
    std::fs::remove_dir_all(f.release("v2.9.0/node_modules")).expect("remove");
    let findings = f.findings().await;
    assert!(
        findings
            .iter()
            .any(|finding| finding.problem.message.contains("node_modules/ is gone")),
        "{findings:?}"
    );
    assert!(
        failed(f.driver.switch(&f.step(Action::Switch)).await)
            .message
            .contains("node_modules")
    );
    f.stage_and_switch().await;
    assert_eq!(read(&f.root.join("current/node_modules/mark")), "x\n");
}

#[tokio::test]
async fn somebody_elses_directory_keeps_its_name() {
    let f = fleet().await;
    write(&f.release("v2.9.0/app.js"), "unpacked by hand");
    f.stage_and_switch().await;
    assert!(f.link().starts_with("v2.9.0+"), "{}", f.link());
    assert_eq!(f.driver.observe().await.expect("observe").revision.version, "v2.9.0");
    assert_eq!(read(&f.release("v2.9.0/app.js")), "unpacked by hand");
}

/// A plain directory in a checkout: git would answer with the checkout around it.
#[tokio::test]
async fn trap_a_directory_within_another_checkout() {
    let f = fleet().await;
    git(&f.root, &["init", "--quiet"]);
    write(&f.root.join("README"), "x");
    git(&f.root, &["add", "README"]);
    git(&f.root, &["commit", "--quiet", "-m", "around it"]);
    write(&f.release("unpacked/app.js"), "x");
    std::fs::remove_file(f.root.join("current")).expect("remove");
    symlink("releases/unpacked", f.root.join("current")).expect("link");
    assert_eq!(f.driver.observe().await.expect_err("no worktree").code, Code::GitUnfit);
}

#[tokio::test]
async fn a_checkout_in_place_is_not_touched_and_the_way_out_is_said() {
    let f = fleet().await;
    std::fs::remove_file(f.root.join("current")).expect("remove");
    let at = f.root.join("current");
    git(
        &f.repository(),
        &[
            "worktree",
            "add",
            "--quiet",
            "--detach",
            &at.to_string_lossy(),
            "v3.0.0",
        ],
    );
    assert_eq!(f.blockers().await, [Code::BadLayout]);
    f.driver.stage(&f.step(Action::Stage)).await.expect("stage is harmless");
    let problem = failed(f.driver.switch(&f.step(Action::Switch)).await);
    assert_eq!(problem.code, Code::BadLayout);
    assert!(
        problem.remedy.contains("worktree add --detach") && problem.remedy.contains("ln -sfT"),
        "{}",
        problem.remedy
    );
    assert_eq!(read(&at.join("app.js")), "// v3.0.0");
}

#[tokio::test]
async fn shared_paths_are_links_and_take_nothing_from_the_release() {
    let f = fleet_with("shared = ['.env', 'uploads', 'config/local.json']", |repository| {
        write(&repository.join("uploads/.gitkeep"), "");
        write(&repository.join("config/app.json"), "{}");
        let outside = repository.with_file_name("outside");
        std::fs::create_dir(&outside).expect("directory");
        std::os::unix::fs::symlink(outside, repository.join("out")).expect("link");
    })
    .await;
    let found = f.blockers().await;
    assert_eq!(found, [Code::BadLayout; 3], "nothing is in shared yet");
    write(&f.root.join("shared/.env"), "SECRET=1");
    write(&f.root.join("shared/uploads/a.png"), "png");
    write(&f.root.join("shared/config/local.json"), "{\"here\":1}");
    assert!(f.blockers().await.is_empty());
    f.stage_and_switch().await;
    let current = f.root.join("current");
    assert_eq!(read(&current.join(".env")), "SECRET=1");
    assert_eq!(read(&current.join("uploads/a.png")), "png");
    assert_eq!(names(&current.join("config")), ["app.json", "local.json"]);
    assert!(
        !f.driver.observe().await.expect("observe").detail.contains("changed"),
        "the links are no changes"
    );
    // Removing the worktree must not follow the links.
    f.driver.switch(&f.back(Action::Switch)).await.expect("undo");
    f.driver.discard(&f.step(Action::Discard)).await.expect("discard");
    assert_eq!(read(&f.root.join("shared/uploads/a.png")), "png");

    // Nor is anything made where a link of the release leads.
    let elsewhere = driver(&f.host, "shared = ['out/there/app.conf']").expect("driver");
    write(&f.root.join("shared/out/there/app.conf"), "x");
    let problem = failed(elsewhere.stage(&f.step(Action::Stage)).await);
    assert_eq!(problem.code, Code::BadLayout, "{problem}");
    assert!(names(&f.root.join("outside")).is_empty());

    // A file of the release is never replaced.
    let strict = driver(&f.host, "shared = ['app.js']").expect("driver");
    write(&f.root.join("shared/app.js"), "x");
    let problem = failed(strict.stage(&f.step(Action::Stage)).await);
    assert_eq!(problem.code, Code::BadLayout);
    assert_eq!(names(&f.root.join("releases")), ["v3.0.0"]);
}

/// The first one waits until it is told to go on, and says where it was at work then.
const SLOW_INSTALL: &str = r#"install = ['sh', '-c', '''
d=$PWD
echo $$ >> ../../begun
[ $(wc -l < ../../begun) -gt 1 ] || { until [ -e "$d/../../go" ]; do sleep 0.02; done; mkdir -p "$d"; echo late > "$d/late"; }
''']"#;

/// Not a test: the agent that the next one kills.
#[tokio::test]
#[ignore = "is run, and killed, by another test"]
async fn agent_that_stages() {
    let given = |name: &str| std::env::var(name).expect("set by the test that runs this one");
    let dir = std::path::PathBuf::from(given("STAGE_IN"));
    let vault = Arc::new(Vault::open(dir.join("vault")).expect("vault"));
    let text = format!(
        "root = '{0}/app'\nrepository = '{0}/app/repo'\n{SLOW_INSTALL}",
        dir.display()
    );
    let config = toml::from_str(&text).expect("config");
    let driver = GitDriver::new("part", config, Arc::clone(&vault)).expect("driver");
    let (from, to) = (
        revision("v3.0.0", &given("STAGE_FROM")),
        revision("v2.9.0", &given("STAGE_TO")),
    );
    let (limit, progress) = (Duration::from_secs(60), Arc::new(NoProgress));
    let step = StepContext::new(
        "rb-1".into(),
        "part".into(),
        Action::Stage,
        from,
        to,
        limit,
        vault,
        progress,
    );
    driver.stage(&step).await.expect("stage");
}

/// `kill -9` of an agent leaves the install program at work.
#[tokio::test]
async fn trap_an_install_program_that_outlives_the_agent() {
    let f = fleet_with(SLOW_INSTALL, |_| {}).await;
    let mut agent = Command::new(std::env::current_exe().expect("this program"))
        .args(["trees::agent_that_stages", "--exact", "--ignored"])
        .env("STAGE_IN", f.host.path())
        .env("STAGE_FROM", &f.new.digest)
        .env("STAGE_TO", &f.old.digest)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start");
    let begun = f.root.join("begun");
    eventually("the install program begins", || {
        std::fs::read_to_string(&begun).is_ok_and(|text| text.ends_with('\n'))
    })
    .await;
    let install = processes::identity(read(&begun).trim().parse().expect("a number")).expect("it waits");
    agent.kill().expect("kill -9");
    agent.wait().expect("wait");
    assert!(processes::alive(install), "or there is nothing to guard against");
    f.driver
        .stage(&f.step(Action::Stage))
        .await
        .expect("the next agent stages again");
    write(&f.root.join("go"), "");
    eventually("the first install program is over", || !processes::alive(install)).await;
    let tree = f.release("v2.9.0");
    assert!(
        !names(&tree).contains(&"late".to_owned()),
        "it wrote into a complete release"
    );
    assert_eq!(read(&begun).lines().count(), 2);
}

#[tokio::test]
async fn what_is_forgotten_loses_its_ref_and_the_worktree_that_was_made_of_it() {
    let f = fleet().await;
    let refs = || git(&f.repository(), &["for-each-ref", "refs/rollbackctl"]);
    let commit = f.old.digest.trim_start_matches("git:").to_owned();
    f.stage_and_switch().await;
    f.driver.finish(&f.step(Action::Finish)).await.expect("finish");
    f.driver.switch(&f.back(Action::Switch)).await.expect("forward");
    f.driver.finish(&f.back(Action::Finish)).await.expect("finish");
    assert!(refs().contains(&commit));
    // Somebody works in it.
    write(&f.release("v2.9.0/app.js"), "work of hours");
    let said = f.driver.forget(&f.old, &[]).await.expect("forget");
    assert!(said.contains("stays: files in it were changed"), "{said}");
    assert_eq!(read(&f.release("v2.9.0/app.js")), "work of hours");
    assert!(!refs().contains(&commit), "{}", refs());
    write(&f.release("v2.9.0/app.js"), "// v2.9.0");
    f.driver.forget(&f.old, &[]).await.expect("again");
    assert_eq!(names(&f.root.join("releases")), ["v3.0.0"]);
    assert!(!git(&f.repository(), &["worktree", "list"]).contains("v2.9.0"));
    // What is live has its ref, and is found by its tag when somebody wants it back.
    assert!(refs().contains(f.new.digest.trim_start_matches("git:")));
    assert_eq!(f.driver.resolve("v2.9.0").await.expect("resolve").revision, f.old);
    assert_eq!(
        f.driver.forget(&f.old, &[]).await.expect("forget").matches(';').count(),
        0
    );
    assert_eq!(
        f.driver.forget(&f.old, &[]).await.expect("again"),
        "nothing was kept for it"
    );
}
