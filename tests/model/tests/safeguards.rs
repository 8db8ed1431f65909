//! The checker can fail: each safeguard that the model leaves out is noticed by the property that it is for, with a short
//! story. And what is not promised is known: the last test.

use fleet_model::configuration::Safeguard;
use fleet_model::{Configuration, explore, properties};

/// Leaves it out there, and expects this property to be violated within so many actions.
fn is_missed(name: &str, safeguard: Safeguard, property: &str, within: usize) {
    is_missed_with(name, 1, safeguard, property, within);
}

/// With so many takeovers.
fn is_missed_with(name: &str, takeovers: u8, safeguard: Safeguard, property: &str, within: usize) {
    let mut configuration = Configuration::find(name).expect("a configuration of this name");
    configuration.budget.takeovers = takeovers;
    let report = explore(configuration.without(safeguard), 1);
    let violated: Vec<&str> = report.violations.iter().map(|v| v.property).collect();
    let Some(violation) = report.violations.iter().find(|v| v.property == property) else {
        panic!("{safeguard:?} was not missed by {property:?}; violated: {violated:?}")
    };
    assert!(
        violation.steps <= within,
        "{} actions:\n{}",
        violation.steps,
        violation.story
    );
}

#[test]
fn unfenced_append() {
    is_missed("one-host", Safeguard::FencedAppends, properties::STALE_APPEND, 4);
}

#[test]
fn agent_that_obeys_every_epoch() {
    is_missed("one-host", Safeguard::EpochCheck, properties::STALE_STEP, 4);
}

#[test]
fn step_that_is_run_again_without_a_probe() {
    is_missed("one-host", Safeguard::Probe, properties::ONCE, 12);
}

#[test]
fn dispatch_before_the_intent_is_durable() {
    is_missed("one-host", Safeguard::IntentFirst, properties::INTENT, 3);
}

#[test]
fn outcome_that_is_not_durable_when_the_next_step_is_dispatched() {
    is_missed("one-host", Safeguard::IntentFirst, properties::OUTCOME, 3);
}

#[test]
fn scope_that_nobody_asks_for() {
    is_missed("two-operators", Safeguard::Scope, properties::SCOPE, 3);
}

#[test]
fn stage_that_stages_nothing() {
    is_missed("one-host", Safeguard::HonestStage, properties::STAGED, 12);
}

#[test]
fn backup_that_is_none() {
    is_missed("database", Safeguard::HonestSnapshot, properties::PROTECTED, 18);
}

#[test]
fn target_that_was_not_looked_at() {
    is_missed("one-host", Safeguard::HonestSight, properties::VERIFIED, 40);
}

#[test]
fn undo_that_undoes_nothing() {
    is_missed("one-host", Safeguard::HonestUndo, properties::TRUE_END, 24);
}

#[test]
fn outcome_that_is_told_only_once() {
    is_missed("one-host", Safeguard::AnswerAgain, properties::ENDS, 10);
}

#[test]
fn takeover_without_asking_the_ledgers() {
    is_missed("lost-commits", Safeguard::Recall, properties::TRUE_END, 16);
}

#[test]
fn journal_with_a_gap_that_is_gone_on_with() {
    is_missed("lost-commits", Safeguard::HoldInDoubt, properties::TRUE_END, 16);
}

#[test]
fn fence_that_asks_for_the_epoch_alone() {
    is_missed_with(
        "lost-commits",
        2,
        Safeguard::FencedByHolder,
        properties::STALE_APPEND,
        8,
    );
}

#[test]
fn lease_that_has_run_out_and_is_written_under() {
    is_missed("lost-commits", Safeguard::FencedInTime, properties::VERIFIED, 24);
}

#[test]
fn epoch_that_the_same_leader_has_again() {
    is_missed_with("lost-commits", 2, Safeguard::FreshEpochs, properties::STAGED, 24);
}

#[test]
fn end_that_the_store_lost_and_the_leader_does_not_miss() {
    is_missed("lost-commits", Safeguard::Compare, properties::ENDS, 8);
}

/// Both at once are not promised: the store has lost commits, and the host that could tell does not answer the new leader.
#[test]
fn lost_commits_and_a_silent_host_are_too_much() {
    let mut configuration = Configuration::find("lost-commits").expect("a configuration of this name");
    configuration.budget.takeovers = 1;
    configuration.budget.silences = 1;
    let report = explore(configuration, 1);
    let violated: Vec<&str> = report.violations.iter().map(|v| v.property).collect();
    assert_eq!(violated, [properties::TRUE_END]);
}
