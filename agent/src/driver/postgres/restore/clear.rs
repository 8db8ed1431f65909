//! The other moves, and what is kept: the receipt, `verify`, `finish`, `discard`, `probe`, and the collection of databases
//! that earlier restores put aside.

use std::time::Duration;

use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;

use super::cost::{self, Cost};
use super::cutover::COUNTERS;
use super::mark::{self, Marked, What};
use super::{Note, Place, Standing};
use crate::driver::postgres::connect::{ident, run};
use crate::driver::postgres::sql_error::sql_problem;
use crate::driver::postgres::{PostgresDriver, scratch};
use crate::driver::{Action, Done, Failure, Probe};
use crate::step::StepContext;
use crate::words::count;

/// How long counting what was lost may take when nobody waits for it.
const COUNT_ASIDE: Duration = Duration::from_secs(600);

/// A database that a restore put aside, as the command line shows it.
#[derive(Clone, Debug)]
pub struct PutAside {
    pub name: String,
    /// RFC 3339.
    pub since: String,
    /// `None` where the user of the configuration may not see it.
    pub bytes: Option<u64>,
    pub rollback: String,
    /// What it was, for people.
    pub what: &'static str,
}

impl From<Marked> for PutAside {
    fn from(marked: Marked) -> Self {
        Self {
            name: marked.name,
            since: marked.mark.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            bytes: marked.bytes,
            rollback: marked.mark.rollback,
            what: match marked.mark.what {
                What::Before => "live before the restore",
                What::Undone => "restored, taken back with rows written in between",
                What::Side => "restored, never live",
            },
        }
    }
}

impl PostgresDriver {
    /// Nothing has to be dumped for a way back: the live database is put aside as it is. The receipt is the backup's.
    pub(in crate::driver::postgres) fn restore_snapshot(&self, step: &StepContext) -> Result<Done, Failure> {
        let Some(note) = self.note(step)? else {
            let problem = Problem::new(Code::RestoreFailed, "no backup was restored for this rollback");
            return Err(problem.remedy("start the rollback anew").into());
        };
        Ok(Done {
            receipt: Some(note.receipt()),
            ..Done::new(format!(
                "backup {} was proven by restoring it; the live database stays whole, as {}",
                note.backup, note.before_name
            ))
        })
    }

    /// Before what `verify` does in any case: is the right one of the two live?
    pub(in crate::driver::postgres) async fn restore_verify(&self, step: &StepContext) -> Result<(), Failure> {
        let Some(note) = self.note(step)? else {
            return Ok(());
        };
        let mut c = self.connector.patient(step).maintenance().await?;
        let standing = note.standing(&mut c).await;
        let _ = sqlx::Connection::close(c).await;
        let standing = standing.map_err(|p| Problem::new(Code::Unhealthy, p.message).remedy(p.remedy))?;
        let want = if step.undo { Place::Before } else { Place::Exchanged };
        if standing.place != want || !standing.open {
            let message = match (standing.open, want) {
                (false, _) => format!("database {} accepts no connections", note.database),
                (true, Place::Exchanged) => format!("{} is still the database that was live before", note.database),
                (true, Place::Before) => format!("{} is still the restored database", note.database),
            };
            return Err(Problem::new(Code::Unhealthy, message).into());
        }
        Ok(())
    }

