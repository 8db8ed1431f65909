//! `rollbackctl rollback retry`

use std::collections::BTreeSet;

use clap::Args;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::steer_rollback_request::{Act, Retry};
use rollback_proto::v1::{DatabaseChoice, FailureChoice, GetRollbackResponse, RollbackState, RollbackTarget, Scope};

use super::steer;
use crate::cli::OutputArgs;
use crate::exit::ExitCode;
use crate::fleet::rollback::{StartArgs, Wanted, go};
use crate::output::text::{clean, name_some};
use crate::output::words;
use crate::session::Session;

/// Try what failed again: the failed steps of one that stands still, or the hosts
/// that an ended one did not reach
///
/// While a rollback stands still (it was paused, or its runbook pauses on a failure)
/// the steps that failed run again, and it goes on. Steps of which nobody knows what
/// became of them are never run again.
///
/// When it has ended, a new rollback to the same release is started over the hosts
/// that were not reached; it has a plan, and you are asked. Nothing is restored from
/// a backup again.
///
/// Exit codes: 0 the steps run again; of a new rollback: as of `fleet rollback`.
/// 1 error (also: there is nothing to retry).
///
/// Examples:
///   rollbackctl rollback retry latest                the failed steps of all hosts
///   rollbackctl rollback retry latest --host app-2
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct RetryArgs {
    /// Its id, or `latest`
    #[arg(value_name = "ID")]
    pub id: String,
    /// Only this host; may be repeated. Without it: all that failed, or were not reached
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub host: Vec<String>,
    #[command(flatten)]
    pub start: StartArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: RetryArgs) -> anyhow::Result<ExitCode> {
    super::check_id(&args.id)?;
    for host in &args.host {
        check_name("host", host)?;
    }
    let mut client = session.client()?;
    let details = steer::resolve(&mut client, &args.id).await?;
    let summary = details.summary.clone().unwrap_or_default();
    let state = RollbackState::try_from(summary.state).unwrap_or(RollbackState::Unspecified);
    if words::is_over(state) {
        let wanted = not_reached(&details, state, &args.host)?;
        args.start.check()?;
        return go(session, wanted, &args.start, args.output.output).await;
    }
    let act = Act::Retry(Retry {
        hosts: args.host.clone(),
    });
    let summary = steer::steer(&mut client, &summary.id, &args.start.reason, act).await?;
    let (id, release) = (clean(&summary.id), clean(&summary.release));
    let done = format!("rollback {id} to {release}: what failed runs again");
    steer::tell(&mut client, &summary, &done, args.output.output).await
}

/// The same again, over what was not reached.
fn not_reached(details: &GetRollbackResponse, state: RollbackState, only: &[String]) -> Result<Wanted, Problem> {
    let summary = details.summary.clone().unwrap_or_default();
    let plan = details.plan.clone().unwrap_or_default();
    let (id, release) = (clean(&summary.id), clean(&summary.release));
    let nothing = |why: &str| Problem::new(Code::ActUnfit, format!("rollback {id} to {release} {why}"));
    let mut scope = summary.scope.clone().unwrap_or_default();
    let question = match state {
        RollbackState::Partial => {
            let hosts: BTreeSet<String> = summary
                .failed_hosts
                .iter()
                .chain(&summary.skipped_hosts)
                .chain(plan.excused.iter().map(|e| &e.host))
                .cloned()
                .collect();
            if let Some(other) = only.iter().find(|host| !hosts.contains(*host)) {
                let names = name_some(hosts.iter().map(String::as_str), 10);
                return Err(nothing(&format!("has reached {other}; not reached: {names}")));
            }
            scope.hosts = if only.is_empty() {
                hosts.into_iter().collect()
            } else {
                only.to_vec()
            };
            let names = name_some(scope.hosts.iter().map(String::as_str), 10);
            format!("Bring {names} to {release}?")
        }
        RollbackState::Undone | RollbackState::Held => {
            if !only.is_empty() {
                scope.hosts = only.to_vec();
            }
            format!("Roll the fleet back to {release} once more?")
        }
        RollbackState::Verified => return Err(nothing("has reached every host")),
        RollbackState::Unspecified | RollbackState::Running | RollbackState::Undoing => {
            return Err(nothing("has not ended"));
        }
    };
    // What a restore has done is done: again it would lose what was written since.
    let database = match plan.database() {
        choice @ (DatabaseChoice::Keep | DatabaseChoice::Migrate) => choice,
        DatabaseChoice::Unspecified | DatabaseChoice::Auto | DatabaseChoice::Restore => DatabaseChoice::Unspecified,
    };
    let runbook = match summary.runbook.split('@').next().unwrap_or_default() {
        "restore" => "default",
        name => name,
    };
    // What several objectives made has no name that could be asked for again.
    let converge = words::is_of_objectives(&summary);
    let named = summary.undo_of.is_empty() && !converge;
    Ok(Wanted {
        target: RollbackTarget {
            release: if named { summary.release.clone() } else { String::new() },
            undo_of: summary.undo_of.clone(),
            runbook: runbook.to_owned(),
            database: database.into(),
            scope: (scope != Scope::default()).then_some(scope),
            on_failure: FailureChoice::Unspecified.into(),
            converge,
        },
        saved: None,
        question,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    fn ended(state: RollbackState) -> GetRollbackResponse {
        let mut details = samples::details(state, false);
        let summary = details.summary.as_mut().expect("a summary");
        summary.failed_hosts = vec!["app-2".to_owned()];
        summary.skipped_hosts = vec!["app-3".to_owned()];
        summary.runbook = "restore@1".to_owned();
        details
    }

    #[test]
    fn only_what_was_not_reached_goes_and_no_backup_comes_back_twice() {
        let wanted = not_reached(&ended(RollbackState::Partial), RollbackState::Partial, &[]).expect("two hosts");
        let scope = wanted.target.scope.expect("a scope");
        assert_eq!(scope.hosts, ["app-2", "app-3"]);
        assert_eq!(wanted.target.runbook, "default");
        assert_eq!(wanted.question, "Bring app-2, app-3 to v2.9.0?");

        let one = ["app-2".to_owned()];
        let wanted = not_reached(&ended(RollbackState::Partial), RollbackState::Partial, &one).expect("one host");
        assert_eq!(wanted.target.scope.expect("a scope").hosts, one);
        let other = ["app-1".to_owned()];
        let refused = not_reached(&ended(RollbackState::Partial), RollbackState::Partial, &other).expect_err("reached");
        assert_eq!(refused.code, Code::ActUnfit);
        assert!(
            refused.message.contains("not reached: app-2, app-3"),
            "{}",
            refused.message
        );

        let verified = ended(RollbackState::Verified);
        not_reached(&verified, RollbackState::Verified, &[]).expect_err("nothing to retry");
        let undone = not_reached(&ended(RollbackState::Undone), RollbackState::Undone, &[]).expect("all of it");
        assert_eq!(undone.target.scope, None);
        assert_eq!(undone.target.release, "v2.9.0");
    }
    /// The name of what was put together for a converge is no release: asking for it would be refused, or be another thing.
    #[test]
    fn a_converge_is_asked_for_as_one() {
        let mut details = ended(RollbackState::Partial);
        details.summary.as_mut().expect("a summary").release = "objectives".to_owned();
        let target = not_reached(&details, RollbackState::Partial, &[])
            .expect("two hosts")
            .target;
        assert!(target.converge);
        assert_eq!(target.release, "");
        assert_eq!(target.scope.expect("a scope").hosts, ["app-2", "app-3"]);
    }
}
