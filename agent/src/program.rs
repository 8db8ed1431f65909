//! Running other programs: no shell, an argument vector, a cleared environment plus what is named, a deadline, bounded
//! output, a process group of its own that is killed as a whole when the deadline passes or the agent decides so.
//!
//! Leaves out: long-lived processes. A program that is started here and shall outlive the agent must daemonize itself
//! (its standard streams are closed for it: see [`Program::detached_output`]).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Bytes kept of each of stdout and stderr; the rest is read and dropped, so that the program never blocks on a pipe.
pub const OUTPUT_LIMIT: usize = 64 * 1024;

/// Where programs are found when the caller gives a bare name.
pub const SAFE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to run. Nothing of the agent's own environment reaches it.
#[derive(Clone, Debug)]
pub struct Program {
    argv: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    cwd: Option<PathBuf>,
    stdin: Option<Vec<u8>>,
    held: Option<Arc<File>>,
    detached_output: bool,
    output_limit: usize,
}

/// A program that ran to its end.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("start {program}")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} did not end within {} ms and was killed", limit.as_millis())]
    Deadline { program: String, limit: Duration },
    #[error("{program} ended with {}: {}", code.map_or("a signal".to_owned(), |c| format!("status {c}")), last_lines(stderr))]
    Failed {
        program: String,
        code: Option<i32>,
        stderr: String,
    },
}

/// The end of what a program said, on one line, short enough for an error message.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(4)..].join(" | ");
    let start = tail.len().saturating_sub(600);
    let start = (start..=tail.len())
        .find(|i| tail.is_char_boundary(*i))
        .unwrap_or(tail.len());
    tail[start..].to_owned()
}

impl Program {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut env = BTreeMap::new();
        env.insert("PATH".into(), SAFE_PATH.into());
        env.insert("LC_ALL".into(), "C.UTF-8".into());
        Self {
            argv: vec![program.as_ref().to_owned()],
            env,
            cwd: None,
            stdin: None,
            held: None,
            detached_output: false,
            output_limit: OUTPUT_LIMIT,
        }
    }

    /// From a configured vector. `None` when it is empty.
    pub fn from_argv(argv: &[String]) -> Option<Self> {
        let (first, rest) = argv.split_first()?;
        Some(Self::new(first).args(rest))
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    #[must_use]
    pub fn cwd(mut self, dir: impl AsRef<Path>) -> Self {
        self.cwd = Some(dir.as_ref().to_owned());
        self
    }

    #[must_use]
    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = Some(bytes);
        self
    }

    /// Has this file as its standard input, and so have its children that do not replace it: a lock on the file is held for
    /// as long as one of them lives, whatever becomes of us.
    #[must_use]
    pub fn holding(mut self, file: Arc<File>) -> Self {
        self.held = Some(file);
        self
    }

    /// stdout and stderr go to /dev/null. For start vectors: a daemon that inherited our pipes would keep them open,
    /// and waiting for their end would wait for the daemon's.
    #[must_use]
    pub fn detached_output(mut self) -> Self {
        self.detached_output = true;
        self
    }

    /// Keeps up to this much of each stream instead of [`OUTPUT_LIMIT`]: for programs whose answer is one document that
    /// is worth nothing without its beginning.
    #[must_use]
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    fn name(&self) -> String {
        self.argv[0].to_string_lossy().into_owned()
    }

    /// Runs to the end. Any exit status is an answer. The process group is killed when `limit` passes or when the
    /// returned future is dropped.
    pub async fn output(self, limit: Duration) -> Result<Output, ProgramError> {
        let name = self.name();
        let mut command = Command::new(&self.argv[0]);
        command
            .args(&self.argv[1..])
            .env_clear()
            .envs(&self.env)
            .process_group(0)
            .kill_on_drop(true);
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        command.stdin(match &self.held {
            Some(file) => file
                .try_clone()
                .map(Stdio::from)
                .map_err(|source| ProgramError::Start {
                    program: name.clone(),
                    source,
                })?,
            None if self.stdin.is_some() => Stdio::piped(),
            None => Stdio::null(),
        });
        let out = || {
            if self.detached_output {
                Stdio::null()
            } else {
                Stdio::piped()
            }
        };
        command.stdout(out()).stderr(out());
        let mut child = command.spawn().map_err(|source| ProgramError::Start {
            program: name.clone(),
            source,
        })?;
        let mut group = GroupGuard::new(child.id());
        let stdin = child.stdin.take().zip(self.stdin);
        let limit_of_output = self.output_limit;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let feed = async {
                if let Some((mut pipe, bytes)) = stdin {
                    // A program that does not read its input to the end is judged by its exit status.
                    let _ = pipe.write_all(&bytes).await;
                }
            };
            let (status, stdout, stderr, ()) = tokio::join!(
                child.wait(),
                read_bounded(stdout, limit_of_output),
                read_bounded(stderr, limit_of_output),
                feed
            );
            status.map(|status| Output {
                code: status.code(),
                stdout,
                stderr,
            })
        };
        match tokio::time::timeout(limit, work).await {
            Ok(Ok(output)) => {
                group.disarm();
                Ok(output)
            }
            Ok(Err(source)) => Err(ProgramError::Start { program: name, source }),
            Err(_) => Err(ProgramError::Deadline { program: name, limit }),
        }
    }

    /// Runs to the end; an exit status other than 0 is an error that carries the last lines of stderr.
    pub async fn run(self, limit: Duration) -> Result<Output, ProgramError> {
        let program = self.name();
        let output = self.output(limit).await?;
        if output.code == Some(0) {
            Ok(output)
        } else {
            Err(ProgramError::Failed {
                program,
                code: output.code,
                stderr: output.stderr,
            })
        }
    }
}

/// Kills the whole group when dropped armed: children of the child must not live on when we have given up on it.
struct GroupGuard(Option<rustix::process::Pid>);

impl GroupGuard {
    fn new(pid: Option<u32>) -> Self {
        Self(
            pid.and_then(|p| i32::try_from(p).ok())
                .and_then(rustix::process::Pid::from_raw),
        )
    }

    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for GroupGuard {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // The group may be gone already; there is nobody to tell.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

async fn read_bounded(pipe: Option<impl AsyncRead + Unpin>, limit: usize) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut kept = Vec::new();
    let mut chunk = vec![0u8; 8192];
    while let Ok(n) = pipe.read(&mut chunk).await {
        if n == 0 {
            break;
        }
        // The end of a long output says more about a failure than its beginning.
        kept.extend_from_slice(&chunk[..n]);
        if kept.len() > 2 * limit {
            kept.drain(..kept.len() - limit);
        }
    }
    let start = kept.len().saturating_sub(limit);
    String::from_utf8_lossy(&kept[start..]).into_owned()
}
