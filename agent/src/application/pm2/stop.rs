//! Stopping: pm2 is asked, its processes are waited for, and those that it has forgotten are ended.

use std::time::Instant;

use rollback_proto::problem::{Code, Problem};

use super::Pm2;
use super::cli::Account;
use super::list::Instance;
use crate::application::ending::{alive, end_all, expect_silence, family, wait_all_gone};
use crate::application::evidence::belongs;
use crate::driver::Failure;
use crate::processes::Identity;
use crate::step::StepContext;

/// What came of asking pm2 once.
enum Stopped {
    /// With what there is to say of it.
    AtRest(String),
    /// It runs again, or is about to.
    Restarted(Problem),
}

/// How often pm2 is asked. One that is asked between the end of a crashing process and its restart says that it has
/// stopped it, and restarts it all the same.
const ATTEMPTS: u32 = 3;

impl Pm2 {
    /// Stops the application; succeeds when it is stopped already. It stays in pm2's list, for people to see.
    pub async fn stop(&self, step: &StepContext, deadline: Instant) -> Result<String, Failure> {
        let mut attempt = 1;
        loop {
            match self.stop_once(step, deadline).await? {
                Stopped::AtRest(what) => return Ok(what),
                Stopped::Restarted(problem) if attempt == ATTEMPTS || Instant::now() >= deadline => {
                    return Err(Failure::Failed(problem));
                }
                Stopped::Restarted(problem) => step.progress(format!("{}; asking again", problem.message)),
            }
            attempt += 1;
        }
    }

    async fn stop_once(&self, step: &StepContext, deadline: Instant) -> Result<Stopped, Failure> {
        let account = self.account().await?;
        let begun = Instant::now();
        let instances = self.instances(&account).await?;
        let orphans = self.orphans(&instances)?;
        // Whoever they started goes with them: a worker that lives on keeps the port, or writes to the database.
        let mains: Vec<Identity> = instances.iter().filter_map(|i| i.process).collect();
        let everybody: Vec<Identity> = mains.iter().chain(&orphans).flat_map(|p| with_family(*p)).collect();
        if instances.iter().any(|i| !i.status.at_rest()) {
            self.ask(step, &account, "stop", &instances, deadline).await?;
            let patience = deadline.min(begun + self.config.kill_after);
            step.operation("process_exit", wait_all_gone(&everybody, patience.min(deadline)))
                .await;
        }
        // pm2 ends whole trees itself. What is left is what it does not know, or cannot end.
        let left = alive(&everybody);
        if let Some(stranger) = mains.iter().find(|p| left.contains(p) && !belongs(**p, &self.root)) {
            return Err(Failure::Failed(Problem::new(
                Code::StillRunning,
                format!(
                    "process {} is still running: it does not look like ours, so it is not killed",
                    stranger.pid
                ),
            )));
        }
        end_all(step, &left).await?;
        let after = self.instances(&account).await?;
        if let Some(instance) = after.iter().find(|i| !i.status.at_rest()) {
            return Ok(Stopped::Restarted(Problem::new(
                Code::StillRunning,
                format!(
                    "{} (pm2 id {}) is {} again after it was stopped",
                    self.config.name, instance.id, instance.status
                ),
            )));
        }
        expect_silence(step, self.health.as_ref(), "pm2").await?;
        Ok(Stopped::AtRest(match (everybody.len(), orphans.len()) {
            (0, _) => "not running".to_owned(),
            (_, 0) => format!("{} stopped in {} ms", self.config.name, begun.elapsed().as_millis()),
            (_, orphans) => format!(
                "{} stopped in {} ms; {orphans} processes that pm2 had forgotten were ended",
                self.config.name,
                begun.elapsed().as_millis()
            ),
        }))
    }

    /// `pm2 VERB 0 1 2`.
    pub(super) async fn ask(
        &self,
        step: &StepContext,
        account: &Option<Account>,
        verb: &str,
        instances: &[Instance],
        until: Instant,
    ) -> Result<(), Problem> {
        let ids: Vec<String> = instances.iter().map(|i| i.id.to_string()).collect();
        let mut args = vec![verb];
        args.extend(ids.iter().map(String::as_str));
        let program = self.program(account.as_ref(), &args);
        step.operation("process_stop", self.run(program, verb, until))
            .await
            .map(drop)
    }
}

fn with_family(process: Identity) -> Vec<Identity> {
    let mut all = vec![process];
    all.extend(family(process));
    all
}
