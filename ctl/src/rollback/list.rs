//! `rollbackctl rollback list`

use clap::Args;
use rollback_proto::v1::ListRollbacksRequest;
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::QUICK;
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, json as documents, rollbacks};
use crate::session::Session;

/// List rollbacks, the newest first
///
/// Examples:
///   rollbackctl rollback list
///   rollbackctl rollback list --limit 100 -o json
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ListArgs {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: ListArgs) -> anyhow::Result<ExitCode> {
    let mut client = session.client()?;
    let request = ListRollbacksRequest { limit: args.limit };
    let list = client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.list_rollbacks(request).await
        })
        .await?
        .rollbacks;
    output::data(&match args.output.output {
        Format::Table => rollbacks::list(&list, Paint::stdout()),
        Format::Json => {
            let list: Vec<_> = list.iter().map(documents::summary).collect();
            documents::document("rollback_list", json!({"rollbacks": list}))
        }
    })?;
    Ok(ExitCode::Done)
}
