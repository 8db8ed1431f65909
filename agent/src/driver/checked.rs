//! A driver with the checks that the configuration adds to its component: `verify` succeeds only when they pass, too.
//!
//! Everything else is the inner driver's. Checks are not asked by `start` and `observe`: what a component itself needs in
//! order to count as healthy is its `health`; checks say whether what was put together works.
//!
//! A log is judged from the moment of the switch on. So before `switch` and `start` each log's present end is noted in
//! the vault, where it survives a restart of the agent; a repeated `switch` or `start` keeps the note of the first one.
//! Where the component is both switched and started, the start counts. A log that could not be looked at then does not
//! hold the switch up (it may be the way back); its check does not pass afterwards.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};

use super::env_file::variables::Variables;
use super::{Done, Driver, DriverInfo, Failure, Finding, Observation, Probe, Retained, Revision};
use crate::check::log::{LogCheck, Mark};
use crate::check::{Check, redact};
use crate::files;
use crate::step::StepContext;

/// A check of `[[check]]`.
#[derive(Clone, Debug)]
pub struct NamedCheck {
    pub name: String,
    /// The component whose verification asks it.
    pub component: String,
    pub check: Check,
}

/// The end of a log before a move.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    rollback: String,
    action: String,
    /// Digest that the move leads to: an undo is another move.
    to: String,
    /// Or why there is none.
    mark: Result<Mark, String>,
}

impl Note {
    fn is_of(&self, step: &StepContext) -> bool {
        let move_of = (
            step.rollback_id.as_str(),
            step.action.as_str_name(),
            step.to.digest.as_str(),
        );
        (self.rollback.as_str(), self.action.as_str(), self.to.as_str()) == move_of
    }
}

#[derive(Debug)]
pub struct Checked {
    inner: Arc<dyn Driver>,
    checks: Vec<NamedCheck>,
    /// Env files of this host's components. Their values are taken out of what checks quote.
    secrets: Vec<PathBuf>,
}

impl Checked {
    pub fn new(inner: Arc<dyn Driver>, checks: Vec<NamedCheck>) -> Self {
        Self {
            inner,
            checks,
            secrets: Vec::new(),
        }
    }

    #[must_use]
    pub fn hiding(mut self, env_files: Vec<PathBuf>) -> Self {
        self.secrets = env_files;
        self
    }

    async fn ask(&self, step: &StepContext) -> Result<Vec<String>, Failure> {
        let mut unjudged = Vec::new();
        for NamedCheck { name, check, .. } in &self.checks {
            let deadline = step.deadline.min(Instant::now() + check.within());
            let asked = match check {
                Check::Asked(check) => {
                    let asked = step.operation("check", check.wait(None, deadline)).await;
                    asked.map(drop).map_err(|problem| problem.message)
                }
                Check::Log(log) => match note_of(step, name) {
                    Ok(Some(note)) if note.rollback == step.rollback_id => {
                        step.operation("check", read_log(log, note, deadline)).await
                    }
                    // Nothing of this component was moved, so nothing was written since.
                    Ok(_) if step.from == step.to => {
                        unjudged.push(name.as_str());
                        Ok(())
                    }
                    Ok(_) => Err(format!(
                        "{}: nobody noted where it stood before the switch",
                        log.target()
                    )),
                    Err(why) => Err(why),
                },
            };
            asked.map_err(|why| {
                let why = hide(&self.secrets, why);
                Problem::new(Code::CheckFailed, format!("check {name} of {}: {why}", step.component))
            })?;
        }
        Ok(unjudged.into_iter().map(str::to_owned).collect())
    }

    /// Notes where the logs stand, unless this very move has done so before.
    async fn note_logs(&self, step: &StepContext) {
        for NamedCheck { name, check, .. } in &self.checks {
            let Check::Log(log) = check else { continue };
            if matches!(note_of(step, name), Ok(Some(note)) if note.is_of(step)) {
                continue;
            }
            let note = Note {
                rollback: step.rollback_id.clone(),
                action: step.action.as_str_name().to_owned(),
                to: step.to.digest.clone(),
                mark: log.mark().await,
            };
            if let Err(error) = step.vault.pin(&step.component, &note_name(name), &note) {
                tracing::warn!(check = name, %error, "the end of a log could not be noted; its check will not pass");
            }
        }
    }
}

fn note_name(check: &str) -> String {
    format!("log:{check}")
}

fn note_of(step: &StepContext, check: &str) -> Result<Option<Note>, String> {
    let read = step.vault.pinned(&step.component, &note_name(check));
    read.map_err(|e| files::vault_problem(&e).message)
}

async fn read_log(log: &LogCheck, note: Note, deadline: Instant) -> Result<(), String> {
    let mark = note
        .mark
        .map_err(|why| format!("{}: where it stood before the switch is not known: {why}", log.target()))?;
    match tokio::time::timeout_at(deadline.into(), log.ask(&mark)).await {
        Ok(judged) => judged.map(drop),
        Err(_) => Err(format!("{}: it was not read in time", log.target())),
    }
}

