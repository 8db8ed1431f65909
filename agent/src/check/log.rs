//! A check that nothing bad was written to a log since the switch.
//!
//! ```toml
//! log = { file = "/var/log/zekka/app.log", error = ["ERROR", "panic"], ignore = ["ERROR 404"], max = 0 }
//! log = { container = "zekka-api" }
//! log = { journald = "zekka.service" }
//! ```
//!
//! `error` and `ignore` are regular expressions, looked for anywhere in a line. More than `max` lines that match an
//! `error` and no `ignore` do not pass.
//!
//! "Since the switch" is a [`Mark`], taken and kept by whoever switches (see `driver/checked.rs`). That is why a log can
//! be a `[[check]]` and not a component's `health`.
//!
//! Invariants:
//! - Lines that were written and cannot be read any more (rotated away, compressed, more than [`MOST`]) are not passed
//!   over: without an error among the others, the check cannot judge and does not pass.
//! - One line is quoted at most, shortened; values of env files are taken out of it by the caller.

mod file;
mod judge;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regex::RegexSet;
use serde::{Deserialize, Serialize};

use self::file::Place;
use self::judge::Judge;
use crate::engine::Engine;
use crate::program::Program;

/// Bytes of a log that are read at most.
const MOST: u64 = 64 << 20;

/// The same for logs that are handed over by another program in one piece.
const MOST_AT_ONCE: usize = 8 << 20;

/// What comes back of a whole piece less than this below the limit may have been cut.
const LONGEST_LINE: usize = 1 << 20;

const JOURNAL_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Fragment")]
pub struct LogCheck {
    source: Source,
    error: Patterns,
    ignore: Patterns,
    max: u64,
}

#[derive(Clone, Debug)]
enum Source {
    File(PathBuf),
    Container { name: String, engine: Engine },
    Journal(String),
}

/// Regular expressions, and how they were written.
#[derive(Clone, Debug)]
struct Patterns {
    written: Vec<String>,
    set: RegexSet,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fragment {
    file: Option<PathBuf>,
    container: Option<String>,
    /// The container engine's socket.
    socket: Option<PathBuf>,
    journald: Option<String>,
    #[serde(default = "default_error")]
    error: Vec<String>,
    #[serde(default)]
    ignore: Vec<String>,
    #[serde(default)]
    max: u64,
}

fn default_error() -> Vec<String> {
    ["ERROR", "FATAL", "panic"].map(str::to_owned).to_vec()
}

/// Where a log stood at a moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// Microseconds since 1970.
    at: u64,
    /// Of a file that was there.
    place: Option<Place>,
}

impl Mark {
    fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.at)
    }
}

impl TryFrom<Fragment> for LogCheck {
    type Error = String;

    fn try_from(f: Fragment) -> Result<Self, String> {
        let source = match (f.file, f.container, f.journald) {
            (Some(path), None, None) if path.is_absolute() && path.file_name().is_some() => Source::File(path),
            (Some(_), None, None) => return Err("log.file must be the absolute path of a file".into()),
            (None, Some(name), None) => {
                crate::engine::check_container(&name).map_err(|problem| problem.message)?;
                Source::Container {
                    name,
                    engine: Engine::new(f.socket),
                }
            }
            (None, None, Some(unit)) => {
                super::process::check_unit(&unit)?;
                Source::Journal(unit)
            }
            (None, None, None) | (Some(_), Some(_), _) | (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
                return Err("log needs one of `file`, `container`, `journald`".into());
            }
        };
        if f.error.is_empty() {
            return Err("log.error is empty: nothing would ever be found".into());
        }
        Ok(Self {
            source,
            error: Patterns::new("error", f.error)?,
            ignore: Patterns::new("ignore", f.ignore)?,
            max: f.max,
        })
    }
}

impl Patterns {
    fn new(key: &str, written: Vec<String>) -> Result<Self, String> {
        if written.iter().any(String::is_empty) {
            return Err(format!("log.{key}: an empty pattern matches every line"));
        }
        let set = RegexSet::new(&written).map_err(|e| format!("log.{key}: {e}"))?;
        Ok(Self { written, set })
    }
}

