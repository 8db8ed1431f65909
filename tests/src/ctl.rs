//! rollbackctl as a process: what an operator types.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};

use crate::binaries::Binaries;
use crate::process;

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
    /// `None` when it passes through to our own.
    stderr: Option<BufReader<ChildStderr>>,
    /// What was read from it already.
    said: String,
}

impl Running {
    /// Reads what the command says on stderr up to the first line that is wanted, and hands that out.
    pub async fn until_line(&mut self, what: &str, within: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let stderr = self.stderr.as_mut().context("stderr is read here")?;
        let said = &mut self.said;
        let read = async {
            loop {
                // Into a text of its own: that of a call which is given up is lost.
                let mut line = String::new();
                if stderr.read_line(&mut line).await.context("read stderr")? == 0 {
                    bail!("the command ended without: {what}");
                }
                said.push_str(&line);
                if wanted(&line) {
                    return Ok(line.trim_end().to_owned());
                }
            }
        };
        match tokio::time::timeout(within, read).await {
            Ok(line) => line.with_context(|| format!("{} said\n{}", self.shown, self.said)),
            Err(_) => bail!("{} does not say: {what}; it said\n{}", self.shown, self.said),
        }
    }

    /// Ctrl-C.
    pub fn interrupt(&self) -> Result<()> {
        let pid = self.child.id().context("the command runs")?;
        process::kill(pid, Signal::INT)
    }

    pub async fn answer(self) -> Result<Answer> {
        self.answer_within(ANSWER_WITHIN).await
    }

    /// As [`Running::answer`], for a command that has much to move.
    pub async fn answer_within(self, within: Duration) -> Result<Answer> {
        let Self {
            mut child,
            shown,
            stderr,
            mut said,
        } = self;
        let mut out = child.stdout.take().context("stdout is read here")?;
        let (mut stdout, mut rest) = (Vec::new(), Vec::new());
        let read_stderr = async {
            match stderr {
                Some(mut stderr) => stderr.read_to_end(&mut rest).await,
                None => Ok(0),
            }
        };
        let ended = async { tokio::try_join!(child.wait(), out.read_to_end(&mut stdout), read_stderr) };
        let (status, _, _) = tokio::time::timeout(within, ended)
            .await
            .with_context(|| format!("{shown} did not end within {} s", within.as_secs()))?
            .with_context(|| format!("run {shown}"))?;
        said.push_str(&String::from_utf8_lossy(&rest));
        Ok(Answer {
            command: shown,
            code: status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: said,
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
        let mut child = Command::new(&self.program)
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
        let stderr = child.stderr.take().map(BufReader::new);
        Ok(Running {
            child,
            shown,
            stderr,
            said: String::new(),
        })
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

    /// The report of the rollback that an answer of `fleet rollback -o json` is about.
    pub async fn report_of(&self, result: &Value) -> Result<Value> {
        let id = result["rollback_id"]
            .as_str()
            .context("the answer names the rollback")?;
        self.show(id).await
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
