use rollback_proto::problem::{Code, Problem};

use super::*;
use crate::inventory::AgentView;
use crate::store::{AgentRecord, ComponentRecord};

fn revision(digest: &str) -> Revision {
    Revision {
        version: digest.to_owned(),
        digest: digest.into(),
    }
}

fn shall_be(digest: &str, release: &str) -> Objective {
    Objective {
        role: Role::App,
        revision: revision(digest),
        release: release.into(),
        rollback_id: Some("0198".into()),
        since: Timestamp::UNIX_EPOCH,
        missed: false,
        automatic: false,
    }
}

fn objectives(of: &[(&str, &str, Objective)]) -> Objectives {
    let all = of.iter().cloned();
    all.map(|(host, component, o)| (Target::new(host, component), o))
        .collect()
}

/// `at`: component and digest; an empty one cannot be observed.
fn host(name: &str, at: &[(&str, &str)]) -> HostSurvey {
    let component = |(name, _): &(&str, &str)| ComponentRecord {
        name: (*name).to_owned(),
        kind: "container".to_owned(),
        role: Role::App,
        capabilities: BTreeSet::new(),
        reads: BTreeSet::new(),
        backends: BTreeSet::new(),
        restores: false,
    };
    let state = |(name, digest): &(&str, &str)| v1::ComponentState {
        component: (*name).to_owned(),
        revision: (!digest.is_empty()).then(|| convert::revision_to_wire(&revision(digest))),
        ..v1::ComponentState::default()
    };
    let record = AgentRecord {
        name: name.to_owned(),
        address: "h:1".to_owned(),
        version: String::new(),
        ledger_generation: String::new(),
        components: at.iter().map(component).collect(),
        labels: BTreeMap::new(),
        registered_at: Timestamp::UNIX_EPOCH,
        certificate_expires: Timestamp::UNIX_EPOCH,
    };
    HostSurvey {
        agent: AgentView {
            record,
            last_seen: None,
            connected: true,
        },
        states: Ok(at.iter().map(state).collect()),
    }
}

fn away(name: &str, components: &[(&str, &str)]) -> HostSurvey {
    HostSurvey {
        states: Err(Problem::new(Code::HostUnreachable, "no route")),
        ..host(name, components)
    }
}

fn missed(objective: Objective, automatic: bool) -> Objective {
    Objective {
        missed: true,
        automatic,
        ..objective
    }
}

