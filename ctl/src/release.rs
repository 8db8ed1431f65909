//! `rollbackctl release …`

pub mod diff;
mod from_stdin;
pub mod import;
pub mod list;
pub mod mark;
pub mod note;
pub mod preflight;
pub mod prune;
pub mod record;
pub mod remove;
pub mod show;

use anyhow::Context as _;
use clap::Subcommand;
use rollback_proto::v1::{GetReleaseRequest, Release, UpdateReleaseRequest};

use crate::cli::Format;
use crate::client::{Client, QUICK};
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, json as documents, releases};
use crate::session::Session;

#[derive(Subcommand, Debug)]
pub enum Verb {
    Record(record::RecordArgs),
    Import(import::ImportArgs),
    List(list::ListArgs),
    Show(show::ShowArgs),
    Diff(diff::DiffArgs),
    Mark(mark::MarkArgs),
    Note(note::NoteArgs),
    Prune(prune::PruneArgs),
    Remove(remove::RemoveArgs),
    Preflight(preflight::PreflightArgs),
}

impl Verb {
    pub fn format(&self) -> Format {
        match self {
            Verb::Record(args) => args.output.output,
            Verb::Import(args) => args.output.output,
            Verb::List(args) => args.output.output,
            Verb::Show(args) => args.output.output,
            Verb::Diff(args) => args.output.output,
            Verb::Mark(args) => args.output.output,
            Verb::Note(args) => args.output.output,
            Verb::Prune(args) => args.output.output,
            Verb::Remove(args) => args.output.output,
            Verb::Preflight(args) => args.output.output,
        }
    }
}

async fn fetch(client: &mut Client, name: &str) -> anyhow::Result<Release> {
    let request = GetReleaseRequest { name: name.to_owned() };
    let response = client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.get_release(request).await
        })
        .await?;
    response.release.context("the coordinator answered without a release")
}

/// Writes down what is said of a release, and shows the release as it is then.
async fn update(session: &Session, request: UpdateReleaseRequest, format: Format) -> anyhow::Result<ExitCode> {
    let mut client = session.client()?;
    let response = client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.update_release(request).await
        })
        .await?;
    let release = response.release.context("the coordinator answered without a release")?;
    output::data(&match format {
        Format::Table => releases::show(&release, Paint::stdout()),
        Format::Json => documents::document("release", documents::release(&release)),
    })?;
    Ok(ExitCode::Done)
}
