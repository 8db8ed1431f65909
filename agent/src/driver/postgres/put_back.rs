//! Putting back what was kept, on the way up: inside the transaction of the migrations, after them. In a leg of several
//! parts each puts back what it has brought, and nothing else: what was there before it was never taken away.
//!
//! - An undo puts back what its own rollback kept ([`Source::Own`]): whole, in place of what the migration filled in.
//! - Another rollback to the newer release puts back what an earlier one kept and nobody put back ([`Source::Earlier`]),
//!   if the migrations bring back just these tables and columns, with the same types. Time has passed since: a table is
//!   filled only if the migration left it empty, and a schema that does not fit any more is left alone and named, without
//!   failing the migrations.
//!
//! In both, values find their rows by primary key, and only where these still are; a row that refers to another which is
//! gone is left out. What was really put back is counted ([`Returned`]), and what was not is never dropped.

mod brought;
mod fill;
mod returned;

use std::collections::BTreeSet;

use rollback_proto::problem::{Code, Problem};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

pub(super) use self::brought::{forget_what_never_went, is_waiting, note_absent, put_back_brought};
use self::fill::{count, fill, quiet_triggers, wake_triggers};
pub(super) use self::returned::Returned;
use self::returned::{ReturnedPart, describe};
use super::connect::{literal, qualified, run};
use super::kept::{self, KeepError, Kept, part_name};
use super::loss::{Loss, LostPart, Name, Structure};
use super::privileges::Privileges;
use super::sql_error::{server_error, sql_problem};
use super::versions::Applied;

const SAVEPOINT: &str = "rollbackctl_put_back";

/// Where rows for a way up may come from.
#[derive(Debug)]
pub(super) enum Source {
    Nothing,
    /// This very rollback took the migrations down; and what of it is not there before the migrations.
    Own(String, Box<Kept>, Chosen),
    /// Earlier rollbacks did, the newest first; and what there was before the migrations.
    Earlier(Vec<(String, Kept)>, Structure),
}

/// Some of what is kept.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    parts: BTreeSet<usize>,
    sequences: BTreeSet<Name>,
}

