//! Whoever asks for the rollback: asks again until there is one, goes where the refusals point, and then wants to know how
//! it ended.

pub mod hands;

use std::sync::Arc;
use std::time::Duration;

use rollback_proto::problem::{Code, Hint, Problem};
use rollback_proto::v1;
use tonic::transport::Channel;
use v1::fleet_client::FleetClient;
use v1::{RollbackState, StartRollbackRequest};

use crate::network;
use crate::recorder::Seen;
use crate::seed::{PORT, RELEASE};
use crate::world::World;

/// Longer than a replica takes to plan and to write.
const DEADLINE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(700);

/// Asks until it was told how its rollback ended.
pub async fn run(world: Arc<World>, number: usize) -> turmoil::Result {
    // Somebody leads by then, unless harm came first; and two operators are rarely at it in the same second.
    tokio::time::sleep(Duration::from_millis(600 + 2500 * number as u64)).await;
    let mut operator = Operator {
        endpoints: world
            .seed
            .fleet
            .coordinators
            .iter()
            .map(|c| format!("{}:{PORT}", c.name))
            .collect(),
        at: number,
        client: None,
        world,
    };
    let id = operator.start(number).await;
    operator.world.recorder.note(Seen::Told {
        what: format!("operator {number}: {id} was started"),
    });
    let hands = match number {
        0 => operator.world.seed.hands.clone(),
        _ => Vec::new(),
    };
    let state = hands::steer_and_follow(&mut operator, &id, hands).await;
    operator.world.recorder.note(Seen::Told {
        what: format!("operator {number}: {id} ended {}", state.as_str_name()),
    });
    operator.world.told(&id, state);
    Ok(())
}

struct Operator {
    world: Arc<World>,
    endpoints: Vec<String>,
    /// Of `endpoints`.
    at: usize,
    client: Option<FleetClient<Channel>>,
}

impl Operator {
    async fn start(&mut self, number: usize) -> String {
        let request = StartRollbackRequest {
            target: Some(v1::RollbackTarget {
                release: RELEASE.to_owned(),
                runbook: self.world.seed.fleet.runbook.to_owned(),
                on_failure: if self.world.seed.pauses_on_failure {
                    v1::FailureChoice::Pause.into()
                } else {
                    v1::FailureChoice::Unspecified.into()
                },
                ..v1::RollbackTarget::default()
            }),
            reason: "the seed says so".to_owned(),
            request_id: format!("request-{number}"),
            ..StartRollbackRequest::default()
        };
        loop {
            let asked = match self.client().await {
                Ok(mut client) => {
                    let started = tokio::time::timeout(DEADLINE, client.start_rollback(request.clone())).await;
                    answered(started)
                }
                Err(problem) => Err(problem),
            };
            match asked {
                Ok(answer) => return answer.rollback_id,
                Err(problem) => self.go_on(&problem).await,
            }
        }
    }

    async fn look(&mut self, id: &str) -> Result<Look, Problem> {
        let mut client = self.client().await?;
        let request = v1::GetRollbackRequest {
            id: id.to_owned(),
            events: false,
        };
        let report = answered(tokio::time::timeout(DEADLINE, client.get_rollback(request)).await)?;
        let summary = report.summary.unwrap_or_default();
        Ok(match summary.state() {
            RollbackState::Unspecified | RollbackState::Running | RollbackState::Undoing => {
                Look::Runs(Box::new(summary))
            }
            state
            @ (RollbackState::Verified | RollbackState::Undone | RollbackState::Partial | RollbackState::Held) => {
                Look::Over(state)
            }
        })
    }

    async fn client(&mut self) -> Result<FleetClient<Channel>, Problem> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let endpoint = &self.endpoints[self.at % self.endpoints.len()];
        let client = FleetClient::new(network::connect(endpoint).await?);
        self.client = Some(client.clone());
        Ok(client)
    }

    /// To the leader, where the refusal names it; to the next replica, where it does not. A considered no of the leader
    /// (an agent does not answer, somebody else's rollback runs) is asked again.
    async fn go_on(&mut self, problem: &Problem) {
        tracing::debug!(%problem, "refused");
        let next = match &problem.hint {
            Some(Hint::Leader(leader)) => self.endpoints.iter().position(|endpoint| endpoint == leader),
            Some(Hint::Epoch(_)) | None => None,
        };
        let lost = matches!(
            problem.code,
            Code::NotLeader | Code::HostUnreachable | Code::StoreUnavailable | Code::Internal
        );
        if lost || next.is_some() {
            self.at = next.unwrap_or(self.at + 1);
            self.client = None;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// How the rollback stands.
enum Look {
    Runs(Box<v1::RollbackSummary>),
    Over(RollbackState),
}

fn answered<T>(
    answer: Result<Result<tonic::Response<T>, tonic::Status>, tokio::time::error::Elapsed>,
) -> Result<T, Problem> {
    match answer {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(Problem::from_status(&status)),
        Err(_) => Err(Problem::new(Code::HostUnreachable, "no answer")),
    }
}
