//! `rollbackctl fleet hold`

use clap::Args;
use rollback_proto::names::check_name;
use rollback_proto::v1::{Hold, HoldReleaseRequest};
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::QUICK;
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, json as documents, status};
use crate::session::Session;

/// Forbid that a release is deployed
///
/// From then on `release record` refuses it, and the same content under another name,
/// and deployments that ask `fleet status --gate RELEASE` are told not to go on, with
/// the reason. Rolling back to it stays possible, with a warning.
///
/// A rollback holds the releases that it took the fleet back from by itself, where its
/// runbook says so (the built-in ones do). A release need not be recorded to be held.
///
/// Exit codes: 0 held, 1 error.
///
/// Examples:
///   rollbackctl fleet hold v3.0.0 --reason "leaks file handles, INC-4711"
///   rollbackctl fleet unhold v3.0.0 --reason "mended by v3.0.1"
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct HoldArgs {
    /// Its name
    #[arg(value_name = "RELEASE")]
    pub release: String,
    /// Why; everybody who wants to deploy it reads this
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: HoldArgs) -> anyhow::Result<ExitCode> {
    check_name("release", &args.release)?;
    let request = HoldReleaseRequest {
        release: args.release,
        reason: args.reason,
    };
    let mut client = session.client()?;
    let hold = client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.hold_release(request).await
        })
        .await?
        .hold
        .unwrap_or_default();
    say(&hold, true, args.output.output)?;
    Ok(ExitCode::Done)
}

/// What holding and giving free answer with. `held`: is it now?
pub(super) fn say(hold: &Hold, held: bool, format: Format) -> anyhow::Result<()> {
    output::data(&match format {
        Format::Table if held => status::held(hold, Paint::stdout()),
        Format::Table => format!(
            "{} may be deployed again; until now: {}",
            output::text::clean(&hold.release),
            status::held(hold, Paint::stdout())
        ),
        Format::Json => documents::document("fleet_hold", json!({"held": held, "hold": documents::hold(hold)})),
    })
}
