//! What is planned for which fleet, and what is refused.

use std::fmt::Write as _;

use rollback_engine::event::Direction;
use rollback_engine::ids::Target;
use rollback_engine::lint::{LintError, lint};
use rollback_engine::plan::{OpenError, PhaseName, Plan, Step, Undo};
use rollback_engine::planner::{Refusal, Request, plan};
use rollback_engine::release::{Action, Role};
use rollback_engine::runbook::Runbook;

use crate::fleets::{Fleet, default_runbook, demo, rolling};

/// A plan as people read it: a block for each batch, a line for each lane.
pub fn render(plan: &Plan) -> String {
    let mut text = format!("{} by {}\n", plan.body.release, plan.body.runbook);
    for phase in &plan.body.phases {
        for (i, batch) in phase.batches.iter().enumerate() {
            writeln!(text, "\n{} batch {i}, on failure {:?}", phase.name, phase.on_failure).expect("write to a string");
            for lane in &batch.lanes {
                let steps = lane.steps.iter().map(|s| {
                    let undo = match s.undo {
                        Undo::Nothing => "-".to_owned(),
                        Undo::By(action) => action.to_string(),
                        Undo::Impossible => "impossible".to_owned(),
                    };
                    let backup = if s.from_backup { " from a backup" } else { "" };
                    let revisions = format!("{} → {}{backup}", s.from.version, s.to.version);
                    format!(
                        "#{} {} {} [{revisions}; {} s; undo {undo}]",
                        s.id,
                        s.action,
                        s.subject(),
                        s.timeout_ms / 1000
                    )
                });
                writeln!(text, "  {}", steps.collect::<Vec<_>>().join("  ▸  ")).expect("write to a string");
            }
        }
    }
    text
}

fn refused(fleet: &Fleet, runbook: &Runbook) -> Vec<Refusal> {
    plan(&fleet.observed, &fleet.release, runbook, &Request::default())
        .expect_err("a refusal")
        .reasons
}

#[test]
fn demo_fleet_with_a_schema_change() {
    let plan = demo(true).plan();
    assert_eq!(lint(&plan), vec![]);
    insta::assert_snapshot!("demo_schema_change", render(&plan));
}

#[test]
fn demo_fleet_without_a_schema_change_rolls_in_batches() {
    let plan = demo(false).plan();
    assert_eq!(lint(&plan), vec![]);
    insta::assert_snapshot!("demo_rolling", render(&plan));
}

/// Every lane of the app phase, batch by batch, without the checks at its end: "drain app-1/api".
fn app_phase(plan: &Plan) -> Vec<Vec<Vec<String>>> {
    let name = |s: &Step| match &s.backend {
        Some(backend) => format!("{} {backend}", s.action),
        None => format!("{} {}", s.action, s.target),
    };
    let app = plan.body.phases.iter().find(|p| p.name == PhaseName::App);
    let batches = app.expect("an app phase").batches.iter();
    let lanes = batches.map(|b| b.lanes.iter().map(|l| moves(&l.steps).map(name).collect()).collect());
    lanes.collect()
}

fn moves(steps: &[Step]) -> impl Iterator<Item = &Step> {
    steps.iter().filter(|s| s.action != Action::Verify)
}

fn of_backends(plan: &Plan) -> usize {
    plan.body.steps().filter(|s| s.backend.is_some()).count()
}

#[test]
fn backends_are_out_of_the_proxy_while_they_restart() {
    let plan = rolling().plan();
    assert_eq!(lint(&plan), vec![]);
    insta::assert_snapshot!("demo_backends", render(&plan));
}

