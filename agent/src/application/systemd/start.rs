//! Starting a unit, and not believing that it started.

use std::path::Path;
use std::time::Instant;

use rollback_proto::problem::{Code, Problem};

use super::unit::{Activity, UnitState};
use super::{Systemd, main_process};
use crate::application::evidence::quoting;
use crate::application::staying::{CLEAN_UP, WITHOUT_HEALTH, healthy_and_stable, settles};
use crate::check::HealthCheck;
use crate::driver::Failure;
use crate::processes::Identity;
use crate::step::StepContext;

impl Systemd {
    /// Starts the unit and waits until it is healthy at `version` in `release`; succeeds when it runs so already.
    pub async fn start(&self, step: &StepContext, release: &Path, version: &str) -> Result<String, Failure> {
        // A third of the time is enough for what went wrong even in a short step.
        let deadline = step.deadline - CLEAN_UP.min(step.time_left() / 3);
        let state = self.unit.state().await?;
        state.expect_loaded()?;
        let mut restarts = 0;
        if self.expect_right(&state, release).is_ok() {
            // A start that was killed had done its work.
            step.progress(format!("{} runs this release already", state.name));
            restarts = state.restarts;
        } else {
            if !state.at_rest() {
                // An enabled unit that came up with the host, for one. `start` would leave it as it is.
                step.progress(format!(
                    "{} is {}, and not right: it is stopped first",
                    state.name,
                    state.phrase()
                ));
                self.stop(step, deadline).await?;
            }
            if let Err(problem) = step.operation("process_start", self.bring_up(step)).await {
                return Err(self.clean_up(step, problem).await);
            }
        }
        match self.prove(step, release, version, restarts, deadline).await {
            Ok(detail) => Ok(detail),
            Err(problem) => Err(self.clean_up(step, problem).await),
        }
    }

    async fn bring_up(&self, step: &StepContext) -> Result<(), Problem> {
        // Asked now: an env file or a drop-in may have been switched since the step began.
        if self.unit.state().await?.needs_reload {
            step.progress("unit files changed on disk: systemd reads them again");
            self.unit.reload_files().await?;
        }
        // A unit that crashed a few times is refused ("start request repeated too quickly") until it is forgiven. That
        // fails for one which systemd has dropped from memory, failures included; if it had to succeed, the start says so.
        let _ = self.unit.reset().await;
        self.unit.start().await
    }

    async fn prove(
        &self,
        step: &StepContext,
        release: &Path,
        version: &str,
        restarts: u64,
        deadline: Instant,
    ) -> Result<String, Problem> {
        let within = self.health.as_ref().map_or(WITHOUT_HEALTH, HealthCheck::within);
        let until = deadline.min(Instant::now() + within.max(WITHOUT_HEALTH));
        let process = step.operation("process_appears", self.appears(restarts, until)).await?;
        // What was not started right will not become right: said before anybody waits for its health.
        step.operation(
            "look_at_process",
            settles(|| self.expect_process_right(process, release), deadline),
        )
        .await?;
        let family = [process];
        let proof = healthy_and_stable(&family, self.health.as_ref(), version, self.config.stable_for, deadline);
        let detail = step.operation("health_check", proof).await?;
        let state = self.unit.state().await?;
        self.expect_no_restart(&state, restarts)?;
        let seen = self.expect_right(&state, release)?;
        if seen != process {
            return Err(Problem::new(
                Code::Unhealthy,
                format!(
                    "process {} took the place of {} while it came up",
                    seen.pid, process.pid
                ),
            ));
        }
        Ok(format!("{}, pid {}, {detail}", state.name, process.pid))
    }

    /// Waits for the unit to be active with a main process.
    async fn appears(&self, restarts: u64, until: Instant) -> Result<Identity, Problem> {
        let answer = self
            .unit
            .watch(until, |state| match main_process(state) {
                _ if state.restarts > restarts || state.sub == "auto-restart" => {
                    Some(self.expect_no_restart(state, restarts).and(Err(crashed(state))))
                }
                Some(process) => Some(Ok(process)),
                None if state.at_rest() => Some(Err(crashed(state))),
                None => None,
            })
            .await?;
        match answer {
            Some(answer) => answer,
            None => {
                let state = self.unit.state().await?;
                Err(Problem::new(
                    Code::Unhealthy,
                    format!("{} is still {}", state.name, state.phrase()),
                ))
            }
        }
    }

    /// `Restart=always` makes a crash loop look like a service that has just been started.
    fn expect_no_restart(&self, state: &UnitState, restarts: u64) -> Result<(), Problem> {
        match state.restarts.checked_sub(restarts) {
            Some(0) | None => Ok(()),
            Some(times) => Err(Problem::new(
                Code::Unhealthy,
                format!(
                    "{}: systemd had to restart it {times} times while it came up",
                    state.name
                ),
            )),
        }
    }

    /// Leaves nothing half-started behind, and says why it had to.
    async fn clean_up(&self, step: &StepContext, problem: Problem) -> Failure {
        let tail = self.unit.journal().await;
        let mut problem = quoting(problem, "its journal ends", tail, self.config.env_file.as_deref());
        match self.stop(step, step.deadline).await {
            Ok(_) => Failure::Failed(problem),
            Err(Failure::Failed(stop) | Failure::Indeterminate(stop)) => {
                problem.message = format!("{}; and it could not be stopped: {}", problem.message, stop.message);
                Failure::Indeterminate(problem)
            }
        }
    }
}

fn crashed(state: &UnitState) -> Problem {
    let why = match state.active {
        Activity::Failed => format!("it failed ({})", state.result),
        Activity::Inactive => "it ended at once".to_owned(),
        Activity::Active | Activity::Activating | Activity::Deactivating => format!("it ended ({})", state.result),
    };
    Problem::new(Code::Unhealthy, format!("{}: {why}", state.name))
}
