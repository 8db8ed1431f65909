//! Which migrations are applied: the table in which the project's own migration tool notes them.
//!
//! Two layouts are known by their columns: one row for each applied migration (sqlx, dbmate, Rails and most others:
//! `version`, text or integer), and golang-migrate's single row (`version`, `dirty`), which names the highest only.

use std::collections::{BTreeMap, BTreeSet};

use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::connect::{ident, literal, qualified, run};
use super::sql_error::sql_problem;

/// Where versions are noted, as found in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VersionTable {
    pub schema: String,
    pub table: String,
    /// The version column holds text ("002"), not a number.
    text: bool,
    /// Columns beside `version` that a new row must be given a value for.
    required: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Layout {
    /// There is no such table: nothing was ever applied.
    #[default]
    Absent,
    /// A row for each applied migration.
    Rows(VersionTable),
    /// One row that names the highest.
    Head(VersionTable),
}

/// What the table says.
#[derive(Clone, Debug, Default)]
pub(super) struct Applied {
    pub layout: Layout,
    /// Number and the text that the table has for it.
    rows: BTreeMap<i64, String>,
    /// A migration that ended half-way by the tool's own account.
    pub dirty: Option<i64>,
}

impl Applied {
    /// Reads the table. `name` was checked with the configuration: `table` or `schema.table`.
    pub async fn read(connection: &mut PgConnection, name: &str) -> Result<Self, Problem> {
        let failed = |e| sql_problem(Code::DatabaseDown, format!("read {name}"), &e);
        let Some((layout, flag)) = find(connection, name).await.map_err(failed)? else {
            return Ok(Self::default());
        };
        let (Layout::Rows(table) | Layout::Head(table)) = &layout else {
            return Ok(Self::default());
        };
        let unfinished = match &flag {
            Some(Flag::Dirty) => "dirty",
            Some(Flag::Success) => "NOT success",
            None => "false",
        };
        let query = format!(
            "SELECT version::text, {unfinished} FROM {}",
            qualified(&table.schema, &table.table)
        );
        let found = sqlx::query(AssertSqlSafe(query))
            .fetch_all(connection)
            .await
            .map_err(failed)?;
        let (mut rows, mut dirty) = (BTreeMap::new(), None);
        for row in found {
            let raw: Option<String> = row.try_get(0).map_err(failed)?;
            let unfinished: Option<bool> = row.try_get(1).map_err(failed)?;
            let raw = raw.unwrap_or_default();
            let number = parse_number(&raw).ok_or_else(|| {
                let shown: String = raw.chars().take(40).collect();
                Problem::new(
                    Code::MigrationsDiverged,
                    format!("{name} has the version {shown:?}, which is not a number"),
                )
            })?;
            if unfinished == Some(true) {
                dirty = Some(number);
            }
            rows.insert(number, raw);
        }
        Ok(Self { layout, rows, dirty })
    }

    /// What the table names: all applied ones, or the highest only.
    pub fn numbers(&self) -> impl Iterator<Item = i64> + '_ {
        self.rows.keys().copied()
    }

    pub fn highest(&self) -> Option<i64> {
        self.rows.keys().next_back().copied()
    }

    /// The applied set. Where the table names the highest only, everything known below it counts as applied.
    pub fn set(&self, known: impl Iterator<Item = i64>) -> BTreeSet<i64> {
        match &self.layout {
            Layout::Absent => BTreeSet::new(),
            Layout::Rows(_) => self.rows.keys().copied().collect(),
            Layout::Head(_) => match self.highest() {
                Some(head) => known.filter(|n| *n <= head).chain([head]).collect(),
                None => BTreeSet::new(),
            },
        }
    }

    /// Takes the row of a migration away that was taken down. `below` is the highest that stays applied.
    pub async fn unmark(&self, c: &mut PgConnection, number: i64, below: Option<i64>) -> Result<(), Problem> {
        match &self.layout {
            Layout::Absent => Ok(()),
            Layout::Rows(table) => {
                let raw = self.rows.get(&number).cloned().unwrap_or_else(|| number.to_string());
                let name = qualified(&table.schema, &table.table);
                note(
                    c,
                    format!("DELETE FROM {name} WHERE version::text = {}", literal(&raw)),
                    number,
                )
                .await
            }
            Layout::Head(table) => set_head(c, table, below).await,
        }
    }

    /// Notes a migration as applied. `digits` is how its file writes the number.
    pub async fn mark(&self, c: &mut PgConnection, number: i64, digits: &str) -> Result<(), Problem> {
        match &self.layout {
            Layout::Absent => Err(no_table(number)),
            Layout::Rows(table) if !table.required.is_empty() => Err(Problem::new(
                Code::MigrationFailed,
                format!(
                    "cannot note migration {number} in {}: its column {} needs a value that only the migration tool knows",
                    table.table,
                    table.required.join(", ")
                ),
            )),
            Layout::Rows(table) => {
                let value = if table.text {
                    literal(digits)
                } else {
                    number.to_string()
                };
                let name = qualified(&table.schema, &table.table);
                note(c, format!("INSERT INTO {name} (version) VALUES ({value})"), number).await
            }
            Layout::Head(table) => set_head(c, table, Some(number)).await,
        }
    }

    /// Copies the rows of these migrations whole into a new table, so that they can come back as they were: some tools
    /// keep checksums and dates in them.
    pub async fn copy_rows(&self, c: &mut PgConnection, numbers: &[i64], into: &str) -> Result<(), sqlx::Error> {
        let Layout::Rows(table) = &self.layout else {
            return Ok(());
        };
        let raws: Vec<String> = numbers
            .iter()
            .filter_map(|n| self.rows.get(n))
            .map(|raw| literal(raw))
            .collect();
        let name = qualified(&table.schema, &table.table);
        run(
            c,
            format!(
                "CREATE TABLE {into} AS SELECT * FROM {name} WHERE version::text IN ({})",
                raws.join(", ")
            ),
        )
        .await
    }

    /// Puts the row of a migration back from such a copy. False when the copy has none.
    pub async fn put_row_back(&self, c: &mut PgConnection, number: i64, from: &str) -> Result<bool, sqlx::Error> {
        let Layout::Rows(table) = &self.layout else {
            return Ok(false);
        };
        let name = qualified(&table.schema, &table.table);
        let sql = format!("INSERT INTO {name} SELECT * FROM {from} WHERE version::numeric = {number}");
        Ok(sqlx::raw_sql(AssertSqlSafe(sql)).execute(c).await?.rows_affected() == 1)
    }
}

