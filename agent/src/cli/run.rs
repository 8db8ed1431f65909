//! `rollback-agent run`: puts the daemon together, and takes it apart again.
//!
//! Order of starting: credentials, drivers, ledger (and with it the state directory's lock), port, executor (which
//! begins to resolve what the last run left), server, registration. Stopping: no new connections and no new steps, then
//! what runs gets its time, then the spans that are left are sent.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::telemetry;
use rollback_proto::tls::CredentialStore;
use rollback_proto::v1::RegisterRequest;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Settings;
use crate::executor::{Executor, Limits, Parts};
use crate::ledger::Ledger;
use crate::registration::renewal::renew_in_time;
use crate::registration::{Membership, stay_registered};
use crate::server::{Identity, serve};
use crate::vault::Vault;

/// For steps that run when the agent is told to stop. systemd's own patience is 90 s.
const PATIENCE: Duration = Duration::from_secs(20);
/// For streams that are told their outcome, and for the ledger to close, after that.
const LAST_WORDS: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: super::ConfigFile,
    /// Written when the port listens: {"grpc":"127.0.0.1:40001","pid":1234}
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = args.config.load()?;
    let telemetry = telemetry::init(&settings.telemetry)
        .map_err(|error| Problem::from_error(Code::BadConfig, "set up logs and traces", &error))?;
    let result = daemon(&args, settings).await;
    // Blocks while a collector does not answer.
    tokio::task::spawn_blocking(move || telemetry.shutdown())
        .await
        .context("send the last spans")?;
    result.map(|()| ExitCode::SUCCESS)
}

async fn daemon(args: &Args, settings: Settings) -> anyhow::Result<()> {
    // Before anything else: a signal that comes while we start is not lost.
    let mut signals = Signals::listen().context("listen for signals")?;
    let credentials = crate::pki::load(&settings.pki, &settings.name)?;
    let credentials: CredentialStore = Arc::new(Arc::new(credentials).into());
    let vault = Arc::new(Vault::open(settings.vault_dir())?);
    let components = settings.drivers(&vault).map_err(|mistake| args.config.wrong(mistake))?;
    let ledger_tasks = TaskTracker::new();
    let ledger = Ledger::open(&settings.state, &ledger_tasks)
        .await
        .map_err(|error| Problem::from_error(Code::StoreUnavailable, "start", &error))
        .map_err(|problem| problem.remedy("look at the disk and the rights of the host's state directory"))?;
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("listen on {}", settings.listen))?;
    let bound = listener.local_addr().context("read the address that was bound")?;
    let identity = Identity {
        name: settings.name.clone(),
        ledger_generation: ledger.generation().to_owned(),
        labels: settings.labels.clone(),
    };
    let executor = Executor::start(Parts {
        host: settings.name.clone(),
        components,
        vault,
        ledger,
        limits: Limits::default(),
    });
    let member = Arc::new(membership(&settings, &identity, &executor, credentials.clone(), bound));

    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let server = serve(listener, credentials, identity, executor.clone(), stop.clone());
    tasks.spawn(async move { server.await.context("serve") });
    tasks.spawn({
        let (member, stop) = (Arc::clone(&member), stop.clone());
        async move {
            stay_registered(&member, stop).await;
            Ok(())
        }
    });
    tasks.spawn({
        let stop = stop.clone();
        async move {
            renew_in_time(&member, stop).await;
            Ok(())
        }
    });
    if let Some(path) = &args.ready_file {
        write_ready(path, bound).with_context(|| format!("write {}", path.display()))?;
    }
    tracing::info!(name = settings.name, address = %bound, version = env!("CARGO_PKG_VERSION"), "agent runs");

    let ended = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "stopping");
            Ok(())
        }
        ended = tasks.join_next() => unexpected(ended),
    };
    stop.cancel();
    if !executor.stop(PATIENCE).await {
        tracing::warn!("stopping inside a step; the next start resolves it");
    }
    // The server ends when its streams have; the ledger closes when server and executor are gone.
    let rest = async {
        while let Some(result) = tasks.join_next().await {
            result.context("a task panicked")??;
        }
        drop(executor);
        ledger_tasks.close();
        ledger_tasks.wait().await;
        anyhow::Ok(())
    };
    match tokio::time::timeout(LAST_WORDS, rest).await {
        Ok(result) => result?,
        Err(_) => tracing::debug!("a caller did not take its last answer"),
    }
    tracing::info!("agent stopped");
    ended
}

/// A task that ended before it was told to.
fn unexpected(ended: Option<Result<anyhow::Result<()>, tokio::task::JoinError>>) -> anyhow::Result<()> {
    match ended {
        Some(result) => result
            .context("a task panicked")?
            .and(Err(anyhow::anyhow!("a task ended too early"))),
        None => Err(anyhow::anyhow!("no task runs")),
    }
}

fn membership(
    settings: &Settings,
    identity: &Identity,
    executor: &Executor,
    credentials: CredentialStore,
    bound: SocketAddr,
) -> Membership {
    Membership {
        coordinators: settings.coordinators.clone(),
        credentials,
        pki: settings.pki.clone(),
        name: settings.name.clone(),
        announcement: RegisterRequest {
            address: settings.address(bound),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ledger_generation: identity.ledger_generation.clone(),
            components: executor.describe(),
            labels: settings.labels.clone().into_iter().collect(),
        },
        replaced: watch::Sender::new(0),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Whole or not at all: whoever waits for the file may read it at once.
fn write_ready(path: &Path, bound: SocketAddr) -> anyhow::Result<()> {
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    let content = serde_json::json!({ "grpc": bound.to_string(), "pid": std::process::id() });
    std::io::Write::write_all(&mut file, format!("{content}\n").as_bytes())?;
    file.persist(path)?;
    Ok(())
}
