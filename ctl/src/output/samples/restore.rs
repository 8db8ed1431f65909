//! A database that goes back to a backup, and what that costs.

use rollback_proto::v1::outcome::Status;
use rollback_proto::v1::{
    Action, Consent, DataLoss, DatabaseChoice, Finding, GetRollbackResponse, Outcome, PlanRollbackResponse,
    RollbackState, Severity, TableLoss,
};

use super::{details as plain_details, plan_response as plain_response, rev};
use crate::output::loss::Fate;

pub fn loss() -> DataLoss {
    let table = |table: &str, written, replaced| TableLoss {
        table: table.to_owned(),
        written,
        replaced,
    };
    DataLoss {
        backup: "db-20261121T030000Z".to_owned(),
        taken_at: "2026-11-21T03:00:00Z".to_owned(),
        tables: vec![table("public.orders", 20, 0), table("public.users", 100, 3)],
        unknown: String::new(),
        put_aside: String::new(),
    }
}

/// As an agent says it of an exchange.
fn loss_by_exchange() -> DataLoss {
    DataLoss {
        put_aside: "zekka_production_before_0193a5c27d107b3e".to_owned(),
        ..loss()
    }
}

fn finding(loss: DataLoss) -> Finding {
    Finding {
        severity: i32::from(Severity::Ok),
        message: "the backup db-20261121T030000Z can be restored".to_owned(),
        host: "db-1".to_owned(),
        component: "db".to_owned(),
        loss: Some(loss),
        ..Finding::default()
    }
}

/// Twelve tables, and one that nobody could count.
pub fn unknown_loss() -> Finding {
    let table = |n: u64| TableLoss {
        table: format!("public.part_{n:02}"),
        written: n * 1000,
        replaced: 0,
    };
    finding(DataLoss {
        tables: (1..=12).map(table).collect(),
        unknown: "public.events: it took longer than 10 s".to_owned(),
        ..loss()
    })
}

/// What an agent says of a loss that somebody has to agree to.
pub fn needs_consent() -> Finding {
    Finding {
        severity: i32::from(Severity::Warning),
        code: "RB0208".to_owned(),
        message: "zekka_production is restored from a backup; lost: 120 rows".to_owned(),
        remedy: "look at what would be lost: the same command with `fleet plan`".to_owned(),
        ..finding(loss())
    }
}

pub fn blocker(code: &str) -> Finding {
    Finding {
        severity: i32::from(Severity::Blocker),
        code: code.to_owned(),
        message: "it cannot be done".to_owned(),
        loss: None,
        ..finding(loss())
    }
}

/// `--database restore`, while the schema is that of the release already.
pub fn plan_response() -> PlanRollbackResponse {
    let mut response = plain_response();
    let plan = response.plan.as_mut().expect("has a plan");
    plan.database = i32::from(DatabaseChoice::Restore);
    for change in plan.changes.iter_mut().filter(|c| c.component == "db") {
        change.from_backup = true;
        change.from = change.to.clone();
    }
    let lanes = plan
        .phases
        .iter_mut()
        .flat_map(|p| &mut p.batches)
        .flat_map(|b| &mut b.lanes);
    for step in lanes.flat_map(|l| &mut l.steps) {
        step.from_backup = step.component == "db";
    }
    response.findings = vec![finding(loss())];
    response
}

/// `--runbook app-only`: the database and the proxy stay.
pub fn plan_that_leaves() -> PlanRollbackResponse {
    let mut response = plain_response();
    let plan = response.plan.as_mut().expect("has a plan");
    plan.database = i32::from(DatabaseChoice::Keep);
    plan.runbook = "app-only@1".to_owned();
    plan.schema_changes = false;
    for change in plan.changes.iter_mut().filter(|c| c.component == "db") {
        change.changes = false;
        change.from = Some(rev("002_scores", "sha256:30db77bc04de55"));
        change.to = change.from.clone();
        change.left = Some(rev("001_users", "sha256:29db01bc04de55"));
    }
    plan.phases.retain(|p| p.name != "database");
    response.findings.clear();
    response
}

/// A report of [`plan_response`].
pub fn details(fate: Fate) -> GetRollbackResponse {
    let state = match fate {
        Fate::Lost => RollbackState::Verified,
        Fate::TakenBack | Fate::NotExchanged => RollbackState::Undone,
        Fate::Unclear => RollbackState::Held,
    };
    let mut details = plain_details(state, false);
    details.plan = plan_response().plan;
    if let Some(summary) = &mut details.summary {
        summary.consent = Some(Consent { max_rows: Some(1132) });
    }
    // A switch, and on the way back the same again.
    details.steps.remove(1);
    if matches!(fate, Fate::Lost | Fate::Unclear) {
        details.steps.pop();
    }
    let status = |undo: bool| match (fate, undo) {
        (Fate::Lost | Fate::TakenBack, _) | (Fate::NotExchanged, true) => Status::Succeeded,
        (Fate::NotExchanged, false) => Status::Failed,
        (Fate::Unclear, _) => Status::Indeterminate,
    };
    for step in &mut details.steps {
        step.phase = "database".to_owned();
        step.host = "db-1".to_owned();
        step.component = "db".to_owned();
        step.action = i32::from(Action::Switch);
        step.outcome = Some(Outcome {
            status: i32::from(status(step.undo)),
            summary: "exchanged in 412 ms".to_owned(),
            loss: (!step.undo).then(loss_by_exchange),
            ..Outcome::default()
        });
    }
    details.findings.clear();
    details
}

/// A report of [`plan_that_leaves`].
pub fn details_with_something_left() -> GetRollbackResponse {
    let mut details = plain_details(RollbackState::Verified, false);
    details.plan = plan_that_leaves().plan;
    details.steps.clear();
    details.findings.clear();
    details
}
