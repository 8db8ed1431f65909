//! Who is let in, and who is believed, on real sockets.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rollback_proto::identity::fingerprint;
use rollback_proto::problem::Code;
use rollback_proto::tls::{
    ClientCertificate, Connect, Connection, CredentialError, CredentialFiles, CredentialStore, Credentials, Expect,
    connect, incoming, install_crypto, write_private,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    fingerprint: String,
}

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("key");
    let cert = params.self_signed(&key).expect("sign");
    Ca {
        pem: cert.pem(),
        fingerprint: fingerprint(cert.der()),
        issuer: Issuer::new(params, key),
    }
}

impl Ca {
    fn files(&self, dir: &Path, uri: &str) -> CredentialFiles {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.to_owned().try_into().expect("uri"))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer).expect("sign");
        let name = fingerprint(uri.as_bytes());
        let file = |suffix: &str| dir.join(format!("{name}{}.{suffix}", self.fingerprint));
        let files = CredentialFiles {
            ca: file("ca"),
            certificate: file("pem"),
            key: file("key"),
        };
        std::fs::write(&files.ca, &self.pem).expect("write");
        std::fs::write(&files.certificate, cert.pem()).expect("write");
        write_private(&files.key, key.serialize_pem().as_bytes()).expect("write");
        files
    }

    fn credentials(&self, dir: &Path, uri: &str) -> CredentialStore {
        Credentials::load_store(&self.files(dir, uri)).expect("credentials")
    }
}

/// A server that reports each connection it lets in.
async fn serve(
    credentials: CredentialStore,
    certificate: ClientCertificate,
) -> (SocketAddr, mpsc::Receiver<Connection>, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    let stop = CancellationToken::new();
    let mut accepted = Box::pin(incoming(listener, credentials, certificate, stop.clone()));
    let (tx, rx) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Some(Ok(connection)) = accepted.next().await {
            if tx.send(connection).await.is_err() {
                return;
            }
        }
    });
    (address, rx, stop)
}

fn mutual(credentials: &CredentialStore, expect: Expect) -> Connect {
    Connect::Mutual {
        credentials: Arc::clone(credentials),
        expect,
    }
}

/// Was anybody let in? A refused handshake ends in well under the deadline, since the next connection overtakes it.
async fn let_in(rx: &mut mpsc::Receiver<Connection>) -> bool {
    tokio::time::timeout(Duration::from_secs(2), rx.recv())
        .await
        .is_ok_and(|c| c.is_some())
}

#[tokio::test]
async fn lets_in_its_own_and_nobody_else() {
    install_crypto();
    let dir = tempfile::tempdir().expect("directory");
    let (ours, theirs) = (ca(), ca());
    let agent = ours.credentials(dir.path(), "spiffe://zekka/agent/app-1");
    let coordinator = ours.credentials(dir.path(), "spiffe://zekka/coordinator/c");
    let (address, mut rx, _stop) = serve(agent, ClientCertificate::Required).await;
    let address = address.to_string();
    let expect = || Expect::Agent("app-1".to_owned());

    connect(&address, mutual(&coordinator, expect())).await.expect("ours");
    assert!(let_in(&mut rx).await, "our own coordinator");

    // Another CA's client does not believe the server; made to believe (pinned), it is refused for want of a certificate.
    let stranger = theirs.credentials(dir.path(), "spiffe://zekka/coordinator/c");
    let refused = connect(&address, mutual(&stranger, expect()))
        .await
        .expect_err("another CA");
    assert_eq!(refused.code, Code::WrongPeer, "{refused}");
    // In TLS 1.3 the client learns of the refusal only later, so the server's word counts.
    let _ = connect(
        &address,
        Connect::Pinned {
            ca_fingerprint: ours.fingerprint.clone(),
        },
    )
    .await;
    let nameless = ours.credentials(dir.path(), "spiffe://zekka/agent/app-1");
    assert!(!let_in(&mut rx).await, "without a certificate");

    // A certificate of ours with no identity of ours cannot even be loaded.
    let odd = Credentials::load(&ours.files(dir.path(), "https://example/agent/app-1"));
    assert!(matches!(odd, Err(CredentialError::Identity { .. })));
    drop(nameless);
}

