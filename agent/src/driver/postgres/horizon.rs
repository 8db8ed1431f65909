//! What a snapshot could see, written down, so that later somebody can tell which rows are newer than it.
//!
//! Every row carries the number of the transaction that wrote it. A row is newer than a snapshot if that transaction had
//! not been committed when the snapshot was taken: its number was not given out yet, or it was still running. This needs
//! no statistics and no triggers; a row that was updated counts as new, and one that was deleted is no longer there.
//!
//! Traps that are guarded here:
//! - The server's own account of a snapshot leaves out subtransactions (savepoints, exception blocks). Numbers below the
//!   snapshot's end that may belong to one are looked into ([`Horizon::read`]).
//! - Transaction numbers have 32 bits on the disk. Rows frozen long ago keep theirs, which by then may look as if it
//!   were to come: such rows are old. A horizon that is itself too old says nothing ([`Horizon::blind`]).
//! - A number means something in one database of one cluster only, and on one timeline of it. In any other the answer is "unknown", never 0.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::connect::qualified;

/// Half of the circle that 32-bit numbers go round in, less a margin for what happens between two looks.
const REACH: i64 = (1 << 31) - 10_000_000;

/// Unclear numbers below a snapshot's end that are looked into one by one. More of them mean that some transaction has
/// been open for a very long time.
const MAX_GAP: i64 = 2_000_000;

/// Below it are numbers that mean something else.
const FIRST_NORMAL: u32 = 3;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Horizon {
    /// The cluster: its identifier, as text, because JSON's numbers are not exact for it.
    system: String,
    /// Its timeline: another one began when another server took over, or when the cluster was restored to an earlier time.
    /// Numbers that were given out and lost then are given out again. Empty in manifests of earlier versions.
    #[serde(default)]
    timeline: String,
    /// The database's OID: it keeps it when it is renamed.
    pub database: u32,
    /// Transactions from here on had not begun (64 bits, with epoch).
    end: i64,
    /// Earlier ones that had not been committed.
    unseen: Vec<i64>,
    /// The tables that there were, with their OIDs: another table may have got the name of one since.
    #[serde(default)]
    tables: BTreeMap<String, u32>,
    /// Not empty: why rows cannot be told by it.
    #[serde(default)]
    unclear: String,
    pub taken_at: Timestamp,
}

/// A table of figures, or a stretch of one, to be counted by one session.
#[derive(Clone, Debug)]
pub(super) struct Stretch {
    schema: String,
    name: String,
    oid: u32,
    /// Blocks of it, the end not included; all of it without.
    blocks: Option<(u64, u64)>,
}

/// Rows of a table now, and those of them that are newer than the horizon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub rows: u64,
    pub new: u64,
}

