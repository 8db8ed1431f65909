//! What operators have done to a rollback, as far as it still matters.

use jiff::Timestamp;

use crate::event::{AbortThen, Problem};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hands {
    pub standstill: Option<Standstill>,
    pub approved: Option<Approved>,
    pub abort: Option<Abort>,
}

/// Nothing new begins until an operator acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standstill {
    ByOperator {
        by: String,
        reason: String,
        at: Timestamp,
    },
    /// The runbook's policy for this failure.
    ByPolicy {
        cause: Problem,
        at: Timestamp,
    },
}

/// Who looked at the plan and approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approved {
    pub by: String,
    pub at: Timestamp,
}

/// An operator wants it to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abort {
    pub by: String,
    pub reason: String,
    pub at: Timestamp,
    pub then: AbortThen,
}
