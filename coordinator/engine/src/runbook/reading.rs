//! Reading a runbook's text, with every mistake named by line, column and key.
//!
//! The built-in `default` is the list of keys: a key that it has is required, and one that it does not have is none. Each value
//! is tried in its place in `default`, so that one mistake does not hide the next; only what reads well by itself is then
//! looked at together. Nothing of `default` gets into a runbook by that: with a key missing, there is no runbook.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::{BUILTIN, Runbook, RunbookFinding, faults};
use crate::event::Severity;

/// What came of reading a text.
#[derive(Clone, Debug)]
pub struct Reading {
    /// `None`: one of the findings is an error.
    pub runbook: Option<Runbook>,
    /// In the order of the text.
    pub findings: Vec<RunbookFinding>,
    /// Line and column of the name, for who keeps names. 0: there is none.
    pub name_at: (u32, u32),
}

pub(super) fn read(text: &str) -> Reading {
    let mut reader = Reader {
        text,
        findings: Vec::new(),
        name_at: (0, 0),
    };
    let runbook = reader.read();
    let name_at = reader.name_at;
    let mut findings = reader.findings;
    findings.sort_by_key(|(at, _)| *at);
    Reading {
        runbook,
        findings: findings.into_iter().map(|(_, finding)| finding).collect(),
        name_at,
    }
}

type Table<'t> = DeTable<'t>;

/// A key that `default` has, with the value that was given for it.
struct Given<'t> {
    path: Vec<String>,
    value: Spanned<DeValue<'t>>,
}

struct Reader<'t> {
    text: &'t str,
    /// By their place, for sorting.
    findings: Vec<(usize, RunbookFinding)>,
    name_at: (u32, u32),
}

impl<'t> Reader<'t> {
    fn read(&mut self) -> Option<Runbook> {
        let (document, broken) = DeTable::parse_recoverable(self.text);
        let mut told = BTreeSet::new();
        for error in &broken {
            // One slip makes several errors; the first of its line is the one to mend.
            let start = error.span().map_or(0, |at| at.start);
            if told.insert(line_and_column(self.text, start).0) {
                self.error(error.span(), String::new(), error.message().to_owned(), String::new());
            }
        }
        if !broken.is_empty() {
            // What is missing after a broken line may be behind it.
            return None;
        }
        let (_, model) = BUILTIN[0];
        let model = DeTable::parse(model)
            .expect("the built-in runbook is TOML")
            .into_inner();
        let mut given = Vec::new();
        self.walk(&model, &document.into_inner(), None, &mut Vec::new(), &mut given);
        let mut whole = model.clone();
        for Given { path, value } in &given {
            match as_runbook(&put(model.clone(), path, value.clone())) {
                Ok(_) => whole = put(whole, path, value.clone()),
                Err(error) => self.unreadable(path, value, &error),
            }
        }
        let runbook = as_runbook(&whole).expect("every value of it was tried in its place");
        let place = |key: &str| given.iter().find(|g| g.path.join(".") == key).map(|g| g.value.span());
        self.name_at = place("name").map_or((0, 0), |at| line_and_column(self.text, at.start));
        for fault in faults::of(&runbook) {
            // A fault of a key that is not given is one with another value of `default`.
            if let Some(at) = place(&fault.key) {
                self.note(fault.severity, Some(at), fault.key, fault.problem, fault.hint);
            }
        }
        let fits = self.findings.iter().all(|(_, f)| f.severity != Severity::Blocker);
        fits.then_some(runbook)
    }

    /// Keys that are none, keys that are missing, and the values of all others.
    fn walk(
        &mut self,
        model: &Table<'_>,
        table: &Table<'t>,
        header: Option<Range<usize>>,
        path: &mut Vec<String>,
        given: &mut Vec<Given<'t>>,
    ) {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            match (model.get(key.get_ref().as_ref()).map(Spanned::get_ref), value.get_ref()) {
                (None, _) => {
                    let hint = hint_for_unknown(path, model);
                    let message = "there is no such key".to_owned();
                    self.error(Some(key.span()), path.join("."), message, hint);
                }
                (Some(DeValue::Table(model)), DeValue::Table(table)) => {
                    self.walk(model, table, Some(key.span()), path, given);
                }
                (Some(DeValue::Table(_)), other) => {
                    let message = format!("is a table of keys, and not {} {}", article(other), other.type_str());
                    let hint = format!("write [{}], and its keys below", path.join("."));
                    self.error(Some(value.span()), path.join("."), message, hint);
                }
                (Some(_), _) => given.push(Given {
                    path: path.clone(),
                    value: value.clone(),
                }),
            }
            path.pop();
        }
        for (key, value) in model
            .iter()
            .filter(|(key, _)| !table.contains_key(key.get_ref().as_ref()))
        {
            path.push(key.get_ref().to_string());
            let hint = match value.get_ref() {
                DeValue::Table(_) => format!("add [{}] with its keys, as default.toml has them", path.join(".")),
                _ => format!("add it; default.toml has: {} = {}", key.get_ref(), in_default(value)),
            };
            self.error(header.clone(), path.join("."), "is missing".to_owned(), hint);
            path.pop();
        }
    }

    fn unreadable(&mut self, path: &[String], value: &Spanned<DeValue<'_>>, error: &toml::de::Error) {
        let whole = value.span();
        let inside = |at: &Range<usize>| at.start >= whole.start && at.end <= whole.end;
        let at = error.span().filter(inside).unwrap_or_else(|| whole.clone());
        let hint = did_you_mean(error.message()).unwrap_or_else(|| {
            let model = DeTable::parse(BUILTIN[0].1)
                .expect("the built-in runbook is TOML")
                .into_inner();
            find(&model, path).map_or_else(String::new, |v| format!("default.toml has: {}", in_default(v)))
        });
        self.error(Some(at), path.join("."), error.message().to_owned(), hint);
    }

    fn error(&mut self, at: Option<Range<usize>>, key: String, message: String, hint: String) {
        self.note(Severity::Blocker, at, key, message, hint);
    }

    /// `at`: where in the text; `None` is the whole of it.
    fn note(&mut self, severity: Severity, at: Option<Range<usize>>, key: String, message: String, hint: String) {
        let start = at.map(|at| at.start.min(self.text.len()));
        let (line, column) = start.map_or((0, 0), |start| line_and_column(self.text, start));
        let finding = RunbookFinding {
            severity,
            line,
            column,
            key,
            message,
            hint,
        };
        self.findings.push((start.unwrap_or(0), finding));
    }
}

