//! What a person does with a database by hand, with the programs that come with the server.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{DATABASE, Postgres, ROLE};
use crate::process::run;

/// The database that [`Postgres::copy_by_hand`] restores into.
const COPY: &str = "copied_by_hand";

/// How long a backup with proof takes by hand.
#[derive(Clone, Copy, Debug)]
pub struct ByHand {
    pub dump: Duration,
    pub restore: Duration,
    pub reads: Duration,
}

impl ByHand {
    pub fn total(&self) -> Duration {
        self.dump + self.restore + self.reads
    }
}

impl Postgres {
    /// The runbook's backup: `pg_dump … > backups/zekka_production.sql`
    pub fn dump_sql(&self, file: &Path) -> Result<()> {
        run(self.client("pg_dump", ROLE, DATABASE).arg("-f").arg(file)).map(drop)
    }

    /// `pg_dump -Fc` without compression: nothing in the file itself notices that a bit of it has flipped.
    pub fn dump_uncompressed(&self, file: &Path) -> Result<()> {
        run(self
            .client("pg_dump", ROLE, DATABASE)
            .args(["-Fc", "-Z0", "-f"])
            .arg(file))
        .map(drop)
    }

    /// The runbook's restore: `psql … < backups/zekka_production.sql`. It works on an empty database only, so that a
    /// person has to drop the old one and make a new one first.
    pub fn restore_sql(&self, file: &Path) -> Result<()> {
        self.psql("postgres", &format!("DROP DATABASE {DATABASE} WITH (FORCE)"))?;
        self.psql("postgres", &format!("CREATE DATABASE {DATABASE} OWNER {ROLE}"))?;
        let dump = std::fs::File::open(file).context("open the dump")?;
        // Without ON_ERROR_STOP, as the runbook has it: it is not slower for that.
        let output = self
            .client("psql", ROLE, DATABASE)
            .arg("-q")
            .stdin(Stdio::from(dump))
            .output()
            .context("start psql")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && said.is_empty(), "psql < dump: {said}");
        Ok(())
    }

    /// A backup with proof, as careful people make it by hand: dump, restore of the dump into another database over two
    /// sessions, and a sum over every table of both. The copy goes again.
    pub fn copy_by_hand(&self, dump: &Path) -> Result<ByHand> {
        let begun = Instant::now();
        run(self.client("pg_dump", ROLE, DATABASE).arg("-Fc").arg("-f").arg(dump))?;
        let dumped = Instant::now();
        self.psql("postgres", &format!("CREATE DATABASE {COPY} OWNER {ROLE}"))?;
        let mut restore = self.client("pg_restore", ROLE, COPY);
        run(restore.args(["--exit-on-error", "-j", "2"]).arg(dump))?;
        let restored = Instant::now();
        let (sums, copied) = (self.sums(DATABASE)?, self.sums(COPY)?);
        let read = Instant::now();
        self.psql("postgres", &format!("DROP DATABASE {COPY}"))?;
        // Others write meanwhile: without an exported snapshot the sums of their tables cannot be the same.
        ensure!(
            sums.len() == copied.len() && sums.iter().any(|sum| copied.contains(sum)),
            "{sums:?} is restored as {copied:?}"
        );
        Ok(ByHand {
            dump: dumped - begun,
            restore: restored - dumped,
            reads: read - restored,
        })
    }

    /// Name, rows and checksum of every table.
    fn sums(&self, database: &str) -> Result<Vec<String>> {
        let tables = self.psql(
            database,
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables \
             WHERE schemaname !~ '^(pg_|rollbackctl_)' AND schemaname <> 'information_schema' ORDER BY 1",
        )?;
        let sum = |table: &str| {
            let sums = format!("SELECT '{table}', count(*), sum(hashtextextended(t::text, 0)) FROM {table} t");
            self.psql(database, &sums)
        };
        tables.lines().map(sum).collect()
    }
}
