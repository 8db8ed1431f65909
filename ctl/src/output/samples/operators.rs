//! What operators do to a rollback and to plans: scope, approval, estimates, acts, and a fleet of a thousand hosts.

use rollback_proto::v1::rollback_event::Kind;
use rollback_proto::v1::{
    Action, Approval, Drift, Estimate, Finding, GetRollbackResponse, Hold, Operation, Outcome, PhaseTiming, Plan,
    PlanBatch, PlanExcused, PlanLane, PlanRollbackResponse, Receipt, RollbackEvent, RollbackState, RollbackSummary,
    Scope, Severity, Spread, Standstill, StepReport, outcome,
};

use super::{details as plain_details, plan_response as plain_response, problem, proto_at, rev};

fn seconds(s: i64, ms: i32) -> prost_types::Duration {
    prost_types::Duration {
        seconds: s,
        nanos: ms * 1_000_000,
    }
}

fn spread(least: i64, median: i64, most: i64) -> Spread {
    Spread {
        least: Some(seconds(least, 0)),
        median: Some(seconds(median, 500)),
        most: Some(seconds(most, 0)),
    }
}

fn scope() -> Scope {
    Scope {
        services: vec!["api".to_owned()],
        labels: vec!["tier=app".to_owned()],
        exclude_hosts: vec!["app-9".to_owned()],
        ..Scope::default()
    }
}

/// Only the applications, one of whose hosts is away; a second operator has to approve, and the target is held.
pub fn scoped_plan() -> PlanRollbackResponse {
    let mut response = plain_response();
    let plan = response.plan.as_mut().expect("has a plan");
    plan.schema_changes = false;
    plan.changes.retain(|c| c.component != "db");
    let proxy = plan
        .changes
        .iter_mut()
        .find(|c| c.component == "proxy")
        .expect("has one");
    proxy.from = Some(rev("v3.0.0", "sha256:30cc01bc04de55"));
    proxy.to.clone_from(&proxy.from);
    proxy.left = Some(rev("v2.9.0", "sha256:29cc01bc04de55"));
    plan.phases.retain(|p| p.name == "preflight" || p.name == "app");
    plan.phases[1].on_failure = "continue".to_owned();
    plan.phases[1].max_unavailable = 1;
    plan.scope = Some(scope());
    plan.outside = 2;
    plan.approve_within = Some(seconds(900, 0));
    plan.excused = vec![PlanExcused {
        host: "app-3".to_owned(),
        reason: "no route to host; runbook default leaves out one host at most".to_owned(),
    }];
    response.findings.retain(|f| f.severity != i32::from(Severity::Blocker));
    response.findings.push(Finding {
        severity: i32::from(Severity::Warning),
        code: "RB0209".to_owned(),
        message: "v2.9.0 is held since 2026-11-20 22:10:00Z by ana: leaks file handles".to_owned(),
        ..Finding::default()
    });
    response.estimate = Some(Estimate {
        samples: 5,
        total: Some(spread(48, 62, 81)),
        downtime: None,
    });
    response
}

/// The schema changes, and history knows how long that takes.
pub fn plan_with_history() -> PlanRollbackResponse {
    let mut response = plain_response();
    response.findings.retain(|f| f.severity != i32::from(Severity::Blocker));
    let plan = response.plan.as_mut().expect("has a plan");
    let database = plan.phases.iter_mut().find(|p| p.name == "database").expect("has one");
    database.batches[0].lanes[0].steps[0].irreversible = true;
    response.estimate = Some(Estimate {
        samples: 1,
        total: Some(Spread {
            least: Some(seconds(41, 0)),
            median: Some(seconds(41, 0)),
            most: Some(seconds(41, 0)),
        }),
        downtime: Some(spread(8, 11, 14)),
    });
    response
}

/// A thousand hosts that do the same in ten batches; on two of them there is no room.
pub fn a_thousand_hosts() -> PlanRollbackResponse {
    let mut response = plain_response();
    let plan = response.plan.as_mut().expect("has a plan");
    let api = plan.changes[0].clone();
    let hosts: Vec<String> = (1..=1000).map(|n| format!("app-{n:04}")).collect();
    plan.changes.retain(|c| c.host == "db-1" || c.host == "proxy-1");
    plan.changes.extend(hosts.iter().map(|host| {
        let mut change = api.clone();
        change.host.clone_from(host);
        change
    }));
    let lane = plan.phases[3].batches[0].lanes[0].clone();
    let of = |host: &String| PlanLane {
        steps: lane
            .steps
            .iter()
            .map(|s| {
                let mut step = s.clone();
                step.host.clone_from(host);
                step
            })
            .collect(),
    };
    plan.phases[3].batches = hosts
        .chunks(100)
        .map(|hosts| PlanBatch {
            lanes: hosts.iter().map(of).collect(),
        })
        .collect();
    let full = response.findings[1].clone();
    response.findings = hosts[..40]
        .iter()
        .map(|host| {
            let mut finding = full.clone();
            finding.host.clone_from(host);
            finding
        })
        .collect();
    let mut blocker = full;
    blocker.severity = i32::from(Severity::Blocker);
    for host in &hosts[10..12] {
        blocker.host.clone_from(host);
        response.findings.push(blocker.clone());
    }
    response
}

