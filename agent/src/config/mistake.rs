//! What is wrong with a configuration file: where, what, and what was probably meant.

use std::fmt;
use std::path::PathBuf;

use rollback_proto::problem::{Code, Problem};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}{mistake}", path.display())]
    Wrong { path: PathBuf, mistake: Mistake },
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        let problem = Problem::from_error(Code::BadConfig, "configuration", &error);
        // "configuration: " is in the way of an editor that jumps to file:line.
        let message = problem
            .message
            .strip_prefix("configuration: ")
            .unwrap_or(&problem.message)
            .to_owned();
        let missing =
            matches!(&error, ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
        let remedy = if missing {
            "say where it is: --config FILE, or ROLLBACK_AGENT_CONFIG=FILE; or write it, deploy/examples/agent.toml has every \
             key with its default"
                .to_owned()
        } else {
            problem.remedy
        };
        Problem::new(problem.code, message).remedy(remedy)
    }
}

/// `:12: unknown key `pth`, did you mean `path`?`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Counted from 1. `None`: the file as a whole.
    pub line: Option<usize>,
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, ":{line}: {}", self.message),
            None => write!(f, ": {}", self.message),
        }
    }
}

impl Mistake {
    pub fn at(line: usize, message: impl Into<String>) -> Self {
        Self {
            line: Some(line),
            message: message.into(),
        }
    }

    pub fn whole(message: impl Into<String>) -> Self {
        Self {
            line: None,
            message: message.into(),
        }
    }

    /// Adds what was probably meant, if anything comes near.
    #[must_use]
    pub fn meant<'a>(mut self, word: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        if let Some(near) = nearest(word, known) {
            self.message.push_str(&format!("; did you mean {near:?}?"));
        }
        self
    }

    /// From the parser's error.
    pub(super) fn from_toml(text: &str, error: &toml::de::Error) -> Self {
        Self {
            line: error.span().map(|span| line_of(text, span.start)),
            message: explain(error.message()),
        }
    }

    /// From the parser's error inside a part of the file: "component api", which begins in `line`.
    pub(super) fn in_part(text: &str, part: &str, line: usize, error: &toml::de::Error) -> Self {
        let mistake = Self::from_toml(text, error);
        Self {
            line: mistake.line.or(Some(line)),
            message: format!("{part}: {}", mistake.message),
        }
    }
}

/// The line of a byte, counted from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|b| *b == b'\n').count()
}

/// serde's words in an operator's.
fn explain(message: &str) -> String {
    let message = message.trim_end().replace('\n', ": ");
    if let Some(rest) = message.strip_prefix("unknown field `") {
        let mut quoted = rest.split('`');
        let word = quoted.next().unwrap_or_default();
        let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
        return match nearest(word, known.iter().copied()) {
            Some(near) => format!("unknown key `{word}`, did you mean `{near}`?"),
            None if known.is_empty() => format!("unknown key `{word}`; no key is expected here"),
            None => format!("unknown key `{word}`; the keys here are {}", known.join(", ")),
        };
    }
    match message
        .strip_prefix("missing field `")
        .and_then(|rest| rest.strip_suffix('`'))
    {
        Some(word) => format!("the key `{word}` is missing"),
        None => message,
    }
}

/// The known word with the fewest edits, if they are few for its length.
fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    known
        .into_iter()
        .map(|candidate| (edits(word, candidate), candidate))
        .filter(|(edits, candidate)| *edits <= candidate.len().max(word.len()).div_ceil(3))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Characters to insert, delete, replace or swap with their neighbour until `a` is `b`.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let above = &rows[i - 1];
            let replaced = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
