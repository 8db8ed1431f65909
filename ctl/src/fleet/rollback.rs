//! `rollbackctl fleet rollback`: the one that matters.

mod ask;
mod consent;
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
use crate::output::{self, loss, plan};
use crate::session::Session;

use ask::Answer;
use consent::Accept;

/// Take the fleet back to a release, and watch it until it ends
///
/// First every host proves that it can finish (preflight, stage); only then is
/// anything switched. When a step fails, everything that was switched goes back.
/// On a terminal the plan is shown and you are asked; elsewhere --yes is needed.
///
/// Restoring a database from a backup loses what was written since. That needs
/// --accept-data-loss: with =ROWS at most so many rows (in each database), with
/// =all any loss, bare what the plan shows plus a tenth and 1000 rows. Writers go on
/// until they are stopped; then the agents count again, and where it would cost more
/// than was agreed to, nothing is exchanged and everything goes back (exit code 5).
/// On a terminal you can also agree by typing the number that is shown.
///
/// The rollback runs on the coordinator. Ctrl-C, a closed terminal or a broken
/// network stop the watching, never the rollback: come back with `rollbackctl
/// rollback watch latest`.
///
/// Exit codes:
///   0  the target was observed and verified on every host in scope
///   1  error (also: you answered no)
///   3  blocked by preflight, or nobody agreed to a loss of data; nothing was touched
///   4  partial: the target was not reached on every host
///   5  undone or held: the target was not reached
///   6  another rollback holds the scope
///   7  started and still running: --detach, Ctrl-C or --timeout
///
/// Examples:
///   rollbackctl fleet rollback --to v2.9.0 --reason "error rate 12 %" --incident INC-4711
///   rollbackctl fleet rollback --to previous --yes
///   rollbackctl fleet rollback --to v2.9.0 --database keep
///   rollbackctl fleet rollback --to v2.9.0 --database restore --accept-data-loss=500 --yes
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
    /// Agree that rows are lost by restoring databases: =ROWS at most so many, =all any; bare: what the plan shows and some room
    #[arg(long, value_name = "ROWS|all", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = consent::SHOWN, value_parser = consent::parse)]
    pub accept_data_loss: Option<Accept>,
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
    let (accept, format) = (args.accept_data_loss, args.output.output);
    let answer = match (args.yes, accept) {
        (false, _) => ask::ask(&mut client, target.clone(), accept, format).await?,
        (true, Some(Accept::Shown)) => ask::accept_shown(&mut client, target.clone(), format).await?,
        // Whatever the plan of now is. One that needs a consent that is not given is refused by the coordinator.
        (true, Some(Accept::Rows(_) | Accept::Any) | None) => {
            let consent = accept.and_then(consent::without_plan);
            if let Some(consent) = consent {
                output::note(&format!(
                    "agreed, for each database: {} may be lost",
                    loss::consent(consent, 1)
                ));
            }
            Answer::Yes {
                digest: String::new(),
                consent,
            }
        }
    };
    let (digest, consent) = match answer {
        Answer::Yes { digest, consent } => (digest, consent),
        Answer::No => {
            output::note("Not started.");
            return Ok(ExitCode::Error);
        }
        Answer::Blocked => return Ok(ExitCode::Blocked),
    };
    let shown = !digest.is_empty();
    let request = StartRollbackRequest {
        target: Some(target),
        reason: args.reason.clone(),
        incident: args.incident.clone(),
        request_id: uuid::Uuid::now_v7().to_string(),
        // Consent is to that plan: if the fleet has moved since, nothing starts.
        plan_digest: digest,
        consent,
        sealed_plan: Vec::new(),
    };
    // The root of the rollback's trace: everything that coordinator and agents do hangs below it.
    let span = tracing::info_span!(
        "fleet_rollback",
        release = %args.target.to,
        rollback.id = tracing::field::Empty,
        outcome = tracing::field::Empty
    );
    start_and_watch(client, request, shown, &args).instrument(span).await
}

async fn start_and_watch(
    mut client: Client,
    request: StartRollbackRequest,
    shown: bool,
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
    if let Some(plan) = plan.as_ref().filter(|_| !shown) {
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