    /// `finish` and `discard`: the restored database goes unless it is live, connections are allowed again, and the rest
    /// is as for every other rollback. What was live before stays.
    pub(in crate::driver::postgres) async fn restore_clear(&self, step: &StepContext) -> Result<Done, Failure> {
        let sessions = self.connector.patient(step);
        let note = self.note(step)?;
        let side = mark::side_name(&self.config.database, &self.tag(step));
        let look = async {
            let mut c = sessions.maintenance().await?;
            let standing = match &note {
                Some(note) => Some(note.standing(&mut c).await?),
                None => None,
            };
            self.reopen(&mut c).await?;
            let failed = |e| sql_problem(Code::DatabaseDown, "look at the databases", &e);
            let sides = mark::sides(&mut c, &self.config.database, &scratch::short(&self.component))
                .await
                .map_err(failed)?;
            let aside = self.aside(&mut c, step).await?;
            let _ = sqlx::Connection::close(c).await;
            Ok::<_, Problem>((standing, sides.contains(&side), aside))
        };
        let (standing, left, aside) = step.operation("look_at_databases", look).await?;
        let mut notes = Vec::new();
        let mut loss = None;
        if step.action == Action::Finish
            && let Some(mut note) = note.clone()
            && standing.as_ref().is_some_and(|s| s.place == Place::Exchanged)
        {
            if note.cost.is_none() {
                let counted = step.operation("count_loss", self.count_aside(step, &note)).await;
                notes.push(format!("lost: {}", counted.describe()));
                note.cost = Some(counted);
                note.save(&self.restore_staging(step))?;
            }
            loss = Some(Box::new(note.loss()));
        }
        if let (
            Some(note),
            Some(Standing {
                place: Place::Exchanged,
                ..
            }),
        ) = (&note, &standing)
        {
            notes.push(format!("backup {} is live", note.backup));
        }
        if left && let Err(problem) = step.operation("dropdb", scratch::drop(sessions, &side)).await {
            notes.push(
                scratch::left_for_now(&side, &problem)
                    .trim_start_matches("; ")
                    .to_owned(),
            );
        }
        notes.extend(aside.iter().map(|a| {
            format!(
                "{} stays; when nobody needs it: rollback-agent database collect {} {}",
                a.describe(),
                self.component,
                a.name
            )
        }));
        let mut done = self.do_clear(step).await?;
        for note in notes {
            done.summary.push_str(&format!("; {note}"));
        }
        done.loss = loss;
        Ok(done)
    }

    /// What was lost, counted in the database that was put aside, which is open to us alone for as long as that takes: nobody
    /// knows its new name.
    async fn count_aside(&self, step: &StepContext, note: &Note) -> Cost {
        let name = &note.before_name;
        let limit = (step.time_left() / 2).min(COUNT_ASIDE);
        let counting = async {
            let mut c = self.connector.patient(step).maintenance().await?;
            let allow = async |c: &mut PgConnection, allowed: bool| {
                run(c, format!("ALTER DATABASE {} ALLOW_CONNECTIONS {allowed}", ident(name)))
                    .await
                    .map_err(|e| sql_problem(Code::DatabaseDown, format!("look into {name}"), &e))
            };
            allow(&mut c, true).await?;
            let counted = async {
                let (mut counters, _) = self.counters(step, name, COUNTERS).await?;
                let counted = cost::or_unknown(self.lost(note, &mut counters, true).await);
                for counter in counters {
                    let _ = sqlx::Connection::close(counter).await;
                }
                Ok::<_, Problem>(counted)
            };
            let counted = tokio::time::timeout(limit, counted).await;
            allow(&mut c, false).await?;
            let _ = sqlx::Connection::close(c).await;
            counted.unwrap_or_else(|_| {
                Ok(Cost::unknown(format!(
                    "counting takes longer than {} s",
                    limit.as_secs()
                )))
            })
        };
        counting
            .await
            .unwrap_or_else(|problem: Problem| Cost::unknown(problem.message))
    }

    /// What this rollback put aside.
    async fn aside(&self, c: &mut PgConnection, step: &StepContext) -> Result<Vec<Marked>, Problem> {
        let mut all = self.put_aside(c).await?;
        all.retain(|marked| marked.mark.rollback == step.rollback_id);
        Ok(all)
    }

    /// Databases that restores put aside and that nobody collected, the oldest first.
    pub(super) async fn put_aside(&self, c: &mut PgConnection) -> Result<Vec<Marked>, Problem> {
        let mut all = mark::all_of(c, &self.config.database)
            .await
            .map_err(|e| sql_problem(Code::DatabaseDown, "list databases that were put aside", &e))?;
        all.retain(|marked| match marked.mark.what {
            What::Before | What::Undone => true,
            What::Side => false,
        });
        Ok(all)
    }

