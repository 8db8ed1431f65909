//! Planning: a request → a release, a runbook and a part of the fleet → a plan, with what every host says to it.

use std::collections::BTreeSet;

use rollback_engine::ids::{HostName, RollbackId, Target};
use rollback_engine::plan::{DatabaseChoice, Plan};
use rollback_engine::planner::{self, Request};
use rollback_engine::release::Release;
use rollback_engine::runbook::Runbook;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;

use super::Api;
use crate::leader::Leader;
use crate::objective::{self, Convergence};
use crate::scoping::{self, Goal};
use crate::store::{AgentRecord, ComponentRecord};
use crate::survey::HostSurvey;
use crate::{convert, estimate, history, hold, prospect, survey};

impl Api {
    /// The plan of now for this target. `starting`: whatever holds a part of it is named before the fleet is asked anything.
    pub(super) async fn make_plan(
        &self,
        target: Option<v1::RollbackTarget>,
        starting: Option<&Leader>,
    ) -> Result<Plan, Problem> {
        let target = target.ok_or_else(|| Problem::new(Code::BadRequest, "no target is given"))?;
        let goal = Goal::of(&target)?;
        let database = convert::choice_from_wire(target.database)?;
        let runbook = self.policy(&target, database).await?;
        let agents: Vec<AgentRecord> = self.inventory().list().into_iter().map(|a| a.record).collect();
        let scope = target.scope.unwrap_or_default();
        let request = scoping::request(scope, goal.purpose(), &agents)?;
        // Before anything is asked of the fleet: a misspelt release is the commonest mistake, and that somebody else is at it
        // already is better to know than what a fleet in the middle of a rollback looks like.
        let known = match &goal {
            Goal::Release(name) if name == "previous" => None,
            Goal::Release(name) => Some(self.release_called(name).await?),
            Goal::Undo(id) => Some(self.release_before(id, database).await?),
            Goal::Converge => None,
        };
        if let (Some(release), Some(leader)) = (&known, starting) {
            let asked = request.within(&runbook);
            let targets = release.entries.iter().map(|e| e.target.clone());
            let targets: Vec<Target> = targets.filter(|t| asked.selects(t)).collect();
            leader.check_free(&targets).await?;
        }
        let survey = survey::observe(self.inventory()).await;
        let (release, request) = match (known, goal) {
            (Some(release), _) => (release, request),
            (None, Goal::Release(name)) => (self.target_release(&name, &survey).await?, request),
            (None, Goal::Undo(_) | Goal::Converge) => self.convergence(request, &runbook, &survey).await?,
        };
        plan_for(&survey, &release, &runbook, &request)
    }

    /// The runbook, with what the request says otherwise.
    async fn policy(&self, target: &v1::RollbackTarget, database: Option<DatabaseChoice>) -> Result<Runbook, Problem> {
        let mut runbook = self.runbook_called(&target.runbook).await?;
        if let Some(choice) = database {
            runbook = runbook.with_database(choice);
        }
        if let Some(choice) = scoping::on_failure(target.on_failure)? {
            runbook = runbook.with_on_failure(choice);
        }
        Ok(runbook)
    }

    /// Where everything was before a rollback that has ended.
    async fn release_before(&self, id: &RollbackId, database: Option<DatabaseChoice>) -> Result<Release, Problem> {
        let state = history::state(self.store(), id).await?;
        let Some(plan) = state.plan() else {
            return Err(Problem::new(Code::NotFound, format!("no rollback {id}")));
        };
        if state.ending().is_none() {
            return Err(
                Problem::new(Code::NoWayBack, format!("rollback {id} has not ended")).remedy(format!(
                    "end it first, and take it back by that: rollbackctl rollback abort {id} --undo --reason TEXT"
                )),
            );
        }
        scoping::check_way_back(id, &plan.body, database)?;
        let recorded = self.store().releases().await?;
        Ok(scoping::release_before(id, &plan.body, &recorded))
    }

