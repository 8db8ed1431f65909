//! The pure core of rollbackctl: what a rollback is, how it is planned, and how it goes on from any point.
//!
//! Nothing here reads a clock, draws a random number or touches the world: time and ids arrive inside commands. What
//! this crate says is therefore the same on every replica and on every replay.
//!
//! Reading order: [`release`] (what a fleet is and where it shall be) → [`runbook`] (the policy) → [`planner`] (both
//! into a sealed [`plan`]) → [`lint`] (the second opinion) → [`event`] and [`machine`] (the plan carried out, event by
//! event) → [`view`] (what people want to know of it).

pub mod event;
pub mod ids;
pub mod lint;
pub mod loss;
pub mod machine;
pub mod plan;
pub mod planner;
mod problems;
pub mod release;
pub mod runbook;
pub mod view;