/// web-1 and web-2 would go together in the runbook's second batch and leave the shop's proxy with nobody.
#[test]
fn batch_that_would_take_every_backend_is_cut() {
    let fleet = ["app-1", "app-2", "web-1", "web-2"]
        .into_iter()
        .fold(Fleet::empty(), |fleet, host| {
            fleet.with(host, "api", Role::App, true, &[])
        })
        .with("proxy-1", "shop", Role::Proxy, false, &[])
        .with("proxy-1", "site", Role::Proxy, false, &[])
        .behind("proxy-1", "shop", &["web-1/api", "web-2/api"])
        .behind("proxy-1", "site", &["app-1/api", "app-2/api"]);
    let plan = fleet.plan();
    assert_eq!(lint(&plan), vec![]);
    let lane = |host: &str| {
        let actions = ["drain", "stop", "switch", "start", "resume"];
        actions.map(|action| format!("{action} {host}/api")).to_vec()
    };
    assert_eq!(
        app_phase(&plan),
        [
            vec![lane("app-1")],
            vec![lane("app-2"), lane("web-1")],
            vec![lane("web-2")]
        ]
    );
}

/// One proxy for two applications: that one of them serves helps nobody who wants the other.
#[test]
fn batch_that_would_take_every_backend_of_one_upstream_is_cut() {
    let fleet = ["api-1", "api-2", "web-1", "web-2"]
        .into_iter()
        .fold(Fleet::empty(), |fleet, host| {
            fleet.with(host, "app", Role::App, true, &[])
        })
        .with("proxy-1", "site", Role::Proxy, false, &[])
        .behind("proxy-1", "site", &["api-1/app", "api-2/app"])
        .behind("proxy-1", "site", &["web-1/app", "web-2/app"]);
    let plan = fleet.plan();
    assert_eq!(lint(&plan), vec![]);
    let hosts: Vec<Vec<String>> = app_phase(&plan)
        .into_iter()
        .map(|batch| batch.into_iter().map(|lane| lane[0].clone()).collect())
        .collect();
    assert_eq!(
        hosts,
        [
            vec!["drain api-1/app"],
            vec!["drain api-2/app", "drain web-1/app"],
            vec!["drain web-2/app"]
        ]
    );
    let mut dark = plan.body;
    let app = dark.phases.iter_mut().find(|p| p.name == PhaseName::App);
    let batches = &mut app.expect("an app phase").batches;
    let late = batches.pop().expect("a batch");
    batches[1].lanes.extend(late.lanes);
    let errors = lint(&Plan::seal(dark));
    assert!(matches!(errors[..], [LintError::NobodyServes { .. }]), "{errors:?}");
}

/// It cannot be drained where it is alone, so it is not drained anywhere: half of a drain would be none.
#[test]
fn backend_that_is_alone_in_one_of_its_upstreams_is_left_alone() {
    let plan = rolling().behind("proxy-1", "proxy", &["app-1/api"]).plan();
    assert_eq!(lint(&plan), vec![]);
    let drained: Vec<_> = plan.body.steps().filter_map(|s| s.backend.as_ref()).collect();
    assert_eq!(drained, [&Target::new("app-2", "api"); 2], "drained and resumed");
}

#[test]
fn apps_of_one_host_behind_one_proxy_are_each_drained() {
    let fleet = Fleet::empty()
        .with("app-1", "api", Role::App, true, &[])
        .with("app-1", "web", Role::App, true, &[])
        .with("app-2", "api", Role::App, false, &[])
        .with("proxy-1", "site", Role::Proxy, false, &[])
        .behind("proxy-1", "site", &["app-1/api", "app-1/web", "app-2/api"]);
    let plan = fleet.plan();
    assert_eq!(lint(&plan), vec![]);
    let phase = app_phase(&plan);
    let [batch] = &phase[..] else { panic!("{phase:?}") };
    assert_eq!(batch[0][..3], ["drain app-1/api", "drain app-1/web", "stop app-1/api"]);
    assert_eq!(
        batch[0][7..],
        ["start app-1/web", "resume app-1/api", "resume app-1/web"]
    );
    let drain = plan.body.steps().find(|s| s.backend.is_some()).expect("a drain");
    assert_eq!(drain.timeout_ms, 60_000, "its turn may be the second of two");
}

