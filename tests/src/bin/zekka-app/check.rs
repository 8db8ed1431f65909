//! Is the service of this container healthy? Asked from inside, where there is no curl.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Fails unless `/api/health` answers with 200.
pub fn healthy() -> Result<()> {
    let port: u16 = std::env::var("PORT")
        .context("the environment lacks PORT")?
        .parse()
        .context("read PORT")?;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect")?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).context("limit the wait")?;
    stream
        .write_all(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .context("ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    let status = answer.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "the service answers {status}");
    Ok(())
}
