//! `rollback-agent enroll`.

use std::process::ExitCode;

use crate::enroll::{Token, enroll};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: super::ConfigFile,
    /// A coordinator of the fleet; may be given several times, the first that answers will do. Default: those of the
    /// configuration
    #[arg(long, value_name = "HOST:PORT")]
    coordinator: Vec<String>,
    /// What `rollbackctl agent token NAME` printed
    #[arg(long, env = "ROLLBACK_AGENT_TOKEN", hide_env_values = true)]
    token: String,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = args.config.load()?;
    let token = Token::parse(&args.token)?;
    let coordinators = if args.coordinator.is_empty() {
        &settings.coordinators
    } else {
        &args.coordinator
    };
    let peer = enroll(&settings, coordinators, &token).await?;
    let until = jiff::Timestamp::try_from(peer.expires)?;
    eprintln!("enrolled as {}", peer.identity);
    eprintln!(
        "certificate in {}, valid until {until}, renewed by itself while the agent runs",
        settings.pki.display()
    );
    eprintln!("next: rollback-agent run --config {}", args.config.path.display());
    Ok(ExitCode::SUCCESS)
}
