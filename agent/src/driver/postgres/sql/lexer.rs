//! PostgreSQL's lexical rules, as far as they are needed to find where statements begin and end: comments (which nest),
//! quoted texts and names, dollar quotes.

/// What a text consists of.
#[derive(Debug)]
pub(super) struct Lexed<'a> {
    pub statements: Vec<Statement>,
    /// Each from its `--` or `/*` on; a `--` comment without the end of its line.
    pub comments: Vec<&'a str>,
    /// The first command that only psql knows.
    pub command: Option<&'a str>,
}

/// One statement: where it is in the text, and its words in upper case (no comments, no quoted text).
#[derive(Debug)]
pub(super) struct Statement {
    pub start: usize,
    /// After the semicolon.
    pub end: usize,
    pub words: Vec<String>,
}

/// More words than any statement needs to be told apart.
const WORDS: usize = 12;

/// Reads a text to its end. Never fails: what is never closed goes on to the end, as it does for the server.
pub(super) fn read(text: &str) -> Lexed<'_> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let (mut comments, mut command) = (Vec::new(), None);
    let mut words = Vec::new();
    let (mut at, mut start) = (0, None);
    let mut inside = Inside::default();
    while at < bytes.len() {
        let rest = &text[at..];
        let step = match bytes[at] {
            b'-' if rest.starts_with("--") => {
                let end = rest.find('\n').unwrap_or(rest.len());
                comments.push(&rest[..end]);
                end
            }
            // No operator has a backslash in it: this is for psql.
            b'\\' => {
                let end = rest.find('\n').unwrap_or(rest.len());
                command.get_or_insert(rest[..end].trim_end());
                end
            }
            b'/' if rest.starts_with("/*") => {
                let end = block_comment(rest);
                comments.push(&rest[..end]);
                end
            }
            b if b.is_ascii_whitespace() => 1,
            b';' if !inside.is_anything() => {
                inside = Inside::default();
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
                    b'(' => {
                        inside.parentheses += 1;
                        1
                    }
                    b')' => {
                        inside.parentheses = inside.parentheses.saturating_sub(1);
                        1
                    }
                    b if b.is_ascii_alphabetic() || b == b'_' || !b.is_ascii() => {
                        let len = rest
                            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()))
                            .unwrap_or(rest.len());
                        let word = rest[..len].to_ascii_uppercase();
                        inside.word(&words, &word);
                        if words.len() < WORDS {
                            words.push(word);
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
    Lexed {
        statements: found,
        comments,
        command,
    }
}

/// What has semicolons in it that end no statement: the parentheses of `CREATE RULE … DO (…; …)`, and a function's body
/// that begins with `BEGIN ATOMIC`.
#[derive(Default)]
struct Inside {
    parentheses: usize,
    /// BEGIN and CASE of a function's body that wait for their END.
    blocks: usize,
    /// The last word was BEGIN.
    begins: bool,
}

impl Inside {
    fn is_anything(&self) -> bool {
        self.parentheses > 0 || self.blocks > 0
    }

    /// `before`: the words of the statement so far.
    fn word(&mut self, before: &[String], word: &str) {
        let begins = std::mem::replace(&mut self.begins, word == "BEGIN");
        let creates = match before {
            [create, or, replace, what, ..] if or == "OR" && replace == "REPLACE" => [create, what],
            [create, what, ..] => [create, what],
            [] | [_] => return,
        };
        if creates[0] != "CREATE" || !["FUNCTION", "PROCEDURE"].contains(&creates[1].as_str()) {
            return;
        }
        match word {
            "ATOMIC" if begins && self.blocks == 0 => self.blocks = 1,
            "CASE" if self.blocks > 0 => self.blocks += 1,
            "END" => self.blocks = self.blocks.saturating_sub(1),
            _ => {}
        }
    }
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
