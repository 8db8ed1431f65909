//! The env file of a container, read as `docker run --env-file` reads it: nothing is unquoted, nothing expanded. What a
//! container was started with by hand and what this driver starts it with must be the same.
//!
//! Values are secrets: they go into the container and into comparisons, nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rollback_proto::problem::{Code, Problem};

use super::seen::{LABEL_ENV, Seen};
use crate::files;

/// Variables by name. Deliberately without `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Blocks.
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let state = files::read(path)?
            .ok_or_else(|| Problem::new(Code::FileFailed, format!("{} does not exist", path.display())))?;
        let text = String::from_utf8(state.content)
            .map_err(|_| Problem::new(Code::ContainerUnfit, format!("{} is not UTF-8", path.display())))?;
        Self::parse(&text).map_err(|line| {
            Problem::new(
                Code::ContainerUnfit,
                format!(
                    "{}: line {line} is not NAME=value; the engine's own --env-file refuses it, too",
                    path.display()
                ),
            )
        })
    }

    /// The error is the number of the line.
    fn parse(text: &str) -> Result<Self, usize> {
        let mut variables = BTreeMap::new();
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) = match line.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (line, None),
            };
            if name.is_empty() || name.contains(char::is_whitespace) || line.contains('\0') {
                return Err(number + 1);
            }
            // A name alone takes the value of the shell that runs docker. There is no shell here.
            if let Some(value) = value {
                variables.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(Self(variables))
    }

    pub fn names(&self) -> BTreeSet<String> {
        self.0.keys().cloned().collect()
    }

    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|(name, value)| format!("{name}={value}"))
    }

    /// Does the container have every variable of the file, and none that came from an earlier content of it?
    /// `from_file` are the names that are known to have come from the file.
    pub fn is_in(&self, container: &Seen, from_file: &BTreeSet<String>) -> bool {
        let has = container.environment();
        let all = self
            .0
            .iter()
            .all(|(name, value)| has.get(name.as_str()) == Some(&value.as_str()));
        all && from_file.iter().all(|name| self.0.contains_key(name))
    }

    /// Names that the container has with the very value of the file: they came from it.
    pub fn names_shared_with(&self, container: &Seen) -> BTreeSet<String> {
        let has = container.environment();
        self.0
            .iter()
            .filter(|(name, value)| has.get(name.as_str()) == Some(&value.as_str()))
            .map(|(name, _)| name.clone())
            .collect()
    }
}

/// The names that came from the file, as written on a container that this driver made.
pub fn names_on(container: &Seen) -> Option<BTreeSet<String>> {
    let names = container.label(LABEL_ENV)?;
    Some(names.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_the_engine_does() {
        let read = Environment::parse("\u{feff}# c\n\n  A=1\nB=\"quoted\" # kept\nC=\nINHERITED\nA=2\n");
        let lines: Vec<String> = read.expect("good").lines().collect();
        assert_eq!(lines, ["A=2", "B=\"quoted\" # kept", "C="]);
        assert_eq!(Environment::parse("A=1\nexport B=2").err(), Some(2));
        assert_eq!(Environment::parse("=x").err(), Some(1));
    }
}
