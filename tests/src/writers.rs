//! Users who write all the while, and what they were promised: every write that was acknowledged is noted.
//!
//! One who gets no answer does not know whether the row is there; only what was acknowledged must be found again. Each
//! writer's rows can be told apart by their text, so that nothing counts twice.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::postgres::Postgres;

/// Between two writes of one writer.
const PACE: Duration = Duration::from_millis(10);

const DEADLINE: Duration = Duration::from_secs(2);

/// Writers that run until they are stopped.
#[derive(Debug)]
pub struct Writers {
    stop: watch::Sender<bool>,
    tasks: JoinSet<Written>,
}

/// Texts of rows whose writes were acknowledged.
#[derive(Debug, Default)]
pub struct Written {
    /// Titles of deals.
    pub deals: BTreeSet<String>,
    /// Addresses of users.
    pub users: BTreeSet<String>,
}

impl Writers {
    pub fn new() -> Self {
        Self {
            stop: watch::Sender::new(false),
            tasks: JoinSet::new(),
        }
    }

    /// A user of the application who adds deals over HTTP. `name` tells writers apart.
    pub fn through_the_application(&mut self, name: &str, url: String) -> Result<()> {
        let client = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .timeout(DEADLINE)
            .build()?;
        let (name, stopped) = (name.to_owned(), self.stop.subscribe());
        self.tasks.spawn(async move {
            let mut written = Written::default();
            let mut ticks = Ticks::new(stopped);
            while let Some(n) = ticks.next().await {
                let title = format!("{name}-{n}");
                let body = json!({ "title": title }).to_string();
                let request = client.post(&url).header("content-type", "application/json").body(body);
                if request.send().await.is_ok_and(|answer| answer.status() == 201) {
                    written.deals.insert(title);
                }
            }
            written
        });
        Ok(())
    }

    /// A job that nobody thought of: it adds users in a session of its own, and when it loses the session it connects
    /// again at once.
    pub fn past_the_application(&mut self, name: &str, postgres: &Postgres) {
        let (name, url, stopped) = (name.to_owned(), postgres.url(), self.stop.subscribe());
        self.tasks.spawn(async move {
            let mut written = Written::default();
            let mut session: Option<PgConnection> = None;
            let mut ticks = Ticks::new(stopped);
            while let Some(n) = ticks.next().await {
                let Some(mut c) = (match session.take() {
                    Some(c) => Some(c),
                    None => PgConnection::connect(&url).await.ok(),
                }) else {
                    continue;
                };
                let email = format!("{name}-{n}@zekka.example");
                let insert = sqlx::query("INSERT INTO users (email) VALUES ($1)").bind(&email);
                if insert.execute(&mut c).await.is_ok() {
                    written.users.insert(email);
                    session = Some(c);
                }
            }
            written
        });
    }

    /// Waits for writes under way and says what was acknowledged.
    pub async fn stop(self) -> Written {
        self.stop.send_replace(true);
        let mut all = Written::default();
        for written in self.tasks.join_all().await {
            all.deals.extend(written.deals);
            all.users.extend(written.users);
        }
        all
    }
}

impl Default for Writers {
    fn default() -> Self {
        Self::new()
    }
}

impl Written {
    pub fn len(&self) -> usize {
        self.deals.len() + self.users.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those that are in none of these databases: promises that were broken and not told.
    pub fn in_none_of(&self, found: &[Self]) -> Vec<String> {
        let deals = self
            .deals
            .iter()
            .filter(|d| !found.iter().any(|f| f.deals.contains(*d)));
        let users = self
            .users
            .iter()
            .filter(|u| !found.iter().any(|f| f.users.contains(*u)));
        deals.chain(users).cloned().collect()
    }

    /// Everything that stands in a database.
    pub fn found_in(postgres: &Postgres, database: &str) -> Result<Self> {
        let lines = |sql: &str| -> Result<BTreeSet<String>> {
            Ok(postgres.psql(database, sql)?.lines().map(str::to_owned).collect())
        };
        postgres.while_open(database, || {
            Ok(Self {
                deals: lines("SELECT title FROM deals")?,
                users: lines("SELECT email FROM users")?,
            })
        })
    }
}

/// A steady pace until somebody says stop.
struct Ticks {
    interval: tokio::time::Interval,
    stopped: watch::Receiver<bool>,
    n: u64,
}

impl Ticks {
    fn new(stopped: watch::Receiver<bool>) -> Self {
        let mut interval = tokio::time::interval(PACE);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            interval,
            stopped,
            n: 0,
        }
    }

    async fn next(&mut self) -> Option<u64> {
        tokio::select! {
            biased;
            // The sender is gone only with the writers.
            _ = self.stopped.wait_for(|stop| *stop) => None,
            _ = self.interval.tick() => {
                self.n += 1;
                Some(self.n)
            }
        }
    }
}
