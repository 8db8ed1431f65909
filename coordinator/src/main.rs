//! rollback-coordinator: the command line.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use rollback_coordinator::config::Config;
use rollback_coordinator::init::{InitOptions, init, write_operator};
use rollback_coordinator::issuer::CertificateAuthority;
use rollback_coordinator::{daemon, issuer};
use rollback_proto::tls::{Credentials, install_crypto};

/// The coordinator of rollbackctl: plans fleet-wide rollbacks and carries them out over the fleet's agents.
///
/// Set up:   rollback-coordinator init --dir /etc/rollback-coordinator
/// Run:      rollback-coordinator run --config /etc/rollback-coordinator/coordinator.toml
/// Operate:  rollbackctl --context /etc/rollback-coordinator/operators/admin/context.toml doctor
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a CA, this coordinator's credentials, its configuration and the first operator's certificate.
    ///
    /// Refuses a directory that holds a configuration already. Everything is readable by its owner alone.
    Init {
        /// Where to put it all.
        #[arg(long, default_value = "/etc/rollback-coordinator")]
        dir: PathBuf,
        /// Name of this coordinator.
        #[arg(long, default_value = "coord-1")]
        name: String,
        /// The first part of every identity: spiffe://TRUST_DOMAIN/agent/app-1.
        #[arg(long, default_value = "rollback.local")]
        trust_domain: String,
        /// Name of the first operator.
        #[arg(long, default_value = "admin")]
        operator: String,
        /// Address for agents and operators (gRPC, mutual TLS).
        #[arg(long, default_value = "127.0.0.1:7443")]
        listen: SocketAddr,
        /// Address for health, readiness and metrics (plain HTTP).
        #[arg(long, default_value = "127.0.0.1:7444")]
        http: SocketAddr,
        /// host:port under which operators reach it [default: the listen address].
        #[arg(long)]
        endpoint: Option<String>,
        /// Send traces to this OTLP collector (gRPC), e.g. http://127.0.0.1:4317.
        #[arg(long)]
        otlp: Option<String>,
    },
    /// Run the coordinator until SIGTERM or SIGINT.
    ///
    /// Rollbacks that were running when it stopped, was killed or lost power go on from the journal.
    Run {
        #[arg(long, default_value = "/etc/rollback-coordinator/coordinator.toml")]
        config: PathBuf,
        /// Write {"grpc": …, "http": …, "pid": …} here once both ports listen (for port 0).
        #[arg(long)]
        ready_file: Option<PathBuf>,
    },
    /// Read the configuration and the credentials, say what is wrong with them, change nothing.
    CheckConfig {
        #[arg(long, default_value = "/etc/rollback-coordinator/coordinator.toml")]
        config: PathBuf,
    },
    /// Make a certificate and a context file for another operator.
    Operator {
        /// The operator's name; it stands in every rollback that they start.
        name: String,
        #[arg(long, default_value = "/etc/rollback-coordinator/coordinator.toml")]
        config: PathBuf,
        /// Directory to make; hand it over by a safe way: it holds a private key.
        #[arg(long)]
        out: PathBuf,
        /// host:port under which the operator reaches the coordinator [default: the listen address].
        #[arg(long)]
        endpoint: Option<String>,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    install_crypto();
    match Cli::parse().command {
        Command::Init {
            dir,
            name,
            trust_domain,
            operator,
            listen,
            http,
            endpoint,
            otlp,
        } => {
            let endpoint = endpoint.unwrap_or_else(|| listen.to_string());
            let options = InitOptions {
                dir,
                name,
                trust_domain,
                operator,
                listen,
                http,
                endpoint,
                otlp,
            };
            let made = init(&options)?;
            say(&format!(
                "configuration    {}\noperator         {}\nCA fingerprint   {}\n\nnext:\n  rollback-coordinator run --config {}\n  \
                 export ROLLBACKCTL_CONTEXT={}\n  rollbackctl doctor\n  rollbackctl agent token NAME    # once for each host\n",
                made.config.display(),
                made.operator_context.display(),
                made.ca_fingerprint,
                made.config.display(),
                made.operator_context.display(),
            ))
        }
        Command::Run { config, ready_file } => daemon::run(Config::load(&config)?, ready_file.as_deref()).await,
        Command::CheckConfig { config } => {
            let settings = Config::load(&config)?;
            let credentials = Credentials::load(&settings.tls).context("credentials")?;
            if let Some(issuer) = &settings.issuer {
                let trust_domain = &credentials.us.identity.trust_domain;
                issuer::CertificateAuthority::load(&settings.tls.ca, &issuer.key, trust_domain)?;
            }
            anyhow::ensure!(
                settings.state.is_dir(),
                "state directory {} is not there",
                settings.state.display()
            );
            say(&format!("{} is good: {}\n", config.display(), credentials.us.identity))
        }
        Command::Operator {
            name,
            config,
            out,
            endpoint,
        } => {
            let settings = Config::load(&config)?;
            let credentials = Credentials::load(&settings.tls).context("credentials")?;
            let issuer = settings.issuer.as_ref().context("the configuration has no [issuer]")?;
            let ca = CertificateAuthority::load(&settings.tls.ca, &issuer.key, &credentials.us.identity.trust_domain)?;
            let endpoint = endpoint.unwrap_or_else(|| settings.listen.to_string());
            let context = write_operator(&ca, &out, &name, &endpoint, settings.telemetry.otlp.as_deref())?;
            say(&format!("operator {name}: {}\n", context.display()))
        }
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("write to stdout")
}
