//! rollback-coordinator: the command line.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use rollback_coordinator::config::Config;
use rollback_coordinator::daemon;
use rollback_coordinator::init::check::check;
use rollback_coordinator::init::replica::{ReplicaOptions, replica};
use rollback_coordinator::init::{InitOptions, init, write_operator};
use rollback_coordinator::issuer::CertificateAuthority;
use rollback_proto::tls::{Credentials, install_crypto};

/// The coordinator of rollbackctl: plans fleet-wide rollbacks and carries them out over
/// the fleet's agents.
///
/// Set up:   rollback-coordinator init --dir /etc/rollback-coordinator
/// Run:      rollback-coordinator run --config /etc/rollback-coordinator/coordinator.toml
/// Operate:  rollbackctl --context /etc/rollback-coordinator/operators/admin/context.toml doctor
///
/// One coordinator keeps its journal in a SQLite file. Two or three share a PostgreSQL
/// database: one of them leads, and another goes on when it dies. Set up with `init
/// --store-url` and `replica`; more in docs/high-availability.md.
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(InitArgs),
    Replica(ReplicaArgs),
    /// Run the coordinator until SIGTERM or SIGINT.
    ///
    /// Rollbacks that were running when it stopped, was killed or lost power go on from the journal: with the next start, or
    /// at once at another replica.
    Run {
        #[arg(long, default_value = "/etc/rollback-coordinator/coordinator.toml")]
        config: PathBuf,
        /// Write {"grpc": …, "http": …, "pid": …} here once both ports listen (for port 0).
        #[arg(long)]
        ready_file: Option<PathBuf>,
    },
    /// Read the configuration and the credentials, ask the store, say what is wrong with them, change nothing.
    CheckConfig {
        #[arg(long, default_value = "/etc/rollback-coordinator/coordinator.toml")]
        config: PathBuf,
    },
    Operator(OperatorArgs),
}

/// Make a CA, this coordinator's credentials, its configuration and the first operator
///
/// Refuses a directory that holds a configuration already. Everything is readable by
/// its owner alone.
///
/// Examples:
///   rollback-coordinator init --listen 0.0.0.0:7443 --endpoint coord-1.example:7443
///   rollback-coordinator init --listen 0.0.0.0:7443 --endpoint coord-1.example:7443 \
///     --store-url 'postgres://rollback@db-1/rollback?sslmode=verify-full' \
///     --store-password-file ./password
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct InitArgs {
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
    /// host:port under which operators and agents reach this one coordinator; no load balancer's: replicas send people here
    /// while it leads. It stands in the first operator's context, too [default: the listen address].
    #[arg(long)]
    endpoint: Option<String>,
    /// Send traces to this OTLP collector (gRPC), e.g. http://127.0.0.1:4317.
    #[arg(long)]
    otlp: Option<String>,
    /// Keep the journal in this PostgreSQL database, which replicas can share; without a password in it [default: a SQLite
    /// file in --dir, for a coordinator that is alone].
    #[arg(long, value_name = "URL")]
    store_url: Option<String>,
    /// A file with the database's password; copied into --dir.
    #[arg(long, value_name = "FILE", requires = "store_url")]
    store_password_file: Option<PathBuf>,
}

/// Make credentials and a configuration for another coordinator of the same fleet
///
/// Run it where the CA's key is. The replica gets a certificate of its own, and the
/// store, the lease's times and the agents' heartbeat of the configuration that is
/// given. Refuses one without a [store] url: SQLite is for one coordinator alone.
///
/// Example:
///   rollback-coordinator replica coord-2 --out ./coord-2 \
///     --installed-at /etc/rollback-coordinator --endpoint coord-2.example:7443
///   rsync -a ./coord-2/ root@coord-2.example:/etc/rollback-coordinator/
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct ReplicaArgs {
    /// The replica's name; use each name once in a fleet.
    name: String,
    /// The configuration of a coordinator of this fleet, with its [issuer].
    #[arg(long, default_value = "/etc/rollback-coordinator/coordinator.toml")]
    config: PathBuf,
    /// Directory to make; carry it over by a safe way: it holds private keys.
    #[arg(long)]
    out: PathBuf,
    /// Where the directory will be on the replica's host [default: where it is made].
    #[arg(long, value_name = "DIR")]
    installed_at: Option<PathBuf>,
    /// Address for agents and operators (gRPC, mutual TLS) [default: 0.0.0.0, with the port of --endpoint].
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Address for health, readiness and metrics (plain HTTP).
    #[arg(long, default_value = "127.0.0.1:7444")]
    http: SocketAddr,
    /// host:port under which this one replica is reached by operators and agents [default: the address given as --listen;
    /// one of the two is needed].
    #[arg(long)]
    endpoint: Option<String>,
    /// Leave the CA's key out: no host enrolls and no agent renews its certificate at this replica, and while it leads, no
    /// join tokens can be made.
    #[arg(long)]
    without_issuer: bool,
}

