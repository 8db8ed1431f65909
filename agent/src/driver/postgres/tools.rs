//! `pg_dump` and `pg_restore`: where they are, whether they are new enough, and how they are run.
//!
//! Connection settings go through the environment and the password through a file that only we can read: nothing of
//! either is ever in an argument vector.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rollback_proto::problem::{Code, Problem};

use super::config::PostgresConfig;
use super::dump::CARELESS;
use super::sql_error::tool_text_without_data;
use crate::program::{Program, ProgramError, SAFE_PATH};

/// Where Debian and Ubuntu keep the programs of each major version.
const VERSIONED: &str = "/usr/lib/postgresql";

/// Names of the files that hold a password for as long as a program runs begin so.
pub(super) const PASSFILE_PREFIX: &str = ".pgpass-";

/// A directory with `pg_dump` and `pg_restore` of one version.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    dir: PathBuf,
    major: u32,
    /// What the names of password files go on with after [`PASSFILE_PREFIX`].
    owner: String,
}

impl Tools {
    /// Finds programs that are not older than the server: an older `pg_dump` refuses, an older `pg_restore` may not.
    pub async fn find(config: &PostgresConfig, owner: &str, server_major: u32) -> Result<Self, Problem> {
        let mut found: Option<Self> = None;
        for dir in candidates(config, server_major) {
            let (dump, restore) = tokio::join!(major_of(&dir, "pg_dump"), major_of(&dir, "pg_restore"));
            let Some(major) = dump.zip(restore).map(|(dump, restore)| dump.min(restore)) else {
                continue;
            };
            if found.as_ref().is_none_or(|f| f.major < major) {
                found = Some(Self {
                    dir,
                    major,
                    owner: owner.to_owned(),
                });
            }
            if major >= server_major {
                break;
            }
        }
        let missing = |message| {
            let remedy = format!("install postgresql-client-{server_major} or newer, or set bin_dir");
            Err(Problem::new(Code::ProgramFailed, message).remedy(remedy))
        };
        match found {
            Some(tools) if tools.major >= server_major => Ok(tools),
            Some(old) => missing(format!(
                "pg_dump in {} is version {}, the server is version {server_major}",
                old.dir.display(),
                old.major
            )),
            None => missing("neither pg_dump nor pg_restore was found".to_owned()),
        }
    }

    /// Runs one of the programs against `database`.
    pub async fn run(
        &self,
        config: &PostgresConfig,
        name: &str,
        database: &str,
        args: &[&str],
        limit: Duration,
    ) -> Result<(), ToolError> {
        let passfile = password_file(config, &self.owner).map_err(ToolError::Password)?;
        let mut program = Program::new(self.dir.join(name))
            .args(args)
            .env("PGHOST", &config.host)
            .env("PGPORT", config.port.to_string())
            .env("PGUSER", &config.user)
            .env("PGDATABASE", database)
            .env("PGCONNECT_TIMEOUT", "10")
            .env("PGAPPNAME", "rollbackctl backup");
        if name == "pg_restore" {
            // Indexes are made side by side already; workers of each would only be in each other's way.
            let alone = ("max_parallel_maintenance_workers", "0");
            let options: Vec<String> = CARELESS
                .iter()
                .chain([&alone])
                .map(|(k, v)| format!("-c {k}={v}"))
                .collect();
            program = program.env("PGOPTIONS", options.join(" "));
        }
        if let Some(file) = &passfile {
            program = program.env("PGPASSFILE", file.path());
        }
        // On the heap: its buffers would make every future around it large.
        Box::pin(program.run(limit))
            .await
            .map(|_| ())
            .map_err(ToolError::Program)
    }
}

/// Longest list of a dump's contents that is read.
const MAX_LIST: usize = 32 * 1024 * 1024;

impl Tools {
    /// `pg_restore --list` of a dump: its header and one line for each thing in it. Needs no server.
    pub async fn contents(&self, dump: &Path, limit: Duration) -> Result<String, ToolError> {
        self.print(dump, &["--list"], limit).await
    }

    /// The SQL of everything in a dump but its rows.
    pub async fn schema_script(&self, dump: &Path, limit: Duration) -> Result<String, ToolError> {
        self.print(dump, &["--schema-only", "--file=-"], limit).await
    }

