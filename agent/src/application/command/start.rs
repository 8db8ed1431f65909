//! Starting: run the vector, then believe only what the running process shows.

use std::path::Path;
use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};

use super::Command;
use crate::application::evidence::{expect_environment, expect_release, log_tail, quoting, runs_in, variables};
use crate::driver::Failure;
use crate::processes::{self, Identity};
use crate::program::Program;
use crate::step::StepContext;

/// How often the PID file is looked for.
const PID_POLL: Duration = Duration::from_millis(2);

/// How long an application may take to write its PID file when no health check says how long it may take to start.
const WITHOUT_HEALTH: Duration = Duration::from_secs(10);

/// How long a healthy process may look wrong in `/proc` before it counts.
const SETTLING: Duration = Duration::from_millis(300);

/// Kept free before the step's deadline for stopping what did not become healthy.
const CLEAN_UP: Duration = Duration::from_secs(5);

impl Command {
    /// Starts the application in `release` and waits until it is healthy at `version`; succeeds when it runs so already.
    pub async fn start(&self, step: &StepContext, release: &Path, version: &str) -> Result<String, Failure> {
        // A third of the time is enough for what went wrong even in a short step.
        let deadline = step.deadline - CLEAN_UP.min(step.time_left() / 3);
        if self.needs_start(release, version).await? {
            if let Err(problem) = self.run_start(step, deadline).await {
                return Err(self.clean_up(step, problem).await);
            }
        } else {
            step.progress("the process runs already");
        }
        match self.become_healthy(step, release, version, deadline).await {
            Ok(detail) => Ok(detail),
            Err(problem) => Err(self.clean_up(step, problem).await),
        }
    }

    /// A process that an earlier, killed attempt started in the right release is not started twice.
    async fn needs_start(&self, release: &Path, version: &str) -> Result<bool, Problem> {
        match self.running()? {
            Some(process) if runs_in(process, release) => Ok(false),
            Some(process) if self.config.verify_cwd => Err(Problem::new(
                Code::StillRunning,
                format!(
                    "process {} runs, but not in {}: stop it first",
                    process.pid,
                    release.display()
                ),
            )),
            Some(_) => Ok(false),
            None if self.has_pid_file() => Ok(true),
            None => match &self.health {
                Some(health) => Ok(health.once(Some(version)).await.is_err()),
                None => Ok(true),
            },
        }
    }

    async fn run_start(&self, step: &StepContext, deadline: Instant) -> Result<(), Problem> {
        let Some(program) = Program::from_argv(&self.resolved(&self.config.start)) else {
            return Err(Problem::new(Code::BadConfig, "process.start is empty"));
        };
        let mut program = program.cwd(self.cwd()).detached_output();
        for (name, value) in &self.config.env {
            program = program.env(name, value);
        }
        for (name, value) in variables(self.config.env_file.as_deref())?.iter() {
            program = program.env(name, value);
        }
        let limit = deadline.saturating_duration_since(Instant::now());
        step.operation("process_start", program.run(limit))
            .await
            .map(drop)
            .map_err(|e| Problem::from_error(Code::ProgramFailed, "start the application", &e))
    }

    async fn become_healthy(
        &self,
        step: &StepContext,
        release: &Path,
        version: &str,
        deadline: Instant,
    ) -> Result<String, Problem> {
        let within = self
            .health
            .as_ref()
            .map_or(WITHOUT_HEALTH, crate::check::HealthCheck::within);
        let until = deadline.min(Instant::now() + within);
        let process = match self.has_pid_file() {
            true => Some(step.operation("process_appears", self.appears(until)).await?),
            false => None,
        };
        let detail = match &self.health {
            Some(health) => {
                step.operation("health_check", self.healthy(health, version, process, until))
                    .await?
            }
            None => "no health check".to_owned(),
        };
        let Some(process) = process else { return Ok(detail) };
        let settled = until.min(Instant::now() + SETTLING).max(Instant::now());
        let process = step
            .operation("look_at_process", self.settles(process, release, settled))
            .await?;
        Ok(format!("pid {}, {detail}", process.pid))
    }

    /// A process that replaces itself by another program has no environment for an instant, or the PID file has not
    /// been rewritten yet: one bad look proves nothing.
    async fn settles(&self, process: Identity, release: &Path, until: Instant) -> Result<Identity, Problem> {
        loop {
            let process = self.running()?.unwrap_or(process);
            match self.expect_running_right(process, release) {
                Ok(()) => return Ok(process),
                Err(problem) if Instant::now() >= until => return Err(problem),
                Err(_) => tokio::time::sleep(PID_POLL).await,
            }
        }
    }

    async fn appears(&self, until: Instant) -> Result<Identity, Problem> {
        loop {
            if let Some(process) = self.running()? {
                return Ok(process);
            }
            if Instant::now() >= until {
                let path = self.config.pid_file.as_deref().unwrap_or(Path::new(""));
                return Err(Problem::new(
                    Code::Unhealthy,
                    format!(
                        "no living process in {}: the application did not start or ended at once",
                        path.display()
                    ),
                ));
            }
            tokio::time::sleep(PID_POLL).await;
        }
    }

    /// Waits for the health check, and no longer than the process lives.
    async fn healthy(
        &self,
        health: &crate::check::HealthCheck,
        version: &str,
        process: Option<Identity>,
        until: Instant,
    ) -> Result<String, Problem> {
        let ends = async {
            let Some(mut process) = process else {
                return std::future::pending().await;
            };
            while processes::wait_gone(process, until).await {
                match self.running() {
                    // It replaced itself.
                    Ok(Some(next)) => process = next,
                    Ok(None) | Err(_) => return process.pid,
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            passed = health.wait(Some(version), until) => passed.map(|p| p.detail),
            pid = ends => Err(Problem::new(
                Code::Unhealthy,
                format!("process {pid} ended before it was healthy"),
            )),
        }
    }

    /// A 200 proves that somebody answers. That it is this release, with this environment, is looked up.
    fn expect_running_right(&self, process: Identity, release: &Path) -> Result<(), Problem> {
        if !processes::alive(process) {
            return Err(Problem::new(
                Code::Unhealthy,
                format!("process {} ended after it was healthy", process.pid),
            ));
        }
        if self.config.verify_cwd {
            expect_release(process, release)?;
        }
        if self.config.verify_env
            && let Some(path) = &self.config.env_file
        {
            expect_environment(process, &variables(Some(path))?)?;
        }
        Ok(())
    }

    /// Is the application as it should be, now? For `verify` and `probe`: nothing is started or stopped.
    pub fn running_right(&self, release: &Path) -> Result<(), Problem> {
        match self.running()? {
            Some(process) => self.expect_running_right(process, release),
            None if self.has_pid_file() => Err(Problem::new(Code::Unhealthy, "the process does not run")),
            None => Ok(()),
        }
    }

    /// Leaves nothing half-started behind, and says why it had to.
    async fn clean_up(&self, step: &StepContext, problem: Problem) -> Failure {
        let tail = self.config.log.as_deref().and_then(log_tail);
        let mut problem = quoting(problem, "its log ends", tail, self.config.env_file.as_deref());
        match self.stop(step, step.deadline).await {
            Ok(_) => Failure::Failed(problem),
            Err(Failure::Failed(stop) | Failure::Indeterminate(stop)) => {
                problem.message = format!("{}; and it could not be stopped: {}", problem.message, stop.message);
                Failure::Indeterminate(problem)
            }
        }
    }
}
