//! A coordinator with its API over a store in memory, and agents that say what the test says and remember what they were
//! asked.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::Stream;
use jiff::Timestamp;
use rollback_coordinator::api::Api;
use rollback_coordinator::config::{LeadershipConfig, ReadinessConfig};
use rollback_coordinator::inventory::{Dial, Inventory};
use rollback_coordinator::issuer::CertificateAuthority;
use rollback_coordinator::metrics::Metrics;
use rollback_coordinator::replica::{Parts, Replica};
use rollback_coordinator::retention::ReleasesConfig;
use rollback_coordinator::store::memory::{MemoryDisk, MemoryStore};
use rollback_coordinator::store::{AgentRecord, Candidate, ComponentRecord, Store as _};
use rollback_engine::release::{Action, Role};
use rollback_proto::identity::{Identity, Peer, PeerRole};
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::{CredentialFiles, Credentials, PeerInfo};
use rollback_proto::v1;
use rollback_proto::v1::agent_server::{Agent, AgentServer};
use rollback_proto::v1::execute_event::Event;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

/// One host.
#[derive(Debug, Default)]
pub struct Said {
    /// By component: version and digest.
    pub live: BTreeMap<String, (String, String)>,
    /// Components that are not well.
    pub unhealthy: Vec<String>,
    /// What every PREPARE finds.
    pub findings: Vec<v1::Finding>,
    /// How often OBSERVE was asked for.
    pub observed: usize,
    /// OBSERVE finds nobody.
    pub is_away: bool,
    /// PREPARE is never answered.
    pub stuck: bool,
    /// How often PREPARE was asked for without a rollback, and how many of these questions are open.
    pub prepares: usize,
    pub open: usize,
    /// Every STAGE takes one of these first.
    pub may_stage: Option<Arc<Semaphore>>,
    /// An agent from before releases could be forgotten.
    pub is_old: bool,
    pub retained: usize,
    /// Component, release, and the versions that are kept.
    pub forgotten: Vec<(String, String, Vec<String>)>,
    /// Whatever was asked for beside PREPARE.
    pub steps: Vec<(String, v1::Action)>,
}

#[derive(Clone, Debug, Default)]
pub struct Host(Arc<Mutex<Said>>);

impl Host {
    pub fn said(&self) -> MutexGuard<'_, Said> {
        self.0.lock().expect("no test panics while it holds this")
    }

    pub fn deploy(&self, component: &str, version: &str) {
        let revision = (version.to_owned(), format!("sha256:{component}{version}"));
        self.said().live.insert(component.to_owned(), revision);
    }

    fn revision(&self, component: &str) -> Option<v1::Revision> {
        let (version, digest) = self.said().live.get(component)?.clone();
        Some(v1::Revision { version, digest })
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Agent for Host {
    async fn describe(&self, _: Request<v1::DescribeRequest>) -> Answer<v1::DescribeResponse> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn observe(&self, _: Request<v1::ObserveRequest>) -> Answer<v1::ObserveResponse> {
        self.said().observed += 1;
        if self.said().is_away {
            return Err(Problem::new(Code::HostUnreachable, "nobody answers").into());
        }
        let components: Vec<String> = self.said().live.keys().cloned().collect();
        let state = |component: String| v1::ComponentState {
            revision: self.revision(&component),
            health: match self.said().unhealthy.contains(&component) {
                true => v1::Health::Unhealthy.into(),
                false => v1::Health::Healthy.into(),
            },
            component,
            ..v1::ComponentState::default()
        };
        let states = components.into_iter().map(state).collect();
        Ok(Response::new(v1::ObserveResponse { states }))
    }

    async fn retain(&self, request: Request<v1::RetainRequest>) -> Answer<v1::RetainResponse> {
        self.said().retained += 1;
        Ok(Response::new(v1::RetainResponse {
            revision: self.revision(&request.get_ref().component),
            summary: "kept".to_owned(),
        }))
    }

    async fn resolve(&self, _: Request<v1::ResolveRequest>) -> Answer<v1::ResolveResponse> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn forget(&self, request: Request<v1::ForgetRequest>) -> Answer<v1::ForgetResponse> {
        if self.said().is_old {
            return Err(Status::unimplemented("unknown call"));
        }
        let v1::ForgetRequest {
            component,
            release,
            kept,
            ..
        } = request.into_inner();
        let mut kept: Vec<String> = kept.into_iter().map(|revision| revision.version).collect();
        kept.sort();
        self.said().forgotten.push((component, release, kept));
        Ok(Response::new(v1::ForgetResponse::default()))
    }

    type ExecuteStream = Pin<Box<dyn Stream<Item = Result<v1::ExecuteEvent, Status>> + Send>>;

    async fn execute(&self, request: Request<v1::ExecuteRequest>) -> Answer<Self::ExecuteStream> {
        let request = request.into_inner();
        let action = request.action();
        let findings = match action {
            v1::Action::Prepare => {
                let of_a_plan = request.key.is_some_and(|key| key.rollback_id.starts_with("plan-"));
                self.said().prepares += usize::from(of_a_plan);
                let stuck = self.said().stuck;
                match (stuck, of_a_plan) {
                    (true, true) => return Ok(Response::new(Box::pin(Unanswered::of(self)))),
                    (true, false) => return Ok(Response::new(Box::pin(futures::stream::pending()))),
                    (false, _) => {}
                }
                self.said().findings.clone()
            }
            _ => {
                self.said().steps.push((request.component.clone(), action));
                let waits = self.said().may_stage.clone();
                if let (Some(may_stage), v1::Action::Stage) = (waits, action) {
                    may_stage.acquire().await.expect("it is never closed").forget();
                }
                Vec::new()
            }
        };
        let outcome = v1::Outcome {
            status: v1::outcome::Status::Succeeded.into(),
            findings,
            summary: "rehearsed on a copy".to_owned(),
            ..v1::Outcome::default()
        };
        let event = v1::ExecuteEvent {
            event: Some(Event::Outcome(outcome)),
        };
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(event)]))))
    }

    async fn recall(&self, _: Request<v1::RecallRequest>) -> Answer<v1::RecallResponse> {
        Ok(Response::new(v1::RecallResponse::default()))
    }
}

