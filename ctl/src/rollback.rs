//! `rollbackctl rollback …`

pub mod list;
pub mod show;
pub mod watch;

use clap::Subcommand;
use rollback_proto::names::check_name;
use rollback_proto::problem::Problem;
use rollback_proto::v1::{GetRollbackRequest, GetRollbackResponse};

use crate::cli::Format;
use crate::client::{CallError, Client, QUICK};

#[derive(Subcommand, Debug)]
pub enum Verb {
    List(list::ListArgs),
    Show(show::ShowArgs),
    Watch(watch::WatchArgs),
}

impl Verb {
    pub fn format(&self) -> Format {
        match self {
            Verb::List(args) => args.output.output,
            Verb::Show(args) => args.output.output,
            Verb::Watch(args) => args.output.output,
        }
    }
}

/// Fetches one rollback; `latest` is a name that the coordinator knows.
async fn fetch(client: &mut Client, id: &str) -> Result<GetRollbackResponse, CallError> {
    let request = GetRollbackRequest {
        id: id.to_owned(),
        events: false,
    };
    client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.get_rollback(request).await
        })
        .await
}

fn check_id(id: &str) -> Result<(), Problem> {
    check_name("rollback", id)
}
