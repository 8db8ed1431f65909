//! Which migrations are applied: the table in which the project's own migration tool notes them.
//!
//! Two layouts are known by their columns: one row for each applied migration (sqlx, dbmate, Rails and most others:
//! `version`, text or integer), and golang-migrate's single row (`version`, `dirty`), which names the highest only.
//! A text may go on after the number (`20240115_security`): the number counts, the text is kept for the row.
//!
//! Where the project's own tool runs the migrations, the names are what the tool prints, and no table is read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::archive::leading_digits;
use super::connect::{ident, literal, qualified, run};
use super::sql_error::sql_problem;

/// Where versions are noted, as found in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VersionTable {
    pub schema: String,
    pub table: String,
    /// The version column holds text ("002"), not a number.
    text: bool,
    /// Columns beside `version` that a new row must be given a value for.
    required: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Layout {
    /// There is no such table: nothing was ever applied.
    #[default]
    Absent,
    /// A row for each applied migration.
    Rows(VersionTable),
    /// One row that names the highest.
    Head(VersionTable),
    /// The project's tool was asked.
    Named,
}

/// What the table says.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Applied {
    pub layout: Layout,
    /// Number and the text that the table has for it, or the name that the tool printed.
    rows: BTreeMap<i64, String>,
    /// What the tool printed last: the newest.
    last: Option<i64>,
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
            let number = leading_digits(raw.trim()).and_then(parse_number).ok_or_else(|| {
                let message = format!(
                    "{name} has the version {:?}, which is not a number, nor begins with one",
                    shown(&raw)
                );
                Problem::new(Code::MigrationsDiverged, message)
                    .remedy("give the component a [tool] if the project's own tool numbers its migrations otherwise")
            })?;
            if unfinished == Some(true) {
                dirty = Some(number);
            }
            if let Some(other) = rows.insert(number, raw.clone()) {
                let message = format!(
                    "{name} has two versions with the number {number}: {:?} and {:?}",
                    shown(&other),
                    shown(&raw)
                );
                return Err(Problem::new(Code::MigrationsDiverged, message)
                    .remedy("find out which of the two is applied, and take the other's row away"));
            }
        }
        Ok(Self {
            layout,
            rows,
            last: None,
            dirty,
        })
    }

    /// What the project's tool printed, the oldest first. The same name twice is an error.
    pub fn named(names: &[String]) -> Result<Self, Problem> {
        let mut rows = BTreeMap::new();
        for name in names {
            if rows.insert(number_of_name(name), name.clone()).is_some() {
                let message = format!("the migration tool's status names {:?} twice", shown(name));
                return Err(Problem::new(Code::MigrationToolFailed, message).remedy(
                    "set tool.applied to a pattern that matches one line for each applied migration, and no other",
                ));
            }
        }
        Ok(Self {
            layout: Layout::Named,
            rows,
            last: names.last().map(|name| number_of_name(name)),
            dirty: None,
        })
    }

    /// The newest.
    pub fn highest(&self) -> Option<i64> {
        match &self.layout {
            Layout::Absent | Layout::Rows(_) | Layout::Head(_) => self.rows.keys().next_back().copied(),
            Layout::Named => self.last,
        }
    }

    /// What the table has for a number, or the tool's name for it. Not what is only inferred from a higher one.
    pub fn text_of(&self, number: i64) -> Option<&str> {
        self.rows.get(&number).map(String::as_str)
    }

    /// Names, not numbers, tell the migrations apart.
    pub fn is_of_a_tool(&self) -> bool {
        self.layout == Layout::Named
    }

    /// One line for each, which makes the migrations a part of the revision.
    pub fn lines(&self) -> Vec<String> {
        match &self.layout {
            Layout::Absent | Layout::Rows(_) | Layout::Head(_) => {
                self.rows.keys().map(|number| format!("migration {number}\n")).collect()
            }
            Layout::Named => {
                let mut names: Vec<&String> = self.rows.values().collect();
                names.sort();
                let line = |name: &&String| format!("migration named {} {name}\n", name.len());
                names.iter().map(line).collect()
            }
        }
    }

    /// The applied set. Where the table names the highest only, everything known below it counts as applied.
    pub fn set(&self, known: impl Iterator<Item = i64>) -> BTreeSet<i64> {
        match &self.layout {
            Layout::Absent => BTreeSet::new(),
            Layout::Rows(_) | Layout::Named => self.rows.keys().copied().collect(),
            Layout::Head(_) => match self.highest() {
                Some(head) => known.filter(|n| *n <= head).chain([head]).collect(),
                None => BTreeSet::new(),
            },
        }
    }

    /// Takes the row of a migration away that was taken down. `below` is the highest that stays applied. Only what
    /// `notes_itself` may have taken it away already.
    pub async fn unmark(
        &self,
        c: &mut PgConnection,
        number: i64,
        below: Option<i64>,
        notes_itself: bool,
    ) -> Result<(), Problem> {
        match &self.layout {
            Layout::Absent => Ok(()),
            Layout::Named => Err(left_to_the_tool(number)),
            Layout::Rows(table) => {
                let raw = self.rows.get(&number).cloned().unwrap_or_else(|| number.to_string());
                let name = qualified(&table.schema, &table.table);
                let sql = format!("DELETE FROM {name} WHERE version::text = {}", literal(&raw));
                note(c, sql, number, if notes_itself { 0..=1 } else { 1..=1 }).await
            }
            Layout::Head(table) => set_head(c, table, below).await,
        }
    }

    /// Notes a migration as applied. `digits` is what its row says: the number as its file writes it, or a whole name.
    pub async fn mark(&self, c: &mut PgConnection, number: i64, digits: &str) -> Result<(), Problem> {
        match &self.layout {
            Layout::Absent => Err(no_table(number)),
            Layout::Named => Err(left_to_the_tool(number)),
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
                let sql = format!("INSERT INTO {name} (version) VALUES ({value})");
                note(c, sql, number, 1..=1).await
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
        let sql = format!("INSERT INTO {name} SELECT * FROM {from} WHERE {NUMBER_OF_ROW} = {number}");
        Ok(sqlx::raw_sql(AssertSqlSafe(sql)).execute(c).await?.rows_affected() == 1)
    }
}

