//! Against a coordinator's side of the wire that the test plays.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rollback_proto::identity::Peer;
use rollback_proto::tls::{ClientCertificate, PeerInfo, incoming};
use rollback_proto::v1::enrollment_server::{Enrollment, EnrollmentServer};
use rollback_proto::v1::{
    EnrollRequest, EnrollResponse, HeartbeatResponse, RegisterResponse, RenewRequest, RenewResponse,
};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use super::renewal::renew_in_time;
use super::*;
use crate::config::Settings;
use crate::enroll::{Token, enroll};
use crate::pki;
use crate::pki::tests::Authority;

const COORDINATOR: &str = "spiffe://rollback.local/coordinator/coord-1";
const AGENT: &str = "spiffe://rollback.local/agent/app-1";

/// What the coordinator was told, and what it answers.
struct Desk {
    authority: Arc<Authority>,
    registered: watch::Sender<Vec<RegisterRequest>>,
    heartbeats: watch::Sender<usize>,
    /// Heartbeats that are answered with "register again".
    forget: AtomicUsize,
    renewed: watch::Sender<Vec<Peer>>,
    /// Whom certificates are issued for.
    issue_for: Mutex<&'static str>,
    stands: Mutex<Stands>,
    /// Registrations and heartbeats that were declined.
    declined: watch::Sender<usize>,
}

/// A replica's part.
#[derive(Clone, Debug)]
enum Stands {
    Leads,
    /// And says of whom.
    Follows(Option<String>),
}

impl Desk {
    fn leader(&self) -> Result<(), Status> {
        let stands = self.stands.lock().expect("stands").clone();
        let Stands::Follows(leader) = stands else { return Ok(()) };
        self.declined.send_modify(|count| *count += 1);
        let problem = Problem::new(Code::NotLeader, "this coordinator does not lead");
        Err(match leader {
            Some(leader) => problem.hint(Hint::Leader(leader)).into(),
            None => problem.into(),
        })
    }
}

#[derive(Clone)]
struct Clerk(Arc<Desk>);

fn peer<T>(request: &Request<T>) -> Option<Peer> {
    request
        .extensions()
        .get::<PeerInfo>()
        .and_then(|info| info.peer.clone())
}

#[tonic::async_trait]
impl Enrollment for Clerk {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        assert!(peer(&request).is_none(), "a host that enrolls has no certificate");
        let request = request.into_inner();
        if !request.token.contains(".00ff.") {
            return Err(Problem::new(Code::BadToken, "used").into());
        }
        let uri = *self.0.issue_for.lock().expect("uri");
        Ok(Response::new(EnrollResponse {
            name: "app-1".into(),
            certificate_pem: self.0.authority.certify(&request.csr_pem, uri),
            ca_pem: self.0.authority.ca_pem.clone(),
        }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let caller = peer(&request).ok_or_else(|| Status::unauthenticated("who?"))?;
        self.0.renewed.send_modify(|renewed| renewed.push(caller));
        let uri = *self.0.issue_for.lock().expect("uri");
        Ok(Response::new(RenewResponse {
            certificate_pem: self.0.authority.certify(&request.into_inner().csr_pem, uri),
            ca_pem: self.0.authority.ca_pem.clone(),
        }))
    }

    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        self.0.leader()?;
        self.0
            .registered
            .send_modify(|registered| registered.push(request.into_inner()));
        let heartbeat_interval = prost_types::Duration::try_from(Duration::from_millis(50)).ok();
        Ok(Response::new(RegisterResponse {
            heartbeat_interval,
            awaited: Vec::new(),
        }))
    }

    async fn heartbeat(&self, _: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        self.0.leader()?;
        self.0.heartbeats.send_modify(|count| *count += 1);
        let forget = self
            .0
            .forget
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        Ok(Response::new(HeartbeatResponse {
            register_again: forget.is_ok(),
        }))
    }
}

/// A coordinator's enrollment desk on a port of its own.
struct Coordinator {
    desk: Arc<Desk>,
    address: String,
    place: tempfile::TempDir,
    stop: CancellationToken,
}

impl Coordinator {
    async fn start() -> Self {
        Self::of(Arc::new(Authority::new())).await
    }

