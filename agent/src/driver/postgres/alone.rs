//! One at a time: a lock that keeps apart whatever makes copies of one component's database, in this agent and in programs
//! beside it (`rollback-agent database …`). Each of them begins by removing what an earlier run left, and would remove
//! what the other one is working on.
//!
//! The lock is the kernel's, on a file in the directory of backups: it ends with the process that holds it, however that
//! ends. The file stays; what is written in it is for people only.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};

use super::config::PostgresConfig;
use super::lock_file::{self, Lock};
use super::scratch;
use super::staging::file_problem;
use crate::step::StepContext;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// Between two lines of progress while waiting.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Held for as long as this lives.
#[derive(Debug)]
pub(super) struct Alone {
    _file: File,
}

impl Alone {
    /// Takes the lock at once, or says who has it. `doing` is what the next one is told.
    pub fn now(config: &PostgresConfig, component: &str, doing: &str) -> Result<Self, Problem> {
        let dir = config.backups_dir()?;
        let path = dir.join(format!(".lock-{}", scratch::short(component)));
        let mut file = match lock_file::take(&path)? {
            Lock::Taken(file) => file,
            Lock::Busy(file) => {
                let mut holder = String::new();
                // Whoever holds it may be about to write this.
                let _ = file.take(200).read_to_string(&mut holder);
                let holder = holder.lines().next().unwrap_or("another process").to_owned();
                return Err(Problem::new(
                    Code::DatabaseLocked,
                    format!("copies of the database of {component} are being worked on by {holder}"),
                )
                .remedy("wait until it is done, or end it"));
            }
        };
        let note = format!("{doing} (pid {})\n", std::process::id());
        file.rewind()
            .and_then(|()| file.set_len(0))
            .and_then(|()| file.write_all(note.as_bytes()))
            .map_err(|e| file_problem(format!("lock {}", path.display()), &e))?;
        Ok(Self { _file: file })
    }

    /// Waits for the lock, for at most half of the step's time, and says for whom.
    pub async fn for_step(config: &PostgresConfig, step: &StepContext) -> Result<Self, Problem> {
        let doing = format!("rollback {} ({:?})", step.rollback_id, step.action);
        let until = Instant::now() + step.time_left() / 2;
        let mut told = None::<Instant>;
        loop {
            let problem = match Self::now(config, &step.component, &doing) {
                Err(problem) if problem.code == Code::DatabaseLocked => problem,
                other => return other,
            };
            if Instant::now() + PAUSE >= until {
                return Err(problem);
            }
            if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                told = Some(Instant::now());
                step.progress(format!("waiting: {}", problem.message));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