/// A question that is open until it is given up.
struct Unanswered(Host);

impl Unanswered {
    fn of(host: &Host) -> Self {
        host.said().open += 1;
        Self(host.clone())
    }
}

impl Stream for Unanswered {
    type Item = Result<v1::ExecuteEvent, Status>;

    fn poll_next(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Pending
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.said().open -= 1;
    }
}

#[derive(Debug)]
struct Plain;

#[async_trait]
impl Dial for Plain {
    async fn dial(&self, name: &str, address: &str) -> Result<Channel, Problem> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let refused = |e| Problem::from_error(Code::HostUnreachable, name, &e);
        endpoint.connect().await.map_err(refused)
    }
}

pub struct Fleet {
    pub api: Api,
    pub replica: Replica,
    pub store: MemoryStore,
    pub app: Host,
    pub db: Host,
    stop: CancellationToken,
    #[expect(dead_code, reason = "removed when this is dropped")]
    directory: tempfile::TempDir,
}

/// app-1 has `api` and `env`, db-1 has `db`; all of v1. Two releases are kept, and the last stable one.
pub async fn fleet() -> Fleet {
    let (store, stop, tasks) = (
        MemoryStore::open(&MemoryDisk::new()),
        CancellationToken::new(),
        TaskTracker::new(),
    );
    let (app, db) = (Host::default(), Host::default());
    for (host, component) in [(&app, "api"), (&app, "env"), (&db, "db")] {
        host.deploy(component, "v1");
    }
    serve(
        "app-1",
        &app,
        &[("api", Role::App), ("env", Role::Config)],
        &store,
        &stop,
    )
    .await;
    serve("db-1", &db, &[("db", Role::Database)], &store, &stop).await;
    let heartbeat = Duration::from_secs(5);
    let inventory = Inventory::load(&store, Arc::new(Plain), heartbeat, tasks.clone(), stop.clone())
        .await
        .expect("inventory");
    let replica = Replica::new(Parts {
        store: Arc::new(store.clone()),
        inventory,
        candidate: Candidate {
            id: "coord-1/1".to_owned(),
            endpoint: "coord-1.example:7443".to_owned(),
        },
        timing: LeadershipConfig::default(),
        tracer: None,
        metrics: Arc::new(Metrics::default()),
        stop: stop.clone(),
    });
    let running = replica.clone();
    tasks.spawn(async move { running.run().await });
    replica.settled().await;
    replica.leader().expect("nobody else wants to lead");
    let directory = tempfile::tempdir().expect("temporary directory");
    let readiness = ReadinessConfig {
        releases: 1,
        ..ReadinessConfig::default()
    };
    let api = Api::new(replica.clone(), credentials(directory.path()), None, Duration::ZERO)
        .retaining(ReleasesConfig { keep: 2 }, &readiness);
    Fleet {
        api,
        replica,
        store,
        app,
        db,
        stop,
        directory,
    }
}

