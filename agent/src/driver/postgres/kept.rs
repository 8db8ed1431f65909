//! Kept schemas: what they are called, what is written in them, which there are, and when they go.
//!
//! A kept schema belongs to one rollback of one component: `rollbackctl_kept_<component><rollback>`, 8 hex digits each. It
//! outlives its rollback when that stands, so that a later rollback to the newer release finds the rows again
//! ([`super::put_back`]). It goes when everything in it was put back ([`drop_put_back`]), or when an operator drops it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::catalog::Schema;
use super::connect::{ident, literal, qualified, run};
use super::loss::{Loss, LostPart, Name};
use super::privileges::Privileges;
use super::sql_error::sql_problem;
use crate::words::count;

const PREFIX: &str = "rollbackctl_kept_";

/// Hex digits that stand for the component.
const OWNER_DIGITS: usize = 8;

/// What is in a kept schema; its one document, in table `kept`. Rows are in `t0`, `t1`, … in the order of the parts.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub rollback_id: String,
    pub parts: Vec<LostPart>,
    /// Name, last value, whether it was called.
    pub sequences: Vec<(Name, i64, bool)>,
    pub privileges: Privileges,
    /// Rows of the version table are in `version_rows`.
    pub version_rows: bool,
    pub put_back: bool,
    /// Absent in those of earlier agents, like what follows.
    #[serde(default)]
    pub kept_at: Option<Timestamp>,
    /// Rows of each part.
    #[serde(default)]
    pub rows: Vec<u64>,
    /// The migrations that were taken down.
    #[serde(default)]
    pub numbers: Option<Vec<i64>>,
    /// The rollback that put it back, if it was not its own, and what that said of it.
    #[serde(default)]
    pub put_back_by: Option<String>,
    #[serde(default)]
    pub account: Option<String>,
    /// Rows that had no place when the rest was put back. They are still wanted: the schema stays.
    #[serde(default)]
    pub left_out: u64,
    /// Which parts were put back already, in a leg of several parts; those that it is too short for were not.
    #[serde(default)]
    pub returned: Vec<bool>,
    /// What was not there when the project's own tool began to go up: parts, and sequences, by their places.
    #[serde(default)]
    pub absent: BTreeSet<usize>,
    #[serde(default)]
    pub absent_sequences: BTreeSet<usize>,
}

impl Kept {
    /// Nothing in it is needed any more.
    pub fn is_spent(&self) -> bool {
        self.put_back && self.left_out == 0
    }

    pub fn is_returned(&self, part: usize) -> bool {
        self.put_back || self.returned.get(part).copied().unwrap_or(false)
    }

    /// Something of this is in it and was not put back.
    pub fn holds_any_of(&self, loss: &Loss) -> bool {
        let waiting = self.parts.iter().enumerate().filter(|(i, _)| !self.is_returned(*i));
        let mut same = waiting.filter(|(_, kept)| {
            let lost = loss.parts.iter().filter(|p| p.table == kept.table);
            lost.into_iter()
                .any(|p| p.key.is_none() || kept.key.is_none() || p.columns.iter().any(|c| kept.columns.contains(c)))
        });
        same.next().is_some()
    }

    /// Whether it was made by taking down just these migrations, as far as it says.
    pub fn is_of(&self, numbers: &[i64]) -> bool {
        self.numbers.as_ref().is_none_or(|own| {
            let sorted = |list: &[i64]| {
                let mut list = list.to_vec();
                list.sort_unstable();
                list
            };
            sorted(own) == sorted(numbers)
        })
    }

    /// For people: when, and by which rollback.
    pub fn origin(&self) -> String {
        match self.kept_at {
            Some(at) => format!("rollback {}, {}", self.rollback_id, at.strftime("%Y-%m-%d %H:%M:%SZ")),
            None => format!("rollback {}", self.rollback_id),
        }
    }

    /// Replaces what the schema's table `kept` says.
    pub async fn write(&self, c: &mut PgConnection, schema: &str) -> Result<(), KeepError> {
        let document = serde_json::to_string(self)
            .map_err(|e| KeepError::Problem(Problem::from_error(Code::Internal, "describe kept rows", &e)))?;
        let (table, document) = (qualified(schema, "kept"), literal(&document));
        run(
            c,
            format!("DELETE FROM {table}; INSERT INTO {table} (document) VALUES ({document})"),
        )
        .await?;
        Ok(())
    }
}

