//! `rollbackctl release mark`

use clap::Args;
use rollback_proto::names::check_name;
use rollback_proto::v1::UpdateReleaseRequest;

use crate::cli::OutputArgs;
use crate::exit::ExitCode;
use crate::session::Session;

/// Say whether a release is stable, and why
///
/// `--to previous` goes to the newest stable release before what runs now. A release
/// is stable when it was healthy everywhere as it was recorded, or when a rollback
/// to it was verified. Contradict that when you know better: a release that
/// corrupts data is healthy all the same.
///
/// Exit codes: 0 written down, 1 error.
///
/// Examples:
///   rollbackctl release mark v3.0.0 --unstable --reason "loses sessions, INC-4711"
///   rollbackctl release mark v2.8.1 --stable --reason "ran for six weeks"
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
#[command(group(clap::ArgGroup::new("mark").required(true).args(["stable", "unstable"])))]
pub struct MarkArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// It works
    #[arg(long)]
    pub stable: bool,
    /// It does not: `previous` never means it
    #[arg(long)]
    pub unstable: bool,
    /// Why; shown beside the mark
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: MarkArgs) -> anyhow::Result<ExitCode> {
    check_name("release", &args.name)?;
    let request = UpdateReleaseRequest {
        name: args.name,
        stable: Some(args.stable),
        reason: args.reason,
        ..UpdateReleaseRequest::default()
    };
    super::update(session, request, args.output.output).await
}
