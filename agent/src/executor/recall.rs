//! What the ledger knows, for a leader that has just taken over: the ledgers of the agents are the second copy of the
//! truth. It is answered from the ledger alone, and so also while steps that the last process left unfinished are being
//! resolved: a probe may take a minute, and a leader that is new does not.

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tracing::Instrument;

use super::order::fence;
use super::{Executor, stopping};
use crate::convert;

/// Rollbacks of one question. A host takes part in one at a time.
const MAX_ASKED: usize = 64;

impl Executor {
    /// Once this returns, leaders of lower epochs are refused, and none of their steps begins here any more: what is not
    /// in the answer was never done, and never will be without a leader that asks for it again.
    pub async fn recall(&self, request: v1::RecallRequest) -> Result<v1::RecallResponse, Problem> {
        let fence = fence(request.epoch, &request.leader_id)?;
        let rollbacks = request.rollback_ids;
        if rollbacks.len() > MAX_ASKED {
            return Err(Problem::new(
                Code::BadRequest,
                format!(
                    "{} rollbacks were asked for, at most {MAX_ASKED} are answered",
                    rollbacks.len()
                ),
            ));
        }
        for id in &rollbacks {
            check_name("rollback", id)?;
        }
        if self.0.tasks.is_closed() {
            return Err(stopping());
        }
        let recalled = self.0.ledger.recall(fence, rollbacks).in_current_span().await?;
        tracing::info!(
            steps = recalled.steps.len(),
            others = recalled.others.len(),
            "a new leader asked what was done here"
        );
        Ok(convert::recalled(self.0.ledger.generation(), recalled))
    }
}
