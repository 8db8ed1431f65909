//! `rollbackctl agent token`

use clap::Args;
use rollback_proto::names::check_name;
use rollback_proto::v1::CreateTokenRequest;

use crate::client::QUICK;
use crate::exit::ExitCode;
use crate::output;
use crate::output::text::{clean, stamp, timestamp};
use crate::session::Session;

/// Make a token with which one host can join the fleet, once
///
/// The token alone goes to stdout, what to do with it to stderr. Whoever has it
/// can become the agent of this name until it is used or expires: hand it over
/// like a password.
///
/// Example:
///   rollbackctl agent token app-1 | ssh app-1 'rollback-agent enroll --coordinator coord-1:7443 \
///     --config /etc/rollback-agent/agent.toml --token "$(cat)"'
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct TokenArgs {
    /// The host's name, as in its agent.toml
    #[arg(value_name = "NAME")]
    pub name: String,
}

pub async fn run(session: &Session, args: TokenArgs) -> anyhow::Result<ExitCode> {
    check_name("host", &args.name)?;
    let mut client = session.client()?;
    let request = CreateTokenRequest {
        name: args.name.clone(),
    };
    let made = client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.create_token(request).await
        })
        .await?;
    output::data(&clean(&made.token))?;
    // The one that made it leads, and is reached from here. Any other sends the host there.
    let endpoint = client.endpoint().unwrap_or("HOST:PORT");
    output::note(&format!(
        "For one use by {name}, until {until}. On that host:\n  rollback-agent enroll --coordinator {endpoint} --token \
         TOKEN --config /etc/rollback-agent/agent.toml\nThe host checks that the fleet's CA is {ca}.",
        name = args.name,
        until = stamp(timestamp(made.expires_at.as_ref())),
        ca = clean(&made.ca_fingerprint),
    ));
    Ok(ExitCode::Done)
}
