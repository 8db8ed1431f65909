//! Stopping a unit: systemd is asked, and its control group is looked at.

use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};

use super::Systemd;
use super::cgroup::members;
use crate::application::ending::{AFTER_SIGNAL, alive, end_all, expect_silence};
use crate::driver::Failure;
use crate::step::StepContext;

impl Systemd {
    /// Stops the unit; succeeds when it is stopped already.
    pub async fn stop(&self, step: &StepContext, deadline: Instant) -> Result<String, Failure> {
        let state = self.unit.state().await?;
        // A masked unit may run all the same, and can be stopped; one that does not exist is a mistake.
        if state.load == "not-found" {
            state.expect_loaded()?;
        }
        let begun = Instant::now();
        let at_rest = state.at_rest();
        if !at_rest {
            step.operation("process_stop", self.unit.stop()).await?;
            self.wait_at_rest(step, begun, deadline).await?;
        }
        // `KillMode=process` and `none` leave workers behind on purpose, with the port or the database.
        let left = members(&state.control_group);
        let killed = end_all(step, &left).await?;
        let after = self.unit.state().await?;
        if !after.at_rest() || !alive(&members(&after.control_group)).is_empty() {
            return Err(Failure::Failed(
                Problem::new(
                    Code::StillRunning,
                    format!("{} is {} again after it was stopped", after.name, after.phrase()),
                )
                .remedy("find out what starts it: systemctl list-dependencies --reverse, timers, sockets"),
            ));
        }
        expect_silence(step, self.health.as_ref(), "systemd").await?;
        Ok(match (at_rest, left.len()) {
            (true, 0) => "not running".to_owned(),
            (_, 0) => format!("{} stopped in {} ms", after.name, begun.elapsed().as_millis()),
            (_, left) => format!(
                "{} stopped in {} ms; {left} processes that it left behind were ended, {killed} of them by force",
                after.name,
                begun.elapsed().as_millis()
            ),
        })
    }

    /// Waits for the unit's own way of stopping, and kills everything in it when that takes too long.
    async fn wait_at_rest(&self, step: &StepContext, begun: Instant, deadline: Instant) -> Result<(), Failure> {
        let patience = deadline.min(begun + self.config.kill_after);
        let at_rest = |until| self.unit.watch(until, |state| state.at_rest().then_some(()));
        if step.operation("process_exit", at_rest(patience)).await?.is_some() {
            return Ok(());
        }
        step.progress("the unit does not stop by itself: everything in it is killed");
        // It may end just now, and then there is nobody to kill: what counts is what is seen afterwards.
        let killed = self.unit.kill().await;
        let until = deadline
            .max(Instant::now() + Duration::from_millis(200))
            .min(Instant::now() + AFTER_SIGNAL);
        if step.operation("process_exit", at_rest(until)).await?.is_some() {
            return Ok(());
        }
        killed?;
        let state = self.unit.state().await?;
        Err(Failure::Failed(Problem::new(
            Code::StillRunning,
            format!("{} is {}: not even SIGKILL ended it", state.name, state.phrase()),
        )))
    }
}
