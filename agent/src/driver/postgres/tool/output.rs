//! What a migration tool prints: the names in its list, and as much of its complaints as may be shown.

use regex::Regex;

use crate::driver::postgres::sql_error::tool_text_without_data;

/// Longest name of a migration, in bytes.
const MAX_NAME: usize = 300;

/// Lines of a complaint that a message shows, and their length together.
const LINES: usize = 4;
const SHOWN: usize = 600;

/// The applied migrations: group 1 of each line that matches, or every line that is not empty.
pub(super) fn names(text: &str, pattern: Option<&Regex>) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    for line in text.lines().map(str::trim_end) {
        let name = match pattern {
            None => line.trim(),
            Some(pattern) => pattern
                .captures(line)
                .and_then(|found| found.get(1))
                .map_or("", |group| group.as_str().trim()),
        };
        if name.is_empty() {
            continue;
        }
        if name.len() > MAX_NAME || name.contains(char::is_control) {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
            return Err(format!(
                "{shown:?} is not the name of a migration; set tool.applied to a pattern for these lines"
            ));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

/// The last lines, on one line, without what they may hold of rows or of a connection's password.
pub(super) fn without_data(text: &str) -> String {
    let text = tool_text_without_data(text);
    let kept: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !quotes_rows(line))
        .map(|line| without_password(&cut_values(line)))
        .collect();
    let tail = kept[kept.len().saturating_sub(LINES)..].join(" | ");
    tail.chars().take(SHOWN).collect()
}

/// Client libraries print an error's fields and the statement: `detail: 'Key (email)=(…) already exists.'`.
fn quotes_rows(line: &str) -> bool {
    let lower = line.to_ascii_lowercase();
    [
        "detail",
        "where",
        "context",
        "parameters",
        "params",
        "values",
        "query",
        "statement",
        "sql",
        "hint",
    ]
    .iter()
    .any(|field| {
        let rest = lower.trim_start_matches(['-', ' ', '"', '\'']).strip_prefix(field);
        rest.is_some_and(|rest| rest.trim_start_matches(['"', '\'']).starts_with([':', '=']))
    }) || ["insert into", "update ", "delete from", "copy ", "key ("]
        .iter()
        .any(|word| lower.contains(word))
}

/// A quoted value after a colon or the word `value`, and everything after it.
fn cut_values(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let at = [": \"", ": '", "value \"", "value '", "value: "]
        .iter()
        .filter_map(|p| lower.find(p))
        .min();
    // Lower case of ASCII letters only: places are the same in both.
    match at {
        Some(at) => format!("{} …", &line[..at]),
        None => line.to_owned(),
    }
}

/// `postgresql://user:password@host` becomes `postgresql://…@host`.
fn without_password(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let end = tail.find(char::is_whitespace).unwrap_or(tail.len());
        rest = match tail[..end].rfind('@') {
            Some(sign) => {
                out.push('…');
                &tail[sign..]
            }
            None => tail,
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_several_tools_are_read() {
        let plain = "001-users\n\n  002-scores \r\n";
        assert_eq!(
            names(plain, None),
            Ok(vec!["001-users".to_owned(), "002-scores".to_owned()])
        );
        let marked = "Migrations\n[x] 001-users\n[x] 002-scores (today)\n[ ] 003-later\n";
        let pattern = Regex::new(r"^\[x\] (\S+)").expect("pattern");
        assert_eq!(
            names(marked, Some(&pattern)),
            Ok(vec!["001-users".to_owned(), "002-scores".to_owned()])
        );
        assert!(names("\u{1b}[31mnot a name", None).is_err());
        assert_eq!(names("", None), Ok(vec![]));
    }

    #[test]
    fn complaints_are_shown_without_rows_and_passwords() {
        let said = "> migrate\nerror: invalid input syntax for type integer: \"alice@example.org\"\n\
                    error: duplicate key value violates unique constraint \"users_name\"\n\
                    \x20 detail: 'Key (name)=(alice) already exists.',\n  parameters: [ 'alice' ],\n\
                    INSERT INTO users VALUES ('alice');\n\
                    could not connect: postgresql://zekka:s3cret@db/zekka\nrelation \"users\" does not exist";
        let text = without_data(said);
        assert!(!text.contains("alice") && !text.contains("s3cret"), "{text}");
        assert!(
            text.contains("unique constraint \"users_name\"") && text.contains("relation \"users\" does not exist"),
            "{text}"
        );
        assert!(text.contains("postgresql://…@db/zekka"), "{text}");
    }
}
