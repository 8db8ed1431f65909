//! What operators do while their rollbacks run: the acts of the seed, and then whatever brings one that stands still to an
//! end. An act whose answer was lost is asked for again in the same words, as `rollbackctl` does.

use rollback_engine::event::{AbortThen, Act};
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use rollback_proto::v1::RollbackState;
use rollback_proto::v1::steer_rollback_request as wire;

use super::{DEADLINE, Look, Operator, PAUSE, answered};
use crate::recorder::Seen;
use crate::seed::Hand;

/// In this order, until one is taken; the last one always is.
const WAYS_ON: [Act; 3] = [
    Act::Resume,
    Act::Abort { then: AbortThen::Undo },
    Act::Abort { then: AbortThen::Hold },
];

/// Until it has ended.
pub(super) async fn steer_and_follow(operator: &mut Operator, id: &str, hands: Vec<Hand>) -> RollbackState {
    for Hand { pause, act } in hands {
        tokio::time::sleep(pause).await;
        // What does not fit now is refused, and that is that.
        if let Err(problem) = act_on(operator, id, &act).await {
            tracing::debug!(%problem, ?act, "refused");
        }
    }
    loop {
        match operator.look(id).await {
            Ok(Look::Over(state)) => return state,
            Ok(Look::Runs(summary)) => {
                if summary.standstill.is_some() {
                    for way in &WAYS_ON {
                        if act_on(operator, id, way).await.is_ok() {
                            break;
                        }
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(problem) => operator.go_on(&problem).await,
        }
    }
}

/// Until it is taken, or refused for what it is.
async fn act_on(operator: &mut Operator, id: &str, act: &Act) -> Result<(), Problem> {
    loop {
        let request = v1::SteerRollbackRequest {
            id: id.to_owned(),
            reason: "the seed says so".to_owned(),
            act: Some(to_wire(act)),
        };
        let asked = match operator.client().await {
            Ok(mut client) => answered(tokio::time::timeout(DEADLINE, client.steer_rollback(request)).await),
            Err(problem) => Err(problem),
        };
        match asked {
            Ok(_) => {
                operator.world.recorder.note(Seen::Acted {
                    rollback: id.into(),
                    act: name(act).to_owned(),
                });
                return Ok(());
            }
            Err(problem) if matches!(problem.code, Code::ActUnfit | Code::ApprovalRefused) => return Err(problem),
            Err(problem) => operator.go_on(&problem).await,
        }
    }
}

/// For the record.
pub fn name(act: &Act) -> &'static str {
    match act {
        Act::Pause => "pause",
        Act::Resume => "resume",
        Act::Retry { .. } => "retry",
        Act::Skip { .. } => "skip",
        Act::Abort { then: AbortThen::Undo } => "abort and undo",
        Act::Abort { then: AbortThen::Hold } => "abort and hold",
        Act::Approve { .. } => "approve",
    }
}

fn to_wire(act: &Act) -> wire::Act {
    let abort = |then: wire::abort::Then| wire::Act::Abort(wire::Abort { then: then.into() });
    match act {
        Act::Pause => wire::Act::Pause(wire::Pause {}),
        Act::Resume => wire::Act::Resume(wire::Resume {}),
        Act::Retry { hosts } => wire::Act::Retry(wire::Retry {
            hosts: hosts.iter().map(|h| h.0.clone()).collect(),
        }),
        Act::Skip { hosts } => wire::Act::Skip(wire::Skip {
            hosts: hosts.iter().map(|h| h.0.clone()).collect(),
        }),
        Act::Abort { then: AbortThen::Undo } => abort(wire::abort::Then::Undo),
        Act::Abort { then: AbortThen::Hold } => abort(wire::abort::Then::Hold),
        Act::Approve { digest } => wire::Act::Approve(wire::Approve {
            plan_digest: digest.0.clone(),
        }),
    }
}
