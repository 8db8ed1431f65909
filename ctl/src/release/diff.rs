//! `rollbackctl release diff`

use clap::Args;
use rollback_proto::names::check_name;
use rollback_proto::v1::GetFleetRequest;
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::{ALL_HOSTS, Client};
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::releases::{self, Side};
use crate::output::{self, json as documents};
use crate::session::Session;

/// The word for the fleet as it is. No release can be asked for under this name here.
const NOW: &str = "now";

/// Show what differs between two releases, or between a release and what runs now
///
/// Equality is by content, not by version. The exit code is 0 whether they differ
/// or not.
///
/// Examples:
///   rollbackctl release diff v2.9.0 v3.0.0
///   rollbackctl release diff v2.9.0 now      what was changed since? `now` may be left out
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct DiffArgs {
    /// A release, or `now`
    #[arg(value_name = "A")]
    pub a: String,
    /// A release, or `now`
    #[arg(value_name = "B", default_value = NOW)]
    pub b: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: DiffArgs) -> anyhow::Result<ExitCode> {
    check_name("release", &args.a)?;
    check_name("release", &args.b)?;
    let mut client = session.client()?;
    let a = side(&mut client, &args.a).await?;
    let b = side(&mut client, &args.b).await?;
    output::data(&match args.output.output {
        Format::Table => releases::diff(&a, &b, Paint::stdout()),
        Format::Json => {
            let (differences, equal) = releases::compare(&a, &b);
            let body = json!({
                "a": a.name,
                "b": b.name,
                "differences": differences.iter().map(documents::difference).collect::<Vec<_>>(),
                "equal": equal,
                "unobserved": a.unseen.iter().chain(&b.unseen).collect::<Vec<_>>(),
            });
            documents::document("release_diff", body)
        }
    })?;
    Ok(ExitCode::Done)
}

async fn side(client: &mut Client, name: &str) -> anyhow::Result<Side> {
    if name != NOW {
        return Ok(Side::of_release(super::fetch(client, name).await?));
    }
    let fleet = client
        .call(ALL_HOSTS, GetFleetRequest {}, |mut fleet, request| async move {
            fleet.get_fleet(request).await
        })
        .await?;
    Ok(Side::of_fleet(fleet))
}
