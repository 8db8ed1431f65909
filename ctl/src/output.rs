//! Everything that the operator sees. Rendering is pure (`&message → String`, golden files in `tests/golden/`); the two
//! functions here are the only ones that write: [`data`] to stdout, [`note`] to stderr.
//!
//! stdout carries data, stderr everything else.

pub mod acts;
pub mod agents;
pub mod checklist;
pub mod checks;
pub mod event;
pub mod findings;
pub mod imports;
pub mod json;
pub mod loss;
pub mod paint;
pub mod plan;
pub mod problem;
pub mod readiness;
pub mod releases;
pub mod report;
pub mod rollbacks;
pub mod runbooks;
pub mod scope;
pub mod standstill;
pub mod status;
pub mod summary;
pub mod table;
pub mod text;
pub mod trace;
pub mod tree;
pub mod words;

#[cfg(test)]
pub(crate) mod samples;

use std::io::{ErrorKind, Write};

use anyhow::Context as _;

/// Writes one text with a line end to stdout. A reader that went away (`| head`) is no error.
pub fn data(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write to stdout"),
    }
}

/// Writes one text with a line end to stderr. There is nobody to tell when that fails.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", text.trim_end_matches('\n'));
}
