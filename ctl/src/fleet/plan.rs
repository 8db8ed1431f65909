//! `rollbackctl fleet plan`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use rollback_proto::v1::{PlanRollbackRequest, PlanRollbackResponse, RollbackTarget};
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::{CallError, Client, PREPARE};
use crate::exit::ExitCode;
use crate::fleet::plan_file::{self, PlanFile};
use crate::fleet::target::ShapeArgs;
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
/// With --out the plan is saved: `fleet rollback --plan FILE` starts exactly that
/// plan, or refuses it and says what moved in the meantime.
///
/// Exit codes: 0 nothing would change, 2 the plan has changes, 3 blocked, 1
/// error.
///
/// Examples:
///   rollbackctl fleet plan --to v2.9.0
///   rollbackctl fleet plan --to v2.9.0 --out plan.json
///   rollbackctl fleet plan --to v2.9.0 --service api -l tier=app --exclude-host app-3
///   rollbackctl fleet plan --to previous -o json
///   rollbackctl fleet plan --to v2.9.0 --database restore    what would be lost?
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct PlanArgs {
    /// The release to go back to, or `previous`: the newest stable one that is not what runs now
    #[arg(long, value_name = "RELEASE")]
    pub to: String,
    #[command(flatten)]
    pub shape: ShapeArgs,
    /// Save the plan to this file, to start exactly it later: fleet rollback --plan FILE
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub out: Option<PathBuf>,
    /// Replace the file of --out when there is one
    #[arg(long, requires = "out")]
    pub force: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: PlanArgs) -> anyhow::Result<ExitCode> {
    let target = args.shape.target_to(&args.to)?;
    if let Some(path) = &args.out {
        plan_file::check_free(path, args.force)?;
    }
    let context = session.context()?;
    let mut client = Client::new(&context)?;
    let response = fetch(&mut client, target.clone(), Vec::new()).await?;
    let planned = response
        .plan
        .as_ref()
        .context("the coordinator answered without a plan")?;
    let exit = verdict(&response);
    let mut command = None;
    if let Some(path) = &args.out {
        let file = PlanFile::of(&context.name, &client.identity(), &target, &response)
            .context("the coordinator answered without a plan that can be saved; is it of an older version?")?;
        file.write(path, args.force)?;
        command = Some(format!("rollbackctl fleet rollback --plan {}", path.display()));
    }
    output::data(&match args.output.output {
        Format::Table => plan::page(&response, &to_agree(&response), command.as_deref(), Paint::stdout()),
        Format::Json => {
            let body = json!({
                "plan": documents::plan(planned),
                "findings": documents::findings(&response.findings),
                "losses": documents::expected_losses(planned, &response.findings),
                "estimate": documents::estimate(response.estimate.as_ref()),
                "changes": plan::changing(planned),
                "restores": plan::restoring(planned),
                "blocked": exit == ExitCode::Blocked,
                "exit_code": exit.number(),
            });
            documents::document("fleet_plan", body)
        }
    })?;
    if let Some(path) = &args.out {
        output::note(&format!("saved to {}", path.display()));
    }
    Ok(exit)
}

/// `sealed`: a plan that was saved; it is refused when it is not the plan of now.
pub async fn fetch(
    client: &mut Client,
    target: RollbackTarget,
    sealed: Vec<u8>,
) -> Result<PlanRollbackResponse, CallError> {
    let request = PlanRollbackRequest {
        target: Some(target),
        sealed_plan: sealed,
    };
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
    plan::page(response, to_agree, None, paint)
}
