//! `fleet rollback` and `rollback watch` as an operator or a script meets them: exit codes, output, and a coordinator
//! that goes away at the worst moments.

mod fake;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Command;

use fake::{Ended, Fake, ID, StartReply, WatchReply, blocker, ending, plan, progress};
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::{self, RollbackState};

const ROLLBACK: [&str; 5] = ["fleet", "rollback", "--to", "v2.9.0", "--yes"];

/// [`ROLLBACK`] with more arguments.
fn rollback_with(more: &[&'static str]) -> Vec<&'static str> {
    ROLLBACK.iter().chain(more).copied().collect()
}

#[test]
fn every_ending_has_its_exit_code() {
    for (state, blocked, code, word) in [
        (RollbackState::Verified, false, 0, "VERIFIED"),
        (RollbackState::Undone, true, 3, "BLOCKED"),
        (RollbackState::Partial, false, 4, "PARTIAL"),
        (RollbackState::Undone, false, 5, "UNDONE"),
        (RollbackState::Held, false, 5, "HELD"),
    ] {
        let fake = Fake::start(state, blocked);
        for args in [ROLLBACK.to_vec(), vec!["rollback", "watch", "latest"]] {
            let ended = fake.run(&args);
            assert_eq!(ended.code, code, "{state:?}: {ended:?}");
            assert!(ended.stdout.contains(word), "{ended:?}");
            assert!(
                ended.stdout.contains("4bf92f3577b34da6a3ce929d0e0e4736"),
                "the trace id: {ended:?}"
            );
        }
        let ended = fake.run(&rollback_with(&["-o", "json"]));
        assert_eq!(ended.code, code);
        assert_eq!(ended.json()["exit_code"], code);
        assert_eq!(ended.json()["blocked"], blocked);
    }
}

#[test]
fn blockers_are_listed_with_what_to_do() {
    let fake = Fake::start(RollbackState::Undone, true);
    let ended = fake.run(&ROLLBACK);
    assert!(ended.stdout.contains("BLOCKER RB0501 app-2/api"), "{ended:?}");
    assert!(
        ended.stdout.contains("what to do: put the release back on the host"),
        "{ended:?}"
    );
}

#[test]
fn without_a_terminal_there_is_one_line_per_event() {
    let fake = Fake::start(RollbackState::Verified, false);
    let says = progress("half\x1b[2J way");
    fake.state().journal.splice(4..4, [says.clone(), says]);
    let ended = fake.run(&ROLLBACK);
    let lines: Vec<&str> = ended.stdout.lines().filter(|l| l.starts_with("2026-11-21T")).collect();
    assert_eq!(lines.len(), 9, "eight of the journal, and the progress once: {ended:?}");
    let switched = lines
        .iter()
        .find(|l| l.contains("switch ok") && l.contains("app-1/api"))
        .expect("a line");
    assert!(switched.contains("2000 ms"), "{switched}");
    assert!(
        !ended.stdout.contains('\x1b'),
        "no colours and no hosts' control characters: {ended:?}"
    );
}

#[test]
fn json_is_the_last_line_and_events_go_to_stderr() {
    let fake = Fake::start(RollbackState::Verified, false);
    let ended = fake.run(&rollback_with(&["-o", "json"]));
    assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
    let json = ended.json();
    assert_eq!(json["rollback_id"], ID);
    assert_eq!(json["state"], "verified");
    assert_eq!(json["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(json["phases"][0]["name"], "app");
    assert_eq!(json["phases"][0]["ms"], 5000);
    assert!(ended.stderr.contains("phase begins"), "{ended:?}");
}

#[test]
fn without_a_terminal_and_without_yes_nothing_starts() {
    let fake = Fake::start(RollbackState::Verified, false);
    let ended = fake.run(&["fleet", "rollback", "--to", "v2.9.0"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("--yes"), "{ended:?}");
    assert_eq!(fake.state().calls, 0);
}

#[test]
fn a_bad_name_costs_no_round_trip() {
    let fake = Fake::start(RollbackState::Verified, false);
    let long = "x".repeat(64 * 1024);
    for name in ["../../etc", "a b", &long] {
        let ended = fake.run(&["fleet", "rollback", "--yes", "--to", name]);
        assert_eq!(ended.code, 1);
        assert!(
            ended.stderr.contains("error RB0001"),
            "{}",
            &ended.stderr[..200.min(ended.stderr.len())]
        );
    }
    assert_eq!(
        fake.run(&["fleet", "rollback", "--yes", "--to=--upload-pack=x"]).code,
        1
    );
    assert_eq!(fake.state().calls, 0);
}

#[test]
fn another_rollback_is_shown_with_its_holder() {
    let fake = Fake::start(RollbackState::Verified, false);
    let held = Problem::new(Code::ScopeHeld, "another rollback holds app-1/api");
    let mut running = ending(RollbackState::Running, false);
    running.ended_at = None;
    fake.state().rollbacks = vec![running, ending(RollbackState::Verified, false)];
    fake.state()
        .start_replies
        .extend([StartReply::Refused(held.clone()), StartReply::Refused(held)]);
    let ended = fake.run(&ROLLBACK);
    assert_eq!(ended.code, 6);
    assert!(
        ended.stderr.contains("error RB0203: another rollback holds app-1/api"),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("what to do: "), "{ended:?}");
    assert_eq!(
        ended.stderr.matches("held by").count(),
        1,
        "only the running one: {ended:?}"
    );
    assert!(ended.stderr.contains("by ana since 2026-11-21 03:12:41Z"), "{ended:?}");
    let ended = fake.run(&rollback_with(&["-o", "json"]));
    assert_eq!(ended.json()["exit_code"], 6);
    assert_eq!(ended.json()["holders"][0]["rollback_id"], ID);
}

#[test]
fn a_refusal_says_what_to_do() {
    let fake = Fake::start(RollbackState::Verified, false);
    fake.state().start_replies.push_back(StartReply::Refused(Problem::new(
        Code::UnknownRelease,
        "no release v2.9.0",
    )));
    let ended = fake.run(&rollback_with(&["-o", "json"]));
    assert_eq!(ended.code, 1);
    let wanted = "error RB0200: no release v2.9.0\n  what to do: list the recorded ones: rollbackctl release list\n";
    assert_eq!(ended.stderr, wanted);
    assert_eq!(ended.json()["error"]["code"], "RB0200");
}

#[test]
fn a_start_whose_answer_was_lost_is_the_same_rollback() {
    let mut fake = Fake::start(RollbackState::Verified, false);
    fake.state().start_replies.push_back(StartReply::Never);
    let child = fake.spawn(&ROLLBACK);
    fake.wait_for_hang();
    fake.kill();
    fake.restart();
    let ended = Ended::of(child.wait_with_output().expect("wait"));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("asking again"), "{ended:?}");
    let state = fake.state();
    assert_eq!(state.starts.len(), 2);
    assert_eq!(state.starts[0].request_id, state.starts[1].request_id);
    assert!(uuid::Uuid::parse_str(&state.starts[0].request_id).is_ok_and(|id| id.get_version_num() == 7));
}

#[test]
fn a_killed_coordinator_does_not_end_the_watch() {
    let mut fake = Fake::start(RollbackState::Verified, false);
    fake.state().watch_replies.push_back(WatchReply::HangsAfter(4));
    let mut child = fake.spawn(&ROLLBACK);
    // The fourth event must have arrived, not only have been sent.
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut seen = String::new();
    while seen.lines().filter(|l| l.starts_with("2026-11-21T")).count() < 4 {
        assert_ne!(stdout.read_line(&mut seen).expect("read"), 0, "ended too early: {seen}");
    }
    fake.kill();
    fake.restart();
    stdout.read_to_string(&mut seen).expect("read");
    let ended = Ended {
        stdout: seen,
        ..Ended::of(child.wait_with_output().expect("wait"))
    };
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(
        ended
            .stderr
            .matches("coordinator connection lost, reconnecting")
            .count(),
        1,
        "{ended:?}"
    );
    let lines = ended.stdout.lines().filter(|l| l.starts_with("2026-11-21T")).count();
    assert_eq!(lines, 8, "every event once: {ended:?}");
    assert_eq!(fake.state().watches, [0, 4]);
}

#[test]
fn a_stream_that_ends_early_is_taken_up_again() {
    let fake = Fake::start(RollbackState::Held, false);
    fake.state().watch_replies.extend([
        WatchReply::EndsAfter(2),
        WatchReply::EndsAfter(2),
        WatchReply::EndsAfter(5),
    ]);
    let ended = fake.run(&["rollback", "watch", ID]);
    assert_eq!(ended.code, 5, "{ended:?}");
    assert_eq!(fake.state().watches, [0, 2, 2, 5]);
}

#[test]
fn leaving_says_how_to_come_back() {
    let come_back = format!("rollbackctl rollback watch {ID}");

    let fake = Fake::start(RollbackState::Verified, false);
    let ended = fake.run(&rollback_with(&["--detach"]));
    assert_eq!((ended.code, ended.stdout.trim()), (7, ID), "{ended:?}");
    assert!(ended.stderr.contains(&come_back), "{ended:?}");
    let ended = fake.run(&rollback_with(&["--detach", "-o", "json"]));
    assert_eq!((ended.code, ended.json()["state"].as_str()), (7, Some("running")));

    fake.state().watch_replies.push_back(WatchReply::HangsAfter(3));
    let ended = fake.run(&rollback_with(&["--timeout", "300ms"]));
    assert_eq!(ended.code, 7, "{ended:?}");
    assert!(ended.stderr.contains(&come_back), "{ended:?}");
    fake.wait_for_hang();

    fake.state().watch_replies.push_back(WatchReply::HangsAfter(3));
    let mut child = fake.spawn(&ROLLBACK);
    fake.wait_for_hang();
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .expect("run kill");
    assert!(sent.success());
    assert_eq!(child.wait().expect("wait").code(), Some(7));
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut stderr)
        .expect("read");
    assert!(stderr.contains(&come_back), "{stderr}");
}

#[test]
fn one_trace_reaches_every_call() {
    let fake = Fake::start(RollbackState::Verified, false);
    assert_eq!(fake.run(&ROLLBACK).code, 0);
    assert!(fake.state().traceparents.is_empty(), "no endpoint, no trace");
    // Nobody collects there; the trace is carried all the same, and the program ends all the same.
    fake.write_context("otlp = \"http://127.0.0.1:1\"\n");
    assert_eq!(fake.run(&ROLLBACK).code, 0);
    let traces: Vec<String> = fake.state().traceparents.iter().map(|p| p[3..35].to_owned()).collect();
    assert_eq!(traces.len(), 3, "start, watch and the details: {traces:?}");
    assert!(traces.iter().all(|t| *t == traces[0]), "{traces:?}");
}

#[test]
fn a_plan_says_what_it_would_do() {
    let fake = Fake::start(RollbackState::Verified, false);
    let args = ["fleet", "plan", "--to", "v2.9.0"];
    let ended = fake.run(&args);
    assert_eq!(ended.code, 2);
    assert!(ended.stdout.contains("app-1/api  app  v3.0.0  →  v2.9.0"), "{ended:?}");
    fake.state().plan.findings = vec![blocker()];
    assert_eq!(fake.run(&args).code, 3);
    fake.state().plan.findings.clear();
    fake.state().plan.plan = Some(plan(false));
    let ended = fake.run(&[&args[..], &["-o", "json"]].concat());
    assert_eq!(ended.code, 0);
    assert_eq!(ended.json()["changes"], 0);
    assert!(fake.state().starts.is_empty());
}

/// A fleet whose plan restores a database that would lose so many rows; `None`: nobody knows.
fn restoring(fake: &Fake, rows: Option<u64>) {
    let mut plan = plan(true);
    plan.database = v1::DatabaseChoice::Restore.into();
    let database = plan.changes.first_mut().expect("has changes");
    database.from_backup = true;
    let loss = v1::DataLoss {
        backup: "db-20261121".to_owned(),
        taken_at: "2026-11-21T03:00:00Z".to_owned(),
        tables: rows
            .map(|written| v1::TableLoss {
                table: "public.users".to_owned(),
                written,
                replaced: 0,
            })
            .into_iter()
            .collect(),
        unknown: if rows.is_none() {
            "a dump of somebody else".to_owned()
        } else {
            String::new()
        },
        put_aside: String::new(),
    };
    let finding = v1::Finding {
        severity: v1::Severity::Ok.into(),
        host: database.host.clone(),
        component: database.component.clone(),
        loss: Some(loss),
        ..v1::Finding::default()
    };
    let mut state = fake.state();
    state.plan.plan = Some(plan);
    state.plan.findings = vec![finding];
}

/// The digest and the consent of the only start.
fn started(fake: &Fake) -> (String, Option<v1::Consent>) {
    let state = fake.state();
    let [start] = &state.starts[..] else {
        panic!("{:?}", state.starts)
    };
    (start.plan_digest.clone(), start.consent)
}

fn at_most(rows: u64) -> Option<v1::Consent> {
    Some(v1::Consent { max_rows: Some(rows) })
}

#[test]
fn bare_consent_is_to_what_the_plan_shows_and_to_no_other_plan() {
    let fake = Fake::start(RollbackState::Verified, false);
    restoring(&fake, Some(120));
    let ended = fake.run(&rollback_with(&["--database", "restore", "--accept-data-loss"]));
    assert_eq!(ended.code, 0, "{ended:?}");
    let words = "agreed to the loss of at most 1,132 rows; the plan shows 120";
    assert!(ended.stderr.contains(words), "{ended:?}");
    assert!(ended.stderr.contains("public.users  120 rows"), "{ended:?}");
    assert_eq!(started(&fake), ("sha256:77cc".to_owned(), at_most(1132)));
    let target = fake.state().starts[0].target.clone().expect("a target");
    assert_eq!(target.database(), v1::DatabaseChoice::Restore);
}

#[test]
fn bare_consent_to_a_loss_that_nobody_knows_is_refused() {
    let fake = Fake::start(RollbackState::Verified, false);
    restoring(&fake, None);
    let ended = fake.run(&rollback_with(&["--accept-data-loss", "-o", "json"]));
    assert_eq!(ended.code, 3, "{ended:?}");
    assert_eq!(ended.json()["error"]["code"], "RB0208");
    assert!(ended.stderr.contains("--accept-data-loss=all"), "{ended:?}");
    assert!(ended.stderr.contains("a dump of somebody else"), "{ended:?}");
    assert!(fake.state().starts.is_empty());
}

#[test]
fn consent_in_numbers_needs_no_look_at_the_plan() {
    for (flag, consent) in [
        ("--accept-data-loss=500", at_most(500)),
        ("--accept-data-loss=all", Some(v1::Consent { max_rows: None })),
    ] {
        let fake = Fake::start(RollbackState::Verified, false);
        restoring(&fake, None);
        let ended = fake.run(&rollback_with(&[flag]));
        assert_eq!(ended.code, 0, "{ended:?}");
        assert!(ended.stderr.contains("agreed, for each database: "), "{ended:?}");
        assert_eq!(started(&fake), (String::new(), consent));
    }
}

#[test]
fn consent_that_is_missing_or_needless() {
    let fake = Fake::start(RollbackState::Verified, false);
    let refused = Problem::new(
        Code::ConsentNeeded,
        "what was written to db-1/db since the backup is lost",
    );
    fake.state().start_replies.push_back(StartReply::Refused(refused));
    let ended = fake.run(&ROLLBACK);
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(ended.stderr.contains("--accept-data-loss"), "{ended:?}");
    assert_eq!(started(&fake).1, None);

    let fake = Fake::start(RollbackState::Verified, false);
    let ended = fake.run(&rollback_with(&["--accept-data-loss"]));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("there is no loss to agree to"), "{ended:?}");
    assert_eq!(started(&fake).1, None);
}

#[test]
fn plan_names_its_losses() {
    let fake = Fake::start(RollbackState::Verified, false);
    restoring(&fake, Some(120));
    let args = ["fleet", "plan", "--to", "v2.9.0", "--database", "restore"];
    let ended = fake.run(&args);
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(
        ended.stdout.contains("RESTORES app-1/api from backup db-20261121"),
        "{ended:?}"
    );
    let document = fake.run(&[&args[..], &["-o", "json"]].concat()).json();
    assert_eq!(document["losses"][0]["loss"]["rows"], 120);
    assert_eq!(document["plan"]["database"], "restore");
}
