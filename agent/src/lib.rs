//! rollbackctl's daemon on a host. It does the steps that its own configuration allows, at most once each, and nothing
//! else: no call carries a command line, a path, SQL or a URL.
//!
//! ```text
//! coordinator ──gRPC/mTLS──▶ server ─▶ executor ─▶ ledger: INTENT ─▶ driver ─▶ ledger: RESULT ─▶ coordinator
//!                            (who?)    (which step?)                (acts on the host)
//! ```
//!
//! Invariants of the whole:
//! - An intent is durable before a driver acts, an outcome before anybody hears of it.
//! - One mutating step of a component at a time; a step runs on when its caller goes away.
//! - A leader that a newer one has replaced is refused.

pub mod application;
pub mod check;
pub mod cli;
pub mod config;
pub mod convert;
pub mod driver;
pub mod engine;
pub mod enroll;
pub mod executor;
pub mod files;
pub mod ledger;
pub mod pki;
pub mod processes;
pub mod program;
pub mod registration;
pub mod server;
pub mod size;
pub mod step;
pub mod vault;
pub mod words;

/// Durations in configuration files: `500ms`, `30s`, `5m`, `1h30m`.
pub(crate) use jiff::fmt::serde::unsigned_duration::friendly::compact::required as duration;
