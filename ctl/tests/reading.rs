//! The reading verbs, doctor, and what works without any coordinator.

mod fake;

use std::os::unix::fs::PermissionsExt as _;

use fake::{Ended, Fake, bare};
use rollback_proto::v1::RollbackState;

#[test]
fn every_reading_verb_speaks_json_and_text() {
    let fake = Fake::start(RollbackState::Verified, false);
    for (args, kind) in [
        (&["fleet", "status"][..], "fleet_status"),
        (&["fleet", "plan", "--to", "previous"], "fleet_plan"),
        (&["rollback", "list"], "rollback_list"),
        (&["rollback", "show"], "rollback"),
        (&["release", "record", "v2.9.0"], "release"),
        (
            &["release", "import", "v2.9.0", "--without", "app-2/api"],
            "release_import",
        ),
        (&["release", "list"], "release_list"),
        (&["release", "show", "v2.9.0"], "release"),
        (&["release", "diff", "v2.9.0"], "release_diff"),
        (&["agent", "list"], "agent_list"),
        (&["doctor"], "doctor"),
        (&["version"], "version"),
    ] {
        let text = fake.run(args);
        let json = fake.run(&[args, &["-o", "json"]].concat());
        assert_eq!(text.code, json.code, "{args:?}");
        assert!(text.code == 0 || args[1] == "plan", "{args:?}: {text:?}");
        assert!(!text.stdout.trim().is_empty(), "{args:?}");
        assert_eq!(json.json()["kind"], kind, "{args:?}");
        assert_eq!(json.stdout.lines().count(), 1, "{args:?}");
    }
}

#[test]
fn status_shows_who_is_away_and_why() {
    let fake = Fake::start(RollbackState::Verified, false);
    let ended = fake.run(&["fleet", "status"]);
    assert_eq!(ended.code, 0);
    assert!(ended.stdout.contains("UNREACHABLE"), "{ended:?}");
    assert!(ended.stdout.contains("RB0300: no route to host"), "{ended:?}");
}

#[test]
fn an_import_that_is_not_complete_says_where_and_how_to_go_on() {
    let fake = Fake::start(RollbackState::Verified, false);
    let ended = fake.run(&["release", "import", "v2.9.0"]);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(
        ended.stdout.contains("RB0514: looked at /opt/zekka/backups"),
        "{ended:?}"
    );
    assert!(
        ended.stderr.starts_with("error RB0207: v2.9.0 not imported"),
        "{ended:?}"
    );
    let next = "rollbackctl release import v2.9.0 --without app-2/api";
    assert!(ended.stderr.contains(next), "{ended:?}");

    let json = fake.run(&["release", "import", "v2.9.0", "-o", "json"]);
    assert_eq!((json.code, json.json()["missing"].as_u64()), (1, Some(1)));
    assert_eq!(json.json()["findings"][1]["problem"]["code"], "RB0514");

    let dry = fake.run(&["release", "import", "v2.9.0", "--without", "app-2/api", "--dry-run"]);
    assert_eq!(dry.code, 0, "{dry:?}");
    assert!(dry.stderr.contains("Nothing was stored"), "{dry:?}");
    assert!(dry.stderr.contains(next), "{dry:?}");
    let done = fake.run(&["release", "import", "v2.9.0", "--without", "app-2/api"]);
    assert!(done.stderr.contains("rollbackctl fleet plan --to v2.9.0"), "{done:?}");
}

#[test]
fn a_token_stands_alone_on_stdout() {
    let fake = Fake::start(RollbackState::Verified, false);
    let ended = fake.run(&["agent", "token", "app-9"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "rbt1.app-9.00ff.11ee\n"));
    assert!(
        ended.stderr.contains("rollback-agent enroll --coordinator"),
        "{ended:?}"
    );
}

#[test]
fn what_does_not_exist_is_an_error_with_a_code() {
    let fake = Fake::start(RollbackState::Verified, false);
    let ended = fake.run(&["rollback", "show", "nope", "-o", "json"]);
    assert_eq!(
        (ended.code, ended.json()["error"]["code"].as_str()),
        (1, Some("RB0003"))
    );
    assert_eq!(fake.run(&["rollback", "watch", "nope"]).code, 1);
    assert_eq!(fake.run(&["release", "diff", "v2.9.0", "v9"]).code, 1);
}

