//! Rollbacks: their events, their summary and the scope that they hold. What writes begins with [`lease::fence`].

use std::collections::BTreeMap;

use rollback_engine::event::Event;
use rollback_engine::ids::{RollbackId, Target};
use sqlx::{query, query_as};

use super::session::{Lane, Transaction};
use super::{documents, from_sql, lease, to_sql};
use crate::store::chain::{self, EVENT_FORMAT, Link};
use crate::store::{Closing, Created, Fence, NewRollback, Recorded, StoreError};

/// How often a beginning is tried whose scope was held when it was taken and free when the holder was looked for.
const TRIES: u32 = 5;

pub async fn create(lane: &Lane, fence: &Fence, rollback: &NewRollback) -> Result<Created, StoreError> {
    for _ in 0..TRIES {
        if let Some(created) = try_create(lane, fence, rollback).await? {
            return Ok(created);
        }
    }
    Err(StoreError::Conflict)
}

/// `None`: the scope was given back in the meantime; again.
async fn try_create(lane: &Lane, fence: &Fence, rollback: &NewRollback) -> Result<Option<Created>, StoreError> {
    let mut tx = lease::fence(lane, "write the new rollback", fence).await?;
    // Waits for another transaction with this request, so the row is there to be read if ours is not written.
    let new = tx
        .execute(
            query(
                "INSERT INTO rollbacks (id, request_id, running, summary) VALUES ($1, $2, true, $3) \
                 ON CONFLICT (request_id) DO NOTHING",
            )
            .bind(rollback.id.as_str())
            .bind(&rollback.request_id)
            .bind(&rollback.summary),
        )
        .await?;
    if new == 0 {
        let existing = find_request(&mut tx, &rollback.request_id).await?;
        tx.roll_back().await?;
        return Ok(existing.map(Created::Existing));
    }
    let (hosts, components) = columns(&rollback.scope);
    // In one order, whoever asks: two that want the same rows must not wait for each other.
    let taken = tx
        .execute(
            query(
                "INSERT INTO scope (host, component, rollback_id) SELECT host, component, $3 \
                 FROM unnest($1::text[], $2::text[]) AS wanted (host, component) \
                 ORDER BY host COLLATE \"C\", component COLLATE \"C\" ON CONFLICT DO NOTHING",
            )
            .bind(hosts)
            .bind(components)
            .bind(rollback.id.as_str()),
        )
        .await?;
    if taken != u64::try_from(rollback.scope.len()).unwrap_or(u64::MAX) {
        let held = find_holder(&mut tx, &rollback.scope, &rollback.id).await?;
        tx.roll_back().await?;
        return Ok(held.map(|(target, holder)| Created::ScopeHeld { target, holder }));
    }
    write(&mut tx, &rollback.id, (0, String::new()), &rollback.events).await?;
    tx.commit().await?;
    Ok(Some(Created::New))
}

pub async fn append(
    lane: &Lane,
    fence: &Fence,
    id: &RollbackId,
    after: u64,
    events: &[Event],
    summary: &str,
    closing: Option<&Closing>,
) -> Result<(), StoreError> {
    let mut tx = lease::fence(lane, "append to the journal", fence).await?;
    let last: Option<(i64, String)> = tx
        .optional(
            query_as("SELECT seq, hash FROM events WHERE rollback_id = $1 ORDER BY seq DESC LIMIT 1").bind(id.as_str()),
        )
        .await?;
    let last = last.map_or((0, String::new()), |(seq, hash)| (from_sql(seq), hash));
    if last.0 != after {
        tx.roll_back().await?;
        return Err(StoreError::Conflict);
    }
    write(&mut tx, id, last, events).await?;
    let known = tx
        .execute(
            query("UPDATE rollbacks SET summary = $1, running = $2 WHERE id = $3")
                .bind(summary)
                .bind(closing.is_none())
                .bind(id.as_str()),
        )
        .await?;
    if known == 0 {
        tx.roll_back().await?;
        return Err(StoreError::Conflict);
    }
    if let Some(closing) = closing {
        close(&mut tx, id, closing).await?;
    }
    tx.commit().await
}

async fn close(tx: &mut Transaction, id: &RollbackId, closing: &Closing) -> Result<(), StoreError> {
    tx.execute(query("DELETE FROM scope WHERE rollback_id = $1").bind(id.as_str()))
        .await?;
    let works = closing.works.iter().map(|name| name.as_str());
    let marked: Vec<&str> = closing
        .abandoned
        .iter()
        .map(|name| name.as_str())
        .chain(works)
        .collect();
    if !marked.is_empty() {
        tx.execute(
            query("UPDATE releases SET stable = (name = $1) WHERE name = ANY ($2)")
                .bind(closing.works.as_ref().map_or("", |name| name.as_str()))
                .bind(marked),
        )
        .await?;
    }
    documents::write(tx, &closing.documents).await
}