enum Flag {
    Dirty,
    Success,
}

async fn find(connection: &mut PgConnection, name: &str) -> Result<Option<(Layout, Option<Flag>)>, sqlx::Error> {
    // Readers have an empty search path: a name without a schema means what it means to the migration tool, whose
    // sessions have the database's own.
    let (schema, table) = name
        .split_once('.')
        .map_or((None, name), |(schema, table)| (Some(schema), table));
    let place = sqlx::query(
        "SELECT n.nspname, c.oid::bigint AS oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN LATERAL (
           SELECT position FROM unnest(string_to_array(replace(replace(coalesce(
             (SELECT reset_val FROM pg_settings WHERE name = 'search_path'), ''), '\"', ''), ' ', ''), ','))
             WITH ORDINALITY AS path(entry, position)
           WHERE entry = n.nspname OR (entry = '$user' AND n.nspname = current_user) LIMIT 1) AS path ON true
         WHERE c.relname = $1 AND c.relkind IN ('r', 'p') AND ($2::text IS NULL OR n.nspname = $2)
           AND ($2::text IS NOT NULL OR path.position IS NOT NULL)
         ORDER BY path.position LIMIT 1",
    )
    .bind(table)
    .bind(schema)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(place) = place else { return Ok(None) };
    let (schema, oid): (String, i64) = (place.try_get("nspname")?, place.try_get("oid")?);
    let columns = sqlx::query(
        "SELECT attname::text AS name, format_type(atttypid, NULL) AS type,
                attnotnull AND NOT atthasdef AND attidentity = '' AND attgenerated = '' AS required
         FROM pg_attribute WHERE attrelid::bigint = $1 AND attnum > 0 AND NOT attisdropped",
    )
    .bind(oid)
    .fetch_all(connection)
    .await?;
    let mut types = BTreeMap::new();
    let mut required = Vec::new();
    for column in &columns {
        let name: String = column.try_get("name")?;
        if column.try_get("required")? && name != "version" {
            required.push(ident(&name));
        }
        types.insert(name, column.try_get::<String, _>("type")?);
    }
    let Some(version) = types.get("version") else {
        return Ok(None);
    };
    let text = !matches!(version.as_str(), "bigint" | "integer" | "smallint" | "numeric");
    let boolean = |name: &str| types.get(name).is_some_and(|t| t == "boolean");
    let found = VersionTable {
        schema,
        table: table.to_owned(),
        text,
        required,
    };
    Ok(Some(if boolean("dirty") && types.len() == 2 {
        (Layout::Head(found), Some(Flag::Dirty))
    } else if boolean("dirty") {
        (Layout::Rows(found), Some(Flag::Dirty))
    } else if boolean("success") {
        (Layout::Rows(found), Some(Flag::Success))
    } else {
        (Layout::Rows(found), None)
    }))
}

/// Exactly one row must change: anything else means that somebody else is at work on the table.
async fn note(c: &mut PgConnection, sql: String, number: i64) -> Result<(), Problem> {
    let what = format!("note migration {number}");
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(c).await;
    match done
        .map_err(|e| sql_problem(Code::MigrationFailed, &what, &e))?
        .rows_affected()
    {
        1 => Ok(()),
        n => Err(Problem::new(
            Code::MigrationsDiverged,
            format!("{what}: {n} rows changed instead of one"),
        )),
    }
}

async fn set_head(c: &mut PgConnection, table: &VersionTable, head: Option<i64>) -> Result<(), Problem> {
    let name = qualified(&table.schema, &table.table);
    let mut sql = format!("DELETE FROM {name}");
    if let Some(head) = head {
        sql.push_str(&format!("; INSERT INTO {name} (version, dirty) VALUES ({head}, false)"));
    }
    run(c, sql)
        .await
        .map_err(|e| sql_problem(Code::MigrationFailed, "note the highest migration", &e))
}

fn no_table(number: i64) -> Problem {
    Problem::new(
        Code::MigrationsDiverged,
        format!("cannot note migration {number}: the version table does not exist"),
    )
}

/// Versions are numbers in every layout, with leading zeros in some.
pub(super) fn parse_number(text: &str) -> Option<i64> {
    let digits = text.trim();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        None
    } else {
        digits.parse().ok()
    }
}
