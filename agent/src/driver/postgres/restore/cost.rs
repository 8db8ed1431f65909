//! What a restore costs: the rows that are in the live database and not in the backup, table by table.
//!
//! Counted, never estimated: statistics can be reset, and are late. What cannot be counted is said to be unknown, and
//! why; it is never taken for nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;

use crate::driver::postgres::horizon::{Horizon, Seen, Stretch};
use crate::driver::postgres::sql_error::sql_problem;
use crate::driver::{Consent, DataLoss, TableLoss};
use crate::words;

/// A table that is not bigger is counted by one session. To read a stretch of a table takes the server half as long again as
/// to read it as a whole.
const STRETCH: u64 = 128 << 20;

/// Tables that a message names.
const SHOWN: usize = 5;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rows {
    pub written: u64,
    pub replaced: u64,
}

/// The loss, before it is known of which backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cost {
    /// Only tables that lose something.
    pub tables: BTreeMap<String, Rows>,
    /// Why not everything could be counted.
    pub unknown: Option<String>,
}

impl Cost {
    pub fn unknown(why: impl Into<String>) -> Self {
        Self {
            tables: BTreeMap::new(),
            unknown: Some(why.into()),
        }
    }

    /// From what was counted against the backup's horizon, and the rows that each table has in the backup.
    fn of(seen: &BTreeMap<String, Seen>, backup: &BTreeMap<String, u64>) -> Self {
        let mut cost = Self::default();
        for (table, seen) in seen {
            let had = backup.get(table).copied().unwrap_or_default();
            let old = seen.rows.saturating_sub(seen.new);
            if old > had {
                cost.doubt(format!("{table} has more rows from before the backup than the backup"));
            }
            cost.add(
                table,
                Rows {
                    written: seen.new,
                    replaced: had.saturating_sub(old),
                },
            );
        }
        for (table, rows) in backup.iter().filter(|(table, _)| !seen.contains_key(*table)) {
            cost.add(
                table,
                Rows {
                    written: 0,
                    replaced: *rows,
                },
            );
        }
        cost
    }

    pub fn add(&mut self, table: &str, rows: Rows) {
        if rows == Rows::default() {
            return;
        }
        let sum = self.tables.entry(table.to_owned()).or_default();
        sum.written = sum.written.saturating_add(rows.written);
        sum.replaced = sum.replaced.saturating_add(rows.replaced);
    }

    pub fn doubt(&mut self, why: String) {
        self.unknown.get_or_insert(why);
    }

    /// What was written after another was counted, on top of it.
    pub fn plus(mut self, later: &Self) -> Self {
        for (table, rows) in &later.tables {
            self.add(table, *rows);
        }
        if let Some(why) = &later.unknown {
            self.doubt(why.clone());
        }
        self
    }

    pub fn written(&self) -> u64 {
        self.tables.values().map(|rows| rows.written).sum()
    }

    pub fn is_nothing(&self) -> bool {
        self.tables.is_empty() && self.unknown.is_none()
    }

    /// Refuses the cutover unless the consent covers it.
    pub fn allowed(&self, consent: Option<&Consent>, database: &str, backup: &str) -> Result<(), Problem> {
        let Err(why) = self.agreed(consent) else {
            return Ok(());
        };
        let problem = too_much(database, backup, &why);
        Err(match self.unknown {
            None => problem,
            Some(_) => problem.remedy(
                "what cannot be counted is within no number of rows: agree to any loss, --accept-data-loss=all, or do \
                 without the restore",
            ),
        })
    }

    /// Does the consent cover it? `Err` says what there is too much of.
    fn agreed(&self, consent: Option<&Consent>) -> Result<(), String> {
        let limit = match consent {
            None => 0,
            Some(Consent { max_rows: None }) => return Ok(()),
            Some(Consent { max_rows: Some(rows) }) => *rows,
        };
        if self.unknown.is_some() {
            return Err(format!("nobody can tell what would be lost: {}", self.describe()));
        }
        if self.written() > limit {
            let agreed = match consent {
                None => "no loss was agreed to".to_owned(),
                Some(_) => format!("{} agreed to", words::count(limit, "was", "were")),
            };
            return Err(format!("{} would be lost, {agreed}{}", self.lost(), self.besides()));
        }
        Ok(())
    }

