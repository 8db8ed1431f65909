//! The SQL that puts one kept part into its place, as far as its rows still have one.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::returned::ReturnedPart;
use crate::driver::postgres::connect::{changed, ident, run};
use crate::driver::postgres::kept::{KeepError, part_name};
use crate::driver::postgres::loss::LostPart;

pub(super) async fn count(c: &mut PgConnection, query: String) -> Result<u64, sqlx::Error> {
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(query))
        .persistent(false)
        .fetch_one(c)
        .await?;
    Ok(u64::try_from(rows).unwrap_or_default())
}

/// Puts one part back and counts. The table's own triggers have seen these rows once already.
pub(super) async fn fill(
    c: &mut PgConnection,
    part: &LostPart,
    from: &str,
    kept: Option<u64>,
) -> Result<ReturnedPart, KeepError> {
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
pub(super) async fn quiet_triggers(
    c: &mut PgConnection,
    part: &LostPart,
) -> Result<Vec<(String, &'static str)>, KeepError> {
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

pub(super) async fn wake_triggers(
    c: &mut PgConnection,
    part: &LostPart,
    triggers: &[(String, &str)],
) -> Result<(), KeepError> {
    for (name, how) in triggers {
        run(
            c,
            format!("ALTER TABLE ONLY {} {how} TRIGGER {}", part.table.quoted(), ident(name)),
        )
        .await?;
    }
    Ok(())
}
