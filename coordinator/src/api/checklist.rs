//! The checklist before a deployment: could the fleet come back from it? Looks only, except that `rehearse` takes the
//! databases of the plan through `stage`, which works on a copy, and throws it away again.
//!
//! | item | the question |
//! |---|---|
//! | `recorded` | is what runs now a release that can be named afterwards? |
//! | `health` | does everything work before anything is changed? |
//! | `backup` | is there a proven backup of every database as it is now? |
//! | `plan` | is there a way to the release before, and is nothing else going on? |
//! | `artifacts` | has every host what that way needs? |
//! | `migration` | was the way down of the schema rehearsed? |

use rollback_engine::event::{Direction, Outcome, Severity, StepResult};
use rollback_engine::ids::{RollbackId, StepId, Target};
use rollback_engine::plan::{Plan, Step};
use rollback_engine::planner::{self, Request as Wish};
use rollback_engine::release::{Action, Release, ReleaseEntry, Role};
use rollback_engine::runbook::Runbook;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::Request;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::Api;
use super::agents::matches;
use super::releases::PREVIOUS;
use crate::dispatcher::Order;
use crate::leader::Leader;
use crate::prospect::{self, Found};
use crate::survey::{self, HostSurvey};
use crate::{convert, hold};

/// How many names one line of evidence lists.
const LISTED: usize = 6;

impl Api {
    pub async fn preflight(
        &self,
        request: Request<v1::PreflightReleaseRequest>,
    ) -> Result<v1::PreflightReleaseResponse, Problem> {
        let rehearse = request.into_inner().rehearse;
        let leader = self.leader()?;
        // In a task of its own: what was staged for a rehearsal is thrown away also when nobody waits any more.
        let (this, tasks) = (self.clone(), leader.shared().tasks.clone());
        let work = tasks.spawn(async move {
            // Nothing is asked of agents after the term.
            tokio::select! {
                biased;
                () = leader.shared().term.ended() => None,
                items = this.checklist(&leader, rehearse) => Some(items),
            }
        });
        let ended = || Problem::new(Code::NotLeader, "this coordinator does not lead any more");
        let items = work.await.ok().flatten().ok_or_else(ended)?;
        Ok(v1::PreflightReleaseResponse { items: items? })
    }

    async fn checklist(&self, leader: &Leader, rehearse: bool) -> Result<Vec<v1::ChecklistItem>, Problem> {
        let survey = survey::observe(self.inventory()).await;
        let releases = self.store().releases().await?;
        let recorded = self
            .recorded_item(releases.iter().find(|r| matches(r, &survey)))
            .await?;
        let backup = backup_item(leader, &survey).await;
        let (plan, rest) = match self.way_back(leader, &survey).await {
            Ok(way) => {
                let found = prospect::prepare(&leader.shared().dispatcher, &way, survey::AT_ONCE).await;
                let migration = self.migration_item(leader, &way, rehearse).await?;
                (plan_item(&way), vec![artifacts_item(&way, &found), migration])
            }
            Err(item) => (item, Vec::new()),
        };
        let mut items = vec![recorded, health_item(&survey), backup, plan];
        items.extend(rest);
        Ok(items)
    }

    async fn recorded_item(&self, live: Option<&Release>) -> Result<v1::ChecklistItem, Problem> {
        let Some(live) = live else {
            let evidence = "what runs now is no recorded release: nothing could bring it back".to_owned();
            return Ok(item(
                "recorded",
                Severity::Blocker,
                evidence,
                "rollbackctl release record NAME",
            ));
        };
        let named = match live.commit.as_str() {
            "" => String::new(),
            commit => format!(", commit {commit}"),
        };
        let evidence = format!(
            "{} runs, recorded {:.0} by {}{named}",
            live.name, live.recorded_at, live.recorded_by
        );
        if let Some(hold) = hold::of(self.store(), &live.name).await? {
            let remedy = format!("roll back, or: rollbackctl fleet unhold {} --reason TEXT", live.name);
            return Ok(item(
                "recorded",
                Severity::Warning,
                format!("{evidence}; {}", hold.told()),
                &remedy,
            ));
        }
        if !live.stable {
            let remedy = format!("rollbackctl release mark {} --stable --reason TEXT", live.name);
            let evidence = format!("{evidence}; it is not stable, so `previous` will not choose it");
            return Ok(item("recorded", Severity::Warning, evidence, &remedy));
        }
        Ok(item("recorded", Severity::Ok, evidence, ""))
    }

