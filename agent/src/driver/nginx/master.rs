//! The running nginx: its master, its workers, and what they serve.
//!
//! `nginx -t` and the reload both end with status 0 while a port that the new configuration needs is taken and the old
//! workers go on serving the old configuration. So a reload counts only when (a) workers run that did not run before,
//! (b) no worker from before takes connections any more, and (c) the new marker is served to a fresh connection.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::{Client, Url};
use rollback_proto::problem::{Code, Problem};
use rustix::process::Signal;

use crate::check::http::{bounded_body, root_cause};
use crate::processes::{self, Identity};

/// First pause between two looks; a reload takes some 10 ms.
const FIRST_POLL: Duration = Duration::from_millis(2);
const LONGEST_POLL: Duration = Duration::from_millis(25);

/// Limit for one answer of the marker.
const ANSWER: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct Master {
    pub pid_file: PathBuf,
    pub error_log: PathBuf,
    pub marker: Url,
    pub host: Option<String>,
    pub client: Client,
}

/// Workers of one look.
#[derive(Debug, Default)]
pub struct Workers {
    /// Take connections.
    pub active: Vec<Identity>,
    /// Finish what they have, then go.
    pub leaving: Vec<Identity>,
}

/// What the marker's address answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    pub retry_after: bool,
}

impl Master {
    /// The master process; a PID file that names anything else is stale.
    pub fn process(&self) -> Result<Identity, Problem> {
        let down = |why: String| Problem::new(Code::NginxDown, why);
        let found = processes::from_pid_file(&self.pid_file)?
            .ok_or_else(|| down(format!("no living process in {}", self.pid_file.display())))?;
        match processes::title(found.pid) {
            Some(title) if title.starts_with("nginx: master process") => Ok(found),
            Some(_) | None => Err(down(format!(
                "process {} in {} is not an nginx master",
                found.pid,
                self.pid_file.display()
            ))),
        }
    }

    pub fn workers(&self, master: Identity) -> Workers {
        let mut workers = Workers::default();
        for child in processes::children(master.pid) {
            match processes::title(child.pid) {
                Some(title) if !title.starts_with("nginx: worker process") => {}
                Some(title) if title.contains("shutting down") => workers.leaving.push(child),
                Some(_) => workers.active.push(child),
                // Gone between the two looks.
                None => {}
            }
        }
        workers
    }

    /// Asks by a connection of its own. `path` replaces the marker's.
    pub async fn ask(&self, path: Option<&str>) -> Result<Answer, String> {
        let mut url = self.marker.clone();
        if let Some(path) = path {
            url.set_path(path);
        }
        let mut request = self.client.get(url).header("connection", "close");
        if let Some(host) = &self.host {
            request = request.header("host", host);
        }
        let ask = async {
            let answer = request.send().await.map_err(|e| root_cause(&e))?;
            let status = answer.status().as_u16();
            let retry_after = answer.headers().contains_key("retry-after");
            let body = bounded_body(answer).await?;
            Ok(Answer {
                status,
                body: body.trim().to_owned(),
                retry_after,
            })
        };
        tokio::time::timeout(ANSWER, ask)
            .await
            .unwrap_or_else(|_| Err("no answer".into()))
    }

    /// Is this nonce served? `Err` says what is served instead.
    pub async fn serves(&self, nonce: &str) -> Result<(), String> {
        match self.ask(None).await {
            Ok(answer) if answer.status == 200 && answer.body == nonce => Ok(()),
            Ok(answer) if answer.status == 200 => Err(format!("{} answers for another configuration", self.marker)),
            Ok(answer) => Err(format!("{} answers with status {}", self.marker, answer.status)),
            Err(why) => Err(format!("{}: {why}", self.marker)),
        }
    }

    /// Reloads, and returns once new workers alone serve the configuration with this nonce. The old ones may still be
    /// finishing requests. Workers in `harmless` that do not leave are put up with when the time is over:
    /// they are older than a change that is being taken back, and have the configuration that is wanted.
    pub async fn reload(&self, nonce: &str, until: Instant, harmless: &[Identity]) -> Result<(), Problem> {
        let master = self.process()?;
        let before = self.workers(master);
        let log = LogEnd::of(&self.error_log);
        processes::signal(master, Signal::HUP)?;
        let mut pause = FIRST_POLL;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_POLL);
            let late = Instant::now() >= until;
            let put_up_with = if late { harmless } else { &[] };
            let missing = match self.reloaded(master, &before, put_up_with, nonce).await {
                Ok(()) => return Ok(()),
                Err(missing) => missing,
            };
            if !processes::alive(master) {
                return Err(Problem::new(
                    Code::NginxDown,
                    format!("the master {} ended at the reload", master.pid),
                ));
            }
            let refusal = log.refusal();
            if refusal.is_some() || late {
                let said = refusal
                    .or_else(|| log.last_line())
                    .map_or(String::new(), |l| format!("; nginx says: {l}"));
                return Err(Problem::new(
                    Code::NginxNotServing,
                    format!("after the reload, {missing}{said}"),
                ));
            }
        }
    }

    async fn reloaded(
        &self,
        master: Identity,
        before: &Workers,
        harmless: &[Identity],
        nonce: &str,
    ) -> Result<(), String> {
        let now = self.workers(master);
        let (kept, new): (Vec<_>, Vec<_>) = now.active.iter().partition(|worker| before.active.contains(worker));
        if new.is_empty() {
            return Err("no new worker was started".into());
        }
        let stuck = kept.iter().filter(|worker| !harmless.contains(worker)).count();
        if stuck > 0 {
            return Err(format!(
                "{stuck} workers with the old configuration still take connections"
            ));
        }
        self.serves(nonce).await
    }
}

/// Where the error log ended before a reload, so that only what is said about that reload is read.
struct LogEnd<'a> {
    path: &'a Path,
    size: u64,
}

impl<'a> LogEnd<'a> {
    fn of(path: &'a Path) -> Self {
        Self {
            path,
            size: std::fs::metadata(path).map_or(0, |m| m.len()),
        }
    }

    fn since(&self) -> String {
        use std::io::{Read, Seek, SeekFrom};
        let read = || {
            let mut file = std::fs::File::open(self.path).ok()?;
            file.seek(SeekFrom::Start(self.size)).ok()?;
            let mut said = Vec::new();
            file.take(64 * 1024).read_to_end(&mut said).ok()?;
            Some(String::from_utf8_lossy(&said).into_owned())
        };
        read().unwrap_or_default()
    }

    /// A line by which nginx gave the reload up. A single failed `bind()` is tried again by nginx itself.
    fn refusal(&self) -> Option<String> {
        self.since()
            .lines()
            .find(|l| l.contains("[emerg]") && !l.contains("bind() to"))
            .map(message)
            .map(|last| match self.since().lines().find(|l| l.contains("bind() to")) {
                Some(bind) => format!("{}, {last}", message(bind)),
                None => last,
            })
    }

    fn last_line(&self) -> Option<String> {
        self.since()
            .lines()
            .rfind(|l| {
                ["[error]", "[crit]", "[alert]", "[emerg]"]
                    .iter()
                    .any(|s| l.contains(s))
            })
            .map(message)
    }
}

/// A log line without its time and process, bounded.
fn message(line: &str) -> String {
    let from = line.find('[').unwrap_or(0);
    line[from..].chars().take(300).collect()
}
