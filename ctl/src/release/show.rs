//! `rollbackctl release show`

use clap::Args;
use rollback_proto::names::check_name;

use crate::cli::{Format, OutputArgs};
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, json, releases};
use crate::session::Session;

/// Show one release: which revision of which component on which host
///
/// Example:
///   rollbackctl release show v2.9.0
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ShowArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: ShowArgs) -> anyhow::Result<ExitCode> {
    check_name("release", &args.name)?;
    let mut client = session.client()?;
    let release = super::fetch(&mut client, &args.name).await?;
    output::data(&match args.output.output {
        Format::Table => releases::show(&release, Paint::stdout()),
        Format::Json => json::document("release", json::release(&release)),
    })?;
    Ok(ExitCode::Done)
}
