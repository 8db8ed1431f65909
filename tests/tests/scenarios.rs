//! Every scenario, the demo among them, as a test. Each has a fleet of its own.

use fleet_tests::scenario::{ALL, Options, Scenario, many_hosts};

macro_rules! scenarios {
    ($($test:ident = $name:literal,)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            Scenario::expect($name).await;
        })*

        #[test]
        fn no_scenario_is_forgotten() {
            // `kills.rs` tells one of the others, `make bench` the other, of which there is a small one below; and
            // `deployments.rs` tells its own.
            let told = [$($name,)* "kill-sweep", "thousand-hosts"];
            let forgotten: Vec<_> = ALL.iter().map(|s| s.name).filter(|name| !told.contains(name)).collect();
            assert!(forgotten.is_empty(), "{forgotten:?}");
        }
    };
}

scenarios! {
    zekka = "zekka",
    handbook = "handbook",
    undo_on_unhealthy = "undo-on-unhealthy",
    forth_and_back = "forth-and-back",
    rolling = "rolling",
    blocked_preflight = "blocked-preflight",
    restored_from_vault = "restored-from-vault",
    coordinator_killed = "coordinator-killed",
    agent_killed = "agent-killed",
    held_then_recovered = "held-then-recovered",
    two_operators = "two-operators",
    store_taken_back = "store-taken-back",
    trace = "trace",
}

/// As `thousand-hosts`, without a limit of time: what is said of fifty is right, and comes from the hosts.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_hosts() {
    let options = Options {
        quiet: true,
        ..Options::default()
    };
    if let Err(error) = many_hosts::look(50, options).await {
        panic!("{error:#}");
    }
}
