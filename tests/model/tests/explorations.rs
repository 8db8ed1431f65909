//! The small explorations, complete: nothing is violated, and everything was met that should be. The large ones are for
//! `make soak`.

use fleet_model::{Configuration, explore};

fn is_clean(name: &str) {
    let configuration = Configuration::find(name).expect("a configuration of this name");
    assert!(configuration.small, "{name} is for `make soak`");
    let report = explore(configuration, 1);
    for violation in &report.violations {
        eprintln!("VIOLATED: {}\n{}", violation.property, violation.story);
    }
    assert!(report.is_good(), "never met: {:?}", report.missing);
    assert!(report.states > 1000, "{} states are no exploration", report.states);
}

#[test]
fn takeovers_kills_and_failures_on_one_host() {
    is_clean("one-host");
}

#[test]
fn outcomes_that_nobody_knows() {
    is_clean("unknown");
}

#[test]
fn backup_before_a_database_changes() {
    is_clean("database");
}

#[test]
fn two_hosts_one_after_the_other() {
    is_clean("two-hosts");
}

#[test]
fn ledger_that_is_lost() {
    is_clean("lost-ledger");
}

#[test]
fn two_operators_want_the_same_components() {
    is_clean("two-operators");
}

#[test]
fn operator_who_steers() {
    is_clean("steered");
}

#[test]
fn store_that_loses_what_it_confirmed() {
    is_clean("lost-commits");
}

#[test]
fn no_small_exploration_is_without_a_test() {
    let names: Vec<&str> = Configuration::all()
        .iter()
        .filter(|c| c.small)
        .map(|c| c.name)
        .collect();
    let this = include_str!("explorations.rs");
    for name in names {
        assert!(this.contains(&format!("is_clean(\"{name}\")")), "{name}");
    }
}
