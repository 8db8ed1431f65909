//! `rollbackctl release note`

use clap::Args;
use rollback_proto::names::check_name;
use rollback_proto::v1::UpdateReleaseRequest;

use crate::cli::OutputArgs;
use crate::exit::ExitCode;
use crate::session::Session;

/// Write down what helps to choose a release at 3 a.m.
///
/// Replaces the note that it has; an empty one takes it away. What the release
/// consists of never changes.
///
/// Exit codes: 0 written down, 1 error.
///
/// Examples:
///   rollbackctl release note v2.9.0 "last one before the new checkout"
///   rollbackctl release note v2.9.0 "hotfix for INC-4711" --commit 1f3a9c0
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct NoteArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The note, at most 16 KiB
    #[arg(value_name = "TEXT")]
    pub text: String,
    /// The commit that it was built from, too
    #[arg(long, value_name = "SHA")]
    pub commit: Option<String>,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: NoteArgs) -> anyhow::Result<ExitCode> {
    check_name("release", &args.name)?;
    let request = UpdateReleaseRequest {
        name: args.name,
        notes: Some(args.text),
        commit: args.commit,
        ..UpdateReleaseRequest::default()
    };
    super::update(session, request, args.output.output).await
}
