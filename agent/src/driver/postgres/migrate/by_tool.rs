//! One run of the project's own tool, and what is kept around it.
//!
//! The tool opens its own sessions and commits as it likes: nothing of ours can be in its transaction. So what its way
//! down takes away is copied before its first run, and what its way up has brought back is filled after each run, each in a
//! transaction of ours. What others write to such a table between the copy and the drop is lost, and what they write
//! between its return and the filling is replaced: writers are to be stopped, which a rollback does.
//!
//! Before a run up, a note says what was not there: only that is filled afterwards, also when the agent was killed in
//! between and asks again ([`Migrator::put_back_brought`]).

use rollback_proto::kill_point;
use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;

use super::{ATTEMPTS, Job, LegError, Migrator, PAUSE, Ran, Stop, sql};
use crate::driver::postgres::connect::run;
use crate::driver::postgres::integrity;
use crate::driver::postgres::keep;
use crate::driver::postgres::put_back::{self, Returned};
use crate::driver::postgres::route::Direction;
use crate::driver::postgres::sql_error::sql_problem;
use crate::driver::postgres::tool::Tool;
use crate::driver::postgres::versions::Applied;

/// What is done around a run of the tool, each in one transaction.
#[derive(Clone, Copy)]
enum Around {
    Keep,
    NoteAbsent,
    PutBack { last: bool },
}

impl Migrator<'_> {
    pub async fn run_tool(&self, job: Job<'_>) -> Result<Ran, LegError> {
        let tool = self.tool().map_err(LegError::RolledBack)?;
        if let Some(from) = job.from
            && self.look(job).await.map_err(LegError::RolledBack)? != *from
        {
            let message = "the schema is not the one that the plan was made for; nothing was changed";
            return Err(LegError::RolledBack(Problem::new(Code::WrongRevision, message)));
        }
        let mut returned = None;
        let around = match job.leg.direction {
            Direction::Down => Around::Keep,
            Direction::Up => {
                // What an earlier run brought before the agent was killed: this run may build on it.
                returned = self.put_back_brought(false).await.map_err(LegError::RolledBack)?;
                Around::NoteAbsent
            }
        };
        self.around(Some(job), around).await.map_err(LegError::RolledBack)?;
        kill_point::pass(|| "migrate.kept".to_owned());
        let moved = tool.move_once(job.leg.direction, self.database, self.deadline).await;
        kill_point::pass(|| format!("migrate.ran.{}", job.part + 1));
        moved.map_err(LegError::Unknown)?;
        let end = self.look(job).await.map_err(LegError::Unknown)?;
        self.compare(job, &end).map_err(LegError::Unknown)?;
        let last = job.to.is_some() && job.is_last();
        let now = match job.leg.direction {
            Direction::Down => None,
            Direction::Up => self.put_back_brought(last).await.map_err(LegError::Unknown)?,
        };
        Returned::gather(&mut returned, now);
        if last {
            self.ask().await.map_err(LegError::Unknown)?;
        }
        Ok(Ran { returned, end })
    }

    pub fn tool(&self) -> Result<Tool<'_>, Problem> {
        let none = || Problem::new(Code::Internal, "a run of a tool was planned, and none is configured");
        Tool::of(self.config, self.component).ok_or_else(none)
    }

    /// The checks of the configuration, in a session of their own.
    pub async fn ask(&self) -> Result<(), Problem> {
        let mut c = self.sessions.migrator(self.database, self.settings).await?;
        let answer = integrity::ask(&mut c, self.config).await;
        let _ = sqlx::Connection::close(c).await;
        answer
    }

    /// Fills what runs up have brought and nobody has filled yet. `last`: the tool has nothing more to do.
    pub async fn put_back_brought(&self, last: bool) -> Result<Option<Returned>, Problem> {
        self.around(None, Around::PutBack { last }).await
    }

    /// Whether there is something to fill.
    pub async fn is_waiting_to_be_filled(&self) -> Result<bool, Problem> {
        let failed = |e| sql_problem(Code::DatabaseUnclear, "look for kept rows", &e);
        let mut c = self.sessions.migrator(self.database, self.settings).await?;
        run(&mut c, "BEGIN READ ONLY".to_owned()).await.map_err(failed)?;
        let waiting = put_back::is_waiting(&mut c, &self.kept).await;
        let _ = sqlx::Connection::close(c).await;
        waiting
    }

    /// One of our transactions; tried again while a lock is not to be had.
    async fn around(&self, job: Option<Job<'_>>, what: Around) -> Result<Option<Returned>, Problem> {
        let mut attempt = 1;
        loop {
            let mut c = self.sessions.migrator(self.database, self.settings).await?;
            let done = self.one_around(&mut c, job, what).await;
            let _ = sqlx::Connection::close(c).await;
            match done {
                Ok(returned) => return Ok(returned),
                Err(stop) if stop.is_contention() && attempt < ATTEMPTS => attempt += 1,
                Err(stop) => match self.give_up(stop, false, attempt, &[]) {
                    LegError::RolledBack(problem) | LegError::Unknown(problem) => return Err(problem),
                },
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn one_around(
        &self,
        c: &mut PgConnection,
        job: Option<Job<'_>>,
        what: Around,
    ) -> Result<Option<Returned>, Stop> {
        let _session = self.begin(c, false).await?;
        let returned = match what {
            Around::Keep => {
                if let Some(job) = job {
                    // Before a later run, what it is going to take away was kept before the first.
                    if !job.may_follow_others() {
                        put_back::forget_what_never_went(c, &self.kept).await?;
                    }
                    let place = keep::Place {
                        schema: &self.kept,
                        rollback_id: self.rollback_id,
                        numbers: &job.leg.numbers(),
                        adds: job.may_follow_others(),
                    };
                    keep::keep(c, place, job.loss, &Applied::default()).await?;
                }
                None
            }
            Around::NoteAbsent => {
                if let Some(job) = job {
                    put_back::note_absent(c, &self.kept, &job.leg.numbers()).await?;
                }
                None
            }
            Around::PutBack { last } => put_back::put_back_brought(c, &self.kept, self.rollback_id, last).await?,
        };
        run(c, "SET CONSTRAINTS ALL IMMEDIATE".to_owned())
            .await
            .map_err(sql("check constraints"))?;
        run(c, "COMMIT".to_owned()).await.map_err(Stop::Commit)?;
        Ok(returned)
    }
}
