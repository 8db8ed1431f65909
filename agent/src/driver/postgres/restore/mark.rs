//! Databases that a restore makes or puts aside: how they are called, and what is written on them.
//!
//! The comment of each says to people what it is, and ends with a line of JSON for us. Only a database with such a line
//! is ever dropped. What a switch has to know does not depend on it: that goes by OIDs (see [`super::Note`]).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::driver::postgres::backup::people_bytes;
use crate::driver::postgres::connect::{ident, literal};
use crate::driver::postgres::scratch;

const FORMAT: u32 = 1;

/// Longest name of a database, in bytes.
const MAX_NAME: usize = 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum What {
    /// A backup is or was restored into it; it was never live, or nothing was written to it while it was.
    Side,
    /// It was live before a restore.
    Before,
    /// A restore that was taken back: it was live for a while, and rows were written to it.
    Undone,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    rollbackctl: u32,
    pub what: What,
    pub component: String,
    pub database: String,
    pub rollback: String,
    pub backup: String,
    pub at: Timestamp,
}

impl Mark {
    pub fn new(what: What, component: &str, database: &str, rollback: &str, backup: &str) -> Self {
        Self {
            rollbackctl: FORMAT,
            what,
            component: component.to_owned(),
            database: database.to_owned(),
            rollback: rollback.to_owned(),
            backup: backup.to_owned(),
            at: Timestamp::now(),
        }
    }

    pub fn statement(&self, name: &str) -> String {
        format!("COMMENT ON DATABASE {} IS {}", ident(name), literal(&self.text()))
    }

    fn text(&self) -> String {
        let Self {
            database,
            component,
            rollback,
            backup,
            ..
        } = self;
        let what = match self.what {
            What::Side => format!(
                "backup {backup} of {database}, restored beside it by rollbackctl (rollback {rollback}); may be dropped"
            ),
            What::Before => format!(
                "{database} as it was before rollbackctl restored backup {backup} (rollback {rollback}); drop it with: \
                 rollback-agent database collect {component}"
            ),
            What::Undone => format!(
                "{database} as restored from backup {backup} and taken back by rollbackctl (rollback {rollback}), with rows \
                 written in between; drop it with: rollback-agent database collect {component}"
            ),
        };
        let json = serde_json::to_string(self).expect("strings and numbers can always be written as JSON");
        format!("{what}\n{json}")
    }

    fn parse(comment: &str) -> Option<Self> {
        let mark: Self = serde_json::from_str(comment.lines().last()?).ok()?;
        (mark.rollbackctl == FORMAT).then_some(mark)
    }
}

/// Where a backup is restored to. The tag is 16 hex digits.
pub(super) fn side_name(database: &str, tag: &str) -> String {
    format!("rollbackctl_side_{}_{tag}", scratch::short(database))
}

/// What the live database is called after a restore.
pub(super) fn before_name(database: &str, tag: &str) -> String {
    aside(database, "_before_", tag)
}

/// What a restored one is called after an undo, when rows were written to it.
pub(super) fn undone_name(database: &str, tag: &str) -> String {
    aside(database, "_undone_", tag)
}

/// The tag makes it unique, so the database's own name may be cut. It is ASCII: the configuration was checked.
fn aside(database: &str, what: &str, tag: &str) -> String {
    let room = MAX_NAME.saturating_sub(what.len() + tag.len());
    let kept: String = database.chars().take(room).collect();
    format!("{kept}{what}{tag}")
}

/// A database with our mark.
#[derive(Clone, Debug)]
pub(super) struct Marked {
    pub name: String,
    pub oid: u32,
    pub bytes: Option<u64>,
    pub sessions: u64,
    pub mark: Mark,
}

impl Marked {
    /// "shop_before_0123456789abcdef (1 GB, of 2026-11-22)"
    pub fn describe(&self) -> String {
        let day = self.mark.at.strftime("%Y-%m-%d");
        match self.bytes {
            Some(bytes) => format!("{} ({}, of {day})", self.name, people_bytes(bytes)),
            None => format!("{} (of {day})", self.name),
        }
    }
}

/// Every database of the server with a mark that names this managed database, the oldest first.
pub(super) async fn all_of(c: &mut PgConnection, database: &str) -> Result<Vec<Marked>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT d.oid::bigint AS oid, d.datname::text AS name, shobj_description(d.oid, 'pg_database') AS comment,
                CASE WHEN has_database_privilege(d.oid, 'CONNECT') THEN pg_database_size(d.oid) END AS bytes,
                (SELECT count(*) FROM pg_stat_activity a WHERE a.datid = d.oid AND a.usename IS NOT NULL) AS sessions
         FROM pg_database d WHERE shobj_description(d.oid, 'pg_database') LIKE '%\"rollbackctl\":%' AND d.datname <> $1",
    )
    .bind(database)
    .fetch_all(c)
    .await?;
    let mut found = Vec::new();
    for row in &rows {
        let comment: String = row.try_get("comment")?;
        let Some(mark) = Mark::parse(&comment).filter(|mark| mark.database == database) else {
            continue;
        };
        found.push(Marked {
            name: row.try_get("name")?,
            oid: u32::try_from(row.try_get::<i64, _>("oid")?).unwrap_or_default(),
            bytes: row
                .try_get::<Option<i64>, _>("bytes")?
                .and_then(|b| u64::try_from(b).ok()),
            sessions: u64::try_from(row.try_get::<i64, _>("sessions")?).unwrap_or_default(),
            mark,
        });
    }
    found.sort_by_key(|marked| marked.mark.at);
    Ok(found)
}

/// Databases into which some rollback restored a backup and that are of no use any more: by their mark, or by their name
/// alone where a kill came before the mark. `owner` is what the component's tags begin with: another component may manage
/// the same database.
pub(super) async fn sides(c: &mut PgConnection, database: &str, owner: &str) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT datname::text FROM pg_database WHERE starts_with(datname::text, $1) ORDER BY 1")
        .bind(side_name(database, owner))
        .fetch_all(c)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_within_the_servers_limit_and_differ() {
        let long = "a".repeat(63);
        let tag = "0123456789abcdef";
        let names = [side_name(&long, tag), before_name(&long, tag), undone_name(&long, tag)];
        for name in &names {
            assert!(name.len() <= MAX_NAME && name.ends_with(tag), "{name}");
        }
        assert_ne!(names[1], names[2]);
        assert_eq!(before_name("shop", tag), "shop_before_0123456789abcdef");
    }

    #[test]
    fn a_mark_is_read_as_it_was_written_and_nothing_else_is_one() {
        let mark = Mark::new(What::Before, "db", "shop", "rb-1", "shop-20261122");
        assert_eq!(Mark::parse(&mark.text()), Some(mark));
        for comment in [
            "",
            "our shop",
            "{\"rollbackctl\":1}",
            "{\"rollbackctl\":2,\"what\":\"side\"}",
        ] {
            assert_eq!(Mark::parse(comment), None, "{comment}");
        }
    }
}
