use std::collections::BTreeMap;

use rollback_engine::event::Event;
use rollback_engine::plan::FORMAT;
use rollback_engine::release::Revision;

use super::*;
use crate::store::ComponentRecord;

fn agent(name: &str, labels: &[(&str, &str)], components: &[(&str, Role)]) -> AgentRecord {
    let component = |(name, role): &(&str, Role)| ComponentRecord {
        name: (*name).to_owned(),
        kind: "container".to_owned(),
        role: *role,
        capabilities: BTreeSet::new(),
        reads: BTreeSet::new(),
        backends: BTreeSet::new(),
        restores: false,
    };
    AgentRecord {
        name: name.to_owned(),
        address: "127.0.0.1:1".to_owned(),
        version: "1".to_owned(),
        ledger_generation: String::new(),
        components: components.iter().map(component).collect(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        registered_at: Timestamp::UNIX_EPOCH,
        certificate_expires: Timestamp::UNIX_EPOCH,
    }
}

fn fleet() -> Vec<AgentRecord> {
    vec![
        agent("app-1", &[("tier", "app"), ("zone", "a")], &[("api", Role::App)]),
        agent("app-2", &[("tier", "app"), ("zone", "b")], &[("api", Role::App)]),
        agent("db-1", &[("tier", "db")], &[("db", Role::Database)]),
    ]
}

fn labelled_by(labels: &[&str]) -> Result<Vec<String>, Problem> {
    let scope = v1::Scope {
        labels: labels.iter().map(|l| (*l).to_owned()).collect(),
        ..v1::Scope::default()
    };
    let request = request(scope, Purpose::Rollback, &fleet())?;
    Ok(request.labelled.into_iter().map(|host| host.0).collect())
}

#[test]
fn hosts_have_to_have_every_label() {
    assert_eq!(labelled_by(&["tier=app"]).expect("a label"), ["app-1", "app-2"]);
    assert_eq!(labelled_by(&["tier=app", "zone=b"]).expect("two labels"), ["app-2"]);
    let refused = |labels: &[&str]| labelled_by(labels).expect_err("a refusal").message;
    assert_eq!(
        refused(&["tier=web"]),
        "no host has the label tier=web; there are: tier=app, tier=db"
    );
    assert_eq!(
        refused(&["teir=app"]),
        "no host has the label teir=app; there are: tier=app, tier=db, zone=a, zone=b"
    );
    assert_eq!(
        refused(&["tier=db", "zone=a"]),
        "no host has all of these labels: tier=db, zone=a"
    );
    for bad in ["tier", "=app", &format!("tier={}", "x".repeat(600))] {
        assert_eq!(labelled_by(&[bad]).expect_err("no label").code, Code::BadName, "{bad}");
    }
}

#[test]
fn exactly_one_goal_is_asked_for() {
    let target = |release: &str, undo_of: &str, converge| v1::RollbackTarget {
        release: release.to_owned(),
        undo_of: undo_of.to_owned(),
        converge,
        ..v1::RollbackTarget::default()
    };
    assert_eq!(
        Goal::of(&target("v1", "", false)).expect("one"),
        Goal::Release("v1".to_owned())
    );
    assert_eq!(
        Goal::of(&target("", "0193", false)).expect("one"),
        Goal::Undo("0193".into())
    );
    assert_eq!(Goal::of(&target("", "", true)).expect("one"), Goal::Converge);
    for (release, undo_of, converge) in [
        ("", "", false),
        ("v1", "0193", false),
        ("v1", "", true),
        ("", "0193", true),
        ("--all", "", false),
    ] {
        assert!(
            Goal::of(&target(release, undo_of, converge)).is_err(),
            "{release} {undo_of} {converge}"
        );
    }
    assert!(
        on_failure(99).is_err(),
        "what is not known is not what the runbook says"
    );
}

/// The plan of a real journal: every component of the demo fleet changes.
fn demo() -> Plan {
    const JOURNAL: &str = include_str!("../../engine/tests/journals/v1-demo.jsonl");
    match serde_json::from_str(JOURNAL.lines().next().expect("a line")).expect("an event") {
        Event::Created { plan, .. } => *plan,
        other => panic!("a journal begins otherwise: {other:?}"),
    }
}

fn release(name: &str, second: i64, entries: Vec<ReleaseEntry>) -> Release {
    Release {
        name: name.into(),
        recorded_at: Timestamp::from_second(second).expect("a small number"),
        entries,
        ..unrecorded()
    }
}

#[test]
fn the_way_back_is_named_as_the_release_that_it_leads_to() {
    let (id, plan) = (RollbackId::from("0193a5c2-77aa"), demo().body);
    let before = release_before(&id, &plan, &[]);
    assert_eq!(before.name.as_str(), "before-0193a5c2");
    let was: BTreeMap<_, _> = plan.changes.iter().map(|c| (&c.target, &c.from)).collect();
    let is: BTreeMap<_, _> = before.entries.iter().map(|e| (&e.target, &e.revision)).collect();
    assert_eq!(is, was);

    let mut more = before.entries.clone();
    more.push(ReleaseEntry {
        target: Target::new("zzz", "api"),
        ..more[0].clone()
    });
    let mut other = before.entries.clone();
    other[0].revision = Revision {
        version: String::new(),
        digest: "sha256:other".into(),
    };
    let mut less = before.entries.clone();
    less.pop();
    let recorded = [
        release("older", 1, before.entries.clone()),
        release("whole", 2, more),
        release("other", 3, other),
        release("less", 4, less),
    ];
    assert_eq!(release_before(&id, &plan, &recorded).name.as_str(), "whole");
}

#[test]
fn data_that_were_put_aside_are_not_gone_back_to_by_a_plan() {
    let (id, mut plan) = (RollbackId::from("0193"), demo().body);
    assert!(check_way_back(&id, &plan, None).is_ok());
    let database = plan.changes.iter_mut().find(|c| c.role == Role::Database);
    database.expect("a database").from_backup = true;
    for choice in [None, Some(DatabaseChoice::Auto), Some(DatabaseChoice::Restore)] {
        let refused = check_way_back(&id, &plan, choice).expect_err("a refusal");
        assert_eq!(refused.code, Code::NoWayBack);
    }
    for choice in [DatabaseChoice::Keep, DatabaseChoice::Migrate] {
        assert!(check_way_back(&id, &plan, Some(choice)).is_ok());
    }
}

#[test]
fn what_is_not_stopped_while_a_schema_changes_is_named() {
    let told = |plan: &Plan, agents: &[AgentRecord]| -> Vec<String> {
        let found = warnings(plan, agents).into_iter();
        found.map(|f| format!("{}: {}", f.target, f.finding.message)).collect()
    };
    let mut body = demo().body;
    assert_eq!(body.format, FORMAT);
    let (apps, rest): (Vec<_>, Vec<_>) = body.changes.into_iter().partition(|c| c.role == Role::App);
    body.changes = rest;
    body.outside = apps.iter().map(|c| c.target.clone()).collect();
    let plan = Plan::seal(body);
    assert_eq!(told(&plan, &[]), Vec::<String>::new(), "what nobody has writes nothing");
    let one = &plan.body.outside[0];
    let agents = [agent(one.host.as_str(), &[], &[(one.component.as_str(), Role::App)])];
    let warned = told(&plan, &agents);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("are not stopped while") && warned[0].contains(&one.to_string()));
}

#[test]
fn a_proxy_that_makes_no_room_is_named() {
    let plan = demo();
    let restarted = plan
        .body
        .steps()
        .find(|s| s.action == Action::Stop)
        .expect("a stop")
        .target
        .clone();
    let mut body = plan.body;
    body.schema_changes = false;
    body.outside = vec![Target::new("zzz", "site")];
    let mut proxy = agent("zzz", &[], &[("site", Role::Proxy)]);
    proxy.components[0].backends.insert(BTreeSet::from([restarted.clone()]));
    let found = warnings(&Plan::seal(body), &[proxy]);
    assert!(
        found.iter().any(|f| f.finding.message.contains(&restarted.to_string())),
        "{found:?}"
    );
}
