//! A coordinator that says what a test tells it to say, over real mutual TLS on a real port. It can be killed and
//! started again on the same port, and remembers what it was asked.
//!
//! Tests run the real binary as a child process and look at its exit code, stdout and stderr.

#![allow(dead_code, unused_imports, reason = "each test program uses its own part")]

mod messages;
mod pki;
mod service;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Hint, Problem};
use rollback_proto::tls::{ClientCertificate, CredentialFiles, Credentials, incoming};
use rollback_proto::v1;
use rollback_proto::v1::fleet_server::FleetServer;
use rollback_proto::v1::get_server_info_response::Standing;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use pki::Authority;

pub use messages::{ID, blocker, ending, journal, plan, progress};

/// A step that hangs for this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one `StartRollback` gets.
#[derive(Clone, Debug)]
pub enum StartReply {
    Started,
    Refused(Problem),
    /// Notes the request, tells the test, and never answers: the test kills the coordinator now.
    Never,
}

/// What one `WatchRollback` gets; without an entry, the whole journal.
#[derive(Clone, Debug)]
pub enum WatchReply {
    /// Events up to this seq, then the stream ends in order, as when a coordinator shuts down.
    EndsAfter(u64),
    /// Events up to this seq, then silence. Tells the test.
    HangsAfter(u64),
    /// Events up to this seq, then the stream fails with this.
    Fails { after: u64, problem: Problem },
}

/// What a replica says to all that is not a read.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub problem: Problem,
    /// From then on it leads; `None`: never.
    pub until: Option<Instant>,
}

/// The coordinator's whole memory.
#[derive(Clone, Default)]
pub struct State {
    pub info: v1::GetServerInfoResponse,
    pub refusal: Option<Refusal>,
    /// How much of the journal one that refuses has in its store.
    pub recorded: u64,
    pub journal: Vec<v1::RollbackEvent>,
    pub details: v1::GetRollbackResponse,
    pub plan: v1::PlanRollbackResponse,
    pub fleet: v1::GetFleetResponse,
    pub rollbacks: Vec<v1::RollbackSummary>,
    pub start_replies: VecDeque<StartReply>,
    pub watch_replies: VecDeque<WatchReply>,
    /// What one `PlanRollback` gets instead of the plan.
    pub plan_refusals: VecDeque<Problem>,
    /// What one `SteerRollback` gets instead of the summary; `None`: no answer, and the test is told.
    pub steer_refusals: VecDeque<Option<Problem>>,
    // What was asked.
    pub plans: Vec<v1::PlanRollbackRequest>,
    pub steers: Vec<v1::SteerRollbackRequest>,
    pub starts: Vec<v1::StartRollbackRequest>,
    pub watches: Vec<u64>,
    pub traceparents: Vec<String>,
    pub calls: usize,
    /// Refusals that were given.
    pub refused: usize,
}

