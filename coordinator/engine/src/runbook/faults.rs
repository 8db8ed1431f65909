//! What is wrong with a runbook whose every value reads well: what contradicts itself or breaks a promise is an error, and
//! what is legal and unwise is a warning.

use super::{BatchSize, Runbook, SecondPerson, may_continue};
use crate::event::Severity;
use crate::plan::{DatabaseChoice, OnFailure, PhaseName};
use crate::release::{Action, Role};

#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub severity: Severity,
    /// "on_failure.stage"
    pub key: String,
    pub problem: String,
    pub hint: String,
}

pub(super) fn of(runbook: &Runbook) -> Vec<Fault> {
    let mut faults = Vec::new();
    names_and_sizes(runbook, &mut faults);
    times(runbook, &mut faults);
    policies(runbook, &mut faults);
    faults
}

fn error(key: impl Into<String>, problem: &str, hint: &str) -> Fault {
    Fault {
        severity: Severity::Blocker,
        key: key.into(),
        problem: problem.to_owned(),
        hint: hint.to_owned(),
    }
}

fn warning(key: impl Into<String>, problem: &str, hint: &str) -> Fault {
    Fault {
        severity: Severity::Warning,
        ..error(key, problem, hint)
    }
}

fn names_and_sizes(runbook: &Runbook, faults: &mut Vec<Fault>) {
    let name_fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name = &runbook.name;
    if name.is_empty() || name.len() > 128 || name.starts_with(['-', '.']) || !name.chars().all(name_fits) {
        faults.push(error(
            "name",
            "is no name that can be asked for",
            "use 1 to 128 of A-Z a-z 0-9 . _ -, not beginning with - or .",
        ));
    }
    for (key, sizes) in [
        ("batches", &runbook.batches),
        ("batches_when_quiesced", &runbook.batches_when_quiesced),
    ] {
        if sizes.is_empty() {
            faults.push(error(
                key,
                "no host would ever be reached",
                "give at least one batch; [\"100%\"] is all hosts at once",
            ));
        }
    }
    if runbook.roles.is_empty() {
        faults.push(error(
            "roles",
            "nothing would be changed",
            "name at least one of database, config, app, proxy",
        ));
    }
    if !runbook.roles.contains(&Role::Database) && runbook.database != DatabaseChoice::Keep {
        faults.push(error(
            "database",
            "`roles` does not name databases, so they are kept",
            "write \"keep\"",
        ));
    }
    if !runbook.checks.after_batch && runbook.batches.len() > 1 {
        faults.push(warning(
            "checks.after_batch",
            "a release that does not work reaches every batch before anything is verified",
            "write true, or one batch: [\"100%\"]",
        ));
    }
}

fn times(runbook: &Runbook, faults: &mut Vec<Fault>) {
    for (role, table) in [(Role::App, "timeouts"), (Role::Database, "timeouts.database")] {
        for action in Action::ALL {
            // Databases have only two times of their own.
            if role == Role::Database && !matches!(action, Action::Stage | Action::Snapshot) {
                continue;
            }
            let key = format!("{table}.{action}");
            let millis = runbook.timeout_ms(action, role);
            if millis == 0 {
                faults.push(error(key, "a step needs some time", "give at least 1ms"));
            } else if millis < shortest_sensible(action) {
                faults.push(warning(
                    key,
                    "is short: a step that takes longer counts as failed, though it may have worked",
                    "give it the time that the slowest host needs, and some more",
                ));
            }
        }
    }
    let waits = runbook.consent.second_person != SecondPerson::Never;
    match runbook.consent.approve_within.millis {
        0 => faults.push(error(
            "consent.approve_within",
            "nobody could approve",
            "give at least 1ms",
        )),
        1..60_000 if waits => faults.push(warning(
            "consent.approve_within",
            "is short for a person who has to read the plan",
            "give some minutes: nothing is touched while it waits",
        )),
        _ => {}
    }
}

/// Milliseconds. Copying, backing up and rehearsing take longer than telling a process something.
fn shortest_sensible(action: Action) -> u64 {
    match action {
        Action::Stage | Action::Snapshot | Action::Switch => 10_000,
        Action::Prepare
        | Action::Discard
        | Action::Drain
        | Action::Resume
        | Action::Stop
        | Action::Start
        | Action::Verify
        | Action::Finish => 2_000,
    }
}

fn policies(runbook: &Runbook, faults: &mut Vec<Fault>) {
    for phase in PhaseName::ALL.into_iter().filter(|phase| *phase != PhaseName::Finish) {
        let key = || format!("on_failure.{phase}");
        match runbook.on_failure(phase) {
            OnFailure::Continue if !may_continue(phase) => faults.push(error(
                key(),
                "\"continue\" would switch hosts that are not ready or not backed up",
                "use \"undo\", \"pause\" or \"hold\"",
            )),
            OnFailure::Hold | OnFailure::Pause if phase == PhaseName::Preflight => faults.push(warning(
                key(),
                "nothing is touched in preflight: there is nothing to look at or to save",
                "use \"undo\", which ends the rollback at once and lets others begin",
            )),
            OnFailure::Undo | OnFailure::Hold | OnFailure::Pause | OnFailure::Continue => {}
        }
    }
    let goes_on = runbook.on_failure.app == OnFailure::Continue;
    if goes_on && runbook.max_unavailable == BatchSize::Percent(100) {
        faults.push(warning(
            "max_unavailable",
            "on_failure.app goes on after failures, and every host may be left behind",
            "say how many may be, for example \"25%\"; then it is held",
        ));
    }
}
