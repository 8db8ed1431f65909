//! The operator's hands as an operator or a script meets them: a plan as a file, the acts on a rollback that runs, and what
//! is started over one that has ended.

mod fake;

use std::os::unix::fs::PermissionsExt as _;

use fake::{Ended, Fake, ID, StartReply};
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::rollback_event::Kind;
use rollback_proto::v1::steer_rollback_request::Act;
use rollback_proto::v1::steer_rollback_request::abort::Then;
use rollback_proto::v1::{self, RollbackState};

const SEALED: &[u8] = br#"{"body":{"format":1},"digest":"sha256:77cc"}"#;

/// A fleet whose plan can be saved.
fn with_plan() -> Fake {
    let fake = Fake::start(RollbackState::Verified, false);
    fake.state().plan.sealed = SEALED.to_vec();
    fake
}

fn path(fake: &Fake, name: &str) -> String {
    fake.directory.path().join(name).display().to_string()
}

/// One that runs, with two hosts; `change` says how.
fn running(change: impl FnOnce(&mut v1::RollbackSummary)) -> Fake {
    let fake = Fake::start(RollbackState::Running, false);
    {
        let mut state = fake.state();
        let summary = state.details.summary.as_mut().expect("has a summary");
        summary.ended_at = None;
        summary.problem = None;
        change(summary);
    }
    fake
}

fn paused(by: &str, failed: &[&str]) -> v1::Standstill {
    v1::Standstill {
        by: by.to_owned(),
        reason: "graphs".to_owned(),
        failed_hosts: failed.iter().map(|&h| h.to_owned()).collect(),
        in_flight: 1,
        ..v1::Standstill::default()
    }
}

fn only_act(fake: &Fake) -> (v1::SteerRollbackRequest, Act) {
    let state = fake.state();
    let [request] = &state.steers[..] else {
        panic!("{:?}", state.steers)
    };
    (request.clone(), request.act.clone().expect("an act"))
}