/// Where nobody would be left, where speed is wanted, where the site answers with maintenance, or where the proxy is not
/// as it should be: no backend is drained, and no batch is cut for it.
#[test]
fn backends_are_left_alone_where_draining_helps_nobody() {
    let emergency = Runbook::builtin("emergency").expect("a built-in");
    let fleet = rolling();
    let all_at_once = plan(&fleet.observed, &fleet.release, &emergency, &Request::default()).expect("a plan");
    assert_eq!(lint(&all_at_once), vec![]);
    assert_eq!((of_backends(&all_at_once), app_phase(&all_at_once).len()), (0, 1));

    let both = ["app-1/api", "app-2/api"];
    let own = demo(false)
        .with("app-1", "local", Role::Proxy, false, &[])
        .behind("app-1", "local", &["app-1/api"]);
    let mut cannot = rolling();
    cannot
        .component("proxy-1", "proxy")
        .capabilities
        .remove(&Action::Resume);
    for (why, fleet) in [
        ("the schema changes", demo(true).behind("proxy-1", "proxy", &both)),
        ("the proxy was found drained", rolling().down("proxy-1", "proxy")),
        ("the proxy cannot", cannot),
        ("it has one backend", own),
        (
            "the other one is unknown",
            demo(false).behind("proxy-1", "proxy", &["app-1/api", "x/api"]),
        ),
    ] {
        let plan = fleet.plan();
        assert_eq!(lint(&plan), vec![], "{why}");
        let drained: Vec<_> = plan.body.steps().filter_map(|s| s.backend.as_ref()).collect();
        assert!(drained.is_empty(), "{why}: {drained:?}");
    }
}

/// app-1 serves nobody before its batch, so it is not drained, and app-2 cannot be spared until app-1 is up.
#[test]
fn backend_that_was_found_down_counts_from_its_start_on() {
    let plan = rolling().down("app-1", "api").plan();
    assert_eq!(lint(&plan), vec![]);
    let phase = app_phase(&plan);
    assert!(phase[0][0].iter().all(|step| !step.starts_with("drain ")), "{phase:?}");
    assert_eq!(phase[1][0][0], "drain app-2/api");
    let plan = rolling().down("app-2", "api").plan();
    assert_eq!(lint(&plan), vec![]);
    let phase = app_phase(&plan);
    assert_eq!(
        phase[0][0][0], "stop app-2/api",
        "or nobody would serve while app-1 restarts"
    );
    assert_eq!(phase[1][0][0], "drain app-1/api");
}

/// app-2 serves nobody, so its host goes first and is not drained; it is given back when it is done, and then app-1 can go.
#[test]
fn backend_that_was_found_out_goes_first_and_is_given_back() {
    let plan = rolling().without("proxy-1", "proxy", &["app-2/api"]).plan();
    assert_eq!(lint(&plan), vec![]);
    let lane = |host: &str, actions: &[&str]| -> Vec<String> {
        let component = |action: &&str| match *action {
            "switch env" => format!("switch {host}/env"),
            action => format!("{action} {host}/api"),
        };
        actions.iter().map(component).collect()
    };
    assert_eq!(
        app_phase(&plan),
        [
            vec![lane("app-2", &["stop", "switch env", "switch", "start", "resume"])],
            vec![lane(
                "app-1",
                &["drain", "stop", "switch env", "switch", "start", "resume"]
            )],
        ]
    );
    insta::assert_snapshot!("found_out", render(&plan));
}

/// Nobody serves by this proxy. What the plan gives back stays: the way back would leave nobody again.
#[test]
fn backends_that_are_all_out_are_given_back_for_good() {
    let both = ["app-1/api", "app-2/api"];
    let plan = rolling().without("proxy-1", "proxy", &both).plan();
    assert_eq!(lint(&plan), vec![]);
    let undo = |host: &str| {
        let of_backend = plan.body.steps().find(|s| s.backend == Some(Target::new(host, "api")));
        of_backend.map(|s| (s.action, s.undo))
    };
    assert_eq!(undo("app-1"), Some((Action::Resume, Undo::Nothing)));
    assert_eq!(undo("app-2"), Some((Action::Resume, Undo::By(Action::Drain))));
}