/// Make a certificate and a context file for another operator
///
/// Example:
///   rollback-coordinator operator ana --out ./ana \
///     --endpoint coord-1.example:7443 --endpoint coord-2.example:7443
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct OperatorArgs {
    /// The operator's name; it stands in every rollback that they start.
    name: String,
    #[arg(long, default_value = "/etc/rollback-coordinator/coordinator.toml")]
    config: PathBuf,
    /// Directory to make; hand it over by a safe way: it holds a private key.
    #[arg(long)]
    out: PathBuf,
    /// host:port under which the operator reaches a coordinator; once for each replica [default: this coordinator's alone].
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Vec<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    install_crypto();
    match Cli::parse().command {
        Command::Init(args) => say(&make_first(args)?),
        Command::Replica(args) => say(&make_replica(args)?),
        Command::Run { config, ready_file } => daemon::run(Config::load(&config)?, ready_file.as_deref()).await,
        Command::CheckConfig { config } => say(&check(&config).await?),
        Command::Operator(args) => say(&make_operator(&args)?),
    }
}

fn make_first(args: InitArgs) -> anyhow::Result<String> {
    // The one that is proposed below must not be refused.
    let another = if args.name == "coord-2" { "coord-3" } else { "coord-2" };
    let options = InitOptions {
        dir: args.dir,
        name: args.name,
        trust_domain: args.trust_domain,
        operator: args.operator,
        listen: args.listen,
        http: args.http,
        endpoint: args.endpoint,
        otlp: args.otlp,
        store_url: args.store_url,
        store_password_file: args.store_password_file,
    };
    let made = init(&options)?;
    let (config, context) = (made.config.display(), made.operator_context.display());
    let mut text = format!(
        "configuration    {config}\noperator         {context}\nCA fingerprint   {}\n",
        made.ca_fingerprint
    );
    if options.store_password_file.is_some() {
        text.push_str(
            "password         copied beside the configuration; the file that you gave is not needed any more\n",
        );
    }
    text.push_str(&format!(
        "\nnext:\n  rollback-coordinator check-config --config {config}\n  rollback-coordinator run --config {config}\n  export ROLLBACKCTL_CONTEXT={context}\n  rollbackctl doctor\n  \
         rollbackctl agent token NAME    # once for each host\n"
    ));
    if options.store_url.is_some() {
        text.push_str(&format!(
            "  rollback-coordinator replica {another} --config {config} --out ./{another} \
             --installed-at /etc/rollback-coordinator --endpoint HOST:7443    # for each replica, with a name of its own\n"
        ));
    }
    Ok(text)
}

fn make_replica(args: ReplicaArgs) -> anyhow::Result<String> {
    let moved = args.installed_at.is_some();
    let made = replica(&ReplicaOptions {
        config: args.config,
        name: args.name,
        out: args.out,
        installed_at: args.installed_at,
        listen: args.listen,
        http: args.http,
        endpoint: args.endpoint,
        with_issuer: !args.without_issuer,
    })?;
    let config = made.config.display();
    let home = made.config.parent().unwrap_or(Path::new("/")).display();
    let ca_key = if made.with_issuer {
        "copied: hosts enroll here, too, and agents renew their certificates. Whoever has this directory can make any \
         certificate of the fleet; --without-issuer leaves it out"
    } else {
        "left out: hosts enroll and agents renew at a coordinator that has it, and rollbackctl agent token needs such a one to lead"
    };
    let mut text = format!(
        "directory        {}\nidentity         {}\nCA key           {ca_key}\n\nnext:\n",
        made.dir.display(),
        made.identity,
    );
    // Nothing here knows which ones the fleet has: the other directories have been carried away.
    let used = format!(
        "  use the name {:?} for no other replica: each one has its own\n",
        made.identity.name
    );
    text.push_str(&used);
    if moved {
        text.push_str(&format!(
            "  carry {}/ to its host as {home}/, with its modes: rsync -a\n",
            made.dir.display()
        ));
    }
    if made.store_needs_files {
        text.push_str("  put the certificate files that store.url names on that host, at the same paths\n");
    }
    text.push_str(&format!(
        "  rollback-coordinator check-config --config {config}\n  rollback-coordinator run --config {config}\n  add {:?} to \
         `endpoints` in every operator's context.toml, and to `coordinators` in every agent.toml\n  rollbackctl doctor\n",
        made.endpoint
    ));
    Ok(text)
}

fn make_operator(args: &OperatorArgs) -> anyhow::Result<String> {
    let settings = Config::load(&args.config)?;
    let credentials = Credentials::load(&settings.tls).context("credentials")?;
    let issuer = settings.issuer.as_ref().context("the configuration has no [issuer]")?;
    let ca = CertificateAuthority::load(&settings.tls.ca, &issuer.key, &credentials.us.identity.trust_domain)?;
    let ours = [settings.advertised()];
    let endpoints = if args.endpoint.is_empty() {
        &ours[..]
    } else {
        &args.endpoint
    };
    let context = write_operator(
        &ca,
        &args.out,
        &args.name,
        endpoints,
        settings.telemetry.otlp.as_deref(),
    )?;
    Ok(format!("operator {}: {}\n", args.name, context.display()))
}

fn say(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("write to stdout")
}