    /// Where everything shall be, and the part of the request that is elsewhere.
    async fn convergence(
        &self,
        mut request: Request,
        runbook: &Runbook,
        survey: &[HostSurvey],
    ) -> Result<(Release, Request), Problem> {
        let objectives = objective::all(self.store()).await?;
        let nothing = || {
            Problem::new(
                Code::PlanRefused,
                "everything in scope that can be reached is where it shall be",
            )
            .remedy("look at it: rollbackctl fleet status")
        };
        let Convergence { release, hosts } = objective::convergence(&objectives, survey).ok_or_else(nothing)?;
        let within = request.within(runbook);
        let asked = release.entries.iter().filter(|e| within.selects(&e.target));
        let asked: BTreeSet<&HostName> = asked.map(|e| &e.target.host).collect();
        let elsewhere: BTreeSet<HostName> = hosts.into_iter().filter(|host| asked.contains(host)).collect();
        if elsewhere.is_empty() {
            return Err(nothing());
        }
        request.selection.hosts = elsewhere;
        Ok((release, request))
    }

    pub async fn plan(&self, request: v1::PlanRollbackRequest) -> Result<v1::PlanRollbackResponse, Problem> {
        let leader = self.leader()?;
        let plan = self.plan_of_now(request.target, &request.sealed_plan, None).await?;
        let dispatcher = leader.shared().dispatcher.clone();
        // Nothing is asked of agents after the term, so this would wait for the time of every step to be over.
        let found = tokio::select! {
            biased;
            () = leader.shared().term.ended() => {
                return Err(Problem::new(Code::NotLeader, "this coordinator does not lead any more"));
            }
            found = prospect::prepare(&dispatcher, &plan, survey::AT_ONCE) => found,
        };
        let agents: Vec<AgentRecord> = self.inventory().list().into_iter().map(|a| a.record).collect();
        let of_scope = scoping::warnings(&plan, &agents);
        let findings = found
            .iter()
            .chain(&of_scope)
            .map(|f| convert::finding_of(&f.target, &f.finding));
        let findings = findings.chain(self.held(&plan).await?).chain(self.strange_backends());
        Ok(v1::PlanRollbackResponse {
            findings: findings.collect(),
            plan: Some(convert::plan_to_wire(&plan)),
            sealed: serde_json::to_vec(&plan).expect("a plan is plain data, which JSON can always hold"),
            estimate: estimate::estimate(self.store(), &plan).await,
        })
    }

    /// Going back to a release that is held is allowed: whoever does it in an incident knows why. It should be known all the same.
    pub(super) async fn held(&self, plan: &Plan) -> Result<Option<v1::Finding>, Problem> {
        let release = &plan.body.release;
        let hold = hold::of(self.store(), release).await?;
        Ok(hold.map(|hold| v1::Finding {
            severity: v1::Severity::Warning.into(),
            code: Code::ReleaseHeld.id().to_owned(),
            message: format!("{release} is {}", hold.told()),
            remedy: "go on if you know better than whoever held it, or choose another release".to_owned(),
            host: String::new(),
            component: String::new(),
            loss: None,
        }))
    }

    /// Backends of proxies that no agent has: a name that is misspelt there would be taken out by nobody, silently.
    fn strange_backends(&self) -> Vec<v1::Finding> {
        let agents = self.inventory().list();
        let components = || {
            agents
                .iter()
                .flat_map(|a| a.record.components.iter().map(move |c| (&a.record.name, c)))
        };
        let known: BTreeSet<Target> = components()
            .map(|(host, c)| Target::new(host.as_str(), c.name.as_str()))
            .collect();
        let strange = |(host, component): (&String, &ComponentRecord)| {
            let unknown: BTreeSet<String> = component
                .backends
                .iter()
                .flatten()
                .filter(|b| !known.contains(b))
                .map(Target::to_string)
                .collect();
            let names: Vec<String> = unknown.into_iter().collect();
            (!names.is_empty()).then(|| v1::Finding {
                severity: v1::Severity::Warning.into(),
                code: Code::UnknownComponent.id().to_owned(),
                message: format!(
                    "backends that no agent has: {}; applications restart without being taken out of their upstream",
                    names.join(", ")
                ),
                remedy: "write host/component as rollbackctl agent list shows them, in the upstream's backends"
                    .to_owned(),
                host: host.clone(),
                component: component.name.clone(),
                loss: None,
            })
        };
        components().filter_map(strange).collect()
    }
}

/// The plan for what was observed.
pub(crate) fn plan_for(
    survey: &[HostSurvey],
    release: &Release,
    runbook: &Runbook,
    request: &Request,
) -> Result<Plan, Problem> {
    planner::plan(&survey::observed_fleet(survey), release, runbook, request)
        .map_err(|refused| Problem::new(Code::PlanRefused, refused.to_string()).remedy(refused.remedy()))
}
