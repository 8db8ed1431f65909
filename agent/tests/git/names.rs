//! From a release's name to a commit.

use rollback_agent::driver::{Action, Driver, Severity};
use rollback_proto::problem::Code;

use crate::fixture::{commit_all, driver, fleet, fleet_with, git};
use crate::host::{failed, revision, write};

/// `git fetch origin --upload-pack=…` runs the command.
#[tokio::test]
async fn trap_a_ref_that_is_an_option_runs_nothing() {
    let f = fleet_with("fetch = true", |_| {}).await;
    git(
        &f.repository(),
        &["remote", "add", "origin", &f.repository().to_string_lossy()],
    );
    let witness = f.host.path().join("ran");
    let hostile = format!("--upload-pack=touch {};git-upload-pack", witness.display());
    let problem = f.driver.resolve(&hostile).await.expect_err("refused");
    assert_eq!(problem.code, Code::BadName);
    // A commit that is not here makes the name an argument of `git fetch`.
    let to = revision(&hostile, &format!("git:{}", "1".repeat(40)));
    let step = f.host.step(Action::Stage, &f.new, &to);
    assert_eq!(failed(f.driver.stage(&step).await).code, Code::BadName);
    let findings = f.driver.prepare(&step).await;
    assert_eq!(findings.last().expect("a finding").problem.code, Code::BadName);
    // The digest comes from another machine, too.
    let to = revision("v2.9.0", "git:--upload-pack=x");
    let step = f.host.step(Action::Switch, &f.new, &to);
    assert_eq!(failed(f.driver.switch(&step).await).code, Code::BadName);
    assert_eq!(
        driver(&f.host, "remote = '--upload-pack=x'").expect_err("refused").code,
        Code::BadConfig
    );
    assert!(!witness.exists(), "the command ran");
}

#[tokio::test]
async fn trap_check_ref_format_accepts_what_a_shell_would_run() {
    let f = fleet().await;
    for name in ["v1;rm", "v1$(id)", "v1`id`"] {
        git(&f.repository(), &["check-ref-format", &format!("refs/tags/{name}")]);
        git(&f.repository(), &["tag", name]);
        assert_eq!(f.driver.resolve(name).await.expect_err(name).code, Code::BadName);
    }
}

#[tokio::test]
async fn trap_a_branch_and_a_tag_of_one_name() {
    let f = fleet().await;
    let tagged = git(&f.repository(), &["rev-parse", "refs/tags/v2.9.0"]);
    git(&f.repository(), &["branch", "v2.9.0", "main"]);
    assert_eq!(
        f.driver.resolve("v2.9.0").await.expect("resolve").revision.digest,
        format!("git:{tagged}")
    );
    assert!(f.blockers().await.is_empty());
    // A branch alone is not a release.
    git(&f.repository(), &["branch", "v2.8.0", "main"]);
    let problem = f.driver.resolve("v2.8.0").await.expect_err("a branch");
    assert_eq!(problem.code, Code::Unresolved);
    assert!(
        problem.message.contains("refs/tags/v2.8.0") && problem.message.contains("v3.0.0"),
        "{}",
        problem.message
    );
}

#[tokio::test]
async fn trap_an_annotated_tag_is_not_the_commit() {
    let f = fleet_with("tag = 'app/{release}-final'", |repository| {
        // So that the fixture's own release is found.
        commit_all(repository, "first");
        git(repository, &["tag", "--annotate", "-m", "x", "app/v2.9.0-final"]);
    })
    .await;
    let commit = git(&f.repository(), &["rev-parse", "app/v2.9.0-final^{commit}"]);
    assert_ne!(commit, git(&f.repository(), &["rev-parse", "app/v2.9.0-final"]));
    assert_eq!(f.old.digest, format!("git:{commit}"));
    f.stage_and_switch().await;
    assert_eq!(f.driver.observe().await.expect("observe").revision, f.old);
}

#[tokio::test]
async fn trap_a_moved_tag_blocks() {
    let f = fleet().await;
    let recorded = git(&f.repository(), &["rev-parse", "v2.9.0"]);
    git(&f.repository(), &["tag", "--force", "v2.9.0", "main"]);
    assert_eq!(f.blockers().await, [Code::NameMoved]);
    // The recorded commit is what would be deployed, whatever the tag says.
    f.stage_and_switch().await;
    assert_eq!(git(&f.release("v2.9.0"), &["rev-parse", "HEAD"]), recorded);
    git(&f.repository(), &["tag", "--force", "v2.9.0", &recorded]);
    assert!(f.blockers().await.is_empty());
}

#[tokio::test]
async fn a_commit_is_named_by_its_tag_else_by_the_release_that_recorded_it() {
    let f = fleet().await;
    write(&f.repository().join("app.js"), "// hot fix");
    let commit = commit_all(&f.repository(), "hot fix");
    let tree = f.release("fix");
    git(
        &f.repository(),
        &[
            "worktree",
            "add",
            "--quiet",
            "--detach",
            &tree.to_string_lossy(),
            "main",
        ],
    );
    std::fs::remove_file(f.root.join("current")).expect("remove");
    std::os::unix::fs::symlink(&tree, f.root.join("current")).expect("link");
    assert_eq!(
        f.driver.observe().await.expect("observe").revision.version,
        commit[..12]
    );
    // Two tags on one commit: whoever recorded it knows which one is meant.
    git(&f.repository(), &["tag", "v3.0.1"]);
    git(&f.repository(), &["tag", "v3.0.1-rc.2"]);
    assert_eq!(
        f.driver.retain("v3.0.1").await.expect("retain").revision.version,
        "v3.0.1"
    );
    assert_eq!(f.driver.observe().await.expect("observe").revision.version, "v3.0.1");
}

#[tokio::test]
async fn a_deleted_tag_is_no_more_than_a_warning() {
    let f = fleet().await;
    git(&f.repository(), &["tag", "--delete", "v2.9.0"]);
    let findings = f.findings().await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(
        (findings[0].severity, findings[0].problem.code),
        (Severity::Warning, Code::NameMoved)
    );
}
