//! Making sure that processes are gone: whoever a manager has let go is waited for, then ended with force.
//!
//! Only processes that the caller knows to be the application's are given to [`end_all`].

use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};
use rustix::process::Signal;

use crate::check::HealthCheck;
use crate::driver::Failure;
use crate::processes::{self, Identity};
use crate::step::StepContext;

/// How long a process may take to react to a signal before the next stronger one.
pub const AFTER_SIGNAL: Duration = Duration::from_secs(2);

/// How often the health check is asked whether nobody answers any more.
pub const SILENCE_POLL: Duration = Duration::from_millis(20);

/// Everybody who descends from a process or is in the group that it leads.
pub fn family(main: Identity) -> Vec<Identity> {
    let mut family: Vec<Identity> = Vec::new();
    let mut pending = vec![main.pid];
    while let Some(pid) = pending.pop() {
        for child in processes::children(pid) {
            if !family.contains(&child) {
                family.push(child);
                pending.push(child.pid);
            }
        }
    }
    if main.group == main.pid {
        for member in processes::group_members(main.group) {
            if member.pid != main.pid && !family.contains(&member) {
                family.push(member);
            }
        }
    }
    family
}

/// Those of them that live.
pub fn alive(processes: &[Identity]) -> Vec<Identity> {
    processes.iter().copied().filter(|p| processes::alive(*p)).collect()
}

/// Waits until none of them lives; `false` when the time is over first.
pub async fn wait_all_gone(processes: &[Identity], until: Instant) -> bool {
    for process in processes {
        if !processes::wait_gone(*process, until).await {
            return false;
        }
    }
    true
}

/// Ends all of them: SIGTERM, and SIGKILL for those that do not react. Answers with how many had to be killed.
pub async fn end_all(step: &StepContext, processes: &[Identity]) -> Result<usize, Failure> {
    let left = alive(processes);
    for process in &left {
        processes::signal(*process, Signal::TERM)?;
    }
    let until = step.deadline.min(Instant::now() + AFTER_SIGNAL);
    step.operation("process_exit", wait_all_gone(&left, until)).await;
    let stuck = alive(&left);
    for process in &stuck {
        processes::signal(*process, Signal::KILL)?;
    }
    // Waiting for SIGKILL costs an instant, or is what there is to report, whatever the deadline says.
    let until = Instant::now() + AFTER_SIGNAL;
    step.operation("process_exit", wait_all_gone(&stuck, until)).await;
    match alive(&stuck).first() {
        None => Ok(stuck.len()),
        Some(process) => Err(Failure::Failed(Problem::new(
            Code::StillRunning,
            format!("process {} is still running: not even SIGKILL ended it", process.pid),
        ))),
    }
}

/// Nothing answers the health check any more. Somebody who does was started by hand, or by another manager, and would
/// keep the port and go on writing to the database.
pub async fn expect_silence(step: &StepContext, health: Option<&HealthCheck>, manager: &str) -> Result<(), Failure> {
    let Some(health) = health else { return Ok(()) };
    let until = step.deadline.min(Instant::now() + AFTER_SIGNAL);
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
        return Ok(());
    }
    Err(Failure::Failed(
        Problem::new(
            Code::StillRunning,
            format!(
                "{} is still answered, by a process that {manager} does not know",
                health.target()
            ),
        )
        .remedy("find it (ss -ltnp) and stop it by hand"),
    ))
}
