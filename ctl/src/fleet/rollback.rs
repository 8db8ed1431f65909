//! `rollbackctl fleet rollback`: the one that matters.

mod ask;
mod start;

use anyhow::Context as _;
use clap::Args;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::{StartRollbackRequest, StartRollbackResponse};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::cli::{Format, OutputArgs, parse_duration};
use crate::client::Client;
use crate::exit::ExitCode;
use crate::fleet::plan::TargetArgs;
use crate::follow::{self, Interrupts, Screen};
use crate::output::paint::Paint;
use crate::output::{self, plan};
use crate::session::Session;

use ask::Answer;

/// Take the fleet back to a release, and watch it until it ends
///
/// First every host proves that it can finish (preflight, stage); only then is
/// anything switched. When a step fails, everything that was switched goes back.
/// On a terminal the plan is shown and you are asked; elsewhere --yes is needed.
///
/// The rollback runs on the coordinator. Ctrl-C, a closed terminal or a broken
/// network stop the watching, never the rollback: come back with `rollbackctl
/// rollback watch latest`.
///
/// Exit codes:
///   0  the target was observed and verified on every host in scope
///   1  error (also: you answered no)
///   3  blocked by preflight; nothing was touched
///   4  partial: the target was not reached on every host
///   5  undone or held: the target was not reached
///   6  another rollback holds the scope
///   7  started and still running: --detach, Ctrl-C or --timeout
///
/// Examples:
///   rollbackctl fleet rollback --to v2.9.0 --reason "error rate 12 %" --incident INC-4711
///   rollbackctl fleet rollback --to previous --yes
///   rollbackctl fleet rollback --to v2.9.0 --yes -o json | tail -n 1 | jq .state
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct RollbackArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Why; kept in the journal
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    /// The incident it belongs to; kept in the journal
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub incident: String,
    /// Do not ask. Needed when there is no terminal
    #[arg(long)]
    pub yes: bool,
    /// Start it, print its id and do not wait (exit code 7)
    #[arg(long)]
    pub detach: bool,
    /// Stop watching after this time, like 30m (exit code 7); the rollback goes on. Default: watch until it ends
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "detach")]
    pub timeout: Option<std::time::Duration>,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: RollbackArgs) -> anyhow::Result<ExitCode> {
    let target = args.target.target()?;
    if !args.yes && !ask::has_terminal() {
        let text = "a rollback changes the whole fleet, and there is no terminal to ask you on";
        return Err(Problem::new(Code::BadRequest, text)
            .remedy("if you mean it, add --yes")
            .into());
    }
    let mut client = session.client()?;
    // A coordinator that is not there is told at once; from here on, losing it is no reason to give up.
    client.connect().await?;
    let agreed = if args.yes {
        None
    } else {
        match ask::ask(&mut client, target.clone(), args.output.output).await? {
            Answer::Yes { digest } => Some(digest),
            Answer::No => {
                output::note("Not started.");
                return Ok(ExitCode::Error);
            }
            Answer::Blocked => return Ok(ExitCode::Blocked),
        }
    };
    let request = StartRollbackRequest {
        target: Some(target),
        reason: args.reason.clone(),
        incident: args.incident.clone(),
        request_id: uuid::Uuid::now_v7().to_string(),
        // Consent is to that plan: if the fleet has moved since, nothing starts.
        plan_digest: agreed.clone().unwrap_or_default(),
    };
    // The root of the rollback's trace: everything that coordinator and agents do hangs below it.
    let span = tracing::info_span!(
        "fleet_rollback",
        release = %args.target.to,
        rollback.id = tracing::field::Empty,
        outcome = tracing::field::Empty
    );
    start_and_watch(client, request, agreed.is_some(), &args)
        .instrument(span)
        .await
}

async fn start_and_watch(
    mut client: Client,
    request: StartRollbackRequest,
    agreed: bool,
    args: &RollbackArgs,
) -> anyhow::Result<ExitCode> {
    let format = args.output.output;
    let mut interrupts = Interrupts::catch()?;
    let started = tokio::select! {
        started = start::start(&mut client, request) => started,
        () = interrupts.next() => {
            output::note("Left while the request was on its way: it may have started. Look: rollbackctl rollback list");
            return Ok(ExitCode::StillRunning);
        }
    };
    let StartRollbackResponse { rollback_id: id, plan } = match started {
        Ok(started) => started,
        Err(error) if error.problem.code == Code::ScopeHeld => {
            return start::show_holders(&mut client, error, format).await;
        }
        Err(error) => return Err(error.into()),
    };
    tracing::Span::current().record("rollback.id", &id);
    if let Some(plan) = plan.as_ref().filter(|_| !agreed) {
        output::note(&plan::changes(plan, Paint::stderr()));
    }
    output::note(&format!("started rollback {id}"));
    if args.detach {
        if format == Format::Table {
            output::data(&id)?;
        }
        return follow::left_running(&id, "detached", format);
    }
    let until = args.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut screen = Screen::choose(format, &id, plan.as_ref());
    let attended = follow::attend(&mut client, &id, &mut screen, until, &mut interrupts).await;
    screen.close();
    let exit = follow::conclude(&mut client, &id, attended, format)
        .await
        .context("end the watch")?;
    tracing::Span::current().record("outcome", tracing::field::debug(exit));
    Ok(exit)
}
