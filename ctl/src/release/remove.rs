//! `rollbackctl release remove`

use clap::Args;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::{RemoveReleasesRequest, RemovedRelease};
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::{CallError, Client, RETAIN};
use crate::exit::ExitCode;
use crate::fleet::rollback::{confirm, has_terminal};
use crate::output::paint::Paint;
use crate::output::text::clean;
use crate::output::{self, json as documents, releases};
use crate::session::Session;

/// Forget a release, also one of the newest
///
/// Its hosts let go of what was kept for it alone. Nobody can roll back to it any
/// more. Refused while something needs it: the fleet shall be there, a rollback goes
/// there, or it is what `previous` means. A release that is held stays held.
///
/// On a terminal you are asked; elsewhere --yes is needed.
///
/// Exit codes: 0 forgotten, 1 error (also: you answered no), 3 something needs it.
///
/// Examples:
///   rollbackctl release remove v2.9.0-rc1 --dry-run
///   rollbackctl release remove v2.9.0-rc1 --yes
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct RemoveArgs {
    /// Its name; several can be given
    #[arg(value_name = "NAME", required = true)]
    pub name: Vec<String>,
    /// Only say whether it could be forgotten
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask. Needed when there is no terminal
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: RemoveArgs) -> anyhow::Result<ExitCode> {
    for name in &args.name {
        check_name("release", name)?;
    }
    if !args.dry_run && !args.yes && !has_terminal() {
        return Err(nobody_to_ask().into());
    }
    let mut client = session.client()?;
    if args.dry_run {
        let would = ask_for(&mut client, &args.name, true).await?;
        tell(&would, true, args.output.output)?;
        let free = would.iter().all(|release| release.pinned_by.is_empty());
        return Ok(if free { ExitCode::Done } else { ExitCode::Blocked });
    }
    if !args.yes && !confirm(&format!("Forget {}?", args.name.join(", ")))? {
        output::note("Nothing was forgotten.");
        return Ok(ExitCode::Error);
    }
    let removed = ask_for(&mut client, &args.name, false).await?;
    tell(&removed, false, args.output.output)?;
    Ok(ExitCode::Done)
}

pub fn nobody_to_ask() -> Problem {
    let text = "what is forgotten does not come back, and there is no terminal to ask you on";
    Problem::new(Code::BadRequest, text).remedy("if you mean it, add --yes; --dry-run only looks")
}

/// No names: all that nothing pins.
pub async fn ask_for(client: &mut Client, names: &[String], dry_run: bool) -> Result<Vec<RemovedRelease>, CallError> {
    let request = RemoveReleasesRequest {
        names: names.to_vec(),
        dry_run,
    };
    let answer = client
        .call(RETAIN, request, |mut fleet, request| async move {
            fleet.remove_releases(request).await
        })
        .await;
    Ok(answer?.releases)
}

pub fn tell(removed: &[RemovedRelease], dry_run: bool, format: Format) -> anyhow::Result<()> {
    output::data(&match format {
        Format::Table => releases::removal(removed, dry_run, Paint::stdout()),
        Format::Json => {
            let list: Vec<_> = removed.iter().map(|r| documents::removed_release(r, dry_run)).collect();
            documents::document("release_removal", json!({"dry_run": dry_run, "releases": list}))
        }
    })?;
    for release in removed.iter().filter(|release| !release.leftovers.is_empty()) {
        output::note(&format!(
            "{} is forgotten, and something of it is still on hosts; it costs room and nothing else",
            clean(&release.name)
        ));
    }
    Ok(())
}
