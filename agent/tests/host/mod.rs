//! A host for tests of drivers: a vault, steps, and waiting for conditions.

#![allow(dead_code, reason = "every test file uses another part of it")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollback_agent::driver::{Action, Failure, Revision};
use rollback_agent::processes::{self, Identity};
use rollback_agent::step::{NoProgress, StepContext};
use rollback_agent::vault::Vault;
use rollback_proto::problem::Problem;
use rustix::process::Signal;

/// A directory that is removed at the end, with a vault in it.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub vault: Arc<Vault>,
}

impl Host {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let vault = Arc::new(Vault::open(dir.path().join("vault")).expect("vault"));
        Self { dir, vault }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn step(&self, action: Action, from: &Revision, to: &Revision) -> StepContext {
        self.step_within(action, from, to, Duration::from_secs(30))
    }

    pub fn step_within(&self, action: Action, from: &Revision, to: &Revision, limit: Duration) -> StepContext {
        StepContext::new(
            "rb-1".into(),
            "part".into(),
            action,
            from.clone(),
            to.clone(),
            limit,
            Arc::clone(&self.vault),
            Arc::new(NoProgress),
        )
    }
}

pub fn revision(version: &str, digest: &str) -> Revision {
    Revision {
        version: version.into(),
        digest: digest.into(),
    }
}

/// The problem of a move that ended badly with everything put back.
pub fn failed<T: std::fmt::Debug>(result: Result<T, Failure>) -> Problem {
    match result {
        Err(Failure::Failed(problem)) => problem,
        other => panic!("expected a failure, got {other:?}"),
    }
}

/// Waits for a condition, up to 20 seconds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Ends a process, for destructors. Gives up after 20 seconds: the test has failed or passed by then.
#[expect(clippy::disallowed_methods, reason = "a destructor cannot wait on the runtime")]
pub fn end(process: Identity, signal: Signal) {
    let until = Instant::now() + Duration::from_secs(20);
    let _ = processes::signal(process, signal);
    while processes::alive(process) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn write(path: &Path, content: &str) {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).expect("create directories");
    }
    std::fs::write(path, content).expect("write");
}

pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("read")
}

pub fn script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    write(path, &format!("#!/bin/sh\n{text}\n"));
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("make executable");
}

/// A port that nobody has at this moment.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("bind")
        .port()
}

/// Names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("read directory")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