/// The proxy goes into maintenance and comes back on either way: it served users when it was found.
#[test]
fn proxy_that_lacks_a_backend_serves_again_after_the_undo_of_a_schema_change() {
    let fleet = demo(true)
        .behind("proxy-1", "proxy", &["app-1/api", "app-2/api"])
        .without("proxy-1", "proxy", &["app-2/api"]);
    let plan = fleet.plan();
    assert_eq!(lint(&plan), vec![]);
    let of_proxy = plan
        .body
        .steps()
        .filter(|s| s.target == Target::new("proxy-1", "proxy"));
    let undos: Vec<_> = of_proxy
        .filter(|s| matches!(s.action, Action::Drain | Action::Resume))
        .map(|s| (s.action, s.undo))
        .collect();
    assert_eq!(
        undos,
        [
            (Action::Drain, Undo::By(Action::Resume)),
            (Action::Resume, Undo::By(Action::Drain))
        ]
    );
}

#[test]
fn fleet_at_its_target_is_only_verified() {
    let fleet = Fleet::empty()
        .with("app-1", "api", Role::App, false, &["env"])
        .with("app-1", "env", Role::Config, false, &[])
        .with("db-1", "db", Role::Database, false, &[]);
    let plan = fleet.plan();
    assert_eq!(lint(&plan), vec![]);
    let phases: Vec<PhaseName> = plan.body.phases.iter().map(|p| p.name).collect();
    assert_eq!(phases, [PhaseName::Verify]);
    assert_eq!(plan.body.steps().count(), 3);
}

/// What a rollback that was held leaves behind: the schema is at the target already, so nothing has to be paused.
#[test]
fn what_was_found_down_is_brought_up() {
    let fleet = Fleet::empty()
        .with("app-1", "api", Role::App, false, &["env"])
        .with("app-1", "env", Role::Config, false, &[])
        .with("app-2", "api", Role::App, false, &[])
        .with("db-1", "db", Role::Database, false, &[])
        .with("proxy-1", "proxy", Role::Proxy, true, &[])
        .down("app-1", "api")
        .down("proxy-1", "proxy");
    let plan = fleet.plan();
    assert_eq!(lint(&plan), vec![]);
    insta::assert_snapshot!("found_down", render(&plan));
    let restored: Vec<String> = plan
        .body
        .changes
        .iter()
        .filter(|c| c.restore)
        .map(|c| c.target.to_string())
        .collect();
    assert_eq!(restored, ["app-1/api", "proxy-1/proxy"]);
}

/// Where the plan pauses it anyway, the way back leaves it down: nobody may write while the schema goes back.
#[test]
fn what_was_found_down_is_left_down_by_the_undo_of_a_schema_change() {
    let plan = demo(true).down("app-1", "api").down("proxy-1", "proxy").plan();
    assert_eq!(lint(&plan), vec![]);
    let undo = |action: Action, target: &str| {
        let mut steps = plan.body.steps();
        let step = steps.find(|s| s.action == action && s.target.to_string() == target);
        step.expect("such a step").undo
    };
    assert_eq!(undo(Action::Stop, "app-1/api"), Undo::Nothing);
    assert_eq!(undo(Action::Drain, "proxy-1/proxy"), Undo::Nothing);
    assert_eq!(undo(Action::Start, "app-1/api"), Undo::By(Action::Stop));
    assert_eq!(undo(Action::Resume, "proxy-1/proxy"), Undo::By(Action::Drain));
    assert_eq!(undo(Action::Stop, "app-2/api"), Undo::By(Action::Start));
}

#[test]
fn app_that_reads_a_changed_config_restarts_without_a_switch_of_its_own() {
    let fleet = Fleet::empty()
        .with("app-1", "api", Role::App, false, &["env"])
        .with("app-1", "env", Role::Config, true, &[])
        .with("app-1", "worker", Role::App, false, &[]);
    let plan = fleet.plan();
    let app = plan
        .body
        .phases
        .iter()
        .find(|p| p.name == PhaseName::App)
        .expect("an app phase");
    let lane: Vec<String> = moves(&app.batches[0].lanes[0].steps)
        .map(|s| format!("{} {}", s.action, s.target.component))
        .collect();
    assert_eq!(
        lane,
        ["stop api", "switch env", "start api"],
        "and the worker, which does not read it, is left alone"
    );
}