    /// What became of a switch that was cut off?
    pub(in crate::driver::postgres) async fn restore_probe(&self, step: &StepContext) -> Probe {
        let unclear = |problem: Problem| {
            Probe::Indeterminate(Problem::new(Code::DatabaseUnclear, problem.message).remedy(problem.remedy))
        };
        if step.action != Action::Switch {
            return Probe::Repeatable(format!("{:?} may be repeated at any time", step.action));
        }
        let note = match self.note(step) {
            Ok(Some(note)) => note,
            Ok(None) => {
                return match self.traces(step).await {
                    Ok(None) => Probe::Repeatable("nothing is noted of a restore; the step looks by itself".to_owned()),
                    Ok(Some(problem)) | Err(problem) => unclear(problem),
                };
            }
            Err(problem) => return unclear(problem),
        };
        let sessions = self.connector.settling(step);
        let standing = match sessions.maintenance().await {
            Ok(mut c) => note.standing(&mut c).await,
            Err(problem) => return unclear(problem),
        };
        let standing = match standing {
            Ok(standing) => standing,
            Err(problem) => return unclear(problem),
        };
        let want = if step.undo { Place::Before } else { Place::Exchanged };
        let closed = if standing.open {
            ""
        } else {
            ", and connections are disallowed"
        };
        if standing.place != want || !standing.open {
            return Probe::Repeatable(match standing.place {
                Place::Before => format!("the databases are not exchanged{closed}"),
                Place::Exchanged => format!("the databases are exchanged{closed}"),
            });
        }
        match self.state(sessions).await {
            Err(problem) => unclear(problem),
            Ok(state) if step.undo => Probe::Applied(Done::at(state.revision(), note.taken_back())),
            // The smoke test may have been cut off: running the step again makes it.
            Ok(state) if state.digest != step.to.digest || note.holding => {
                Probe::Repeatable("the databases are exchanged, and the restored one was not looked at yet".to_owned())
            }
            Ok(state) => Probe::Applied(Done {
                loss: Some(Box::new(note.loss())),
                ..Done::at(state.revision(), note.exchanged(&standing))
            }),
        }
    }

    /// Drops a database that an earlier restore put aside. Only one with our mark, of this component, that nobody is
    /// connected to. Answers with one line for people.
    pub async fn collect(&self, name: &str) -> Result<String, Problem> {
        let sessions = self.connector.quick();
        let mut c = sessions.maintenance().await?;
        let all = self.collectable_by(&mut c).await?;
        let Some(found) = all.iter().find(|m| m.name == name) else {
            let described: Vec<String> = all.iter().map(Marked::describe).collect();
            let (there, next) = match described.as_slice() {
                [] => ("there is none".to_owned(), "nothing: there is nothing to drop"),
                [one] => (format!("there is {one}"), "name that one"),
                some => (format!("there are {}", some.join(", ")), "name one of these"),
            };
            let shown: String = name.chars().take(63).collect();
            return Err(Problem::new(
                Code::NoBackup,
                format!(
                    "{shown} is no database that a restore of {} put aside; {there}",
                    self.config.database
                ),
            )
            .remedy(next));
        };
        let needed = super::Staging::all(&self.config.backups, &scratch::short(&self.component))?
            .iter()
            .filter_map(|staging| {
                crate::driver::postgres::staging::read_json::<Note>(&Note::path(staging))
                    .ok()
                    .flatten()
            })
            .find(|note| note.live == found.oid || note.side == found.oid);
        if let Some(note) = needed {
            let message = format!(
                "{name} is what an undo of rollback {} needs, which is not over",
                note.rollback_id
            );
            return Err(Problem::new(Code::DatabaseLocked, message).remedy("end the rollback first"));
        }
        if found.sessions > 0 {
            let sessions = count(found.sessions, "session is", "sessions are");
            let message = format!("{sessions} connected to {name}");
            return Err(Problem::new(Code::DatabaseLocked, message).remedy("end them, if nobody needs it"));
        }
        let described = found.describe();
        let dropped = crate::driver::postgres::connect::run(&mut c, format!("DROP DATABASE {}", ident(name))).await;
        dropped.map_err(|e| sql_problem(Code::DatabaseLocked, format!("drop {name}"), &e))?;
        let _ = sqlx::Connection::close(c).await;
        Ok(format!("dropped {described}"))
    }

    /// The databases that [`Self::collect`] may be asked for, the oldest first.
    pub async fn collectable(&self) -> Result<Vec<PutAside>, Problem> {
        let mut c = self.connector.quick().maintenance().await?;
        let all = self.collectable_by(&mut c).await?;
        let _ = sqlx::Connection::close(c).await;
        Ok(all.into_iter().map(PutAside::from).collect())
    }

    /// Another component's are that one's to drop, even if it manages the same database.
    async fn collectable_by(&self, c: &mut PgConnection) -> Result<Vec<Marked>, Problem> {
        let mut all = self.put_aside(c).await?;
        all.retain(|marked| marked.mark.component == self.component);
        Ok(all)
    }
}
