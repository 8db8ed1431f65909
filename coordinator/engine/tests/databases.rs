//! How databases go back: the choice, what is left where it is, restores from backups, and the consent that they need.

use std::collections::BTreeSet;

use rollback_engine::event::{Command, Direction, Ending, Event, Outcome, Problem, StepResult};
use rollback_engine::ids::{StepId, Target};
use rollback_engine::lint::{LintError, lint};
use rollback_engine::loss::{Consent, DataLoss, TableLoss};
use rollback_engine::machine::{Rejected, State, decide};
use rollback_engine::plan::{DatabaseChoice, PhaseName, Plan, PlanBody, Step, Undo};
use rollback_engine::planner::{Refusal, Request, plan};
use rollback_engine::release::{Action, Role};

use crate::fleets::{
    CONSENT, Fleet, builtin, carry_out, carry_out_but, create, default_runbook, demo, failed, good, intents, outcome,
    revision, unknown,
};
use crate::planning::render;

fn database() -> Target {
    Target::new("db-1", "db")
}

/// The steps of one component, in plan order.
fn of<'p>(plan: &'p Plan, target: &Target) -> Vec<&'p Step> {
    plan.body.steps().filter(|s| s.target == *target).collect()
}

fn actions(steps: &[&Step]) -> Vec<Action> {
    steps.iter().map(|s| s.action).collect()
}

/// Every component that the plan leaves elsewhere, and what the release has there.
fn left(plan: &Plan) -> Vec<(String, &str)> {
    let left = plan.body.changes.iter();
    let left = left.filter_map(|c| Some((c.target.to_string(), c.left.as_ref()?.version.as_str())));
    left.collect()
}

/// Same schema, other data: everything that writes stops all the same.
#[test]
fn restore_at_its_own_schema() {
    let plan = demo(false).plan_with(DatabaseChoice::Restore);
    assert_eq!(lint(&plan), vec![]);
    assert!(plan.body.schema_changes);
    let change = plan.body.changes.iter().find(|c| c.role == Role::Database);
    let change = change.expect("the database is in scope");
    assert!(change.from_backup && change.is_needed() && !change.moves());
    assert!(of(&plan, &database()).iter().all(|s| s.from_backup));
    assert_eq!(plan.body.steps().filter(|s| s.from_backup).count(), 6, "and no others");
    insta::assert_snapshot!("demo_restore", render(&plan));
}

#[test]
fn direction_of_a_restore_is_said_and_not_guessed_from_revisions() {
    let plan = demo(false).plan_with(DatabaseChoice::Restore);
    let steps = of(&plan, &database());
    let switch = steps.iter().find(|s| s.action == Action::Switch).expect("a switch");
    assert_eq!(switch.undo, Undo::By(Action::Switch));
    let asked = |direction| {
        let asked = switch.in_direction(direction).expect("a switch goes both ways");
        (asked.from == asked.to, asked.from_backup, asked.undo)
    };
    assert_eq!(asked(Direction::Forward), (true, true, false));
    assert_eq!(asked(Direction::Undo), (true, true, true));
}

/// Databases stay, and are backed up and verified where they are.
#[test]
fn kept_databases_are_left_where_they_are() {
    let by_runbook = demo(true).plan_by(&builtin("app-only"));
    let by_choice = demo(true).plan_with(DatabaseChoice::Keep);
    for plan in [by_runbook, by_choice] {
        assert_eq!(lint(&plan), vec![]);
        assert!(!plan.body.schema_changes);
        assert_eq!(left(&plan), [("db-1/db".to_owned(), "v2.9.0")]);
        let steps = of(&plan, &database());
        assert_eq!(actions(&steps), [Action::Snapshot, Action::Verify, Action::Finish]);
        assert!(
            steps.iter().all(|s| s.to == revision("v3.0.0", "db")),
            "it is verified as it is"
        );
        assert!(plan.body.phases.iter().all(|p| p.name != PhaseName::Quiesce));
    }
    let nothing_to_leave = demo(false).plan_with(DatabaseChoice::Keep);
    assert_eq!(left(&nothing_to_leave), []);
}