/// Why keeping or putting back did not work. Lock waits must stay recognisable, so that the transaction is tried again.
#[derive(Debug)]
pub(super) enum KeepError {
    Sql(sqlx::Error),
    Problem(Problem),
}

impl From<sqlx::Error> for KeepError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

/// The schema of a rollback; see [`super::PostgresDriver::tag`].
pub(super) fn schema_name(tag: &str) -> String {
    format!("{PREFIX}{tag}")
}

/// What the names of all kept schemas of a component begin with.
fn family(schema: &str) -> &str {
    schema.get(..PREFIX.len() + OWNER_DIGITS).unwrap_or(schema)
}

pub(super) async fn read(c: &mut PgConnection, schema: &str) -> Result<Option<Kept>, Problem> {
    let failed = |e| sql_problem(Code::DatabaseUnclear, format!("read schema {schema}"), &e);
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)")
        .bind(schema)
        .fetch_one(&mut *c)
        .await
        .map_err(failed)?;
    if !exists {
        return Ok(None);
    }
    let query = format!("SELECT document FROM {}", qualified(schema, "kept"));
    let text: String = sqlx::query_scalar(AssertSqlSafe(query))
        .persistent(false)
        .fetch_one(c)
        .await
        .map_err(failed)?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Problem::from_error(Code::DatabaseUnclear, format!("read schema {schema}"), &e))
}

/// All kept schemas of the component that `own` belongs to and that we may read and change, the newest first. Those that
/// cannot be understood are left out: they are not ours to touch.
pub(super) async fn of_component(c: &mut PgConnection, own: &str) -> Result<Vec<(String, Kept)>, Problem> {
    let failed = |e| sql_problem(Code::DatabaseDown, "list kept schemas", &e);
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT n.nspname::text FROM pg_namespace n JOIN pg_class k ON k.relnamespace = n.oid AND k.relname = 'kept'
         WHERE starts_with(n.nspname::text, $1) AND has_schema_privilege(n.oid, 'USAGE')
           AND pg_has_role(current_user, k.relowner, 'USAGE')
         ORDER BY n.oid DESC",
    )
    .bind(family(own))
    .fetch_all(&mut *c)
    .await
    .map_err(failed)?;
    let mut found = Vec::new();
    for name in names {
        let query = format!("SELECT document FROM {}", qualified(&name, "kept"));
        let text: Option<String> = sqlx::query_scalar(AssertSqlSafe(query))
            .persistent(false)
            .fetch_optional(&mut *c)
            .await
            .map_err(failed)?;
        match text.as_deref().map(serde_json::from_str::<Kept>) {
            Some(Ok(kept)) => found.push((name, kept)),
            Some(Err(_)) | None => tracing::warn!(schema = name, "a kept schema cannot be understood"),
        }
    }
    // A stable sort: those of the same moment, or of an agent that noted none, stay in the order of their making.
    found.sort_by_key(|(_, kept)| std::cmp::Reverse(kept.kept_at));
    Ok(found)
}

/// Drops what was put back completely, by whichever rollback of this component. The rest stays.
pub(super) async fn drop_put_back(c: &mut PgConnection, own: &str) -> Result<usize, Problem> {
    let mut dropped = 0;
    for (schema, _) in of_component(c, own).await?.iter().filter(|(_, k)| k.is_spent()) {
        run(c, format!("DROP SCHEMA {} CASCADE", ident(schema)))
            .await
            .map_err(|e| sql_problem(Code::DatabaseDown, format!("drop schema {schema}"), &e))?;
        dropped += 1;
    }
    Ok(dropped)
}

/// What rollback `rollback` put back, in its own words. For when the reply to its COMMIT was lost.
pub(super) async fn account(c: &mut PgConnection, own: &str, rollback: &str) -> Result<Option<String>, Problem> {
    let all = of_component(c, own).await?;
    let mut by_it = all
        .into_iter()
        .filter(|(_, kept)| kept.put_back && kept.put_back_by.as_deref() == Some(rollback));
    Ok(by_it.next().and_then(|(_, kept)| kept.account))
}

/// What there is of kept schemas in a database, of whatever component.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub names: Vec<String>,
    /// `None` when it could not be found out at once.
    pub bytes: Option<u64>,
}

