//! The journal as it is stored, read without the coordinator's code: is anything of it missing, twice, or changed? And the
//! agents' ledgers, read without theirs: was anything done that the journal does not know?
//!
//! Rows come from psql or from SQLite; what makes them a journal is checked here again, from its description: numbers
//! without a gap, and a hash over the previous hash, the number (eight bytes, most significant first) and the content.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::control::Control;
use crate::store_server::StoreServer;

const ROWS: &str = "SELECT rollback_id, seq, prev_hash, hash, payload FROM events ORDER BY rollback_id, seq";

/// A row.
#[derive(Clone, Debug)]
struct Row {
    seq: u64,
    prev_hash: String,
    hash: String,
    payload: String,
}

/// All events of all rollbacks.
#[derive(Clone, Debug, Default)]
pub struct Journal(BTreeMap<String, Vec<Row>>);

impl Journal {
    pub fn of_postgres(store: &StoreServer) -> Result<Self> {
        let mut journal = Self::default();
        for line in store.psql(ROWS)?.lines() {
            // The content, which is JSON on one line, comes last: it may have anything in it.
            let columns: Vec<&str> = line.splitn(5, '|').collect();
            let [id, seq, prev_hash, hash, payload] = columns[..] else {
                bail!("a row of the journal: {line}");
            };
            journal.add(
                id,
                Row {
                    seq: seq.parse().context("a number of an event")?,
                    prev_hash: prev_hash.to_owned(),
                    hash: hash.to_owned(),
                    payload: payload.to_owned(),
                },
            );
        }
        Ok(journal)
    }

    pub async fn of_sqlite(file: &Path) -> Result<Self> {
        let mut session = open(file).await?;
        let rows: Vec<(String, i64, String, String, String)> = sqlx::query_as(ROWS)
            .fetch_all(&mut session)
            .await
            .context("read the journal's file")?;
        let mut journal = Self::default();
        for (id, seq, prev_hash, hash, payload) in rows {
            let seq = u64::try_from(seq).context("a number of an event")?;
            journal.add(
                &id,
                Row {
                    seq,
                    prev_hash,
                    hash,
                    payload,
                },
            );
        }
        Ok(journal)
    }

    fn add(&mut self, id: &str, row: Row) {
        self.0.entry(id.to_owned()).or_default().push(row);
    }

    pub fn events(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// What operators did to a rollback, in order: who, why, and the act with what belongs to it.
    pub fn acts(&self, rollback: &str) -> Result<Vec<Value>> {
        let rows = self.0.get(rollback).context("the rollback is in the journal")?;
        let events = rows.iter().map(|row| serde_json::from_str::<Value>(&row.payload));
        let events = events.collect::<Result<Vec<_>, _>>().context("read the journal")?;
        Ok(events.into_iter().filter(|event| event["kind"] == "steered").collect())
    }

    fn intents(&self) -> BTreeSet<Key> {
        let intent = |id: &String, row: &Row| -> Option<Key> {
            let event: Value = serde_json::from_str(&row.payload).ok()?;
            if event["kind"] != "step_intended" {
                return None;
            }
            let undo = if event["direction"] == "undo" { ".undo" } else { "" };
            Some((
                id.clone(),
                format!("{}{undo}", event["step"]),
                event["attempt"].as_i64()?,
            ))
        };
        let rows = self
            .0
            .iter()
            .flat_map(|(id, rows)| rows.iter().map(move |row| (id, row)));
        rows.filter_map(|(id, row)| intent(id, row)).collect()
    }

    /// Numbers that are missing or out of order, links and hashes that are wrong, events that are there twice, steps
    /// that ended twice or were never intended, and rollbacks without an end. Empty: the journal is whole.
    pub fn damages(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (id, rows) in &self.0 {
            chain_damages(id, rows, &mut found);
            story_damages(id, rows, &mut found);
        }
        found
    }
}

/// A step as agents know it: (rollback, name of the step, attempt).
type Key = (String, String, i64);

/// What agents have in their ledgers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledgers(BTreeSet<Key>);

impl Ledgers {
    pub async fn read(control: &Control) -> Result<Self> {
        let mut keys = BTreeSet::new();
        for agent in control.agents.values() {
            let mut session = open(&agent.spec.state().join("ledger.db")).await?;
            let steps: Vec<Key> = sqlx::query_as("SELECT rollback_id, step_id, attempt FROM steps")
                .fetch_all(&mut session)
                .await
                .with_context(|| format!("read the ledger of {}", agent.spec.name))?;
            keys.extend(steps);
        }
        Ok(Self(keys))
    }

