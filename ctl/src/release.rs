//! `rollbackctl release …`

pub mod diff;
pub mod import;
pub mod list;
pub mod record;
pub mod show;

use anyhow::Context as _;
use clap::Subcommand;
use rollback_proto::v1::{GetReleaseRequest, Release};

use crate::cli::Format;
use crate::client::{Client, QUICK};

#[derive(Subcommand, Debug)]
pub enum Verb {
    Record(record::RecordArgs),
    Import(import::ImportArgs),
    List(list::ListArgs),
    Show(show::ShowArgs),
    Diff(diff::DiffArgs),
}

impl Verb {
    pub fn format(&self) -> Format {
        match self {
            Verb::Record(args) => args.output.output,
            Verb::Import(args) => args.output.output,
            Verb::List(args) => args.output.output,
            Verb::Show(args) => args.output.output,
            Verb::Diff(args) => args.output.output,
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