    /// The plan to the stable release before what runs now, or the item that says why there is none.
    async fn way_back(&self, leader: &Leader, survey: &[HostSurvey]) -> Result<Plan, v1::ChecklistItem> {
        let refused = |problem: Problem| item("plan", Severity::Blocker, problem.message, &problem.remedy);
        let previous = match self.target_release(PREVIOUS, survey).await {
            Ok(previous) => previous,
            // The first deployment has nothing before it, and can be gone back from all the same.
            Err(problem) if problem.code == Code::UnknownRelease => {
                let remedy =
                    "nothing, if there was none yet; else rollbackctl release mark NAME --stable --reason TEXT";
                return Err(item("plan", Severity::Warning, problem.message, remedy));
            }
            Err(problem) => return Err(refused(problem)),
        };
        let targets: Vec<Target> = previous.entries.iter().map(|e| e.target.clone()).collect();
        leader.check_free(&targets).await.map_err(refused)?;
        let runbook = Runbook::builtin("default").expect("it is built in, and a test reads it");
        planner::plan(&survey::observed_fleet(survey), &previous, &runbook, &Wish::default())
            .map_err(|why| item("plan", Severity::Blocker, why.to_string(), why.remedy()))
    }

    /// The way down is rehearsed by staging it, which happens beside the live database, and thrown away.
    async fn migration_item(&self, leader: &Leader, way: &Plan, rehearse: bool) -> Result<v1::ChecklistItem, Problem> {
        let moves = |target: &Target| {
            let mut changes = way.body.changes.iter();
            changes.any(|c| c.target == *target && c.role == Role::Database && c.moves())
        };
        let stages: Vec<&Step> = way
            .body
            .steps()
            .filter(|step| step.action == Action::Stage && moves(&step.target))
            .collect();
        if stages.is_empty() {
            let evidence = format!("the schema does not change on the way to {}", way.body.release);
            return Ok(item("migration", Severity::Ok, evidence, ""));
        }
        if !rehearse {
            let names = listed(stages.iter().map(|step| step.target.to_string()));
            let evidence = format!("the way down to {} was not rehearsed now: {names}", way.body.release);
            return Ok(item(
                "migration",
                Severity::Warning,
                evidence,
                "rollbackctl release preflight --rehearse",
            ));
        }
        let id = RollbackId(format!("rehearsal-{}", uuid::Uuid::now_v7()));
        let (mut told, mut findings, mut worst) = (Vec::new(), Vec::new(), Severity::Ok);
        for stage in stages {
            let rehearsed = ask(leader, &id, stage.clone()).await;
            // A rollback that has begun meanwhile needs what is staged, and clears it by itself.
            let target = &stage.target;
            if leader.check_free(std::slice::from_ref(target)).await.is_ok() {
                let discard = Step {
                    // No step of the plan has this number.
                    id: StepId(u32::MAX - stage.id.0),
                    action: Action::Discard,
                    ..stage.clone()
                };
                if let StepResult::Failed(p) | StepResult::Indeterminate(p) = ask(leader, &id, discard).await.result {
                    worst = worst.max(Severity::Warning);
                    told.push(format!("{target}: what was rehearsed is still there: {}", p.message));
                }
            }
            findings.extend(rehearsed.findings.iter().map(|f| convert::finding_of(target, f)));
            match rehearsed.result {
                StepResult::Succeeded => told.push(format!("{target}: {}", rehearsed.summary)),
                StepResult::Failed(p) | StepResult::Indeterminate(p) => {
                    worst = Severity::Blocker;
                    told.push(format!("{target}: {} ({})", p.message, p.code));
                }
            }
        }
        let remedy = match worst {
            Severity::Ok => "",
            Severity::Warning => "look at the host",
            Severity::Blocker => "mend the way down, or know before you deploy that only a backup leads back",
        };
        let item = item("migration", worst, told.join("; "), remedy);
        Ok(v1::ChecklistItem { findings, ..item })
    }
}

