//! What the exit status says. The one place where the numbers are written; scripts depend on them.

use rollback_proto::problem::Code;
use rollback_proto::v1::RollbackState;

/// The exit status of `rollbackctl`.
///
/// `fleet rollback` and `rollback watch` end with [`ExitCode::Done`] only when the target was observed and verified on
/// every host in scope. All other verbs end with it when they did what they were asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// The target is verified, or the question is answered.
    Done = 0,
    /// An error; also a wrong command line.
    Error = 1,
    /// `fleet plan`: the plan has changes.
    HasChanges = 2,
    /// Something forbids the rollback (no plan can be made, preflight, consent, hold). Nothing was touched.
    Blocked = 3,
    /// The target was reached, but not on every host.
    Partial = 4,
    /// Undone, aborted or held: the target was not reached.
    NotReached = 5,
    /// Another rollback holds (part of) the scope.
    ScopeHeld = 6,
    /// The rollback goes on, and nobody here waits for its end: `--detach`, Ctrl-C or `--timeout`.
    StillRunning = 7,
}

/// Shown under `rollbackctl --help`; the same list as [`ExitCode`].
pub const HELP: &str = "\
Exit codes:
  0  the target is verified (fleet rollback, rollback watch); done (all other verbs)
  1  error, or a wrong command line
  2  fleet plan: the plan has changes
  3  blocked: no plan can be made, or not the one that was saved; preflight found blockers; nobody
     agreed to a loss of data, or may approve; the release is held or needed; nothing was touched.
     fleet status --gate: closed; fleet readiness, release preflight: the fleet could not go back
  4  partial: the target was not reached on every host
  5  undone, aborted or held: the target was not reached
  6  another rollback holds the scope
  7  started and still running: --detach, Ctrl-C or --timeout";

impl ExitCode {
    pub fn number(self) -> u8 {
        self as u8
    }

    /// How a rollback ended. A state that is no end at all is an error: somebody said "ended" without saying how.
    pub fn of_rollback(state: RollbackState, blocked: bool) -> Self {
        match (state, blocked) {
            (RollbackState::Verified, _) => ExitCode::Done,
            (RollbackState::Undone, true) => ExitCode::Blocked,
            (RollbackState::Undone, false) | (RollbackState::Held, _) => ExitCode::NotReached,
            (RollbackState::Partial, _) => ExitCode::Partial,
            (RollbackState::Unspecified | RollbackState::Running | RollbackState::Undoing, _) => ExitCode::Error,
        }
    }

    /// What a refusal means: the scope is held, nothing may start (no plan, or not the one agreed to), or an error.
    pub fn of_problem(code: Code) -> Self {
        if code == Code::ScopeHeld {
            ExitCode::ScopeHeld
        } else if matches!(
            code,
            Code::Blocked
                | Code::PlanRefused
                | Code::PlanStale
                | Code::ConsentNeeded
                | Code::ApprovalRefused
                | Code::NoWayBack
                | Code::ReleaseHeld
                | Code::ReleasePinned
        ) {
            ExitCode::Blocked
        } else {
            ExitCode::Error
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        code.number().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_verified_target_is_zero() {
        use RollbackState::{Held, Partial, Running, Undoing, Undone, Unspecified, Verified};
        for state in [Unspecified, Running, Undoing, Verified, Undone, Partial, Held] {
            for blocked in [false, true] {
                let code = ExitCode::of_rollback(state, blocked);
                assert_eq!(code == ExitCode::Done, state == Verified, "{state:?} {blocked}");
            }
        }
    }
}