#[test]
fn drift_is_what_was_seen_elsewhere_and_what_a_rollback_missed() {
    let objectives = objectives(&[
        ("app-1", "api", shall_be("a2", "v2")),
        ("app-1", "env", shall_be("e2", "v2")),
        ("app-2", "api", missed(shall_be("a2", "v2"), true)),
        ("app-3", "api", shall_be("a2", "v2")),
        ("app-4", "api", shall_be("a2", "v2")),
        ("app-5", "api", shall_be("a2", "v2")),
        ("app-6", "api", missed(shall_be("a2", "v2"), false)),
    ]);
    let survey = [
        host("app-1", &[("api", "a3"), ("env", "e2"), ("new", "n1")]),
        away("app-2", &[("api", "")]),
        away("app-3", &[("api", "")]),
        // It declares no such component any more.
        host("app-4", &[("other", "x")]),
        // Its agent cannot tell.
        host("app-5", &[("api", "")]),
        host("app-6", &[("api", "a2")]),
    ];
    let drift = drift(&objectives, &survey);
    let told: Vec<String> = drift
        .iter()
        .map(|d| {
            let digest = |r: &Option<v1::Revision>| r.as_ref().map_or("?".to_owned(), |r| r.digest.clone());
            format!(
                "{}/{} {} for {} of {} by {} {} {}",
                d.host,
                d.component,
                digest(&d.observed),
                digest(&d.expected),
                d.release,
                d.rollback_id,
                d.missed,
                d.automatic
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            "app-1/api a3 for a2 of v2 by 0198 false false",
            "app-2/api ? for a2 of v2 by 0198 true true"
        ]
    );
}

/// The plan is made over all that shall be anywhere, so that proxies know the host that they have as a backend.
#[test]
fn convergence_names_hosts_that_can_be_reached() {
    let of = objectives(&[
        ("app-1", "api", shall_be("a2", "v2")),
        ("app-2", "api", missed(shall_be("a2", "v2"), true)),
        ("app-3", "api", missed(shall_be("a2", "v2"), true)),
        ("app-4", "api", shall_be("a2", "v2")),
        ("lb-1", "site", shall_be("s2", "v2")),
        ("gone", "api", shall_be("a2", "v2")),
    ]);
    let survey = [
        host("app-1", &[("api", "a3")]),
        host("app-2", &[("api", "a3")]),
        away("app-3", &[("api", "")]),
        host("app-4", &[("api", "a2")]),
        host("lb-1", &[("site", "s2")]),
    ];
    let names = |hosts: BTreeSet<HostName>| hosts.into_iter().map(|h| h.0).collect::<Vec<_>>();
    let all = convergence(&of, &survey).expect("something is elsewhere");
    assert_eq!(names(all.hosts), ["app-1", "app-2"]);
    assert_eq!(all.release.name.as_str(), "v2");
    let entries: Vec<String> = all.release.entries.iter().map(|e| e.target.to_string()).collect();
    assert_eq!(
        entries,
        ["app-1/api", "app-2/api", "app-3/api", "app-4/api", "lb-1/site"]
    );
    let automatic = converging(&of, &survey, |o| o.automatic).expect("app-2 is back");
    assert_eq!(names(automatic.hosts), ["app-2"]);
    assert!(convergence(&of, &survey[2..]).is_none());

    let mut of = of;
    of.insert(Target::new("app-2", "api"), shall_be("b1", "v1"));
    let several = convergence(&of, &survey).expect("something is elsewhere");
    assert_eq!(several.release.name.as_str(), SEVERAL, "it is of no one release");
}

/// v4 was deployed while app-2 was away, which nobody could record: app-2 is not taken to v2 all alone.
#[test]
fn where_the_others_have_gone_since_is_seen() {
    let mut of = objectives(&[
        ("app-1", "api", shall_be("a2", "v2")),
        ("app-2", "api", missed(shall_be("a2", "v2"), true)),
        ("app-3", "api", missed(shall_be("a2", "v2"), false)),
        ("db-1", "db", shall_be("d2", "v2")),
        ("lb-1", "site", shall_be("s2", "v2")),
    ]);
    of.entry(Target::new("db-1", "db"))
        .and_modify(|db| db.role = Role::Database);
    let gone = |app_1: &str, db: &str, site: &str| {
        let survey = [
            host("app-1", &[("api", app_1)]),
            host("app-2", &[("api", "a3")]),
            host("app-3", &[("api", "a3")]),
            host("db-1", &[("db", db)]),
            host("lb-1", &[("site", site)]),
        ];
        gone_elsewhere(&of, &survey, &"app-2".into()).map(ToString::to_string)
    };
    assert_eq!(gone("a2", "d2", "s2"), None, "app-3 is awaited, too");
    assert_eq!(gone("a2", "d2", "s4"), None, "app-2 has nothing to do with it");
    assert_eq!(gone("", "d2", "s2"), None);
    assert_eq!(gone("a4", "d2", "s2").as_deref(), Some("app-1/api"));
    assert_eq!(gone("a2", "d4", "s2").as_deref(), Some("db-1/db"));

    // A rollback took the others to v1, and app-2 had to be left out of it. One that was only late is no such thing.
    let survey = [host("app-1", &[("api", "a1")]), host("app-2", &[("api", "a3")])];
    for (release, wanted) in [("v1", Some("app-1/api")), ("v2", None)] {
        let later = Objective {
            since: Timestamp::from_second(9).expect("a small number"),
            ..shall_be("a1", release)
        };
        of.insert(Target::new("app-1", "api"), later);
        let gone = gone_elsewhere(&of, &survey, &"app-2".into()).map(ToString::to_string);
        assert_eq!(gone.as_deref(), wanted);
    }
}

#[test]
fn recording_says_where_everything_is_and_forgets_the_rest() {
    let before = objectives(&[
        ("app-1", "api", missed(shall_be("a2", "v2"), true)),
        ("app-1", "old", shall_be("o2", "v2")),
    ]);
    let release = Release {
        name: "v3".into(),
        commit: String::new(),
        notes: String::new(),
        recorded_at: Timestamp::UNIX_EPOCH,
        recorded_by: "ana".to_owned(),
        entries: vec![ReleaseEntry {
            target: Target::new("app-1", "api"),
            role: Role::App,
            revision: revision("a3"),
            summary: String::new(),
        }],
        stable: true,
        ranks_at: None,
        mark: None,
    };
    let documents = recorded(&release, &before);
    let told: Vec<(&str, bool)> = documents.iter().map(|d| (d.key.as_str(), d.body.is_some())).collect();
    assert_eq!(told, [("app-1/api", true), ("app-1/old", false)]);
    let now = Objective {
        rollback_id: None,
        ..shall_be("a3", "v3")
    };
    assert_eq!(read(&documents), objectives(&[("app-1", "api", now)]));
    assert!(awaited(&read(&documents)).is_empty());
    let awaited: Vec<String> = awaited(&before).into_iter().map(|a| a.component).collect();
    assert_eq!(awaited, ["api"]);
}

#[test]
fn one_that_is_damaged_does_not_hide_the_others() {
    let good = document(&Target::new("app-1", "api"), &shall_be("a2", "v2"));
    let damaged = Document {
        key: "app-2/api".to_owned(),
        body: Some("{".to_owned()),
        ..good.clone()
    };
    assert_eq!(read(&[damaged, good]).len(), 1);
}
