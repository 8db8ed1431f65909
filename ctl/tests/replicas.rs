//! Several coordinators: refusals that name the leader, elections, endpoints that are silent, a leader that dies while it is
//! watched.

mod fake;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::Child;
use std::time::{Duration, Instant};

use fake::{Ended, Fake, ID, WatchReply};
use rollback_proto::problem::{Code, Hint, Problem};
use rollback_proto::v1::RollbackState;

const ROLLBACK: [&str; 5] = ["fleet", "rollback", "--to", "v2.9.0", "--yes"];
const WAITS: &str = "no coordinator leads at the moment; trying again";

/// A leader and a follower that names it; the context lists the follower alone.
fn leader_and_follower() -> (Fake, Fake) {
    let leader = Fake::start(RollbackState::Verified, false);
    let follower = leader.another("coord-2");
    follower.state().follow(Some(leader.endpoint()), None);
    follower.write_context("");
    (leader, follower)
}

/// How many events of the journal were written.
fn events(stdout: &str) -> usize {
    stdout.lines().filter(|l| l.starts_with("2026-11-21T")).count()
}

/// Reads stdout until so many events have arrived; answers with what was read, and with the rest to come.
fn until_events(child: &mut Child, wanted: usize) -> (String, BufReader<std::process::ChildStdout>) {
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut seen = String::new();
    while events(&seen) < wanted {
        assert_ne!(stdout.read_line(&mut seen).expect("read"), 0, "ended too early: {seen}");
    }
    (seen, stdout)
}

/// The rest of a run whose stdout was read so far.
fn to_the_end(child: Child, (mut seen, mut rest): (String, BufReader<std::process::ChildStdout>)) -> Ended {
    rest.read_to_string(&mut seen).expect("read");
    Ended {
        stdout: seen,
        ..Ended::of(child.wait_with_output().expect("wait"))
    }
}

#[test]
fn a_refusal_leads_to_a_leader_that_no_context_lists() {
    let (leader, follower) = leader_and_follower();
    let ended = follower.run(&ROLLBACK);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(events(&ended.stdout), 8, "{ended:?}");
    assert!(!ended.stderr.contains(WAITS), "{ended:?}");
    assert_eq!(leader.state().starts.len(), 1);
    assert_eq!(leader.state().watches, [0]);
    assert_eq!(follower.state().refused, 1, "from then on the leader is asked at once");
}

#[test]
fn a_watch_that_begins_at_a_follower_goes_on_at_the_leader_and_loses_nothing() {
    let (leader, follower) = leader_and_follower();
    follower.state().recorded = 3;
    let ended = follower.run(&["rollback", "watch", ID]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(events(&ended.stdout), 8, "every event once: {ended:?}");
    assert!(!ended.stderr.contains("connection lost"), "{ended:?}");
    assert_eq!((follower.state().refused, &leader.state().watches[..]), (1, &[3][..]));
}

#[test]
fn reads_are_answered_where_they_are_asked() {
    let (leader, follower) = leader_and_follower();
    for args in [&["fleet", "status"][..], &["rollback", "list"], &["rollback", "show"]] {
        assert_eq!(follower.run(args).code, 0, "{args:?}");
    }
    assert_eq!((leader.state().calls, follower.state().refused), (0, 0));
}

#[test]
fn a_token_is_handed_out_with_the_leaders_endpoint() {
    let (leader, follower) = leader_and_follower();
    let ended = follower.run(&["agent", "token", "app-9"]);
    let wanted = format!("--coordinator {} ", leader.endpoint());
    assert!(ended.stderr.contains(&wanted), "{ended:?}");
}

#[test]
fn a_leader_that_is_not_there_is_waited_for_until_another_leads() {
    let (mut leader, follower) = leader_and_follower();
    leader.kill();
    let until = Instant::now() + Duration::from_secs(1);
    follower.state().follow(Some(leader.endpoint()), Some(until));
    let ended = follower.run(&ROLLBACK);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.stderr.matches(WAITS).count(), 1, "{ended:?}");
    let why = format!("coord-2 does not lead; connect to {}", leader.endpoint());
    assert!(ended.stderr.contains(&why), "{ended:?}");
    assert_eq!(follower.state().starts.len(), 1);
}

