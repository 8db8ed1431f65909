//! Small documents. Leaders alone write them, so writing begins with [`lease::fence`].

use sqlx::{query, query_as};

use super::lease;
use super::session::{Lane, Transaction};
use crate::store::{Document, DocumentKind, Fence, StoreError, keys_under, last_of_each_key};

pub async fn put(lane: &Lane, fence: &Fence, documents: &[Document]) -> Result<(), StoreError> {
    let mut tx = lease::fence(lane, "write documents", fence).await?;
    write(&mut tx, documents).await?;
    tx.commit().await
}

/// Two statements for any number of documents: the end of a rollback has one for every host.
pub async fn write(tx: &mut Transaction, documents: &[Document]) -> Result<(), StoreError> {
    let (mut kinds, mut keys, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
    let (mut gone_kinds, mut gone_keys) = (Vec::new(), Vec::new());
    for ((kind, key), body) in last_of_each_key(documents) {
        if let Some(body) = body {
            kinds.push(kind);
            keys.push(key);
            bodies.push(body);
        } else {
            gone_kinds.push(kind);
            gone_keys.push(key);
        }
    }
    if !gone_keys.is_empty() {
        tx.execute(
            query(
                "DELETE FROM documents USING unnest($1::text[], $2::text[]) AS gone (kind, key) \
                 WHERE documents.kind = gone.kind AND documents.key = gone.key",
            )
            .bind(gone_kinds)
            .bind(gone_keys),
        )
        .await?;
    }
    if !keys.is_empty() {
        // In one order, whoever writes: two ends that say something of the same hosts must not wait for each other.
        tx.execute(
            query(
                "INSERT INTO documents (kind, key, body) SELECT kind, key, body \
                 FROM unnest($1::text[], $2::text[], $3::text[]) AS new (kind, key, body) \
                 ORDER BY kind COLLATE \"C\", key COLLATE \"C\" \
                 ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body",
            )
            .bind(kinds)
            .bind(keys)
            .bind(bodies),
        )
        .await?;
    }
    Ok(())
}

pub async fn add(lane: &Lane, fence: &Fence, document: &Document) -> Result<bool, StoreError> {
    let mut tx = lease::fence(lane, "add a document", fence).await?;
    let Some(body) = &document.body else {
        tx.roll_back().await?;
        return Ok(false);
    };
    let added = tx
        .execute(
            query("INSERT INTO documents (kind, key, body) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
                .bind(document.kind.as_str())
                .bind(&document.key)
                .bind(body),
        )
        .await?;
    tx.commit().await?;
    Ok(added == 1)
}

pub async fn one(lane: &Lane, kind: DocumentKind, key: &str) -> Result<Option<Document>, StoreError> {
    let mut tx = lane.read("read a document").await?;
    let row: Option<(String,)> = tx
        .optional(
            query_as("SELECT body FROM documents WHERE kind = $1 AND key = $2")
                .bind(kind.as_str())
                .bind(key),
        )
        .await?;
    tx.commit().await?;
    Ok(row.map(|(body,)| document(kind, key.to_owned(), body)))
}

pub async fn under(lane: &Lane, kind: DocumentKind, beginning: &str) -> Result<Vec<Document>, StoreError> {
    let (from, to) = keys_under(beginning);
    let mut tx = lane.read("list documents").await?;
    let rows: Vec<(String, String)> = tx
        .all(
            query_as("SELECT key, body FROM documents WHERE kind = $1 AND key >= $2 AND key < $3 ORDER BY key")
                .bind(kind.as_str())
                .bind(from)
                .bind(to),
        )
        .await?;
    tx.commit().await?;
    Ok(rows.into_iter().map(|(key, body)| document(kind, key, body)).collect())
}

fn document(kind: DocumentKind, key: String, body: String) -> Document {
    Document {
        kind,
        key,
        body: Some(body),
    }
}