/// Applications stop for the schema and start again as they are.
#[test]
fn schema_only_leaves_the_applications_as_they_are() {
    let plan = demo(true).plan_by(&builtin("schema-only"));
    assert_eq!(lint(&plan), vec![]);
    let others = ["app-1/api", "app-1/env", "app-2/api", "app-2/env", "proxy-1/proxy"];
    assert_eq!(left(&plan), others.map(|target| (target.to_owned(), "v2.9.0")));
    insta::assert_snapshot!("schema_only", render(&plan));
}

#[test]
fn what_an_operator_says_of_databases_wins_over_the_runbook() {
    let fleet = demo(true);
    let with = |name: &str, choice| fleet.plan_by(&builtin(name).with_database(choice));
    let migrated = with("app-only", DatabaseChoice::Migrate);
    assert!(migrated.body.schema_changes && left(&migrated).is_empty());
    let restored = with("schema-only", DatabaseChoice::Restore);
    assert_eq!(restored.body.restored_databases().collect::<Vec<_>>(), [&database()]);
    assert_eq!(left(&restored).len(), 5, "and the applications stay");
    // Also where the runbook does not name databases at all.
    let mut apps = builtin("app-only");
    apps.roles = [Role::App].into();
    let auto = fleet.plan_by(&apps.with_database(DatabaseChoice::Auto));
    assert!(auto.body.schema_changes);
}

/// It would verify the fleet where it is, and end well.
#[test]
fn plan_that_would_take_nothing_back_is_refused() {
    let fleet = demo(true);
    let nothing = builtin("schema-only").with_database(DatabaseChoice::Keep);
    let refused = plan(&fleet.observed, &fleet.release, &nothing, &Request::default()).expect_err("a refusal");
    assert_eq!(refused.reasons, [Refusal::NothingToChange]);
}

/// Agents from before restores do not know what `from_backup` asks of them: they would migrate.
#[test]
fn agent_that_cannot_restore_is_not_asked_to() {
    let mut fleet = demo(true);
    fleet.component("db-1", "db").restores = false;
    let restore = default_runbook().with_database(DatabaseChoice::Restore);
    let refused = plan(&fleet.observed, &fleet.release, &restore, &Request::default()).expect_err("a refusal");
    assert_eq!(refused.reasons, [Refusal::CannotRestore { target: database() }]);
    for choice in [DatabaseChoice::Auto, DatabaseChoice::Keep, DatabaseChoice::Migrate] {
        assert_eq!(lint(&fleet.plan_with(choice)), vec![]);
    }
}

#[test]
fn databases_have_more_time_for_copies_than_everything_else() {
    let plan = demo(true).plan();
    let time = |action: Action, role: Role| -> BTreeSet<u64> {
        let of_role = |s: &&Step| plan.body.changes.iter().any(|c| c.target == s.target && c.role == role);
        let steps = plan.body.steps().filter(|s| s.action == action).filter(of_role);
        steps.map(|s| s.timeout_ms / 60_000).collect()
    };
    assert_eq!(time(Action::Stage, Role::Database), [60].into());
    assert_eq!(time(Action::Snapshot, Role::Database), [60].into());
    assert_eq!(time(Action::Stage, Role::App), [15].into());
}