/// Takes the values of env files out of a text. Where one is there and cannot be read, nobody knows what must not leave
/// this host: then nothing of the text does.
pub fn hide(env_files: &[PathBuf], mut text: String) -> String {
    for path in env_files {
        match std::fs::read(path) {
            Ok(content) => {
                let variables = Variables::parse(&String::from_utf8_lossy(&content));
                text = redact::hide(text, variables.iter());
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => {
                return format!(
                    "what it says is not quoted: the values that must not be seen are in {}, which cannot be read: {e}",
                    path.display()
                );
            }
        }
    }
    text
}

#[async_trait]
impl Driver for Checked {
    async fn verify(&self, step: &StepContext) -> Result<Done, Failure> {
        let done = self.inner.verify(step).await?;
        let unjudged = self.ask(step).await?;
        let mut summary = format!(
            "{}; checks passed: {}",
            done.summary,
            self.checks.len() - unjudged.len()
        );
        if !unjudged.is_empty() {
            summary = format!(
                "{summary}; nothing was switched, so not judged: {}",
                unjudged.join(", ")
            );
        }
        Ok(Done { summary, ..done })
    }

    fn info(&self) -> DriverInfo {
        self.inner.info()
    }

    async fn observe(&self) -> Result<Observation, Problem> {
        self.inner.observe().await
    }

    async fn retain(&self, release: &str) -> Result<Retained, Problem> {
        self.inner.retain(release).await
    }

    async fn resolve(&self, release: &str) -> Result<Retained, Problem> {
        self.inner.resolve(release).await
    }

    async fn forget(&self, revision: &Revision, kept: &[Revision]) -> Result<String, Problem> {
        self.inner.forget(revision, kept).await
    }

    async fn prepare(&self, step: &StepContext) -> Vec<Finding> {
        self.inner.prepare(step).await
    }

    async fn stage(&self, step: &StepContext) -> Result<Done, Failure> {
        self.inner.stage(step).await
    }

    async fn discard(&self, step: &StepContext) -> Result<Done, Failure> {
        self.inner.discard(step).await
    }

    async fn switch(&self, step: &StepContext) -> Result<Done, Failure> {
        self.note_logs(step).await;
        self.inner.switch(step).await
    }

    async fn snapshot(&self, step: &StepContext) -> Result<Done, Failure> {
        self.inner.snapshot(step).await
    }

    async fn drain(&self, step: &StepContext) -> Result<Done, Failure> {
        self.inner.drain(step).await
    }

    async fn resume(&self, step: &StepContext) -> Result<Done, Failure> {
        self.inner.resume(step).await
    }

    async fn stop(&self, step: &StepContext) -> Result<Done, Failure> {
        self.inner.stop(step).await
    }

    async fn start(&self, step: &StepContext) -> Result<Done, Failure> {
        self.note_logs(step).await;
        self.inner.start(step).await
    }

    async fn finish(&self, step: &StepContext) -> Result<Done, Failure> {
        self.inner.finish(step).await
    }

    async fn probe(&self, step: &StepContext) -> Probe {
        self.inner.probe(step).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rollback_proto::v1::Action;

    use super::*;
    use crate::driver::env_file::EnvFileDriver;
    use crate::step::NoProgress;
    use crate::vault::Vault;

    #[tokio::test]
    async fn verification_needs_the_checks_to_pass() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("env");
        std::fs::write(&path, "A=1\n").expect("write");
        let vault = Arc::new(Vault::open(dir.path().join("vault")).expect("vault"));
        let config = toml::from_str(&format!("path = {path:?}")).expect("configuration");
        let driver = EnvFileDriver::new("env", config, Arc::clone(&vault)).expect("driver");
        let revision = driver.retain("v1").await.expect("retain").revision;

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let check = toml::from_str(&format!("tcp = \"{address}\"\nwithin = \"100ms\"")).expect("check");
        let check = NamedCheck {
            name: "cache".into(),
            component: "env".into(),
            check,
        };
        let checked = Checked::new(Arc::new(driver), vec![check]);
        let step = StepContext::new(
            "r1".into(),
            "env".into(),
            Action::Verify,
            revision.clone(),
            revision.clone(),
            Duration::from_secs(5),
            vault,
            Arc::new(NoProgress),
        );
        let done = checked.verify(&step).await.expect("the check passes");
        assert_eq!(done.observed, Some(revision));
        drop(listener);
        let Err(Failure::Failed(problem)) = checked.verify(&step).await else {
            panic!("nobody listens")
        };
        assert_eq!(problem.code, Code::CheckFailed);
        assert!(problem.message.contains("cache"), "{problem}");
    }
}
