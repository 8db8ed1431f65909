//! rollbackctl as a process: what an operator types.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::binaries::Binaries;

/// No verb of a scenario takes longer; a hanging program must not hang the test.
const ANSWER_WITHIN: Duration = Duration::from_secs(180);

/// One operator's rollbackctl.
#[derive(Clone, Debug)]
pub struct Ctl {
    program: PathBuf,
    context: PathBuf,
}

/// What came of a command.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What was typed.
    pub command: String,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    /// The last line of stdout, which is one JSON object with `-o json`.
    pub fn json(&self) -> Result<Value> {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("parse the answer as JSON: {self}"))
    }

    pub fn expect_code(self, code: i32) -> Result<Self> {
        ensure!(self.code == code, "the exit code is not {code}: {self}");
        Ok(self)
    }

    /// Both streams, for looking for an error code or a name.
    pub fn text(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ended with {}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.code,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

/// A command that is still running.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shown: String,
}

impl Running {
    pub async fn answer(self) -> Result<Answer> {
        let shown = self.shown;
        let output = tokio::time::timeout(ANSWER_WITHIN, self.child.wait_with_output())
            .await
            .with_context(|| format!("{shown} did not end within {} s", ANSWER_WITHIN.as_secs()))?
            .with_context(|| format!("run {shown}"))?;
        Ok(Answer {
            command: shown,
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

impl Ctl {
    pub fn new(binaries: &Binaries, context: &Path) -> Self {
        Self {
            program: binaries.path("rollbackctl"),
            context: context.to_owned(),
        }
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    pub fn context(&self) -> &Path {
        &self.context
    }

    /// Starts a command. `show` lets what it says on stderr pass through: the live tree, when that is a terminal.
    pub fn start(&self, args: &[&str], show: bool) -> Result<Running> {
        let stderr = if show { Stdio::inherit() } else { Stdio::piped() };
        let child = Command::new(&self.program)
            .arg("--context")
            .arg(&self.context)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .context("start rollbackctl")?;
        let shown: String = format!("rollbackctl {}", args.join(" ")).chars().take(200).collect();
        Ok(Running { child, shown })
    }

    pub async fn run(&self, args: &[&str]) -> Result<Answer> {
        self.start(args, false)?.answer().await
    }

    /// A join token for a host.
    pub async fn token(&self, name: &str) -> Result<String> {
        let answer = self.run(&["agent", "token", name]).await?.expect_code(0)?;
        Ok(answer.stdout.trim().to_owned())
    }

    pub async fn record(&self, release: &str) -> Result<Answer> {
        let commit = format!(
            "{:07x}",
            release
                .bytes()
                .fold(7u32, |a, b| a.wrapping_mul(31).wrapping_add(b.into()))
                & 0xfff_ffff
        );
        let args = [
            "release",
            "record",
            release,
            "--commit",
            &commit,
            "--notes",
            "recorded by the harness",
        ];
        self.run(&args).await
    }

    /// The operator's command. The last line of stdout is its result as JSON.
    pub async fn roll_back(&self, release: &str) -> Result<Answer> {
        self.run(&rollback_to(release)).await
    }

    /// The report of a rollback.
    pub async fn show(&self, id: &str) -> Result<Value> {
        self.run(&["rollback", "show", id, "-o", "json"])
            .await?
            .expect_code(0)?
            .json()
    }
}

/// The arguments of [`Ctl::roll_back`].
pub fn rollback_to(release: &str) -> [&str; 7] {
    ["fleet", "rollback", "--to", release, "--yes", "-o", "json"]
}
