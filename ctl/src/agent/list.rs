//! `rollbackctl agent list`

use clap::Args;
use jiff::Timestamp;
use rollback_proto::v1::ListAgentsRequest;
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::QUICK;
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, agents, json as documents};
use crate::session::Session;

/// List the enrolled agents: connected or away, since when, what they manage
///
/// Examples:
///   rollbackctl agent list
///   rollbackctl agent list -o json | jq -r '.agents[] | select(.connected | not) | .name'
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ListArgs {
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: ListArgs) -> anyhow::Result<ExitCode> {
    let mut client = session.client()?;
    let list = client
        .call(QUICK, ListAgentsRequest {}, |mut fleet, request| async move {
            fleet.list_agents(request).await
        })
        .await?
        .agents;
    output::data(&match args.output.output {
        Format::Table => agents::list(&list, Timestamp::now(), Paint::stdout()),
        Format::Json => {
            let list: Vec<_> = list.iter().map(documents::agent).collect();
            documents::document("agent_list", json!({"agents": list}))
        }
    })?;
    Ok(ExitCode::Done)
}