/// Tables whose rows count: the same as for figures.
const TABLES: &str =
    "SELECT n.nspname::text AS schema, c.relname::text AS name, c.oid::bigint AS oid, pg_relation_size(c.oid) AS bytes,
        current_setting('block_size')::bigint AS block
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND n.nspname !~ '^rollbackctl_'
      AND NOT EXISTS (SELECT 1 FROM pg_depend d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY bytes DESC, 1, 2";

impl Stretch {
    /// Every table, the biggest first. One that is more than half of everything, and than `least` bytes, comes in stretches,
    /// where the server can read such.
    pub async fn all(c: &mut PgConnection, least: u64) -> Result<Vec<Self>, sqlx::Error> {
        let version: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::int")
            .fetch_one(&mut *c)
            .await?;
        let rows = sqlx::query(TABLES).fetch_all(c).await?;
        let mut all = Vec::new();
        let mut total: u64 = 0;
        for row in &rows {
            total = total.saturating_add(u64::try_from(row.try_get::<i64, _>("bytes")?).unwrap_or_default());
        }
        let most = least.max(total.div_ceil(2));
        for row in &rows {
            let (schema, name): (String, String) = (row.try_get("schema")?, row.try_get("name")?);
            let positive = |column: &str| {
                row.try_get::<i64, _>(column)
                    .map(|n| u64::try_from(n).unwrap_or_default())
            };
            let (bytes, block) = (positive("bytes")?, positive("block")?.max(1));
            let oid = u32::try_from(row.try_get::<i64, _>("oid")?).unwrap_or_default();
            let stretch = |blocks: Option<(u64, u64)>| Self {
                schema: schema.clone(),
                name: name.clone(),
                oid,
                blocks,
            };
            // Before 14, a condition on the place of a row reads the whole table.
            if version < 140_000 || bytes <= most {
                all.push(stretch(None));
                continue;
            }
            let step = (most / block).max(1);
            let mut from = 0;
            while from * block < bytes {
                all.push(stretch(Some((from, from + step))));
                from += step;
            }
            // What was appended since its size was looked at.
            all.push(stretch(Some((from, u64::from(u32::MAX)))));
        }
        Ok(all)
    }

    /// `schema.table`, as in figures.
    pub fn table(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

impl Horizon {
    /// Of the snapshot that the session's transaction reads with (REPEATABLE READ). Looks into tables only where a
    /// transaction that was running then has ended since, and may have had subtransactions.
    pub async fn read(c: &mut PgConnection) -> Result<Self, sqlx::Error> {
        // The functions of this family are in every version.
        let row = sqlx::query(
            "SELECT txid_snapshot_xmin(s) AS low, txid_snapshot_xmax(s) AS high, ARRAY(SELECT txid_snapshot_xip(s)) AS running,
                    (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database,
                    (SELECT system_identifier::text FROM pg_control_system()) AS system
             FROM txid_current_snapshot() s",
        )
        .fetch_one(&mut *c)
        .await?;
        let timeline = timeline(c).await?;
        let (low, end): (i64, i64) = (row.try_get("low")?, row.try_get("high")?);
        let running: Vec<i64> = row.try_get("running")?;
        let mut horizon = Self {
            system: row.try_get("system")?,
            timeline,
            database: u32::try_from(row.try_get::<i64, _>("database")?).unwrap_or_default(),
            end,
            unseen: running.clone(),
            tables: BTreeMap::new(),
            unclear: String::new(),
            taken_at: Timestamp::now(),
        };
        let tables = Stretch::all(c, u64::MAX).await?;
        horizon.tables = tables.iter().map(|t| (t.table(), t.oid)).collect();
        if running.is_empty() {
            return Ok(horizon);
        }
        if end - low > MAX_GAP {
            horizon.unclear = "a transaction had been open for very long when the backup was made".to_owned();
            return Ok(horizon);
        }
        let between = sqlx::query(
            "SELECT x, txid_status(x) AS status FROM generate_series($1, $2 - 1) x
             WHERE x <> ALL ($3) AND txid_status(x) IS DISTINCT FROM 'aborted'",
        )
        .bind(low)
        .bind(end)
        .bind(&running)
        .fetch_all(&mut *c)
        .await?;
        // Asked after the others: what is still running now was running all the while, and nothing of it was committed.
        let ended: Option<i64> =
            sqlx::query_scalar("SELECT min(x) FROM unnest($1) x WHERE txid_status(x) IS DISTINCT FROM 'in progress'")
                .bind(&running)
                .fetch_one(&mut *c)
                .await?;
        let mut doubtful = Vec::new();
        for row in &between {
            let (x, status): (i64, Option<String>) = (row.try_get("x")?, row.try_get("status")?);
            match status.as_deref() {
                // It can only be a subtransaction of one that is running.
                Some("in progress") => horizon.unseen.push(x),
                // A subtransaction has a higher number than the transaction that it belongs to.
                Some(_) | None if ended.is_some_and(|ended| ended < x) => doubtful.push(x),
                Some(_) | None => {}
            }
        }
        if !doubtful.is_empty() {
            let seen = seen_of(c, &tables, &doubtful).await?;
            horizon
                .unseen
                .extend(doubtful.iter().filter(|x| !seen.contains(&low_half(**x))));
        }
        Ok(horizon)
    }

    /// Why nothing can be told by it in the session's database; `None` when it can.
    pub async fn blind(&self, c: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
        if !self.unclear.is_empty() {
            return Ok(Some(self.unclear.clone()));
        }
        let row = sqlx::query(
            "SELECT txid_snapshot_xmax(txid_current_snapshot()) AS now,
                    (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database,
                    (SELECT system_identifier::text FROM pg_control_system()) AS system",
        )
        .fetch_one(&mut *c)
        .await?;
        let now: i64 = row.try_get("now")?;
        let timeline = timeline(c).await?;
        Ok(if row.try_get::<String, _>("system")? != self.system {
            Some("the backup was made on another server".to_owned())
        } else if row.try_get::<i64, _>("database")? != i64::from(self.database) {
            Some("the backup was made of another database, or the database was exchanged since".to_owned())
        } else if !self.timeline.is_empty() && timeline != self.timeline {
            Some("another server took over since the backup, or this one was restored to an earlier time".to_owned())
        } else if now < self.end {
            Some("the server knows fewer transactions than when the backup was made".to_owned())
        } else if now - self.end > REACH {
            Some("too many transactions have passed since the backup".to_owned())
        } else {
            None
        })
    }

    /// Counts in a transaction of its own. Only after [`Self::blind`] said nothing.
    pub async fn count(&self, c: &mut PgConnection, stretch: &Stretch) -> Result<Seen, sqlx::Error> {
        let unseen: Vec<u32> = self.unseen.iter().map(|x| low_half(*x)).collect();
        let place = match stretch.blocks {
            None => String::new(),
            Some((from, to)) => format!("WHERE ctid >= '({from},0)'::tid AND ctid < '({to},0)'::tid"),
        };
        let unseen = match unseen.as_slice() {
            [] => String::new(),
            some => format!(" OR xmin = ANY ('{{{}}}'::xid[])", join(some)),
        };
        // The age of a row's number is counted from now; a negative one is of a row that was frozen long ago. Most rows are
        // old, and told by the first comparison.
        let query = format!(
            "SELECT count(*), \
                    count(*) FILTER (WHERE age(xmin) <= (SELECT age('{}'::xid)) AND age(xmin) >= 0{unseen}) \
             FROM ONLY {} {place}",
            low_half(self.end).max(FIRST_NORMAL),
            qualified(&stretch.schema, &stretch.name)
        );
        // To compile so small a query takes longer than it saves.
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL jit = off";
        sqlx::raw_sql(begin).execute(&mut *c).await?;
        let counted = sqlx::query(AssertSqlSafe(query))
            .persistent(false)
            .fetch_one(&mut *c)
            .await;
        sqlx::raw_sql("ROLLBACK").execute(&mut *c).await?;
        let row = counted?;
        let rows = |i: usize| row.try_get::<i64, _>(i).map(|n| u64::try_from(n).unwrap_or_default());
        let known = self.tables.get(&stretch.table()) == Some(&stretch.oid);
        Ok(Seen {
            rows: rows(0)?,
            new: rows(if known { 1 } else { 0 })?,
        })
    }
}

/// As the names of the server's logs begin.
async fn timeline(c: &mut PgConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END",
    )
    .fetch_one(c)
    .await
}

/// Which of these transactions wrote rows that the session's snapshot sees: they had been committed.
async fn seen_of(c: &mut PgConnection, tables: &[Stretch], doubtful: &[i64]) -> Result<Vec<u32>, sqlx::Error> {
    let asked: Vec<u32> = doubtful.iter().map(|x| low_half(*x)).collect();
    let mut seen = Vec::new();
    for stretch in tables {
        let query = format!(
            "SELECT DISTINCT xmin::text FROM ONLY {} WHERE xmin = ANY ('{{{}}}'::xid[])",
            qualified(&stretch.schema, &stretch.name),
            join(&asked)
        );
        let found: Vec<String> = sqlx::query_scalar(AssertSqlSafe(query))
            .persistent(false)
            .fetch_all(&mut *c)
            .await?;
        seen.extend(found.iter().filter_map(|text| text.parse::<u32>().ok()));
    }
    Ok(seen)
}

/// What is on the disk of a transaction's number.
fn low_half(x: i64) -> u32 {
    u32::try_from(x & 0xffff_ffff).expect("it was cut to 32 bits")
}

fn join(numbers: &[u32]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