/// Plans that are not about any of this have the digests that they always had.
#[test]
fn plain_plan_says_nothing_of_backups() {
    let json = serde_json::to_string(&demo(true).plan().body).expect("a plan is JSON");
    for word in ["from_backup", "left", r#""database":"auto""#] {
        assert!(!json.contains(word), "{word} in {json}");
    }
    let json = serde_json::to_string(&demo(true).plan_with(DatabaseChoice::Restore)).expect("a plan is JSON");
    assert!(json.contains(r#""database":"restore""#) && json.contains(r#""from_backup":true"#));
    assert!(Plan::open(json.as_bytes()).is_ok());
}

fn steps(body: &mut PlanBody) -> impl Iterator<Item = &mut Step> {
    let lanes = body
        .phases
        .iter_mut()
        .flat_map(|p| &mut p.batches)
        .flat_map(|b| &mut b.lanes);
    lanes.flat_map(|l| &mut l.steps)
}

fn spoil(plan: Plan, with: impl FnOnce(&mut PlanBody)) -> Vec<LintError> {
    assert_eq!(lint(&plan), vec![], "sound before it is spoilt");
    let mut body = plan.body;
    with(&mut body);
    lint(&Plan::seal(body))
}

#[test]
fn lint_knows_what_a_restore_needs() {
    let spoilt = |with: &dyn Fn(&mut PlanBody)| spoil(demo(false).plan_with(DatabaseChoice::Restore), with);
    let remove = |b: &mut PlanBody, gone: &dyn Fn(&Step) -> bool| {
        for phase in &mut b.phases {
            for lane in phase.batches.iter_mut().flat_map(|batch| &mut batch.lanes) {
                lane.steps.retain(|s| !gone(s));
            }
            phase
                .batches
                .iter_mut()
                .for_each(|b| b.lanes.retain(|l| !l.steps.is_empty()));
            phase.batches.retain(|b| !b.lanes.is_empty());
        }
        b.phases.retain(|p| !p.batches.is_empty());
        (0..).zip(steps(b)).for_each(|(id, step)| step.id = StepId(id));
    };
    let of_database = |s: &Step, action: Action| s.action == action && s.target == database();

    // Nobody chose it, or only for some of it.
    for choice in [DatabaseChoice::Auto, DatabaseChoice::Keep, DatabaseChoice::Migrate] {
        let errors = spoilt(&|b| b.database = choice);
        assert!(matches!(errors[..], [LintError::ChoiceBroken { .. }]), "{errors:?}");
    }
    let errors = spoilt(&|b| b.changes[0].from_backup = true);
    assert!(errors.contains(&LintError::ChoiceBroken {
        target: Target::new("app-1", "api")
    }));
    let errors = spoil(demo(true).plan(), |b| b.database = DatabaseChoice::Keep);
    assert!(matches!(errors[..], [LintError::ChoiceBroken { .. }]), "{errors:?}");
    let errors = spoil(demo(true).plan(), |b| b.database = DatabaseChoice::Restore);
    assert!(matches!(errors[..], [LintError::ChoiceBroken { .. }]), "{errors:?}");
    // One step that would migrate, or the reverse.
    let errors = spoilt(&|b| {
        let switch = steps(b).find(|s| of_database(s, Action::Switch));
        switch.expect("a switch").from_backup = false;
    });
    assert!(matches!(errors[..], [LintError::BackupUnclear { .. }]), "{errors:?}");
    // Revisions do not show that nothing was done, or that it was done twice.
    let errors = spoilt(&|b| remove(b, &|s| of_database(s, Action::Switch)));
    assert_eq!(errors, [LintError::NeverRestored { target: database() }]);
    let errors = spoilt(&|b| {
        let phase = b.phases.iter_mut().find(|p| p.name == PhaseName::Database);
        let batches = &mut phase.expect("a database phase").batches;
        batches.push(batches[0].clone());
        (0..).zip(steps(b)).for_each(|(id, step)| step.id = StepId(id));
    });
    assert!(
        matches!(
            errors[..],
            [LintError::NotPaused {
                action: Action::Switch,
                ..
            }]
        ),
        "{errors:?}"
    );
    // No way back, no backup of what is there now, somebody who writes.
    let errors = spoilt(&|b| {
        steps(b)
            .filter(|s| of_database(s, Action::Switch))
            .for_each(|s| s.undo = Undo::Impossible)
    });
    assert!(
        errors.iter().any(|e| matches!(e, LintError::WrongUndo { .. })),
        "{errors:?}"
    );
    let errors = spoilt(&|b| remove(b, &|s| of_database(s, Action::Snapshot)));
    assert!(matches!(errors[..], [LintError::NotProtected { .. }]), "{errors:?}");
    let late = |b: &mut PlanBody, at: &str| {
        // The pause of one component moves into the app phase, before the switch of what it runs.
        let pause = steps(b).find(|s| s.action == Action::Stop && s.target.to_string() == at);
        let pause = pause.expect("it is stopped").clone();
        remove(b, &|s| s.action == Action::Stop && s.target == pause.target);
        let app = b
            .phases
            .iter_mut()
            .find(|p| p.name == PhaseName::App)
            .expect("an app phase");
        let mut lanes = app.batches.iter_mut().flat_map(|b| &mut b.lanes);
        let lane = lanes.find(|l| l.steps.iter().any(|s| s.target == pause.target));
        lane.expect("a lane of its host").steps.insert(0, pause);
        (0..).zip(steps(b)).for_each(|(id, step)| step.id = StepId(id));
    };
    let errors = spoilt(&|b| late(b, "app-2/api"));
    let [LintError::NotQuiet { busy, .. }] = &errors[..] else {
        panic!("{errors:?}")
    };
    assert_eq!(busy, &Target::new("app-2", "api"));
}

#[test]
fn lint_knows_what_it_means_to_be_left() {
    let kept = || demo(true).plan_with(DatabaseChoice::Keep);
    let of = |b: &mut PlanBody, role: Role| b.changes.iter().position(|c| c.role == role).expect("such a component");
    let cases: [&dyn Fn(&mut PlanBody); 2] = [
        // Where the release has it, or on its way.
        &|b| {
            let database = of(b, Role::Database);
            b.changes[database].left = Some(b.changes[database].to.clone());
        },
        &|b| {
            let app = of(b, Role::App);
            b.changes[app].left = Some(revision("v1", "api"));
        },
    ];
    for with in cases {
        let errors = spoil(kept(), with);
        assert!(matches!(errors[..], [LintError::NothingLeft { .. }]), "{errors:?}");
    }
}

#[test]
fn restore_that_nobody_agreed_to_is_not_created() {
    let plan = demo(true).plan_with(DatabaseChoice::Restore);
    let with = |consent: Option<Consent>| {
        let mut command = create(&plan);
        let Command::Create { consent: said, .. } = &mut command else {
            panic!("create makes a Create")
        };
        *said = consent;
        decide(&State::New, &command)
    };
    let Err(Rejected::NoConsent(databases)) = with(None) else {
        panic!("accepted without consent")
    };
    assert_eq!(databases, [database()]);
    for max_rows in [Some(0), None] {
        assert!(
            with(Some(Consent { max_rows })).is_ok(),
            "how much is for the agent to judge"
        );
    }
    // It is in the journal, and survives it.
    let (state, journal) = carry_out(&plan, good);
    assert_eq!(state.run().and_then(|run| run.creation.consent), Some(CONSENT));
    let json: Vec<String> = journal
        .iter()
        .map(|e| serde_json::to_string(e).expect("JSON"))
        .collect();
    assert!(json[0].contains(r#""consent":{"max_rows":1132}"#), "{}", json[0]);
    assert_eq!(CONSENT.to_string(), "the loss of at most 1132 rows in each database");
    let read = json.iter().map(|e| serde_json::from_str::<Event>(e).expect("an event"));
    assert_eq!(State::replay(read).expect("its own journal"), state);
}

/// `--accept-data-loss=all` in a script, and a plan that restores nothing: nobody shall read of a loss later.
#[test]
fn consent_to_nothing_is_not_written_down() {
    let mut command = create(&demo(true).plan());
    let Command::Create { consent, .. } = &mut command else {
        panic!("create makes a Create")
    };
    *consent = Some(Consent { max_rows: None });
    let events = decide(&State::New, &command).expect("a sound plan");
    assert!(
        matches!(events[..], [Event::Created { consent: None, .. }]),
        "{events:?}"
    );
}

fn loss(written: u64) -> DataLoss {
    let table = "public.users".to_owned();
    DataLoss {
        backup: "db-1".to_owned(),
        taken_at: "2026-11-21T03:00:00Z".to_owned(),
        tables: vec![TableLoss {
            table,
            written,
            replaced: 0,
        }],
        unknown: String::new(),
        put_aside: String::new(),
    }
}

/// Writers went on after the operator looked. The agent counts again and does not exchange; everything goes back.
#[test]
fn loss_that_is_too_great_at_the_switch_is_undone() {
    let plan = demo(true).plan_with(DatabaseChoice::Restore);
    let too_great = Outcome {
        loss: Some(loss(5000)),
        ..outcome(
            StepResult::Failed(Problem {
                code: "RB0710".to_owned(),
                message: "5000 rows would be lost, 1132 were agreed to".to_owned(),
                remedy: "agree to more".to_owned(),
            }),
            None,
        )
    };
    let (state, journal) = carry_out_but(&plan, &[("switch db-1/db", too_great)]);
    let Some(Ending::Undone { blocked: false, cause }) = state.ending() else {
        panic!("{:?}", state.ending())
    };
    assert_eq!(cause.code, "RB0710");
    assert!(cause.message.contains("5000 rows would be lost"), "{}", cause.message);
    let intents = intents(&state, &journal);
    assert!(
        intents.contains(&"undo: switch db-1/db".to_owned()),
        "it may have got somewhere: {intents:?}"
    );
    assert!(intents.contains(&"undo: start app-1/api".to_owned()));
    let told = state.reports().find_map(|r| r.outcome?.loss.clone());
    assert_eq!(told, Some(loss(5000)), "the report has the figures");
}

/// Equal revisions on both sides: what failed later is undone by exchanging the databases once more.
#[test]
fn restore_at_its_own_schema_is_undone() {
    let plan = demo(false).plan_with(DatabaseChoice::Restore);
    let (state, journal) = carry_out_but(&plan, &[("verify app-2/api", failed())]);
    assert!(matches!(state.ending(), Some(Ending::Undone { blocked: false, .. })));
    let intents = intents(&state, &journal);
    let position = |what: &str| intents.iter().position(|i| i == what);
    let (back, start) = (position("undo: switch db-1/db"), position("undo: start app-1/api"));
    assert!(
        back.is_some() && back < start,
        "before anybody writes again: {intents:?}"
    );
}

#[test]
fn findings_and_outcomes_without_a_loss_are_written_as_before() {
    let plain = serde_json::to_string(&good_outcome()).expect("JSON");
    assert!(!plain.contains("loss"), "{plain}");
    let with = Outcome {
        loss: Some(loss(100)),
        ..good_outcome()
    };
    let json = serde_json::to_string(&with).expect("JSON");
    assert_eq!(serde_json::from_str::<Outcome>(&json).expect("an outcome"), with);
}

fn good_outcome() -> Outcome {
    outcome(StepResult::Succeeded, Some(revision("v2.9.0", "db")))
}

/// `Fleet` at its release: nothing but the data changes.
#[test]
fn fleet_at_its_release_can_be_restored_alone() {
    let fleet =
        Fleet::empty()
            .with("app-1", "api", Role::App, false, &[])
            .with("db-1", "db", Role::Database, false, &[]);
    let plan = fleet.plan_by(&builtin("restore"));
    assert_eq!(lint(&plan), vec![]);
    assert_eq!(
        actions(&of(&plan, &Target::new("app-1", "api"))),
        [
            Action::Stop,
            Action::Start,
            Action::Verify,
            Action::Verify,
            Action::Finish
        ]
    );
    assert!(of(&plan, &database()).iter().any(|s| s.action == Action::Switch));
}

/// Held in the middle: the remedy takes nothing back that was to stay, and restores nothing a second time.
#[test]
fn way_on_from_a_held_rollback_keeps_to_what_was_chosen() {
    let go_on = |plan: &Plan| {
        let (state, _) = carry_out_but(plan, &[("start app-1/api", unknown())]);
        let Some(Ending::Held { cause }) = state.ending() else {
            panic!("{:?}", state.ending())
        };
        let restores = plan.body.database == DatabaseChoice::Restore;
        assert_eq!(
            cause.remedy.contains("restores no backup"),
            restores,
            "{}",
            cause.remedy
        );
        let command = cause.remedy.split('`').nth(1).expect("a command");
        command
            .strip_prefix("rollbackctl fleet rollback --to v2.9.0")
            .map(ToOwned::to_owned)
    };
    let by = |name: &str| go_on(&demo(true).plan_by(&builtin(name)));
    assert_eq!(by("default").as_deref(), Some(""));
    assert_eq!(by("app-only").as_deref(), Some(" --runbook app-only --database keep"));
    assert_eq!(by("schema-only").as_deref(), Some(" --runbook schema-only"));
    assert_eq!(by("restore").as_deref(), Some(""));
    let restored = demo(true).plan_with(DatabaseChoice::Restore);
    assert_eq!(go_on(&restored).as_deref(), Some(""));
}
