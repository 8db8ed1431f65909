//! What nginx itself notes of every request: when its answer had been sent, and which servers were asked for it.

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::Nginx;

/// One line for each request; [`Nginx::requests`] reads it.
pub(super) const LOG_FORMAT: &str = "log_format requests '$msec|$status|$upstream_addr|$uri|$pid';\n";

/// A request that users sent through nginx.
#[derive(Clone, Debug)]
pub struct Request {
    /// To the millisecond.
    pub ended: Timestamp,
    pub status: u16,
    /// In the order in which they were asked: a second one means that the first one failed. None, when nginx answered by
    /// itself.
    pub servers: Vec<String>,
    /// Users ask beneath `/api`, and the agent its marker.
    pub path: String,
    /// PID of nginx's worker. A reload gives it new ones.
    pub worker: u32,
}

impl Request {
    /// Did this server, and no other one, have to be asked for it?
    pub fn is_of(&self, server: &str) -> bool {
        self.servers == [server]
    }
}

impl Nginx {
    /// Requests of a site that [`Nginx::write_site`] wrote, in the order in which they ended.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let text = std::fs::read_to_string(self.requests_log()).context("read nginx's log of requests")?;
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| parse(line).with_context(|| format!("read nginx's note {line:?}")))
            .collect()
    }
}

fn parse(line: &str) -> Option<Request> {
    let mut fields = line.split('|');
    let (seconds, millis) = fields.next()?.split_once('.')?;
    let millis = seconds.parse::<i64>().ok()? * 1000 + millis.parse::<i64>().ok()?;
    Some(Request {
        ended: Timestamp::from_millisecond(millis).ok()?,
        status: fields.next()?.parse().ok()?,
        servers: fields
            .next()?
            .split([',', ' '])
            .filter(|server| !matches!(*server, "" | "-" | ":"))
            .map(str::to_owned)
            .collect(),
        path: fields.next()?.to_owned(),
        worker: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_that_was_asked_is_told() {
        let read =
            |line: &str| parse(line).map(|request| (request.ended.as_millisecond(), request.status, request.servers));
        let servers = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let (a, b) = ("127.0.0.1:3001", "127.0.0.1:3002");
        assert_eq!(
            read(&format!("1763780000.012|200|{a}|/api|7")),
            Some((1_763_780_000_012, 200, servers(&[a])))
        );
        assert_eq!(
            read(&format!("1.000|200|{a}, {b}|/api|7")),
            Some((1_000, 200, servers(&[a, b])))
        );
        assert_eq!(read("1.000|503|-|/|7"), Some((1_000, 503, servers(&[]))));
        assert_eq!(read("1.000|200|-|/"), None);
    }
}
