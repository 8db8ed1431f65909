//! Who leads. One row, the database's clock, and no lock that outlives its transaction.
//!
//! Two rules, both learnt from what PostgreSQL did when they were broken:
//! - Time is judged by a statement of its own *after* the row lock was obtained. A single `UPDATE … WHERE held_until >
//!   clock_timestamp()` that had to wait for the lock judged with the time before it waited, and renewed a lease that had
//!   run out.
//! - Whoever writes to the journal holds the row `FOR SHARE` until the commit ([`fence`]). A guard that only looks lets a
//!   stale append commit after the next leader has read the journal. `FOR KEY SHARE` would not do: taking the lead does
//!   not change the key.

use std::pin::pin;
use std::time::Duration;

use rollback_engine::ids::Epoch;
use sqlx::{query, query_as};
use tokio::sync::RwLock;
use tokio::time::timeout;

use super::session::{Lane, Transaction};
use super::{from_sql, to_sql};
use crate::store::{Campaign, Candidate, Fence, LONGEST_LEASE, Lease, StoreError};

/// How long writers to the journal and a renewal wait for each other. Neither may hang because the other one does.
const COURTESY: Duration = Duration::from_millis(300);

const READ: &str = "SELECT epoch, leader, endpoint, \
     greatest(extract(epoch FROM held_until - clock_timestamp()), 0)::float8 FROM lease WHERE id = 1";

pub async fn campaign(
    lane: &Lane,
    candidate: &Candidate,
    ttl: Duration,
    at_least: Epoch,
) -> Result<Campaign, StoreError> {
    let mut tx = lane.write("take the lead").await?;
    // Followers ask often. They must not stand in the leader's way while its lease holds.
    let lease = read(&mut tx).await?;
    if !lease.left.is_zero() && !lease.is_out_of_time() && lease.leader != candidate.id {
        tx.roll_back().await?;
        return Ok(Campaign::Held(lease));
    }
    lock(&mut tx).await?;
    let won: Option<(i64,)> = tx
        .optional(
            query_as(
                "UPDATE lease SET epoch = greatest(epoch + 1, $1), leader = $2, endpoint = $3, since = clock_timestamp(), \
                     held_until = clock_timestamp() + make_interval(secs => $4) \
                 WHERE id = 1 AND (held_until <= clock_timestamp() OR leader = $2 \
                     OR held_until > clock_timestamp() + make_interval(secs => $5)) RETURNING epoch",
            )
            .bind(to_sql(at_least.0))
            .bind(&candidate.id)
            .bind(&candidate.endpoint)
            .bind(ttl.as_secs_f64())
            .bind(LONGEST_LEASE.as_secs_f64()),
        )
        .await?;
    match won {
        Some((epoch,)) => {
            tx.commit().await?;
            Ok(Campaign::Won(Epoch(from_sql(epoch))))
        }
        // Somebody was faster while we waited.
        None => {
            let lease = read(&mut tx).await?;
            tx.roll_back().await?;
            Ok(Campaign::Held(lease))
        }
    }
}

/// `gate`: who writes to the journal in this process holds it shared.
pub async fn renew(lane: &Lane, gate: &RwLock<()>, fence: &Fence, ttl: Duration) -> Result<(), StoreError> {
    let mut tx = lane.write("renew the lease").await?;
    let found = {
        let mut locking = pin!(lock(&mut tx));
        let alone = async {
            let _alone = gate.write().await;
            locking.as_mut().await
        };
        match timeout(COURTESY, alone).await {
            Ok(locked) => locked?,
            Err(_) => locking.await?,
        }
    };
    let renewed = tx
        .execute(
            query(
                "UPDATE lease SET held_until = clock_timestamp() + make_interval(secs => $3) \
                 WHERE id = 1 AND epoch = $1 AND leader = $2 AND held_until > clock_timestamp()",
            )
            .bind(to_sql(fence.epoch.0))
            .bind(&fence.leader)
            .bind(ttl.as_secs_f64()),
        )
        .await?;
    if renewed == 1 {
        tx.commit().await
    } else {
        tx.roll_back().await?;
        Err(StoreError::Fenced(found))
    }
}

pub async fn give_back(lane: &Lane, fence: &Fence) -> Result<(), StoreError> {
    let mut tx = lane.write("give the lease back").await?;
    tx.execute(
        query("UPDATE lease SET held_until = to_timestamp(0) WHERE id = 1 AND epoch = $1 AND leader = $2")
            .bind(to_sql(fence.epoch.0))
            .bind(&fence.leader),
    )
    .await?;
    tx.commit().await
}

pub async fn lease(lane: &Lane) -> Result<Lease, StoreError> {
    let mut tx = lane.read("read the lease").await?;
    let lease = read(&mut tx).await?;
    tx.commit().await?;
    Ok(lease)
}

/// Begins a transaction in which nobody else can take the lead, or says who has.
///
/// A lease that has run out is nobody's, although nobody else has it yet: a database that lost the commit of its successor
/// would otherwise let the old leader go on from memory.
pub async fn fence(lane: &Lane, what: &'static str, fence: &Fence) -> Result<Transaction, StoreError> {
    let mut tx = lane.write(what).await?;
    let lock = query_as("SELECT epoch FROM lease WHERE id = 1 AND epoch = $1 AND leader = $2 FOR SHARE")
        .bind(to_sql(fence.epoch.0))
        .bind(&fence.leader);
    let ours: Option<(i64,)> = tx.optional(lock).await?;
    if ours.is_some() {
        let holds = "SELECT epoch FROM lease WHERE id = 1 AND held_until > clock_timestamp()";
        let holds: Option<(i64,)> = tx.optional(query_as(holds)).await?;
        if holds.is_some() {
            return Ok(tx);
        }
    }
    let found = read(&mut tx).await?.epoch;
    tx.roll_back().await?;
    Err(StoreError::Fenced(found))
}

/// Waits for the row. Says nothing of time: that is judged afterwards.
async fn lock(tx: &mut Transaction) -> Result<Epoch, StoreError> {
    let row: Option<(i64,)> = tx
        .optional(query_as("SELECT epoch FROM lease WHERE id = 1 FOR UPDATE"))
        .await?;
    row.map(|(epoch,)| Epoch(from_sql(epoch))).ok_or_else(no_lease)
}

async fn read(tx: &mut Transaction) -> Result<Lease, StoreError> {
    let row: Option<(i64, String, String, f64)> = tx.optional(query_as(READ)).await?;
    let (epoch, leader, endpoint, left) = row.ok_or_else(no_lease)?;
    Ok(Lease {
        epoch: Epoch(from_sql(epoch)),
        leader,
        endpoint,
        left: Duration::try_from_secs_f64(left).unwrap_or(Duration::ZERO),
    })
}

fn no_lease() -> StoreError {
    StoreError::Damaged {
        what: "the lease",
        why: "its row is gone".to_owned(),
    }
}
