//! gRPC over the simulated network: connections that are accepted, and connections that are dialled. Without TLS: who is
//! who is tested elsewhere, and encryption would draw from the kernel what a seed cannot give.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::Stream;
use hyper_util::rt::TokioIo;
use rollback_coordinator::inventory::Dial;
use rollback_proto::identity::{Identity, Peer, PeerRole};
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::PeerInfo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};
use turmoil::net::{TcpListener, TcpStream};

use crate::seed::PORT;

pub const TRUST_DOMAIN: &str = "simulation";

/// As the product dials.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// A connection that was accepted, from an operator as far as anybody can tell.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
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

pub fn operator() -> Peer {
    Peer {
        identity: Identity::new(TRUST_DOMAIN, PeerRole::Operator, "alice"),
        serial: "01".to_owned(),
        expires: SystemTime::now() + Duration::from_secs(365 * 24 * 3600),
    }
}

/// Connections to this host.
pub async fn listen() -> io::Result<impl Stream<Item = io::Result<Connection>>> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    Ok(futures::stream::unfold(listener, |listener| async move {
        let accepted = listener
            .accept()
            .await
            .map(|(stream, address): (TcpStream, SocketAddr)| Connection {
                stream,
                info: PeerInfo {
                    peer: Some(operator()),
                    address,
                },
            });
        Some((accepted, listener))
    }))
}

/// A connection to host:port, with the settings of the product's own.
pub async fn connect(address: &str) -> Result<Channel, Problem> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| Problem::new(Code::BadRequest, format!("{address:?} is not host:port: {e}")))?
        .connect_timeout(CONNECT_DEADLINE)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    let target = address.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let target = target.clone();
        async move {
            let connected = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(target)).await;
            connected
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
                .map(TokioIo::new)
        }
    });
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|e| Problem::from_error(Code::HostUnreachable, format_args!("connect to {address}"), &e))
}

/// How simulated coordinators dial agents.
#[derive(Debug)]
pub struct Plain;

#[async_trait]
impl Dial for Plain {
    async fn dial(&self, _name: &str, address: &str) -> Result<Channel, Problem> {
        connect(address).await
    }
}
