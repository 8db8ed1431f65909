//! A part of a release: what is in a plan that asks for it, what joins for its sake, what stays outside, and what is refused.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rollback_engine::lint::lint;
use rollback_engine::plan::{ApprovalRule, Change, OnFailure, PhaseName, Plan, Selection};
use rollback_engine::planner::{PlanRefused, Purpose, Refusal, Request, plan};
use rollback_engine::release::{Action, Role};
use rollback_engine::runbook::{BatchSize, Converge, Runbook, SecondPerson, Span, Unreachable};

use crate::fleets::{Fleet, default_runbook};
use crate::properties::{fleet, runbook};

/// Two servers with two applications each, both behind one proxy, and a database. Everything changes.
fn shop() -> Fleet {
    let servers = ["app-1", "app-2"].into_iter().fold(Fleet::empty(), |fleet, host| {
        fleet
            .with(host, "api", Role::App, true, &["env"])
            .with(host, "env", Role::Config, true, &[])
            .with(host, "web", Role::App, true, &["web-env"])
            .with(host, "web-env", Role::Config, true, &[])
    });
    servers
        .with("db-1", "db", Role::Database, true, &[])
        .with("proxy-1", "site", Role::Proxy, true, &[])
        .behind("proxy-1", "site", &["app-1/api", "app-2/api"])
        .behind("proxy-1", "site", &["app-1/web", "app-2/web"])
}

/// "api", "@app-1", "-web", "-@app-2": services and hosts, or without them.
fn asked(words: &[&str]) -> Request {
    let mut selection = Selection::default();
    for word in words {
        let (exclude, word) = word.strip_prefix('-').map_or((false, *word), |word| (true, word));
        match (exclude, word.strip_prefix('@')) {
            (false, None) => selection.services.insert(word.into()),
            (true, None) => selection.exclude_services.insert(word.into()),
            (false, Some(host)) => selection.hosts.insert(host.into()),
            (true, Some(host)) => selection.exclude_hosts.insert(host.into()),
        };
    }
    Request {
        selection,
        ..Request::default()
    }
}

fn planned(fleet: &Fleet, runbook: &Runbook, request: &Request) -> Result<Plan, PlanRefused> {
    plan(&fleet.observed, &fleet.release, runbook, request)
}

fn sound(fleet: &Fleet, words: &[&str]) -> Plan {
    let plan = planned(fleet, &default_runbook(), &asked(words)).expect("a plan");
    assert_eq!(lint(&plan), vec![]);
    plan
}

fn refused(fleet: &Fleet, words: &[&str]) -> Vec<Refusal> {
    let refused = planned(fleet, &default_runbook(), &asked(words)).expect_err("a refusal");
    refused.reasons
}

fn names<'a>(changes: impl Iterator<Item = &'a Change>) -> Vec<String> {
    changes.map(|c| c.target.to_string()).collect()
}

fn moved(plan: &Plan) -> Vec<String> {
    names(plan.body.changes.iter().filter(|c| c.is_needed()))
}

fn beside(plan: &Plan) -> Vec<String> {
    names(plan.body.changes.iter().filter(|c| !c.is_needed()))
}

fn outside(plan: &Plan) -> Vec<String> {
    plan.body.outside.iter().map(ToString::to_string).collect()
}

fn does(plan: &Plan, action: Action) -> Vec<String> {
    let steps = plan.body.steps().filter(|s| s.action == action);
    steps.map(|s| s.subject()).collect()
}

#[test]
fn an_application_brings_its_configuration_and_the_proxy_that_makes_room_for_it() {
    let plan = sound(&shop(), &["api"]);
    assert_eq!(moved(&plan), ["app-1/api", "app-1/env", "app-2/api", "app-2/env"]);
    assert_eq!(beside(&plan), ["proxy-1/site"]);
    assert_eq!(
        outside(&plan),
        ["app-1/web", "app-1/web-env", "app-2/web", "app-2/web-env", "db-1/db"]
    );
    // It is drained and verified, and is where it was; the release has another revision of it.
    assert_eq!(
        does(&plan, Action::Drain),
        ["proxy-1/site (app-1/api)", "proxy-1/site (app-2/api)"]
    );
    let proxy = plan.body.changes.last().expect("the proxy sorts last");
    assert!(proxy.left.is_some() && proxy.from == proxy.to);
    assert!(does(&plan, Action::Verify).contains(&"proxy-1/site".to_owned()));
    // The database is not part of it: nobody waits for its backup.
    assert_eq!(does(&plan, Action::Snapshot), ["app-1/env", "app-2/env"]);
    assert_eq!(plan.body.selection, asked(&["api"]).selection);
}

