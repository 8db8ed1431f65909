//! `rollbackctl runbook show`

use anyhow::Context as _;
use clap::Args;
use rollback_proto::names::check_name;
use rollback_proto::v1::GetRunbookRequest;

use crate::cli::{Format, OutputArgs};
use crate::client::QUICK;
use crate::exit::ExitCode;
use crate::output::{self, json, runbooks};
use crate::session::Session;

/// Show a runbook as it was written, comments and all
///
/// stdout has the file and nothing else, so that it can be the start of another one.
///
/// Examples:
///   rollbackctl runbook show emergency
///   rollbackctl runbook show web@2                  an older version
///   rollbackctl runbook show default > web.toml     then give it a name of its own
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ShowArgs {
    /// NAME, which is its newest version, or NAME@VERSION
    #[arg(id = "runbook", value_name = "NAME")]
    pub name: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: ShowArgs) -> anyhow::Result<ExitCode> {
    // A version that is no number is the coordinator's to explain.
    check_name("runbook", args.name.split('@').next().unwrap_or_default())?;
    let mut client = session.client()?;
    let request = GetRunbookRequest { name: args.name };
    let answer = client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.get_runbook(request).await
        })
        .await?;
    let runbook = answer.runbook.context("the coordinator answered without a runbook")?;
    match args.output.output {
        Format::Table => {
            output::note(&runbooks::origin(&runbook));
            output::data(&runbooks::printable(&answer.text))?;
        }
        Format::Json => {
            let mut body = json::runbook(&runbook);
            body["text"] = answer.text.into();
            output::data(&json::document("runbook", body))?;
        }
    }
    Ok(ExitCode::Done)
}
