//! The project's own migration tool: a shell script that runs psql and keeps a table of its own.

mod again;
mod killed;
mod moves;
mod strays;

use std::collections::BTreeMap;
use std::path::Path;

use rollback_agent::driver::postgres::ToolConfig;
use rollback_agent::driver::{Driver as _, Revision};

use crate::cluster::cluster;
use crate::fixture::{DOWN_1, DOWN_2, Fixture, UP_1, UP_2};

/// `$LIVE` is a database that its way down goes to whatever it is told, `$BATCH` the number of migrations of one run down.
const TOOL: &str = r#"set -eu
sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"; }
newest="SELECT name FROM applied_migrations ORDER BY run_on DESC, name DESC LIMIT 1"
case $1 in
status)
    sql -c "SELECT '[x] ' || name FROM applied_migrations ORDER BY run_on, name"
    echo "[ ] what is not applied"
    ;;
down)
    for _ in $(seq "${BATCH:-1}"); do
        name=$(sql ${LIVE:+-d "$LIVE"} -c "$newest")
        if [ -n "$name" ]; then
            { echo "BEGIN;"; cat "$name.down.sql"; echo "; DELETE FROM applied_migrations WHERE name = '$name'; COMMIT;"; } |
                sql ${LIVE:+-d "$LIVE"} -f -
        fi
    done
    ;;
up)
    for file in *.up.sql; do
        name=${file%.up.sql}
        if [ -z "$(sql -c "SELECT name FROM applied_migrations WHERE name = '$name'")" ]; then
            { echo "BEGIN;"; cat "$file"; echo "; INSERT INTO applied_migrations VALUES ('$name', clock_timestamp()); COMMIT;"; } |
                sql -f -
            break
        fi
    done
    ;;
esac
"#;

const NAMES: &str = "SELECT string_agg(name, ' ' ORDER BY run_on) FROM applied_migrations";

/// A database whose migrations only the tool knows. `env` are further variables.
async fn tooled(env: &[(&str, &str)]) -> Fixture {
    let dir = tempfile::tempdir().expect("temporary directory").keep();
    std::fs::write(dir.join("tool.sh"), TOOL).expect("write the tool");
    let bin = cluster().await.bin.clone();
    let f = Fixture::with("unrelated int", |config| {
        config.migrations = None;
        config.tool = Some(tool(&dir, &bin, env));
    })
    .await;
    f.sql("CREATE TABLE applied_migrations (name text PRIMARY KEY, run_on timestamptz NOT NULL)")
        .await;
    f
}

fn tool(dir: &Path, bin: &Path, env: &[(&str, &str)]) -> ToolConfig {
    let argv = |verb: &str| ["sh", "tool.sh", verb].map(str::to_owned).to_vec();
    let mut variables: BTreeMap<String, String> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    variables.insert("PATH".to_owned(), format!("{}:/usr/bin:/bin", bin.display()));
    ToolConfig {
        directory: dir.to_owned(),
        status: argv("status"),
        applied: Some(r"^\[x\] (\S+)".to_owned()),
        down: argv("down"),
        up: argv("up"),
        tables: vec!["applied_migrations".to_owned()],
        timeout: std::time::Duration::from_secs(20),
        env: variables,
    }
}

/// A migration in the tool's directory, applied as the tool would.
async fn migrate(f: &Fixture, name: &str, up: &str, down: &str) {
    let dir = &f.config.tool.as_ref().expect("a tool").directory;
    std::fs::write(dir.join(format!("{name}.up.sql")), up).expect("write");
    std::fs::write(dir.join(format!("{name}.down.sql")), down).expect("write");
    f.sql(up).await;
    f.sql(&format!(
        "INSERT INTO applied_migrations VALUES ('{name}', clock_timestamp())"
    ))
    .await;
}

/// A release beyond the newest, by a migration that changes rows only.
async fn filled(f: &Fixture) -> Revision {
    migrate(
        f,
        "2024-fill",
        "UPDATE notes SET text = upper(text)",
        "UPDATE notes SET text = lower(text)",
    )
    .await;
    f.driver.retain("v3.0.1").await.expect("record").revision
}

/// v2.9.0 has one migration, v3.0.0 two more. Each of them takes rows away when it goes down.
async fn two_releases(f: &Fixture) -> (Revision, Revision) {
    migrate(f, "2024-users", UP_1, DOWN_1).await;
    let old = f.driver.retain("v2.9.0").await.expect("record v2.9.0").revision;
    migrate(f, "2024-scores", UP_2, DOWN_2).await;
    // By name it comes before the one before it.
    migrate(
        f,
        "2024-notes",
        "CREATE TABLE notes (id int PRIMARY KEY, text text)",
        "DROP TABLE notes",
    )
    .await;
    f.sql(
        "INSERT INTO users (name, score) SELECT 'user ' || n, n * 7 FROM generate_series(1, 50) n;
         INSERT INTO scores (user_id, points) SELECT n, n / 3.0 FROM generate_series(1, 50) n;
         INSERT INTO notes SELECT n, 'note ' || n FROM generate_series(1, 20) n",
    )
    .await;
    let new = f.driver.retain("v3.0.0").await.expect("record v3.0.0").revision;
    (old, new)
}

fn file(f: &Fixture, name: &str) -> std::path::PathBuf {
    f.config.tool.as_ref().expect("a tool").directory.join(name)
}
