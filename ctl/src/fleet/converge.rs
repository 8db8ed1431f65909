//! `rollbackctl fleet converge`

use clap::Args;
use rollback_proto::v1::{Drift, GetFleetRequest, RollbackTarget};

use crate::cli::{Format, OutputArgs};
use crate::client::ALL_HOSTS;
use crate::exit::ExitCode;
use crate::fleet::rollback::{StartArgs, Wanted, go};
use crate::fleet::target::ShapeArgs;
use crate::output::paint::Paint;
use crate::output::{self, json, status};
use crate::session::Session;

/// Bring what is not where it shall be there
///
/// Where everything shall be is what the last release that was recorded says, or the
/// last rollback that ended well. Hosts that were away then, on which it failed, or
/// that somebody has changed since are elsewhere: `fleet status` names them.
///
/// This is a rollback like any other: every host proves that it can, you see the plan
/// and are asked, and when a step fails everything goes back. Hosts that cannot be
/// reached now stay as they are, and are named by `fleet status` until somebody comes
/// back to them. A runbook with `converge = "automatic"` has it done as soon as a host
/// that was away is back.
///
/// Exit codes:
///   0  everything is where it shall be, by now or since before
///   1  error (also: you answered no)
///   3  blocked by preflight, or nothing that is elsewhere can be reached
///   4  partial: not every host was reached
///   5  undone, aborted or held
///   6  another rollback holds the scope
///   7  started and still running: --detach, Ctrl-C or --timeout
///
/// Examples:
///   rollbackctl fleet converge
///   rollbackctl fleet converge --host app-3 --reason "back from repair" --yes
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ConvergeArgs {
    #[command(flatten)]
    pub shape: ShapeArgs,
    #[command(flatten)]
    pub start: StartArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: ConvergeArgs) -> anyhow::Result<ExitCode> {
    let target = RollbackTarget {
        converge: true,
        ..args.shape.target()?
    };
    args.start.check()?;
    let format = args.output.output;
    let mut client = session.client()?;
    let mut fleet = client
        .call(ALL_HOSTS, GetFleetRequest {}, |mut fleet, request| async move {
            fleet.get_fleet(request).await
        })
        .await?;
    let hosts = &args.shape.scope.host;
    let asked_for = |d: &Drift| hosts.is_empty() || hosts.contains(&d.host);
    if !fleet.drift.iter().any(asked_for) {
        output::note("Nothing is elsewhere: everything that answers is where it shall be.");
        if format == Format::Json {
            output::data(&json::document("fleet_status", json::fleet(&fleet)))?;
        }
        return Ok(ExitCode::Done);
    }
    fleet.drift.retain(asked_for);
    output::note(status::drift(&fleet.drift, Paint::stderr()).trim_end());
    let wanted = Wanted {
        target,
        saved: None,
        question: "Bring this where it shall be?".to_owned(),
    };
    go(session, wanted, &args.start, format).await
}