#[test]
fn a_hint_to_a_stranger_is_not_followed() {
    let (_, follower) = leader_and_follower();
    // Another fleet, with a CA of its own.
    let stranger = Fake::start(RollbackState::Verified, false);
    let until = Instant::now() + Duration::from_secs(1);
    follower.state().follow(Some(stranger.endpoint()), Some(until));
    let ended = follower.run(&ROLLBACK);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(stranger.state().calls, 0);
    assert_eq!(follower.state().starts.len(), 1);
}

#[test]
fn an_election_is_waited_for() {
    let follower = Fake::start(RollbackState::Verified, false);
    let other = follower.another("coord-2");
    let until = Some(Instant::now() + Duration::from_secs(2));
    follower.state().follow(None, until);
    other.state().follow(None, None);
    follower.write_context_to(&[&other.endpoint(), &follower.endpoint()], "");
    let ended = follower.run(&ROLLBACK);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.stderr.matches(WAITS).count(), 1, "{ended:?}");
    assert_eq!(follower.state().starts.len(), 1);
    // Pauses of 100 ms, 200 ms, … up to 1 s: every replica is asked about once in each.
    assert!((2..=16).contains(&other.state().refused), "{}", other.state().refused);
}

#[test]
fn nobody_leads_and_it_stays_so() {
    let a = Fake::start(RollbackState::Verified, false);
    let b = a.another("coord-2");
    // Two that point at each other, as after a hand-over back and forth.
    a.state().follow(Some(b.endpoint()), None);
    b.state().follow(Some(a.endpoint()), None);
    let started = Instant::now();
    let ended = a.run(&[&ROLLBACK[..], &["-o", "json"]].concat());
    assert!(started.elapsed() >= Duration::from_secs(15));
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(ended.json()["error"]["code"], "RB0901");
    let wanted = "error RB0901: no coordinator leads, for 15 s now: coord-2 does not lead";
    assert!(ended.stderr.contains(wanted), "{ended:?}");
    assert!(
        ended.stderr.contains("what to do: find out why: rollbackctl doctor"),
        "{ended:?}"
    );
    assert_eq!(ended.stderr.matches(WAITS).count(), 1, "{ended:?}");
    let (a, b) = (a.state(), b.state());
    assert!(a.starts.is_empty() && b.starts.is_empty());
    // At least one pause of half a second between two rounds, after the first four; each replica once in a round.
    assert!((15..=36).contains(&a.refused), "{}", a.refused);
    assert_eq!(a.refused, b.refused);
}

