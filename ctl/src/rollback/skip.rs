//! `rollbackctl rollback skip`

use clap::Args;
use rollback_proto::names::check_name;
use rollback_proto::v1::steer_rollback_request::{Act, Skip};

use super::steer;
use crate::cli::OutputArgs;
use crate::exit::ExitCode;
use crate::output::text::{clean, name_some};
use crate::session::Session;

/// Go on without hosts that failed; the rollback ends partial at best
///
/// Only while it stands still, only hosts whose step failed, and only where others
/// do not depend on them: among the applications, the proxies and the checks at
/// the end. Elsewhere: abort --undo, then start again with --exclude-host.
///
/// A host that was skipped is not at the target: keep it away from users. When it
/// is mended: rollbackctl rollback retry, or fleet converge.
///
/// Exit codes: 0 it goes on without them, 1 error (also: that does not fit now).
///
/// Examples:
///   rollbackctl rollback skip latest --host app-2 --reason "its disk is gone"
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct SkipArgs {
    /// Its id, or `latest`
    #[arg(value_name = "ID")]
    pub id: String,
    /// The host that failed; may be repeated. Without it: all that failed
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub host: Vec<String>,
    /// Why; kept in the journal and in the report
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: SkipArgs) -> anyhow::Result<ExitCode> {
    super::check_id(&args.id)?;
    for host in &args.host {
        check_name("host", host)?;
    }
    let mut client = session.client()?;
    let act = Act::Skip(Skip {
        hosts: args.host.clone(),
    });
    let summary = steer::steer(&mut client, &args.id, &args.reason, act).await?;
    let skipped = name_some(summary.skipped_hosts.iter().map(String::as_str), 10);
    let (id, release) = (clean(&summary.id), clean(&summary.release));
    let done = format!("rollback {id} to {release} goes on without {skipped}");
    steer::tell(&mut client, &summary, &done, args.output.output).await
}
