//! The accepting side.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::credentials::{CredentialStore, Credentials};
use crate::identity::Peer;

/// A peer that has not finished its handshake by then is cut off.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Handshakes at once; more wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 256;

/// Must a client show a certificate?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    Required,
    /// For the coordinator: a host that enrolls has none yet. What such a caller may do is the authority table's matter.
    Optional,
}

/// What a handler can ask of its connection (`request.extensions().get::<PeerInfo>()`).
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// `None`: the client showed no certificate.
    pub peer: Option<Peer>,
    pub address: SocketAddr,
}

/// An accepted connection.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    info: PeerInfo,
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts until `stop` is cancelled. The stream ends then; connections that were handed out live on.
pub fn incoming(
    listener: TcpListener,
    credentials: CredentialStore,
    certificate: ClientCertificate,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    // Finished handshakes wait here only while the server polls something else.
    let (tx, rx) = mpsc::channel(64);
    tokio::spawn(accept_loop(listener, credentials, certificate, stop, tx));
    ReceiverStream::new(rx)
}

async fn accept_loop(
    listener: TcpListener,
    credentials: CredentialStore,
    certificate: ClientCertificate,
    stop: CancellationToken,
    tx: mpsc::Sender<io::Result<Connection>>,
) {
    let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let handshakes = tokio_util::task::TaskTracker::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a connection that died in the queue. Neither is a reason to stop.
                tracing::warn!(%error, "accept connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (tx, credentials) = (tx.clone(), credentials.load_full());
        handshakes.spawn(async move {
            match tokio::time::timeout(
                HANDSHAKE_DEADLINE,
                handshake(stream, address, &credentials, certificate),
            )
            .await
            {
                // The receiver is gone when the server stops.
                Ok(Ok(connection)) => drop(tx.send(Ok(connection)).await),
                Ok(Err(error)) => tracing::info!(%address, %error, "refused a connection"),
                Err(_) => tracing::info!(%address, "refused a connection: the handshake took too long"),
            }
            drop(slot);
        });
    }
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    credentials: &Credentials,
    certificate: ClientCertificate,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let config = server_config(credentials, certificate).map_err(io::Error::other)?;
    let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
    let peer = match stream.get_ref().1.peer_certificates() {
        Some([leaf, ..]) => Some(Peer::from_der(leaf).map_err(io::Error::other)?),
        Some([]) | None => None,
    };
    Ok(Connection {
        stream,
        info: PeerInfo { peer, address },
    })
}

fn server_config(
    credentials: &Credentials,
    certificate: ClientCertificate,
) -> Result<ServerConfig, Box<dyn std::error::Error + Send + Sync>> {
    let verifier = WebPkiClientVerifier::builder(Arc::clone(&credentials.roots));
    let verifier = match certificate {
        ClientCertificate::Required => verifier.build()?,
        ClientCertificate::Optional => verifier.allow_unauthenticated().build()?,
    };
    let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.chain.clone(), credentials.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}
