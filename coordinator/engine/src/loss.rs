//! What a restore costs, and what an operator agreed to lose.
//!
//! Figures come from agents and are only carried: whether a loss is within the consent is judged where it can still be
//! prevented, by the agent, when writers have stopped.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is in the live database and not in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataLoss {
    /// Name of the backup.
    pub backup: String,
    /// RFC 3339: the instant that the backup shows.
    pub taken_at: String,
    #[serde(default)]
    pub tables: Vec<TableLoss>,
    /// Not empty: the figures could not be had, or not all of them, and why. Never taken for "nothing".
    #[serde(default)]
    pub unknown: String,
    /// What the database from before is called since the exchange. Empty: nothing was exchanged, or its agent does not say.
    #[serde(default)]
    pub put_aside: String,
}

/// One table's part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableLoss {
    /// "schema.table"
    pub table: String,
    /// Rows inserted or updated since the backup.
    pub written: u64,
    /// Rows of the backup that were updated or deleted since.
    pub replaced: u64,
}

/// An operator agrees that rows are lost. Holds for each database of the plan by itself: their agents count apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consent {
    /// At most this many, the sum of [`TableLoss::written`]. `None`: however many, also when nobody knows how many.
    pub max_rows: Option<u64>,
}

impl fmt::Display for Consent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.max_rows {
            Some(rows) => write!(f, "the loss of at most {rows} rows in each database"),
            None => f.write_str("the loss of any number of rows"),
        }
    }
}