    /// "120 rows (public.users 100, public.orders 20); 3 rows that were changed or deleted since come back as they were"
    pub fn describe(&self) -> String {
        format!("{}{}", self.lost(), self.besides())
    }

    /// "120 rows (public.users 100, public.orders 20)". "nothing" is said only of nothing, as `rollbackctl` does.
    fn lost(&self) -> String {
        let mut losing: Vec<_> = self.tables.iter().filter(|(_, rows)| rows.written > 0).collect();
        losing.sort_by_key(|(name, rows)| (std::cmp::Reverse(rows.written), *name));
        let rows = words::count(self.written(), "row", "rows");
        match (self.written(), &self.unknown) {
            (0, None) if self.is_nothing() => "nothing".to_owned(),
            (0, None) => rows,
            (0, Some(why)) => format!("an unknown number of rows ({why})"),
            (_, unknown) => {
                let shown: Vec<_> = losing
                    .iter()
                    .take(SHOWN)
                    .map(|(name, r)| format!("{name} {}", r.written))
                    .collect();
                let more = if losing.len() > SHOWN { ", …" } else { "" };
                let least = if unknown.is_some() { "at least " } else { "" };
                format!("{least}{rows} ({}{more})", shown.join(", "))
            }
        }
    }

    /// What else there is to say: what comes back, and why not everything could be counted, each after a semicolon.
    fn besides(&self) -> String {
        let replaced: u64 = self.tables.values().map(|rows| rows.replaced).sum();
        let mut text = match replaced {
            0 => String::new(),
            1 => "; 1 row that was changed or deleted since comes back as it was".to_owned(),
            n => format!("; {n} rows that were changed or deleted since come back as they were"),
        };
        if let Some(why) = self.unknown.as_ref().filter(|_| self.written() > 0) {
            text.push_str(&format!("; not everything could be counted: {why}"));
        }
        text
    }

    pub fn data_loss(&self, backup: &str, taken_at: &str) -> DataLoss {
        DataLoss {
            backup: backup.to_owned(),
            taken_at: taken_at.to_owned(),
            tables: self
                .tables
                .iter()
                .map(|(table, rows)| TableLoss {
                    table: table.clone(),
                    written: rows.written,
                    replaced: rows.replaced,
                })
                .collect(),
            unknown: self.unknown.clone().unwrap_or_default(),
            put_aside: String::new(),
        }
    }
}

/// Counts everything in the database of the sessions, several tables at a time. The answer is of one moment only if
/// nobody writes meanwhile. `backup` are the rows that each table has in the backup.
pub(super) async fn count(
    sessions: &mut [PgConnection],
    horizon: &Horizon,
    backup: &BTreeMap<String, u64>,
) -> Result<Cost, sqlx::Error> {
    let Some(first) = sessions.first_mut() else {
        return Ok(Cost::unknown("nobody counted"));
    };
    if let Some(why) = horizon.blind(first).await? {
        return Ok(Cost::unknown(why));
    }
    let stretches: VecDeque<Stretch> = Stretch::all(first, STRETCH).await?.into();
    let large = large_objects(first).await?;
    let waiting = Mutex::new(stretches);
    let next = || {
        waiting
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .pop_front()
    };
    let work = sessions.iter_mut().map(|c| async {
        let mut counted = Vec::new();
        while let Some(stretch) = next() {
            let seen = horizon.count(c, &stretch).await?;
            counted.push((stretch.table(), seen));
        }
        Ok::<_, sqlx::Error>(counted)
    });
    let counted = futures::future::try_join_all(work).await?;
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    for (table, part) in counted.into_iter().flatten() {
        let sum = seen.entry(table).or_default();
        sum.rows += part.rows;
        sum.new += part.new;
    }
    let mut cost = Cost::of(&seen, backup);
    if large > 0 {
        cost.doubt(format!(
            "there are {large} large objects, and nobody can tell which of them were written since the backup"
        ));
    }
    Ok(cost)
}

