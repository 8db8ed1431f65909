//! pm2, with a home of its own: finding it, and what it says of its processes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::control::{Control, Held};
use crate::process::run;

/// For one of its commands.
const COMMAND_WITHIN: &str = "60";

/// A pm2 daemon and its processes, by their home. They end with the last clone; [`Pm2::of`] a story's control outlives the
/// agents.
#[derive(Clone, Debug)]
pub struct Pm2(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    program: PathBuf,
    home: PathBuf,
    let_go: AtomicBool,
}

/// What pm2 says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pm2Process {
    pub name: String,
    /// 0 when it does not run.
    pub pid: u32,
    /// `online`, `stopped`, `errored`.
    pub status: String,
    pub restarts: u64,
    pub cwd: PathBuf,
    /// What pm2 started it with.
    pub env: BTreeMap<String, String>,
}

impl Pm2 {
    /// The program that is installed, and a home that is not the user's. The daemon starts with the first command.
    pub fn ready(home: &Path) -> Result<Self> {
        std::fs::create_dir_all(home).context("make pm2's home")?;
        Ok(Self(Arc::new(Inner {
            program: find()?,
            home: home.to_owned(),
            let_go: AtomicBool::new(false),
        })))
    }

    /// That of a host in a story, with a home in the host's directory. It ends after the agents.
    pub fn of(control: &mut Control, host: &str) -> Result<Self> {
        let pm2 = Self::ready(&control.host_dir(host).join("pm2"))?;
        control.hold(pm2.clone());
        Ok(pm2)
    }

    pub fn program(&self) -> &Path {
        &self.0.program
    }

    /// PM2_HOME.
    pub fn home(&self) -> &Path {
        &self.0.home
    }

    /// Runs `pm2 ARGS…` in a directory.
    pub fn run(&self, args: &[&str], cwd: &Path) -> Result<String> {
        self.0.run(args, cwd)
    }

    /// Its processes, from `pm2 jlist`.
    pub fn list(&self) -> Result<Vec<Pm2Process>> {
        let out = self.run(&["jlist", "--silent"], self.home())?;
        // A daemon that was just started announces itself first.
        let json = out.lines().rev().find(|line| line.starts_with('['));
        let all: Value = serde_json::from_str(json.context("pm2 jlist prints a list")?).context("parse pm2 jlist")?;
        Ok(all.as_array().into_iter().flatten().filter_map(read).collect())
    }
}

impl Held for Pm2 {
    fn let_go(&mut self) -> String {
        self.0.let_go.store(true, Ordering::Relaxed);
        let (home, program) = (self.home().display(), self.program().display());
        format!("PM2_HOME='{home}' '{program}' kill >/dev/null\n")
    }
}

impl Inner {
    fn run(&self, args: &[&str], cwd: &Path) -> Result<String> {
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", COMMAND_WITHIN])
            .arg(&self.program)
            .args(args);
        // Whatever else is in our environment would become the processes' own.
        command
            .env_clear()
            .env(
                "PATH",
                std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()),
            )
            .env("HOME", &self.home)
            .env("PM2_HOME", &self.home);
        run(command.current_dir(cwd))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without the file there is no daemon, and asking would start one.
        if !self.let_go.load(Ordering::Relaxed)
            && self.home.join("pm2.pid").exists()
            && let Err(error) = self.run(&["kill"], Path::new("/"))
        {
            eprintln!("end pm2 in {}: {error:#}", self.home.display());
        }
    }
}

fn read(value: &Value) -> Option<Pm2Process> {
    let inner = &value["pm2_env"];
    let env = inner["env"].as_object().into_iter().flatten();
    Some(Pm2Process {
        name: value["name"].as_str()?.to_owned(),
        pid: u32::try_from(value["pid"].as_u64().unwrap_or_default()).ok()?,
        status: inner["status"].as_str()?.to_owned(),
        restarts: inner["restart_time"].as_u64().unwrap_or_default(),
        cwd: inner["pm_cwd"].as_str()?.into(),
        env: env
            .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
            .collect(),
    })
}

/// On the path, or where `make dependencies` puts it.
fn find() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("../target"), PathBuf::from);
    let installed = target.join("pm2/node_modules/.bin/pm2");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path)
        .map(|dir| dir.join("pm2"))
        .chain([installed]);
    let mut found = candidates.filter(|program| program.is_file());
    found
        .next()
        .context("there is no pm2: `make dependencies` installs it into the target directory")
}
