//! Made-up messages for the golden tests: the fleet of the runbooks, with something wrong everywhere.

pub mod operators;
pub mod restore;
pub mod rolling;

use jiff::Timestamp;
use rollback_proto::v1::rollback_event::Kind;
use rollback_proto::v1::{
    Action, AgentInfo, ComponentInfo, ComponentState, DatabaseChoice, Finding, GetFleetResponse, GetRollbackResponse,
    Health, HostState, Outcome, PhaseTiming, Plan, PlanBatch, PlanChange, PlanLane, PlanPhase, PlanRollbackResponse,
    PlanStep, Problem, Release, ReleaseEntry, Revision, Role, RollbackEvent, RollbackState, RollbackSummary, Severity,
    StepReport, outcome,
};

/// Compares with `tests/golden/NAME.txt`. After a wanted change: `INSTA_UPDATE=always cargo test -p rollbackctl`.
macro_rules! golden {
    ($name:literal, $text:expr) => {
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"),
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { insta::assert_snapshot!($name, $text) })
    };
}
pub(crate) use golden;

/// 2026-11-21 03:12:40 UTC.
const START: i64 = 1_795_230_760;

/// So many milliseconds after the start of the rollback.
pub fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(START * 1000 + ms).expect("in range")
}

pub fn proto_at(ms: i64) -> prost_types::Timestamp {
    let at = at(ms);
    prost_types::Timestamp {
        seconds: at.as_second(),
        nanos: at.subsec_nanosecond(),
    }
}

fn rev(version: &str, digest: &str) -> Revision {
    Revision {
        version: version.to_owned(),
        digest: digest.to_owned(),
    }
}

pub fn problem(code: &str, message: &str, remedy: &str) -> Problem {
    Problem {
        code: code.to_owned(),
        message: message.to_owned(),
        remedy: remedy.to_owned(),
    }
}

/// Host, component, role, digest at v2.9.0, digest at v3.0.0.
const COMPONENTS: [(&str, &str, Role, &str, &str); 6] = [
    (
        "app-1",
        "api",
        Role::App,
        "sha256:29aa01bc04de55",
        "sha256:30aa77bc04de55",
    ),
    (
        "app-1",
        "env",
        Role::Config,
        "sha256:29ee01bc04de55",
        "sha256:30ee77bc04de55",
    ),
    (
        "app-2",
        "api",
        Role::App,
        "sha256:29aa01bc04de55",
        "sha256:30aa77bc04de55",
    ),
    (
        "app-2",
        "env",
        Role::Config,
        "sha256:29ee01bc04de55",
        "sha256:30ee77bc04de55",
    ),
    (
        "db-1",
        "db",
        Role::Database,
        "sha256:29db01bc04de55",
        "sha256:30db77bc04de55",
    ),
    (
        "proxy-1",
        "proxy",
        Role::Proxy,
        "sha256:29cc01bc04de55",
        "sha256:29cc01bc04de55",
    ),
];

fn both(old: &str, new: &str) -> (Revision, Revision) {
    // The proxy's files stay: both releases call them by the same version.
    let version = if old == new { "v2.9.0" } else { "v3.0.0" };
    (rev(version, new), rev("v2.9.0", old))
}

fn agent(name: &str, connected: bool) -> AgentInfo {
    let components = COMPONENTS
        .iter()
        .filter(|(host, ..)| *host == name)
        .map(|(_, component, role, ..)| ComponentInfo {
            name: (*component).to_owned(),
            kind: "release-dir".to_owned(),
            role: i32::from(*role),
            capabilities: vec![i32::from(Action::Prepare), i32::from(Action::Switch)],
            reads: Vec::new(),
            upstreams: Vec::new(),
            restores: false,
        });
    AgentInfo {
        name: name.to_owned(),
        address: format!("{name}:7445"),
        version: "0.1.0".to_owned(),
        connected,
        last_seen: Some(proto_at(if connected { 3_000 } else { -190_000 })),
        components: components.collect(),
        labels: [("tier".to_owned(), "app".to_owned())].into(),
        certificate_expires: Some(proto_at(if connected { 200_000_000 } else { -60_000 })),
    }
}