async fn ask(leader: &Leader, id: &RollbackId, step: Step) -> Outcome {
    let order = Order {
        rollback: id.clone(),
        step,
        direction: Direction::Forward,
        attempt: 1,
        consent: None,
        ledger: None,
        context: tracing::Span::current().context(),
    };
    leader.shared().dispatcher.execute(&order, &|_| {}).await
}

/// Could every database be restored to what it is now? The same question that a rollback with `--database restore` asks.
async fn backup_item(leader: &Leader, survey: &[HostSurvey]) -> v1::ChecklistItem {
    let now = databases_now(survey);
    if now.entries.is_empty() {
        return item("backup", Severity::Ok, "no database is observed".to_owned(), "");
    }
    let runbook = Runbook::builtin("restore").expect("it is built in, and a test reads it");
    let plan = match planner::plan(&survey::observed_fleet(survey), &now, &runbook, &Wish::default()) {
        Ok(plan) => plan,
        Err(why) => return item("backup", Severity::Blocker, why.to_string(), why.remedy()),
    };
    let found = prospect::prepare(&leader.shared().dispatcher, &plan, survey::AT_ONCE).await;
    let of_databases = |f: &&Found| now.entries.iter().any(|entry| entry.target == f.target);
    let about: Vec<&Found> = found.iter().filter(of_databases).collect();
    // That a restore would lose something is what a backup is like; nobody is asked to agree to it here.
    let is_consent = |f: &Found| f.finding.code == Code::ConsentNeeded.id();
    let worst = about
        .iter()
        .filter(|f| f.finding.severity == Severity::Blocker && !is_consent(f))
        .count();
    let backups = about.iter().filter_map(|f| {
        let loss = f.finding.loss.as_ref()?;
        Some(format!("{}: {} of {}", f.target, loss.backup, loss.taken_at))
    });
    let mut backups: Vec<String> = backups.collect();
    backups.sort();
    backups.dedup();
    let findings = about.iter().map(|f| {
        let mut finding = convert::finding_of(&f.target, &f.finding);
        if is_consent(f) {
            finding.severity = v1::Severity::Ok.into();
        }
        finding
    });
    let (severity, evidence, remedy) = match (worst, backups.is_empty()) {
        (0, false) => (Severity::Ok, format!("proven: {}", listed(backups.into_iter())), ""),
        (0, true) => (
            Severity::Ok,
            "every database has a proven backup of what it is now".to_owned(),
            "",
        ),
        (_, _) => (
            Severity::Blocker,
            first_blocker(about.iter().copied().filter(|f| !is_consent(f))),
            "make one: record the release (with backup_on_record), or rollback-agent database backup on the host",
        ),
    };
    v1::ChecklistItem {
        findings: findings.collect(),
        ..item("backup", severity, evidence, remedy)
    }
}

/// A release that is the databases as they are.
fn databases_now(survey: &[HostSurvey]) -> Release {
    let mut entries = Vec::new();
    for host in survey {
        for state in host.states.iter().flatten() {
            let record = host.agent.record.components.iter().find(|c| c.name == state.component);
            let Some(record) = record.filter(|c| c.role == Role::Database && c.restores) else {
                continue;
            };
            let Some(revision) = state.revision.clone() else {
                continue;
            };
            entries.push(ReleaseEntry {
                target: Target::new(host.agent.record.name.as_str(), record.name.as_str()),
                role: record.role,
                revision: convert::revision_from_wire(revision),
                summary: String::new(),
            });
        }
    }
    entries.sort_by(|a, b| a.target.cmp(&b.target));
    Release {
        name: "now".into(),
        commit: String::new(),
        notes: String::new(),
        recorded_at: jiff::Timestamp::now(),
        recorded_by: String::new(),
        entries,
        stable: false,
        ranks_at: None,
        mark: None,
    }
}

