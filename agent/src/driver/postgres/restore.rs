//! Restoring a database from a backup: beside the live one, and then the two exchange their names.
//!
//! - `prepare` finds the backup and says what it would cost ([`prepare`]).
//! - `stage` restores it into a database beside the live one, gives it everything that belongs to the live database and not
//!   to a dump ([`carry`]), and proves it ([`stage`]). Slow, and harmless.
//! - `switch` sends everybody away from the live database, counts what is lost ([`cost`]), and exchanges the names in one
//!   transaction ([`cutover`]). Its undo is the same the other way round.
//! - `finish` and `discard` remove what is of no use ([`clear`]). The database that was live before stays until somebody
//!   collects it on purpose: it is what an undo needs.
//!
//! Invariants: nothing is ever restored over a database, and no database is dropped that does not carry our mark
//! ([`mark`]) or one of our names. What a switch did is told by the OIDs of the two databases, which are on disk before it
//! begins ([`Note`]): there are two standings, before and after one transaction, and each may have connections still
//! disallowed. Every move first looks which of them it is, so it may be killed anywhere and repeated.
//!
//! Left out: replication. A database that is published to or subscribed from by logical replication, or that has a prepared
//! transaction, is refused; physical standbys follow by themselves.

mod carry;
mod clear;
mod compare;
mod cost;
mod cutover;
mod mark;
mod prepare;
mod sessions;
mod stage;
mod unnoted;

use std::collections::BTreeMap;
use std::path::PathBuf;

use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use self::carry::Properties;
pub use self::clear::PutAside;
use self::cost::Cost;
use super::PostgresDriver;
use super::connect::{ident, run};
use super::horizon::Horizon;
use super::sql_error::sql_problem;
use super::staging::{self, Staging};
use crate::driver::Receipt;
use crate::step::StepContext;

/// By what the rows are told that a restore loses.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Basis {
    /// By what the backup's snapshot could see.
    Horizon(Horizon),
    /// Live rows were compared with the restored ones; what was written after that is told by a horizon.
    Compared {
        cost: Cost,
        since: Horizon,
        /// Rows of each table then.
        rows: BTreeMap<String, u64>,
    },
    Unknown(String),
}

/// What `stage` leaves for `switch`, and `switch` for its repetition and its undo. On disk, beside the account of other
/// things that were staged.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Note {
    rollback_id: String,
    component: String,
    database: String,
    backup: String,
    taken_at: String,
    receipt: NotedReceipt,
    /// OIDs: of the database that is live now, and of the restored one.
    live: u32,
    side: u32,
    side_name: String,
    before_name: String,
    undone_name: String,
    /// What the live database has and a dump has not.
    properties: Properties,
    basis: Basis,
    /// Rows of each table in the backup.
    backup_rows: BTreeMap<String, u64>,
    /// What the restored database held when it was ready: newer rows were written while it was live.
    restored: Horizon,
    /// Written before connections are disallowed: if they are, it was this rollback.
    holding: bool,
    /// As counted at the cutover.
    cost: Option<Cost>,
    /// As counted at the undo: what was written in between.
    undone: Option<Cost>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct NotedReceipt {
    path: String,
    sha256: String,
    bytes: u64,
    verified: String,
    tables: u64,
    rows: u64,
}

/// Which of the two databases has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The one that was live when it was staged.
    Before,
    /// The restored one.
    Exchanged,
}

#[derive(Clone, Debug)]
struct Standing {
    place: Place,
    /// Whoever has the name accepts connections.
    open: bool,
    /// What the other of the two is called; `None` when it is gone.
    other: Option<String>,
}

impl Note {
    fn path(staging: &Staging) -> PathBuf {
        staging.file("restore.json")
    }

    /// Durable when it returns.
    fn save(&self, staging: &Staging) -> Result<(), Problem> {
        staging::write_json(&Self::path(staging), self)
    }

    fn receipt(&self) -> Receipt {
        let NotedReceipt {
            path,
            sha256,
            bytes,
            verified,
            tables,
            rows,
        } = self.receipt.clone();
        Receipt {
            path,
            sha256,
            bytes,
            verified,
            tables,
            rows,
            taken_at: self.taken_at.clone(),
        }
    }

