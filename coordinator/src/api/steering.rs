//! What operators do to a rollback that runs.
//!
//! An act is answered when it is durable, and refused by the state machine alone: here is only checked what it cannot know,
//! who asks and, for an approval, whether the fleet is still where the plan has found it.

use std::collections::BTreeSet;

use rollback_engine::event::{AbortThen, Act};
use rollback_engine::ids::{Digest, HostName, RollbackId};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::Request;
use v1::steer_rollback_request::Act as Wire;
use v1::steer_rollback_request::abort::Then;

use super::Api;
use crate::authority::caller;
use crate::{history, staleness, survey};

/// As of a rollback.
const MAX_REASON: usize = 4096;

impl Api {
    pub async fn steer(
        &self,
        request: Request<v1::SteerRollbackRequest>,
    ) -> Result<v1::SteerRollbackResponse, Problem> {
        let by = caller(&request)?.identity.name;
        let request = request.into_inner();
        let leader = self.leader()?;
        let act = act_from_wire(request.act)?;
        check_reason(&act, &request.reason)?;
        let id = self.rollback_called(&request.id).await?;
        match &act {
            Act::Approve { .. } => self.check_where_it_was(&id).await?,
            Act::Pause | Act::Resume | Act::Retry { .. } | Act::Skip { .. } | Act::Abort { .. } => {}
        }
        tracing::info!(rollback = %id, by, ?act, "an operator acts");
        let summary = leader.steer(&id, by, request.reason, act).await?;
        Ok(v1::SteerRollbackResponse {
            summary: Some(summary.to_wire()),
        })
    }

    /// Whoever approves has looked at what the plan changes. When the fleet has moved meanwhile, that is not what would
    /// happen any more.
    async fn check_where_it_was(&self, id: &RollbackId) -> Result<(), Problem> {
        let state = history::state(self.store(), id).await?;
        let awaited = state.summary().is_some_and(|summary| {
            let approval = summary.approval.filter(|approval| approval.approved.is_none());
            approval.is_some() && summary.ending.is_none()
        });
        // Otherwise the machine says better what is wrong. One that was approved has moved the fleet itself: whoever lost the
        // answer to the approval must not be told that it is stale.
        let Some(plan) = state.plan().filter(|_| awaited) else {
            return Ok(());
        };
        let hosts: BTreeSet<&str> = plan.body.changes.iter().map(|c| c.target.host.as_str()).collect();
        let observed = survey::observed_fleet(&survey::observe_some(self.inventory(), &hosts).await);
        let moved = staleness::moved(&plan.body, &observed);
        if moved.is_empty() {
            return Ok(());
        }
        Err(staleness::refusal("the fleet is not where the plan has found it", &moved).remedy(format!(
            "end this one and start again from where the fleet is: rollbackctl rollback abort {id} --undo --reason TEXT"
        )))
    }
}

/// What takes a host, or all of them, out of the rollback has to be explained to whoever reads the report.
fn check_reason(act: &Act, reason: &str) -> Result<(), Problem> {
    if reason.len() > MAX_REASON {
        return Err(Problem::new(Code::BadRequest, "the reason is longer than 4 KiB"));
    }
    let needed = match act {
        Act::Skip { .. } | Act::Abort { .. } => true,
        Act::Pause | Act::Resume | Act::Retry { .. } | Act::Approve { .. } => false,
    };
    if needed && reason.trim().is_empty() {
        return Err(Problem::new(Code::BadRequest, "skip and abort need a reason").remedy("say why: --reason TEXT"));
    }
    Ok(())
}

fn act_from_wire(act: Option<Wire>) -> Result<Act, Problem> {
    match act {
        None => Err(Problem::new(Code::BadRequest, "no act is given")),
        Some(Wire::Pause(_)) => Ok(Act::Pause),
        Some(Wire::Resume(_)) => Ok(Act::Resume),
        Some(Wire::Retry(retry)) => Ok(Act::Retry {
            hosts: hosts(retry.hosts)?,
        }),
        Some(Wire::Skip(skip)) => Ok(Act::Skip {
            hosts: hosts(skip.hosts)?,
        }),
        Some(Wire::Abort(abort)) => match abort.then() {
            Then::Undo => Ok(Act::Abort { then: AbortThen::Undo }),
            Then::Hold => Ok(Act::Abort { then: AbortThen::Hold }),
            Then::Unspecified => Err(Problem::new(
                Code::BadRequest,
                "an abort says what it leaves: everything undone, or everything held as it is",
            )
            .remedy("--undo or --hold")),
        },
        Some(Wire::Approve(approve)) => {
            if approve.plan_digest.is_empty() {
                return Err(Problem::new(
                    Code::BadRequest,
                    "an approval names the plan that was looked at, by its digest",
                ));
            }
            Ok(Act::Approve {
                digest: Digest(approve.plan_digest),
            })
        }
    }
}

fn hosts(names: Vec<String>) -> Result<BTreeSet<HostName>, Problem> {
    names
        .into_iter()
        .map(|name| {
            check_name("host", &name)?;
            Ok(HostName(name))
        })
        .collect()
}