impl LogCheck {
    pub fn target(&self) -> String {
        match &self.source {
            Source::File(path) => format!("log {}", path.display()),
            Source::Container { name, .. } => format!("log of container {name}"),
            Source::Journal(unit) => format!("journal of {unit}"),
        }
    }

    /// Where the log stands now.
    pub async fn mark(&self) -> Result<Mark, String> {
        let at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|d| u64::try_from(d.as_micros()).ok())
            .ok_or("the clock stands before 1970")?;
        let place = match &self.source {
            Source::File(path) => {
                let path = path.clone();
                let look = tokio::task::spawn_blocking(move || file::place(&path)).await;
                look.map_err(|e| e.to_string())?
                    .map_err(|why| format!("{}: {why}", self.target()))?
            }
            Source::Container { .. } | Source::Journal(_) => None,
        };
        Ok(Mark { at, place })
    }

    /// Judges what was written since then. `Ok` and `Err` both say what was seen.
    pub async fn ask(&self, since: &Mark) -> Result<String, String> {
        match &self.source {
            Source::File(path) => {
                let (check, path, since) = (self.clone(), path.clone(), since.clone());
                let read = tokio::task::spawn_blocking(move || {
                    let mut judge = Judge::new(&check.error.set, &check.ignore.set);
                    let whole =
                        file::lines_since(&path, since.place.as_ref(), since.time(), &mut |line| judge.line(line));
                    judge.verdict(&check.target(), check.max, whole)
                });
                read.await.map_err(|e| e.to_string())?
            }
            Source::Container { name, engine } => {
                let found = engine.container(name).await.map_err(|problem| problem.message)?;
                if found.is_none() {
                    return Err(format!("container {name} does not exist"));
                }
                let text = engine.logs(name, since.time(), MOST_AT_ONCE).await;
                self.judge_text(&text.map_err(|problem| problem.message)?)
            }
            Source::Journal(unit) => {
                let text = self.journal(unit, since).await?;
                self.judge_text(&text)
            }
        }
    }

    fn judge_text(&self, text: &str) -> Result<String, String> {
        let mut judge = Judge::new(&self.error.set, &self.ignore.set);
        text.lines().for_each(|line| judge.line(line));
        let whole = if text.len() + LONGEST_LINE < MOST_AT_ONCE {
            Ok(String::new())
        } else {
            Err("more was written than can be read".into())
        };
        judge.verdict(&self.target(), self.max, whole)
    }

    /// The messages of a unit since a moment, one a line.
    async fn journal(&self, unit: &str, since: &Mark) -> Result<String, String> {
        // Whole seconds here, as every version reads them; each line says its own time.
        let answer = self
            .journalctl(unit, format!("--since=@{}", since.at / 1_000_000))
            .await?;
        // No journal at all, or none that we may read, looks like a unit that has nothing to say.
        if answer.is_empty() && self.journalctl(unit, "--lines=1".into()).await?.is_empty() {
            return Err(format!(
                "{}: cannot be judged: there is nothing of this unit in it",
                self.target()
            ));
        }
        if answer.len() + LONGEST_LINE >= MOST_AT_ONCE {
            return Err(format!(
                "{}: cannot be judged: more was written than can be read",
                self.target()
            ));
        }
        let mut text = String::new();
        for line in answer.lines() {
            let message = judge::journal_message(line, since.at);
            if let Some(message) = message.map_err(|why| format!("{}: cannot be judged: {why}", self.target()))? {
                text.push_str(&message.replace(['\n', '\r'], " "));
                text.push('\n');
            }
        }
        Ok(text)
    }

    async fn journalctl(&self, unit: &str, which: String) -> Result<String, String> {
        let output = Program::new("journalctl")
            .args(["--quiet", "--no-pager", "--output=json", "--output-fields=MESSAGE"])
            .arg(which)
            .arg(format!("--unit={unit}"))
            .output_limit(MOST_AT_ONCE)
            .run(JOURNAL_LIMIT)
            .await
            .map_err(|e| format!("{}: {e}", self.target()))?;
        Ok(output.stdout)
    }

    /// As they were written, for people.
    pub fn patterns(&self) -> &[String] {
        &self.error.written
    }
}
