//! Putting back what was kept, on the way up: inside the transaction of the migrations, after them.
//!
//! - An undo puts back what its own rollback kept ([`Source::Own`]): whole, in place of what the migration filled in.
//! - Another rollback to the newer release puts back what an earlier one kept and nobody put back ([`Source::Earlier`]),
//!   if the migrations bring back just these tables and columns, with the same types. Time has passed since: a table is
//!   filled only if the migration left it empty, and a schema that does not fit any more is left alone and named, without
//!   failing the migrations.
//!
//! In both, values find their rows by primary key, and only where these still are; a row that refers to another which is
//! gone is left out. What was really put back is counted ([`Returned`]), and what was not is never dropped.

use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::connect::{changed, ident, literal, qualified, run};
use super::kept::{self, KeepError, Kept, part_name};
use super::loss::{Loss, LostPart, Structure};
use super::privileges::Privileges;
use super::sql_error::{server_error, sql_problem};
use super::versions::Applied;

const SAVEPOINT: &str = "rollbackctl_put_back";

/// Where rows for a way up may come from.
#[derive(Debug)]
pub(super) enum Source {
    Nothing,
    /// This very rollback took the migrations down.
    Own(String, Kept),
    /// Earlier rollbacks did, the newest first; and what there was before the migrations.
    Earlier(Vec<(String, Kept)>, Structure),
}

impl Source {
    /// Looks before the migrations run. `own` is the schema of this rollback.
    pub async fn find(c: &mut PgConnection, own: &str, numbers: &[i64]) -> Result<Self, KeepError> {
        if let Some(kept) = kept::read(c, own).await.map_err(KeepError::Problem)? {
            return Ok(if kept.put_back {
                Self::Nothing
            } else {
                Self::Own(own.to_owned(), kept)
            });
        }
        let mut earlier = kept::of_component(c, own).await.map_err(KeepError::Problem)?;
        earlier.retain(|(_, kept)| !kept.put_back && kept.is_of(numbers));
        if earlier.is_empty() {
            return Ok(Self::Nothing);
        }
        Ok(Self::Earlier(earlier, Structure::read(c).await?))
    }

    /// Gives a migration's row of the version table back as it was: some tools keep checksums and dates in it. False when
    /// none was kept.
    pub async fn version_row_back(
        &self,
        c: &mut PgConnection,
        applied: &Applied,
        number: i64,
    ) -> Result<bool, KeepError> {
        match self {
            Self::Own(schema, kept) if kept.version_rows => Ok(applied
                .put_row_back(c, number, &qualified(schema, "version_rows"))
                .await?),
            Self::Earlier(all, _) => {
                let Some((schema, _)) = all.iter().find(|(_, kept)| kept.version_rows) else {
                    return Ok(false);
                };
                run(c, format!("SAVEPOINT {SAVEPOINT}")).await?;
                let from = qualified(schema, "version_rows");
                let done = applied.put_row_back(c, number, &from).await.map_err(KeepError::Sql);
                Ok(or_back_to_savepoint(c, done).await?.unwrap_or(false))
            }
            Self::Nothing | Self::Own(..) => Ok(false),
        }
    }

