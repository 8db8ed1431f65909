# The project's own migration tool: migrations/NAME.up.sql and NAME.down.sql, noted in a table of its own.
set -eu
url=$DATABASE_URL

sql() {
    psql "$url" -XqAt -v ON_ERROR_STOP=1 "$@"
}

applied() {
    sql -c "SELECT name FROM applied_migrations ORDER BY name"
}

run() { # up|down, name, what to note
    sql --single-transaction -f "migrations/$2.$1.sql" -c "$3" >&2
    echo "$1: $2" >&2
}

all=$(cd migrations && ls -- *.up.sql | sed 's/\.up\.sql$//')

case $1 in
status)
    done=$(applied)
    for name in $all; do
        if echo "$done" | grep -qxF "$name"; then echo "[x] $name"; else echo "[ ] $name"; fi
    done
    ;;
down)
    name=$(applied | tail -n 1)
    if [ -n "$name" ]; then run down "$name" "DELETE FROM applied_migrations WHERE name = '$name'"; fi
    ;;
up)
    sql -c "CREATE TABLE IF NOT EXISTS applied_migrations (name text PRIMARY KEY, run_on timestamptz NOT NULL DEFAULT now())"
    done=$(applied)
    for name in $all; do
        if ! echo "$done" | grep -qxF "$name"; then
            run up "$name" "INSERT INTO applied_migrations (name) VALUES ('$name')"
            break
        fi
    done
    ;;
esac
