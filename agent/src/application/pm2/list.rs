//! What pm2 knows (`pm2 jlist`), and what it has forgotten (its PID files).

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;

use super::Pm2;
use super::cli::Account;
use crate::application::evidence::belongs;
use crate::processes::{self, Identity};

/// node takes a while to start on a busy host.
const ANSWER: Duration = Duration::from_secs(20);

/// Every application brings its environment along: a hundred of them are some megabytes.
const LIST_LIMIT: usize = 16 * 1024 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    Online,
    Stopped,
    /// pm2 gave up restarting it.
    Errored,
    /// `launching`, `stopping`, `waiting restart` and the like.
    Between(String),
}

impl Status {
    fn read(word: String) -> Self {
        match word.as_str() {
            "online" => Self::Online,
            "stopped" => Self::Stopped,
            "errored" => Self::Errored,
            _ => Self::Between(word),
        }
    }

    /// pm2 does nothing more about it.
    pub fn at_rest(&self) -> bool {
        match self {
            Self::Stopped | Self::Errored => true,
            Self::Online | Self::Between(_) => false,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Online => "online",
            Self::Stopped => "stopped",
            Self::Errored => "errored",
            Self::Between(word) => word,
        })
    }
}

/// One process of the application, as pm2 knows it.
#[derive(Clone, Debug)]
pub struct Instance {
    pub id: u64,
    pub status: Status,
    /// Restarts since it was started by somebody.
    pub restarts: u64,
    pub error_log: Option<PathBuf>,
    /// When it is alive.
    pub process: Option<Identity>,
}

/// The fields that are read. Everything else, the environment above all, is skipped.
#[derive(Deserialize)]
struct Entry {
    name: String,
    pm_id: u64,
    pid: Option<i32>,
    pm2_env: EntryState,
}

#[derive(Deserialize)]
struct EntryState {
    status: String,
    #[serde(default)]
    restart_time: u64,
    pm_err_log_path: Option<PathBuf>,
}

/// The list in what `pm2 jlist` printed. Notices ("In-memory PM2 is out-of-date") stand before it, and some begin with
/// a bracket, too.
fn parse(printed: &str) -> Option<Vec<Entry>> {
    printed
        .match_indices('[')
        .map(|(at, _)| &printed[at..])
        .find_map(|rest| serde_json::Deserializer::from_str(rest).into_iter().next()?.ok())
}

impl Pm2 {
    /// Does pm2's daemon answer? pm2 itself asks in the same way, and starts one when nobody does.
    pub(super) async fn daemon_answers(&self) -> bool {
        tokio::net::UnixStream::connect(self.config.home.join("rpc.sock"))
            .await
            .is_ok()
    }

    /// The application's processes as pm2 knows them. None when its daemon does not run; it is not started for this.
    pub(super) async fn instances(&self, account: &Option<Account>) -> Result<Vec<Instance>, Problem> {
        if !self.daemon_answers().await {
            return Ok(Vec::new());
        }
        let program = self.program(account.as_ref(), &["jlist"]).output_limit(LIST_LIMIT);
        let printed = self.run(program, "list", Instant::now() + ANSWER).await?;
        // Not quoted: the list holds environments.
        let entries = parse(&printed).ok_or_else(|| {
            Problem::new(
                Code::ManagerFailed,
                format!("pm2 jlist printed {} bytes that are not its list", printed.len()),
            )
        })?;
        let ours = entries.into_iter().filter(|entry| entry.name == self.config.name);
        Ok(ours
            .map(|entry| Instance {
                id: entry.pm_id,
                status: Status::read(entry.pm2_env.status),
                restarts: entry.pm2_env.restart_time,
                error_log: entry.pm2_env.pm_err_log_path,
                process: entry.pid.filter(|pid| *pid > 1).and_then(processes::identity),
            })
            .collect())
    }

    /// Processes of the application that live and that pm2 does not know: it was killed, and they lived on. Their PID
    /// files are still in its home.
    pub(super) fn orphans(&self, known: &[Instance]) -> Result<Vec<Identity>, Problem> {
        let Ok(entries) = std::fs::read_dir(self.config.home.join("pids")) else {
            return Ok(Vec::new());
        };
        // As pm2 makes a file name of a name.
        let plain: String = self
            .config
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
            .collect();
        let mut orphans = Vec::new();
        for entry in entries.flatten() {
            let file = entry.file_name();
            let number = file
                .to_str()
                .and_then(|name| name.strip_prefix(&plain)?.strip_prefix('-')?.strip_suffix(".pid"));
            if !number.is_some_and(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit())) {
                continue;
            }
            if let Some(process) = processes::from_pid_file(&entry.path())?
                && !known.iter().any(|instance| instance.process == Some(process))
                && belongs(process, &self.root)
            {
                orphans.push(process);
            }
        }
        Ok(orphans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_jlist_is_preceded_by_notices() {
        let entry = r#"{"pid":0,"name":"a","pm_id":3,"pm2_env":{"status":"stopped","restart_time":2,"PASSWORD":"x"}}"#;
        for notice in [
            "",
            ">>>> In-memory PM2 is out-of-date, do:\n>>>> $ pm2 update\nIn memory PM2 version: 5.3.0\n",
            "\u{1b}[32m[PM2] \u{1b}[39mSpawning PM2 daemon with pm2_home=/x\n[PM2][WARN] [odd] [1]\n",
        ] {
            let entries = parse(&format!("{notice}[{entry}]\nbye [PM2]\n")).expect(notice);
            assert_eq!((entries.len(), entries[0].pm_id), (1, 3), "{notice}");
            assert!(
                parse(&format!("{notice}[]")).is_some_and(|list| list.is_empty()),
                "{notice}"
            );
        }
        assert!(parse("[PM2] Spawning").is_none());
        assert!(parse("").is_none());
    }
}
