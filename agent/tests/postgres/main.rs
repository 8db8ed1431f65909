//! The PostgreSQL driver on a real server.

#![expect(clippy::expect_used, reason = "a test says what it expected")]

mod cluster;
mod faults;
mod fixture;
mod kept;
mod refusals;
mod restarts;
mod round_trip;
