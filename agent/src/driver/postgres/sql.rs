//! Enough of PostgreSQL's lexical rules to find where the statements of a migration begin, and to tell which of them
//! cannot run inside the transaction that the driver opens.
//!
//! Leaves out: grammar. Only the first words of each statement are looked at.

/// Why a migration cannot run inside our transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unsuitable {
    /// `CREATE INDEX CONCURRENTLY` and its like, or a `-- no-transaction` mark.
    NoTransaction(String),
    /// It begins or ends transactions in its midst.
    ControlsTransactions(String),
}

impl std::fmt::Display for Unsuitable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoTransaction(s) => write!(f, "{s:?} cannot run inside a transaction"),
            Self::ControlsTransactions(s) => write!(f, "{s:?} begins or ends a transaction of its own"),
        }
    }
}

/// What of a migration is to be sent inside our own transaction. A `BEGIN; … COMMIT;` around the whole is taken off:
/// its COMMIT would end our transaction before the version row is written.
pub(super) fn in_transaction(text: &str) -> Result<&str, Unsuitable> {
    if let Some(line) = text
        .lines()
        .take_while(|l| l.trim().is_empty() || l.trim_start().starts_with("--"))
        .find(|l| {
            let mark = l.trim_start().trim_start_matches('-').trim().to_ascii_lowercase();
            matches!(mark.as_str(), "no-transaction" | "no_transaction" | "+notransaction")
                || mark.replace(' ', "").contains("transaction:false")
        })
    {
        return Err(Unsuitable::NoTransaction(line.trim().to_owned()));
    }
    let statements = statements(text);
    let mut body = text;
    let mut inner = &statements[..];
    if let [first, middle @ .., last] = &statements[..]
        && matches!(first.control(), Some(Control::Begin))
        && matches!(last.control(), Some(Control::Commit))
    {
        inner = middle;
        body = &text[first.end..last.start];
    }
    for statement in inner {
        if statement.control().is_some() {
            return Err(Unsuitable::ControlsTransactions(statement.shown()));
        }
        if statement.needs_autocommit() {
            return Err(Unsuitable::NoTransaction(statement.shown()));
        }
    }
    Ok(body)
}

enum Control {
    Begin,
    Commit,
    Other,
}

/// One statement: where it is in the text, and its words in upper case (no comments, no quoted text).
#[derive(Debug)]
struct Statement {
    start: usize,
    /// After the semicolon.
    end: usize,
    words: Vec<String>,
}

/// More words than any statement needs to be told apart.
const WORDS: usize = 12;

impl Statement {
    fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }

    fn control(&self) -> Option<Control> {
        match self.words()[..] {
            ["BEGIN", ..] | ["START", "TRANSACTION", ..] => Some(Control::Begin),
            ["COMMIT", "PREPARED", ..] | ["PREPARE", "TRANSACTION", ..] => Some(Control::Other),
            ["COMMIT", ..] | ["END", ..] => Some(Control::Commit),
            ["ROLLBACK", "TO", ..] => None,
            ["ROLLBACK", ..] | ["ABORT", ..] => Some(Control::Other),
            _ => None,
        }
    }

    fn needs_autocommit(&self) -> bool {
        match self.words()[..] {
            ["VACUUM", ..] | ["ALTER", "SYSTEM", ..] => true,
            ["CREATE" | "DROP", "DATABASE" | "TABLESPACE" | "SUBSCRIPTION", ..] => true,
            ["CREATE" | "DROP" | "REINDEX", ref rest @ ..] => {
                rest.contains(&"CONCURRENTLY") && (rest.contains(&"INDEX") || self.words[0] == "REINDEX")
            }
            ["ALTER", "TABLE", ref rest @ ..] => rest.ends_with(&["CONCURRENTLY"]) && rest.contains(&"DETACH"),
            _ => false,
        }
    }

    fn shown(&self) -> String {
        self.words
            .iter()
            .take(6)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(" ")
    }
}