impl State {
    fn refuse(&mut self) -> Result<(), Problem> {
        match &self.refusal {
            Some(refusal) if refusal.until.is_none_or(|until| Instant::now() < until) => {
                self.refused += 1;
                Err(refusal.problem.clone())
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses, as a replica that does not lead; with `hint`, it names the leader's host:port.
    pub fn follow(&mut self, hint: Option<String>, until: Option<Instant>) {
        let problem = Problem::new(Code::NotLeader, format!("{} does not lead", self.info.name));
        let problem = match hint.clone() {
            Some(endpoint) => problem.hint(Hint::Leader(endpoint)),
            None => problem,
        };
        self.refusal = Some(Refusal { problem, until });
        self.info.set_standing(Standing::Following);
        self.info.leader_endpoint = hint.unwrap_or_default();
    }
}

/// State and the way to tell the test that a handler hangs.
pub struct Shared {
    state: Mutex<State>,
    hangs: Mutex<Sender<()>>,
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn tell_hang(&self) {
        let hangs = self.hangs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        hangs.send(()).expect("the test waits for it");
    }
}

pub struct Fake {
    pub shared: Arc<Shared>,
    pub address: SocketAddr,
    hung: Receiver<()>,
    runtime: Option<Runtime>,
    server: CredentialFiles,
    authority: Arc<Authority>,
    pub directory: Arc<tempfile::TempDir>,
}

impl Fake {
    /// Starts one that leads, knows a plan, and a rollback whose journal ends with `state`.
    pub fn start(state: v1::RollbackState, blocked: bool) -> Self {
        rollback_proto::tls::install_crypto();
        let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
        let authority = Arc::new(Authority::create(directory.path()));
        let info = v1::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: "coord-1".to_owned(),
            standing: Standing::Leading.into(),
            leader_id: "coord-1/3f2a".to_owned(),
            epoch: 3,
            agents: 2,
            agents_connected: 2,
            caller: "ana (admin)".to_owned(),
            ..v1::GetServerInfoResponse::default()
        };
        let state = State {
            info,
            journal: journal(state, blocked),
            details: messages::details(state, blocked),
            plan: v1::PlanRollbackResponse {
                plan: Some(plan(true)),
                findings: Vec::new(),
                ..v1::PlanRollbackResponse::default()
            },
            fleet: messages::fleet(),
            ..State::default()
        };
        let fake = Self::with(state, authority, directory);
        fake.write_context("");
        fake
    }

    /// Starts another replica of the same fleet, with what this one has in memory now. It leads, too, until it is told to
    /// follow; the context does not list it.
    pub fn another(&self, name: &str) -> Self {
        let mut state = self.state().clone();
        name.clone_into(&mut state.info.name);
        Self::with(state, Arc::clone(&self.authority), Arc::clone(&self.directory))
    }

    fn with(state: State, authority: Arc<Authority>, directory: Arc<tempfile::TempDir>) -> Self {
        let server = authority.coordinator(&state.info.name);
        let (hangs, hung) = channel();
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            hangs: Mutex::new(hangs),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut fake = Self {
            shared,
            address,
            hung,
            runtime: None,
            server,
            authority,
            directory,
        };
        fake.serve(listener);
        fake
    }

    /// host:port.
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Writes the operator's context file, with this endpoint alone; `more` is appended.
    pub fn write_context(&self, more: &str) {
        self.write_context_to(&[&self.endpoint()], more);
    }

    /// Writes the operator's context file, with these endpoints.
    pub fn write_context_to(&self, endpoints: &[&str], more: &str) {
        let text = format!(
            "name = \"test\"\nendpoints = {endpoints:?}\nca = \"ca.pem\"\ncertificate = \"ana.pem\"\nkey = \"ana.key\"\n{more}",
        );
        std::fs::write(self.context(), text).expect("write context.toml");
    }

    pub fn context(&self) -> PathBuf {
        self.directory.path().join("context.toml")
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    fn serve(&mut self, listener: std::net::TcpListener) {
        let runtime = Runtime::new().expect("a runtime");
        let credentials = Credentials::load_store(&self.server).expect("our own certificates");
        let service = FleetServer::new(service::Service(Arc::clone(&self.shared)));
        listener.set_nonblocking(true).expect("nonblocking");
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let connections = incoming(
                listener,
                credentials,
                ClientCertificate::Required,
                CancellationToken::new(),
            );
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(connections).await.expect("serve");
        });
        self.runtime = Some(runtime);
    }

    /// As `kill -9`: connections end in the middle of whatever they carry.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }

    /// Starts again on the same port, with the same memory.
    pub fn restart(&mut self) {
        assert!(self.runtime.is_none(), "kill it first");
        let listener = std::net::TcpListener::bind(self.address).expect("our port is free again");
        self.serve(listener);
    }

    /// Waits until a handler hangs as it was told to.
    pub fn wait_for_hang(&self) {
        match self.hung.recv_timeout(PATIENCE) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                panic!("nobody came to the hanging call")
            }
        }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = bare(args);
        command.arg("--context").arg(self.context());
        command
    }

    /// Runs to the end. stdin is closed: there is no terminal.
    pub fn run(&self, args: &[&str]) -> Ended {
        Ended::of(self.command(args).output().expect("run rollbackctl"))
    }

    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("spawn rollbackctl")
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The binary, with nothing of this machine's environment that could change what it does.
pub fn bare(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollbackctl"));
    command.args(args).stdin(Stdio::null());
    for key in [
        "ROLLBACKCTL_CONTEXT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "ROLLBACK_LOG",
        "XDG_CONFIG_HOME",
        "HOME",
    ] {
        command.env_remove(key);
    }
    command
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("ended by itself"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// The last line of stdout, which must be the versioned JSON object.
    pub fn json(&self) -> serde_json::Value {
        let last = self
            .stdout
            .lines()
            .last()
            .unwrap_or_else(|| panic!("no output: {self:?}"));
        let value: serde_json::Value =
            serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last:?} of {self:?}"));
        assert_eq!(value["schema"], "rollbackctl/v1", "{last}");
        value
    }
}
