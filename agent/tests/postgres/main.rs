//! The PostgreSQL driver on a real server.

#![expect(clippy::expect_used, reason = "a test says what it expected")]

mod backups;
mod cluster;
mod faults;
mod fixture;
mod kept;
mod other_way;
mod parts;
mod refusals;
mod rehearsal;
mod restarts;
mod restore;
mod round_trip;
mod sources;
mod tool;
