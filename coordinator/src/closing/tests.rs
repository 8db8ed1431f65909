use std::collections::BTreeSet;

use rollback_engine::plan::{DatabaseChoice, Excused, FORMAT, Selection};

use super::*;
use crate::objective::Objectives;
use crate::store::Document;

fn revision(digest: &str) -> Revision {
    Revision {
        version: digest.to_owned(),
        digest: digest.into(),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a small number")
}

const TARGETS: [(&str, &str, Role); 4] = [
    ("host-1", "api", Role::App),
    ("host-1", "db", Role::Database),
    ("host-2", "api", Role::App),
    ("host-3", "site", Role::Proxy),
];

fn release(name: &str, second: i64) -> Release {
    let entry = |(host, component, role): (&str, &str, Role)| ReleaseEntry {
        target: Target::new(host, component),
        role,
        revision: revision(&format!("{component} of {name}")),
        summary: String::new(),
    };
    Release {
        name: name.into(),
        commit: String::new(),
        notes: String::new(),
        recorded_at: at(second),
        recorded_by: "ana".to_owned(),
        entries: TARGETS.map(entry).into(),
        stable: true,
        ranks_at: None,
        mark: None,
    }
}

/// From v3 to v2, or from v2 to v2; the database as `database` says.
fn plan(from: &str, database: DatabaseChoice) -> PlanBody {
    let change = |(host, component, role): (&str, &str, Role)| {
        let (live, wanted) = (
            revision(&format!("{component} of {from}")),
            revision(&format!("{component} of v2")),
        );
        let kept = role == Role::Database && database == DatabaseChoice::Keep;
        Change {
            target: Target::new(host, component),
            role,
            from: live.clone(),
            to: if kept { live.clone() } else { wanted.clone() },
            restore: false,
            backends: BTreeSet::new(),
            out: BTreeSet::new(),
            from_backup: role == Role::Database && database == DatabaseChoice::Restore,
            left: (kept && live != wanted).then_some(wanted),
        }
    };
    PlanBody {
        format: FORMAT,
        release: "v2".into(),
        runbook: "default@3".to_owned(),
        database,
        selection: Selection::default(),
        outside: Vec::new(),
        approval: None,
        undo_of: None,
        converges: false,
        holds: true,
        schema_changes: true,
        changes: TARGETS.map(change).into(),
        excused: Vec::new(),
        phases: Vec::new(),
    }
}

/// As if host-2 had been away when the plan was made.
fn without_host_2(mut plan: PlanBody) -> PlanBody {
    plan.changes.retain(|c| c.target.host.as_str() != "host-2");
    plan.excused.push(Excused {
        host: "host-2".into(),
        reason: "no route".to_owned(),
    });
    plan
}

/// As if only this host had been asked for, and the proxy were there for its sake.
fn scoped(mut plan: PlanBody, selection: Selection) -> PlanBody {
    for change in &mut plan.changes {
        if change.role == Role::Proxy {
            change.left = Some(std::mem::replace(&mut change.to, change.from.clone()));
        }
    }
    let is_asked_for = |t: &Target| {
        (selection.hosts.is_empty() || selection.hosts.contains(&t.host))
            && (selection.services.is_empty() || selection.services.contains(&t.component))
    };
    let (inside, outside) = plan
        .changes
        .into_iter()
        .partition(|c| c.role == Role::Proxy || is_asked_for(&c.target));
    plan.changes = inside;
    plan.outside = Vec::from_iter(outside).into_iter().map(|c: Change| c.target).collect();
    plan.selection = selection;
    plan
}

struct Told {
    works: Option<String>,
    abandoned: Vec<String>,
    held: Vec<String>,
    objectives: Objectives,
}

impl Told {
    /// "host/component digest", with a mark for what was missed.
    fn places(&self) -> Vec<String> {
        let place = |(target, o): (&Target, &Objective)| {
            let mark = match (o.missed, o.automatic) {
                (false, _) => "",
                (true, false) => " missed",
                (true, true) => " missed, automatic",
            };
            format!("{target} {}{mark}", o.revision.digest)
        };
        self.objectives.iter().map(place).collect()
    }
}

/// `failed`: hosts that were not reached; the last of them stopped answering.
fn told(plan: &PlanBody, failed: &[&str]) -> Told {
    told_of(plan, failed, &[release("v3", 3), release("v2", 2)], &[])
}

fn told_of(plan: &PlanBody, failed: &[&str], releases: &[Release], held: &[&str]) -> Told {
    let failed: Vec<HostName> = failed.iter().map(|h| (*h).into()).collect();
    let end = End {
        id: &"0198".into(),
        plan,
        verified: failed.is_empty() && plan.excused.is_empty(),
        failed: failed.iter().chain(plan.excused.iter().map(|e| &e.host)).collect(),
        lost: failed.last().cloned().into_iter().collect(),
        at: at(100),
        started_by: "ana",
        reason: "it leaks",
        before: BTreeMap::new(),
        awaited: Objectives::new(),
        releases,
        held: held.iter().copied().collect(),
    };
    let closing = end.closing();
    let (holds, objectives): (Vec<Document>, Vec<Document>) = closing
        .documents
        .into_iter()
        .partition(|d| d.kind == DocumentKind::Hold);
    let objectives = objective::read(&objectives);
    for objective in objectives.values() {
        assert_eq!(objective.since, at(100));
        assert_eq!(objective.rollback_id, Some("0198".into()));
    }
    for hold in &holds {
        let body = hold.body.as_deref().unwrap_or_default();
        assert!(
            body.contains("it leaks") && body.contains("0198") && body.contains("ana"),
            "{body}"
        );
    }
    Told {
        works: closing.works.map(|name| name.0),
        abandoned: closing.abandoned.into_iter().map(|name| name.0).collect(),
        held: holds.into_iter().map(|d| d.key).collect(),
        objectives,
    }
}

#[test]
fn release_that_was_reached_as_a_whole_works_and_what_was_left_is_held() {
    for database in [DatabaseChoice::Auto, DatabaseChoice::Restore] {
        let told = told(&plan("v3", database), &[]);
        assert_eq!(told.works.as_deref(), Some("v2"));
        assert_eq!(told.abandoned, ["v3"]);
        assert_eq!(told.held, ["v3"]);
        let wanted = [
            "host-1/api api of v2",
            "host-1/db db of v2",
            "host-2/api api of v2",
            "host-3/site site of v2",
        ];
        assert_eq!(told.places(), wanted);
        assert!(told.objectives.values().all(|o| o.release.as_str() == "v2"));
    }
    let plan = PlanBody {
        holds: false,
        ..plan("v3", DatabaseChoice::Auto)
    };
    let told = told(&plan, &[]);
    assert_eq!(
        (told.abandoned.as_slice(), told.held.len()),
        (&["v3".to_owned()][..], 0)
    );
}

/// Whoever held it has said why, and that stands.
#[test]
fn what_is_held_already_is_not_held_anew() {
    let releases = [release("v3", 3), release("v2", 2)];
    let told = told_of(&plan("v3", DatabaseChoice::Auto), &[], &releases, &["v3"]);
    assert_eq!(told.abandoned, ["v3"]);
    assert!(told.held.is_empty());
}

/// The fleet was taken back from v3 all the same: `previous` must not choose it. The database shall stay where it is: nobody
/// may bring it anywhere by `converge`.
#[test]
fn release_that_was_reached_in_part_is_not_said_to_work() {
    let told = told(&plan("v3", DatabaseChoice::Keep), &[]);
    assert_eq!((told.works, told.abandoned), (None, vec!["v3".to_owned()]));
    let database = &told.objectives[&Target::new("host-1", "db")];
    assert_eq!(database.revision, revision("db of v3"));
    assert_eq!(database.release.as_str(), "v3", "of which it is a part");
    assert!(!database.missed);
}

#[test]
fn data_that_were_restored_say_nothing_of_releases() {
    let told = told(&plan("v2", DatabaseChoice::Restore), &[]);
    assert_eq!((told.works, told.abandoned, told.held), (None, Vec::new(), Vec::new()));
    assert_eq!(told.objectives.len(), 4);
}

/// Nothing was left: the kept database is where the release has it.
#[test]
fn keeping_what_is_in_place_leaves_nothing() {
    let mut body = plan("v3", DatabaseChoice::Keep);
    for database in body.changes.iter_mut().filter(|c| c.role == Role::Database) {
        database.from = revision("db of v2");
        database.to = revision("db of v2");
        database.left = None;
    }
    let told = told_of(&body, &[], &[release("v2", 2)], &[]);
    assert_eq!(told.works.as_deref(), Some("v2"));
}

/// What shall be there is known from the release, although nobody could look at the host; and nobody has seen that v3 was not
/// everywhere.
#[test]
fn hosts_that_were_away_are_missed() {
    let mut body = without_host_2(plan("v3", DatabaseChoice::Auto));
    let told_now = told(&body, &[]);
    assert_eq!((told_now.works, told_now.held), (None, vec!["v3".to_owned()]));
    assert_eq!(
        told_now.objectives[&Target::new("host-2", "api")].revision,
        revision("api of v2")
    );
    let missed = |told: &Told| {
        told.places()
            .into_iter()
            .filter(|p| p.contains("missed"))
            .collect::<Vec<_>>()
    };
    assert_eq!(missed(&told(&body, &[])), ["host-2/api api of v2 missed"]);
    body.converges = true;
    assert_eq!(missed(&told(&body, &[])), ["host-2/api api of v2 missed, automatic"]);
    body.outside.push(Target::new("host-2", "api"));
    body.selection.exclude_services.insert("other".into());
    assert!(missed(&told(&body, &[])).is_empty(), "it was not asked for");
}

/// Only who was away comes home without being asked: where it failed, somebody has to look.
#[test]
fn hosts_that_failed_are_missed_and_wait_for_a_person() {
    let body = PlanBody {
        converges: true,
        ..plan("v3", DatabaseChoice::Auto)
    };
    let told = told(&body, &["host-1", "host-2"]);
    assert_eq!(told.works, None);
    let wanted = [
        "host-1/api api of v2 missed",
        "host-1/db db of v2 missed",
        "host-2/api api of v2 missed, automatic",
        "host-3/site site of v2",
    ];
    assert_eq!(told.places(), wanted);
}

/// Roles that the runbook leaves on every host are left on those that were away, too.
#[test]
fn hosts_that_were_away_are_awaited_for_what_the_runbook_changes() {
    let mut body = plan("v3", DatabaseChoice::Keep);
    for change in body.changes.iter_mut().filter(|c| c.role == Role::App) {
        change.left = Some(std::mem::replace(&mut change.to, change.from.clone()));
    }
    let told = told(&without_host_2(body), &[]);
    assert!(
        !told.objectives.contains_key(&Target::new("host-2", "api")),
        "{:?}",
        told.places()
    );
}

#[test]
fn one_host_is_not_the_fleet() {
    let selection = Selection {
        hosts: BTreeSet::from(["host-2".into()]),
        ..Selection::default()
    };
    let told = told(&scoped(plan("v3", DatabaseChoice::Auto), selection), &[]);
    assert_eq!((told.works, told.abandoned, told.held), (None, Vec::new(), Vec::new()));
    // The proxy was there for the host's sake, and shall be where it was to be before.
    let objectives: Vec<String> = told.objectives.keys().map(Target::to_string).collect();
    assert_eq!(objectives, ["host-2/api"]);
}

/// A bad application is bad, whatever else was deployed with it.
#[test]
fn release_of_which_a_service_was_taken_back_everywhere_is_held() {
    let selection = Selection {
        services: BTreeSet::from(["api".into()]),
        ..Selection::default()
    };
    let told = told(&scoped(plan("v3", DatabaseChoice::Auto), selection), &[]);
    assert_eq!(told.works, None);
    assert_eq!(told.held, ["v3"]);
}

/// A synthetic release may bear the name of a recorded one of which it is a part.
#[test]
fn name_alone_proves_nothing() {
    let mut body = plan("v3", DatabaseChoice::Auto);
    body.changes.retain(|c| c.target.host.as_str() == "host-2");
    let told_of_part = told(&body, &[]);
    assert_eq!((told_of_part.works, told_of_part.held.len()), (None, 0));
    let mut back = plan("v3", DatabaseChoice::Auto);
    back.undo_of = Some("0197".into());
    assert_eq!(told(&back, &[]).works, None);
}

/// Where an undone rollback had come from is in no release: the hosts that are away are awaited there.
#[test]
fn hosts_that_are_away_while_a_rollback_is_taken_back_are_awaited_where_they_were() {
    let mut body = without_host_2(plan("v3", DatabaseChoice::Auto));
    body.release = "before-0197".into();
    body.undo_of = Some("0197".into());
    let away = Target::new("host-2", "api");
    let end = End {
        id: &"0198".into(),
        plan: &body,
        verified: false,
        failed: body.excused.iter().map(|e| &e.host).collect(),
        lost: BTreeSet::new(),
        at: at(100),
        started_by: "ana",
        reason: "",
        before: BTreeMap::from([(away.clone(), (Role::App, revision("by hand")))]),
        awaited: Objectives::new(),
        releases: &[],
        held: BTreeSet::new(),
    };
    let objectives = objective::read(&end.closing().documents);
    assert_eq!(objectives[&away].revision, revision("by hand"));
    assert!(objectives[&away].missed);
}

/// Host-2 was away when the fleet went to v2, and that was taken back since: it must not follow there all alone when it is back.
#[test]
fn hosts_that_a_rollback_missed_are_not_awaited_when_it_is_taken_back() {
    let mut body = plan("v3", DatabaseChoice::Auto);
    body.changes.retain(|c| c.target.host.as_str() != "host-2");
    for change in &mut body.changes {
        std::mem::swap(&mut change.from, &mut change.to);
    }
    (body.release, body.undo_of, body.converges) = ("v3".into(), Some("0197".into()), true);
    let away = Target::new("host-2", "api");
    let awaited = Objective {
        role: Role::App,
        revision: revision("api of v2"),
        release: "v2".into(),
        rollback_id: Some("0197".into()),
        since: at(50),
        missed: true,
        automatic: true,
    };
    let after = |body: &PlanBody, releases: &[Release]| {
        let end = End {
            id: &"0198".into(),
            plan: body,
            verified: true,
            failed: BTreeSet::new(),
            lost: BTreeSet::new(),
            at: at(100),
            started_by: "ana",
            reason: "",
            before: BTreeMap::new(),
            awaited: Objectives::from([(away.clone(), awaited.clone())]),
            releases,
            held: BTreeSet::new(),
        };
        let objective = objective::read(&end.closing().documents).remove(&away).expect("host-2");
        (objective.revision.digest.0, objective.missed, objective.automatic)
    };
    assert_eq!(
        after(&body, &[release("v3", 3)]),
        ("api of v3".to_owned(), false, false)
    );
    // Where it was is in no release, or only a part was taken back: a person has to say.
    body.release = "before-0197".into();
    assert_eq!(after(&body, &[]), ("api of v2".to_owned(), true, false));
    let selection = Selection {
        hosts: BTreeSet::from(["host-1".into()]),
        ..Selection::default()
    };
    body.release = "v3".into();
    let body = PlanBody { selection, ..body };
    assert_eq!(after(&body, &[release("v3", 3)]), ("api of v2".to_owned(), true, false));
}

/// The attempts to bring a host home are counted from the rollback that missed it: what ends badly does not begin a new count.
#[test]
fn host_that_goes_away_while_it_is_brought_home_is_awaited_as_before() {
    let selection = Selection {
        hosts: BTreeSet::from(["host-2".into()]),
        ..Selection::default()
    };
    let mut body = scoped(plan("v3", DatabaseChoice::Auto), selection);
    body.converges = true;
    let host: HostName = "host-2".into();
    let after = |started_by: &str| {
        let end = End {
            id: &"0198".into(),
            plan: &body,
            verified: false,
            failed: BTreeSet::from([&host]),
            lost: BTreeSet::from([host.clone()]),
            at: at(100),
            started_by,
            reason: "",
            before: BTreeMap::new(),
            awaited: Objectives::new(),
            releases: &[release("v3", 3), release("v2", 2)],
            held: BTreeSet::new(),
        };
        objective::read(&end.closing().documents).len()
    };
    assert_eq!((after("ana"), after(converge::US)), (1, 0));
}