    /// Puts back what fits. `before` are the privileges as they were before the migrations.
    pub async fn put_back(
        self,
        c: &mut PgConnection,
        rollback_id: &str,
        before: &Privileges,
    ) -> Result<Option<Returned>, KeepError> {
        let (earlier, structure) = match self {
            Self::Nothing => return Ok(None),
            Self::Own(schema, kept) => {
                let parts = own(c, &schema, kept, rollback_id).await?;
                return Ok(Some(Returned {
                    from: None,
                    parts,
                    ..Returned::default()
                }));
            }
            Self::Earlier(earlier, structure) => (earlier, structure),
        };
        let Ok(came) = Structure::read(c).await?.lost_in(&structure) else {
            // Something among it could never have been kept.
            return Ok(None);
        };
        let mut returned = Returned::default();
        let mut done = false;
        for (schema, mut kept) in earlier {
            if kept.parts.is_empty() && kept.sequences.is_empty() {
                if kept.numbers.is_some() {
                    // Version rows and nothing else: they have served.
                    kept.put_back = true;
                    kept.put_back_by = Some(rollback_id.to_owned());
                    kept.write(c, &schema).await?;
                }
                continue;
            }
            if !same_things(&kept, &came) {
                continue;
            }
            if done {
                returned.others.push(schema);
                continue;
            }
            if !same_types(c, &schema, &kept).await? {
                let why = "its columns have other types now".to_owned();
                returned.unfit.push((schema, why));
                continue;
            }
            run(c, format!("SAVEPOINT {SAVEPOINT}")).await?;
            let origin = kept.origin();
            let tried = later(c, &schema, kept, rollback_id, before).await;
            match or_back_to_savepoint(c, tried).await? {
                Ok(parts) => {
                    returned.from = Some(format!("{schema} ({origin})"));
                    returned.parts = parts;
                    done = true;
                }
                Err(problem) => returned.unfit.push((schema, problem.message)),
            }
        }
        Ok(Some(returned).filter(|r| r.from.is_some() || !r.unfit.is_empty()))
    }
}

/// What became of kept rows.
#[derive(Debug, Default)]
pub(super) struct Returned {
    /// Schema and origin, when it was not this rollback's own.
    from: Option<String>,
    parts: Vec<ReturnedPart>,
    /// Older schemas with the same tables and columns, which stay.
    others: Vec<String>,
    /// Schemas that would have been put back, and why they could not.
    unfit: Vec<(String, String)>,
}

#[derive(Debug)]
struct ReturnedPart {
    name: String,
    put: u64,
    kept: u64,
    left_out: u64,
    /// Why rows that still have a place were not put there.
    why: &'static str,
}

impl Returned {
    /// For a summary; empty when nothing was kept at all.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        if !self.parts.is_empty() {
            text.push_str("; put back");
            if let Some(from) = &self.from {
                text.push_str(&format!(" from {from}"));
            }
            text.push_str(&format!(": {}", describe(&self.parts)));
        }
        if !self.others.is_empty() {
            let others = self.others.join(", ");
            text.push_str(&format!("; older kept rows stay where they are: {others}"));
        }
        for (schema, why) in &self.unfit {
            text.push_str(&format!("; warning: kept rows in {schema} were not put back: {why}"));
        }
        text
    }
}

