//! Releases, agents and join tokens. What is as true from any replica is not fenced; what is said of a release later is the
//! leader's to say.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rollback_engine::ids::ReleaseName;
use rollback_engine::release::Release;
use sqlx::{query, query_as};

use super::lease;
use super::session::Lane;
use crate::store::chain::damaged;
use crate::store::{AgentRecord, Fence, FleetId, NewToken, StoreError, newest_first, relabelled};

pub async fn add_release(lane: &Lane, release: &Release) -> Result<bool, StoreError> {
    let document = serde_json::to_string(release).map_err(damaged("a release"))?;
    let mut tx = lane.write("write the release").await?;
    let written = tx
        .execute(
            query("INSERT INTO releases (name, stable, document) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                .bind(release.name.as_str())
                .bind(release.stable)
                .bind(document),
        )
        .await?;
    tx.commit().await?;
    Ok(written == 1)
}

fn read_release((document, stable): (String, bool)) -> Result<Release, StoreError> {
    let release: Release = serde_json::from_str(&document).map_err(damaged("a release"))?;
    Ok(Release { stable, ..release })
}

pub async fn release(lane: &Lane, name: &ReleaseName) -> Result<Option<Release>, StoreError> {
    let mut tx = lane.read("read a release").await?;
    let row = tx
        .optional(query_as("SELECT document, stable FROM releases WHERE name = $1").bind(name.as_str()))
        .await?;
    tx.commit().await?;
    row.map(read_release).transpose()
}

pub async fn releases(lane: &Lane) -> Result<Vec<Release>, StoreError> {
    let mut tx = lane.read("list releases").await?;
    let rows = tx.all(query_as("SELECT document, stable FROM releases")).await?;
    tx.commit().await?;
    let releases: Result<Vec<Release>, StoreError> = rows.into_iter().map(read_release).collect();
    releases.map(newest_first)
}

pub async fn update_release(lane: &Lane, fence: &Fence, release: &Release) -> Result<bool, StoreError> {
    let mut tx = lease::fence(lane, "write the release", fence).await?;
    let stored = tx
        .optional(
            query_as("SELECT document, stable FROM releases WHERE name = $1 FOR UPDATE").bind(release.name.as_str()),
        )
        .await?;
    let Some(stored) = stored else {
        tx.roll_back().await?;
        return Ok(false);
    };
    let new = relabelled(read_release(stored)?, release);
    tx.execute(
        query("UPDATE releases SET document = $1, stable = $2 WHERE name = $3")
            .bind(serde_json::to_string(&new).map_err(damaged("a release"))?)
            .bind(new.stable)
            .bind(new.name.as_str()),
    )
    .await?;
    tx.commit().await?;
    Ok(true)
}

pub async fn remove_release(lane: &Lane, fence: &Fence, name: &ReleaseName) -> Result<bool, StoreError> {
    let mut tx = lease::fence(lane, "remove the release", fence).await?;
    let removed = tx
        .execute(query("DELETE FROM releases WHERE name = $1").bind(name.as_str()))
        .await?;
    tx.commit().await?;
    Ok(removed == 1)
}

pub async fn save_agent(lane: &Lane, agent: &AgentRecord) -> Result<(), StoreError> {
    let document = serde_json::to_string(agent).map_err(damaged("an agent"))?;
    let mut tx = lane.write("write the agent").await?;
    tx.execute(
        query(
            "INSERT INTO agents (name, ledger_generation, document) VALUES ($1, $2, $3) ON CONFLICT (name) \
             DO UPDATE SET ledger_generation = excluded.ledger_generation, document = excluded.document",
        )
        .bind(&agent.name)
        .bind(&agent.ledger_generation)
        .bind(document),
    )
    .await?;
    tx.commit().await
}

pub async fn agents(lane: &Lane) -> Result<Vec<AgentRecord>, StoreError> {
    let mut tx = lane.read("list agents").await?;
    let rows: Vec<(String,)> = tx.all(query_as("SELECT document FROM agents ORDER BY name")).await?;
    tx.commit().await?;
    Ok(rows.iter().filter_map(|(d,)| AgentRecord::read(d)).collect())
}

pub async fn add_token(lane: &Lane, token: &NewToken) -> Result<(), StoreError> {
    let mut tx = lane.write("write the token").await?;
    tx.execute(
        query("INSERT INTO tokens (hash, name, created_by, expires_at) VALUES ($1, $2, $3, $4)")
            .bind(&token.hash)
            .bind(&token.name)
            .bind(&token.created_by)
            .bind(token.expires_at.as_second()),
    )
    .await?;
    tx.commit().await
}

pub async fn redeem_token(lane: &Lane, hash: &str, now: Timestamp) -> Result<Option<String>, StoreError> {
    let mut tx = lane.write("redeem the token").await?;
    let row: Option<(String,)> = tx
        .optional(
            query_as(
                "UPDATE tokens SET redeemed_at = $1 WHERE hash = $2 AND redeemed_at IS NULL AND expires_at > $1 \
                 RETURNING name",
            )
            .bind(now.as_second())
            .bind(hash),
        )
        .await?;
    tx.commit().await?;
    Ok(row.map(|(name,)| name))
}

/// CAs are only ever added: a coordinator that trusts the old one alone may still be waiting for its turn.
pub async fn join(lane: &Lane, ours: &FleetId) -> Result<(), StoreError> {
    let text = |ca: &BTreeSet<String>| ca.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    let mut tx = lane.write("read whose fleet the store is").await?;
    tx.execute(
        query("INSERT INTO fleet (id, trust_domain, ca) VALUES (1, $1, $2) ON CONFLICT DO NOTHING")
            .bind(&ours.trust_domain)
            .bind(text(&ours.ca)),
    )
    .await?;
    let found: Option<(String, String)> = tx
        .optional(query_as("SELECT trust_domain, ca FROM fleet WHERE id = 1 FOR UPDATE"))
        .await?;
    let (trust_domain, ca) = found.unwrap_or_default();
    let theirs = FleetId {
        trust_domain,
        ca: ca.split_whitespace().map(str::to_owned).collect(),
    };
    if theirs.trust_domain != ours.trust_domain || theirs.ca.is_disjoint(&ours.ca) {
        tx.roll_back().await?;
        return Err(StoreError::OtherFleet(theirs));
    }
    let both: BTreeSet<String> = theirs.ca.union(&ours.ca).cloned().collect();
    tx.execute(query("UPDATE fleet SET ca = $1 WHERE id = 1").bind(text(&both)))
        .await?;
    tx.commit().await
}
