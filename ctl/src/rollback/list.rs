//! `rollbackctl rollback list`

use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use rollback_proto::names::check_name;
use rollback_proto::problem::Problem;
use rollback_proto::v1::{ListRollbacksRequest, RollbackState, RollbackSummary};
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::QUICK;
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::text::timestamp;
use crate::output::words::{Waits, waits};
use crate::output::{self, json as documents, rollbacks};
use crate::session::Session;

/// How many are looked through for those that fit the filters.
const LOOKED_THROUGH: u32 = 2000;

/// List rollbacks, the newest first
///
/// One that stands still says so in its state: PAUSED, by an operator or by its
/// runbook, or AWAITS APPROVAL of a second operator.
///
/// Examples:
///   rollbackctl rollback list
///   rollbackctl rollback list --state running,paused           what is going on?
///   rollbackctl rollback list --release v2.9.0 --since 7d
///   rollbackctl rollback list --since 2026-11-21T00:00Z -o json
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ListArgs {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Only those in one of these states
    #[arg(long, value_enum, value_name = "STATE", value_delimiter = ',')]
    pub state: Vec<State>,
    /// Only those that were started since: a time like 2026-11-21T03:00Z, or how long ago, like 90m or 7d
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<Since>,
    /// Only those to this release
    #[arg(long, value_name = "RELEASE")]
    pub release: Option<String>,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A state as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// It goes on by itself, also while it is being undone
    Running,
    /// It stands still until an operator acts
    Paused,
    /// It begins when a second operator approves it
    AwaitsApproval,
    /// The target was observed everywhere in scope
    Verified,
    /// The target was reached, but not on every host
    Partial,
    /// Everything is where it was before
    Undone,
    /// Preflight refused it, nothing was touched
    Blocked,
    /// It ended, and waits for a person
    Held,
}

impl State {
    fn is_of(self, r: &RollbackSummary) -> bool {
        let of_end = |state: RollbackState| r.state() == state;
        match self {
            State::Running => (of_end(RollbackState::Running) || of_end(RollbackState::Undoing)) && waits(r).is_none(),
            State::Paused => waits(r) == Some(Waits::Paused),
            State::AwaitsApproval => waits(r) == Some(Waits::ForApproval),
            State::Verified => of_end(RollbackState::Verified),
            State::Partial => of_end(RollbackState::Partial),
            State::Undone => of_end(RollbackState::Undone) && !r.blocked,
            State::Blocked => of_end(RollbackState::Undone) && r.blocked,
            State::Held => of_end(RollbackState::Held),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    At(Timestamp),
    Ago(SignedDuration),
}

impl Since {
    fn instant(self, now: Timestamp) -> Timestamp {
        match self {
            Since::At(at) => at,
            // Longer ago than there is time is all of it.
            Since::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
        }
    }
}

fn since(text: &str) -> Result<Since, String> {
    let bad = || "write a time like 2026-11-21T03:00Z, or how long ago, like 90m, 12h or 7d".to_owned();
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(Since::At(at));
    }
    // Days of 24 hours: a list is no calendar.
    let span: jiff::Span = text.parse().map_err(|_| bad())?;
    let ago = span
        .to_duration(jiff::SpanRelativeTo::days_are_24_hours())
        .map_err(|_| bad())?;
    if ago.is_positive() {
        Ok(Since::Ago(ago))
    } else {
        Err(bad())
    }
}

impl ListArgs {
    fn has_filters(&self) -> bool {
        !self.state.is_empty() || self.since.is_some() || self.release.is_some()
    }

    fn wants(&self, r: &RollbackSummary, now: Timestamp) -> bool {
        let is_later = |since: Since| timestamp(r.started_at.as_ref()).is_some_and(|at| at >= since.instant(now));
        (self.state.is_empty() || self.state.iter().any(|state| state.is_of(r)))
            && self.since.is_none_or(is_later)
            && self.release.as_ref().is_none_or(|release| *release == r.release)
    }

    fn check(&self) -> Result<(), Problem> {
        self.release
            .as_ref()
            .map_or(Ok(()), |release| check_name("release", release))
    }
}

pub async fn run(session: &Session, args: ListArgs) -> anyhow::Result<ExitCode> {
    args.check()?;
    let mut client = session.client()?;
    let limit = if args.has_filters() { LOOKED_THROUGH } else { args.limit };
    let mut list = client
        .call(QUICK, ListRollbacksRequest { limit }, |mut fleet, request| async move {
            fleet.list_rollbacks(request).await
        })
        .await?
        .rollbacks;
    let looked_through = list.len();
    let now = Timestamp::now();
    list.retain(|r| args.wants(r, now));
    let fitting = list.len();
    list.truncate(usize::try_from(args.limit).unwrap_or(usize::MAX));
    output::data(&match args.output.output {
        Format::Table if args.has_filters() && list.is_empty() => {
            format!("None of the last {looked_through} rollbacks fits.")
        }
        Format::Table => rollbacks::list(&list, Paint::stdout()),
        Format::Json => {
            let list: Vec<_> = list.iter().map(documents::summary).collect();
            documents::document("rollback_list", json!({"rollbacks": list}))
        }
    })?;
    if fitting > list.len() {
        output::note(&format!("{} more; --limit shows them", fitting - list.len()));
    }
    Ok(ExitCode::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    #[test]
    fn states_tell_what_stands_still_from_what_runs() {
        let details = |state, blocked| samples::details(state, blocked).summary.expect("a summary");
        let all = [
            (details(RollbackState::Running, false), State::Running),
            (samples::operators::standing_still("ana"), State::Paused),
            (samples::operators::awaiting_approval(), State::AwaitsApproval),
            (details(RollbackState::Verified, false), State::Verified),
            (details(RollbackState::Partial, false), State::Partial),
            (details(RollbackState::Undone, false), State::Undone),
            (details(RollbackState::Undone, true), State::Blocked),
            (details(RollbackState::Held, false), State::Held),
        ];
        for (summary, state) in &all {
            let fitting = all.iter().map(|(_, state)| *state).filter(|s| s.is_of(summary));
            assert_eq!(fitting.collect::<Vec<_>>(), [*state]);
        }
    }

    #[test]
    fn since_is_a_time_or_how_long_ago() {
        let now: Timestamp = "2026-11-21T03:12:40Z".parse().expect("a time");
        for (text, instant) in [
            ("2026-11-21T03:00Z", "2026-11-21T03:00:00Z"),
            ("90m", "2026-11-21T01:42:40Z"),
            ("7d", "2026-11-14T03:12:40Z"),
        ] {
            assert_eq!(since(text).expect("good").instant(now).to_string(), instant);
        }
        for bad in ["", "yesterday", "-1h", "0s", "5"] {
            assert!(since(bad).is_err(), "{bad:?}");
        }
    }
}
