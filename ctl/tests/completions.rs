//! Completion as a shell does it: what the fleet has is completed, and a fleet that does not answer costs a moment and no
//! word.

mod fake;

use std::process::Command;
use std::time::{Duration, Instant};

use fake::{Ended, Fake, ID, bare};
use rollback_proto::v1::RollbackState;

/// Completes the last word of the line, as the shell's function asks for it.
fn complete(shell: &str, words: &[&str], context: &std::path::Path) -> Ended {
    let line = [&["--", "rollbackctl"], words].concat();
    let output = bare(&line)
        .env("ROLLBACKCTL_COMPLETE", shell)
        .env("_CLAP_COMPLETE_INDEX", words.len().to_string())
        .env("_CLAP_IFS", "\n")
        .env("ROLLBACKCTL_CONTEXT", context)
        .output()
        .expect("run rollbackctl");
    Ended::of(output)
}

fn lines(ended: &Ended) -> Vec<&str> {
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
    ended.stdout.lines().collect()
}

#[test]
fn what_the_fleet_has_is_completed() {
    let fake = Fake::start(RollbackState::Verified, false);
    fake.state().rollbacks = vec![fake::ending(RollbackState::Verified, false)];
    if let Some(agent) = fake.state().fleet.hosts[0].agent.as_mut() {
        agent.labels = [("tier".to_owned(), "app".to_owned())].into();
    }
    let ask = |words: &[&str]| {
        let ended = complete("bash", words, &fake.context());
        let words: Vec<String> = lines(&ended).into_iter().map(str::to_owned).collect();
        words
    };
    assert_eq!(ask(&["fleet", "plan", "--to", ""]), ["previous", "v2.9.0"]);
    assert_eq!(ask(&["fleet", "rollback", "--to", "v"]), ["v2.9.0"]);
    assert_eq!(ask(&["rollback", "show", ""])[..2], ["latest", ID]);
    assert_eq!(ask(&["fleet", "plan", "--host", "app-"]), ["app-1", "app-2"]);
    assert_eq!(ask(&["fleet", "plan", "-l", "t"]), ["tier=app"]);
    // What stands in the program itself needs nobody.
    assert_eq!(ask(&["fleet", "pl"]), ["plan"]);
    assert_eq!(ask(&["rollback", "list", "--state", "aw"]), ["awaits-approval"]);
    // A name that is made up by whoever types it.
    assert!(!ask(&["release", "record", ""]).iter().any(|word| word == "v2.9.0"));
}

#[test]
fn zsh_and_fish_are_told_what_it_is() {
    let fake = Fake::start(RollbackState::Verified, false);
    let zsh = complete("zsh", &["fleet", "plan", "--to", ""], &fake.context());
    assert!(
        lines(&zsh)[0].starts_with("previous:the newest stable release"),
        "{zsh:?}"
    );
    let fish = complete("fish", &["fleet", "plan", "--to", "v"], &fake.context());
    assert!(lines(&fish)[0].starts_with("v2.9.0\trecorded"), "{fish:?}");
}

/// The lines that are printed do it in a real shell, with the program on its PATH.
#[test]
fn bash_completes_with_the_lines_that_are_printed() {
    let fake = Fake::start(RollbackState::Verified, false);
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_rollbackctl"));
    let script = "source <(rollbackctl completions bash)
        COMP_WORDS=(rollbackctl fleet plan --to v) COMP_CWORD=4 COMP_TYPE=9
        _clap_complete_rollbackctl rollbackctl v --to
        printf '%s\\n' \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["--norc", "-c", script])
        .env(
            "PATH",
            format!("{}:/usr/bin:/bin", program.parent().expect("a directory").display()),
        )
        .env("ROLLBACKCTL_CONTEXT", fake.context())
        .output()
        .expect("run bash");
    let ended = Ended::of(output);
    assert_eq!(ended.stdout, "v2.9.0\n", "{ended:?}");
}

/// A wrong context, nobody at the port, somebody who never answers.
#[test]
fn a_fleet_that_does_not_answer_costs_a_moment_and_no_word() {
    let mut fake = Fake::start(RollbackState::Verified, false);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent_at = silent.local_addr().expect("an address").to_string();
    let ask = |context: &std::path::Path| {
        let began = Instant::now();
        let ended = complete("bash", &["fleet", "plan", "--to", ""], context);
        assert_eq!(
            (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
            (0, "", ""),
            "{ended:?}"
        );
        began.elapsed()
    };
    ask(&fake.directory.path().join("nothing.toml"));
    fake.kill();
    ask(&fake.context());
    fake.write_context_to(&[&silent_at], "");
    // 400 ms, and the start of a process on a busy machine; any deadline of a call is longer than this.
    assert!(ask(&fake.context()) < Duration::from_secs(4));
}
