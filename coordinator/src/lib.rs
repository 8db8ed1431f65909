//! rollbackctl's coordinator: plans rollbacks, carries them out over the fleet's agents, and never forgets one.
//!
//! One of several replicas leads ([`replica`]), for a [`term`]. Data flows in one loop: [`api`] → planner → [`leader`] → [`runner`] (one per rollback: command → events → [`store`] →
//! effects) → [`dispatcher`] → agents, and outcomes come back as commands. Everything that people see is a reading of the
//! journal ([`projection`], [`journal_spans`]).

pub mod api;
pub mod authority;
pub mod closing;
pub mod config;
pub mod converge;
mod convert;
pub mod daemon;
pub mod dispatcher;
pub mod estimate;
pub mod history;
mod hold;
pub mod http;
pub mod init;
pub mod inventory;
pub mod issuer;
pub mod journal_spans;
pub mod leader;
pub mod metrics;
mod objective;
pub mod projection;
mod prospect;
pub mod readiness;
pub mod recall;
pub mod replica;
pub mod retention;
pub mod runner;
mod scoping;
mod shelf;
mod staleness;
pub mod store;
mod survey;
pub mod term;
pub mod troubles;