/// v3.0.0 is everywhere, badly: app-1 is unhealthy, the database cannot be observed, proxy-1 is away.
pub fn fleet() -> GetFleetResponse {
    let state = |component: &str, revision: Revision, health: Health, detail: &str| ComponentState {
        component: component.to_owned(),
        revision: Some(revision),
        health: i32::from(health),
        detail: detail.to_owned(),
        ..ComponentState::default()
    };
    let app = |health, detail: &str| {
        vec![
            state("api", rev("v3.0.0", "sha256:30aa77bc04de55"), health, detail),
            state("env", rev("v3.0.0", "sha256:30ee77bc04de55"), Health::Unknown, ""),
        ]
    };
    let host = |name: &str, states| HostState {
        agent: Some(agent(name, true)),
        states,
        problem: None,
    };
    let database = ComponentState {
        component: "db".to_owned(),
        problem: Some(problem(
            "RB0700",
            "connect to zekka_production: password authentication failed",
            "",
        )),
        ..ComponentState::default()
    };
    let away = problem(
        "RB0300",
        "connect to proxy-1:7445: no route to host",
        "look at the host",
    );
    let running = details(RollbackState::Running, false).summary.expect("has a summary");
    GetFleetResponse {
        hosts: vec![
            host("app-1", app(Health::Unhealthy, "pid 812, 500 in 3 ms\u{1b}[2J")),
            host("app-2", app(Health::Healthy, "pid 640, 200 in 2 ms")),
            host("db-1", vec![database]),
            HostState {
                agent: Some(agent("proxy-1", false)),
                states: Vec::new(),
                problem: Some(away),
            },
        ],
        matches_release: String::new(),
        active: vec![running],
        ..GetFleetResponse::default()
    }
}

pub fn plan_response() -> PlanRollbackResponse {
    let changes: Vec<PlanChange> = COMPONENTS
        .iter()
        .map(|(host, component, role, old, new)| {
            let (from, to) = both(old, new);
            PlanChange {
                host: (*host).to_owned(),
                component: (*component).to_owned(),
                role: i32::from(*role),
                changes: from != to,
                restores: false,
                from_backup: false,
                left: None,
                from: Some(from),
                to: Some(to),
            }
        })
        .collect();
    let mut next = 0;
    let mut step = |host: &str, component: &str, action: Action, undo: Action| {
        next += 1;
        PlanStep {
            id: next - 1,
            host: host.to_owned(),
            component: component.to_owned(),
            action: i32::from(action),
            undo: i32::from(undo),
            ..PlanStep::default()
        }
    };
    let lane = |steps: Vec<PlanStep>| PlanLane { steps };
    let none = Action::Unspecified;
    let preflight = vec![
        lane(vec![step("app-1", "api", Action::Prepare, none)]),
        lane(vec![step("app-2", "api", Action::Prepare, none)]),
        lane(vec![step("db-1", "db", Action::Prepare, none)]),
    ];
    let protect = vec![lane(vec![step("db-1", "db", Action::Snapshot, none)])];
    let database = vec![lane(vec![step("db-1", "db", Action::Switch, Action::Switch)])];
    let mut app = |host: &str| {
        lane(vec![
            step(host, "env", Action::Switch, Action::Switch),
            step(host, "api", Action::Switch, Action::Switch),
            step(host, "api", Action::Start, Action::Stop),
        ])
    };
    let (first, second) = (app("app-1"), app("app-2"));
    let phase = |name: &str, on_failure: &str, batches: Vec<Vec<PlanLane>>| PlanPhase {
        name: name.to_owned(),
        on_failure: on_failure.to_owned(),
        batches: batches.into_iter().map(|lanes| PlanBatch { lanes }).collect(),
        ..PlanPhase::default()
    };
    let plan = Plan {
        digest: "sha256:77cc01bc04de55aa".to_owned(),
        release: "v2.9.0".to_owned(),
        runbook: "default@1".to_owned(),
        schema_changes: true,
        phases: vec![
            phase("preflight", "undo", vec![preflight]),
            phase("protect", "undo", vec![protect]),
            phase("database", "undo", vec![database]),
            phase("app", "undo", vec![vec![first], vec![second]]),
        ],
        changes,
        excused: Vec::new(),
        database: i32::from(DatabaseChoice::Auto),
        ..Plan::default()
    };
    PlanRollbackResponse {
        plan: Some(plan),
        findings: findings(),
        ..PlanRollbackResponse::default()
    }
}

pub fn plan_without_changes() -> Plan {
    let mut plan = plan_response().plan.expect("has a plan");
    plan.schema_changes = false;
    plan.phases.clear();
    for change in &mut plan.changes {
        change.changes = false;
        change.from = change.to.clone();
    }
    plan
}

/// What a rollback that was held leaves: all at the target, app-1 stopped, the proxy drained.
pub fn plan_that_restores() -> Plan {
    let mut plan = plan_without_changes();
    for change in &mut plan.changes {
        change.restores = ["api", "proxy"].contains(&change.component.as_str()) && change.host != "app-2";
    }
    plan
}

