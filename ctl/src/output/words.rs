//! The words for the wire's closed sets. A value that this version does not know reads "unknown".

use rollback_proto::v1::{Action, DatabaseChoice, Health, Role, RollbackState, RollbackSummary, Severity};

use super::paint::Tone;

pub fn role(value: i32) -> &'static str {
    match Role::try_from(value) {
        Ok(Role::Database) => "database",
        Ok(Role::Config) => "config",
        Ok(Role::App) => "app",
        Ok(Role::Proxy) => "proxy",
        Ok(Role::Unspecified) | Err(_) => "unknown",
    }
}

pub fn action(value: i32) -> &'static str {
    match Action::try_from(value) {
        Ok(Action::Prepare) => "prepare",
        Ok(Action::Stage) => "stage",
        Ok(Action::Discard) => "discard",
        Ok(Action::Snapshot) => "snapshot",
        Ok(Action::Drain) => "drain",
        Ok(Action::Resume) => "resume",
        Ok(Action::Stop) => "stop",
        Ok(Action::Start) => "start",
        Ok(Action::Switch) => "switch",
        Ok(Action::Verify) => "verify",
        Ok(Action::Finish) => "finish",
        Ok(Action::Unspecified) | Err(_) => "unknown",
    }
}

/// How databases go back, as it is typed.
pub fn database(value: i32) -> &'static str {
    match DatabaseChoice::try_from(value) {
        Ok(DatabaseChoice::Auto) => "auto",
        Ok(DatabaseChoice::Keep) => "keep",
        Ok(DatabaseChoice::Migrate) => "migrate",
        Ok(DatabaseChoice::Restore) => "restore",
        Ok(DatabaseChoice::Unspecified) | Err(_) => "unknown",
    }
}

pub fn health(value: i32) -> (&'static str, Tone) {
    match Health::try_from(value) {
        Ok(Health::Healthy) => ("healthy", Tone::Good),
        Ok(Health::Unhealthy) => ("UNHEALTHY", Tone::Bad),
        Ok(Health::Stopped) => ("STOPPED", Tone::Bad),
        Ok(Health::Drained) => ("DRAINED", Tone::Bad),
        // No check is configured: nothing to worry about, nothing to rely on.
        Ok(Health::Unknown) => ("unchecked", Tone::Dim),
        Ok(Health::Unspecified) | Err(_) => ("unknown", Tone::Dim),
    }
}

pub fn severity(value: i32) -> Severity {
    Severity::try_from(value).unwrap_or(Severity::Unspecified)
}

/// Does it fail its users? What has no check does not: nothing is known of it.
pub fn is_down(value: i32) -> bool {
    match Health::try_from(value) {
        Ok(Health::Unhealthy | Health::Stopped | Health::Drained) => true,
        Ok(Health::Healthy | Health::Unknown | Health::Unspecified) | Err(_) => false,
    }
}

/// A state as scripts read it.
pub fn state(value: RollbackState) -> &'static str {
    match value {
        RollbackState::Unspecified => "unknown",
        RollbackState::Running => "running",
        RollbackState::Undoing => "undoing",
        RollbackState::Verified => "verified",
        RollbackState::Undone => "undone",
        RollbackState::Partial => "partial",
        RollbackState::Held => "held",
    }
}

/// A state as people read it; preflight's refusal has a word of its own.
pub fn state_told(value: RollbackState, blocked: bool) -> (&'static str, Tone) {
    match (value, blocked) {
        (RollbackState::Verified, _) => ("verified", Tone::Good),
        (RollbackState::Undone, true) => ("blocked", Tone::Warn),
        (RollbackState::Undone, false) => ("undone", Tone::Warn),
        (RollbackState::Partial, _) => ("PARTIAL", Tone::Bad),
        (RollbackState::Held, _) => ("HELD", Tone::Bad),
        (RollbackState::Running, _) => ("running", Tone::Strong),
        (RollbackState::Undoing, _) => ("undoing", Tone::Warn),
        (RollbackState::Unspecified, _) => ("unknown", Tone::Dim),
    }
}

/// What keeps a rollback that has not ended from going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    ForApproval,
    /// Somebody paused it, or its runbook did.
    Paused,
}

pub fn waits(summary: &RollbackSummary) -> Option<Waits> {
    if is_over(summary.state()) {
        return None;
    }
    let awaits = |a: &rollback_proto::v1::Approval| a.approved_by.is_empty();
    if summary.approval.as_ref().is_some_and(awaits) {
        Some(Waits::ForApproval)
    } else {
        summary.standstill.as_ref().map(|_| Waits::Paused)
    }
}

/// Did it bring several hosts to where each of them shall be? What was put together for that goes by this name, which is that
/// of no recorded release.
pub fn is_of_objectives(summary: &RollbackSummary) -> bool {
    summary.release == "objectives" && summary.undo_of.is_empty()
}

/// A rollback's state as people read it, with what it waits for.
pub fn standing(summary: &RollbackSummary) -> (&'static str, Tone) {
    match waits(summary) {
        Some(Waits::ForApproval) => ("AWAITS APPROVAL", Tone::Warn),
        Some(Waits::Paused) => ("PAUSED", Tone::Warn),
        None => state_told(summary.state(), summary.blocked),
    }
}

/// Has it ended?
pub fn is_over(value: RollbackState) -> bool {
    match value {
        RollbackState::Verified | RollbackState::Undone | RollbackState::Partial | RollbackState::Held => true,
        RollbackState::Unspecified | RollbackState::Running | RollbackState::Undoing => false,
    }
}
