//! `rollbackctl fleet status`

use clap::Args;
use rollback_proto::v1::GetFleetRequest;

use crate::cli::{Format, OutputArgs};
use crate::client::ALL_HOSTS;
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, json, status};
use crate::session::Session;

/// Show what runs on every host now, and which release that makes
///
/// Asks every agent now; nothing is changed. Hosts that do not answer are listed
/// with the reason. The exit code is 0 whenever the coordinator answered, also
/// for a fleet in trouble.
///
/// Examples:
///   rollbackctl fleet status
///   rollbackctl fleet status -o json | jq -r '.hosts[] | select(.reachable | not) | .name'
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct StatusArgs {
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: StatusArgs) -> anyhow::Result<ExitCode> {
    let mut client = session.client()?;
    let fleet = client
        .call(ALL_HOSTS, GetFleetRequest {}, |mut fleet, request| async move {
            fleet.get_fleet(request).await
        })
        .await?;
    output::data(&match args.output.output {
        Format::Table => status::render(&fleet, Paint::stdout()),
        Format::Json => json::document("fleet_status", json::fleet(&fleet)),
    })?;
    Ok(ExitCode::Done)
}
