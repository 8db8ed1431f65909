//! A small rollback: two hosts, two phases.

use rollback_proto::v1::rollback_event::Kind;
use rollback_proto::v1::{
    Action, AgentInfo, ComponentState, DatabaseChoice, Finding, GetFleetResponse, GetRollbackResponse, Health,
    HostState, PhaseTiming, Plan, PlanBatch, PlanChange, PlanLane, PlanPhase, PlanStep, Problem, Revision, Role,
    RollbackEvent, RollbackState, RollbackSummary, Severity,
};

pub const ID: &str = "0193a5c2-7d10-7b3e-9f60-4a5b6c7d8e9f";
/// 2026-11-21 03:12:40 UTC.
const START: i64 = 1_795_230_760;

fn at(seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: START + seconds,
        nanos: 0,
    }
}

fn revision(version: &str) -> Revision {
    Revision {
        version: version.to_owned(),
        digest: format!("sha256:{version}"),
    }
}

pub fn plan(changes: bool) -> Plan {
    let step = |id, host: &str| PlanLane {
        steps: vec![PlanStep {
            id,
            host: host.to_owned(),
            component: "api".to_owned(),
            action: i32::from(Action::Switch),
            undo: i32::from(Action::Switch),
            ..PlanStep::default()
        }],
    };
    let change = |host: &str| PlanChange {
        host: host.to_owned(),
        component: "api".to_owned(),
        role: i32::from(Role::App),
        from: Some(revision(if changes { "v3.0.0" } else { "v2.9.0" })),
        to: Some(revision("v2.9.0")),
        changes,
        restores: false,
        from_backup: false,
        left: None,
    };
    Plan {
        digest: "sha256:77cc".to_owned(),
        release: "v2.9.0".to_owned(),
        runbook: "default@1".to_owned(),
        schema_changes: false,
        phases: vec![PlanPhase {
            name: "app".to_owned(),
            batches: vec![PlanBatch {
                lanes: vec![step(0, "app-1"), step(1, "app-2")],
            }],
            on_failure: "undo".to_owned(),
            ..PlanPhase::default()
        }],
        changes: vec![change("app-1"), change("app-2")],
        excused: Vec::new(),
        database: i32::from(DatabaseChoice::Auto),
        ..Plan::default()
    }
}

pub fn blocker() -> Finding {
    Finding {
        severity: i32::from(Severity::Blocker),
        code: "RB0501".to_owned(),
        message: "v2.9.0 is neither on the host nor in the vault".to_owned(),
        remedy: "put the release back on the host".to_owned(),
        host: "app-2".to_owned(),
        component: "api".to_owned(),
        loss: None,
    }
}

fn event(seq: u64, kind: Kind) -> RollbackEvent {
    let second = i64::try_from(seq).expect("small");
    RollbackEvent {
        seq,
        at: Some(at(second)),
        kind: i32::from(kind),
        ..RollbackEvent::default()
    }
}

fn step(seq: u64, kind: Kind, id: u32, host: &str) -> RollbackEvent {
    RollbackEvent {
        phase: "app".to_owned(),
        step_id: id,
        host: host.to_owned(),
        component: "api".to_owned(),
        action: i32::from(Action::Switch),
        attempt: 1,
        ..event(seq, kind)
    }
}

/// What a running step says; not in the journal.
pub fn progress(message: &str) -> RollbackEvent {
    RollbackEvent {
        seq: 0,
        message: message.to_owned(),
        ..step(0, Kind::Progress, 0, "app-1")
    }
}

/// Eight events, the last of them the end.
pub fn journal(state: RollbackState, blocked: bool) -> Vec<RollbackEvent> {
    let phase = |seq, kind| RollbackEvent {
        phase: "app".to_owned(),
        ..event(seq, kind)
    };
    vec![
        event(1, Kind::Created),
        phase(2, Kind::PhaseStarted),
        step(3, Kind::StepStarted, 0, "app-1"),
        step(4, Kind::StepStarted, 1, "app-2"),
        step(5, Kind::StepSucceeded, 0, "app-1"),
        step(6, Kind::StepSucceeded, 1, "app-2"),
        phase(7, Kind::PhaseEnded),
        RollbackEvent {
            state: i32::from(state),
            blocked,
            ..event(8, Kind::Ended)
        },
    ]
}

/// The summary that fits to [`journal`].
pub fn ending(state: RollbackState, blocked: bool) -> RollbackSummary {
    let problem = Problem {
        code: "RB0500".to_owned(),
        message: "start of app-1/api: answered 503 for 30 s".to_owned(),
        remedy: "read the application's log".to_owned(),
    };
    RollbackSummary {
        id: ID.to_owned(),
        release: "v2.9.0".to_owned(),
        runbook: "default@1".to_owned(),
        state: i32::from(state),
        blocked,
        phase: "app".to_owned(),
        started_by: "ana".to_owned(),
        started_at: Some(at(1)),
        ended_at: Some(at(8)),
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
        steps_total: 2,
        steps_done: 2,
        problem: (state != RollbackState::Verified).then_some(problem),
        failed_hosts: if state == RollbackState::Partial {
            vec!["app-2".to_owned()]
        } else {
            Vec::new()
        },
        ..RollbackSummary::default()
    }
}

pub fn details(state: RollbackState, blocked: bool) -> GetRollbackResponse {
    let app = PhaseTiming {
        name: "app".to_owned(),
        started_at: Some(at(2)),
        ended_at: Some(at(7)),
    };
    GetRollbackResponse {
        summary: Some(ending(state, blocked)),
        plan: Some(plan(true)),
        phases: vec![app],
        steps: Vec::new(),
        findings: if blocked { vec![blocker()] } else { Vec::new() },
        ..GetRollbackResponse::default()
    }
}

pub fn fleet() -> GetFleetResponse {
    let agent = |name: &str| {
        Some(AgentInfo {
            name: name.to_owned(),
            connected: true,
            ..AgentInfo::default()
        })
    };
    let api = ComponentState {
        component: "api".to_owned(),
        revision: Some(revision("v3.0.0")),
        health: i32::from(Health::Unhealthy),
        ..ComponentState::default()
    };
    let away = Problem {
        code: "RB0300".to_owned(),
        message: "no route to host".to_owned(),
        remedy: "look".to_owned(),
    };
    GetFleetResponse {
        hosts: vec![
            HostState {
                agent: agent("app-1"),
                states: vec![api],
                problem: None,
            },
            HostState {
                agent: agent("app-2"),
                states: Vec::new(),
                problem: Some(away),
            },
        ],
        matches_release: "v3.0.0".to_owned(),
        active: Vec::new(),
        ..GetFleetResponse::default()
    }
}