/// A rollback that was paused, retried and skipped by operators, and ended without one host.
pub fn steered() -> GetRollbackResponse {
    let mut details = plain_details(RollbackState::Partial, false);
    let summary = details.summary.as_mut().expect("has a summary");
    summary.skipped_hosts = vec!["app-2".to_owned()];
    summary.failed_hosts = vec!["app-2".to_owned()];
    summary.scope = Some(scope());
    summary.approval = Some(approval(Some("ben")));
    summary.ended_at = Some(proto_at(312_000));
    details.plan = scoped_plan().plan;
    let timing = |name: &str, start, end| PhaseTiming {
        name: name.to_owned(),
        started_at: Some(proto_at(start)),
        ended_at: Some(proto_at(end)),
    };
    details.phases = vec![
        timing("preflight", 1, 121),
        timing("protect", 122, 7_760),
        timing("app", 8_000, 310_900),
        timing("verify", 310_950, 311_100),
    ];
    let unhealthy = details.steps[1].outcome.as_ref().and_then(|o| o.problem.clone());
    details.steps = steps();
    details.events = vec![
        RollbackEvent {
            by: "ana".to_owned(),
            reason: "error rate 12 %".to_owned(),
            message: "ana rolls back to v2.9.0: error rate 12 %".to_owned(),
            ..act(1, 0, Kind::Created, "", "")
        },
        act(2, 1_000, Kind::Approved, "ben", "looked at it with ana"),
        RollbackEvent {
            problem: unhealthy,
            hosts: vec!["app-2".to_owned()],
            ..act(9, 38_100, Kind::Paused, "", "")
        },
        RollbackEvent {
            hosts: vec!["app-2".to_owned()],
            ..act(10, 121_000, Kind::Retried, "ana", "the port was taken | freed now")
        },
        RollbackEvent {
            hosts: vec!["app-2".to_owned()],
            ..act(15, 300_000, Kind::Skipped, "ben", "its disk is gone")
        },
        RollbackEvent {
            state: i32::from(RollbackState::Partial),
            ..act(20, 312_000, Kind::Ended, "", "")
        },
    ];
    details
}

fn act(seq: u64, ms: i64, kind: Kind, by: &str, reason: &str) -> RollbackEvent {
    RollbackEvent {
        seq,
        at: Some(proto_at(ms)),
        kind: i32::from(kind),
        by: by.to_owned(),
        reason: reason.to_owned(),
        ..RollbackEvent::default()
    }
}

fn approval(by: Option<&str>) -> Approval {
    Approval {
        expires_at: Some(proto_at(900_000)),
        approved_by: by.unwrap_or_default().to_owned(),
        approved_at: by.map(|_| proto_at(1_000)),
        plan_digest: "sha256:77cc01bc04de55aa".to_owned(),
    }
}

/// One that stands still: who is asked for, why, and what is left in flight.
pub fn standing_still(by: &str) -> RollbackSummary {
    let mut summary = plain_details(RollbackState::Running, false)
        .summary
        .expect("has a summary");
    let failed = problem("RB0500", "start of app-2/api: answered 503 for 30 s", "read the log");
    summary.standstill = Some(Standstill {
        since: Some(proto_at(38_100)),
        by: by.to_owned(),
        reason: if by.is_empty() {
            String::new()
        } else {
            "looking at the graphs".to_owned()
        },
        problem: by.is_empty().then_some(failed),
        failed_hosts: if by.is_empty() {
            vec!["app-2".to_owned()]
        } else {
            Vec::new()
        },
        in_flight: 1,
    });
    summary
}

/// One that waits for a second operator.
pub fn awaiting_approval() -> RollbackSummary {
    let mut summary = standing_still("");
    summary.standstill = None;
    summary.steps_done = 0;
    summary.phase = "preflight".to_owned();
    summary.approval = Some(approval(None));
    summary.undo_of = "0193a5c2-0000-7b3e-9f60-4a5b6c7d8e9f".to_owned();
    summary
}

