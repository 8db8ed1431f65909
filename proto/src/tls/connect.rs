//! The dialling side.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::credentials::CredentialStore;
use crate::identity::{Peer, PeerRole, fingerprint};
use crate::problem::{Code, Problem};

/// Time for TCP and TLS together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Who must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The agent of this name.
    Agent(String),
    /// Any coordinator of our trust domain.
    Coordinator,
}

/// How to dial.
#[derive(Clone, Debug)]
pub enum Connect {
    /// With our own credentials, which also say whom to trust.
    Mutual {
        credentials: CredentialStore,
        expect: Expect,
    },
    /// Before we have any: trust a coordinator whose chain holds the CA certificate with this SHA-256 fingerprint.
    Pinned { ca_fingerprint: String },
}

/// Opens a connection that re-dials by itself when it breaks. Fails when the first attempt does.
///
/// `address` is `host:port`.
pub async fn connect(address: &str, how: Connect) -> Result<Channel, Problem> {
    let unreachable = |message: String| Problem::new(Code::HostUnreachable, message);
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| Problem::new(Code::BadRequest, format!("{address:?} is not host:port: {e}")))?
        .connect_timeout(CONNECT_DEADLINE)
        .tcp_nodelay(true)
        // A peer whose host died sends no FIN; these pings find out while a step is running.
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    let target = address.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let (how, target) = (how.clone(), target.clone());
        async move { dial(&target, &how).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.map_err(|e| {
        let problem = Problem::from_error(Code::HostUnreachable, format_args!("connect to {address}"), &e);
        match find_refusal(&e) {
            Some(refusal) => Problem::new(Code::WrongPeer, format!("connect to {address}: {refusal}")),
            None => unreachable(problem.message),
        }
    })
}

/// A TLS refusal inside a transport error: worth a code of its own, since dialling again will not help.
fn find_refusal(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(tls) = e.downcast_ref::<rustls::Error>() {
            return Some(tls.to_string());
        }
        // io::Error hides its payload from source().
        if let Some(inner) = e.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(tls) = inner.downcast_ref::<rustls::Error>()
        {
            return Some(tls.to_string());
        }
        cause = e.source();
    }
    None
}

async fn dial(address: &str, how: &Connect) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let config = client_config(how).map_err(io::Error::other)?;
    let attempt = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // The name is only there because the protocol wants one; identity is the SPIFFE id.
        let name = ServerName::try_from("rollback.invalid").map_err(io::Error::other)?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    tokio::time::timeout(CONNECT_DEADLINE, attempt)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn client_config(how: &Connect) -> Result<ClientConfig, rustls::Error> {
    let verifier = Arc::new(SpiffeVerifier {
        trust: match how {
            Connect::Mutual { credentials, expect } => {
                let credentials = credentials.load();
                Trust::Roots {
                    roots: Arc::clone(&credentials.roots),
                    domain: credentials.us.identity.trust_domain.clone(),
                    expect: expect.clone(),
                }
            }
            Connect::Pinned { ca_fingerprint } => Trust::Pinned(ca_fingerprint.to_ascii_lowercase()),
        },
        provider: Arc::new(rustls::crypto::ring::default_provider()),
    });
    let builder = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match how {
        Connect::Mutual { credentials, .. } => {
            let credentials = credentials.load();
            builder.with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())?
        }
        Connect::Pinned { .. } => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

#[derive(Debug)]
enum Trust {
    Roots {
        roots: Arc<RootCertStore>,
        domain: String,
        expect: Expect,
    },
    Pinned(String),
}

/// Verifies the chain with webpki and then the SPIFFE id, in place of the host name.
#[derive(Debug)]
struct SpiffeVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl SpiffeVerifier {
    fn verify_chain(
        &self,
        roots: &Arc<RootCertStore>,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
    }
}

fn refuse(why: String) -> rustls::Error {
    rustls::Error::General(why)
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let peer = || Peer::from_der(leaf).map_err(|e| refuse(format!("the peer has no identity of ours: {e}")));
        match &self.trust {
            Trust::Roots { roots, domain, expect } => {
                self.verify_chain(roots, leaf, intermediates, now)?;
                let id = peer()?.identity;
                let right = &id.trust_domain == domain
                    && match expect {
                        Expect::Agent(name) => id.role == PeerRole::Agent && &id.name == name,
                        Expect::Coordinator => id.role == PeerRole::Coordinator,
                    };
                if !right {
                    return Err(refuse(format!("the peer is {id}, expected was {expect:?} of {domain}")));
                }
            }
            Trust::Pinned(pin) => {
                let ca = intermediates
                    .iter()
                    .find(|cert| &fingerprint(cert) == pin)
                    .ok_or_else(|| {
                        refuse("the server's chain does not hold the CA with the pinned fingerprint".to_owned())
                    })?;
                let mut roots = RootCertStore::empty();
                roots.add(ca.clone().into_owned())?;
                self.verify_chain(&Arc::new(roots), leaf, intermediates, now)?;
                if peer()?.identity.role != PeerRole::Coordinator {
                    return Err(rustls::Error::InvalidCertificate(
                        CertificateError::ApplicationVerificationFailure,
                    ));
                }
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refuse("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
