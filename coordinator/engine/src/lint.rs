//! The second opinion on a plan: checked before it is carried out, by code that shares nothing with the planner.
//!
//! A defect of the planner, a plan edited by hand and sealed again, or one made by another version: whatever made the
//! plan, the state machine follows only plans for which this finds nothing. Every finding names the step.
//!
//! Near linear in the number of steps.

mod backends;
mod safety;
mod scope;
mod shape;

use crate::ids::{StepId, Target};
use crate::plan::{PhaseName, Plan};
use crate::release::Action;

/// One thing that is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LintError {
    #[error("format {found} is not known")]
    UnknownFormat { found: u32 },
    #[error("no component is in scope")]
    NothingInScope,
    #[error("{target}: the changes are not sorted, or name it twice")]
    ChangesUnsorted { target: Target },
    #[error("{target}: its host is excused and in scope at once")]
    ExcusedInScope { target: Target },
    #[error("{target}: is to be restored, which is for apps and proxies")]
    NothingToRestore { target: Target },
    #[error("the plan says that the schema {}, but its changes say otherwise", if *.said { "changes" } else { "stays" })]
    SchemaFlagWrong { said: bool },
    #[error("phase {phase} stands twice or out of order")]
    PhaseOrder { phase: PhaseName },
    #[error("phase {phase} has an empty part")]
    EmptyPart { phase: PhaseName },
    #[error("phase {phase} must not go on after a failure")]
    MustNotContinue { phase: PhaseName },
    #[error("phase {phase} must go on after a failure: the rollback is decided when it runs")]
    MustContinue { phase: PhaseName },
    #[error("step {found} stands where step {expected} belongs")]
    Misnumbered { expected: StepId, found: StepId },
    #[error("step {step}: {target} is not in scope")]
    NotInScope { step: StepId, target: Target },
    #[error("step {step}: {action} has no place in phase {phase}")]
    WrongPhase {
        step: StepId,
        action: Action,
        phase: PhaseName,
    },
    #[error("step {step}: has no time to run in")]
    NoTime { step: StepId },
    #[error("step {step}: {target} stands in two lanes of one batch")]
    TwoLanes { step: StepId, target: Target },
    #[error("step {step}: {action} is not undone by its opposite")]
    WrongUndo { step: StepId, action: Action },
    #[error("step {step}: changes the service before everything is staged")]
    BeforeStaged { step: StepId },
    #[error("step {step}: can be undone, but stands after one that cannot")]
    AfterIrreversible { step: StepId },
    #[error("step {step}: {target} is switched without having been staged")]
    NotStaged { step: StepId, target: Target },
    #[error("step {step}: database {target} is switched without a snapshot")]
    NotProtected { step: StepId, target: Target },
    #[error("step {step}: {target} is not at the revisions that the step names")]
    WrongRevisions { step: StepId, target: Target },
    #[error("step {step}: {action} of {target}, which is not in the state for it")]
    NotPaused {
        step: StepId,
        action: Action,
        target: Target,
    },
    #[error("{target}: does not reach its target")]
    NotReached { target: Target },
    #[error("{target}: is stopped and never started")]
    NeverStarted { target: Target },
    #[error("{target}: is drained and never resumed")]
    NeverResumed { target: Target },
    #[error("{target}: has backends that can be drained one by one or are out, which is for proxies that serve")]
    NoBackends { target: Target },
    #[error("step {step}: {action} of one backend")]
    NotOfOneBackend { step: StepId, action: Action },
    #[error("step {step}: {backend} is no backend of the proxy, or not in scope")]
    UnknownBackend { step: StepId, backend: Target },
    #[error("step {step}: {backend} is not out of the proxy exactly while it restarts")]
    NotSpared { step: StepId, backend: Target },
    #[error("step {step}: {backend} is drained and not given back in its lane")]
    NotGivenBack { step: StepId, backend: Target },
    #[error("step {step}: no backend of {target} is left to serve during its batch")]
    NobodyServes { step: StepId, target: Target },
    #[error("{target}: goes another way than the plan says of databases")]
    ChoiceBroken { target: Target },
    #[error("{target}: is said to be left where it is, and is not, or is where the release has it")]
    NothingLeft { target: Target },
    #[error("step {step}: does not say of the backup what the change of {target} says")]
    BackupUnclear { step: StepId, target: Target },
    #[error("step {step}: database {target} is switched while {busy} is up, which the plan pauses")]
    NotQuiet { step: StepId, target: Target, busy: Target },
    #[error("{target}: is to be taken to a backup, and is never switched")]
    NeverRestored { target: Target },
    #[error("{target}: is not verified at the end")]
    NotVerified { target: Target },
    #[error("{target}: is excluded, and in the plan")]
    ExcludedInScope { target: Target },
    #[error("{target}: changes, and was not asked for")]
    NotSelected { target: Target },
    #[error("{target}: is said to be outside of the scope, and is in it")]
    OutsideInScope { target: Target },
    #[error("what is outside of the scope is not sorted, or there is such a thing and everything was asked for")]
    OutsideUnclear,
    #[error("phase {phase} has a limit of hosts that it cannot have, or does not keep")]
    WrongLimit { phase: PhaseName },
    #[error("somebody has to approve, and has no time for it")]
    NobodyCanApprove,
}

/// Everything that is wrong with a plan; empty for a sound one.
pub fn lint(plan: &Plan) -> Vec<LintError> {
    let mut errors = Vec::new();
    shape::check(&plan.body, &mut errors);
    safety::check(&plan.body, &mut errors);
    backends::check(&plan.body, &mut errors);
    scope::check(&plan.body, &mut errors);
    errors
}
