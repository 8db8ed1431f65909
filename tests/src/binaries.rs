//! Where the programs under test are, and building them when they may be stale.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

/// A directory with all programs of the workspace, built already. Without it they are built first.
pub const BUILT: &str = "ROLLBACK_BINARIES";

/// The directory with `rollback-coordinator`, `rollback-agent`, `rollbackctl` and `zekka-app`.
#[derive(Clone, Debug)]
pub struct Binaries(PathBuf);

impl Binaries {
    /// Beside the running test or scenario. Builds the workspace's programs once per process unless [`BUILT`] says
    /// where they are: a test against yesterday's agent would prove nothing.
    pub fn ready() -> Result<Self> {
        static READY: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
        let found = READY.get_or_init(|| locate().map_err(|e| format!("{e:#}")));
        found.clone().map(Self).map_err(anyhow::Error::msg)
    }

    pub fn path(&self, program: &str) -> PathBuf {
        self.0.join(program)
    }
}

fn locate() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the crate has no workspace")?;
    if let Some(dir) = std::env::var_os(BUILT) {
        // Tests run in the crate's directory; what is given is meant from the workspace's.
        return Ok(workspace.join(dir));
    }
    let exe = std::env::current_exe().context("find this executable")?;
    let mut dir = exe.parent().context("this executable has no directory")?;
    if dir.ends_with("deps") {
        dir = dir.parent().context("target directory")?;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--quiet", "--workspace", "--bins"])
        .current_dir(workspace);
    if dir.ends_with("release") {
        build.arg("--release");
    }
    let status = build.status().context("run cargo build")?;
    ensure!(status.success(), "cargo build --workspace --bins failed");
    Ok(dir.to_owned())
}
