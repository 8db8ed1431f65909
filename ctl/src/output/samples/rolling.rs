//! Two applications that are drained from their proxy one after the other, and a fleet in the middle of it.

use rollback_proto::v1::outcome::Status;
use rollback_proto::v1::rollback_event::Kind;
use rollback_proto::v1::{
    Action, ComponentState, GetFleetResponse, GetRollbackResponse, Health, HostState, Outcome, Plan, PlanBatch,
    PlanLane, PlanPhase, PlanStep, RollbackEvent, RollbackState,
};

use super::{agent, details, event, fleet, plan_response, rev};

/// The moves of a lane: what is done to which component for app-1.
const LANE: [(&str, &str, Action); 5] = [
    ("proxy-1", "proxy", Action::Drain),
    ("app-1", "api", Action::Stop),
    ("app-1", "api", Action::Switch),
    ("app-1", "api", Action::Start),
    ("proxy-1", "proxy", Action::Resume),
];

fn backend(host: &str) -> String {
    if host == "proxy-1" {
        "app-1/api".to_owned()
    } else {
        String::new()
    }
}

pub fn plan() -> Plan {
    let batch = |number: u32, app: &str| {
        let steps = (0..).zip(LANE).map(|(i, (host, component, action))| PlanStep {
            id: number * 5 + i,
            host: host.replace("app-1", app),
            component: component.to_owned(),
            action: i32::from(action),
            undo: i32::from(action),
            backend: backend(host).replace("app-1", app),
            ..PlanStep::default()
        });
        PlanBatch {
            lanes: vec![PlanLane { steps: steps.collect() }],
        }
    };
    let mut plan = plan_response().plan.expect("has a plan");
    plan.schema_changes = false;
    plan.changes.retain(|c| c.component == "api");
    plan.phases = vec![PlanPhase {
        name: "app".to_owned(),
        on_failure: "undo".to_owned(),
        batches: vec![batch(0, "app-1"), batch(1, "app-2")],
        ..PlanPhase::default()
    }];
    plan
}

pub fn events() -> Vec<RollbackEvent> {
    let mut events = vec![RollbackEvent {
        phase: "app".to_owned(),
        ..event(1, 0, Kind::PhaseStarted)
    }];
    for (i, (host, component, action)) in (0_u32..).zip(LANE) {
        for (kind, seq, ms) in [(Kind::StepStarted, 2, 0), (Kind::StepSucceeded, 3, 40)] {
            events.push(RollbackEvent {
                phase: "app".to_owned(),
                step_id: i,
                host: host.to_owned(),
                component: component.to_owned(),
                action: i32::from(action),
                attempt: 1,
                backend: backend(host),
                ..event(u64::from(i) * 2 + seq, i64::from(i) * 100 + ms, kind)
            });
        }
    }
    events
}

/// A report whose first step drains a backend.
pub fn report() -> GetRollbackResponse {
    let mut details = details(RollbackState::Verified, false);
    details.plan = Some(plan());
    details.findings.clear();
    details.steps.truncate(2);
    for (step, action) in details.steps.iter_mut().zip([Action::Drain, Action::Resume]) {
        step.host = "proxy-1".to_owned();
        step.component = "proxy".to_owned();
        step.backend = "app-1/api".to_owned();
        step.action = i32::from(action);
        step.outcome = Some(Outcome {
            status: i32::from(Status::Succeeded),
            summary: "reloaded, 1 of 2 backends serves".to_owned(),
            ..Outcome::default()
        });
    }
    details
}

/// Users are served by app-2 alone.
pub fn fleet_with_a_backend_down() -> GetFleetResponse {
    let mut fleet = fleet();
    fleet.active.clear();
    fleet.hosts.truncate(1);
    fleet.hosts.push(HostState {
        agent: Some(agent("proxy-1", true)),
        states: vec![ComponentState {
            component: "proxy".to_owned(),
            revision: Some(rev("v3.0.0", "sha256:29cc01bc04de55")),
            health: i32::from(Health::Drained),
            detail: "master 91, 2 workers, 1 of 2 backends gets no requests: app-1/api".to_owned(),
            backends_out: vec!["app-1/api".to_owned()],
            ..ComponentState::default()
        }],
        problem: None,
    });
    fleet
}
