//! Errors, as the operator reads them: the code to search for, what happened, what to do.

use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;

use super::paint::{Paint, Tone};
use super::text::clean;
use crate::client::CallError;

/// ```text
/// error RB0203: another rollback holds the scope
///   what to do: watch it: rollbackctl rollback watch latest
/// ```
pub fn error(problem: &Problem, paint: Paint) -> String {
    let head = paint.tone(Tone::Bad, &format!("error {}:", problem.code));
    let mut text = format!("{head} {}\n", clean(&problem.message));
    if !problem.remedy.is_empty() {
        text.push_str(&format!("  what to do: {}\n", clean(&problem.remedy)));
    }
    text
}

/// Any error: with code and remedy when there is a problem in it, as a plain sentence otherwise.
pub fn any_error(error: &anyhow::Error, paint: Paint) -> String {
    match find(error) {
        Some(problem) => self::error(problem, paint),
        None => format!("{} {}\n", paint.tone(Tone::Bad, "error:"), clean(&format!("{error:#}"))),
    }
}

/// A file of this machine, or its stdin, that could not be read or written.
pub fn of_file(what: impl std::fmt::Display, error: &std::io::Error) -> Problem {
    Problem::from_error(Code::FileFailed, what, error)
}

/// The problem inside an error.
pub fn find(error: &anyhow::Error) -> Option<&Problem> {
    error
        .downcast_ref::<CallError>()
        .map(|e| &e.problem)
        .or_else(|| error.downcast_ref::<Problem>())
}

/// "RB0300: no route to host", in one line, without the remedy.
pub fn brief(problem: &v1::Problem) -> String {
    match (problem.code.is_empty(), problem.message.is_empty()) {
        (true, _) => clean(&problem.message),
        (false, true) => clean(&problem.code),
        (false, false) => format!("{}: {}", clean(&problem.code), clean(&problem.message)),
    }
}
