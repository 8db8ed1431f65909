//! A repository with two releases, v3.0.0 checked out in a worktree and live, v2.9.0 known by its tag alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rollback_agent::driver::git::{GitConfig, GitDriver};
use rollback_agent::driver::{Action, Driver, Finding, Revision, Severity};
use rollback_agent::step::StepContext;
use rollback_proto::problem::{Code, Problem};

use crate::host::{Host, write};

pub struct Fleet {
    pub host: Host,
    pub root: PathBuf,
    pub driver: GitDriver,
    pub old: Revision,
    pub new: Revision,
}

/// What a person would do by hand. Panics with git's words when git refuses.
pub fn git(at: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .arg("-C")
        .arg(at)
        .args([
            "-c",
            "user.name=Test",
            "-c",
            "user.email=test@example.org",
            "-c",
            "safe.directory=*",
        ])
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .expect("run git");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub fn commit_all(repository: &Path, message: &str) -> String {
    git(repository, &["add", "--all"]);
    git(repository, &["commit", "--quiet", "--allow-empty", "-m", message]);
    git(repository, &["rev-parse", "HEAD"])
}

pub fn driver(host: &Host, extra: &str) -> Result<GitDriver, Problem> {
    let root = host.path().join("app");
    let text = format!("root = '{0}'\nrepository = '{0}/repo'\n{extra}", root.display());
    let config: GitConfig = toml::from_str(&text).expect("config");
    GitDriver::new("part", config, Arc::clone(&host.vault))
}

pub async fn fleet_with(extra: &str, fill: impl FnOnce(&Path)) -> Fleet {
    let host = Host::new();
    let root = host.path().join("app");
    let repository = root.join("repo");
    std::fs::create_dir_all(&repository).expect("directory");
    std::fs::create_dir_all(root.join("releases")).expect("directory");
    git(&repository, &["init", "--quiet", "--initial-branch=main"]);
    write(&repository.join(".gitignore"), "node_modules/\nlocal.conf\n");
    write(&repository.join("app.js"), "// v2.9.0");
    fill(&repository);
    commit_all(&repository, "the one that worked");
    git(&repository, &["tag", "v2.9.0"]);
    write(&repository.join("app.js"), "// v3.0.0");
    commit_all(&repository, "the one that does not");
    git(&repository, &["tag", "v3.0.0"]);
    let live = root.join("releases/v3.0.0");
    git(
        &repository,
        &[
            "worktree",
            "add",
            "--quiet",
            "--detach",
            &live.to_string_lossy(),
            "v3.0.0",
        ],
    );
    std::os::unix::fs::symlink("releases/v3.0.0", root.join("current")).expect("link");
    let driver = driver(&host, extra).expect("driver");
    let new = driver.retain("v3.0.0").await.expect("retain").revision;
    let old = driver.resolve("v2.9.0").await.expect("resolve").revision;
    assert_eq!((old.version.as_str(), new.version.as_str()), ("v2.9.0", "v3.0.0"));
    Fleet {
        host,
        root,
        driver,
        old,
        new,
    }
}

pub async fn fleet() -> Fleet {
    fleet_with("", |_| {}).await
}

impl Fleet {
    pub fn repository(&self) -> PathBuf {
        self.root.join("repo")
    }

    pub fn release(&self, name: &str) -> PathBuf {
        self.root.join("releases").join(name)
    }

    pub fn link(&self) -> String {
        let target = std::fs::read_link(self.root.join("current")).expect("a link");
        target.file_name().expect("a name").to_string_lossy().into_owned()
    }

    pub fn step(&self, action: Action) -> StepContext {
        self.host.step(action, &self.new, &self.old)
    }

    pub fn back(&self, action: Action) -> StepContext {
        self.host.step(action, &self.old, &self.new)
    }

    pub async fn stage_and_switch(&self) {
        self.driver.stage(&self.step(Action::Stage)).await.expect("stage");
        self.driver.switch(&self.step(Action::Switch)).await.expect("switch");
    }

    pub async fn findings(&self) -> Vec<Finding> {
        self.driver.prepare(&self.step(Action::Prepare)).await
    }

    pub async fn blockers(&self) -> Vec<Code> {
        let found = self.findings().await;
        found
            .iter()
            .filter(|finding| finding.severity == Severity::Blocker)
            .map(|finding| finding.problem.code)
            .collect()
    }

    /// Takes an object of a commit away, as a broken disk does.
    pub fn lose_object(&self, name: &str) {
        let id = git(&self.repository(), &["rev-parse", name]);
        let path = self.repository().join(".git/objects").join(&id[..2]).join(&id[2..]);
        std::fs::remove_file(path).expect("a loose object");
    }
}