/// Nobody is shown them; the API wants to have some.
fn credentials(directory: &std::path::Path) -> rollback_proto::tls::CredentialStore {
    rollback_proto::tls::install_crypto();
    let (ca, _) = CertificateAuthority::create("zekka").expect("a CA");
    let issued = ca
        .issue(PeerRole::Coordinator, "coord-1", Duration::from_secs(3600))
        .expect("a certificate");
    let file = |name: &str, content: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = directory.join(name);
        std::fs::write(&path, content).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("restrict");
        path
    };
    let files = CredentialFiles {
        ca: file("ca.pem", ca.ca_pem()),
        certificate: file("server.pem", &issued.certificate_pem),
        key: file("server.key", &issued.key_pem),
    };
    Credentials::load_store(&files).expect("credentials")
}

async fn serve(name: &str, host: &Host, components: &[(&str, Role)], store: &MemoryStore, stop: &CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address").to_string();
    let serving = Server::builder()
        .add_service(AgentServer::new(host.clone()))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
    TaskTracker::new().spawn(serving);
    let component = |(name, role): &(&str, Role)| ComponentRecord {
        name: (*name).to_owned(),
        kind: "fake".to_owned(),
        role: *role,
        capabilities: Action::ALL.into_iter().collect(),
        reads: std::collections::BTreeSet::new(),
        backends: std::collections::BTreeSet::new(),
        restores: *role == Role::Database,
    };
    let record = AgentRecord {
        name: name.to_owned(),
        address,
        version: "0.1.0".to_owned(),
        ledger_generation: "g1".to_owned(),
        components: components.iter().map(component).collect(),
        labels: BTreeMap::new(),
        registered_at: Timestamp::UNIX_EPOCH,
        certificate_expires: Timestamp::UNIX_EPOCH,
    };
    store.save_agent(&record).await.expect("save");
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// As the layer in front of the API passes it on.
pub fn by_ana<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(PeerInfo {
        peer: Some(Peer {
            identity: Identity::new("zekka", PeerRole::Operator, "ana"),
            serial: "01".to_owned(),
            expires: SystemTime::now() + Duration::from_secs(3600),
        }),
        address: ([127, 0, 0, 1], 1).into(),
    });
    request
}

impl Fleet {
    /// Everything of app-1 and db-1 gets this version, but env, which no release changes.
    pub async fn release(&self, version: &str) -> Result<v1::Release, Problem> {
        self.app.deploy("api", version);
        self.db.deploy("db", version);
        self.record(version, Vec::new()).await
    }

    pub async fn record(&self, name: &str, expected: Vec<v1::ExpectedRevision>) -> Result<v1::Release, Problem> {
        let request = v1::RecordReleaseRequest {
            name: name.to_owned(),
            expected,
            ..v1::RecordReleaseRequest::default()
        };
        let recorded = self.api.record(by_ana(request)).await?;
        Ok(recorded.release.expect("a release"))
    }

    pub async fn remove(&self, names: &[&str], dry_run: bool) -> Result<Vec<v1::RemovedRelease>, Problem> {
        let request = v1::RemoveReleasesRequest {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            dry_run,
        };
        Ok(self.api.remove_unpinned(by_ana(request)).await?.releases)
    }

    pub async fn mark(&self, name: &str, stable: bool, reason: &str) -> Result<v1::Release, Problem> {
        let request = v1::UpdateReleaseRequest {
            name: name.to_owned(),
            stable: Some(stable),
            reason: reason.to_owned(),
            ..v1::UpdateReleaseRequest::default()
        };
        let marked = self.api.update_release_mark(by_ana(request)).await?;
        Ok(marked.release.expect("a release"))
    }

    pub async fn names(&self) -> Vec<String> {
        let releases = self.store.releases().await.expect("releases");
        releases.into_iter().map(|release| release.name.0).collect()
    }
}