    /// Reads where the two databases are. [`Code::DatabaseUnclear`] when it is neither of the two standings.
    async fn standing(&self, c: &mut PgConnection) -> Result<Standing, Problem> {
        let rows = sqlx::query(
            "SELECT oid::bigint AS oid, datname::text AS name, datallowconn AS open FROM pg_database
             WHERE oid::bigint IN ($1, $2) OR datname = $3",
        )
        .bind(i64::from(self.live))
        .bind(i64::from(self.side))
        .bind(&self.database)
        .fetch_all(c)
        .await
        .map_err(|e| sql_problem(Code::DatabaseDown, "look at the databases", &e))?;
        let mut named = None;
        let mut names = BTreeMap::new();
        for row in &rows {
            let failed = |e| sql_problem(Code::DatabaseDown, "look at the databases", &e);
            let oid = u32::try_from(row.try_get::<i64, _>("oid").map_err(failed)?).unwrap_or_default();
            let name: String = row.try_get("name").map_err(failed)?;
            if name == self.database {
                named = Some((oid, row.try_get::<bool, _>("open").map_err(failed)?));
            }
            names.insert(oid, name);
        }
        let other = |oid: u32| names.get(&oid).cloned();
        match named {
            Some((oid, open)) if oid == self.live => Ok(Standing {
                place: Place::Before,
                open,
                other: other(self.side),
            }),
            Some((oid, open)) if oid == self.side => Ok(Standing {
                place: Place::Exchanged,
                open,
                other: other(self.live),
            }),
            Some(_) | None => {
                let called = |oid: u32| other(oid).unwrap_or_else(|| "gone".to_owned());
                let message = format!(
                    "database {} is neither the one that was live nor the restored one; the former is now {}, the latter {}",
                    self.database,
                    called(self.live),
                    called(self.side)
                );
                Err(Problem::new(Code::DatabaseUnclear, message).remedy(
                    "find out who renamed them; give the right one its name back: ALTER DATABASE … RENAME TO …",
                ))
            }
        }
    }
}

impl PostgresDriver {
    fn restore_staging(&self, step: &StepContext) -> Staging {
        Staging::new(&self.config.backups, &self.tag(step))
    }

    /// What this rollback staged; `None` when it staged nothing, or it was removed since.
    fn note(&self, step: &StepContext) -> Result<Option<Note>, Problem> {
        let note: Option<Note> = staging::read_json(&Note::path(&self.restore_staging(step)))?;
        Ok(note.filter(|n| n.rollback_id == step.rollback_id && n.component == self.component))
    }

    /// Lets everybody connect again where a switch of ours, of whatever rollback, was cut off before it did.
    async fn reopen(&self, c: &mut PgConnection) -> Result<bool, Problem> {
        let owner = super::scratch::short(&self.component);
        for staging in Staging::all(&self.config.backups, &owner)? {
            let path = Note::path(&staging);
            let Ok(Some(mut note)) = staging::read_json::<Note>(&path) else {
                continue;
            };
            if !note.holding || note.component != self.component || note.database != self.config.database {
                continue;
            }
            if note.standing(c).await.is_ok_and(|standing| !standing.open) {
                self.allow(c).await?;
                note.holding = false;
                note.save(&staging)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Connections to the database that has the name.
    async fn allow(&self, c: &mut PgConnection) -> Result<(), Problem> {
        let database = &self.config.database;
        run(c, format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", ident(database)))
            .await
            .map_err(|e| {
                sql_problem(
                    Code::DatabaseUnclear,
                    format!("allow connections to {database} again"),
                    &e,
                )
                .remedy(format!(
                    "as its owner: ALTER DATABASE {} ALLOW_CONNECTIONS true",
                    ident(database)
                ))
            })
    }

    /// Why nobody can connect to the live database, if that is what is wrong with it.
    pub(super) async fn closed(&self) -> Option<Problem> {
        let mut c = self.connector.quick().maintenance().await.ok()?;
        let open: Option<bool> = sqlx::query_scalar("SELECT datallowconn FROM pg_database WHERE datname = $1")
            .bind(&self.config.database)
            .fetch_optional(&mut c)
            .await
            .ok()?;
        if open != Some(false) {
            return None;
        }
        let database = &self.config.database;
        let mut marked = mark::all_of(&mut c, database).await.unwrap_or_default();
        marked.retain(|m| m.mark.component == self.component);
        let _ = sqlx::Connection::close(c).await;
        let owner = super::scratch::short(&self.component);
        let ours = Staging::all(&self.config.backups, &owner)
            .ok()?
            .into_iter()
            .filter_map(|staging| staging::read_json::<Note>(&Note::path(&staging)).ok().flatten())
            .find(|note| note.holding && note.component == self.component);
        Some(match ours {
            Some(note) => Problem::new(
                Code::DatabaseUnclear,
                format!(
                    "database {database} accepts no connections: rollback {} is exchanging it, or was cut off inside that",
                    note.rollback_id
                ),
            )
            .remedy("let the rollback go on or take it back: either opens it again"),
            None => {
                let or = marked.last().map(|m| {
                    format!(
                        ", or a restore that was cut off and whose notes are gone: {} is of rollback {}",
                        m.name, m.mark.rollback
                    )
                });
                Problem::new(
                    Code::DatabaseDown,
                    format!(
                        "database {database} accepts no connections: somebody disallowed them{}",
                        or.unwrap_or_default()
                    ),
                )
                .remedy(format!("find out why; then: ALTER DATABASE {} ALLOW_CONNECTIONS true", ident(database)))
            }
        })
    }
}
