//! Planning, starting, listing and watching rollbacks.

use std::pin::Pin;

use opentelemetry::trace::TraceContextExt as _;
use rollback_engine::ids::{RollbackId, Target};
use rollback_engine::machine::{self, State};
use rollback_engine::plan::Plan;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_stream::Stream;
use tonic::{Request, Status};

use super::Api;
use crate::authority::caller;
use crate::leader::{Leader, Start};
use crate::projection::{self, Summary};
use crate::store::{Recorded, Store};
use crate::term::Term;
use crate::{convert, history, staleness};

const DEFAULT_LIST: u32 = 20;
const MAX_LIST: u32 = 1000;

type Events = Pin<Box<dyn Stream<Item = Result<v1::RollbackEvent, Status>> + Send>>;

impl Api {
    pub async fn start(
        &self,
        request: Request<v1::StartRollbackRequest>,
    ) -> Result<v1::StartRollbackResponse, Problem> {
        let started_by = caller(&request)?.identity.name;
        // The caller's own span, not that of this call: the rollback goes on long after this call has ended.
        let from_caller = rollback_proto::telemetry::extract(request.metadata());
        let caller_span = from_caller.span().span_context().clone();
        let request = request.into_inner();
        check_name("request id", &request.request_id)?;
        if request.reason.len() > 4096 || request.incident.len() > 256 {
            return Err(Problem::new(
                Code::BadRequest,
                "reason is longer than 4 KiB, or incident than 256 bytes",
            ));
        }
        let leader = self.leader()?;
        if let Some(id) = leader.started_before(&request.request_id).await? {
            return self.started(id).await;
        }
        let plan = self
            .plan_of_now(request.target, &request.sealed_plan, Some(&leader))
            .await?;
        if !request.plan_digest.is_empty() && plan.digest.0 != request.plan_digest {
            return Err(Problem::new(
                Code::PlanStale,
                format!(
                    "the plan of now is {}, not {} as agreed",
                    plan.digest, request.plan_digest
                ),
            ));
        }
        let (trace_id, parent_span_id) = if caller_span.is_valid() {
            (caller_span.trace_id().to_string(), caller_span.span_id().to_string())
        } else {
            // Nobody traces the caller: the rollback is a root of its own, under a random trace id.
            (hex::encode(rand::random::<[u8; 16]>()), String::new())
        };
        let id = leader
            .start(Start {
                plan,
                request_id: request.request_id,
                started_by,
                reason: request.reason,
                incident: request.incident,
                trace_id,
                parent_span_id,
                consent: request.consent.map(convert::consent_from_wire),
            })
            .await?;
        self.started(id).await
    }

    /// The plan for this target; of a plan that was saved: that one, when it still is the plan for its target.
    pub(super) async fn plan_of_now(
        &self,
        target: Option<v1::RollbackTarget>,
        sealed: &[u8],
        starting: Option<&Leader>,
    ) -> Result<Plan, Problem> {
        if sealed.is_empty() {
            return self.make_plan(target, starting).await;
        }
        let saved =
            Plan::open(sealed).map_err(|e| Problem::from_error(Code::BadPlanFile, "open the saved plan", &e))?;
        if let Some(leader) = starting {
            let targets: Vec<Target> = saved.body.changes.iter().map(|c| c.target.clone()).collect();
            leader.check_free(&targets).await?;
        }
        let now = match self.make_plan(target, starting).await {
            Ok(now) => now,
            // The fleet of now has no such plan at all: that, too, is staleness, and the message says what is in the way.
            Err(problem) if problem.code == Code::PlanRefused => {
                let moved = [problem.message];
                return Err(
                    staleness::refusal("the saved plan cannot be followed any more", &moved).remedy(problem.remedy)
                );
            }
            Err(problem) => return Err(problem),
        };
        if now.digest != saved.digest {
            let moved = staleness::changed(&saved.body, &now.body);
            return Err(staleness::refusal("the saved plan is not the plan of now", &moved));
        }
        Ok(saved)
    }

    /// Read back rather than remembered: a repeated request is answered with the plan that really runs.
    async fn started(&self, id: RollbackId) -> Result<v1::StartRollbackResponse, Problem> {
        let plan = history::state(self.store(), &id)
            .await?
            .plan()
            .map(convert::plan_to_wire);
        Ok(v1::StartRollbackResponse {
            rollback_id: id.0,
            plan,
        })
    }

    pub async fn list(&self, request: v1::ListRollbacksRequest) -> Result<v1::ListRollbacksResponse, Problem> {
        let limit = if request.limit == 0 {
            DEFAULT_LIST
        } else {
            request.limit.min(MAX_LIST)
        };
        let rollbacks = history::newest(self.store(), limit).await?;
        Ok(v1::ListRollbacksResponse {
            rollbacks: rollbacks.iter().map(Summary::to_wire).collect(),
        })
    }

    pub async fn report(&self, request: v1::GetRollbackRequest) -> Result<v1::GetRollbackResponse, Problem> {
        let id = self.rollback_called(&request.id).await?;
        let recorded = self.store().events(&id, 0).await?;
        let mut state = State::New;
        for r in &recorded {
            machine::apply(&mut state, &r.event).map_err(|e| history::unreadable(&id, &e))?;
        }
        let report = projection::report(&id, &state);
        let mut report = report.ok_or_else(|| Problem::new(Code::NotFound, format!("no rollback {id}")))?;
        // Nobody has asked the hosts yet; whoever approves is to know all the same what the plan's page said of its target.
        let awaited = state.summary().and_then(|view| view.approval);
        let awaited = awaited.is_some_and(|approval| approval.approved.is_none() && state.ending().is_none());
        if let (true, Some(plan)) = (awaited, state.plan()) {
            report.findings.extend(self.held(plan).await?);
        }
        if request.events {
            let events = recorded.iter().map(|r| projection::event(&state, r.seq, &r.event));
            report.events = events.collect();
        }
        Ok(report)
    }

