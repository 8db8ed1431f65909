//! `rollbackctl rollback report`

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;
use rollback_proto::v1::ListReleasesRequest;

use crate::cli::Format;
use crate::client::QUICK;
use crate::exit::ExitCode;
use crate::output;
use crate::output::problem::of_file;
use crate::output::report::{self, Sources};
use crate::session::Session;

/// Write the incident report of a rollback, in Markdown
///
/// Everything that the journal knows: who did what and why, the timeline, the plan,
/// phases and durations, what changed on every host and what was seen there, checks,
/// backups with their SHA-256, lost rows, what failed and how it was resolved, the
/// downtime, what is held now. What only people know is left as
/// `_(to be filled in: …)_`.
///
/// Examples:
///   rollbackctl rollback report > INC-4711.md
///   rollbackctl rollback report latest --out INC-4711.md
///   grep -n 'to be filled in' INC-4711.md             what is still missing?
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ReportArgs {
    /// Its id, or `latest`
    #[arg(value_name = "ID", default_value = "latest")]
    pub id: String,
    /// Write it to this file, which must not exist yet: somebody may have filled in the other one
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

impl ReportArgs {
    /// Markdown is for people.
    pub fn format(&self) -> Format {
        Format::Table
    }
}

pub async fn run(session: &Session, args: ReportArgs) -> anyhow::Result<ExitCode> {
    super::check_id(&args.id)?;
    let mut client = session.client()?;
    let details = super::fetch_with_events(&mut client, &args.id).await?;
    let releases = client
        .call(QUICK, ListReleasesRequest {}, |mut fleet, request| async move {
            fleet.list_releases(request).await
        })
        .await?
        .releases;
    let text = report::render(&Sources {
        details: &details,
        releases: &releases,
        made_at: Timestamp::now(),
    });
    match &args.out {
        None => output::data(&text)?,
        Some(path) => {
            write_new(path, &text).map_err(|e| of_file(format_args!("write {}", path.display()), &e))?;
            let gaps = text.matches("to be filled in").count();
            output::note(&format!(
                "written to {}; {gaps} places are marked \"to be filled in\"",
                path.display()
            ));
        }
    }
    Ok(ExitCode::Done)
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