    /// Steps that agents were asked for and whose intent is not in the journal. Empty: nobody went ahead of it.
    pub fn beyond(&self, journal: &Journal) -> Vec<String> {
        let intents = journal.intents();
        let unknown = self.0.difference(&intents);
        unknown
            .map(|(id, step, attempt)| {
                format!("{id}: step {step}, attempt {attempt}, is in a ledger and not in the journal")
            })
            .collect()
    }
}

async fn open(file: &Path) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(file).read_only(true);
    SqliteConnection::connect_with(&options)
        .await
        .with_context(|| format!("open {}", file.display()))
}

fn chain_damages(id: &str, rows: &[Row], found: &mut Vec<String>) {
    let mut prev = "";
    for (row, expected) in rows.iter().zip(1..) {
        let seq = row.seq;
        if seq != expected {
            found.push(format!("{id}: the event after {} is {seq}", expected - 1));
            return;
        }
        if row.prev_hash != prev {
            found.push(format!("{id}/{seq} does not follow on the one before it"));
        }
        let mut hash = Sha256::new();
        hash.update(row.prev_hash.as_bytes());
        hash.update(seq.to_be_bytes());
        hash.update(row.payload.as_bytes());
        if hex::encode(hash.finalize()) != row.hash {
            found.push(format!("{id}/{seq} is not what was hashed"));
        }
        prev = &row.hash;
    }
}

fn story_damages(id: &str, rows: &[Row], found: &mut Vec<String>) {
    let (mut intended, mut ended) = (BTreeSet::new(), BTreeSet::new());
    let mut last = Value::Null;
    for row in rows {
        let Ok(event) = serde_json::from_str::<Value>(&row.payload) else {
            found.push(format!("{id}/{} is not JSON", row.seq));
            continue;
        };
        let key = format!("{} {} {}", event["step"], event["direction"], event["attempt"]);
        match event["kind"].as_str() {
            Some("step_intended") if !intended.insert(key.clone()) => {
                found.push(format!("{id}: {key} was intended twice"));
            }
            Some("step_ended") if !intended.contains(&key) => {
                found.push(format!("{id}: {key} ended without an intent"));
            }
            Some("step_ended") if !ended.insert(key.clone()) => {
                found.push(format!("{id}: {key} ended twice"));
            }
            Some(_) | None => {}
        }
        if last["kind"] == "ended" {
            found.push(format!("{id} goes on after its end, with {}", row.seq));
        }
        last = event;
    }
    if last["kind"] != "ended" {
        found.push(format!("{id} has no end: its last event is {}", last["kind"]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A journal with these contents, as a coordinator would have written it.
    fn forged(contents: &[&str]) -> Journal {
        let mut prev = String::new();
        let mut journal = Journal::default();
        for (payload, seq) in contents.iter().zip(1_u64..) {
            let mut hash = Sha256::new();
            hash.update(prev.as_bytes());
            hash.update(seq.to_be_bytes());
            hash.update(payload.as_bytes());
            let hash = hex::encode(hash.finalize());
            let row = Row {
                seq,
                prev_hash: std::mem::replace(&mut prev, hash.clone()),
                hash,
                payload: (*payload).to_owned(),
            };
            journal.add("r1", row);
        }
        journal
    }

    const INTENDED: &str = r#"{"kind":"step_intended","step":1,"direction":"forward","attempt":1}"#;
    const STEP_ENDED: &str = r#"{"kind":"step_ended","step":1,"direction":"forward","attempt":1}"#;
    const ENDED: &str = r#"{"kind":"ended"}"#;

    #[test]
    fn every_way_in_which_a_journal_can_be_damaged_is_found() {
        let whole = forged(&[INTENDED, STEP_ENDED, ENDED]);
        assert_eq!(whole.damages(), [""; 0]);
        let damaged = |change: fn(&mut Vec<Row>)| {
            let mut journal = whole.clone();
            change(journal.0.get_mut("r1").expect("the rollback"));
            journal.damages().join("; ")
        };
        assert!(damaged(|rows| drop(rows.remove(1))).contains("the event after 1 is 3"));
        assert!(damaged(|rows| rows[1].prev_hash = "other".to_owned()).contains("does not follow"));
        assert!(damaged(|rows| rows[1].payload.push(' ')).contains("not what was hashed"));
        for (contents, said) in [
            (vec![INTENDED, INTENDED, ENDED], "intended twice"),
            (vec![INTENDED, STEP_ENDED, STEP_ENDED, ENDED], "ended twice"),
            (vec![STEP_ENDED, ENDED], "without an intent"),
            (vec![INTENDED, ENDED, STEP_ENDED], "after its end"),
            (vec![INTENDED, STEP_ENDED], "has no end"),
        ] {
            let found = forged(&contents).damages().join("; ");
            assert!(found.contains(said), "{contents:?}: {found}");
        }
    }
}