impl Inventory {
    /// All of them but `without`. Reads catalogs and file sizes only; never waits for a lock of a migration.
    pub async fn read(c: &mut PgConnection, without: &[String]) -> Result<Self, sqlx::Error> {
        let rows = sqlx::query(
            "SELECT n.nspname::text AS name, n.oid::bigint AS oid FROM pg_namespace n
             WHERE starts_with(n.nspname::text, $1) AND NOT n.nspname::text = ANY ($2) ORDER BY n.oid",
        )
        .bind(PREFIX)
        .bind(without)
        .fetch_all(&mut *c)
        .await?;
        let names: Vec<String> = rows.iter().map(|r| r.try_get("name")).collect::<Result<_, _>>()?;
        let oids: Vec<i64> = rows.iter().map(|r| r.try_get("oid")).collect::<Result<_, _>>()?;
        if names.is_empty() {
            return Ok(Self::default());
        }
        sqlx::raw_sql("SET lock_timeout = '500ms'").execute(&mut *c).await?;
        let bytes: Result<i64, sqlx::Error> = sqlx::query_scalar(
            "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
             WHERE c.relkind = 'r' AND c.relnamespace::bigint = ANY ($1)",
        )
        .bind(oids)
        .fetch_one(&mut *c)
        .await;
        sqlx::raw_sql("RESET lock_timeout").execute(c).await?;
        Ok(Self {
            names,
            bytes: bytes.ok().and_then(|b| u64::try_from(b).ok()),
        })
    }

    /// "2 kept schemas, 140 kB"; `None` when there are none.
    pub fn describe(&self) -> Option<String> {
        let count = match self.names.len() {
            0 => return None,
            1 => "1 kept schema".to_owned(),
            n => format!("{n} kept schemas"),
        };
        Some(match self.bytes {
            Some(bytes) => format!("{count}, {}", super::backup::people_bytes(bytes)),
            None => count,
        })
    }
}

/// What a way up is going to put back, as far as can be said beforehand: the newest schema that was kept of just these
/// migrations and whose tables and columns come back by them; and older ones like it.
#[derive(Debug)]
pub(super) struct Expected {
    pub schema: String,
    pub kept: Kept,
    pub older: Vec<String>,
}

impl Expected {
    pub async fn find(
        c: &mut PgConnection,
        own: &str,
        numbers: &[i64],
        now: &Schema,
        then: &Schema,
    ) -> Result<Option<Self>, Problem> {
        let mut found: Option<Self> = None;
        for (schema, kept) in of_component(c, own).await? {
            if kept.put_back || kept.parts.is_empty() || !kept.is_of(numbers) {
                continue;
            }
            let keys = catalog_keys(c, &kept.parts)
                .await
                .map_err(|e| sql_problem(Code::DatabaseDown, "compare kept schemas", &e))?;
            if !keys.iter().all(|k| then.0.contains_key(k) && !now.0.contains_key(k)) {
                continue;
            }
            match &mut found {
                Some(newest) => newest.older.push(schema),
                None => {
                    found = Some(Self {
                        schema,
                        kept,
                        older: Vec::new(),
                    });
                }
            }
        }
        Ok(found)
    }

    /// "public.scores 1500 rows, score of public.users 500 rows"
    pub fn contents(&self) -> String {
        let parts = self.kept.parts.iter().enumerate().map(|(i, part)| {
            let what = part_name(part);
            match self.kept.rows.get(i) {
                Some(rows) => format!("{what} {}", count(*rows, "row", "rows")),
                None => what,
            }
        });
        parts.collect::<Vec<_>>().join(", ")
    }
}

/// `public.scores`, or `score of public.users`.
pub(super) fn part_name(part: &LostPart) -> String {
    match part.key {
        None => part.table.to_string(),
        Some(_) => format!("{} of {}", part.columns.join(", "), part.table),
    }
}

/// What the parts are called in a [`Schema`].
async fn catalog_keys(c: &mut PgConnection, parts: &[LostPart]) -> Result<Vec<String>, sqlx::Error> {
    let mut keys = Vec::new();
    for part in parts {
        let found: Vec<String> = sqlx::query_scalar(
            "SELECT CASE WHEN $4 THEN format('table %I.%I', $1, $2) ELSE format('column %I.%I.%I', $1, $2, n) END
             FROM unnest(CASE WHEN $4 THEN ARRAY[''] ELSE $3 END) AS n",
        )
        .bind(&part.table.schema)
        .bind(&part.table.name)
        .bind(&part.columns)
        .bind(part.key.is_none())
        .fetch_all(&mut *c)
        .await?;
        keys.extend(found);
    }
    Ok(keys)
}