#[test]
fn saved_plan_is_the_one_that_starts() {
    let fake = with_plan();
    let file = path(&fake, "plan.json");
    let save = [
        "fleet",
        "plan",
        "--to",
        "previous",
        "--service",
        "api",
        "--on-failure",
        "pause",
        "--out",
        &file,
    ];
    let ended = fake.run(&save);
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(
        ended
            .stdout
            .contains(&format!("rollbackctl fleet rollback --plan {file}")),
        "{ended:?}"
    );
    let mode = std::fs::metadata(&file).expect("is written").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let ended = fake.run(&save);
    assert_eq!(
        (ended.code, fake.state().plans.len()),
        (1, 1),
        "refused before the fleet is asked: {ended:?}"
    );
    assert!(
        ended.stderr.contains("RB0215") && ended.stderr.contains("--force"),
        "{ended:?}"
    );
    assert_eq!(fake.run(&[&save[..], &["--force"]].concat()).code, 2);

    let ended = fake.run(&["fleet", "rollback", "--plan", &file, "--yes"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let state = fake.state();
    let [start] = &state.starts[..] else {
        panic!("{:?}", state.starts)
    };
    assert_eq!(start.sealed_plan, SEALED);
    assert_eq!(start.plan_digest, "sha256:77cc");
    let target = start.target.clone().expect("a target");
    assert_eq!(target.release, "v2.9.0", "what `previous` was then");
    assert_eq!(target.on_failure(), v1::FailureChoice::Pause);
    assert_eq!(target.scope.expect("a scope").services, ["api"]);
}

#[test]
fn stale_plan_is_refused_with_what_moved() {
    let fake = with_plan();
    let file = path(&fake, "plan.json");
    assert_eq!(fake.run(&["fleet", "plan", "--to", "v2.9.0", "--out", &file]).code, 2);
    let stale = Problem::new(
        Code::PlanStale,
        "the saved plan is not the plan of now: app-1/api: was v3.0.0, is v3.0.1",
    );
    fake.state().start_replies.push_back(StartReply::Refused(stale.clone()));
    let ended = fake.run(&["fleet", "rollback", "--plan", &file, "--yes", "-o", "json"]);
    assert_eq!(
        (ended.code, ended.json()["error"]["code"].as_str()),
        (3, Some("RB0206")),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("app-1/api: was v3.0.0, is v3.0.1"), "{ended:?}");

    // What is looked at before agreeing comes from the coordinator, with the file's seal, and not from the file.
    fake.state().plan_refusals.push_back(stale);
    let ended = fake.run(&["fleet", "rollback", "--plan", &file, "--yes", "--accept-data-loss"]);
    assert_eq!(ended.code, 3, "{ended:?}");
    let state = fake.state();
    assert_eq!(state.plans.last().map(|p| p.sealed_plan.as_slice()), Some(SEALED));
    assert_eq!(state.starts.len(), 1);
}

#[test]
fn other_files_and_contradictions_are_refused_before_anybody_is_asked() {
    let fake = with_plan();
    let file = path(&fake, "notes.txt");
    std::fs::write(&file, "{}").expect("write");
    let ended = fake.run(&["fleet", "rollback", "--plan", &file, "--yes"]);
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains("error RB0215") && ended.stderr.contains("notes.txt"),
        "{ended:?}"
    );
    for more in [
        ["--to", "v1"],
        ["--service", "api"],
        ["--runbook", "x"],
        ["--on-failure", "hold"],
        ["-l", "a=b"],
    ] {
        let args = [&["fleet", "rollback", "--yes", "--plan", &file][..], &more].concat();
        assert_eq!(fake.run(&args).code, 1, "{more:?}");
    }
    for wrong in [["--service", "a b"], ["--exclude-host", "../x"], ["-l", "tier"]] {
        let args = [&["fleet", "plan", "--to", "v1"][..], &wrong].concat();
        let ended = fake.run(&args);
        assert!(
            ended.code == 1 && ended.stderr.contains("RB0001"),
            "{wrong:?}: {ended:?}"
        );
    }
    assert_eq!(
        fake.run(&["fleet", "plan", "--to", "v1", "--out", "/proc/none/plan.json"])
            .code,
        1
    );
    assert_eq!(fake.state().starts.len(), 0);
}

#[test]
fn pause_says_what_it_means_for_users() {
    let fake = running(|s| s.standstill = Some(paused("ana", &[])));
    {
        let mut state = fake.state();
        let step = |id: u32, action: v1::Action, component: &str| v1::StepReport {
            id,
            host: "edge".to_owned(),
            component: component.to_owned(),
            action: action.into(),
            outcome: Some(v1::Outcome {
                status: v1::outcome::Status::Succeeded.into(),
                ..v1::Outcome::default()
            }),
            ..v1::StepReport::default()
        };
        state.details.steps = vec![step(0, v1::Action::Drain, "site"), step(1, v1::Action::Stop, "api")];
    }
    let ended = fake.run(&["rollback", "pause", ID, "--reason", "graphs"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let (request, act) = only_act(&fake);
    assert!(matches!(act, Act::Pause(_)));
    assert_eq!((request.id.as_str(), request.reason.as_str()), (ID, "graphs"));
    for said in [
        "PAUSED",
        "by ana: graphs",
        "1 step that was begun before is not over yet",
        "users get the maintenance answer of edge/site until it goes on",
        "stopped until it goes on: edge/api",
        "rollbackctl rollback resume",
        "rollbackctl rollback abort",
    ] {
        assert!(ended.stdout.contains(said), "{said}: {ended:?}");
    }
    let ended = fake.run(&["rollback", "pause", "-o", "json"]);
    assert_eq!((ended.code, ended.json()["exit_code"].as_i64()), (0, Some(0)));
}

#[test]
fn every_act_reaches_the_coordinator_as_it_was_meant() {
    type Fits = fn(&Act) -> bool;
    let acts: [(&[&str], Fits); 6] = [
        (&["resume", ID], |a| matches!(a, Act::Resume(_))),
        (
            &["retry", ID, "--host", "app-1,app-2"],
            |a| matches!(a, Act::Retry(r) if r.hosts == ["app-1", "app-2"]),
        ),
        (
            &["skip", ID, "--host", "app-2", "--reason", "disk"],
            |a| matches!(a, Act::Skip(s) if s.hosts == ["app-2"]),
        ),
        (
            &["abort", ID, "--undo", "--reason", "no", "--yes"],
            |a| matches!(a, Act::Abort(a) if a.then() == Then::Undo),
        ),
        (
            &["abort", ID, "--hold", "--reason", "no", "--yes"],
            |a| matches!(a, Act::Abort(a) if a.then() == Then::Hold),
        ),
        (
            &["approve", ID, "--yes", "--digest", "77cc"],
            |a| matches!(a, Act::Approve(a) if a.plan_digest == "sha256:77cc"),
        ),
    ];
    for (args, fits) in acts {
        let fake = running(|_| {});
        let ended = fake.run(&[&["rollback"][..], args].concat());
        assert_eq!(ended.code, 0, "{args:?}: {ended:?}");
        let (request, act) = only_act(&fake);
        assert!(fits(&act), "{args:?}: {act:?}");
        assert_eq!(request.id, ID);
        assert!(
            ended.stdout.contains(&format!("rollbackctl rollback watch {ID}")),
            "{ended:?}"
        );

        fake.state()
            .steer_refusals
            .push_back(Some(Problem::new(Code::ActUnfit, "it is not paused")));
        let ended = fake.run(&[&["rollback"][..], args, &["-o", "json"]].concat());
        assert_eq!(
            (ended.code, ended.json()["error"]["code"].as_str()),
            (1, Some("RB0210")),
            "{args:?}"
        );
    }
}

#[test]
fn what_has_to_be_said_is_asked_for_before_anything_is_done() {
    let fake = running(|_| {});
    let cases: [&[&str]; 8] = [
        &["skip", ID],
        &["abort", ID, "--reason", "x", "--yes"],
        &["abort", ID, "--undo", "--hold", "--reason", "x", "--yes"],
        &["abort", ID, "--undo", "--yes"],
        &["abort", ID, "--undo", "--reason", "x"],
        &["approve", ID],
        &["approve", ID, "--yes"],
        &["retry", "../x"],
    ];
    for args in cases {
        let ended = fake.run(&[&["rollback"][..], args].concat());
        assert_eq!(ended.code, 1, "{args:?}: {ended:?}");
    }
    assert!(fake.state().steers.is_empty());

    let ended = fake.run(&["rollback", "approve", ID, "--yes", "--digest", "77cd"]);
    assert_eq!(ended.code, 3, "another plan: {ended:?}");
    assert!(fake.state().steers.is_empty());
    let refused = Problem::new(Code::ApprovalRefused, "ana has started it");
    fake.state().steer_refusals.push_back(Some(refused));
    assert_eq!(
        fake.run(&["rollback", "approve", ID, "--yes", "--digest", "77cc"]).code,
        3
    );
}

#[test]
fn act_whose_answer_was_lost_is_asked_for_again() {
    let mut fake = running(|s| s.standstill = Some(paused("ana", &["app-2"])));
    fake.state().steer_refusals.push_back(None);
    let child = fake.spawn(&["rollback", "pause", ID, "--reason", "graphs"]);
    fake.wait_for_hang();
    fake.kill();
    fake.restart();
    let ended = Ended::of(child.wait_with_output().expect("wait"));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("asking again"), "{ended:?}");
    assert!(
        ended.stdout.contains("app-2 again: rollbackctl rollback retry"),
        "{ended:?}"
    );
    let state = fake.state();
    assert_eq!(state.steers.len(), 2);
    assert_eq!(state.steers[0], state.steers[1]);
}

#[test]
fn an_ended_rollback_is_retried_where_it_did_not_arrive_and_undone_as_a_whole() {
    let fake = Fake::start(RollbackState::Partial, false);
    let ended = fake.run(&["rollback", "retry", "latest", "--yes"]);
    assert_eq!(ended.code, 4, "of the new one: {ended:?}");
    let target = fake.state().starts[0].target.clone().expect("a target");
    assert_eq!(
        (target.release.as_str(), target.runbook.as_str()),
        ("v2.9.0", "default")
    );
    assert_eq!(target.scope.expect("a scope").hosts, ["app-2"]);
    assert!(fake.state().steers.is_empty());
    assert_eq!(
        fake.run(&["rollback", "retry", ID, "--host", "app-1", "--yes"]).code,
        1,
        "it was reached"
    );

    let fake = Fake::start(RollbackState::Verified, false);
    assert_eq!(fake.run(&["rollback", "retry", ID, "--yes"]).code, 1, "nothing is left");
    let ended = fake.run(&[
        "rollback",
        "undo",
        "latest",
        "--database",
        "keep",
        "--reason",
        "not it",
        "--yes",
    ]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let target = fake.state().starts[0].target.clone().expect("a target");
    assert_eq!((target.undo_of.as_str(), target.release.as_str()), (ID, ""));
    assert_eq!(target.database(), v1::DatabaseChoice::Keep);
    assert_eq!(fake.run(&["rollback", "undo", ID]).code, 1, "nobody can be asked");
    let no_way = Problem::new(Code::NoWayBack, "db-1/db was restored from a backup");
    fake.state().start_replies.push_back(StartReply::Refused(no_way));
    assert_eq!(fake.run(&["rollback", "undo", ID, "--yes"]).code, 3);

    let fake = running(|_| {});
    let ended = fake.run(&["rollback", "undo", ID, "--yes"]);
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains(&format!("rollback abort {ID} --undo")),
        "{ended:?}"
    );
}

#[test]
fn watcher_sees_a_standstill_and_who_may_approve() {
    let fake = Fake::start(RollbackState::Verified, false);
    {
        let mut state = fake.state();
        let within = prost_types::Duration { seconds: 900, nanos: 0 };
        state.details.plan.as_mut().expect("a plan").approve_within = Some(within);
        state.plan.plan.as_mut().expect("a plan").approve_within = Some(within);
        state.journal[0].by = "ana".to_owned();
        let at = state.journal[3].at;
        let act = |seq: u64, kind: Kind, by: &str, reason: &str| v1::RollbackEvent {
            seq,
            at,
            kind: kind.into(),
            by: by.to_owned(),
            reason: reason.to_owned(),
            ..v1::RollbackEvent::default()
        };
        let acts = [
            act(0, Kind::Approved, "ben", "looked at it"),
            act(0, Kind::Paused, "ben", "graphs"),
            act(0, Kind::Resumed, "ana", ""),
        ];
        state.journal.splice(4..4, acts);
        for (seq, event) in (1..).zip(&mut state.journal) {
            event.seq = seq;
        }
    }
    let ended = fake.run(&["rollback", "watch", ID]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let line = |what: &str| {
        let found = ended.stdout.lines().find(|l| l.contains(what));
        found.unwrap_or_else(|| panic!("{what}: {ended:?}")).to_owned()
    };
    let asked = line("AWAITS APPROVAL of another operator than ana until 2026-11-21 03:27:41Z");
    assert!(asked.contains(&format!("rollbackctl rollback approve {ID}")), "{asked}");
    assert!(line("approved").contains("by ben: looked at it"));
    let paused = line("PAUSED");
    for said in [
        "by ben: graphs",
        "2 steps that were begun before are",
        "go on: rollbackctl rollback resume",
    ] {
        assert!(paused.contains(said), "{said}: {paused}");
    }
    assert!(line("resumed").contains("by ana"));

    let ended = fake.run(&["fleet", "rollback", "--to", "v2.9.0", "--yes", "--detach"]);
    assert_eq!(ended.code, 7);
    assert!(
        ended.stderr.contains("another operator has approved it, within 15 min"),
        "{ended:?}"
    );
}