async fn write(tx: &mut Transaction, id: &RollbackId, last: (u64, String), events: &[Event]) -> Result<(), StoreError> {
    let links = chain::forge(last, events)?;
    let column = |of: fn(&Link) -> &str| links.iter().map(of).collect::<Vec<&str>>();
    tx.execute(
        query(
            "INSERT INTO events (rollback_id, seq, format, payload, prev_hash, hash) SELECT $1, seq, $2, payload, prev_hash, \
             hash FROM unnest($3::bigint[], $4::text[], $5::text[], $6::text[]) AS link (seq, payload, prev_hash, hash)",
        )
        .bind(id.as_str())
        .bind(EVENT_FORMAT)
        .bind(links.iter().map(|l| to_sql(l.seq)).collect::<Vec<_>>())
        .bind(column(|l| &l.payload))
        .bind(column(|l| &l.prev_hash))
        .bind(column(|l| &l.hash)),
    )
    .await
    .map(drop)
}

pub async fn events(lane: &Lane, id: &RollbackId, after: u64) -> Result<Vec<Recorded>, StoreError> {
    let mut tx = lane.read("read the journal").await?;
    let rows: Vec<(i64, String, String, String)> = tx
        .all(
            query_as(
                "SELECT seq, payload, prev_hash, hash FROM events WHERE rollback_id = $1 AND seq > $2 ORDER BY seq",
            )
            .bind(id.as_str())
            .bind(to_sql(after)),
        )
        .await?;
    tx.commit().await?;
    let links = rows.into_iter().map(|(seq, payload, prev_hash, hash)| Link {
        seq: from_sql(seq),
        payload,
        prev_hash,
        hash,
    });
    chain::read(id, after, links.collect())
}

pub async fn requested(lane: &Lane, request_id: &str) -> Result<Option<RollbackId>, StoreError> {
    let mut tx = lane.read("look the request up").await?;
    let found = find_request(&mut tx, request_id).await?;
    tx.commit().await?;
    Ok(found)
}

pub async fn holder(lane: &Lane, targets: &[Target]) -> Result<Option<(Target, RollbackId)>, StoreError> {
    let mut tx = lane.read("read the scopes").await?;
    let found = find_holder(&mut tx, targets, &RollbackId::from("")).await?;
    tx.commit().await?;
    Ok(found)
}

pub async fn scopes(lane: &Lane) -> Result<BTreeMap<Target, RollbackId>, StoreError> {
    let mut tx = lane.read("read the scopes").await?;
    let rows: Vec<(String, String, String)> = tx
        .all(query_as("SELECT host, component, rollback_id FROM scope"))
        .await?;
    tx.commit().await?;
    let one = |(host, component, id): (String, String, String)| (Target::new(host, component), id.into());
    Ok(rows.into_iter().map(one).collect())
}

pub async fn running(lane: &Lane) -> Result<Vec<RollbackId>, StoreError> {
    let mut tx = lane.read("list running rollbacks").await?;
    let ids: Vec<(String,)> = tx
        .all(query_as("SELECT id FROM rollbacks WHERE running ORDER BY id"))
        .await?;
    tx.commit().await?;
    Ok(ids.into_iter().map(|(id,)| RollbackId::from(id)).collect())
}

pub async fn summaries(lane: &Lane, limit: u32) -> Result<Vec<String>, StoreError> {
    let mut tx = lane.read("list rollbacks").await?;
    let rows: Vec<(String,)> = tx
        .all(query_as("SELECT summary FROM rollbacks ORDER BY id DESC LIMIT $1").bind(i64::from(limit)))
        .await?;
    tx.commit().await?;
    Ok(rows.into_iter().map(|(summary,)| summary).collect())
}

pub async fn summary(lane: &Lane, id: &RollbackId) -> Result<Option<String>, StoreError> {
    let mut tx = lane.read("read a rollback").await?;
    let row: Option<(String,)> = tx
        .optional(query_as("SELECT summary FROM rollbacks WHERE id = $1").bind(id.as_str()))
        .await?;
    tx.commit().await?;
    Ok(row.map(|(summary,)| summary))
}

async fn find_request(tx: &mut Transaction, request_id: &str) -> Result<Option<RollbackId>, StoreError> {
    let row: Option<(String,)> = tx
        .optional(query_as("SELECT id FROM rollbacks WHERE request_id = $1").bind(request_id))
        .await?;
    Ok(row.map(|(id,)| id.into()))
}

/// Of the targets, the first one that somebody else than `except` holds.
async fn find_holder(
    tx: &mut Transaction,
    targets: &[Target],
    except: &RollbackId,
) -> Result<Option<(Target, RollbackId)>, StoreError> {
    let (hosts, components) = columns(targets);
    let row: Option<(String, String, String)> = tx
        .optional(
            query_as(
                "SELECT host, component, rollback_id FROM scope \
                 JOIN unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (host, component, place) \
                     USING (host, component) \
                 WHERE rollback_id <> $3 ORDER BY place LIMIT 1",
            )
            .bind(hosts)
            .bind(components)
            .bind(except.as_str()),
        )
        .await?;
    Ok(row.map(|(host, component, id)| (Target::new(host, component), id.into())))
}

/// Hosts and components, as PostgreSQL takes many rows in one statement.
fn columns(targets: &[Target]) -> (Vec<&str>, Vec<&str>) {
    targets.iter().map(|t| (t.host.as_str(), t.component.as_str())).unzip()
}
