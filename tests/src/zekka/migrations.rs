//! The sample application's migrations, and applying them by hand: the part of a migration tool.

use std::path::Path;

use anyhow::{Context, Result};

use crate::postgres::Postgres;

/// A migration as it lies in the project.
#[derive(Debug)]
pub struct Migration {
    pub number: i64,
    pub name: &'static str,
    text: Text,
}

#[derive(Debug)]
enum Text {
    /// `NAME.up.sql` and `NAME.down.sql`, as golang-migrate and sqlx have it.
    Pair { up: &'static str, down: &'static str },
    /// The same, of statements that no transaction takes.
    PairAlone { up: &'static str, down: &'static str },
    /// `NAME.sql` with both parts, as dbmate has it.
    OneFile(&'static str),
}

/// In their order.
pub const ALL: [Migration; 4] = [
    Migration {
        number: 1,
        name: "001_deals",
        text: Text::Pair {
            up: include_str!("../../zekka/migrations/001_deals.up.sql"),
            down: include_str!("../../zekka/migrations/001_deals.down.sql"),
        },
    },
    Migration {
        number: 2,
        name: "002_deal_stages",
        text: Text::Pair {
            up: include_str!("../../zekka/migrations/002_deal_stages.up.sql"),
            down: include_str!("../../zekka/migrations/002_deal_stages.down.sql"),
        },
    },
    Migration {
        number: 3,
        name: "003_display_names",
        text: Text::OneFile(include_str!("../../zekka/migrations/003_display_names.sql")),
    },
    Migration {
        number: 4,
        name: "004_deal_stage_index",
        text: Text::PairAlone {
            up: include_str!("../../zekka/migrations/004_deal_stage_index.up.sql"),
            down: include_str!("../../zekka/migrations/004_deal_stage_index.down.sql"),
        },
    },
];

impl Migration {
    /// Puts its files into the project's directory. `before` is SQL in front of the way down, where that is a file of its own.
    pub fn write(&self, dir: &Path, before: &str) -> Result<()> {
        let write = |ending: &str, text: &str| {
            let file = dir.join(format!("{}{ending}", self.name));
            std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))
        };
        match self.text {
            Text::Pair { up, down } | Text::PairAlone { up, down } => {
                write(".up.sql", up)?;
                write(".down.sql", &format!("{before}{down}"))
            }
            Text::OneFile(text) => write(".sql", text),
        }
    }

    /// Applies it, and notes that it is applied.
    pub fn apply(&self, postgres: &Postgres) -> Result<()> {
        let note = format!("INSERT INTO schema_migrations (version) VALUES ({})", self.number);
        match self.text {
            Text::Pair { up, .. } => postgres.migrate(&format!("{up};{note}")),
            Text::PairAlone { up, .. } => {
                postgres.migrate_alone(up)?;
                postgres.migrate(&note)
            }
            Text::OneFile(text) => {
                let up = text.split("-- migrate:down").next().unwrap_or_default();
                postgres.migrate(&format!("{up};{note}"))
            }
        }
    }
}
