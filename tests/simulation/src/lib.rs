//! Whole fleets in one thread: the real coordinator (replica, runner, dispatcher, inventory, API) and the real agent
//! (executor, service) over a simulated network, an in-memory store and simulated components, by seed.
//!
//! ```text
//!   seed ──▶ fleet, temper, harm          operator ──▶ coordinators ──▶ agents ──▶ ground
//!                                                          │   ▲            │         │
//!            faults: network, processes, store ──▶         store            └──▶ recorder ──▶ judge
//! ```
//!
//! A seed is the same run every time: time is tokio's, paused and driven by turmoil; the network, the pauses and the harm
//! are drawn from the seed; and numbers that anything takes from the kernel come from `entropy.c`. tokio counts the
//! runtimes of a process among what it draws from, so a run has to be the only one of its process. Real time remains in the
//! timestamps of events and in the ids of rollbacks, and is left out of the digest.
//!
//! It leaves out TLS, files, registration, and everything that a driver does to a host. A process cannot be stopped and
//! continued here. In its place stands a replica whose clock stands still (it never finds that its time is over) and whose
//! connections, to agents and to the store, are held and then let go: all that others can notice of a process that was
//! stopped. The end-to-end scenarios stop real ones.

pub mod agent;
pub mod coordinator;
pub mod driver;
pub mod faults;
pub mod ground;
pub mod judge;
pub mod network;
pub mod operator;
pub mod recorder;
pub mod seed;
pub mod store;
pub mod world;