/// What is broken before a deployment is not seen to be broken by it.
fn health_item(survey: &[HostSurvey]) -> v1::ChecklistItem {
    let (mut healthy, mut unchecked, mut ill) = (0_usize, 0_usize, Vec::new());
    for host in survey {
        let name = &host.agent.record.name;
        let states = match &host.states {
            Ok(states) => states,
            Err(problem) => {
                ill.push(format!("{name}: {}", problem.message));
                continue;
            }
        };
        for state in states {
            let said = match state.health() {
                _ if state.problem.is_some() => state.problem.as_ref().map(|p| p.message.clone()).unwrap_or_default(),
                v1::Health::Healthy => {
                    healthy += 1;
                    continue;
                }
                v1::Health::Unknown | v1::Health::Unspecified => {
                    unchecked += 1;
                    continue;
                }
                v1::Health::Unhealthy if state.detail.is_empty() => "unhealthy".to_owned(),
                v1::Health::Unhealthy => format!("unhealthy: {}", state.detail),
                v1::Health::Stopped => "stopped".to_owned(),
                v1::Health::Drained => "gets no requests, or not from everywhere".to_owned(),
            };
            ill.push(format!("{name}/{}: {said}", state.component));
        }
    }
    let counted = format!("{healthy} healthy, {unchecked} without a check of their own");
    match ill.len() {
        0 if healthy + unchecked == 0 => {
            let remedy = "enroll the hosts first: rollbackctl agent token NAME";
            item(
                "health",
                Severity::Blocker,
                "no component is observed".to_owned(),
                remedy,
            )
        }
        0 => item("health", Severity::Ok, counted, ""),
        count => item(
            "health",
            Severity::Blocker,
            format!("{counted}, {count} not in order: {}", listed(ill.into_iter())),
            "mend what is listed before anything is deployed: rollbackctl fleet status",
        ),
    }
}

fn plan_item(way: &Plan) -> v1::ChecklistItem {
    let body = &way.body;
    let moving = body.changes.iter().filter(|c| c.moves()).count();
    let evidence = format!(
        "{moving} of {} components would go back to {}, in {} steps",
        body.changes.len(),
        body.release,
        body.steps().count()
    );
    if body.excused.is_empty() {
        return item("plan", Severity::Ok, evidence, "");
    }
    let hosts = listed(body.excused.iter().map(|excused| excused.host.to_string()));
    let remedy = "bring them back, or know that they stay behind";
    item(
        "plan",
        Severity::Warning,
        format!("{evidence}; without {hosts}"),
        remedy,
    )
}

fn artifacts_item(way: &Plan, found: &[Found]) -> v1::ChecklistItem {
    let release = &way.body.release;
    let of = |severity: Severity| found.iter().filter(move |f| f.finding.severity == severity);
    let (blockers, warnings) = (of(Severity::Blocker).count(), of(Severity::Warning).count());
    let plan = format!("see all of it: rollbackctl fleet plan --to {release}");
    let (severity, evidence, remedy) = match (blockers, warnings) {
        (0, 0) => (
            Severity::Ok,
            format!("every host has what {release} needs"),
            String::new(),
        ),
        (0, count) => (
            Severity::Warning,
            format!("every host has what {release} needs; {count} warnings"),
            plan,
        ),
        (_, _) => (Severity::Blocker, first_blocker(found.iter()), plan),
    };
    v1::ChecklistItem {
        findings: found
            .iter()
            .map(|f| convert::finding_of(&f.target, &f.finding))
            .collect(),
        ..item("artifacts", severity, evidence, &remedy)
    }
}

fn first_blocker<'a>(found: impl Iterator<Item = &'a Found>) -> String {
    let blockers: Vec<&Found> = found.filter(|f| f.finding.severity == Severity::Blocker).collect();
    let first = blockers.first().map(|f| format!("{}: {}", f.target, f.finding.message));
    match (first, blockers.len()) {
        (Some(first), 1) => first,
        (Some(first), count) => format!("{first}; and {} more", count - 1),
        (None, _) => String::new(),
    }
}

fn listed(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.collect();
    let more = names.len().saturating_sub(LISTED);
    names.truncate(LISTED);
    match more {
        0 => names.join(", "),
        more => format!("{}, and {more} more", names.join(", ")),
    }
}

fn item(name: &str, severity: Severity, evidence: String, remedy: &str) -> v1::ChecklistItem {
    let severity = match severity {
        Severity::Ok => v1::Severity::Ok,
        Severity::Warning => v1::Severity::Warning,
        Severity::Blocker => v1::Severity::Blocker,
    };
    v1::ChecklistItem {
        name: name.to_owned(),
        severity: severity.into(),
        evidence,
        remedy: remedy.to_owned(),
        findings: Vec::new(),
    }
}
