//! A database of a size that counts: two tables beside the application's own, each with a primary key, a foreign key and
//! indexes for what people look by, so that a restore has more to do than to copy rows.
//!
//! Rows are made of MD5 texts and differ: nothing compresses away that would not in real life.

use anyhow::{Result, anyhow};

use crate::postgres::{DATABASE, Postgres};

const TABLES: [&str; 2] = ["documents", "messages"];

/// Bytes of a row with its share of the indexes, as measured.
const BYTES_PER_ROW: u64 = 376;

/// Fills the application's database, which has users already, up to about so many MiB. Both tables at once. Answers with
/// how many rows each of them got.
pub fn fill(postgres: &Postgres, mib: u64) -> Result<u64> {
    let rows = (mib * 1024 * 1024 / BYTES_PER_ROW / 2).max(1_000);
    std::thread::scope(|scope| {
        let fills = TABLES.map(|table| scope.spawn(move || postgres.migrate(&filled(table, rows))));
        fills
            .into_iter()
            .map(|fill| fill.join())
            .try_for_each(|done| done.map_err(|_| anyhow!("filling a table panicked"))?)
    })?;
    postgres.psql(DATABASE, "VACUUM ANALYZE")?;
    Ok(rows)
}

/// Keys come last: checked row by row, the foreign key would take longer than everything else.
fn filled(table: &str, rows: u64) -> String {
    let body: Vec<String> = (0..5).map(|n| format!("md5(n * 5 + {n} || '{table}')")).collect();
    format!(
        "CREATE TABLE {table} (
             id bigint GENERATED ALWAYS AS IDENTITY,
             owner bigint NOT NULL,
             title text NOT NULL,
             body text NOT NULL,
             created_at timestamptz NOT NULL DEFAULT now()
         );
         INSERT INTO {table} (owner, title, body, created_at)
         SELECT 1 + n % (SELECT count(*) FROM users), 'Title ' || md5(n::text), {}, now() - n * interval '1 second'
         FROM generate_series(1, {rows}::bigint) n;
         ALTER TABLE {table} ADD PRIMARY KEY (id);
         ALTER TABLE {table} ADD FOREIGN KEY (owner) REFERENCES users (id);
         CREATE INDEX {table}_owner ON {table} (owner);
         CREATE INDEX {table}_title ON {table} (title);
         CREATE INDEX {table}_created_at ON {table} (created_at);",
        body.join(" || "),
    )
}