/// At a release in name: the app is stopped on app-1, and the proxy answers with the maintenance page.
pub fn fleet_in_maintenance() -> GetFleetResponse {
    let mut fleet = fleet();
    fleet.matches_release = "v3.0.0".to_owned();
    fleet.active.clear();
    fleet.hosts.remove(2);
    fleet.hosts[0].states[0].health = i32::from(Health::Stopped);
    fleet.hosts[0].states[0].detail = "the process does not run".to_owned();
    fleet.hosts[2] = HostState {
        agent: Some(agent("proxy-1", true)),
        states: vec![ComponentState {
            component: "proxy".to_owned(),
            revision: Some(rev("v3.0.0", "sha256:29cc01bc04de55")),
            health: i32::from(Health::Drained),
            detail: "master 91, 2 workers, users get the maintenance answer".to_owned(),
            ..ComponentState::default()
        }],
        problem: None,
    };
    fleet
}

pub fn findings() -> Vec<Finding> {
    let finding = |severity: Severity, code: &str, host: &str, component: &str, message: &str, remedy: &str| Finding {
        severity: i32::from(severity),
        code: code.to_owned(),
        host: host.to_owned(),
        component: component.to_owned(),
        message: message.to_owned(),
        remedy: remedy.to_owned(),
        loss: None,
    };
    vec![
        finding(Severity::Ok, "", "app-1", "api", "v2.9.0 is on the host", ""),
        finding(
            Severity::Warning,
            "RB0503",
            "app-1",
            "api",
            "3.1 GB free, 2.9 GB needed",
            "free disk space",
        ),
        finding(
            Severity::Blocker,
            "RB0501",
            "app-2",
            "api",
            "/opt/zekka/releases/v2.9.0 is neither on the host nor in the vault",
            "put the release back on the host, or roll back to another one",
        ),
        finding(Severity::Ok, "", "db-1", "db", "backup rehearsed", ""),
    ]
}

fn event(seq: u64, ms: i64, kind: Kind) -> RollbackEvent {
    RollbackEvent {
        seq,
        at: Some(proto_at(ms)),
        kind: i32::from(kind),
        fraction: -1.0,
        ..RollbackEvent::default()
    }
}

/// How many of [`undone_events`] end with a running step that speaks.
pub const EVENTS_UNTIL_PROGRESS: usize = 13;

/// Preflight, protect and database succeed; api on app-1 never gets healthy; everything is undone.
pub fn undone_events() -> Vec<RollbackEvent> {
    let mut events = vec![RollbackEvent {
        message: "by admin".to_owned(),
        ..event(0, 0, Kind::Created)
    }];
    let phase = |ms, kind, name: &str| RollbackEvent {
        phase: name.to_owned(),
        ..event(0, ms, kind)
    };
    let step = |ms, kind, phase: &str, id, host: &str, component: &str, action: Action| RollbackEvent {
        phase: phase.to_owned(),
        step_id: id,
        host: host.to_owned(),
        component: component.to_owned(),
        action: i32::from(action),
        attempt: 1,
        ..event(0, ms, kind)
    };
    use Kind::{PhaseEnded, PhaseStarted, StepFailed, StepStarted, StepSucceeded};
    events.push(phase(1, PhaseStarted, "preflight"));
    events.push(step(2, StepStarted, "preflight", 0, "app-1", "api", Action::Prepare));
    events.push(step(
        120,
        StepSucceeded,
        "preflight",
        0,
        "app-1",
        "api",
        Action::Prepare,
    ));
    events.push(phase(121, PhaseEnded, "preflight"));
    events.push(phase(8_000, PhaseStarted, "app"));
    events.push(RollbackEvent {
        batch: 0,
        ..phase(8_001, Kind::BatchStarted, "app")
    });
    events.push(step(8_002, StepStarted, "app", 5, "app-1", "env", Action::Switch));
    events.push(step(8_010, StepSucceeded, "app", 5, "app-1", "env", Action::Switch));
    events.push(step(8_011, StepStarted, "app", 6, "app-1", "api", Action::Switch));
    events.push(step(8_030, StepSucceeded, "app", 6, "app-1", "api", Action::Switch));
    events.push(step(8_031, StepStarted, "app", 7, "app-1", "api", Action::Start));
    let mut says = step(9_000, Kind::Progress, "app", 7, "app-1", "api", Action::Start);
    says.message = "waiting for 200 from /api/health: 503".to_owned();
    says.fraction = 0.25;
    events.push(says.clone());
    // The same again: not worth a line.
    events.push(says);
    let unhealthy = problem(
        "RB0500",
        "/api/health answered 503 for 30 s",
        "read the application's log on the host",
    );
    let mut failed = step(38_031, StepFailed, "app", 7, "app-1", "api", Action::Start);
    failed.problem = Some(unhealthy.clone());
    events.push(failed);
    events.push(RollbackEvent {
        problem: Some(unhealthy),
        ..event(0, 38_032, Kind::UndoStarted)
    });
    let back = |event: RollbackEvent| RollbackEvent { undo: true, ..event };
    events.push(back(step(
        38_033,
        StepStarted,
        "app",
        6,
        "app-1",
        "api",
        Action::Switch,
    )));
    let mut undone = back(step(38_050, StepSucceeded, "app", 6, "app-1", "api", Action::Switch));
    undone.observed = Some(rev("v3.0.0", "sha256:30aa77bc04de55"));
    events.push(undone);
    events.push(RollbackEvent {
        state: i32::from(RollbackState::Undone),
        ..event(0, 41_000, Kind::Ended)
    });
    let mut seq = 0;
    for event in events.iter_mut().filter(|e| e.kind != i32::from(Kind::Progress)) {
        seq += 1;
        event.seq = seq;
    }
    events
}