/// The number of a row, in SQL, as [`Applied::read`] finds it.
const NUMBER_OF_ROW: &str = "substring(version::text FROM '^\\s*([0-9]+)')::numeric";

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

/// So many rows must change: anything else means that somebody else is at work on the table.
async fn note(c: &mut PgConnection, sql: String, number: i64, rows: RangeInclusive<u64>) -> Result<(), Problem> {
    let what = format!("note migration {number}");
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(c).await;
    match done
        .map_err(|e| sql_problem(Code::MigrationFailed, &what, &e))?
        .rows_affected()
    {
        n if rows.contains(&n) => Ok(()),
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

/// The driver never notes for a tool: a tool's run does so itself.
fn left_to_the_tool(number: i64) -> Problem {
    Problem::new(
        Code::Internal,
        format!("migration {number} is the project's own tool's to note"),
    )
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

/// A number for a migration that has a name only. It says nothing about the order.
fn number_of_name(name: &str) -> i64 {
    let hash = Sha256::digest(name.as_bytes());
    let first: [u8; 8] = std::array::from_fn(|i| hash[i]);
    i64::from_be_bytes(first) & i64::MAX
}

fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Applied {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        Applied::named(&names).expect("each once")
    }

    #[test]
    fn names_of_a_tool_are_a_set_with_a_newest() {
        let (one, other) = (names(&["b", "a"]), names(&["a", "b"]));
        assert_eq!(one.lines(), other.lines());
        assert_eq!(one.highest().and_then(|n| one.text_of(n)), Some("a"));
        assert_ne!(names(&["a", "b"]).lines(), names(&["a b"]).lines());
        assert!(names(&["a"]).set([].into_iter()).is_subset(&one.set([].into_iter())));
        assert_eq!(
            Applied::named(&["a".to_owned(), "a".to_owned()])
                .expect_err("twice")
                .code,
            Code::MigrationToolFailed
        );
    }
}
