//! `rollbackctl fleet readiness`

use clap::Args;
use rollback_proto::names::check_name;
use rollback_proto::v1::GetReadinessRequest;
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::QUICK;
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, json as documents, readiness};
use crate::session::Session;

/// Show whether the fleet could go back, before it has to
///
/// The coordinator that leads lets every host look, in the background, for the last
/// stable releases before the one that runs: is the image still there, does the tag
/// mean what it meant, is there a way down for the schema, is there room, is the
/// backup young enough? What was found last is answered at once, with its age; every
/// blocker stands with its host and what to do.
///
/// To ask the hosts now, for any release: rollbackctl fleet plan --to RELEASE
///
/// Exit codes: 0 ready, 3 a release that was checked (with --to: that one) is not
/// ready, or nobody has looked lately, 1 error.
///
/// Examples:
///   rollbackctl fleet readiness
///   rollbackctl fleet readiness --to previous
///   rollbackctl fleet readiness -o json | jq -r '.releases[] | select(.ready) | .release'
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ReadinessArgs {
    /// Only this release, with its warnings; `previous`: the newest stable one before what runs now
    #[arg(long, value_name = "RELEASE")]
    pub to: Option<String>,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: ReadinessArgs) -> anyhow::Result<ExitCode> {
    if let Some(release) = &args.to {
        check_name("release", release)?;
    }
    let request = GetReadinessRequest {
        release: args.to.clone().unwrap_or_default(),
    };
    let mut client = session.client()?;
    let response = client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.get_readiness(request).await
        })
        .await?;
    // Nothing that was checked is nothing that could be counted on.
    let vouched_for = !response.releases.is_empty() && response.releases.iter().all(readiness::is_vouched_for);
    let exit = if vouched_for { ExitCode::Done } else { ExitCode::Blocked };
    output::data(&match args.output.output {
        Format::Table => readiness::render(&response, args.to.is_some(), Paint::stdout()),
        Format::Json => {
            let mut body = readiness::json(&response);
            body["exit_code"] = json!(exit.number());
            documents::document("fleet_readiness", body)
        }
    })?;
    Ok(exit)
}
