//! What the install program does in a worktree, with the real npm.

use std::path::Path;

use rollback_agent::driver::{Action, Driver};
use rollback_proto::problem::Code;

use crate::fixture::{fleet_with, git};
use crate::host::{failed, names, read, write};

/// A package with a dependency and a development dependency beside it: `npm ci` needs no registry.
fn package(repository: &Path) {
    let part = |name: &str, more: &str| format!("{{\"name\":\"{name}\",\"version\":\"1.0.0\"{more}}}");
    write(&repository.join("parts/left/package.json"), &part("left", ""));
    write(&repository.join("parts/left/index.js"), "module.exports = 'left';");
    write(&repository.join("parts/tool/package.json"), &part("tool", ""));
    let more = r#","dependencies":{"left":"file:parts/left"},"devDependencies":{"tool":"file:parts/tool"}"#;
    write(&repository.join("package.json"), &part("app", more));
    let output = std::process::Command::new("npm")
        .args(["install", "--package-lock-only", "--offline", "--no-audit", "--no-fund"])
        .current_dir(repository)
        .env("npm_config_cache", repository.join(".git/npm"))
        .output()
        .expect("run npm");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const NPM: &str = r#"
install = ["npm", "ci", "--omit=dev"]
install_env = { npm_config_cache = "/tmp/CACHE", npm_config_offline = "true", npm_config_update_notifier = "false" }
"#;

fn npm(cache: &tempfile::TempDir) -> String {
    NPM.replace("/tmp/CACHE", &cache.path().to_string_lossy())
}

#[tokio::test]
async fn npm_ci_runs_in_the_worktree_before_it_becomes_live() {
    let cache = tempfile::tempdir().expect("temporary directory");
    let f = fleet_with(&npm(&cache), package).await;
    assert!(f.blockers().await.is_empty());
    f.driver.stage(&f.step(Action::Stage)).await.expect("stage");
    let tree = f.release("v2.9.0");
    assert!(
        !names(&f.release("v3.0.0")).contains(&"node_modules".to_owned()),
        "the live release was touched"
    );
    assert_eq!(
        read(&tree.join("node_modules/left/index.js")),
        "module.exports = 'left';"
    );
    assert!(
        !names(&tree.join("node_modules")).contains(&"tool".to_owned()),
        "--omit=dev"
    );
    assert!(!names(cache.path()).is_empty(), "install_env reached npm");
    let made = std::fs::metadata(tree.join("node_modules"))
        .expect("look")
        .modified()
        .expect("time");
    let again = f.driver.stage(&f.step(Action::Stage)).await.expect("stage");
    assert!(again.summary.contains("is complete"), "{}", again.summary);
    assert_eq!(
        std::fs::metadata(tree.join("node_modules"))
            .expect("look")
            .modified()
            .expect("time"),
        made
    );
    f.driver.switch(&f.step(Action::Switch)).await.expect("switch");
}

#[tokio::test]
async fn a_failing_install_fails_the_stage_and_leaves_nothing() {
    let cache = tempfile::tempdir().expect("temporary directory");
    let f = fleet_with(&npm(&cache), |repository| {
        package(repository);
        // The lock file and the package say different things.
        let wrong =
            read(&repository.join("package.json")).replace("\"tool\":", "\"right\":\"file:parts/right\",\"tool\":");
        write(&repository.join("package.json"), &wrong);
    })
    .await;
    let problem = failed(f.driver.stage(&f.step(Action::Stage)).await);
    assert_eq!(problem.code, Code::ProgramFailed);
    assert!(
        problem.message.contains("npm ci --omit=dev") && problem.message.contains("npm error"),
        "{}",
        problem.message
    );
    assert_eq!(names(&f.root.join("releases")), ["v3.0.0"]);
    assert_eq!(f.link(), "v3.0.0");
    assert!(!git(&f.repository(), &["worktree", "list"]).contains("v2.9.0"));
    assert_eq!(names(&f.root.join(".rollbackctl")), ["tree~part~v3.0.0.json"]);
}

#[tokio::test]
async fn what_the_install_program_was_given_is_not_quoted() {
    let extra = "install = ['sh', '-c', 'echo no access with $NPM_TOKEN >&2; exit 1']\ninstall_env = { NPM_TOKEN = 'npm_s3cret' }";
    let f = fleet_with(extra, |_| {}).await;
    let problem = failed(f.driver.stage(&f.step(Action::Stage)).await);
    assert!(problem.message.ends_with("no access with [NPM_TOKEN]"), "{problem}");
}

/// `npm install` rewrites its lock file: that is no work of a person's, and the worktree is used again.
#[tokio::test]
async fn trap_an_install_program_that_writes_into_tracked_files() {
    let f = fleet_with("install = ['sh', '-c', 'echo // installed >> app.js']", |_| {}).await;
    f.driver.stage(&f.step(Action::Stage)).await.expect("stage");
    let again = f.driver.stage(&f.step(Action::Stage)).await.expect("stage");
    assert!(again.summary.contains("is complete"), "{}", again.summary);
    write(&f.release("v2.9.0/app.js"), "by hand");
    f.driver.stage(&f.step(Action::Stage)).await.expect("stage");
    assert_eq!(
        names(&f.root.join("releases")).len(),
        3,
        "changed by hand: left alone, another one beside it"
    );
}

/// What an install program makes may hold its own path, as a Python environment does: the worktree is never moved.
#[tokio::test]
async fn trap_installed_files_that_hold_their_own_path() {
    let f = fleet_with(
        "install = ['sh', '-c', 'mkdir node_modules && pwd -P > node_modules/home']",
        |_| {},
    )
    .await;
    f.stage_and_switch().await;
    let real = std::fs::canonicalize(f.root.join("current")).expect("resolve");
    assert_eq!(
        read(&f.root.join("current/node_modules/home")).trim(),
        real.to_string_lossy()
    );
}

#[tokio::test]
async fn a_missing_install_program_blocks() {
    let f = fleet_with("install = ['no-such-program', 'ci']", |_| {}).await;
    assert_eq!(f.blockers().await, [Code::ProgramFailed]);
    let f = fleet_with("install = ['npm', 'ci']\ninstall_env = { PATH = '/nowhere' }", |_| {}).await;
    assert_eq!(f.blockers().await, [Code::ProgramFailed]);
}
