//! A restore whose note is gone: the directory of backups was lost, or cleared by hand. What the databases themselves say
//! is all that there is. It is enough to tell what was done and to say how to take it back, and not to do it: nobody knows
//! any more what was lost, or whether anything was written since.

use rollback_proto::problem::{Code, Problem};

use super::mark;
use crate::driver::postgres::PostgresDriver;
use crate::driver::postgres::connect::ident;
use crate::driver::postgres::sql_error::sql_problem;
use crate::driver::{Done, Failure};
use crate::step::StepContext;

impl PostgresDriver {
    /// Nothing was staged, or it was cleared away. An undo of a switch that never happened has nothing to do.
    pub(super) async fn switch_without_note(&self, step: &StepContext) -> Result<Done, Failure> {
        if let Some(problem) = self.traces(step).await? {
            return Err(Failure::Indeterminate(problem));
        }
        if !step.undo {
            return Err(Problem::new(
                Code::RestoreFailed,
                "no backup was restored beside the database for this rollback",
            )
            .remedy("start the rollback anew; the live database was not touched")
            .into());
        }
        let state = self.state(self.connector.patient(step)).await?;
        Ok(Done::at(state.revision(), "nothing had been exchanged"))
    }

    /// What an exchange left that nobody noted; `None` when there is no trace of one.
    pub(super) async fn traces(&self, step: &StepContext) -> Result<Option<Problem>, Problem> {
        let database = &self.config.database;
        let tag = self.tag(step);
        let (before, undone) = (mark::before_name(database, &tag), mark::undone_name(database, &tag));
        let failed = |e| sql_problem(Code::DatabaseDown, "look at the databases", &e);
        let mut c = self.connector.settling(step).maintenance().await?;
        let marked = mark::all_of(&mut c, database).await.map_err(failed)?;
        let open: Option<bool> = sqlx::query_scalar("SELECT datallowconn FROM pg_database WHERE datname = $1")
            .bind(database)
            .fetch_optional(&mut c)
            .await
            .map_err(failed)?;
        let _ = sqlx::Connection::close(c).await;
        let gone = format!(
            "what this rollback noted of its restore is gone from {}",
            self.config.backups.display()
        );
        let (live, old) = (ident(database), ident(&before));
        if marked.iter().any(|m| m.name == before) {
            let message = format!(
                "{gone}; database {database} was exchanged, and as it was before it is {before}; nobody can tell what was \
                 written to either since"
            );
            let remedy = format!(
                "to go back, end all sessions of {database}, and as its owner: ALTER DATABASE {live} RENAME TO {}; ALTER \
                 DATABASE {old} RENAME TO {live}; COMMENT ON DATABASE {live} IS NULL; ALTER DATABASE {live} \
                 ALLOW_CONNECTIONS true",
                ident(&undone)
            );
            return Ok(Some(Problem::new(Code::DatabaseUnclear, message).remedy(remedy)));
        }
        if open == Some(false) {
            let message = format!(
                "{gone}; database {database} accepts no connections: an exchange that did not happen may have left it so, or \
                 somebody disallowed them"
            );
            let remedy = format!("as its owner: ALTER DATABASE {live} ALLOW_CONNECTIONS true");
            return Ok(Some(Problem::new(Code::DatabaseUnclear, message).remedy(remedy)));
        }
        Ok(None)
    }
}