#[tokio::test]
async fn believes_only_the_peer_it_expects() {
    install_crypto();
    let dir = tempfile::tempdir().expect("directory");
    let ours = ca();
    let coordinator = ours.credentials(dir.path(), "spiffe://zekka/coordinator/c");
    for (served, right) in [
        ("spiffe://zekka/agent/app-1", true),
        ("spiffe://zekka/agent/app-2", false),
        ("spiffe://zekka/operator/app-1", false),
        ("spiffe://zekka/coordinator/app-1", false),
        ("spiffe://elsewhere/agent/app-1", false),
    ] {
        let (address, _rx, _stop) = serve(ours.credentials(dir.path(), served), ClientCertificate::Required).await;
        let dialled = connect(
            &address.to_string(),
            mutual(&coordinator, Expect::Agent("app-1".to_owned())),
        )
        .await;
        match dialled {
            Ok(_) => assert!(right, "{served} was believed"),
            Err(problem) => {
                assert!(!right, "{served}: {problem}");
                assert_eq!(problem.code, Code::WrongPeer, "{served}");
            }
        }
    }
}

#[tokio::test]
async fn a_pinned_ca_is_the_only_one_believed() {
    install_crypto();
    let dir = tempfile::tempdir().expect("directory");
    let (ours, theirs) = (ca(), ca());
    let pin = |ca: &Ca| Connect::Pinned {
        ca_fingerprint: ca.fingerprint.clone(),
    };
    let coordinator = ours.credentials(dir.path(), "spiffe://zekka/coordinator/c");
    let (address, mut rx, _stop) = serve(coordinator, ClientCertificate::Optional).await;
    connect(&address.to_string(), pin(&ours)).await.expect("the pinned CA");
    assert!(let_in(&mut rx).await);
    let refused = connect(&address.to_string(), pin(&theirs))
        .await
        .expect_err("another pin");
    assert_eq!(refused.code, Code::WrongPeer);
    // The right CA is not enough: an agent of the fleet must not pass for the coordinator.
    let agent = ours.credentials(dir.path(), "spiffe://zekka/agent/app-1");
    let (address, _rx, _stop) = serve(agent, ClientCertificate::Optional).await;
    connect(&address.to_string(), pin(&ours))
        .await
        .expect_err("an agent as coordinator");
}

#[tokio::test]
async fn a_peer_that_says_nothing_delays_nobody() {
    install_crypto();
    let dir = tempfile::tempdir().expect("directory");
    let ours = ca();
    let agent = ours.credentials(dir.path(), "spiffe://zekka/agent/app-1");
    let coordinator = ours.credentials(dir.path(), "spiffe://zekka/coordinator/c");
    let (address, mut rx, _stop) = serve(agent, ClientCertificate::Required).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(tokio::net::TcpStream::connect(address).await.expect("connect"));
    }
    let begun = std::time::Instant::now();
    connect(
        &address.to_string(),
        mutual(&coordinator, Expect::Agent("app-1".to_owned())),
    )
    .await
    .expect("ours");
    assert!(let_in(&mut rx).await);
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "waited for silent peers: {:?}",
        begun.elapsed()
    );
    drop(silent);
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    install_crypto();
    let dir = tempfile::tempdir().expect("directory");
    let files = ca().files(dir.path(), "spiffe://zekka/agent/app-1");
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o640)).expect("chmod");
    assert!(matches!(
        Credentials::load(&files),
        Err(CredentialError::KeyReadable { mode: 0o640, .. })
    ));
}

#[test]
fn credentials_that_nobody_would_accept_are_recognised_before_they_are_used() {
    install_crypto();
    let dir = tempfile::tempdir().expect("directory");
    let (ours, other) = (ca(), ca());
    let files = ours.files(dir.path(), "spiffe://fleet.test/coordinator/coord-1");
    let good = Credentials::load(&files).expect("credentials");
    assert_eq!(good.ca_fingerprints, [ours.fingerprint.clone()].into());
    good.check_own(SystemTime::now()).expect("accepted");
    let early = good.check_own(SystemTime::UNIX_EPOCH).expect_err("not valid then");
    assert!(matches!(early, CredentialError::Refused(_)), "{early:?}");
    std::fs::write(&files.ca, &other.pem).expect("write");
    let foreign = Credentials::load(&files).expect("credentials");
    let refused = foreign.check_own(SystemTime::now()).expect_err("of another CA");
    assert!(matches!(refused, CredentialError::Refused(_)), "{refused:?}");
}