fn describe(parts: &[ReturnedPart]) -> String {
    let one = |part: &ReturnedPart| {
        let mut text = format!("{} {}", part.name, part.put);
        if part.put < part.kept {
            text.push_str(&format!(" of {}", part.kept));
        }
        text.push_str(if part.kept == 1 { " row" } else { " rows" });
        let gone = part.kept.saturating_sub(part.put + part.left_out);
        let mut why = Vec::new();
        if gone > 0 {
            why.push(format!("{gone} deleted since"));
        }
        if part.left_out > 0 {
            why.push(format!("{} {}, still kept", part.left_out, part.why));
        }
        if !why.is_empty() {
            text.push_str(&format!(" ({})", why.join(", ")));
        }
        text
    };
    parts.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Whether the migrations bring back just what was kept.
fn same_things(kept: &Kept, came: &Loss) -> bool {
    let parts = |parts: &[LostPart]| {
        let mut all: Vec<_> = parts
            .iter()
            .map(|p| {
                let mut columns = p.columns.clone();
                columns.sort();
                (p.table.clone(), columns, p.key.clone())
            })
            .collect();
        all.sort();
        all
    };
    let mut sequences: Vec<_> = kept.sequences.iter().map(|(name, ..)| name.clone()).collect();
    let mut came_sequences = came.sequences.clone();
    sequences.sort();
    came_sequences.sort();
    sequences == came_sequences && parts(&kept.parts) == parts(&came.parts)
}

async fn same_types(c: &mut PgConnection, schema: &str, kept: &Kept) -> Result<bool, sqlx::Error> {
    for (i, part) in kept.parts.iter().enumerate() {
        let same: bool = sqlx::query_scalar(
            "SELECT coalesce(bool_and(b.atttypid IS NOT DISTINCT FROM a.atttypid
                                      AND b.atttypmod IS NOT DISTINCT FROM a.atttypmod), true)
             FROM pg_attribute a
             LEFT JOIN pg_attribute b ON b.attrelid = to_regclass($2) AND b.attname = a.attname AND NOT b.attisdropped
             WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped",
        )
        .bind(qualified(schema, &format!("t{i}")))
        .bind(part.table.quoted())
        .fetch_one(&mut *c)
        .await?;
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Keeps what was done since the savepoint, or takes it back when it failed for a reason that lies in what was kept. Lock
/// waits and lost sessions are the transaction's own affair.
async fn or_back_to_savepoint<T>(
    c: &mut PgConnection,
    tried: Result<T, KeepError>,
) -> Result<Result<T, Problem>, KeepError> {
    let problem = match tried {
        Ok(done) => {
            run(c, format!("RELEASE SAVEPOINT {SAVEPOINT}")).await?;
            return Ok(Ok(done));
        }
        Err(KeepError::Problem(problem)) => problem,
        Err(KeepError::Sql(error)) => {
            let about_rows = server_error(&error).is_some_and(|e| {
                e.code() == "55006" || ["22", "23", "42", "P0"].iter().any(|class| e.code().starts_with(class))
            });
            if !about_rows {
                return Err(KeepError::Sql(error));
            }
            sql_problem(Code::DatabaseUnclear, "put kept rows back", &error)
        }
    };
    run(
        c,
        format!("ROLLBACK TO SAVEPOINT {SAVEPOINT}; RELEASE SAVEPOINT {SAVEPOINT}"),
    )
    .await?;
    Ok(Err(problem))
}

/// The undo of this rollback: just now these tables were made anew, and what the migration put into them is replaced by
/// what was there.
async fn own(
    c: &mut PgConnection,
    schema: &str,
    mut kept: Kept,
    rollback_id: &str,
) -> Result<Vec<ReturnedPart>, KeepError> {
    for part in kept.parts.iter().rev().filter(|p| p.key.is_none()) {
        let triggers = quiet_triggers(c, part).await?;
        run(c, format!("DELETE FROM ONLY {}", part.table.quoted())).await?;
        wake_triggers(c, part, &triggers).await?;
    }
    let mut parts = Vec::new();
    for (i, part) in kept.parts.iter().enumerate() {
        parts.push(fill(c, part, &qualified(schema, &format!("t{i}")), kept.rows.get(i).copied()).await?);
    }
    for (name, last, called) in &kept.sequences {
        run(
            c,
            format!("SELECT setval({}::regclass, {last}, {called})", literal(&name.quoted())),
        )
        .await?;
    }
    kept.privileges.give_back(c).await?;
    note(c, schema, &mut kept, rollback_id, &parts).await?;
    Ok(parts)
}

/// What an earlier rollback kept: only where nothing else has taken its place since.
async fn later(
    c: &mut PgConnection,
    schema: &str,
    mut kept: Kept,
    rollback_id: &str,
    before: &Privileges,
) -> Result<Vec<ReturnedPart>, KeepError> {
    // Looked at before anything is filled.
    let mut filled = Vec::new();
    for part in &kept.parts {
        let query = format!("SELECT EXISTS (SELECT 1 FROM ONLY {})", part.table.quoted());
        let rows: bool = sqlx::query_scalar(AssertSqlSafe(query))
            .persistent(false)
            .fetch_one(&mut *c)
            .await?;
        filled.push(rows && part.key.is_none());
    }
    let mut parts = Vec::new();
    for (i, part) in kept.parts.iter().enumerate() {
        let from = qualified(schema, &format!("t{i}"));
        let rows = kept.rows.get(i).copied();
        if filled.get(i) == Some(&true) {
            let rows = match rows {
                Some(rows) => rows,
                None => count(c, format!("SELECT count(*) FROM {from}")).await?,
            };
            parts.push(ReturnedPart {
                name: part_name(part),
                put: 0,
                kept: rows,
                left_out: rows,
                why: "not put back, because the migration filled the table itself",
            });
            continue;
        }
        parts.push(fill(c, part, &from, rows).await?);
    }
    for (name, last, called) in &kept.sequences {
        // Never backwards: the migration may have used it for rows that stay.
        let sequence = name.quoted();
        run(
            c,
            format!(
                "SELECT setval({}::regclass, {last}, {called}) FROM {sequence} WHERE last_value <= {last}",
                literal(&sequence)
            ),
        )
        .await?;
    }
    kept.privileges.unknown_to(before).give_back(c).await?;
    // Inside the savepoint, so that what a deferred constraint has to say is known here.
    run(c, "SET CONSTRAINTS ALL IMMEDIATE".to_owned()).await?;
    note(c, schema, &mut kept, rollback_id, &parts).await?;
    Ok(parts)
}

async fn note(
    c: &mut PgConnection,
    schema: &str,
    kept: &mut Kept,
    rollback_id: &str,
    parts: &[ReturnedPart],
) -> Result<(), KeepError> {
    kept.put_back = true;
    kept.left_out = parts.iter().map(|p| p.left_out).sum();
    kept.put_back_by = Some(rollback_id.to_owned());
    kept.account = Some(format!("; put back: {}", describe(parts)));
    kept.write(c, schema).await
}

async fn count(c: &mut PgConnection, query: String) -> Result<u64, sqlx::Error> {
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(query))
        .persistent(false)
        .fetch_one(c)
        .await?;
    Ok(u64::try_from(rows).unwrap_or_default())
}