    /// Some replicas of one fleet, which follow nobody yet.
    async fn replicas<const N: usize>() -> [Self; N] {
        let authority = Arc::new(Authority::new());
        let replicas = futures::future::join_all([(); N].map(|()| Self::of(Arc::clone(&authority)))).await;
        replicas.iter().for_each(|replica| replica.follows(None));
        replicas.try_into().map_err(|_| ()).expect("as many as were started")
    }

    async fn of(authority: Arc<Authority>) -> Self {
        let place = tempfile::tempdir().expect("temporary directory");
        let credentials = authority.credentials(&place.path().join("coordinator"), COORDINATOR);
        let desk = Arc::new(Desk {
            authority,
            registered: watch::Sender::new(Vec::new()),
            heartbeats: watch::Sender::new(0),
            forget: AtomicUsize::new(0),
            renewed: watch::Sender::new(Vec::new()),
            issue_for: Mutex::new(AGENT),
            stands: Mutex::new(Stands::Leads),
            declined: watch::Sender::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let stop = CancellationToken::new();
        let connections = incoming(listener, credentials, ClientCertificate::Optional, stop.clone());
        let service = EnrollmentServer::new(Clerk(Arc::clone(&desk)));
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(connections, stopped),
        );
        Self {
            desk,
            address,
            place,
            stop,
        }
    }

    fn leads(&self) {
        *self.desk.stands.lock().expect("stands") = Stands::Leads;
    }

    fn follows(&self, leader: Option<&str>) {
        *self.desk.stands.lock().expect("stands") = Stands::Follows(leader.map(str::to_owned));
    }

    fn declined(&self) -> usize {
        *self.desk.declined.borrow()
    }

    async fn declined_at_least(&self, times: usize) {
        let mut declined = self.desk.declined.subscribe();
        declined
            .wait_for(|count| *count >= times)
            .await
            .expect("the desk lives");
    }

    /// Returns once an agent has registered here more than so many times, and how many times that is.
    async fn registered(&self, before: usize) -> usize {
        let mut registered = self.desk.registered.subscribe();
        let all = registered
            .wait_for(|all| all.len() > before)
            .await
            .expect("the desk lives");
        all.len()
    }

    fn member(&self, coordinators: Vec<String>) -> Membership {
        let pki = self.place.path().join("agent");
        Membership {
            coordinators,
            credentials: self.desk.authority.credentials(&pki, AGENT),
            pki,
            name: "app-1".into(),
            announcement: RegisterRequest {
                address: "127.0.0.1:40001".into(),
                ..RegisterRequest::default()
            },
            replaced: watch::Sender::new(0),
        }
    }

    fn settings(&self) -> Settings {
        let pki = self.place.path().join("enrolled");
        let text = format!(
            "name = \"app-1\"\ncoordinators = [\"{}\"]\npki = \"{}\"\n",
            self.address,
            pki.display()
        );
        Settings::parse(&text).expect("settings")
    }

    fn token(&self, secret: &str) -> Token {
        use rollback_proto::identity::fingerprint;
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let ca = CertificateDer::from_pem_slice(self.desk.authority.ca_pem.as_bytes()).expect("PEM");
        Token::parse(&format!("rbt1.app-1.{secret}.{}", fingerprint(&ca))).expect("token")
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// An agent that stays registered until this is dropped.
struct Staying {
    member: Arc<Membership>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Staying {
    fn start(member: Membership) -> Self {
        let (member, stop) = (Arc::new(member), CancellationToken::new());
        let task = tokio::spawn({
            let (member, stop) = (Arc::clone(&member), stop.clone());
            async move { stay_registered(&member, stop).await }
        });
        Self { member, stop, task }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("no panic");
    }
}

/// An address where nobody answers: a port that was just free.
async fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    listener.local_addr().expect("address").to_string()
}

#[tokio::test]
async fn registers_with_the_first_that_answers_and_again_when_it_was_forgotten() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.member(vec![nowhere().await, coordinator.address.clone()]);
    let agent = Staying::start(member);
    let mut registered = coordinator.desk.registered.subscribe();
    registered.wait_for(|all| all.len() == 1).await.expect("registered");
    assert_eq!(registered.borrow()[0].address, "127.0.0.1:40001");
    coordinator
        .desk
        .heartbeats
        .subscribe()
        .wait_for(|count| *count >= 2)
        .await
        .expect("heartbeats");
    assert_eq!(registered.borrow().len(), 1, "a heartbeat is not a registration");
    coordinator.desk.forget.store(1, Ordering::SeqCst);
    registered
        .wait_for(|all| all.len() == 2)
        .await
        .expect("registered again");
    // New credentials: the old connection is given up.
    agent.member.replaced.send_modify(|count| *count += 1);
    registered
        .wait_for(|all| all.len() == 3)
        .await
        .expect("registered over a new connection");
    agent.end().await;
}

#[tokio::test]
async fn follows_the_leader_wherever_the_lead_goes() {
    // The agent is told of the first two; the third is known by the hints of the others alone.
    let [a, b, c] = Coordinator::replicas().await;
    b.leads();
    a.follows(Some(&b.address));
    let agent = Staying::start(a.member(vec![a.address.clone(), b.address.clone()]));
    b.registered(0).await;
    assert_eq!(a.declined(), 1, "it went where it was sent");

    // The leader steps down and knows who leads.
    c.leads();
    b.follows(Some(&c.address));
    let moved = tokio::time::Instant::now();
    c.registered(0).await;
    assert!(moved.elapsed() < Duration::from_secs(1), "{:?}", moved.elapsed());

    // The leader steps down before anybody else leads: it is asked until it knows.
    let before = c.declined();
    c.follows(None);
    c.declined_at_least(before + 3).await;
    a.leads();
    c.follows(Some(&a.address));
    let moved = tokio::time::Instant::now();
    a.registered(0).await;
    assert!(moved.elapsed() < Duration::from_millis(1500), "{:?}", moved.elapsed());

    // The leader's connections are gone, and nobody answers there: the others know who leads now.
    a.stop.cancel();
    b.leads();
    let before = b.desk.registered.borrow().len();
    let moved = tokio::time::Instant::now();
    b.registered(before).await;
    assert!(moved.elapsed() < Duration::from_secs(2), "{:?}", moved.elapsed());
    agent.end().await;
}

/// Three replicas of which the third leads in the end; until then, the first two say this of the leader.
async fn asks_with_pauses(hints: impl Fn(&[Coordinator; 3]) -> (String, String)) {
    let replicas = Coordinator::replicas().await;
    let (of_a, of_b) = hints(&replicas);
    let [a, b, c] = &replicas;
    a.follows(Some(&of_a));
    b.follows(Some(&of_b));
    let begun = tokio::time::Instant::now();
    let agent = Staying::start(a.member([a, b, c].map(|replica| replica.address.clone()).to_vec()));
    c.declined_at_least(1).await;
    let (asked, time) = (a.declined() + b.declined() + c.declined(), begun.elapsed());
    assert!(asked >= 3, "{asked}");
    assert!(
        asked < 10 + 10 * time.as_secs() as usize,
        "{asked} attempts in {time:?}"
    );
    c.leads();
    c.registered(0).await;
    agent.end().await;
}

#[tokio::test]
async fn hints_to_nowhere_or_to_each_other_do_not_spin_and_do_not_keep_from_the_leader() {
    let nowhere = nowhere().await;
    tokio::join!(
        asks_with_pauses(|[a, b, _]| (b.address.clone(), a.address.clone())),
        asks_with_pauses(|[a, b, _]| (a.address.clone(), b.address.clone())),
        asks_with_pauses(|_| (nowhere.clone(), nowhere.clone())),
    );
}

#[tokio::test]
async fn a_hint_to_somebody_who_is_no_coordinator_of_ours_is_not_believed() {
    let [ours] = Coordinator::replicas().await;
    let theirs = Coordinator::start().await;
    ours.follows(Some(&theirs.address));
    let agent = Staying::start(ours.member(vec![ours.address.clone()]));
    ours.declined_at_least(3).await;
    assert!(theirs.desk.registered.borrow().is_empty());
    ours.leads();
    ours.registered(0).await;
    agent.end().await;
}

#[tokio::test]
async fn renews_after_half_of_the_life_and_puts_the_new_pair_in_force() {
    let coordinator = Coordinator::start().await;
    // One that issues for somebody else is not the last word, and nobody answers at the other.
    let confused = Coordinator::of(Arc::clone(&coordinator.desk.authority)).await;
    *confused.desk.issue_for.lock().expect("uri") = "spiffe://rollback.local/agent/app-9";
    let asked = vec![nowhere().await, confused.address.clone(), coordinator.address.clone()];
    let mut member = coordinator.member(asked);
    let old = pki::NewKey::generate("app-1").expect("key");
    let certificate = coordinator.desk.authority.certify_between(&old.csr_pem, AGENT, -40, 32);
    old.install(&member.pki, &certificate, &coordinator.desk.authority.ca_pem)
        .expect("install");
    member.credentials = Arc::new(Arc::new(pki::load(&member.pki, "app-1").expect("credentials")).into());
    let first = member.credentials.load().us.serial.clone();
    let member = Arc::new(member);
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let (member, stop) = (Arc::clone(&member), stop.clone());
        async move { renew_in_time(&member, stop).await }
    });
    member
        .replaced
        .subscribe()
        .wait_for(|count| *count == 1)
        .await
        .expect("renewed");
    let renewed = coordinator.desk.renewed.borrow().clone();
    assert_eq!(renewed.len(), 1);
    assert_eq!(
        (renewed[0].serial.as_str(), renewed[0].identity.to_string().as_str()),
        (first.as_str(), AGENT)
    );
    let now = member.credentials.load().us.serial.clone();
    assert_ne!(now, first);
    assert_eq!(pki::load(&member.pki, "app-1").expect("on the disk").us.serial, now);
    stop.cancel();
    task.await.expect("no panic");
}

