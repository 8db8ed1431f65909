//! `rollbackctl rollback watch`

use anyhow::Context as _;
use clap::Args;
use tokio::time::Instant;

use crate::cli::{OutputArgs, parse_duration};
use crate::exit::ExitCode;
use crate::follow::{self, Interrupts, Screen};
use crate::output;
use crate::session::Session;

/// Watch a rollback until it ends; also one that somebody else started, or that
/// ended already
///
/// Goes on by itself after a lost connection, a restart of the coordinator and a
/// change of the leader. Ctrl-C stops the watching, never the rollback.
///
/// Exit codes: as of `fleet rollback`: 0 verified, 3 blocked, 4 partial, 5 undone
/// or held, 7 still running, 1 error.
///
/// Examples:
///   rollbackctl rollback watch
///   rollbackctl rollback watch 0193a5c2-7d10-7b3e-9f60-4a5b6c7d8e9f --timeout 10m
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct WatchArgs {
    /// Its id, or `latest`
    #[arg(value_name = "ID", default_value = "latest")]
    pub id: String,
    /// Stop watching after this time, like 30m (exit code 7). Default: watch until it ends
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<std::time::Duration>,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: WatchArgs) -> anyhow::Result<ExitCode> {
    super::check_id(&args.id)?;
    let mut client = session.client()?;
    // `latest` is resolved once: a rollback that starts meanwhile is another one.
    let details = super::fetch(&mut client, &args.id).await?;
    let id = details
        .summary
        .map(|s| s.id)
        .context("the coordinator answered without a summary")?;
    output::note(&format!("watching rollback {id}"));
    let until = args.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut interrupts = Interrupts::catch()?;
    let mut screen = Screen::choose(args.output.output, &id, details.plan.as_ref());
    let attended = follow::attend(&mut client, &id, &mut screen, until, &mut interrupts).await;
    screen.close();
    follow::conclude(&mut client, &id, attended, args.output.output).await
}
