//! The audit chain and the rows that it consists of, the same in every store.

use rollback_engine::event::Event;
use rollback_engine::ids::RollbackId;
use sha2::{Digest as _, Sha256};

use super::{Recorded, StoreError};

/// Version of the events' JSON. Raised only when a reader must treat it differently.
pub const EVENT_FORMAT: i64 = 1;

/// An event as a row of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub seq: u64,
    pub payload: String,
    /// Of the event before; empty for the first one.
    pub prev_hash: String,
    /// Covers `prev_hash`, `seq` and `payload`.
    pub hash: String,
}

pub fn damaged(what: &'static str) -> impl FnOnce(serde_json::Error) -> StoreError {
    move |e| StoreError::Damaged {
        what,
        why: e.to_string(),
    }
}

fn hash(prev: &str, seq: u64, payload: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(prev.as_bytes());
    hash.update(seq.to_be_bytes());
    hash.update(payload.as_bytes());
    hex::encode(hash.finalize())
}

/// The rows that these events become behind the journal's last one (its number and hash; 0 and empty: none).
pub fn forge(last: (u64, String), events: &[Event]) -> Result<Vec<Link>, StoreError> {
    let (mut seq, mut prev_hash) = last;
    let mut links = Vec::with_capacity(events.len());
    for event in events {
        seq += 1;
        let payload = serde_json::to_string(event).map_err(damaged("an event"))?;
        let hash = hash(&prev_hash, seq, &payload);
        links.push(Link {
            seq,
            payload,
            prev_hash: std::mem::replace(&mut prev_hash, hash.clone()),
            hash,
        });
    }
    Ok(links)
}

/// The events of these rows, which are a rollback's behind its first `after`. Refuses a chain that is broken.
pub fn read(id: &RollbackId, after: u64, links: Vec<Link>) -> Result<Vec<Recorded>, StoreError> {
    let mut recorded = Vec::with_capacity(links.len());
    let mut expected_prev = (after == 0).then(String::new);
    for (link, expected_seq) in links.into_iter().zip(after + 1..) {
        let linked = expected_prev.is_none_or(|expected| expected == link.prev_hash);
        if link.seq != expected_seq || !linked || hash(&link.prev_hash, link.seq, &link.payload) != link.hash {
            return Err(StoreError::Damaged {
                what: "the journal",
                why: format!("the chain breaks at {id}/{}", link.seq),
            });
        }
        recorded.push(Recorded {
            seq: link.seq,
            event: serde_json::from_str(&link.payload).map_err(damaged("an event"))?,
        });
        expected_prev = Some(link.hash);
    }
    Ok(recorded)
}
