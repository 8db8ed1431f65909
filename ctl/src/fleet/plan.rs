//! `rollbackctl fleet plan`

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use rollback_proto::names::check_name;
use rollback_proto::problem::Problem;
use rollback_proto::v1::{DatabaseChoice, PlanRollbackRequest, PlanRollbackResponse, RollbackTarget};
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::{CallError, Client, PREPARE};
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::text::clean;
use crate::output::{self, findings, json as documents, loss, plan, summary};
use crate::session::Session;

/// Show what a rollback would do, and whether it could; changes nothing
///
/// Computes the plan and lets every host check that it can follow it (is the
/// release still there, is there room on the disk, does the backup work, …).
/// Blockers come first, each with what to do.
///
/// Exit codes: 0 nothing would change, 2 the plan has changes, 3 blocked, 1
/// error.
///
/// Examples:
///   rollbackctl fleet plan --to v2.9.0
///   rollbackctl fleet plan --to previous -o json
///   rollbackctl fleet plan --to v2.9.0 --database restore    what would be lost?
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct PlanArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Where to go; the same for planning and for doing.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    /// The release to go back to, or `previous`: the newest stable one that is not what runs now
    #[arg(long, value_name = "RELEASE")]
    pub to: String,
    /// The procedure that shapes the plan: default, emergency (no batches, leaves out hosts that are gone), app-only (all but
    /// databases go back), schema-only (only databases go back), restore (all goes back, databases to a backup)
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub runbook: String,
    /// How databases go back [default: what the runbook says]
    #[arg(long, value_enum, value_name = "HOW")]
    pub database: Option<DatabaseArg>,
}

/// How databases go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatabaseArg {
    /// By migrations that were rehearsed on a copy. Without a way down the plan is blocked; a rehearsal that fails ends the
    /// rollback in stage, undone, with nothing touched (exit code 5). Either says what a restore would cost
    Auto,
    /// Not at all: the schema stays as it is
    Keep,
    /// By migrations, or not at all
    Migrate,
    /// By the newest proven backup of the release's schema. What was written since is lost: see --accept-data-loss
    Restore,
}

impl DatabaseArg {
    fn choice(self) -> DatabaseChoice {
        match self {
            DatabaseArg::Auto => DatabaseChoice::Auto,
            DatabaseArg::Keep => DatabaseChoice::Keep,
            DatabaseArg::Migrate => DatabaseChoice::Migrate,
            DatabaseArg::Restore => DatabaseChoice::Restore,
        }
    }
}

impl TargetArgs {
    /// Checks the names here, so that a wrong one costs no round trip.
    pub fn target(&self) -> Result<RollbackTarget, Problem> {
        check_name("release", &self.to)?;
        check_name("runbook", &self.runbook)?;
        Ok(RollbackTarget {
            release: self.to.clone(),
            runbook: self.runbook.clone(),
            database: self
                .database
                .map_or(DatabaseChoice::Unspecified, DatabaseArg::choice)
                .into(),
            ..RollbackTarget::default()
        })
    }
}

pub async fn run(session: &Session, args: PlanArgs) -> anyhow::Result<ExitCode> {
    let target = args.target.target()?;
    let mut client = session.client()?;
    let response = fetch(&mut client, target).await?;
    let planned = response
        .plan
        .as_ref()
        .context("the coordinator answered without a plan")?;
    let exit = verdict(&response);
    output::data(&match args.output.output {
        Format::Table => text(&response, &to_agree(&response), Paint::stdout()),
        Format::Json => {
            let body = json!({
                "plan": documents::plan(planned),
                "findings": documents::findings(&response.findings),
                "losses": documents::expected_losses(planned, &response.findings),
                "changes": plan::changing(planned),
                "restores": plan::restoring(planned),
                "blocked": exit == ExitCode::Blocked,
                "exit_code": exit.number(),
            });
            documents::document("fleet_plan", body)
        }
    })?;
    Ok(exit)
}

pub async fn fetch(client: &mut Client, target: RollbackTarget) -> Result<PlanRollbackResponse, CallError> {
    let request = PlanRollbackRequest { target: Some(target) };
    client
        .call(PREPARE, request, |mut fleet, request| async move {
            fleet.plan_rollback(request).await
        })
        .await
}

/// Blocked wins: a plan that cannot be followed is no plan.
pub fn verdict(response: &PlanRollbackResponse) -> ExitCode {
    if findings::blockers(&response.findings) > 0 {
        ExitCode::Blocked
    } else if response
        .plan
        .as_ref()
        .is_some_and(|p| plan::changing(p) + plan::restoring(p) > 0)
    {
        ExitCode::HasChanges
    } else {
        ExitCode::Done
    }
}

/// For somebody who has only looked: how to roll back and agree to what is lost.
pub fn to_agree(response: &PlanRollbackResponse) -> String {
    let Some(plan) = &response.plan else {
        return String::new();
    };
    // Nobody can agree to "as shown" where not all is shown.
    let all_known = loss::expected(plan, &response.findings)
        .iter()
        .all(|database| database.rows().is_some());
    let how = if all_known {
        "--accept-data-loss"
    } else {
        "--accept-data-loss=ROWS (or =all)"
    };
    format!(
        "nothing yet; to roll back and agree to that loss: rollbackctl fleet rollback --to {}{} {how}",
        clean(&plan.release),
        summary::options(&plan.runbook, Some(plan), true)
    )
}

/// The plan and its findings. `to_agree`: see [`findings::of_plan`].
pub fn text(response: &PlanRollbackResponse, to_agree: &str, paint: Paint) -> String {
    let plan = response
        .plan
        .as_ref()
        .map(|p| plan::render(p, paint))
        .unwrap_or_default();
    let losses = response
        .plan
        .as_ref()
        .map(|p| loss::of_plan(p, &response.findings, paint))
        .unwrap_or_default();
    let findings = findings::of_plan(&response.findings, to_agree, paint);
    let parts = [plan, losses, findings];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n")
}