#[tokio::test]
async fn a_token_becomes_credentials_once_and_only_for_this_host() {
    let coordinator = Coordinator::start().await;
    let settings = coordinator.settings();
    let here = [coordinator.address.clone()];
    let asked = [nowhere().await, coordinator.address.clone()];
    let peer = enroll(&settings, &asked, &coordinator.token("00ff"))
        .await
        .expect("enrolled");
    assert_eq!(peer.identity.to_string(), AGENT);
    assert_eq!(
        pki::load(&settings.pki, "app-1").expect("credentials").us.serial,
        peer.serial
    );

    let used = enroll(&settings, &here, &coordinator.token("11ff")).await;
    assert_eq!(used.expect_err("refused").code, Code::BadToken);

    let other = Settings {
        name: "app-2".into(),
        ..settings.clone()
    };
    let elsewhere = enroll(&other, &here, &coordinator.token("00ff")).await;
    assert_eq!(elsewhere.expect_err("refused").code, Code::BadToken);

    *coordinator.desk.issue_for.lock().expect("uri") = "spiffe://rollback.local/agent/app-9";
    let wrong = enroll(&settings, &here, &coordinator.token("00ff")).await;
    assert_eq!(wrong.expect_err("refused").code, Code::BadCredentials);
    assert_eq!(
        pki::load(&settings.pki, "app-1").expect("credentials").us.serial,
        peer.serial,
        "nothing was replaced"
    );
}

#[tokio::test]
async fn a_coordinator_of_another_ca_gets_no_token() {
    let (ours, theirs) = (Coordinator::start().await, Coordinator::start().await);
    let there = [theirs.address.clone()];
    let result = enroll(&ours.settings(), &there, &ours.token("00ff")).await;
    assert_eq!(result.expect_err("refused").code, Code::WrongPeer);
}

/// At every registration it is told again; people read of it once, and when it is over.
#[test]
fn what_is_awaited_is_said_once_for_each_change() {
    let awaited = |version: &str| Awaited {
        component: "api".to_owned(),
        revision: Some(rollback_proto::v1::Revision {
            version: version.to_owned(),
            digest: version.to_owned(),
        }),
        ..Awaited::default()
    };
    let mut expectation = Expectation::default();
    let told = [
        vec![],
        vec![awaited("v2")],
        vec![awaited("v2")],
        vec![awaited("v1")],
        vec![],
        vec![],
    ];
    let news: Vec<bool> = told.into_iter().map(|t| expectation.told(t)).collect();
    assert_eq!(news, [false, true, false, true, true, false]);
}
