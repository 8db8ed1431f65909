//! The ledger's tables, read and written inside a transaction that the actor opens and commits.

use std::collections::BTreeSet;
use std::time::Duration;

use prost::Message as _;
use rollback_proto::v1::{ExecuteRequest, Outcome};
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::{ArgsDigest, Begin, Fence, LedgerError, OTHERS, RECENT, Recalled, StepKey, StepState, Unfinished};

/// The highest epoch and its leader; `None` until the first leader spoke.
pub(super) type Seen = Option<Fence>;

pub(super) async fn read_seen(connection: &mut SqliteConnection) -> Result<Seen, LedgerError> {
    let row = sqlx::query("SELECT max_epoch, leader_id FROM meta")
        .fetch_one(connection)
        .await?;
    let epoch: Option<i64> = row.try_get(0)?;
    let leader: Option<String> = row.try_get(1)?;
    Ok(epoch.zip(leader).map(|(epoch, leader)| Fence {
        epoch: epoch.cast_unsigned(),
        leader,
    }))
}

/// The tables, inside a transaction.
pub(super) struct Rows<'a> {
    connection: &'a mut SqliteConnection,
    seen: Seen,
    /// What the transaction writes: `epoch`, `begin`, `finish`, `interrupt`.
    wrote: BTreeSet<&'static str>,
}

impl<'a> Rows<'a> {
    pub fn new(connection: &'a mut SqliteConnection, seen: Seen) -> Self {
        Self {
            connection,
            seen,
            wrote: BTreeSet::new(),
        }
    }

    /// The fence as it is once the transaction is committed, and what that writes.
    pub fn end(self) -> (Seen, BTreeSet<&'static str>) {
        (self.seen, self.wrote)
    }

    /// Refuses a lower epoch, and the same epoch of another leader. Epochs of a store that lost commits can repeat;
    /// the leader's name tells the two apart.
    pub async fn observe(&mut self, fence: Fence) -> Result<(), LedgerError> {
        match &self.seen {
            Some(known) if *known == fence => return Ok(()),
            Some(known) if fence.epoch <= known.epoch => {
                return Err(LedgerError::Stale {
                    asking: fence,
                    known: known.clone(),
                });
            }
            Some(_) | None => {}
        }
        sqlx::query("UPDATE meta SET max_epoch = ?, leader_id = ?")
            .bind(fence.epoch.cast_signed())
            .bind(&fence.leader)
            .execute(&mut *self.connection)
            .await?;
        self.seen = Some(fence);
        self.wrote.insert("epoch");
        Ok(())
    }

    pub async fn look(&mut self, fence: Fence, key: &StepKey, digest: &ArgsDigest) -> Result<Begin, LedgerError> {
        self.observe(fence).await?;
        let row = sqlx::query(
            "SELECT args_digest, state, outcome FROM steps WHERE rollback_id = ? AND step_id = ? AND attempt = ?",
        )
        .bind(&key.rollback_id)
        .bind(&key.step_id)
        .bind(key.attempt)
        .fetch_optional(&mut *self.connection)
        .await?;
        match row {
            None => Ok(Begin::New),
            Some(row) => known(key, digest, &row),
        }
    }

    pub async fn begin(
        &mut self,
        fence: Fence,
        key: &StepKey,
        digest: &ArgsDigest,
        request: &ExecuteRequest,
    ) -> Result<Begin, LedgerError> {
        let known = self.look(fence, key, digest).await?;
        if known == Begin::New {
            sqlx::query(
                "INSERT INTO steps (rollback_id, step_id, attempt, args_digest, request, state, intent_at)
                 VALUES (?, ?, ?, ?, ?, 'running', ?)
                 ON CONFLICT DO UPDATE SET state = 'running', request = excluded.request,
                                           intent_at = excluded.intent_at",
            )
            .bind(&key.rollback_id)
            .bind(&key.step_id)
            .bind(key.attempt)
            .bind(&digest[..])
            .bind(request.encode_to_vec())
            .bind(now())
            .execute(&mut *self.connection)
            .await?;
            self.wrote.insert("begin");
        }
        Ok(known)
    }

