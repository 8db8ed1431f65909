//! Planning: a request → a release, a runbook and a part of the fleet → a plan, with what every host says to it.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use rollback_engine::event::{Direction, Finding, Severity, StepResult};
use rollback_engine::ids::{RollbackId, Target};
use rollback_engine::plan::{Plan, Step};
use rollback_engine::planner;
use rollback_engine::release::Action;
use rollback_engine::runbook::Runbook;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::Api;
use crate::dispatcher::Order;
use crate::leader::Leader;
use crate::store::ComponentRecord;
use crate::{convert, survey};

const DEFAULT_RUNBOOK: &str = "default";

impl Api {
    pub(super) async fn make_plan(
        &self,
        target: Option<v1::RollbackTarget>,
        starting: Option<&Leader>,
    ) -> Result<Plan, Problem> {
        let target = target.ok_or_else(|| Problem::new(Code::BadRequest, "no target is given"))?;
        check_name("release", &target.release)?;
        let runbook = if target.runbook.is_empty() {
            DEFAULT_RUNBOOK
        } else {
            &target.runbook
        };
        check_name("runbook", runbook)?;
        let runbook = Runbook::builtin(runbook).map_err(|e| Problem::from_error(Code::BadRequest, "runbook", &e))?;
        let runbook = match convert::choice_from_wire(target.database)? {
            Some(choice) => runbook.with_database(choice),
            None => runbook,
        };
        if target.release != "previous" {
            // Before anything is asked of the fleet: a misspelt release is the commonest mistake, and that somebody else
            // is at it already is better to know than what a fleet in the middle of a rollback looks like.
            let release = self.release_called(&target.release).await?;
            if let Some(leader) = starting {
                let targets: Vec<Target> = release.entries.into_iter().map(|e| e.target).collect();
                leader.check_free(&targets).await?;
            }
        }
        let survey = survey::observe(self.inventory()).await;
        let release = self.target_release(&target.release, &survey).await?;
        planner::plan(&survey::observed_fleet(&survey), &release, &runbook)
            .map_err(|refused| Problem::new(Code::PlanRefused, refused.to_string()).remedy(refused.remedy()))
    }

    pub async fn plan(&self, request: v1::PlanRollbackRequest) -> Result<v1::PlanRollbackResponse, Problem> {
        let leader = self.leader()?;
        let plan = self.make_plan(request.target, None).await?;
        // Preparations are asked under a name of their own: they are no part of any rollback.
        let id = RollbackId(format!("plan-{}", uuid::Uuid::now_v7()));
        let prepares: Vec<Step> = plan
            .body
            .steps()
            .filter(|s| s.action == Action::Prepare)
            .cloned()
            .collect();
        let context = tracing::Span::current().context();
        let prepare = |step: Step| {
            let order = Order {
                rollback: id.clone(),
                step,
                direction: Direction::Forward,
                attempt: 1,
                consent: None,
                ledger: None,
                context: context.clone(),
            };
            let dispatcher = leader.shared().dispatcher.clone();
            async move {
                let outcome = dispatcher.execute(&order, &|_| {}).await;
                let mut findings = outcome.findings;
                if let StepResult::Failed(p) | StepResult::Indeterminate(p) = outcome.result {
                    let (severity, code, message, remedy) = (Severity::Blocker, p.code, p.message, p.remedy);
                    findings.push(Finding {
                        severity,
                        code,
                        message,
                        remedy,
                        loss: None,
                    });
                }
                findings
                    .iter()
                    .map(|f| convert::finding_to_wire(&order.step, f))
                    .collect::<Vec<_>>()
            }
        };
        let findings = futures::stream::iter(prepares)
            .map(prepare)
            .buffered(survey::AT_ONCE)
            .collect();
        // Nothing is asked of agents after the term, so this would wait for the time of every step to be over.
        let findings: Vec<Vec<v1::Finding>> = tokio::select! {
            biased;
            () = leader.shared().term.ended() => {
                return Err(Problem::new(Code::NotLeader, "this coordinator does not lead any more"));
            }
            findings = findings => findings,
        };
        Ok(v1::PlanRollbackResponse {
            plan: Some(convert::plan_to_wire(&plan)),
            findings: findings.into_iter().flatten().chain(self.strange_backends()).collect(),
            sealed: Vec::new(),
            estimate: None,
        })
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
