//! Repositories that are broken, thin, pruned, or somebody else's.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rollback_agent::driver::{Action, Driver, Severity};
use rollback_proto::problem::Code;

use crate::fixture::{commit_all, driver, fleet, fleet_with, git};
use crate::host::{failed, names, read, write};

#[tokio::test]
async fn trap_missing_objects_block_at_preflight() {
    let f = fleet().await;
    f.lose_object("v2.9.0:app.js");
    assert_eq!(f.blockers().await, [Code::GitUnfit]);
    assert_eq!(
        f.driver.resolve("v2.9.0").await.expect_err("not whole").code,
        Code::GitUnfit
    );
    let problem = failed(f.driver.stage(&f.step(Action::Stage)).await);
    assert_eq!(problem.code, Code::GitUnfit);
    assert_eq!(names(&f.root.join("releases")), ["v3.0.0"], "half a release was left");
    f.lose_object("v2.9.0");
    assert_eq!(f.blockers().await.last(), Some(&Code::RevisionMissing));
}

#[tokio::test]
async fn trap_gc_after_the_tag_was_deleted() {
    let f = fleet().await;
    let repository = f.repository();
    // A release on a branch that is rebased away, with its tag and its worktree deleted.
    git(&repository, &["checkout", "--quiet", "--orphan", "side"]);
    write(&repository.join("app.js"), "// only here");
    let commit = commit_all(&repository, "side");
    let unkept = {
        write(&repository.join("app.js"), "// not recorded");
        commit_all(&repository, "side, later")
    };
    git(&repository, &["tag", "v1.0.0", &commit]);
    let side = f.driver.resolve("v1.0.0").await.expect("resolve").revision;
    git(&repository, &["checkout", "--quiet", "main"]);
    git(&repository, &["branch", "-D", "side"]);
    git(&repository, &["tag", "--delete", "v1.0.0"]);
    git(&repository, &["reflog", "expire", "--expire=now", "--all"]);
    git(&repository, &["gc", "--quiet", "--prune=now"]);
    let output = std::process::Command::new("git")
        .arg("-C")
        .arg(&repository)
        .args(["cat-file", "-e", &unkept])
        .output()
        .expect("git");
    assert!(
        !output.status.success(),
        "gc collected nothing: this test proves nothing"
    );
    let step = |action| f.host.step(action, &f.new, &side);
    let found = f.driver.prepare(&step(Action::Prepare)).await;
    assert!(
        found.iter().all(|finding| finding.severity != Severity::Blocker),
        "{found:?}"
    );
    f.driver.stage(&step(Action::Stage)).await.expect("stage");
    f.driver.switch(&step(Action::Switch)).await.expect("switch");
    assert_eq!(read(&f.root.join("current/app.js")), "// only here");
}

fn give_to(path: &std::path::Path, uid: u32) {
    if path.is_dir() && !path.is_symlink() {
        for name in names(path) {
            give_to(&path.join(name), uid);
        }
    }
    std::os::unix::fs::lchown(path, Some(uid), None).expect("these tests run as root");
}

/// Whoever owns a repository makes git run programs (filters, ssh commands).
#[tokio::test]
async fn trap_dubious_ownership() {
    let f = fleet().await;
    let nobody = 65534;
    give_to(&f.root, nobody);
    assert!(f.blockers().await.contains(&Code::GitUnfit));
    let problem = f.driver.observe().await.expect_err("refused");
    assert_eq!(problem.code, Code::GitUnfit);
    assert!(problem.remedy.contains("owner = "), "{}", problem.remedy);
    assert!(
        failed(f.driver.stage(&f.step(Action::Stage)).await)
            .remedy
            .contains("owner = ")
    );

    // Named in the configuration, git and the install program are run as the owner, and not as root.
    std::fs::set_permissions(f.host.path(), std::fs::Permissions::from_mode(0o711)).expect("mode");
    let install = "owner = 'nobody'\ninstall = ['sh', '-c', 'id -un > made-by']";
    let theirs = driver(&f.host, install).expect("driver");
    let found = theirs.prepare(&f.step(Action::Prepare)).await;
    assert!(found.is_empty(), "{found:?}");
    theirs.stage(&f.step(Action::Stage)).await.expect("stage");
    theirs.switch(&f.step(Action::Switch)).await.expect("switch");
    let current = f.root.join("current");
    assert_eq!(read(&current.join("made-by")), "nobody\n");
    assert_eq!(std::fs::metadata(current.join("app.js")).expect("look").uid(), nobody);
    let unknown = driver(&f.host, "owner = 'no-such-user'").expect("driver");
    assert!(
        unknown
            .observe()
            .await
            .expect_err("unknown")
            .message
            .contains("no-such-user")
    );
}

