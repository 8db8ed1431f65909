//! `rollbackctl version`

use clap::Args;
use rollback_proto::v1::GetServerInfoRequest;
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::QUICK;
use crate::exit::ExitCode;
use crate::output::text::clean;
use crate::output::{self, json as documents};
use crate::session::Session;

/// This program's version.
pub const CLIENT: &str = env!("CARGO_PKG_VERSION");

/// Print the versions of this program and of the coordinator
///
/// Example:
///   rollbackctl version --client
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct VersionArgs {
    /// Only this program's; asks nobody
    #[arg(long)]
    pub client: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: VersionArgs) -> anyhow::Result<ExitCode> {
    let format = args.output.output;
    if format == Format::Table {
        // Before anything can fail: this half is always known.
        output::data(&format!("rollbackctl  {CLIENT}"))?;
    }
    if args.client {
        if format == Format::Json {
            output::data(&documents::document("version", json!({"client": CLIENT})))?;
        }
        return Ok(ExitCode::Done);
    }
    let mut client = session.client()?;
    let server = client
        .call(QUICK, GetServerInfoRequest {}, |mut fleet, request| async move {
            fleet.get_server_info(request).await
        })
        .await?;
    output::data(&match format {
        Format::Table => format!("coordinator  {}", clean(&server.version)),
        Format::Json => documents::document(
            "version",
            json!({"client": CLIENT, "server": documents::server(&server)}),
        ),
    })?;
    Ok(ExitCode::Done)
}