fn operation(name: &str, ms: i32) -> Operation {
    Operation {
        name: name.to_owned(),
        duration: Some(seconds(i64::from(ms / 1000), ms % 1000)),
    }
}

/// Preflight, a backup, and an application on two hosts whose second one fails twice.
fn steps() -> Vec<StepReport> {
    let step = |id: u32, phase: &str, host: &str, component: &str, action: Action, ms: i64, took: i64| StepReport {
        id,
        attempt: 1,
        phase: phase.to_owned(),
        host: host.to_owned(),
        component: component.to_owned(),
        action: i32::from(action),
        started_at: Some(proto_at(ms)),
        ended_at: Some(proto_at(ms + took)),
        outcome: Some(Outcome {
            status: i32::from(outcome::Status::Succeeded),
            ..Outcome::default()
        }),
        ..StepReport::default()
    };
    let mut snapshot = step(3, "protect", "db-1", "db", Action::Snapshot, 150, 7_600);
    let told = snapshot.outcome.as_mut().expect("has one");
    told.operations = vec![
        operation("pg_dump", 4_100),
        operation("restore into a copy", 3_200),
        operation("fsync", 90),
    ];
    told.receipt = Some(Receipt {
        path: "/var/lib/rollback-agent/backups/db-20261121T031240Z".to_owned(),
        sha256: "29db01bc04de5529db01bc04de5529db01bc04de5529db01bc04de5529db01bc".to_owned(),
        bytes: 52_428_800,
        verified: "restore".to_owned(),
        tables: 12,
        rows: 120_431,
        taken_at: "2026-11-21T03:12:40Z".to_owned(),
    });
    let mut switch = step(5, "app", "app-1", "api", Action::Switch, 8_002, 412);
    switch.outcome.as_mut().expect("has one").observed = Some(rev("v2.9.0", "sha256:29aa01bc04de55"));
    switch.outcome.as_mut().expect("has one").operations =
        vec![operation("rename", 2), operation("docker create", 310)];
    let failing = |attempt: u32, ms: i64, took: i64| {
        let mut start = step(8, "app", "app-2", "api", Action::Start, ms, took);
        start.attempt = attempt;
        start.outcome = Some(Outcome {
            status: i32::from(outcome::Status::Failed),
            problem: Some(problem("RB0500", "answered 503 for 30 s", "read the application's log")),
            ..Outcome::default()
        });
        start
    };
    vec![
        step(0, "preflight", "app-1", "api", Action::Prepare, 2, 118),
        step(1, "preflight", "app-2", "api", Action::Prepare, 2, 96),
        snapshot,
        switch,
        step(6, "app", "app-1", "api", Action::Start, 8_415, 3_020),
        step(7, "app", "app-2", "api", Action::Switch, 8_003, 380),
        failing(1, 8_384, 29_650),
        failing(2, 121_020, 30_000),
        step(9, "verify", "app-1", "api", Action::Verify, 311_000, 40),
    ]
}

/// A plan that names no release of its own: back to where a rollback came from.
pub fn plan_of_an_undo() -> Plan {
    let mut plan = plain_response().plan.expect("has a plan");
    plan.release = "before-0193a5c2".to_owned();
    plan.undo_of = "0193a5c2-7d10-7b3e-9f60-4a5b6c7d8e9f".to_owned();
    plan
}

pub fn hold() -> Hold {
    Hold {
        release: "v3.0.0".to_owned(),
        since: Some(proto_at(41_000)),
        by: "ana".to_owned(),
        reason: "error rate 12 %".to_owned(),
        rollback_id: "0193a5c2-7d10-7b3e-9f60-4a5b6c7d8e9f".to_owned(),
    }
}

/// A host that was away, one that comes back by itself, and somebody's hand.
pub fn drift() -> Vec<Drift> {
    let drift = |host: &str, component: &str, at: Option<&str>, missed, automatic| Drift {
        host: host.to_owned(),
        component: component.to_owned(),
        expected: Some(rev("v2.9.0", "sha256:29aa01bc04de55")),
        observed: at.map(|version| rev(version, "sha256:30aa77bc04de55")),
        release: "v2.9.0".to_owned(),
        rollback_id: if missed {
            "0193a5c2-7d10-7b3e-9f60-4a5b6c7d8e9f".to_owned()
        } else {
            String::new()
        },
        since: Some(proto_at(41_000)),
        missed,
        automatic,
    };
    vec![
        drift("app-1", "api", Some("v3.0.0"), true, false),
        drift("app-2", "api", None, true, true),
        drift("app-2", "env", Some("v2.9.0"), false, false),
    ]
}
