//! Migrations that do not fit in one transaction: legs of several parts.

mod cut_off;
mod failures;
mod leftovers;
mod steps;

use rollback_agent::driver::Revision;

use crate::fixture::{DOWN_1, Fixture, UP_1};

/// Parts of the way down from v2 to v1, and of the way up.
pub const PARTS: usize = 6;

const UP_INDEX: &str = "-- no-transaction\nCREATE INDEX CONCURRENTLY users_created ON users (created);";
const DOWN_INDEX: &str = "DROP INDEX CONCURRENTLY users_created;";
// A restored copy prints this check otherwise than the migration makes it.
const UP_SCORES: &str = "ALTER TABLE users ADD COLUMN score integer NOT NULL DEFAULT 0;
    CREATE TABLE scores (id serial PRIMARY KEY, user_id bigint NOT NULL REFERENCES users (id), points numeric,
                         at timestamptz NOT NULL DEFAULT now(), kind varchar(5) DEFAULT 'a' CHECK (kind IN ('a', 'b')));";
pub const DOWN_SCORES: &str = "DROP TABLE scores; ALTER TABLE users DROP COLUMN score;";
pub const UP_MORE: &str = "-- no-transaction\nSET maintenance_work_mem = '8MB';
    CREATE INDEX CONCURRENTLY scores_points ON scores (points);\nCREATE INDEX CONCURRENTLY users_score ON users (score);";
pub const DOWN_MORE: &str =
    "-- no-transaction\nDROP INDEX CONCURRENTLY users_score;\nDROP INDEX CONCURRENTLY scores_points;";

/// v1 is `001_users`; v2 adds an index made CONCURRENTLY, tables with data, and two such indexes more.
pub async fn two_releases(f: &Fixture, down_scores: &str, down_more: &str) -> (Revision, Revision) {
    f.write("001_users", UP_1, Some(DOWN_1));
    f.apply("001").await;
    let old = f.driver_retain("v1").await.revision;
    f.write("002_index", UP_INDEX, Some(DOWN_INDEX));
    f.write("003_scores", UP_SCORES, Some(down_scores));
    f.write("004_more", UP_MORE, Some(down_more));
    for statement in [UP_INDEX, UP_SCORES].into_iter().chain(UP_MORE.split_inclusive(';')) {
        f.sql(statement).await;
    }
    f.sql(
        "INSERT INTO schema_migrations (version) VALUES ('002'), ('003'), ('004');
         INSERT INTO users (name, score) SELECT 'user ' || n, n * 7 FROM generate_series(1, 200) n;
         INSERT INTO scores (user_id, points) SELECT 1 + n % 200, n / 3.0 FROM generate_series(1, 600) n;
         SELECT setval('scores_id_seq', 1000);",
    )
    .await;
    (old, f.driver_retain("v2").await.revision)
}

/// Indexes that are valid, indexes that are not, applied migrations.
pub async fn seen(f: &Fixture) -> String {
    f.text(
        "SELECT concat_ws(' / ',
           (SELECT string_agg(indexrelid::regclass::text || CASE WHEN indisvalid THEN '' ELSE '!' END, ' ' ORDER BY indexrelid::regclass::text)
            FROM pg_index WHERE indexrelid::regclass::text IN ('users_created', 'scores_points', 'users_score')),
           to_regclass('scores')::text, (SELECT string_agg(version, ' ' ORDER BY version) FROM schema_migrations))",
    )
    .await
}

/// The state after so many parts of the way down.
pub fn after_down(parts: usize) -> &'static str {
    match parts {
        0 => "scores_points users_created users_score / scores / 001 002 003 004",
        1 => "scores_points users_created / scores / 001 002 003 004",
        2 => "users_created / scores / 001 002 003 004",
        3 => "users_created / scores / 001 002 003",
        4 => "users_created / 001 002",
        5 => "001 002",
        _ => "001",
    }
}

/// The same for the way up.
pub fn after_up(parts: usize) -> &'static str {
    match parts {
        0 => "001",
        1 => "users_created / 001",
        2 => "users_created / 001 002",
        3 => "users_created / scores / 001 002 003",
        4 => "scores_points users_created / scores / 001 002 003",
        5 => "scores_points users_created users_score / scores / 001 002 003",
        _ => "scores_points users_created users_score / scores / 001 002 003 004",
    }
}
