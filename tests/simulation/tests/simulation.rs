//! A sample of seeds in every test run (`make soak` runs thousands), that a seed can be run again, and that the judge sees
//! what it is there to see.

use std::process::Command;

use fleet_simulation::judge::Verdict;
use serde_json::Value;

/// The output's lines, and the JSON of the last one.
fn run(arguments: &[&str]) -> (Vec<String>, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_fleet-simulation"))
        .arg("run")
        .args(arguments)
        .output()
        .expect("run the simulation");
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let last = lines.last().expect("a last line");
    let json = serde_json::from_str(last).unwrap_or_else(|e| panic!("{last}: {e}"));
    (lines, json)
}

fn one(seed: &str, more: &[&str]) -> Verdict {
    let (_, json) = run(&[&["--seed", seed], more].concat());
    serde_json::from_value(json).expect("a verdict")
}

#[test]
fn a_sample_of_seeds_keeps_the_promises() {
    let (lines, sum) = run(&["--seeds", "60"]);
    assert_eq!(sum["violations"], 0, "{}", lines.join("\n"));
    // Seeds that do nothing to the fleet would prove nothing.
    for harm in [
        "crashes",
        "partitions",
        "freezes",
        "takeovers",
        "lost_commits",
        "stale_requests",
        "acts",
    ] {
        assert!(sum[harm].as_u64() > Some(5), "{harm}: {sum}");
    }
    for ending in ["verified", "undone"] {
        assert!(sum[ending].as_u64() > Some(10), "{ending}: {sum}");
    }
    // A person is asked only now and then, and the judge has looked at every reason.
    assert!(sum["held"].as_u64() < Some(6), "{sum}");
}

#[test]
fn a_seed_is_the_same_run_each_time_also_when_it_is_watched() {
    for seed in ["5", "12", "34"] {
        let first = one(seed, &[]);
        assert_eq!(first.digest, one(seed, &[]).digest, "seed {seed}");
        assert_eq!(
            first.digest,
            one(seed, &["--log", "--transcript"]).digest,
            "seed {seed}, watched"
        );
        assert!(first.effects > 5, "{first:?}");
    }
    assert_ne!(one("5", &[]).digest, one("12", &[]).digest);
}

/// Takes a safeguard away, and returns what the judge says at the first seed where it shows.
fn found(broken: &str) -> String {
    let (lines, sum) = run(&["--broken", broken, "--seeds", "400", "--first"]);
    assert_ne!(sum["violations"], 0, "{broken} was not noticed: {sum}");
    lines.join("\n")
}

#[test]
fn a_store_that_does_not_fence_is_noticed() {
    let what = found("unfenced");
    assert!(what.contains("was written with epoch"), "{what}");
}

#[test]
fn agents_whose_ledger_forgets_are_noticed() {
    let what = found("forgetful");
    assert!(what.contains("took effect 2 times"), "{what}");
}

#[test]
fn agents_that_obey_a_replaced_leader_are_noticed() {
    let what = found("obedient");
    assert!(what.contains("obeyed a leader of epoch"), "{what}");
}

#[test]
fn agents_that_lie_are_noticed() {
    let what = found("lying");
    assert!(what.contains("verified, but"), "{what}");
}