async fn large_objects(c: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT count(*) FROM pg_largeobject_metadata")
        .fetch_one(c)
        .await
}

/// An answer in any case: what could not be counted is unknown.
pub(super) fn or_unknown(counted: Result<Cost, sqlx::Error>) -> Cost {
    counted.unwrap_or_else(|e| Cost::unknown(sql_problem(Code::DatabaseDown, "counting failed", &e).message))
}

/// Nobody has to know the figures to decide.
pub(super) fn is_any(consent: Option<&Consent>) -> bool {
    matches!(consent, Some(Consent { max_rows: None }))
}

/// The refusal of a cutover.
pub(super) fn too_much(database: &str, backup: &str, why: &str) -> Problem {
    Problem::new(
        Code::LossTooGreat,
        format!(
            "restoring backup {backup} of {database}: {why}; nothing was exchanged, the live database is as it was"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(rows: u64, new: u64) -> Seen {
        Seen { rows, new }
    }

    #[test]
    fn tables_of_one_side_only_and_changed_rows() {
        let now = [("a", seen(10, 3)), ("new", seen(4, 4)), ("same", seen(5, 0))];
        let now = now.into_iter().map(|(t, s)| (t.to_owned(), s)).collect();
        let backup = [("a", 9), ("gone", 6), ("same", 5)];
        let backup = backup.into_iter().map(|(t, n)| (t.to_owned(), n)).collect();
        let cost = Cost::of(&now, &backup);
        let rows = |written, replaced| Rows { written, replaced };
        assert_eq!(
            cost.tables.into_iter().collect::<Vec<_>>(),
            vec![
                ("a".to_owned(), rows(3, 2)),
                ("gone".to_owned(), rows(0, 6)),
                ("new".to_owned(), rows(4, 0))
            ]
        );
        assert_eq!(cost.unknown, None);
    }

    #[test]
    fn one_row_and_no_row() {
        assert_eq!(Cost::default().describe(), "nothing");
        let mut cost = Cost::default();
        let rows = |written, replaced| Rows { written, replaced };
        cost.add("t", rows(0, 1));
        assert_eq!(
            cost.describe(),
            "0 rows; 1 row that was changed or deleted since comes back as it was"
        );
        cost.add("t", rows(1, 0));
        assert!(
            cost.describe().starts_with("1 row (t 1); 1 row "),
            "{}",
            cost.describe()
        );
    }

    #[test]
    fn what_is_unknown_needs_consent_to_anything() {
        let up_to = |rows| Consent { max_rows: Some(rows) };
        let mut cost = Cost::default();
        assert_eq!(cost.agreed(None), Ok(()));
        cost.add(
            "t",
            Rows {
                written: 7,
                replaced: 100,
            },
        );
        assert!(cost.agreed(None).is_err() && cost.agreed(Some(&up_to(6))).is_err());
        assert_eq!(cost.agreed(Some(&up_to(7))), Ok(()));
        assert_eq!(
            cost.agreed(Some(&up_to(1))),
            Err(
                "7 rows (t 7) would be lost, 1 was agreed to; 100 rows that were changed or deleted since come back as they \
                 were"
                    .to_owned()
            )
        );
        assert!(
            cost.allowed(Some(&up_to(1)), "d", "b")
                .is_err_and(|p| p.remedy.contains("=ROWS"))
        );
        cost.doubt("no horizon".to_owned());
        assert!(
            cost.allowed(Some(&up_to(1)), "d", "b")
                .is_err_and(|p| !p.remedy.contains("=ROWS") && p.remedy.contains("=all"))
        );
        assert!(cost.agreed(Some(&up_to(u64::MAX))).is_err());
        assert_eq!(cost.agreed(Some(&Consent { max_rows: None })), Ok(()));
    }
}