    pub(super) async fn rollback_called(&self, name: &str) -> Result<RollbackId, Problem> {
        if name != "latest" {
            check_name("rollback", name)?;
            return Ok(name.into());
        }
        let newest = history::newest(self.store(), 1).await?;
        newest
            .into_iter()
            .next()
            .map(|s| s.id.into())
            .ok_or_else(|| Problem::new(Code::NotFound, "there has been no rollback"))
    }

    pub async fn watch(&self, request: v1::WatchRollbackRequest) -> Result<Events, Problem> {
        let id = self.rollback_called(&request.id).await?;
        // First the subscription, then the journal: nothing falls between them.
        let live = match self.leader() {
            Ok(leader) => match leader.subscribe(&id) {
                Some(events) => Live::Here(events, leader.shared().term.clone()),
                // It has ended, or it does not run here (yet): then the watcher asks again.
                None => Live::Elsewhere(Problem::new(
                    Code::NotLeader,
                    format!("rollback {id} does not run on this coordinator now"),
                )),
            },
            Err(problem) => Live::Elsewhere(problem),
        };
        let store = std::sync::Arc::clone(&self.replica.parts().store);
        let recorded = store.events(&id, 0).await?;
        let Some(first) = recorded.first() else {
            return Err(Problem::new(Code::NotFound, format!("no rollback {id}")));
        };
        let plan_state = State::replay([first.event.clone()]).map_err(|e| history::unreadable(&id, &e))?;
        let (tx, rx) = tokio::sync::mpsc::channel(WATCHED);
        let watcher = Watcher {
            seen: request.after_seq,
            plan_state,
            tx,
            store,
            id,
        };
        tokio::spawn(watcher.tell(recorded, live));
        Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(rx)))
    }
}

/// Events that wait for a watcher. One that reads slowly blocks its task, falls behind the live channel and then reads the
/// journal.
const WATCHED: usize = 64;

/// Where a rollback that has not ended can be watched.
enum Live {
    Here(broadcast::Receiver<v1::RollbackEvent>, Term),
    /// Says where to ask.
    Elsewhere(Problem),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    GoOn,
    /// The rollback has ended, or the watcher is gone.
    Over,
}

struct Watcher {
    /// The last event of the journal that was sent.
    seen: u64,
    plan_state: State,
    tx: tokio::sync::mpsc::Sender<Result<v1::RollbackEvent, Status>>,
    store: std::sync::Arc<dyn Store>,
    id: RollbackId,
}

impl Watcher {
    /// What the watcher has not seen yet, from the journal and then live.
    async fn tell(mut self, recorded: Vec<Recorded>, live: Live) {
        if self.journal(&recorded).await == Watch::Over {
            return;
        }
        match live {
            Live::Elsewhere(problem) => self.fail(problem).await,
            Live::Here(events, term) => self.follow(events, &term).await,
        }
    }

    async fn follow(&mut self, mut live: broadcast::Receiver<v1::RollbackEvent>, term: &Term) {
        loop {
            let received = tokio::select! {
                () = term.ended() => {
                    let problem = Problem::new(Code::NotLeader, "this coordinator does not lead any more");
                    return self.fail(problem).await;
                }
                received = live.recv() => received,
            };
            let over = match received {
                Ok(event) => self.live(event).await,
                Err(RecvError::Lagged(_) | RecvError::Closed) => match self.store.events(&self.id, self.seen).await {
                    Ok(missed) => match (self.journal(&missed).await, &received) {
                        (Watch::GoOn, Err(RecvError::Closed)) => {
                            let problem = Problem::new(Code::NotLeader, "the rollback stopped running here");
                            self.fail(problem).await;
                            Watch::Over
                        }
                        (over, _) => over,
                    },
                    Err(error) => {
                        self.fail(error.into()).await;
                        Watch::Over
                    }
                },
            };
            if over == Watch::Over {
                return;
            }
        }
    }

    async fn journal(&mut self, recorded: &[Recorded]) -> Watch {
        for r in recorded {
            let event = projection::event(&self.plan_state, r.seq, &r.event);
            if self.live(event).await == Watch::Over {
                return Watch::Over;
            }
        }
        Watch::GoOn
    }

    async fn live(&mut self, event: v1::RollbackEvent) -> Watch {
        let ended = event.kind() == v1::rollback_event::Kind::Ended;
        let is_progress = event.seq == 0;
        // A store that lost events may have an end with a number that the watcher has seen already.
        if is_progress || ended || event.seq > self.seen {
            self.seen = self.seen.max(event.seq);
            if self.tx.send(Ok(event)).await.is_err() {
                return Watch::Over;
            }
        }
        if ended { Watch::Over } else { Watch::GoOn }
    }

    async fn fail(&self, problem: Problem) {
        // The watcher may be gone, which is as good.
        let _ = self.tx.send(Err(problem.into())).await;
    }
}
