//! Stopping: ask first, insist after `kill_after`, and believe only `/proc`.

use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};
use rustix::process::Signal;

use super::Command;
use crate::application::ending::{AFTER_SIGNAL, SILENCE_POLL, family};
use crate::application::evidence::belongs;
use crate::driver::Failure;
use crate::processes::{self, Identity};
use crate::program::Program;
use crate::step::StepContext;

impl Command {
    /// Stops the application; succeeds when it is stopped already. Ends before `deadline`.
    pub async fn stop(&self, step: &StepContext, deadline: Instant) -> Result<String, Failure> {
        let Some(main) = self.running()? else {
            return self.stop_unknown(step, deadline).await;
        };
        // Whoever it started goes with it: a worker that lives on keeps the port, or writes to the database.
        let family = family(main);
        let ours = belongs(main, &self.root);
        let begun = Instant::now();
        let patience = deadline.min(begun + self.config.kill_after);
        let asked = self.ask_to_stop(step, main, ours, patience).await;
        if !step
            .operation("process_exit", processes::wait_gone(main, patience))
            .await
        {
            if !ours {
                return Err(still_running(
                    main,
                    &format!("it does not look like ours, so it is not killed{asked}"),
                ));
            }
            step.progress(format!("process {} does not stop by itself", main.pid));
            self.insist(step, main, deadline).await?;
        }
        let left = self.clear_family(step, main, &family, ours, deadline).await?;
        Ok(format!(
            "process {} stopped in {} ms{left}",
            main.pid,
            begun.elapsed().as_millis()
        ))
    }

    /// Runs the stop vector, or sends SIGTERM where there is none. What went wrong counts only if the process stays;
    /// it is returned as the end of a message.
    async fn ask_to_stop(&self, step: &StepContext, main: Identity, ours: bool, patience: Instant) -> String {
        let problem = if self.config.stop.is_empty() {
            if !ours {
                return String::new();
            }
            processes::signal(main, Signal::TERM).err().map(|p| p.message)
        } else {
            self.run_stop(step, patience).await.err()
        };
        problem.map_or(String::new(), |why| format!("; {why}"))
    }

    async fn run_stop(&self, step: &StepContext, until: Instant) -> Result<(), String> {
        let Some(program) = Program::from_argv(&self.resolved(&self.config.stop)) else {
            return Ok(());
        };
        let mut program = program.cwd(self.stop_dir());
        for (name, value) in &self.config.env {
            program = program.env(name, value);
        }
        let limit = until.saturating_duration_since(Instant::now());
        step.operation("process_stop", program.run(limit))
            .await
            .map(drop)
            .map_err(|e| e.to_string())
    }

    /// The release may be gone; stopping must work all the same.
    fn stop_dir(&self) -> &std::path::Path {
        if self.cwd().is_dir() { self.cwd() } else { &self.root }
    }

    /// SIGTERM (unless that was the first thing tried), then SIGKILL to everybody in the process's group.
    async fn insist(&self, step: &StepContext, main: Identity, deadline: Instant) -> Result<(), Failure> {
        if !self.config.stop.is_empty() {
            processes::signal(main, Signal::TERM)?;
            let until = deadline.min(Instant::now() + AFTER_SIGNAL);
            if step.operation("process_exit", processes::wait_gone(main, until)).await {
                return Ok(());
            }
        }
        kill(main)?;
        let until = deadline
            .max(Instant::now() + Duration::from_millis(200))
            .min(Instant::now() + AFTER_SIGNAL);
        if step.operation("process_exit", processes::wait_gone(main, until)).await {
            Ok(())
        } else {
            Err(still_running(main, "not even SIGKILL ended it"))
        }
    }

    async fn clear_family(
        &self,
        step: &StepContext,
        main: Identity,
        family: &[Identity],
        ours: bool,
        deadline: Instant,
    ) -> Result<String, Failure> {
        let alive = |family: &[Identity]| {
            family
                .iter()
                .copied()
                .filter(|p| processes::alive(*p))
                .collect::<Vec<_>>()
        };
        let until = deadline.min(Instant::now() + AFTER_SIGNAL);
        for process in alive(family) {
            step.operation("process_exit", processes::wait_gone(process, until))
                .await;
        }
        let stuck = alive(family);
        for process in &stuck {
            if !ours {
                return Err(still_running(main, &format!("its child {} lives on", process.pid)));
            }
            processes::signal(*process, Signal::KILL)?;
        }
        for process in &stuck {
            if !processes::wait_gone(*process, Instant::now() + AFTER_SIGNAL).await {
                return Err(still_running(main, &format!("its child {} lives on", process.pid)));
            }
        }
        Ok(if stuck.is_empty() {
            String::new()
        } else {
            format!(", {} of its children were killed", stuck.len())
        })
    }

    /// No process is known. Something may be serving all the same: started by hand, or its PID file was lost.
    async fn stop_unknown(&self, step: &StepContext, deadline: Instant) -> Result<String, Failure> {
        let Some(health) = &self.health else {
            return Ok("not running".into());
        };
        if health.once(None).await.is_err() && self.has_pid_file() {
            return Ok("not running".into());
        }
        let until = deadline.min(Instant::now() + self.config.kill_after);
        let asked = self.run_stop(step, until).await;
        let silent = async {
            while health.once(None).await.is_ok() {
                if Instant::now() >= until {
                    return false;
                }
                tokio::time::sleep(SILENCE_POLL).await;
            }
            true
        };
        if step.operation("process_exit", silent).await {
            Ok("stopped: nothing answers the health check".into())
        } else {
            let asked = asked.err().map_or(String::new(), |why| format!("; {why}"));
            Err(Failure::Failed(Problem::new(
                Code::StillRunning,
                format!(
                    "{} is still answered, by a process that no PID file names{asked}",
                    health.target()
                ),
            )))
        }
    }
}

/// The whole group when the process leads one; a group that somebody else leads is not ours to kill.
fn kill(main: Identity) -> Result<(), Problem> {
    if main.group == main.pid
        && processes::alive(main)
        && let Some(group) = rustix::process::Pid::from_raw(main.group)
    {
        // Members that are gone meanwhile are no error; the leader is waited for afterwards.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    processes::signal(main, Signal::KILL)
}

fn still_running(main: Identity, why: &str) -> Failure {
    Failure::Failed(Problem::new(
        Code::StillRunning,
        format!("process {} is still running: {why}", main.pid),
    ))
}
