//! `rollbackctl release prune`

use clap::Args;

use super::remove;
use crate::cli::OutputArgs;
use crate::exit::ExitCode;
use crate::fleet::rollback::{confirm, has_terminal};
use crate::output;
use crate::output::text::count;
use crate::session::Session;

/// Forget the releases that nothing needs and that are not among the newest
///
/// Their hosts let go of what was kept for them alone: images, directories, files.
/// What stays, and why, is in the column KEPT of `rollbackctl release list`: the
/// newest ones (`[releases] keep` of the coordinator), the last stable ones, where
/// the fleet shall be, and where running rollbacks go.
///
/// On a terminal you are asked; elsewhere --yes is needed.
///
/// Exit codes: 0 done, also when there was nothing to forget, 1 error (also: you
/// answered no).
///
/// Examples:
///   rollbackctl release prune --dry-run
///   rollbackctl release prune --yes
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct PruneArgs {
    /// Only say what would be forgotten
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask. Needed when there is no terminal
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: PruneArgs) -> anyhow::Result<ExitCode> {
    if !args.dry_run && !args.yes && !has_terminal() {
        return Err(remove::nobody_to_ask().into());
    }
    let mut client = session.client()?;
    let mut names = Vec::new();
    if args.dry_run || !args.yes {
        let would = remove::ask_for(&mut client, &[], true).await?;
        if args.dry_run || would.is_empty() {
            remove::tell(&would, true, args.output.output)?;
            return Ok(ExitCode::Done);
        }
        names = would.into_iter().map(|release| release.name).collect();
        let what = count(names.len(), "release", "releases");
        let list = names.iter().map(|name| output::text::clean(name)).collect::<Vec<_>>();
        if !confirm(&format!("Forget {what} ({})?", list.join(", ")))? {
            output::note("Nothing was forgotten.");
            return Ok(ExitCode::Error);
        }
    }
    // Exactly those that were agreed to: what became free meanwhile is left for the next time.
    let removed = remove::ask_for(&mut client, &names, false).await?;
    remove::tell(&removed, false, args.output.output)?;
    Ok(ExitCode::Done)
}
