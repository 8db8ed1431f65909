//! `rollbackctl rollback approve`

use anyhow::Context as _;
use clap::Args;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::steer_rollback_request::{Act, Approve};
use rollback_proto::v1::{GetRollbackResponse, PlanRollbackResponse};

use super::steer;
use crate::cli::OutputArgs;
use crate::exit::ExitCode;
use crate::fleet::rollback::{confirm, has_terminal};
use crate::output::paint::Paint;
use crate::output::text::clean;
use crate::output::{self, plan};
use crate::session::Session;

/// The least of a digest that names a plan: as much as plans print.
const SHORTEST: usize = 12;

/// Approve a rollback that somebody else has started
///
/// Where the runbook asks for a second operator, nothing is touched before. You see
/// the plan and are asked. What you approve is that very plan: when the fleet has
/// moved since it was made, the approval is refused, and you are told what moved.
///
/// Without a terminal, --yes needs --digest: the plan that you have looked at
/// (rollbackctl rollback show ID).
///
/// Exit codes: 0 it is approved and begins, 1 error (also: you answered no), 3 it
/// may not be approved: by you, not as it is now, or not any more.
///
/// Examples:
///   rollbackctl rollback approve latest
///   rollbackctl rollback approve latest --yes --digest 77cc01bc04de
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ApproveArgs {
    /// Its id, or `latest`
    #[arg(value_name = "ID")]
    pub id: String,
    /// Why, or what was looked at; kept in the journal
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    /// Approve only the plan with this digest, or one that begins so (12 digits at least)
    #[arg(long, value_name = "DIGEST")]
    pub digest: Option<String>,
    /// Do not ask. Needs --digest
    #[arg(long, requires = "digest")]
    pub yes: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: ApproveArgs) -> anyhow::Result<ExitCode> {
    super::check_id(&args.id)?;
    if !args.yes && !has_terminal() {
        let text = "whoever approves looks at the plan first, and there is no terminal to show it on";
        return Err(Problem::new(Code::BadRequest, text)
            .remedy(format!(
                "look at it: rollbackctl rollback show {}; then add --yes --digest DIGEST",
                clean(&args.id)
            ))
            .into());
    }
    let mut client = session.client()?;
    let details = steer::resolve(&mut client, &args.id).await?;
    let digest = details.plan.as_ref().map(|p| p.digest.clone());
    let digest = digest.context("the coordinator answered without a plan")?;
    if let Some(wanted) = &args.digest {
        check_digest(wanted, &digest, &args.id)?;
    }
    let summary = details.summary.clone().context("has a summary")?;
    if !args.yes {
        show(&details);
        let question = format!("Approve it, for {} to start it?", clean(&summary.started_by));
        if !confirm(&question)? {
            output::note("Not approved.");
            return Ok(ExitCode::Error);
        }
    }
    let act = Act::Approve(Approve { plan_digest: digest });
    let summary = steer::steer(&mut client, &summary.id, &args.reason, act).await?;
    let (id, release) = (clean(&summary.id), clean(&summary.release));
    let done = format!("rollback {id} to {release} is approved and begins");
    steer::tell(&mut client, &summary, &done, args.output.output).await
}

/// Who wants what and why, then the plan as it was planned.
fn show(details: &GetRollbackResponse) {
    let summary = details.summary.clone().unwrap_or_default();
    let response = PlanRollbackResponse {
        plan: details.plan.clone(),
        findings: details.findings.clone(),
        ..PlanRollbackResponse::default()
    };
    output::note(&plan::page(&response, "", None, Paint::stderr()));
    let mut asks = format!("{} asks for it", clean(&summary.started_by));
    for (what, text) in [("", &summary.reason), ("incident ", &summary.incident)] {
        if !text.is_empty() {
            asks.push_str(&format!(": {what}{}", clean(text)));
        }
    }
    output::note(&format!("\n{asks}"));
}

/// `sha256:` may be left out, and so may the end.
fn check_digest(wanted: &str, digest: &str, id: &str) -> Result<(), Problem> {
    let hex = |text: &str| text.strip_prefix("sha256:").unwrap_or(text).to_lowercase();
    let (wanted, found) = (hex(wanted), hex(digest));
    if wanted.len() < SHORTEST.min(found.len()) {
        let text = format!("`{}` names no plan: it is too short", clean(&wanted));
        return Err(Problem::new(Code::BadRequest, text).remedy(format!(
            "give 12 digits of the plan's digest at least, as rollbackctl rollback show {} has them",
            clean(id)
        )));
    }
    if found.starts_with(&wanted) {
        return Ok(());
    }
    let text = format!(
        "the plan is {}, not {} as you have looked at",
        clean(digest),
        clean(&wanted)
    );
    Err(Problem::new(Code::ApprovalRefused, text)
        .remedy(format!("look at it again: rollbackctl rollback show {}", clean(id))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_named_by_the_beginning_of_its_digest_and_not_by_less() {
        let digest = "sha256:77cc01bc04de55aa";
        for good in ["77cc01bc04de", "sha256:77CC01BC04DE55", digest] {
            check_digest(good, digest, "latest").expect(good);
        }
        assert_eq!(
            check_digest("77cc", digest, "latest").expect_err("too short").code,
            Code::BadRequest
        );
        assert_eq!(
            check_digest("", digest, "latest").expect_err("nothing").code,
            Code::BadRequest
        );
        let other = check_digest("77cc01bc04df", digest, "latest").expect_err("another plan");
        assert_eq!(other.code, Code::ApprovalRefused);
    }
}
