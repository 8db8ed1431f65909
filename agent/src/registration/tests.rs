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
    authority: Authority,
    registered: watch::Sender<Vec<RegisterRequest>>,
    heartbeats: watch::Sender<usize>,
    /// Heartbeats that are answered with "register again".
    forget: AtomicUsize,
    renewed: watch::Sender<Vec<Peer>>,
    /// Whom certificates are issued for.
    issue_for: Mutex<&'static str>,
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
        self.0
            .registered
            .send_modify(|registered| registered.push(request.into_inner()));
        let heartbeat_interval = prost_types::Duration::try_from(Duration::from_millis(50)).ok();
        Ok(Response::new(RegisterResponse { heartbeat_interval }))
    }

    async fn heartbeat(&self, _: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
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
        let place = tempfile::tempdir().expect("temporary directory");
        let authority = Authority::new();
        let credentials = authority.credentials(&place.path().join("coordinator"), COORDINATOR);
        let desk = Arc::new(Desk {
            authority,
            registered: watch::Sender::new(Vec::new()),
            heartbeats: watch::Sender::new(0),
            forget: AtomicUsize::new(0),
            renewed: watch::Sender::new(Vec::new()),
            issue_for: Mutex::new(AGENT),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let stop = CancellationToken::new();
        let connections = incoming(listener, credentials, ClientCertificate::Optional, stop.clone());
        let service = EnrollmentServer::new(Clerk(Arc::clone(&desk)));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(connections),
        );
        Self {
            desk,
            address,
            place,
            stop,
        }
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

#[tokio::test]
async fn registers_with_the_first_that_answers_and_again_when_it_was_forgotten() {
    let coordinator = Coordinator::start().await;
    // A port that was just free: nobody answers there.
    let dead = TcpListener::bind("127.0.0.1:0")
        .await
        .and_then(|l| l.local_addr())
        .expect("address")
        .to_string();
    let member = Arc::new(coordinator.member(vec![dead, coordinator.address.clone()]));
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let (member, stop) = (Arc::clone(&member), stop.clone());
        async move { stay_registered(&member, stop).await }
    });
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
    member.replaced.send_modify(|count| *count += 1);
    registered
        .wait_for(|all| all.len() == 3)
        .await
        .expect("registered over a new connection");
    stop.cancel();
    task.await.expect("no panic");
}

#[tokio::test]
async fn renews_after_half_of_the_life_and_puts_the_new_pair_in_force() {
    let coordinator = Coordinator::start().await;
    let mut member = coordinator.member(vec![coordinator.address.clone()]);
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
    let peer = enroll(&settings, &coordinator.address, &coordinator.token("00ff"))
        .await
        .expect("enrolled");
    assert_eq!(peer.identity.to_string(), AGENT);
    assert_eq!(
        pki::load(&settings.pki, "app-1").expect("credentials").us.serial,
        peer.serial
    );

    let used = enroll(&settings, &coordinator.address, &coordinator.token("11ff")).await;
    assert_eq!(used.expect_err("refused").code, Code::BadToken);

    let other = Settings {
        name: "app-2".into(),
        ..settings.clone()
    };
    let elsewhere = enroll(&other, &coordinator.address, &coordinator.token("00ff")).await;
    assert_eq!(elsewhere.expect_err("refused").code, Code::BadToken);

    *coordinator.desk.issue_for.lock().expect("uri") = "spiffe://rollback.local/agent/app-9";
    let wrong = enroll(&settings, &coordinator.address, &coordinator.token("00ff")).await;
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
    let result = enroll(&ours.settings(), &theirs.address, &ours.token("00ff")).await;
    assert_eq!(result.expect_err("refused").code, Code::WrongPeer);
}
