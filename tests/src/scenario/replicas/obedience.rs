//! Whom the agents obeyed, from their own records: the ledger (whose intent each step was, and when) and the log (which
//! steps were begun and refused, under which epoch).
//!
//! The ledger has what changes something, for ever; the log has also what only reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use prost::Message as _;
use rollback_proto::v1::ExecuteRequest;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::control::Control;

/// An agent's word for it.
const RECALLED: &str = "a new leader asked what was done here";

/// How far each agent's log was at a moment.
#[derive(Debug)]
pub struct Obedience(BTreeMap<String, (PathBuf, usize)>);

/// What was found.
#[derive(Debug, Default)]
pub struct Obeyed {
    /// Steps that a leader got through which had lost the lead before.
    pub stale: Vec<String>,
    /// Steps of such a leader that were refused.
    pub refused: usize,
}

impl Obedience {
    pub fn mark(control: &Control) -> Result<Self> {
        let mark = |host: &String| {
            let log = control.log(&format!("agent-{host}"));
            let length = std::fs::read(&log).context("read an agent's log")?.len();
            Ok((host.clone(), (log, length)))
        };
        control.agents.keys().map(mark).collect::<Result<_>>().map(Self)
    }

    /// When the first agent was asked, after a moment, what was done there: what a new leader does first.
    pub fn first_recall(&self, after: Duration) -> Result<Option<Duration>> {
        let mut first: Option<Duration> = None;
        for (log, mark) in self.0.values() {
            let text = std::fs::read(log).context("read an agent's log")?;
            let text = String::from_utf8_lossy(&text[*mark..]).into_owned();
            let asked = text.lines().filter(|line| line.contains(RECALLED)).filter_map(time_of);
            first = asked.filter(|at| *at > after).chain(first).min();
        }
        Ok(first)
    }

    /// What was obeyed since the mark after another leader, with this epoch or a higher one, had shown itself: after `led`
    /// in the ledgers, and after a word of it in the logs.
    pub async fn since(&self, control: &Control, epoch: u64, led: Duration) -> Result<Obeyed> {
        let mut obeyed = Obeyed::default();
        for (host, (log, mark)) in &self.0 {
            let text = std::fs::read(log).context("read an agent's log")?;
            in_log(host, &String::from_utf8_lossy(&text[*mark..]), epoch, &mut obeyed);
            let agent = control.agents.get(host).context("the host has an agent")?;
            in_ledger(host, &agent.spec.state().join("ledger.db"), epoch, led, &mut obeyed).await?;
        }
        Ok(obeyed)
    }
}

fn in_log(host: &str, text: &str, epoch: u64, obeyed: &mut Obeyed) {
    let mut seen_newer = false;
    for line in text.lines() {
        let Some(of) = epoch_in(line) else { continue };
        seen_newer |= of >= epoch;
        if of >= epoch {
            continue;
        }
        if line.contains("step refused") {
            obeyed.refused += 1;
        } else if seen_newer && line.contains("step started") {
            obeyed.stale.push(format!("{host} began a step of epoch {of}: {line}"));
        }
    }
}

/// The beginning of a line of a log.
fn time_of(line: &str) -> Option<Duration> {
    let at: Timestamp = line.split_ascii_whitespace().next()?.parse().ok()?;
    u64::try_from(at.as_microsecond()).ok().map(Duration::from_micros)
}

/// `leader.epoch=7` of a span.
fn epoch_in(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("leader.epoch=")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

async fn in_ledger(host: &str, file: &Path, epoch: u64, led: Duration, obeyed: &mut Obeyed) -> Result<()> {
    let options = SqliteConnectOptions::new().filename(file).read_only(true);
    let mut ledger = SqliteConnection::connect_with(&options)
        .await
        .context("open a ledger")?;
    let led = i64::try_from(led.as_millis()).context("a time in milliseconds")?;
    // The clock of both is this host's, in milliseconds: what is of the same one is left to the log.
    let steps: Vec<(String, Vec<u8>)> =
        sqlx::query_as("SELECT rollback_id || '/' || step_id, request FROM steps WHERE intent_at > ?")
            .bind(led)
            .fetch_all(&mut ledger)
            .await
            .context("read the steps of a ledger")?;
    for (step, request) in steps {
        let request = ExecuteRequest::decode(request.as_slice()).context("read a step of a ledger")?;
        if request.epoch < epoch {
            let (of, leader) = (request.epoch, request.leader_id);
            obeyed
                .stale
                .push(format!("{host} took {step} of {leader} with epoch {of}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Obeyed, in_log};

    #[test]
    fn a_step_of_the_old_leader_counts_from_the_first_word_of_the_new_one_on() {
        let line = |epoch: u64, said: &str| format!("INFO step_execute{{leader.epoch={epoch} host=a}}: {said}\n");
        let log = |lines: &[(u64, &str)]| lines.iter().map(|(epoch, said)| line(*epoch, said)).collect::<String>();
        let found = |text: &str| {
            let mut obeyed = Obeyed::default();
            in_log("a", text, 3, &mut obeyed);
            (obeyed.stale.len(), obeyed.refused)
        };
        assert_eq!(
            found(&log(&[(2, "step started"), (3, "step started"), (4, "step started")])),
            (0, 0)
        );
        assert_eq!(found(&log(&[(3, "step started"), (2, "step started")])), (1, 0));
        assert_eq!(
            found(&log(&[(3, "step started"), (2, "step refused problem=old")])),
            (0, 1)
        );
    }
}