impl Source {
    /// Looks before the migrations run. `own` is the schema of this rollback.
    pub async fn find(c: &mut PgConnection, own: &str, numbers: &[i64]) -> Result<Self, KeepError> {
        if let Some(kept) = kept::read(c, own).await.map_err(KeepError::Problem)? {
            return Ok(if kept.put_back {
                Self::Nothing
            } else {
                let absent = sorted_by_presence(c, &kept).await?.1;
                Self::Own(own.to_owned(), Box::new(kept), absent)
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
            Self::Own(schema, kept, _) if kept.version_rows => Ok(applied
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

    /// Puts back what fits. `before` are the privileges as they were before the migrations. `only` and `last`: the
    /// transaction is the only one of the way up, or its last.
    pub async fn put_back(
        self,
        c: &mut PgConnection,
        rollback_id: &str,
        before: &Privileges,
        only: bool,
        last: bool,
    ) -> Result<Option<Returned>, KeepError> {
        let (earlier, structure) = match self {
            Self::Nothing => return Ok(None),
            Self::Own(schema, kept, mut chosen) => {
                let present = sorted_by_presence(c, &kept).await?.0;
                chosen.parts.retain(|i| present.parts.contains(i));
                chosen.sequences.retain(|name| present.sequences.contains(name));
                let parts = own(c, &schema, *kept, &chosen, rollback_id, last).await?;
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
            let waiting = (0..kept.parts.len()).any(|i| !kept.is_returned(i));
            if !waiting && (kept.sequences.is_empty() || !kept.parts.is_empty()) {
                if kept.numbers.is_some() && last {
                    // Version rows and nothing else is left: they have served.
                    kept.put_back = true;
                    kept.put_back_by = Some(rollback_id.to_owned());
                    kept.write(c, &schema).await?;
                }
                continue;
            }
            let Some(chosen) = same_things(&kept, &came, only) else {
                continue;
            };
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
            let tried = later(c, &schema, kept, &chosen, rollback_id, before, last).await;
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

/// What of `kept` is there, and what is not. What was put back already is in neither.
async fn sorted_by_presence(c: &mut PgConnection, kept: &Kept) -> Result<(Chosen, Chosen), KeepError> {
    let (mut present, mut absent) = (Chosen::default(), Chosen::default());
    for (i, part) in kept.parts.iter().enumerate().filter(|(i, _)| !kept.is_returned(*i)) {
        let there: bool = sqlx::query_scalar(
            "SELECT to_regclass($1) IS NOT NULL AND ($3 OR NOT EXISTS (
               SELECT 1 FROM unnest($2::text[]) AS n WHERE NOT EXISTS (
                 SELECT 1 FROM pg_attribute a WHERE a.attrelid = to_regclass($1) AND a.attname = n AND NOT a.attisdropped)))",
        )
        .bind(part.table.quoted())
        .bind(&part.columns)
        .bind(part.key.is_none())
        .fetch_one(&mut *c)
        .await?;
        let chosen = if there { &mut present } else { &mut absent };
        chosen.parts.insert(i);
    }
    for (name, ..) in &kept.sequences {
        let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(name.quoted())
            .fetch_one(&mut *c)
            .await?;
        let chosen = if there { &mut present } else { &mut absent };
        chosen.sequences.insert(name.clone());
    }
    Ok((present, absent))
}

/// Whether the migrations bring back what was kept: just that if they are the whole way up, else some of it. Answers with
/// what they bring.
fn same_things(kept: &Kept, came: &Loss, only: bool) -> Option<Chosen> {
    let same = |a: &LostPart, b: &LostPart| {
        let columns = |part: &LostPart| part.columns.iter().cloned().collect::<BTreeSet<String>>();
        a.table == b.table && a.key == b.key && columns(a) == columns(b)
    };
    let parts: BTreeSet<usize> = (0..kept.parts.len())
        .filter(|i| !kept.is_returned(*i) && came.parts.iter().any(|part| same(part, &kept.parts[*i])))
        .collect();
    let sequences: BTreeSet<Name> = kept
        .sequences
        .iter()
        .map(|(name, ..)| name.clone())
        .filter(|name| came.sequences.contains(name))
        .collect();
    let all_known = parts.len() == came.parts.len() && sequences.len() == came.sequences.len();
    let all_brought = parts.len() == kept.parts.len() && sequences.len() == kept.sequences.len();
    let some = !parts.is_empty() || !sequences.is_empty();
    (all_known && (all_brought || !only && some)).then_some(Chosen { parts, sequences })
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
    chosen: &Chosen,
    rollback_id: &str,
    last: bool,
) -> Result<Vec<ReturnedPart>, KeepError> {
    let brought = |i: &usize| chosen.parts.contains(i);
    for (_, part) in kept
        .parts
        .iter()
        .enumerate()
        .rev()
        .filter(|(i, p)| brought(i) && p.key.is_none())
    {
        let triggers = quiet_triggers(c, part).await?;
        run(c, format!("DELETE FROM ONLY {}", part.table.quoted())).await?;
        wake_triggers(c, part, &triggers).await?;
    }
    let mut parts = Vec::new();
    for (i, part) in kept.parts.iter().enumerate().filter(|(i, _)| brought(i)) {
        parts.push(fill(c, part, &qualified(schema, &format!("t{i}")), kept.rows.get(i).copied()).await?);
    }
    for (name, last, called) in kept
        .sequences
        .iter()
        .filter(|(name, ..)| chosen.sequences.contains(name))
    {
        run(
            c,
            format!("SELECT setval({}::regclass, {last}, {called})", literal(&name.quoted())),
        )
        .await?;
    }
    kept.privileges.give_back(c).await?;
    note(c, schema, &mut kept, chosen, rollback_id, &parts, last).await?;
    Ok(parts)
}

/// What an earlier rollback kept: only where nothing else has taken its place since.
async fn later(
    c: &mut PgConnection,
    schema: &str,
    mut kept: Kept,
    chosen: &Chosen,
    rollback_id: &str,
    before: &Privileges,
    last: bool,
) -> Result<Vec<ReturnedPart>, KeepError> {
    // Looked at before anything is filled.
    let mut filled = Vec::new();
    for (i, part) in kept.parts.iter().enumerate() {
        if !chosen.parts.contains(&i) {
            filled.push(false);
            continue;
        }
        let query = format!("SELECT EXISTS (SELECT 1 FROM ONLY {})", part.table.quoted());
        let rows: bool = sqlx::query_scalar(AssertSqlSafe(query))
            .persistent(false)
            .fetch_one(&mut *c)
            .await?;
        filled.push(rows && part.key.is_none());
    }
    let mut parts = Vec::new();
    for (i, part) in kept.parts.iter().enumerate().filter(|(i, _)| chosen.parts.contains(i)) {
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
    for (name, last, called) in kept
        .sequences
        .iter()
        .filter(|(name, ..)| chosen.sequences.contains(name))
    {
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
    note(c, schema, &mut kept, chosen, rollback_id, &parts, last).await?;
    Ok(parts)
}

/// Notes what was put back. `last`: no part comes after this one.
async fn note(
    c: &mut PgConnection,
    schema: &str,
    kept: &mut Kept,
    chosen: &Chosen,
    rollback_id: &str,
    parts: &[ReturnedPart],
    last: bool,
) -> Result<(), KeepError> {
    kept.returned = (0..kept.parts.len())
        .map(|i| kept.is_returned(i) || chosen.parts.contains(&i))
        .collect();
    let whole = kept.returned.iter().all(|returned| *returned);
    // Before the last part its version rows are needed.
    kept.put_back = whole && last;
    kept.left_out += parts.iter().map(|p| p.left_out).sum::<u64>();
    kept.put_back_by = Some(rollback_id.to_owned());
    if !parts.is_empty() {
        let before = kept
            .account
            .take()
            .map_or("; put back: ".to_owned(), |text| format!("{text}, "));
        kept.account = Some(format!("{before}{}", describe(parts)));
    }
    kept.write(c, schema).await
}