#[test]
fn hosts_and_exclusions_narrow_it() {
    let one = sound(&shop(), &["api", "@app-1"]);
    assert_eq!(moved(&one), ["app-1/api", "app-1/env"]);
    assert_eq!(beside(&one), ["proxy-1/site"], "it makes room wherever it stands");
    let without = sound(&shop(), &["-@app-2", "-db", "-site"]);
    assert_eq!(
        moved(&without),
        ["app-1/api", "app-1/env", "app-1/web", "app-1/web-env"]
    );
    assert_eq!(beside(&without), Vec::<String>::new(), "what is excluded does not join");
    assert_eq!(does(&without, Action::Drain), Vec::<String>::new());
}

/// Labels are the coordinator's to look up.
#[test]
fn labels_are_the_hosts_that_have_them() {
    let mut request = asked(&["web"]);
    request.selection.labels.insert("zone=b".to_owned());
    request.labelled.insert("app-2".into());
    let plan = planned(&shop(), &default_runbook(), &request).expect("a plan");
    assert_eq!(lint(&plan), vec![]);
    assert_eq!(moved(&plan), ["app-2/web", "app-2/web-env"]);
}

/// It would start with the other configuration some day, and nobody would look.
#[test]
fn whoever_reads_a_configuration_that_changes_starts_anew_with_it() {
    let shared = Fleet::empty()
        .with("app-1", "api", Role::App, true, &["env"])
        .with("app-1", "env", Role::Config, true, &[])
        .with("app-1", "web", Role::App, true, &["env"])
        .with("app-2", "web", Role::App, true, &[]);
    let plan = sound(&shared, &["api"]);
    assert_eq!(moved(&plan), ["app-1/api", "app-1/env"]);
    assert_eq!(beside(&plan), ["app-1/web"]);
    assert_eq!(does(&plan, Action::Start), ["app-1/api", "app-1/web"]);
    assert_eq!(outside(&plan), ["app-2/web"]);

    assert_eq!(
        refused(&shared, &["-web"]),
        [Refusal::ReaderExcluded {
            target: shared.release.entries[2].target.clone(),
            config: "env".into(),
        }]
    );
    let kept = sound(&shared, &["-web", "-env"]);
    assert_eq!(moved(&kept), ["app-1/api"]);
}

/// Nobody writes under a schema that changes: everything that may is stopped as it is. Hosts are a line.
#[test]
fn a_database_stops_what_is_on_the_hosts_that_were_asked_for() {
    let all = sound(&shop(), &["db"]);
    assert_eq!(moved(&all), ["db-1/db"]);
    let stopped = ["app-1/api", "app-1/web", "app-2/api", "app-2/web"];
    assert_eq!(does(&all, Action::Stop), stopped);
    assert_eq!(does(&all, Action::Start), stopped);
    assert_eq!(does(&all, Action::Drain), ["proxy-1/site"]);
    assert_eq!(does(&all, Action::Switch), ["db-1/db"]);

    let line = sound(&shop(), &["@db-1", "@app-1"]);
    assert_eq!(does(&line, Action::Stop), ["app-1/api", "app-1/web"]);
    assert!(outside(&line).contains(&"app-2/api".to_owned()));

    let excluded = sound(&shop(), &["db", "-web", "-web-env"]);
    assert_eq!(does(&excluded, Action::Stop), ["app-1/api", "app-2/api"]);
}

#[test]
fn names_that_are_none_are_refused_with_those_that_there_are() {
    let message = |words: &[&str]| {
        let refused = planned(&shop(), &default_runbook(), &asked(words)).expect_err("a refusal");
        refused.to_string()
    };
    insta::assert_snapshot!(
        [
            message(&["ap"]),
            message(&["api", "-wbe"]),
            message(&["@app-9"]),
            message(&["-@app-9", "nobody"]),
            message(&["db", "@app-1", "api"]),
            message(&["api", "-@app-1", "-@app-2"]),
            message(&["api", "@db-1"]),
        ]
        .join("\n")
    );
}

/// Nobody knows what an application on a host that is away reads; when it is back, all of it goes where it belongs.
#[test]
fn a_host_that_is_away_is_left_out_with_its_configurations() {
    let mut runbook = default_runbook();
    runbook.unreachable = Unreachable::SkipAll;
    let plan = planned(&shop().unreachable("app-2"), &runbook, &asked(&["api"])).expect("a plan");
    assert_eq!(lint(&plan), vec![]);
    assert_eq!(plan.body.excused.len(), 1);
    assert_eq!(outside(&plan), ["app-1/web", "app-1/web-env", "app-2/web", "db-1/db"]);
    // It is not about that host at all.
    let web = planned(&shop().unreachable("db-1"), &runbook, &asked(&["web"])).expect("a plan");
    assert_eq!(web.body.excused, vec![]);
}

