//! `rollbackctl rollback trace`

use clap::Args;
use console::Term;
use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};

use crate::cli::{Format, OutputArgs};
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::trace::{self, View};
use crate::output::{self, json};
use crate::session::Session;

/// Width where there is no terminal: what a log or a chat shows without wrapping.
const PIPED: usize = 120;

/// Show where the time of a rollback went: its waterfall, from the journal
///
/// Phases, steps, attempts and the raw operations in them (pg_dump, docker create,
/// nginx reload, …), each as a bar in its place. What the end waited for is marked
/// with a star: only there is time to be won. Needs no Jaeger; with a collector, the
/// trace with the id in the first lines has the same spans.
///
/// Of a phase with many hosts, the slowest steps are shown and the rest is counted;
/// -o json has all of them.
///
/// Examples:
///   rollbackctl rollback trace
///   rollbackctl rollback trace latest --slow 5          the five slowest steps of each phase
///   rollbackctl rollback trace latest --phase app       every step of one phase
///   rollbackctl rollback trace latest | less
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct TraceArgs {
    /// Its id, or `latest`
    #[arg(value_name = "ID", default_value = "latest")]
    pub id: String,
    /// Only this phase (`undo`: the way back)
    #[arg(long, value_name = "NAME")]
    pub phase: Option<String>,
    /// Only the N slowest steps of each phase, and what the end waited for
    #[arg(long, value_name = "N")]
    pub slow: Option<usize>,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: TraceArgs) -> anyhow::Result<ExitCode> {
    super::check_id(&args.id)?;
    let mut client = session.client()?;
    let details = super::fetch_with_events(&mut client, &args.id).await?;
    if let Some(wanted) = &args.phase {
        let mut phases: Vec<&str> = details.phases.iter().map(|p| p.name.as_str()).collect();
        phases.push("undo");
        if !phases.contains(&wanted.as_str()) {
            let text = format!("the rollback has no phase {wanted:?}");
            return Err(Problem::new(Code::BadRequest, text)
                .remedy(format!("one of: {}", phases.join(", ")))
                .into());
        }
    }
    let view = View {
        width: match Term::stdout().size_checked() {
            Some((_, columns)) => usize::from(columns),
            None => PIPED,
        },
        phase: args.phase,
        slow: args.slow,
    };
    output::data(&match args.output.output {
        Format::Table => trace::render(&details, &view, Timestamp::now(), Paint::stdout()),
        Format::Json => json::document("rollback_trace", json::trace(&details)),
    })?;
    Ok(ExitCode::Done)
}