#[test]
fn doctor_names_what_is_broken() {
    let mut fake = Fake::start(RollbackState::Verified, false);
    let ended = fake.run(&["doctor"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended.stdout.contains("spiffe://rollback.local/operator/ana"),
        "{ended:?}"
    );

    // One endpoint of two: usable.
    let context = std::fs::read_to_string(fake.context()).expect("read");
    std::fs::write(
        fake.context(),
        context.replace("endpoints = [", "endpoints = [\"127.0.0.1:1\", "),
    )
    .expect("write");
    let ended = fake.run(&["doctor"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("warn  endpoint"), "{ended:?}");
    assert_eq!(fake.run(&["fleet", "status"]).code, 0, "the other endpoint is tried");
    std::fs::write(fake.context(), context).expect("write");

    fake.kill();
    let ended = fake.run(&["doctor"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stdout.contains("fail  endpoint"), "{ended:?}");

    let key = fake.directory.path().join("ana.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let ended = fake.run(&["doctor"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stdout.contains("chmod 600"), "{ended:?}");
}

#[test]
fn a_coordinator_that_is_away_is_an_error_at_once() {
    let mut fake = Fake::start(RollbackState::Verified, false);
    fake.kill();
    for args in [
        &["fleet", "status"][..],
        &["fleet", "rollback", "--to", "v2.9.0", "--yes"],
        &["rollback", "watch"],
    ] {
        let ended = fake.run(args);
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(
            ended.stderr.starts_with("error RB0300: no coordinator answers"),
            "{ended:?}"
        );
        assert!(ended.stderr.contains("what to do: "), "{ended:?}");
    }
}

#[test]
fn help_completions_and_version_need_nobody() {
    for args in [
        &["--help"][..],
        &["help", "fleet", "rollback"],
        &["fleet", "rollback", "--help"],
        &["completions", "bash"],
        &["version", "--client"],
    ] {
        let ended = Ended::of(bare(args).output().expect("run"));
        assert_eq!(ended.code, 0, "{args:?}: {ended:?}");
        assert!(!ended.stdout.is_empty(), "{args:?}");
        assert_eq!(ended.stderr, "", "{args:?}");
    }
}

#[test]
fn a_wrong_command_line_is_1_and_never_2() {
    for args in [
        &[][..],
        &["fleet"],
        &["fleet", "plan"],
        &["fleet", "stat"],
        &["fleet", "plan", "--to", "v1", "--x"],
    ] {
        let ended = Ended::of(bare(args).output().expect("run"));
        assert_eq!(ended.code, 1, "{args:?}: {ended:?}");
        assert_eq!(ended.stdout, "", "{args:?}");
    }
}

#[test]
fn a_missing_context_says_where_it_was_looked_for() {
    let home = tempfile::tempdir().expect("temporary directory");
    let ended = Ended::of(
        bare(&["fleet", "status"])
            .env("HOME", home.path())
            .output()
            .expect("run"),
    );
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.starts_with("error RB0902: "), "{ended:?}");
    assert!(ended.stderr.contains(".config/rollbackctl/context.toml"), "{ended:?}");
}

#[test]
fn every_verb_has_a_manual_page() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let out = directory.path().join("man1");
    let ended = Ended::of(
        bare(&["man", "--out", &out.display().to_string()])
            .output()
            .expect("run"),
    );
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{ended:?}");
    for page in [
        "rollbackctl",
        "rollbackctl-fleet",
        "rollbackctl-fleet-rollback",
        "rollbackctl-rollback-trace",
    ] {
        let text = std::fs::read_to_string(out.join(format!("{page}.1"))).expect(page);
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
        assert!(text.contains("\n.nh\n"), "{page}: no option is broken in two");
    }
    let text = std::fs::read_to_string(out.join("rollbackctl-fleet-rollback.1")).expect("a page");
    assert!(text.contains("Examples:\n.nf\n  rollbackctl fleet rollback "), "{text}");
    assert!(!out.join("rollbackctl-help.1").exists());
}

#[test]
fn a_report_is_never_written_over_another() {
    let fake = Fake::start(RollbackState::Verified, false);
    let path = fake.directory.path().join("INC.md");
    let path = path.to_str().expect("UTF-8");
    let first = fake.run(&["rollback", "report", "--out", path]);
    assert_eq!(first.code, 0, "{first:?}");
    let written = std::fs::read_to_string(path).expect("written");
    assert!(
        written.starts_with("# ") && written.contains("_(to be filled in: "),
        "{written}"
    );
    assert_eq!(
        fake.run(&["rollback", "report"]).stdout.lines().next(),
        written.lines().next()
    );
    let second = fake.run(&["rollback", "report", "--out", path]);
    assert_eq!(second.code, 1, "{second:?}");
    assert_eq!(std::fs::read_to_string(path).expect("still there"), written);
}

#[test]
fn a_phase_that_is_not_there_is_named_with_those_that_are() {
    let fake = Fake::start(RollbackState::Verified, false);
    let ended = fake.run(&["rollback", "trace", "--phase", "apps"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("what to do: one of: app, undo"), "{ended:?}");
    let plain = fake.run(&["rollback", "trace", "--phase", "app"]);
    assert_eq!(plain.code, 0);
    assert!(!plain.stdout.contains('\u{1b}'), "no colours in a pipe: {plain:?}");
}

#[test]
fn a_code_is_explained() {
    let ended = Ended::of(bare(&["explain", "rb0203"]).output().expect("run"));
    assert_eq!(ended.code, 0);
    assert!(ended.stdout.starts_with("RB0203: Another rollback holds"), "{ended:?}");
    assert_eq!(Ended::of(bare(&["explain", "RB1"]).output().expect("run")).code, 1);
}