#[test]
fn a_runbook_may_be_for_some_services() {
    let runbook = Runbook {
        services: BTreeSet::from(["api".into(), "web".into()]),
        ..default_runbook()
    };
    let plan = planned(&shop(), &runbook, &Request::default()).expect("a plan");
    assert_eq!(lint(&plan), vec![]);
    assert_eq!(outside(&plan), ["db-1/db"]);
    assert_eq!(plan.body.selection.services, runbook.services, "readers see the part");
    let less = planned(&shop(), &runbook, &asked(&["web"])).expect("a plan");
    assert_eq!(moved(&less).len(), 4);
    let refused = planned(&shop(), &runbook, &asked(&["db"])).expect_err("a refusal");
    assert!(
        matches!(&refused.reasons[..], [Refusal::ServiceNotOfRunbook { .. }]),
        "{refused}"
    );
}

fn sizes(plan: &Plan) -> Vec<usize> {
    let app = plan.body.phases.iter().find(|p| p.name == PhaseName::App);
    app.expect("an app phase")
        .batches
        .iter()
        .map(|b| b.lanes.len())
        .collect()
}

#[test]
fn no_batch_takes_more_hosts_than_may_be_unavailable() {
    let ten = (0..10).fold(Fleet::empty(), |fleet, i| {
        fleet.with(&format!("app-{i}"), "api", Role::App, true, &[])
    });
    let limited = Runbook {
        max_unavailable: BatchSize::Percent(25),
        ..default_runbook()
    };
    let plan = planned(&ten, &limited, &Request::default()).expect("a plan");
    assert_eq!(lint(&plan), vec![]);
    assert_eq!(sizes(&plan), [1, 3, 3, 3]);
    let limits: Vec<_> = plan
        .body
        .phases
        .iter()
        .filter(|p| p.max_unavailable == Some(3))
        .collect();
    assert_eq!(
        limits.iter().map(|p| p.name).collect::<Vec<_>>(),
        [PhaseName::App, PhaseName::Verify]
    );
    // All are down already, and everybody waits for the last.
    let quiesced = ten.with("db-1", "db", Role::Database, true, &[]);
    let plan = planned(&quiesced, &limited, &Request::default()).expect("a plan");
    assert_eq!(sizes(&plan), [10]);
    // One batch of all hosts is no wish for speed any more: backends are drained.
    let at_once = Runbook {
        batches: vec![BatchSize::Percent(100)],
        max_unavailable: BatchSize::Count(1),
        ..default_runbook()
    };
    let plan = planned(&shop(), &at_once, &asked(&["api"])).expect("a plan");
    assert_eq!(does(&plan, Action::Drain).len(), 2);
}

/// A release that does not work is found on the first host, before users meet it there.
#[test]
fn each_batch_is_verified_before_its_hosts_serve_again() {
    let lane = |checks: bool| -> Vec<Action> {
        let mut runbook = default_runbook();
        runbook.checks.after_batch = checks;
        let plan = planned(&shop(), &runbook, &asked(&["api"])).expect("a plan");
        assert_eq!(lint(&plan), vec![]);
        let app = plan
            .body
            .phases
            .iter()
            .find(|p| p.name == PhaseName::App)
            .expect("an app phase");
        app.batches[0].lanes[0].steps.iter().map(|s| s.action).collect()
    };
    use Action::{Drain, Resume, Start, Stop, Switch, Verify};
    assert_eq!(lane(true), [Drain, Stop, Switch, Switch, Start, Verify, Resume]);
    assert_eq!(lane(false), [Drain, Stop, Switch, Switch, Start, Resume]);
}

