//! `rollbackctl release list`

use clap::Args;
use rollback_proto::v1::ListReleasesRequest;
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::QUICK;
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, json as documents, releases};
use crate::session::Session;

/// List the recorded releases, the newest first
///
/// STATE: `stable` are those that were healthy when they were recorded, that a
/// rollback to them was verified of, or that somebody marked so; `held` are those
/// that must not be deployed. KEPT is why `release prune` leaves one alone.
///
/// Examples:
///   rollbackctl release list
///   rollbackctl release list -o json | jq -r '.releases[] | select(.stable) | .name'
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ListArgs {
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: ListArgs) -> anyhow::Result<ExitCode> {
    let mut client = session.client()?;
    let list = client
        .call(QUICK, ListReleasesRequest {}, |mut fleet, request| async move {
            fleet.list_releases(request).await
        })
        .await?
        .releases;
    output::data(&match args.output.output {
        Format::Table => releases::list(&list, Paint::stdout()),
        Format::Json => {
            let list: Vec<_> = list.iter().map(documents::release).collect();
            documents::document("release_list", json!({"releases": list}))
        }
    })?;
    Ok(ExitCode::Done)
}