#[test]
fn batches_are_shares_of_the_whole_and_the_last_takes_the_rest() {
    let sizes = |hosts: usize, batches: &str| -> Vec<usize> {
        let text = Runbook::builtin_text("default").expect("a built-in");
        let runbook = Runbook::parse(&text.replace(r#"batches = ["1", "100%"]"#, batches)).expect("a runbook");
        let fleet = (0..hosts).fold(Fleet::empty(), |fleet, i| {
            fleet.with(&format!("app-{i:03}"), "api", Role::App, true, &[])
        });
        let plan = plan(&fleet.observed, &fleet.release, &runbook, &Request::default()).expect("a plan");
        let app = plan
            .body
            .phases
            .iter()
            .find(|p| p.name == PhaseName::App)
            .expect("an app phase");
        app.batches.iter().map(|b| b.lanes.len()).collect()
    };
    assert_eq!(sizes(10, r#"batches = ["1", "25%", "100%"]"#), [1, 3, 6]);
    assert_eq!(sizes(10, r#"batches = ["50%", "50%"]"#), [5, 5]);
    assert_eq!(sizes(5, r#"batches = ["1", "1"]"#), [1, 4]);
    assert_eq!(sizes(1, r#"batches = ["1", "25%", "100%"]"#), [1]);
}

#[test]
fn every_reason_to_refuse_is_named() {
    let mut fleet = demo(true)
        .with("app-3", "api", Role::App, true, &[])
        .with("app-4", "api", Role::App, true, &[])
        .with("app-5", "api", Role::App, true, &[])
        .unreachable("app-5");
    fleet.observed.remove(&"app-3".into());
    fleet.component("app-4", "api").revision = Err("no such link".to_owned());
    fleet.component("db-1", "db").capabilities.remove(&Action::Snapshot);
    fleet.component("proxy-1", "proxy").role = Role::App;
    fleet.component("app-2", "api").capabilities.remove(&Action::Stop);
    if let Some(rollback_engine::release::ObservedHost::Reachable(components)) = fleet.observed.get_mut(&"app-1".into())
    {
        components.remove(&"env".into());
    }
    let target = |host: &str, component: &str| Target::new(host, component);
    assert_eq!(
        refused(&fleet, &default_runbook()),
        [
            Refusal::UnknownComponent {
                target: target("app-1", "env")
            },
            Refusal::UnknownHost { host: "app-3".into() },
            Refusal::Unobserved {
                target: target("app-4", "api"),
                reason: "no such link".to_owned()
            },
            Refusal::RoleDiffers {
                target: target("proxy-1", "proxy"),
                recorded: Role::Proxy,
                declared: Role::App
            },
            Refusal::HostUnreachable {
                host: "app-5".into(),
                reason: "connection refused".to_owned()
            },
            Refusal::MissingCapability {
                target: target("app-2", "api"),
                action: Action::Stop
            },
            Refusal::MissingCapability {
                target: target("db-1", "db"),
                action: Action::Snapshot
            },
        ]
    );
    let unreachable = Refusal::HostUnreachable {
        host: "app-5".into(),
        reason: String::new(),
    };
    // Or `--runbook app-only` would become a rollback with its databases.
    assert!(unreachable.remedy().contains("--database"), "{}", unreachable.remedy());
    let message = plan(&fleet.observed, &fleet.release, &default_runbook(), &Request::default())
        .expect_err("a refusal")
        .to_string();
    assert!(
        message.contains("app-1/env: the host has no such component"),
        "{message}"
    );
    assert!(message.ends_with("and 2 more reasons"), "{message}");
}

#[test]
fn unreachable_hosts_are_left_out_up_to_the_runbooks_number() {
    let text = Runbook::builtin_text("default").expect("a built-in");
    let skip_one = text.replace(r#"unreachable = "block""#, "unreachable = { skip = 1 }");
    let skip_one = Runbook::parse(&skip_one).expect("a runbook");

    let one = demo(false).unreachable("app-2");
    let plan = plan(&one.observed, &one.release, &skip_one, &Request::default()).expect("a plan");
    assert_eq!(lint(&plan), vec![]);
    assert_eq!(
        plan.body.excused.iter().map(|e| e.host.as_str()).collect::<Vec<_>>(),
        ["app-2"]
    );
    assert!(plan.body.steps().all(|s| s.target.host.as_str() != "app-2"));

    let two = one.unreachable("app-1");
    assert_eq!(
        refused(&two, &skip_one),
        [Refusal::TooManyUnreachable {
            hosts: vec!["app-1".into(), "app-2".into()],
            allowed: 1
        }]
    );
}

#[test]
fn emergency_leaves_out_whoever_is_away_but_not_everybody() {
    let emergency = Runbook::builtin("emergency").expect("a built-in");
    let away = demo(false).unreachable("app-1").unreachable("app-2");
    let plan = plan(&away.observed, &away.release, &emergency, &Request::default()).expect("a plan");
    assert_eq!(lint(&plan), vec![]);
    assert_eq!(plan.body.excused.len(), 2);
    let all = Fleet::empty()
        .with("app-1", "api", Role::App, true, &[])
        .unreachable("app-1");
    let hosts = vec!["app-1".into()];
    assert_eq!(refused(&all, &emergency), [Refusal::NobodyReachable { hosts }]);
}

#[test]
fn no_runbook_leaves_a_database_out() {
    let away = demo(false).unreachable("db-1");
    for name in ["default", "emergency"] {
        let runbook = Runbook::builtin(name).expect("a built-in");
        let reasons = refused(&away, &runbook);
        let [Refusal::DatabaseUnreachable { host, .. }] = &reasons[..] else {
            panic!("{name}: {reasons:?}")
        };
        assert_eq!(host.as_str(), "db-1");
    }
}

#[test]
fn release_that_names_nothing_is_refused() {
    assert_eq!(refused(&Fleet::empty(), &default_runbook()), [Refusal::NothingInScope]);
}

#[test]
fn ten_thousand_hosts_are_planned_and_sound() {
    let fleet = (0..10_000).fold(Fleet::empty(), |mut fleet, i| {
        // Built by hand: `with` sorts each time.
        let one = Fleet::empty().with(&format!("app-{i:05}"), "api", Role::App, true, &[]);
        fleet.observed.extend(one.observed);
        fleet.release.entries.extend(one.release.entries);
        fleet
    });
    let plan = fleet.plan();
    assert_eq!(lint(&plan), vec![]);
    assert_eq!(plan.body.steps().count(), 10_000 * 8);
}

#[test]
fn undo_asks_for_the_opposite_with_the_revisions_exchanged() {
    let plan = demo(true).plan();
    let of = |action: Action| plan.body.steps().find(|s| s.action == action).expect("such a step");
    let back = |action| {
        of(action)
            .in_direction(Direction::Undo)
            .map(|m| (m.action, m.from.clone(), m.to.clone()))
    };
    let switch = of(Action::Switch);
    assert_eq!(
        back(Action::Switch),
        Some((Action::Switch, switch.to.clone(), switch.from.clone()))
    );
    let stop = of(Action::Stop);
    assert_eq!(
        back(Action::Stop),
        Some((Action::Start, stop.from.clone(), stop.from.clone()))
    );
    assert_eq!(back(Action::Prepare), None);
}

#[test]
fn sealed_plan_opens_only_unchanged() {
    let plan = demo(true).plan();
    let json = serde_json::to_string(&plan).expect("a plan is JSON");
    assert_eq!(Plan::open(json.as_bytes()).expect("an unchanged plan"), plan);
    // The version is not part of a revision's equality, but consent was given to what was shown.
    let forged = json.replacen("v3.0.0", "v3.0.1", 1);
    assert!(matches!(Plan::open(forged.as_bytes()), Err(OpenError::Changed(_))));
    let newer = json.replacen(r#""format":1"#, r#""format":2"#, 1);
    assert!(matches!(
        Plan::open(newer.as_bytes()),
        Err(OpenError::UnknownFormat { found: 2 })
    ));
}
