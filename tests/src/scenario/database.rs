//! Stories of databases that go back: restored from a backup, undone, and how long nobody is served meanwhile.

mod command_migrations;
mod corrupt_backups;
mod downtime;
mod judge;
mod kill_matrix;
mod manual_sql;
mod migrate;
mod restore;
mod restore_undo;
mod runbooks;
mod seen;
mod users;

use futures::FutureExt;

use super::Scenario;

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "db-downtime",
        about: "psql < dump by the runbook and --database restore, writers running: how long nobody is served (--size-mib)",
        tell: |o| downtime::tell(o).boxed_local(),
    },
    Scenario {
        name: "db-restore",
        about: "v2.9.0's backup comes back: refused without consent or for too many rows, the loss exact, the old database kept",
        tell: |o| restore::tell(o).boxed_local(),
    },
    Scenario {
        name: "db-restore-undo",
        about: "restored, and v2.9.0 never gets healthy: the original database is back, with the same checksums",
        tell: |o| restore_undo::tell(o).boxed_local(),
    },
    Scenario {
        name: "db-corrupt-backups",
        about: "hundreds of random corruptions of a sealed and of an adopted dump: each is noticed (--rounds, --seed)",
        tell: |o| corrupt_backups::tell(o).boxed_local(),
    },
    Scenario {
        name: "db-migrate",
        about: "three migrations of three kinds down at once and up again: what they drop is kept and put back",
        tell: |o| migrate::tell(o).boxed_local(),
    },
    Scenario {
        name: "db-runbooks",
        about: "app-only, schema-only, emergency and restore, one after the other on the demo's fleet",
        tell: |o| runbooks::tell(o).boxed_local(),
    },
    Scenario {
        name: "db-command-migrations",
        about: "npm run migrate:rollback, by the agent: two migrations down and up; a tool with a mind of its own is refused",
        tell: |o| command_migrations::tell(o).boxed_local(),
    },
    Scenario {
        name: "db-manual-sql",
        about: "the runbook's SQL by hand, with checks: refused while one does not hold, then down and up again",
        tell: |o| manual_sql::tell(o).boxed_local(),
    },
    Scenario {
        name: "db-kill-matrix",
        about: "kill -9 of the database's agent between any two sub-steps, migrating and restoring, on its way and undone (--rounds)",
        tell: |o| kill_matrix::tell(o).boxed_local(),
    },
];
