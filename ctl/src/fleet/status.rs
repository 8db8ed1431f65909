//! `rollbackctl fleet status`

use clap::Args;
use rollback_proto::names::check_name;
use rollback_proto::v1::{CheckGateRequest, GetFleetRequest};

use crate::cli::{Format, OutputArgs};
use crate::client::{ALL_HOSTS, QUICK};
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, json, status};
use crate::session::Session;

/// Show what runs on every host now, and which release that makes
///
/// Asks every agent now; nothing is changed. Hosts that do not answer are listed
/// with the reason. What is not where the last record or rollback put it is listed
/// with where it shall be and why (`fleet converge` brings it there), and so are
/// releases that must not be deployed and rollbacks that run.
///
/// Deployments ask --gate before they begin: is this release free, and does nobody
/// roll back just now? No host is asked for that.
///
/// Exit codes: 0 whenever the coordinator answered, also for a fleet in trouble; with
/// --gate 0 open, 3 closed; 1 error. A deployment goes on with 0 and with nothing else.
///
/// Examples:
///   rollbackctl fleet status
///   rollbackctl fleet status --gate v3.0.0 && ./deploy.sh v3.0.0
///   rollbackctl fleet status -o json | jq -r '.hosts[] | select(.reachable | not) | .name'
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct StatusArgs {
    /// Only say whether this release may be deployed now
    #[arg(long, value_name = "RELEASE")]
    pub gate: Option<String>,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: StatusArgs) -> anyhow::Result<ExitCode> {
    if let Some(release) = args.gate {
        return gate(session, release, args.output.output).await;
    }
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

async fn gate(session: &Session, release: String, format: Format) -> anyhow::Result<ExitCode> {
    check_name("release", &release)?;
    let request = CheckGateRequest {
        release: release.clone(),
    };
    let mut client = session.client()?;
    let answer = client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.check_gate(request).await
        })
        .await?;
    let exit = if answer.open { ExitCode::Done } else { ExitCode::Blocked };
    output::data(&match format {
        Format::Table => status::gate(&release, &answer, Paint::stdout()),
        Format::Json => json::document("fleet_gate", json::gate(&release, &answer, exit)),
    })?;
    Ok(exit)
}