#[test]
fn a_plan_carries_what_its_runbook_says_of_people_and_of_afterwards() {
    let mut runbook = default_runbook();
    runbook.consent.second_person = SecondPerson::DataLoss;
    runbook.consent.approve_within = Span { millis: 1000 };
    runbook.converge = Converge::Automatic;
    let by = |runbook: &Runbook, purpose: Purpose| {
        let request = Request {
            purpose,
            ..Request::default()
        };
        planned(&shop(), runbook, &request).expect("a plan").body
    };
    let plain = by(&runbook, Purpose::Rollback);
    assert_eq!((plain.approval, plain.converges, plain.holds), (None, true, true));
    let restore = runbook
        .clone()
        .with_database(rollback_engine::plan::DatabaseChoice::Restore);
    let approved = Some(ApprovalRule { within_ms: 1000 });
    assert_eq!(by(&restore, Purpose::Rollback).approval, approved);
    runbook.consent.second_person = SecondPerson::Always;
    assert_eq!(by(&runbook, Purpose::Rollback).approval, approved);
    // Neither the way forward again nor the way home says that a release is bad.
    let undo = by(&runbook, Purpose::Undo("0193".into()));
    assert_eq!((undo.undo_of, undo.holds), (Some("0193".into()), false));
    assert!(!by(&runbook, Purpose::Converge).holds);
    runbook.hold = false;
    assert!(!by(&runbook, Purpose::Rollback).holds);
}

#[test]
fn an_operator_may_say_what_failures_lead_to() {
    let runbook = default_runbook().with_on_failure(OnFailure::Pause);
    let plan = planned(&shop(), &runbook, &Request::default()).expect("a plan");
    assert_eq!(lint(&plan), vec![]);
    for phase in &plan.body.phases {
        let expected = match phase.name {
            PhaseName::Preflight => OnFailure::Undo,
            PhaseName::Finish => OnFailure::Continue,
            PhaseName::Stage
            | PhaseName::Protect
            | PhaseName::Quiesce
            | PhaseName::Database
            | PhaseName::App
            | PhaseName::Proxy
            | PhaseName::Verify => OnFailure::Pause,
        };
        assert_eq!(phase.on_failure, expected, "{}", phase.name);
    }
}

fn some_request() -> impl Strategy<Value = Request> {
    let services = ["app-0", "app-1", "env-0", "env-1", "db", "proxy"];
    let hosts = ["host-0", "host-1", "host-2", "host-3"];
    let of = |names: &[&'static str], most: usize| prop::sample::subsequence(names.to_vec(), 0..=most);
    let labelled = prop::option::weighted(0.2, of(&hosts, 4));
    (
        of(&services, 3),
        of(&hosts, 3),
        of(&services, 2),
        of(&hosts, 2),
        labelled,
    )
        .prop_map(|(services, hosts, exclude_services, exclude_hosts, labelled)| Request {
            selection: Selection {
                services: services.into_iter().map(Into::into).collect(),
                hosts: hosts.into_iter().map(Into::into).collect(),
                labels: labelled.iter().map(|_| "a=b".to_owned()).collect(),
                exclude_services: exclude_services.into_iter().map(Into::into).collect(),
                exclude_hosts: exclude_hosts.into_iter().map(Into::into).collect(),
            },
            labelled: labelled.into_iter().flatten().map(Into::into).collect(),
            purpose: Purpose::Rollback,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever part of whatever fleet: the second opinion agrees, every component of the release is in the plan, outside of
    /// it or on a host that is left out, and nothing moves that was not asked for.
    #[test]
    fn every_part_has_a_sound_plan_or_a_reason(fleet in fleet(), runbook in runbook(), request in some_request()) {
        let plan = match planned(&fleet, &runbook, &request) {
            Ok(plan) => plan,
            Err(refused) => {
                prop_assert!(!refused.reasons.is_empty());
                return Ok(());
            }
        };
        prop_assert_eq!(lint(&plan), vec![]);
        let body = &plan.body;
        for entry in &fleet.release.entries {
            let target = &entry.target;
            let planned = body.changes.iter().any(|c| c.target == *target);
            let excused = body.excused.iter().any(|e| e.host == target.host);
            let outside = body.outside.contains(target);
            prop_assert!(planned || outside || excused, "{} is nowhere", target);
            prop_assert!(!planned || !(outside || excused), "{} is in two places", target);
            if planned && request.selects(target) {
                let change = body.changes.iter().find(|c| c.target == *target).expect("is planned");
                prop_assert!(change.to == entry.revision || !runbook.changes(entry.role), "{} is left", target);
            }
        }
        let reads = |app: &Change, config: &Change| {
            let mut fleet = fleet.clone();
            let app = &app.target;
            app.host == config.target.host
                && fleet.component(app.host.as_str(), app.component.as_str()).reads.contains(&config.target.component)
        };
        for change in body.changes.iter().filter(|c| c.is_needed()) {
            let mut apps = body.changes.iter().filter(|c| c.role == Role::App && request.selects(&c.target));
            let brought = change.role == Role::Config && apps.any(|app| reads(app, change));
            prop_assert!(request.selects(&change.target) || brought, "{} moves", change.target);
        }
    }
}
