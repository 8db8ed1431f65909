//! A network between a store and its database that fails where it hurts most: at COMMIT.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// A COMMIT does not arrive before the weather changes. To the server, the client stands still.
    HoldCommit,
    /// The connection is cut instead of a COMMIT.
    CutBeforeCommit,
    /// The COMMIT arrives and is made; its answer does not.
    CutAfterCommit,
    /// Everything is taken, and nothing goes on.
    Swallow,
}

pub struct Proxy {
    /// 127.0.0.1:port.
    port: u16,
    weather: Arc<watch::Sender<Weather>>,
    _accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Before the server that listens on this socket.
    pub async fn before(socket: &Path) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listen");
        let port = listener.local_addr().expect("address").port();
        let weather = Arc::new(watch::Sender::new(Weather::Fair));
        let accepting = tokio::spawn(accept(listener, socket.to_owned(), Arc::clone(&weather)));
        Self {
            port,
            weather,
            _accepting: accepting,
        }
    }

    /// For a store, instead of the database's own.
    pub fn url(&self, database: &str) -> String {
        let user = crate::server::USER;
        format!("postgres://{user}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Until a COMMIT has been met by the weather that was set.
    pub async fn met(&self) {
        let changed = self.weather.subscribe().wait_for(|w| *w == Weather::Fair).await.is_ok();
        assert!(changed, "the proxy is there");
    }
}

async fn accept(listener: TcpListener, socket: PathBuf, weather: Arc<watch::Sender<Weather>>) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = UnixStream::connect(&socket).await else {
            continue;
        };
        let weather = Arc::clone(&weather);
        tokio::spawn(async move {
            // Broken connections are what this is for.
            drop(carry(client, server, &weather).await);
        });
    }
}

async fn carry(mut client: TcpStream, mut server: UnixStream, weather: &watch::Sender<Weather>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut changes = weather.subscribe();
    let (mut there, mut back) = (vec![0; 65536], vec![0; 65536]);
    loop {
        let now = *changes.borrow_and_update();
        tokio::select! {
            _ = changes.changed() => {}
            n = client.read(&mut there) => {
                let n = n?;
                if n == 0 {
                    return Ok(());
                }
                let is_commit = there[..n].windows(7).any(|w| w == b"COMMIT\0");
                match now {
                    Weather::Swallow => continue,
                    Weather::HoldCommit if is_commit => {
                        let changed = weather.subscribe().wait_for(|w| *w != Weather::HoldCommit).await.is_ok();
                        assert!(changed, "the sender is ours");
                    }
                    Weather::CutBeforeCommit if is_commit => {
                        weather.send_replace(Weather::Fair);
                        return Ok(());
                    }
                    Weather::CutAfterCommit if is_commit => {
                        server.write_all(&there[..n]).await?;
                        server.read_exact(&mut back[..1]).await?;
                        weather.send_replace(Weather::Fair);
                        return Ok(());
                    }
                    Weather::Fair | Weather::HoldCommit | Weather::CutBeforeCommit | Weather::CutAfterCommit => {}
                }
                server.write_all(&there[..n]).await?;
            }
            n = server.read(&mut back), if now != Weather::Swallow => {
                let n = n?;
                if n == 0 {
                    return Ok(());
                }
                client.write_all(&back[..n]).await?;
            }
        }
    }
}
