//! Reading rollbacks back from the journal. Any replica can do that.

use rollback_engine::ids::RollbackId;
use rollback_engine::machine::{Corrupt, State};
use rollback_proto::problem::{Code, Problem};

use crate::projection::Summary;
use crate::store::Store;

/// The state of a rollback, running or ended, as the journal has it.
pub async fn state(store: &dyn Store, id: &RollbackId) -> Result<State, Problem> {
    let events = store.events(id, 0).await?;
    if events.is_empty() {
        return Err(Problem::new(Code::NotFound, format!("no rollback {id}")));
    }
    State::replay(events.into_iter().map(|r| r.event)).map_err(|e| unreadable(id, &e))
}

/// The newest ones, newest first. A summary that cannot be read is left out: its rollback can still be asked for.
pub async fn newest(store: &dyn Store, limit: u32) -> Result<Vec<Summary>, Problem> {
    let summaries = store.summaries(limit).await?;
    Ok(summaries.iter().filter_map(|s| serde_json::from_str(s).ok()).collect())
}

/// Rollbacks that have not ended, newest first. One whose summary cannot be read is there without it: that it runs must not be
/// overlooked.
pub async fn running(store: &dyn Store) -> Result<Vec<(RollbackId, Option<Summary>)>, Problem> {
    let mut running = Vec::new();
    for id in store.running().await?.into_iter().rev() {
        let summary = store.summary(&id).await?;
        running.push((id, summary.and_then(|s| serde_json::from_str(&s).ok())));
    }
    Ok(running)
}

pub fn unreadable(id: &RollbackId, why: &Corrupt) -> Problem {
    Problem::from_error(Code::StoreUnavailable, format_args!("read rollback {id}"), why)
}
