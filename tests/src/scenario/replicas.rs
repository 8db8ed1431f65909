//! Stories of several coordinators with one journal in PostgreSQL: the leader is killed, asked to end, or stopped for a
//! while, in the middle of a rollback.

mod crash_matrix;
mod failover;
mod ground;
mod handover;
mod obedience;
mod stale_leader;

use futures::FutureExt;

use super::Scenario;

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "ha-failover",
        about: "three coordinators: kill -9 of the leader at any moment of a rollback; it ends verified (--rounds, --seed)",
        tell: |o| failover::tell(o).boxed_local(),
    },
    Scenario {
        name: "handover",
        about: "SIGTERM of the leader in the middle of a rollback: the next one goes on within a second (--rounds, --seed)",
        tell: |o| handover::tell(o).boxed_local(),
    },
    Scenario {
        name: "stale-leader",
        about: "the leader is stopped, another one takes over, it wakes up: it appends nothing, no agent obeys (--rounds, --seed)",
        tell: |o| stale_leader::tell(o).boxed_local(),
    },
    Scenario {
        name: "crash-matrix",
        about: "kill -9 of coordinator and agents before and after every durable write and call, on both stores (--rounds)",
        tell: |o| crash_matrix::tell(o).boxed_local(),
    },
];