/// Puts one part back and counts. The table's own triggers have seen these rows once already.
async fn fill(c: &mut PgConnection, part: &LostPart, from: &str, kept: Option<u64>) -> Result<ReturnedPart, KeepError> {
    let kept = match kept {
        Some(kept) => kept,
        None => count(c, format!("SELECT count(*) FROM {from}")).await?,
    };
    let mut placed = placed(c, part).await?;
    if placed.is_empty() {
        placed.push("true".to_owned());
    }
    let placed = placed.join(" AND ");
    let triggers = quiet_triggers(c, part).await?;
    let mut put = changed(c, statement(part, from, &placed)).await?;
    wake_triggers(c, part, &triggers).await?;
    let mut left_out = kept.saturating_sub(put);
    if let Some(key) = &part.key
        && put < kept
    {
        // Fewer were changed than were kept: rows are gone, refer to rows that are gone, or have that value already.
        let matching = format!(
            "SELECT count(*) FROM {from} AS k JOIN ONLY {} AS t ON {}",
            part.table.quoted(),
            key_matches(key)
        );
        put = count(c, format!("{matching} WHERE {placed}")).await?;
        left_out = count(c, matching).await?.saturating_sub(put);
    }
    Ok(ReturnedPart {
        name: part_name(part),
        put,
        kept,
        left_out,
        why: "refer to rows that are gone",
    })
}

fn key_matches(key: &[String]) -> String {
    let matching = key.iter().map(|n| format!("t.{0} = k.{0}", ident(n)));
    matching.collect::<Vec<_>>().join(" AND ")
}

