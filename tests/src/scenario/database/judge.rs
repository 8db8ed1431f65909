//! What a restore is held to: what its report says, and what the databases say.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

use crate::ctl::{Answer, rollback_to};
use crate::facts::Rows;
use crate::fleet::Fleet;
use crate::postgres::{DATABASE, Postgres};

/// The host and the component of zekka's database.
const PLACE: (&str, &str) = ("db-1", "db");

/// What a report says of the database's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// By table; tables without any are left out.
    pub written: BTreeMap<String, u64>,
    pub replaced: BTreeMap<String, u64>,
}

impl Loss {
    /// From `loss` of a finding or of a step. Fails when it is not known.
    pub fn of_json(loss: &Value) -> Result<Self> {
        let unknown = loss["unknown"].as_str().unwrap_or_default();
        ensure!(unknown.is_empty(), "the loss is unknown: {unknown}");
        ensure!(
            loss["backup"].as_str().is_some_and(|name| !name.is_empty()),
            "the loss names no backup: {loss}"
        );
        let mut found = Self::default();
        for table in loss["tables"].as_array().context("the loss lists tables")? {
            let name = table["table"].as_str().context("a table has a name")?;
            for (key, into) in [("written", &mut found.written), ("replaced", &mut found.replaced)] {
                let rows = table[key].as_u64().unwrap_or_default();
                if rows > 0 {
                    into.insert(name.to_owned(), rows);
                }
            }
        }
        Ok(found)
    }

    /// What the restore of a rollback cost, by its report.
    pub fn of_report(report: &Value) -> Result<Self> {
        let told = report["losses"].as_array().and_then(|all| all.first());
        let told = told.context("the report tells what was lost")?;
        ensure!(told["lost"] == true, "the report says that nothing was lost: {told}");
        Self::of_json(&told["loss"]).context("the report tells what was lost")
    }

    pub fn rows_written(&self) -> u64 {
        self.written.values().sum()
    }

    pub fn rows_replaced(&self) -> u64 {
        self.replaced.values().sum()
    }
}

fn switch_of(report: &Value) -> Result<&Value> {
    let mut steps = steps_of(report, "switch")?;
    steps.pop().context("the report has a switch of the database")
}

/// The raw operations of the switch, in their order: name and milliseconds.
pub fn operations_of_switch(report: &Value) -> Result<Value> {
    Ok(switch_of(report)?["operations"].clone())
}

fn steps_of<'a>(report: &'a Value, action: &str) -> Result<Vec<&'a Value>> {
    let steps = report["steps"].as_array().context("the report lists steps")?;
    let ours = |s: &&Value| s["host"] == PLACE.0 && s["component"] == PLACE.1 && s["action"] == action;
    Ok(steps.iter().filter(ours).collect())
}

/// How long the database's steps took, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct StepTimes {
    pub stage: f64,
    pub snapshot: f64,
    pub switch: f64,
}

impl StepTimes {
    pub fn of_report(report: &Value) -> Result<Self> {
        Ok(Self {
            stage: took_ms(report, "stage")?,
            snapshot: took_ms(report, "snapshot")?,
            switch: took_ms(report, "switch")?,
        })
    }

    pub fn total(&self) -> f64 {
        self.stage + self.snapshot + self.switch
    }
}

/// Of all steps with this action. Fails without any that has ended.
fn took_ms(report: &Value, action: &str) -> Result<f64> {
    let time = |step: &Value, key: &str| -> Result<Timestamp> {
        let text = step[key]
            .as_str()
            .with_context(|| format!("{action} has {key}: {step}"))?;
        text.parse().with_context(|| format!("{key} is a time: {text}"))
    };
    let steps = steps_of(report, action)?;
    ensure!(!steps.is_empty(), "the report has no {action} of the database");
    steps.into_iter().try_fold(0.0, |ms, step| {
        let took = time(step, "ended_at")?.duration_since(time(step, "started_at")?);
        Ok(ms + took.as_secs_f64() * 1000.0)
    })
}

/// Types the command, with consent to that many rows (`all`), or without any.
pub async fn restore_to(fleet: &Fleet, release: &str, consent: Option<&str>) -> Result<Answer> {
    let consent = consent.map(|rows| format!("--accept-data-loss={rows}"));
    let mut args = rollback_to(release).to_vec();
    args.extend(["--database", "restore"]);
    args.extend(consent.as_deref());
    fleet.ctl.run(&args).await
}

/// The one database that a restore has put aside.
pub fn put_aside(postgres: &Postgres) -> Result<String> {
    let prefix = format!("{DATABASE}_before_");
    let all = postgres.databases()?;
    let mut aside = all.iter().filter(|name| name.starts_with(&prefix));
    match (aside.next(), aside.next()) {
        (Some(one), None) => Ok(one.clone()),
        _ => anyhow::bail!("one database {prefix}… shall be there: {all:?}"),
    }
}

/// What the live database has of a backup, and what it has not of the one that was put aside, counted row by row.
#[derive(Debug)]
pub struct Counted {
    /// Rows that are in the old database and not in the live one.
    pub lost: BTreeMap<String, u64>,
    /// Rows of the backup that the old database did not have any more.
    pub replaced: BTreeMap<String, u64>,
}

impl Counted {
    /// What a restore of the backup would cost, while the database is still live.
    pub fn between(live: &Rows, backup: &Rows) -> Self {
        Self {
            lost: live.missing_from(backup),
            replaced: backup.missing_from(live),
        }
    }

    /// Fails when a row of the backup is not live.
    pub fn now(postgres: &Postgres, aside: &str, backup: &Rows) -> Result<Self> {
        let (old, live) = (Rows::read(postgres, aside)?, Rows::read(postgres, DATABASE)?);
        let absent = backup.missing_from(&live);
        ensure!(absent.is_empty(), "rows of the backup that are not live: {absent:?}");
        Ok(Self {
            lost: old.missing_from(&live),
            replaced: backup.missing_from(&old),
        })
    }

    /// Was it told exactly, table by table?
    pub fn expect(&self, told: &Loss) -> Result<()> {
        ensure!(
            told.written == self.lost && told.replaced == self.replaced,
            "lost are {:?} and replaced {:?}, and told was {told:?}",
            self.lost,
            self.replaced
        );
        Ok(())
    }

    pub fn rows_lost(&self) -> u64 {
        self.lost.values().sum()
    }
}
