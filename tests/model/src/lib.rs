//! The protocol around the engine, explored exhaustively: every state that coordinators, agents, a store and a bad network
//! can reach within small bounds, and in each of them the invariants of execution.
//!
//! What is real: the plans (the planner's), and the state machine with all that it decides, writes and dispatches
//! ([`engine`]). What is modelled, because it lives in processes with sockets and disks: the store's lease and fenced
//! appends, the coordinators' terms ([`coordinator`]), the agents' ledgers and drivers ([`agent`]), and the wire
//! ([`world::Message`]). Every action is atomic and as small as it can be observed; clocks do not exist, so everything that
//! a timer could do may happen at any time, and a leader that was stopped is one that does nothing for a while.
//!
//! Merged into one action, because nobody can see the difference: an append and the dispatch after it (a crash between the
//! two is a message that never arrives); a result's fsync and the answer (likewise); a crash, the restart and the probe (an
//! agent that is down is one that is slow); the end of a lease and the next one's beginning (until
//! somebody else has it, a lease that ran out is one whose leader does nothing). One symmetry is used: the first leader is always coordinator A.
//!
//! Left out: effects that stop half-way (the drivers' own tests kill them there), operators who change hosts by hand, and rollbacks
//! that a store loses altogether. Not promised, and shown by a test to be beyond what can be: a store that has lost commits
//! *and* a host that does not answer the new leader's question.
//!
//! States are told apart by a fingerprint of 64 bits (stateright's), so that two of a million states are taken for one with
//! a probability of less than one in 10^7.
//!
//! [`properties`] names what must hold; [`calm`] checks that from every state the rollback ends once failures stop;
//! [`coverage`] counts what was met; [`configuration`] bounds it all and can leave safeguards out, to see the checker fail.

pub mod action;
mod agent;
mod calm;
pub mod configuration;
mod coordinator;
pub mod coverage;
pub mod engine;
pub mod explore;
pub mod fleet;
mod model;
pub mod properties;
mod story;
mod tidy;
pub mod world;

pub use configuration::{Configuration, Safeguard};
pub use explore::{Report, explore};
pub use model::Fleetwide;
