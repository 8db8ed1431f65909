//! `rollbackctl fleet unhold`

use clap::Args;
use rollback_proto::names::check_name;
use rollback_proto::v1::UnholdReleaseRequest;

use super::hold;
use crate::cli::OutputArgs;
use crate::client::QUICK;
use crate::exit::ExitCode;
use crate::session::Session;

/// Allow again that a release is deployed
///
/// Answers with who had held it and why. What was mended under the same name stays
/// forbidden until then: a name alone does not say that it was.
///
/// Exit codes: 0 given free, 1 error (also: it is not held).
///
/// Examples:
///   rollbackctl fleet unhold v3.0.0 --reason "it was the load balancer"
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct UnholdArgs {
    /// Its name
    #[arg(value_name = "RELEASE")]
    pub release: String,
    /// Why; kept in the coordinator's log
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: UnholdArgs) -> anyhow::Result<ExitCode> {
    check_name("release", &args.release)?;
    let request = UnholdReleaseRequest {
        release: args.release,
        reason: args.reason,
    };
    let mut client = session.client()?;
    let was = client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.unhold_release(request).await
        })
        .await?
        .hold
        .unwrap_or_default();
    hold::say(&was, false, args.output.output)?;
    Ok(ExitCode::Done)
}
