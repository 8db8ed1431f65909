//! Little HTTP backends that can be stopped at once, and a user who asks 200 times a second.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

/// How long an answer takes: long enough that requests are under way at every instant.
const WORK: Duration = Duration::from_millis(30);

const EVERY: Duration = Duration::from_millis(5);

/// A server that says its name. `/hang` is not answered before [`Backend::release`].
pub struct Backend {
    pub port: u16,
    name: &'static str,
    task: Option<JoinHandle<()>>,
    released: watch::Sender<bool>,
    hanging: watch::Sender<usize>,
}

impl Backend {
    pub async fn start(name: &'static str) -> Self {
        let mut backend = Self {
            port: crate::host::free_port(),
            name,
            task: None,
            released: watch::Sender::new(false),
            hanging: watch::Sender::new(0),
        };
        backend.start_again().await;
        backend
    }

    pub async fn start_again(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.expect("bind");
        let (name, released, hanging) = (self.name, self.released.clone(), self.hanging.clone());
        self.task = Some(tokio::spawn(async move {
            let mut requests = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                requests.spawn(answer(stream, name, released.subscribe(), hanging.clone()));
                while requests.try_join_next().is_some() {}
            }
        }));
    }

    /// As a killed process: the port is closed, and so are connections under way.
    pub async fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            assert!(task.await.expect_err("it never ends by itself").is_cancelled());
        }
    }

    pub async fn has_hanging(&self, count: usize) {
        let mut hanging = self.hanging.subscribe();
        hanging.wait_for(|now| *now >= count).await.expect("we hold the sender");
    }

    /// Everything that hangs is answered.
    pub fn release(&self) {
        self.released.send_replace(true);
    }
}

async fn answer(
    mut stream: TcpStream,
    name: &'static str,
    mut released: watch::Receiver<bool>,
    hanging: watch::Sender<usize>,
) -> Option<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.ok()?;
        request.push(byte);
    }
    if request.starts_with(b"GET /hang") {
        hanging.send_modify(|count| *count += 1);
        released.wait_for(|released| *released).await.ok()?;
    } else {
        tokio::time::sleep(WORK).await;
    }
    let text = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    stream.write_all(text.as_bytes()).await.ok()
}

/// One request on a connection of its own. `None`: it was not answered with 200.
pub async fn ask(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.split_whitespace().nth(1).filter(|status| *status == "200")?;
    Some(body.to_owned())
}

/// A user who never stops asking; requests do not wait for each other.
pub struct Load {
    stop: oneshot::Sender<()>,
    task: JoinHandle<(usize, usize)>,
    pub asked: watch::Receiver<usize>,
}

impl Load {
    pub fn start(port: u16, path: &'static str) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let (count, asked) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut requests = JoinSet::new();
            let mut tick = tokio::time::interval(EVERY);
            let mut failed = 0;
            loop {
                tokio::select! {
                    _ = &mut stopped => break,
                    Some(answer) = requests.join_next() => failed += usize::from(matches!(answer, Ok(None) | Err(_))),
                    _ = tick.tick() => {
                        requests.spawn(ask(port, path));
                        count.send_modify(|asked| *asked += 1);
                    }
                }
            }
            let rest = requests.join_all().await;
            failed += rest.iter().filter(|answer| answer.is_none()).count();
            let asked = *count.borrow();
            (asked, failed)
        });
        Self { stop, task, asked }
    }

    /// Waits until as many more requests were sent.
    pub async fn more(&mut self, count: usize) {
        let until = *self.asked.borrow() + count;
        self.asked.wait_for(|asked| *asked >= until).await.expect("it asks");
    }

    /// How many were asked, and how many failed.
    pub async fn stop(self) -> (usize, usize) {
        self.stop.send(()).expect("it listens until it is stopped");
        self.task.await.expect("load")
    }
}
