//! `rollbackctl runbook list`

use clap::Args;
use rollback_proto::names::check_name;
use rollback_proto::v1::ListRunbooksRequest;
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::QUICK;
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, json as documents, runbooks};
use crate::session::Session;

/// List the runbooks: built-in ones and those that were applied, or every version of one
///
/// Examples:
///   rollbackctl runbook list
///   rollbackctl runbook list web        every version of it
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ListArgs {
    /// Every version of this one; without it, the newest version of each
    #[arg(id = "runbook", value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: ListArgs) -> anyhow::Result<ExitCode> {
    if let Some(name) = &args.name {
        check_name("runbook", name)?;
    }
    let mut client = session.client()?;
    let request = ListRunbooksRequest {
        name: args.name.unwrap_or_default(),
    };
    let list = client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.list_runbooks(request).await
        })
        .await?
        .runbooks;
    output::data(&match args.output.output {
        Format::Table => runbooks::list(&list, Paint::stdout()),
        Format::Json => {
            let list: Vec<_> = list.iter().map(documents::runbook).collect();
            documents::document("runbook_list", json!({"runbooks": list}))
        }
    })?;
    Ok(ExitCode::Done)
}