fn statements(text: &str) -> Vec<Statement> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut words = Vec::new();
    let (mut at, mut start) = (0, None);
    while at < bytes.len() {
        let rest = &text[at..];
        let step = match bytes[at] {
            b'-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => block_comment(rest),
            b if b.is_ascii_whitespace() => 1,
            b';' => {
                if let Some(start) = start.take() {
                    found.push(Statement {
                        start,
                        end: at + 1,
                        words: std::mem::take(&mut words),
                    });
                }
                1
            }
            b => {
                start.get_or_insert(at);
                match b {
                    b'\'' => quoted(rest, '\'', escape_string(text, at)),
                    b'"' => quoted(rest, '"', false),
                    b'$' => dollar_quoted(rest).unwrap_or(1),
                    b if b.is_ascii_alphabetic() || b == b'_' || !b.is_ascii() => {
                        let len = rest
                            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()))
                            .unwrap_or(rest.len());
                        if words.len() < WORDS {
                            words.push(rest[..len].to_ascii_uppercase());
                        }
                        len
                    }
                    _ => 1,
                }
            }
        };
        at += step.max(1);
    }
    if let Some(start) = start {
        found.push(Statement {
            start,
            end: text.len(),
            words,
        });
    }
    found
}

/// Is the quote at `at` the beginning of an `E'…'` string, in which a backslash escapes?
fn escape_string(text: &str, at: usize) -> bool {
    let mut before = text[..at].bytes().rev();
    matches!(before.next(), Some(b'e' | b'E')) && !before.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Length of a quoted text including its quotes; to the end of the text when it is never closed.
fn quoted(text: &str, quote: char, backslash: bool) -> usize {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((i, c)) = chars.next() {
        if backslash && c == '\\' {
            chars.next();
        } else if c == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return i + 1;
            }
        }
    }
    text.len()
}

/// Length of `$tag$ … $tag$`; `None` when this dollar begins none (a parameter such as `$1`).
fn dollar_quoted(text: &str) -> Option<usize> {
    let tag_end = text[1..].find('$')? + 2;
    let tag = &text[..tag_end];
    let name = &tag[1..tag_end - 1];
    if name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    Some(
        text[tag_end..]
            .find(tag)
            .map_or(text.len(), |i| tag_end + i + tag.len()),
    )
}

/// Length of a block comment; they nest in PostgreSQL.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    let bytes = text.as_bytes();
    while at + 1 < bytes.len() {
        match (bytes[at], bytes[at + 1]) {
            (b'/', b'*') => {
                depth += 1;
                at += 2;
            }
            (b'*', b'/') => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_statements_pass_whole() {
        for text in [
            "ALTER TABLE a DROP COLUMN b; DROP TABLE c;",
            "-- COMMIT;\n/* BEGIN; /* nested */ COMMIT; */ SELECT 1",
            "INSERT INTO a VALUES ('x;COMMIT;', E'it\\'s; COMMIT', \"COMMIT\");",
            "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $body$ BEGIN RETURN 1; END; $body$;",
            "DO $$ BEGIN PERFORM 1; END $$; SAVEPOINT a; ROLLBACK TO a;",
            "ALTER TYPE mood ADD VALUE 'ok';",
            "",
        ] {
            assert_eq!(in_transaction(text), Ok(text), "{text}");
        }
    }

    #[test]
    fn a_transaction_around_the_whole_is_taken_off() {
        let text = "-- intro\nBEGIN;\nDROP TABLE a;\nCOMMIT;\n";
        assert_eq!(in_transaction(text).map(str::trim), Ok("DROP TABLE a;"));
        let text = "start transaction; DROP TABLE a; end";
        assert_eq!(in_transaction(text).map(str::trim), Ok("DROP TABLE a;"));
    }

    #[test]
    fn what_cannot_run_in_our_transaction_is_found() {
        for text in [
            "DROP INDEX CONCURRENTLY i;",
            "create unique index concurrently i on t (a);",
            "REINDEX INDEX CONCURRENTLY i",
            "VACUUM full a",
            "-- no-transaction\nSELECT 1",
            "-- migrate:down transaction:false\nSELECT 1",
            "ALTER TABLE a DETACH PARTITION b CONCURRENTLY",
            "CREATE DATABASE x",
        ] {
            assert!(
                matches!(in_transaction(text), Err(Unsuitable::NoTransaction(_))),
                "{text}"
            );
        }
        for text in [
            "DROP TABLE a; COMMIT; DROP TABLE b;",
            "BEGIN; SELECT 1; COMMIT; BEGIN; SELECT 2; COMMIT;",
            "ROLLBACK",
        ] {
            assert!(
                matches!(in_transaction(text), Err(Unsuitable::ControlsTransactions(_))),
                "{text}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[a-zA-Z$'\"/*;\\-\\\\ \nä]{0,60}") {
            let _ = in_transaction(&text);
        }
    }
}