#[test]
fn a_silent_endpoint_costs_a_fraction_of_a_second() {
    let fake = Fake::start(RollbackState::Verified, false);
    // Takes connections (the kernel does), and says nothing: as a host that is down or frozen.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("an address").to_string();
    let (silent_too, gone) = (silent.clone(), "127.0.0.1:1");
    fake.write_context_to(&[&silent, &silent_too, gone, &fake.endpoint()], "");
    let started = Instant::now();
    assert_eq!(fake.run(&["rollback", "list"]).code, 0);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn a_watch_goes_on_at_the_next_leader_when_its_leader_dies() {
    let (mut leader, follower) = leader_and_follower();
    leader.state().watch_replies.push_back(WatchReply::HangsAfter(4));
    let mut child = follower.spawn(&["rollback", "watch", ID]);
    let seen = until_events(&mut child, 4);
    // The lease goes on for a second: until then the follower names the one that died, and has one event more than that had
    // told.
    let until = Instant::now() + Duration::from_secs(1);
    follower.state().recorded = 5;
    follower.state().follow(Some(leader.endpoint()), Some(until));
    leader.kill();
    let ended = to_the_end(child, seen);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(events(&ended.stdout), 8, "every event once: {ended:?}");
    let lost = ended
        .stderr
        .matches("coordinator connection lost, reconnecting")
        .count();
    let back = ended.stderr.matches("coordinator connection is back").count();
    assert_eq!((lost, back), (1, 1), "{ended:?}");
    assert_eq!(leader.state().watches, [0]);
    assert_eq!(follower.state().watches, [5]);
    // The first one, and then with pauses.
    assert!(
        (3..=30).contains(&follower.state().refused),
        "{}",
        follower.state().refused
    );
}

#[test]
fn a_watch_at_replicas_that_point_at_each_other_waits_between_its_attempts() {
    let a = Fake::start(RollbackState::Verified, false);
    let b = a.another("coord-2");
    let until = Some(Instant::now() + Duration::from_secs(1));
    a.state().follow(Some(b.endpoint()), until);
    b.state().follow(Some(a.endpoint()), None);
    let ended = a.run(&["rollback", "watch", ID]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(events(&ended.stdout), 8, "every event once: {ended:?}");
    assert_eq!(
        ended.stderr.matches("coordinator connection lost").count(),
        1,
        "{ended:?}"
    );
    assert!(a.state().refused <= 24, "{}", a.state().refused);
}

#[test]
fn a_watch_follows_a_hand_over_from_leader_to_leader() {
    let first = Fake::start(RollbackState::Verified, false);
    let (second, idle) = (first.another("coord-2"), first.another("coord-3"));
    idle.state().follow(Some(first.endpoint()), None);
    let steps_down =
        |to: &Fake| Problem::new(Code::NotLeader, "has given the lead back").hint(Hint::Leader(to.endpoint()));
    first.state().watch_replies.push_back(WatchReply::Fails {
        after: 3,
        problem: steps_down(&second),
    });
    second.state().watch_replies.push_back(WatchReply::Fails {
        after: 6,
        problem: steps_down(&first),
    });
    first.write_context_to(&[&first.endpoint(), &idle.endpoint()], "");
    let ended = first.run(&["rollback", "watch", ID]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(events(&ended.stdout), 8, "every event once: {ended:?}");
    assert_eq!(first.state().watches, [0, 6]);
    assert_eq!(second.state().watches, [3]);
    assert_eq!(idle.state().refused, 0, "who leads was said; nobody else is asked");
}

#[test]
fn doctor_asks_every_replica_and_the_leader_that_they_name() {
    let (mut leader, follower) = leader_and_follower();
    follower.state().info.note = "the last renewal was slow".to_owned();
    let ended = follower.run(&["doctor"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let unlisted = format!(
        "coord-1 leads at {}, which the context does not list",
        leader.endpoint()
    );
    for wanted in [
        "coord-2 follows coord-1, epoch 3",
        "coord-2: the last renewal was slow",
        &unlisted,
    ] {
        assert!(ended.stdout.contains(wanted), "{wanted:?} is not in {ended:?}");
    }

    // Listed, it is well; one that is silent meanwhile is a warning, and makes no clock look wrong.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("an address").to_string();
    follower.write_context_to(&[&follower.endpoint(), &silent, &leader.endpoint()], "");
    let ended = follower.run(&["doctor", "-o", "json"]);
    let json = ended.json();
    assert_eq!((ended.code, json["ok"].as_bool()), (0, Some(true)), "{ended:?}");
    let standings: Vec<_> = json["replicas"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|r| (r["server"]["standing"].as_str(), r["problem"]["code"].as_str()))
        .collect();
    let wanted = [
        (Some("following"), None),
        (None, Some("RB0300")),
        (Some("leading"), None),
    ];
    assert_eq!(standings, wanted);
    assert_eq!(json["replicas"][0]["server"]["leader"], "coord-1");
    let levels = |name: &str| -> Vec<String> {
        let checks = json["checks"].as_array().expect("a list").iter();
        checks
            .filter(|c| c["name"] == name)
            .map(|c| c["level"].as_str().unwrap_or("").to_owned())
            .collect()
    };
    assert_eq!(levels("endpoint"), ["ok", "warn", "ok"]);
    assert_eq!(
        (levels("leader"), levels("clock")),
        (vec!["ok".to_owned()], vec!["ok".to_owned()])
    );

    leader.kill();
    let ended = follower.run(&["doctor"]);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(
        ended.stdout.contains("which does not answer here as a leader"),
        "{ended:?}"
    );
}

#[test]
fn doctor_recognizes_an_http_port_and_another_fleets_coordinator() {
    let fake = Fake::start(RollbackState::Verified, false);
    // Another fleet, with a CA of its own.
    let stranger = Fake::start(RollbackState::Verified, false);
    let http = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = http.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for mut stream in http.incoming().flatten() {
            let mut hello = [0; 4096];
            if stream.read(&mut hello).is_ok() {
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
            }
        }
    });
    fake.write_context_to(&[&fake.endpoint(), &port, &stranger.endpoint()], "");
    let ended = fake.run(&["doctor"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    for wanted in ["this may be the http port", "its certificate is of another CA"] {
        assert!(ended.stdout.contains(wanted), "{wanted:?} is not in {ended:?}");
    }
    assert!(!ended.stdout.contains("enroll the agent"), "{ended:?}");
}
