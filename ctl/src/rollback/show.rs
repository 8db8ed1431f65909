//! `rollbackctl rollback show`

use clap::Args;

use crate::cli::{Format, OutputArgs};
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, json, rollbacks};
use crate::session::Session;

/// Show one rollback: how it ended or what it waits for, its phases, what operators
/// did to it, every step with its attempts, and what preflight found
///
/// The exit code is 0 whenever it could be shown; use `rollback watch` for an
/// exit code that says how it ended.
///
/// Examples:
///   rollbackctl rollback show
///   rollbackctl rollback trace                  where did the time go?
///   rollbackctl rollback report                 all of it, as an incident report
///   rollbackctl rollback show 0193a5c2-7d10-7b3e-9f60-4a5b6c7d8e9f -o json
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ShowArgs {
    /// Its id, or `latest`
    #[arg(value_name = "ID", default_value = "latest")]
    pub id: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: ShowArgs) -> anyhow::Result<ExitCode> {
    super::check_id(&args.id)?;
    let mut client = session.client()?;
    let details = super::fetch_with_events(&mut client, &args.id).await?;
    output::data(&match args.output.output {
        Format::Table => rollbacks::show(&details, Paint::stdout()),
        Format::Json => json::document("rollback", json::rollback_in_full(&details)),
    })?;
    Ok(ExitCode::Done)
}
