//! The lines of an env file: `NAME=value`, with `#` comments, an optional `export`, and quotes around a value.
//!
//! Values are secrets. They leave this module only towards the environment of a process that is being started, or to
//! be compared with that of a running one; what is reported are names.

use std::collections::{BTreeMap, BTreeSet};

/// Variables by name. Deliberately without `Debug`: values must not be printed by accident.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Lines that are not of the form are left out: a shell or a library that reads the file leaves them out, too.
    /// The last of several lines with one name counts.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(line).collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Names that only one of the two has, or that have another value.
    pub fn names_that_differ(&self, other: &Self) -> BTreeSet<String> {
        self.0
            .keys()
            .chain(other.0.keys())
            .filter(|name| self.0.get(*name) != other.0.get(*name))
            .cloned()
            .collect()
    }

    /// Names whose value a process's environment does not hold.
    pub fn names_missing_in(&self, environment: &BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeSet<String> {
        let holds = |name: &str, value: &str| environment.get(name.as_bytes()).is_some_and(|v| v == value.as_bytes());
        self.iter()
            .filter(|(name, value)| !holds(name, value))
            .map(|(name, _)| name.to_owned())
            .collect()
    }
}

fn line(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    let (name, value) = line.split_once('=')?;
    let name = name.trim_end();
    let good = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    // A NUL cannot be handed to a process.
    (good && !value.contains('\0')).then(|| (name.to_owned(), unquoted(value.trim())))
}

/// Takes quotes and trailing comments away. Nothing is expanded: `$` is a character of the value.
fn unquoted(value: &str) -> String {
    for quote in ['"', '\''] {
        if let Some((inner, rest)) = value.strip_prefix(quote).and_then(|v| v.rsplit_once(quote))
            && (rest.trim().is_empty() || rest.trim_start().starts_with('#'))
        {
            return if quote == '"' {
                unescaped(inner)
            } else {
                inner.to_owned()
            };
        }
    }
    match value.find(" #") {
        Some(at) => value[..at].trim_end().to_owned(),
        None => value.to_owned(),
    }
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, chars.clone().next()) {
            ('\\', Some(next @ ('"' | '\\' | '$' | '`'))) => {
                out.push(next);
                chars.next();
            }
            ('\\', Some('n')) => {
                out.push('\n');
                chars.next();
            }
            (other, _) => out.push(other),
        }
    }
    out
}

/// "A, B and 3 more", for a message.
pub fn listed(names: &BTreeSet<String>) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_forms_that_are_in_use() {
        let text = "# comment\n\nA=1\nexport B = two words \nC=\"x \\\"y\\\" # no comment\"\nD='$raw \\n'\nE=v # comment\n\
                    F=\nG=a=b\n1BAD=x\nnot a line\nA=2\nH=\"a\" # c\n";
        let read = Variables::parse(text);
        let want = [
            ("A", "2"),
            ("B", "two words"),
            ("C", "x \"y\" # no comment"),
            ("D", "$raw \\n"),
            ("E", "v"),
            ("F", ""),
            ("G", "a=b"),
            ("H", "a"),
        ];
        assert_eq!(read.iter().collect::<Vec<_>>(), want);
    }

    #[test]
    fn differences_are_names_only() {
        let old = Variables::parse("SAME=1\nCHANGED=secret-a\nGONE=secret-b");
        let new = Variables::parse("SAME=1\nCHANGED=secret-c\nNEW=secret-d");
        let names = listed(&old.names_that_differ(&new));
        assert_eq!(names, "CHANGED, GONE, NEW");
        assert!(!names.contains("secret"));
    }
}
