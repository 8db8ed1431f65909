//! The git driver on real repositories, with the real git and the real npm.

#![expect(clippy::expect_used, reason = "a test says what it expected")]

mod fixture;
#[path = "../host/mod.rs"]
mod host;
mod install;
mod names;
mod process;
mod repository;
mod trees;
