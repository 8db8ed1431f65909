//! `rollbackctl release preflight`

use std::time::Duration;

use clap::Args;
use rollback_proto::v1::PreflightReleaseRequest;
use serde_json::json;

use crate::cli::{Format, OutputArgs, parse_duration};
use crate::client::PREPARE;
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, checklist, json as documents};
use crate::session::Session;

/// Go through the checklist before a deployment: could the fleet come back from it?
///
///   recorded    what runs now is a release that can be named afterwards
///   health      everything works before anything is changed
///   backup      every database has a proven backup of what it is now
///   plan        there is a way to the stable release before, and no rollback runs
///   artifacts   every host has what that way needs
///   migration   the way down of the schema was rehearsed (--rehearse)
///
/// Looks only. With --rehearse the databases of that way are taken through it on a
/// copy, which is thrown away again; what users are served from is not touched. A
/// rollback of such a database that is started meanwhile waits for its turn.
///
/// Exit codes: 0 nothing stands in the way (warnings may), 3 something does, 1
/// error.
///
/// Examples:
///   rollbackctl release preflight && ./deploy.sh v3.1.0
///   rollbackctl release preflight --rehearse
///   rollbackctl release preflight -o json | jq -r '.items[] | select(.severity != "ok") | .evidence'
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct PreflightArgs {
    /// Rehearse the way down of the schema on a copy, too; takes as long as its dump and restore
    #[arg(long)]
    pub rehearse: bool,
    /// How long to wait for the answer with --rehearse
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "1h", requires = "rehearse")]
    pub timeout: Duration,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: PreflightArgs) -> anyhow::Result<ExitCode> {
    let mut client = session.client()?;
    output::note("Asking every host …");
    let patience = if args.rehearse { args.timeout } else { PREPARE };
    let request = PreflightReleaseRequest {
        rehearse: args.rehearse,
    };
    let items = client
        .call(patience, request, |mut fleet, request| async move {
            fleet.preflight_release(request).await
        })
        .await?
        .items;
    let exit = match checklist::blockers(&items) {
        0 => ExitCode::Done,
        _ => ExitCode::Blocked,
    };
    output::data(&match args.output.output {
        Format::Table => checklist::render(&items, Paint::stdout()),
        Format::Json => {
            let body = json!({
                "items": items.iter().map(documents::checklist_item).collect::<Vec<_>>(),
                "blocked": exit == ExitCode::Blocked,
                "exit_code": exit.number(),
            });
            documents::document("release_preflight", body)
        }
    })?;
    Ok(exit)
}