/// The statement that puts one part back, as far as `placed` holds for a kept row `k`.
fn statement(part: &LostPart, from: &str, placed: &str) -> String {
    let table = part.table.quoted();
    let list = |prefix: &str, names: &[String]| {
        names
            .iter()
            .map(|n| format!("{prefix}{}", ident(n)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    match &part.key {
        None if part.columns.is_empty() => format!("INSERT INTO {table} SELECT FROM {from}"),
        None => {
            let (columns, values) = (list("", &part.columns), list("k.", &part.columns));
            format!(
                "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {values} FROM {from} AS k WHERE {placed}"
            )
        }
        Some(key) => {
            let set: Vec<String> = part.columns.iter().map(|n| format!("{0} = k.{0}", ident(n))).collect();
            format!(
                "UPDATE ONLY {table} AS t SET {} FROM {from} AS k WHERE {} AND ROW({}) IS DISTINCT FROM ROW({}) AND {placed}",
                set.join(", "),
                key_matches(key),
                list("t.", &part.columns),
                list("k.", &part.columns)
            )
        }
    }
}

/// Conditions under which what a kept row `k` refers to is still there: one for each foreign key of the table whose
/// columns were kept. References of a table to itself are left to the constraint.
async fn placed(c: &mut PgConnection, part: &LostPart) -> Result<Vec<String>, KeepError> {
    let rows = sqlx::query(
        "SELECT format('%I.%I', rn.nspname, r.relname) AS target,
                (SELECT array_agg(a.attname::text ORDER BY u.i) FROM unnest(f.conkey) WITH ORDINALITY AS u(n, i)
                 JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = u.n) AS here,
                (SELECT array_agg(a.attname::text ORDER BY u.i) FROM unnest(f.confkey) WITH ORDINALITY AS u(n, i)
                 JOIN pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = u.n) AS there
         FROM pg_constraint f JOIN pg_class r ON r.oid = f.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace
         WHERE f.conrelid = to_regclass($1) AND f.contype = 'f' AND f.confrelid <> f.conrelid",
    )
    .bind(part.table.quoted())
    .fetch_all(c)
    .await?;
    let mut conditions = Vec::new();
    for row in &rows {
        let target: String = row.try_get("target")?;
        let (here, there): (Vec<String>, Vec<String>) = (row.try_get("here")?, row.try_get("there")?);
        let restored = here.iter().any(|n| part.columns.contains(n));
        let known = |n: &String| part.columns.contains(n) || part.key.iter().flatten().any(|k| k == n);
        if !restored || !here.iter().all(known) {
            continue;
        }
        let nulls = here.iter().map(|n| format!("k.{} IS NULL OR ", ident(n)));
        let equal: Vec<String> = here
            .iter()
            .zip(&there)
            .map(|(h, t)| format!("r.{} = k.{}", ident(t), ident(h)))
            .collect();
        conditions.push(format!(
            "({}EXISTS (SELECT 1 FROM {target} AS r WHERE {}))",
            nulls.collect::<String>(),
            equal.join(" AND ")
        ));
    }
    Ok(conditions)
}

/// Disables the table's own triggers; answers how each was set.
async fn quiet_triggers(c: &mut PgConnection, part: &LostPart) -> Result<Vec<(String, &'static str)>, KeepError> {
    let rows = sqlx::query(
        "SELECT t.tgname::text AS name, t.tgenabled::text AS enabled FROM pg_trigger t
         JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = $1 AND c.relname = $2 AND NOT t.tgisinternal AND t.tgenabled <> 'D'",
    )
    .bind(&part.table.schema)
    .bind(&part.table.name)
    .fetch_all(&mut *c)
    .await?;
    let mut triggers = Vec::new();
    for row in &rows {
        let name: String = row.try_get("name")?;
        let how = match row.try_get::<String, _>("enabled")?.as_str() {
            "A" => "ENABLE ALWAYS",
            "R" => "ENABLE REPLICA",
            _ => "ENABLE",
        };
        run(
            c,
            format!(
                "ALTER TABLE ONLY {} DISABLE TRIGGER {}",
                part.table.quoted(),
                ident(&name)
            ),
        )
        .await?;
        triggers.push((name, how));
    }
    Ok(triggers)
}

async fn wake_triggers(c: &mut PgConnection, part: &LostPart, triggers: &[(String, &str)]) -> Result<(), KeepError> {
    for (name, how) in triggers {
        run(
            c,
            format!("ALTER TABLE ONLY {} {how} TRIGGER {}", part.table.quoted(), ident(name)),
        )
        .await?;
    }
    Ok(())
}