#[tokio::test]
async fn a_shallow_clone_without_the_commit_blocks_and_fetch_brings_it() {
    let f = fleet_with("fetch = true", |_| {}).await;
    // The host's repository is a thin clone of what has been the repository so far.
    let (repository, upstream) = (f.repository(), f.host.path().join("upstream"));
    git(
        &f.root,
        &[
            "clone",
            "--quiet",
            "--bare",
            &repository.to_string_lossy(),
            &upstream.to_string_lossy(),
        ],
    );
    git(
        &repository,
        &["worktree", "remove", "--force", &f.release("v3.0.0").to_string_lossy()],
    );
    std::fs::remove_dir_all(&repository).expect("remove");
    let url = format!("file://{}", upstream.display());
    git(
        &f.root,
        &[
            "clone",
            "--quiet",
            "--depth=1",
            "--no-tags",
            &url,
            &repository.to_string_lossy(),
        ],
    );
    git(
        &repository,
        &[
            "worktree",
            "add",
            "--quiet",
            "--detach",
            &f.release("v3.0.0").to_string_lossy(),
            "HEAD",
        ],
    );

    let offline = driver(&f.host, "").expect("driver");
    let found = offline.prepare(&f.step(Action::Prepare)).await;
    let blocker = found
        .iter()
        .find(|finding| finding.severity == Severity::Blocker)
        .expect("a blocker");
    assert_eq!(blocker.problem.code, Code::RevisionMissing);
    assert!(
        blocker.problem.message.contains("shallow"),
        "{}",
        blocker.problem.message
    );
    assert!(
        blocker.problem.remedy.contains("--unshallow"),
        "{}",
        blocker.problem.remedy
    );
    assert_eq!(
        failed(offline.stage(&f.step(Action::Stage)).await).code,
        Code::RevisionMissing
    );
    assert_eq!(
        offline.resolve("v2.9.0").await.expect_err("no tag").code,
        Code::Unresolved
    );

    assert!(f.blockers().await.is_empty(), "it can be fetched");
    // The remote's tag was moved: what would come is not what was recorded.
    let recorded = git(&upstream, &["rev-parse", "v2.9.0"]);
    git(&upstream, &["tag", "--force", "v2.9.0", "v3.0.0"]);
    assert_eq!(f.blockers().await, [Code::NameMoved]);
    git(&upstream, &["tag", "--force", "v2.9.0", &recorded]);
    f.stage_and_switch().await;
    assert_eq!(read(&f.root.join("current/app.js")), "// v2.9.0");
    assert_eq!(f.driver.resolve("v3.0.0").await.expect("fetched").revision, f.new);
}

/// `git remote update --prune` in a mirror deletes every ref that the remote does not have, ours among them.
#[tokio::test]
async fn trap_a_mirror_that_prunes_our_refs() {
    let f = fleet().await;
    let upstream = f.host.path().join("upstream");
    git(
        &f.root,
        &[
            "clone",
            "--quiet",
            "--bare",
            &f.repository().to_string_lossy(),
            &upstream.to_string_lossy(),
        ],
    );
    git(
        &f.repository(),
        &["remote", "add", "--mirror=fetch", "origin", &upstream.to_string_lossy()],
    );
    let findings = f.findings().await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].severity, Severity::Warning);
    // The remedy does what it says.
    let remedy = findings[0].problem.remedy.replace('\'', "");
    let words: Vec<&str> = remedy.split(' ').skip(3).collect();
    git(&f.repository(), &words);
    assert!(f.findings().await.is_empty());
    git(&f.repository(), &["branch", "gone"]);
    git(
        &f.repository(),
        &[
            "-c",
            "core.bare=true",
            "fetch",
            "--quiet",
            "--prune",
            "--update-head-ok",
            "origin",
        ],
    );
    assert!(
        git(&f.repository(), &["for-each-ref", "refs/rollbackctl"]).contains(f.old.digest.trim_start_matches("git:"))
    );
}

/// Large files come as pointers, without a word, when the filter is defined for a person and not for the repository.
#[tokio::test]
async fn trap_a_filter_that_the_repository_does_not_define() {
    let f = fleet_with("", |repository| {
        write(
            &repository.join(".gitattributes"),
            "*.png filter=lfs diff=lfs merge=lfs -text\n",
        );
    })
    .await;
    assert_eq!(f.blockers().await, [Code::GitUnfit]);
    git(&f.repository(), &["config", "filter.lfs.smudge", "cat"]);
    assert!(f.blockers().await.is_empty());
}
