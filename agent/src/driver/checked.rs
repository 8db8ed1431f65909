//! A driver with the checks that the configuration adds to its component: `verify` succeeds only when they pass, too.
//!
//! Everything else is the inner driver's. Checks are not asked by `start` and `observe`: what a component itself needs in
//! order to count as healthy is its `health`; checks say whether what was put together works.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use rollback_proto::problem::{Code, Problem};

use super::{Done, Driver, DriverInfo, Failure, Finding, Observation, Probe, Retained};
use crate::check::HealthCheck;
use crate::step::StepContext;

/// A check of `[[check]]`.
#[derive(Clone, Debug)]
pub struct NamedCheck {
    pub name: String,
    /// The component whose verification asks it.
    pub component: String,
    pub check: HealthCheck,
}

#[derive(Debug)]
pub struct Checked {
    inner: Arc<dyn Driver>,
    checks: Vec<NamedCheck>,
}

impl Checked {
    pub fn new(inner: Arc<dyn Driver>, checks: Vec<NamedCheck>) -> Self {
        Self { inner, checks }
    }

    async fn ask(&self, step: &StepContext) -> Result<(), Failure> {
        for NamedCheck { name, check, .. } in &self.checks {
            let deadline = step.deadline.min(Instant::now() + check.within());
            let asked = step.operation("check", check.wait(None, deadline)).await;
            asked.map_err(|problem| {
                let message = format!("check {name} of {}: {}", step.component, problem.message);
                Problem::new(Code::CheckFailed, message)
            })?;
        }
        Ok(())
    }
}

#[async_trait]
impl Driver for Checked {
    async fn verify(&self, step: &StepContext) -> Result<Done, Failure> {
        let done = self.inner.verify(step).await?;
        self.ask(step).await?;
        let summary = format!("{}; checks passed: {}", done.summary, self.checks.len());
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