    async fn print(&self, dump: &Path, args: &[&str], limit: Duration) -> Result<String, ToolError> {
        let program = Program::new(self.dir.join("pg_restore"))
            .args(args)
            .arg(dump)
            .output_limit(MAX_LIST);
        let output = Box::pin(program.run(limit)).await.map_err(ToolError::Program)?;
        Ok(output.stdout)
    }
}

#[derive(Debug)]
pub(super) enum ToolError {
    Password(Problem),
    Program(ProgramError),
}

impl ToolError {
    /// A full disk has a code of its own, wherever it is noticed.
    pub fn problem(self, code: Code, what: impl std::fmt::Display) -> Problem {
        match self {
            Self::Password(problem) => problem,
            Self::Program(error) => {
                let text = error.to_string();
                let code = match &error {
                    ProgramError::Deadline { .. } => Code::StepTimeout,
                    ProgramError::Failed { .. } if text.contains("No space left on device") => Code::DiskFull,
                    ProgramError::Failed { .. } if text.contains("lock timeout") => Code::DatabaseLocked,
                    ProgramError::Failed { .. } | ProgramError::Start { .. } => code,
                };
                match error {
                    ProgramError::Failed {
                        program,
                        code: status,
                        stderr,
                    } => {
                        let stderr = tool_text_without_data(&stderr);
                        let error = ProgramError::Failed {
                            program,
                            code: status,
                            stderr,
                        };
                        Problem::from_error(code, what, &error)
                    }
                    ProgramError::Start { .. } | ProgramError::Deadline { .. } => {
                        Problem::from_error(code, what, &error)
                    }
                }
            }
        }
    }
}

/// Where to look, the most promising first: the server's own version, then the next newer ones (what a much newer
/// pg_restore sends, an older server may not know), then the usual path (on Debian a wrapper that chooses by itself).
fn candidates(config: &PostgresConfig, server_major: u32) -> Vec<PathBuf> {
    if let Some(dir) = &config.bin_dir {
        return vec![dir.clone()];
    }
    let mut versioned: Vec<(u32, PathBuf)> = std::fs::read_dir(VERSIONED)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versioned.sort_by_key(|(major, _)| (*major < server_major, *major));
    let mut dirs: Vec<PathBuf> = versioned.into_iter().map(|(_, dir)| dir).collect();
    dirs.extend(SAFE_PATH.split(':').map(PathBuf::from));
    dirs.retain(|dir| dir.join("pg_dump").is_file() && dir.join("pg_restore").is_file());
    dirs
}

/// The major version that a program says it has; `None` when it cannot be run.
async fn major_of(dir: &Path, name: &str) -> Option<u32> {
    let asking = Program::new(dir.join(name))
        .arg("--version")
        .run(Duration::from_secs(10));
    parse_major(&Box::pin(asking).await.ok()?.stdout)
}

/// From `pg_dump (PostgreSQL) 15.14 (Debian …)`.
fn parse_major(text: &str) -> Option<u32> {
    let version = text
        .split_whitespace()
        .find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

/// Lives beside the backups (0700), not in /tmp: what a killed agent leaves is found and removed by the next `stage`.
pub(super) fn password_file(config: &PostgresConfig, owner: &str) -> Result<Option<tempfile::NamedTempFile>, Problem> {
    let Some(password) = config.password()? else {
        return Ok(None);
    };
    let dir = config.backups_dir()?;
    let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
    let written = tempfile::Builder::new()
        .prefix(&format!("{PASSFILE_PREFIX}{owner}-"))
        .tempfile_in(dir)
        .and_then(|mut file| {
            file.write_all(format!("*:*:*:*:{escaped}\n").as_bytes())?;
            Ok(file)
        });
    written
        .map(Some)
        .map_err(|e| Problem::from_error(Code::FileFailed, "write the password for pg_dump", &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (text, major) in [
            ("pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", Some(15)),
            ("pg_restore (PostgreSQL) 18beta1\n", Some(18)),
            ("pg_dump: not found", None),
        ] {
            assert_eq!(parse_major(text), major, "{text}");
        }
    }
}