/// One phase in which a hundred hosts work at once.
pub fn a_hundred_hosts() -> Vec<RollbackEvent> {
    let begin = RollbackEvent {
        phase: "stage".to_owned(),
        ..event(1, 0, Kind::PhaseStarted)
    };
    let steps = (0..100_u32).map(|n| RollbackEvent {
        phase: "stage".to_owned(),
        step_id: n,
        host: format!("app-{n:03}"),
        component: "api".to_owned(),
        action: i32::from(Action::Stage),
        ..event(u64::from(n) + 2, i64::from(n), Kind::StepStarted)
    });
    std::iter::once(begin).chain(steps).collect()
}

pub fn details(state: RollbackState, blocked: bool) -> GetRollbackResponse {
    let over = crate::output::words::is_over(state);
    let unhealthy = problem(
        "RB0500",
        "start of app-1/api: /api/health answered 503 for 30 s",
        "read the log",
    );
    let ended = |ms| over.then(|| proto_at(ms));
    let summary = RollbackSummary {
        id: "0193a5c2-7d10-7b3e-9f60-4a5b6c7d8e9f".to_owned(),
        release: "v2.9.0".to_owned(),
        runbook: "default@1".to_owned(),
        state: i32::from(state),
        blocked,
        phase: "app".to_owned(),
        started_by: "ana".to_owned(),
        reason: "error rate 12 %".to_owned(),
        incident: "INC-4711".to_owned(),
        started_at: Some(proto_at(0)),
        ended_at: ended(41_000),
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
        steps_total: 11,
        steps_done: 7,
        problem: (over && state != RollbackState::Verified).then(|| unhealthy.clone()),
        failed_hosts: if state == RollbackState::Partial {
            vec!["app-1".to_owned()]
        } else {
            Vec::new()
        },
        consent: None,
        ..RollbackSummary::default()
    };
    let timing = |name: &str, start, end| PhaseTiming {
        name: name.to_owned(),
        started_at: Some(proto_at(start)),
        ended_at: Some(proto_at(end)),
    };
    let step = |id, ms: i64, took: i64, undo, action: Action, problem: Option<Problem>| StepReport {
        id,
        undo,
        attempt: 1,
        phase: "app".to_owned(),
        host: "app-1".to_owned(),
        component: "api".to_owned(),
        action: i32::from(action),
        started_at: Some(proto_at(ms)),
        ended_at: Some(proto_at(ms + took)),
        backend: String::new(),
        outcome: Some(Outcome {
            status: i32::from(if problem.is_some() {
                outcome::Status::Failed
            } else {
                outcome::Status::Succeeded
            }),
            problem,
            summary: "renamed in 2 ms".to_owned(),
            ..Outcome::default()
        }),
    };
    GetRollbackResponse {
        summary: Some(summary),
        plan: plan_response().plan,
        phases: vec![timing("preflight", 1, 121), timing("app", 8_000, 38_032)],
        steps: vec![
            step(6, 8_011, 19, false, Action::Switch, None),
            step(7, 8_031, 30_000, false, Action::Start, Some(unhealthy)),
            step(6, 38_033, 17, true, Action::Switch, None),
        ],
        findings: findings(),
        ..GetRollbackResponse::default()
    }
}

pub fn release(name: &str) -> Release {
    let old = name == "v2.9.0";
    let entries = COMPONENTS.iter().map(|(host, component, role, at_old, at_new)| {
        let (new, at_target) = both(at_old, at_new);
        ReleaseEntry {
            host: (*host).to_owned(),
            component: (*component).to_owned(),
            role: i32::from(*role),
            revision: Some(if old { at_target } else { new }),
            summary: "vault, 214 files, 3.1 MB".to_owned(),
        }
    });
    Release {
        name: name.to_owned(),
        commit: "77aa5c2f0e1d2c3b4a5968778695a4b3c2d1e0f9".to_owned(),
        notes: if old {
            "last known good".to_owned()
        } else {
            String::new()
        },
        recorded_at: Some(proto_at(if old { -90_000_000 } else { -3_600_000 })),
        recorded_by: "ana".to_owned(),
        entries: entries.collect(),
        stable: old,
        digest: "sha256:5511".to_owned(),
        ..Release::default()
    }
}