    pub async fn finish(&mut self, key: &StepKey, outcome: &Outcome) -> Result<(), LedgerError> {
        sqlx::query(
            "UPDATE steps SET state = 'ended', outcome = ?, ended_at = ?
             WHERE rollback_id = ? AND step_id = ? AND attempt = ? AND state = 'running'",
        )
        .bind(outcome.encode_to_vec())
        .bind(now())
        .bind(&key.rollback_id)
        .bind(&key.step_id)
        .bind(key.attempt)
        .execute(&mut *self.connection)
        .await?;
        self.wrote.insert("finish");
        Ok(())
    }

    pub async fn interrupt(&mut self, key: &StepKey) -> Result<(), LedgerError> {
        sqlx::query(
            "UPDATE steps SET state = 'interrupted', interrupted_at = ?, interruptions = interruptions + 1
             WHERE rollback_id = ? AND step_id = ? AND attempt = ? AND state = 'running'",
        )
        .bind(now())
        .bind(&key.rollback_id)
        .bind(&key.step_id)
        .bind(key.attempt)
        .execute(&mut *self.connection)
        .await?;
        self.wrote.insert("interrupt");
        Ok(())
    }

    pub async fn unfinished(&mut self) -> Result<Vec<Unfinished>, LedgerError> {
        let rows = sqlx::query(
            "SELECT rollback_id, step_id, attempt, request FROM steps WHERE state = 'running'
             ORDER BY intent_at, rollback_id, step_id, attempt",
        )
        .fetch_all(&mut *self.connection)
        .await?;
        rows.iter()
            .map(|row| {
                let key = key_of(row)?;
                let request: Vec<u8> = row.try_get(3)?;
                match ExecuteRequest::decode(&request[..]) {
                    Ok(request) => Ok(Unfinished { key, request }),
                    Err(_) => Err(LedgerError::Damaged(key)),
                }
            })
            .collect()
    }

    pub async fn recall(&mut self, fence: Fence, rollbacks: &[String]) -> Result<Recalled, LedgerError> {
        self.observe(fence).await?;
        let asked = serde_json::json!(rollbacks).to_string();
        let rows = sqlx::query(
            "SELECT rollback_id, step_id, attempt, state FROM steps
             WHERE rollback_id IN (SELECT value FROM json_each(?))
             ORDER BY intent_at, rollback_id, step_id, attempt",
        )
        .bind(&asked)
        .fetch_all(&mut *self.connection)
        .await?;
        let steps = rows.iter().map(|row| {
            let key = key_of(row)?;
            let state = match row.try_get(3)? {
                "running" => StepState::Unfinished,
                "interrupted" => StepState::Interrupted,
                "ended" => StepState::Ended,
                // The table's own checks allow nothing else.
                _ => return Err(LedgerError::Damaged(key)),
            };
            Ok((key, state))
        });
        let steps = steps.collect::<Result<_, LedgerError>>()?;
        let others = sqlx::query_scalar(
            "SELECT rollback_id FROM steps
             WHERE intent_at >= ? AND rollback_id NOT IN (SELECT value FROM json_each(?))
             GROUP BY rollback_id ORDER BY max(intent_at) DESC, rollback_id LIMIT ?",
        )
        .bind(now() - millis(RECENT))
        .bind(&asked)
        .bind(OTHERS)
        .fetch_all(&mut *self.connection)
        .await?;
        Ok(Recalled { steps, others })
    }
}

/// The first three columns.
fn key_of(row: &SqliteRow) -> Result<StepKey, sqlx::Error> {
    Ok(StepKey {
        rollback_id: row.try_get(0)?,
        step_id: row.try_get(1)?,
        attempt: row.try_get(2)?,
    })
}

/// What a row says to somebody who asks with these arguments.
fn known(key: &StepKey, digest: &ArgsDigest, row: &SqliteRow) -> Result<Begin, LedgerError> {
    let recorded: Vec<u8> = row.try_get(0)?;
    if recorded != digest {
        return Ok(Begin::ArgsDiffer);
    }
    let state: String = row.try_get(1)?;
    let outcome: Option<Vec<u8>> = row.try_get(2)?;
    let damaged = || LedgerError::Damaged(key.clone());
    match (state.as_str(), outcome) {
        ("interrupted", None) => Ok(Begin::New),
        ("running", None) => Ok(Begin::Unfinished),
        ("ended", Some(outcome)) => {
            let outcome = Outcome::decode(&outcome[..]).map_err(|_| damaged())?;
            Ok(Begin::Known(Box::new(outcome)))
        }
        // The table's own checks allow nothing else.
        _ => Err(damaged()),
    }
}

pub(super) fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