fn as_runbook(table: &Table<'_>) -> Result<Runbook, toml::de::Error> {
    let whole = Spanned::new(0..0, DeValue::Table(table.clone()));
    Runbook::deserialize(ValueDeserializer::from(whole))
}

/// The table with another value at this path, which it has.
fn put<'t>(mut table: Table<'t>, path: &[String], value: Spanned<DeValue<'t>>) -> Table<'t> {
    if let Some((first, rest)) = path.split_first()
        && let Some(slot) = table.get_mut(first.as_str())
    {
        match (rest.is_empty(), slot.get_mut()) {
            (true, _) => *slot = value,
            (false, DeValue::Table(inner)) => *inner = put(std::mem::take(inner), rest, value),
            (false, _) => {}
        }
    }
    table
}

fn find<'a, 't>(table: &'a Table<'t>, path: &[String]) -> Option<&'a Spanned<DeValue<'t>>> {
    let (first, rest) = path.split_first()?;
    let value = table.get(first.as_str())?;
    match (rest.is_empty(), value.get_ref()) {
        (true, _) => Some(value),
        (false, DeValue::Table(inner)) => find(inner, rest),
        (false, _) => None,
    }
}

/// A value as default.toml writes it.
fn in_default(value: &Spanned<DeValue<'_>>) -> &'static str {
    BUILTIN[0].1.get(value.span()).unwrap_or_default()
}

fn hint_for_unknown(path: &[String], model: &Table<'_>) -> String {
    let key = path.last().map_or("", String::as_str);
    if path == ["version"] {
        return "leave it out: each text that is applied is the next version of its name".to_owned();
    }
    let keys: Vec<String> = model.keys().map(|k| k.get_ref().to_string()).collect();
    if let Some(near) = nearest(key, keys.iter().map(String::as_str)) {
        return format!("did you mean `{near}`?");
    }
    // A key below the wrong header, which is easily done in TOML.
    let whole = DeTable::parse(BUILTIN[0].1)
        .expect("the built-in runbook is TOML")
        .into_inner();
    match home_of(key, &whole, "") {
        Some(home) if home.is_empty() => "it belongs to the top of the file, before the first [table]".to_owned(),
        Some(home) => format!("it belongs below [{home}]"),
        None => format!("there are: {}", keys.join(", ")),
    }
}

/// The table in which a key of this name stands.
fn home_of(key: &str, table: &Table<'_>, path: &str) -> Option<String> {
    if table.contains_key(key) {
        return Some(path.to_owned());
    }
    table.iter().find_map(|(name, value)| match value.get_ref() {
        DeValue::Table(inner) => {
            let dot = if path.is_empty() { "" } else { "." };
            home_of(key, inner, &format!("{path}{dot}{}", name.get_ref()))
        }
        _ => None,
    })
}

/// serde's "unknown variant `a`, expected one of `b`, `c`": what was meant is probably one of these.
fn did_you_mean(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let found = quoted.next().filter(|_| message.starts_with("unknown variant"))?;
    nearest(found, quoted).map(|near| format!("did you mean \"{near}\"?"))
}

/// The name that was probably meant: one slip in three characters.
fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let distances = names.map(|name| (strsim::osa_distance(word, name), name));
    let most = (word.chars().count() / 3).max(1);
    let nearest = distances.filter(|(distance, _)| *distance <= most).min();
    nearest.map(|(_, name)| name)
}

fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::Integer(_) | DeValue::Array(_) => "an",
        DeValue::String(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Table(_) => "a",
    }
}

/// From 1, in characters.
fn line_and_column(text: &str, at: usize) -> (u32, u32) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    (small(line), small(column))
}
