//! The container driver against a real engine. What happened is asked of the `docker` program, not of the driver.

mod carried;
mod deadlines;
#[path = "../docker/mod.rs"]
mod docker;
mod fixture;
#[path = "../host/mod.rs"]
mod host;
mod killed;
mod refusals;
mod restarts;
mod round_trip;
