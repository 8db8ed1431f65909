//! Plain dumps: SQL scripts as `pg_dump` writes them, read as a stream and cut into statements and rows.
//!
//! `psql` is not used for them. To it a script is a program: `\connect` would lead into the live database, `\!` into a
//! shell. Here every backslash outside of data is refused, and so is every statement that is about more than the one
//! database it is sent to. What is left is still SQL: whoever can write the dump can do what the restoring user may do.
//!
//! A script that was cut off is noticed by its end, which `pg_dump` marks.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::path::Path;

use rollback_proto::problem::{Code, Problem};

use super::open_script;
use super::statement::{Words, beyond};
use crate::driver::postgres::staging::file_problem;

/// The last words of `pg_dump`.
const COMPLETE: &[u8] = b"-- PostgreSQL database dump complete";

/// Longer statements are refused: it is held in memory.
const MAX_STATEMENT: usize = 256 * 1024 * 1024;

/// Rows are handed on in pieces of about this size.
const CHUNK: usize = 128 * 1024;

/// What a script is made of, in the order of the script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Statement {
        line: u64,
        sql: String,
    },
    /// `COPY … FROM stdin`; its rows follow, and then [`Piece::EndOfRows`].
    Copy {
        line: u64,
        sql: String,
    },
    Rows(Vec<u8>),
    EndOfRows,
}

/// What a whole script says without being run.
#[derive(Clone, Debug, Default)]
pub(in crate::driver::postgres) struct Survey {
    /// Owners and grantees.
    pub roles: BTreeSet<String>,
    pub extensions: BTreeSet<String>,
}

/// Reads a whole script and refuses what must not be run. Blocking.
pub(in crate::driver::postgres) fn survey(path: &Path) -> Result<Survey, Problem> {
    let mut script = Script::open(path)?;
    let mut survey = Survey::default();
    while let Some(piece) = script.next()? {
        if let Piece::Statement { sql, .. } = piece {
            survey.note(&sql);
        }
    }
    Ok(survey)
}

impl Survey {
    /// The same of a script that was printed for being looked at only.
    pub fn of_text(text: &str) -> Result<Self, Problem> {
        let mut script = Script::new(Box::new(std::io::Cursor::new(text.as_bytes().to_vec())), "the dump");
        let mut survey = Self::default();
        while let Some(piece) = script.next()? {
            if let Piece::Statement { sql, .. } = piece {
                survey.note(&sql);
            }
        }
        Ok(survey)
    }
}

/// What a byte of the script is inside of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Inside {
    Nothing,
    /// `'…'`; with backslashes that escape or without.
    Text {
        escapes: bool,
    },
    /// `"…"`
    Name,
    /// `$tag$…$tag$`, with the dollars.
    Dollars(Vec<u8>),
    /// `/* … */`, which nest.
    Comment(u32),
    Rows,
}

pub(super) struct Script {
    input: Box<dyn BufRead + Send>,
    shown: String,
    inside: Inside,
    /// Of the line that is being read.
    line: u64,
    begun: u64,
    statement: Vec<u8>,
    current: Vec<u8>,
    /// How far the current line was looked at.
    at: usize,
    parentheses: u32,
    /// `BEGIN ATOMIC … END` of functions in standard SQL, and `CASE … END` in them.
    blocks: u32,
    /// The first words of the statement, as far as they tell whether a block may follow.
    head: Vec<String>,
    standard_strings: bool,
    /// The line that ends the rows was read, and not yet told.
    rows_end: bool,
    complete: bool,
    ended: bool,
    /// Bytes that were read, of the script itself.
    pub bytes: u64,
}

impl Script {
    pub fn open(path: &Path) -> Result<Self, Problem> {
        let shown = path.display().to_string();
        let input = open_script(path).map_err(|e| file_problem(format!("read {shown}"), &e))?;
        Ok(Self::new(input, &shown))
    }

    fn new(input: Box<dyn BufRead + Send>, shown: &str) -> Self {
        Self {
            input,
            shown: shown.to_owned(),
            inside: Inside::Nothing,
            line: 0,
            begun: 0,
            statement: Vec::new(),
            current: Vec::new(),
            at: 0,
            parentheses: 0,
            blocks: 0,
            head: Vec::new(),
            standard_strings: true,
            rows_end: false,
            complete: false,
            ended: false,
            bytes: 0,
        }
    }

    /// `None` at the end of a whole script.
    pub fn next(&mut self) -> Result<Option<Piece>, Problem> {
        loop {
            if self.inside == Inside::Rows {
                return self.rows().map(Some);
            }
            if self.at == self.current.len() && !self.read_line()? {
                return self.end();
            }
            let line = std::mem::take(&mut self.current);
            let found = self.scan(&line);
            self.current = line;
            if let Some(piece) = found? {
                return Ok(Some(piece));
            }
        }
    }

    fn read_line(&mut self) -> Result<bool, Problem> {
        self.current.clear();
        self.at = 0;
        let limit = MAX_STATEMENT as u64;
        let read = std::io::Read::take(&mut self.input, limit)
            .read_until(b'\n', &mut self.current)
            .map_err(|e| self.unreadable(&e))?;
        self.line += 1;
        self.bytes += read as u64;
        if self.current.len() + self.statement.len() >= MAX_STATEMENT {
            return Err(self.refuse("is part of a statement that is too long"));
        }
        Ok(read > 0)
    }

    fn unreadable(&self, error: &std::io::Error) -> Problem {
        match error.kind() {
            // What gzip says of a file that was cut off or damaged.
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
                Problem::from_error(Code::RestoreFailed, format!("{} is damaged", self.shown), error)
            }
            _ => file_problem(format!("read {}", self.shown), error),
        }
    }

    fn end(&mut self) -> Result<Option<Piece>, Problem> {
        if self.ended {
            return Ok(None);
        }
        let open = self.inside != Inside::Nothing || !self.statement.iter().all(u8::is_ascii_whitespace);
        if open || !self.complete {
            let why = if open {
                format!("ends in the midst of a statement that begins in line {}", self.begun)
            } else {
                "does not end with pg_dump's last line, \"PostgreSQL database dump complete\"".to_owned()
            };
            return Err(
                Problem::new(Code::RestoreFailed, format!("{} {why}: it was cut off", self.shown))
                    .remedy("give the whole dump"),
            );
        }
        self.ended = true;
        Ok(None)
    }

    /// Rows up to the line `\.`, in pieces.
    fn rows(&mut self) -> Result<Piece, Problem> {
        if std::mem::take(&mut self.rows_end) {
            self.inside = Inside::Nothing;
            return Ok(Piece::EndOfRows);
        }
        let mut chunk = Vec::with_capacity(CHUNK);
        while chunk.len() < CHUNK {
            let start = chunk.len();
            let read = self
                .input
                .read_until(b'\n', &mut chunk)
                .map_err(|e| self.unreadable(&e))?;
            self.line += 1;
            self.bytes += read as u64;
            if read == 0 {
                let message = format!(
                    "{} ends in the midst of the rows of a table, which begin in line {}: it was cut off",
                    self.shown, self.begun
                );
                return Err(Problem::new(Code::RestoreFailed, message).remedy("give the whole dump"));
            }
            if matches!(&chunk[start..], b"\\.\n" | b"\\.\r\n" | b"\\.") {
                chunk.truncate(start);
                self.rows_end = true;
                break;
            }
        }
        Ok(Piece::Rows(chunk))
    }
}

impl Script {
    /// Goes on in the current line. `None` when the statement goes on in the next one.
    fn scan(&mut self, line: &[u8]) -> Result<Option<Piece>, Problem> {
        while let Some(rest) = line.get(self.at..).filter(|rest| !rest.is_empty()) {
            // Comments are dropped: the words of a statement shall be its own.
            let mut keep = !matches!(self.inside, Inside::Comment(_));
            let taken = match &mut self.inside {
                Inside::Nothing if rest[0] == b';' && self.parentheses == 0 && self.blocks == 0 => {
                    self.at += 1;
                    if let Some(piece) = self.statement(&line[self.at..])? {
                        return Ok(Some(piece));
                    }
                    continue;
                }
                Inside::Nothing => {
                    let taken;
                    (taken, keep) = self.outside(line, rest)?;
                    taken
                }
                Inside::Text { escapes: true } if rest[0] == b'\\' => 2.min(rest.len()),
                Inside::Text { .. } => leave(&mut self.inside, rest, b'\''),
                Inside::Name => leave(&mut self.inside, rest, b'"'),
                Inside::Dollars(tag) if rest.starts_with(tag) => {
                    let taken = tag.len();
                    self.inside = Inside::Nothing;
                    taken
                }
                Inside::Comment(depth) if rest.starts_with(b"*/") => {
                    *depth -= 1;
                    if *depth == 0 {
                        self.inside = Inside::Nothing;
                    }
                    2
                }
                Inside::Comment(depth) if rest.starts_with(b"/*") => {
                    *depth += 1;
                    2
                }
                Inside::Dollars(_) | Inside::Comment(_) | Inside::Rows => 1,
            };
            if keep {
                self.statement.extend_from_slice(&rest[..taken]);
            }
            self.at += taken;
        }
        Ok(None)
    }

    /// Outside of texts, names and comments: how many bytes are one thing, and whether they belong to the statement.
    fn outside(&mut self, line: &[u8], rest: &[u8]) -> Result<(usize, bool), Problem> {
        let first = rest[0];
        let blank = self.statement.is_empty();
        if first.is_ascii_whitespace() {
            return Ok((1, !blank));
        }
        if rest.starts_with(b"--") {
            if blank && rest.trim_ascii_end() == COMPLETE {
                self.complete = true;
            }
            return Ok((rest.trim_ascii_end().len().max(2), false));
        }
        if rest.starts_with(b"/*") {
            self.inside = Inside::Comment(1);
            if !blank {
                self.statement.push(b' ');
            }
            return Ok((2, false));
        }
        if first == b'\\' {
            // Written by newer versions of pg_dump to keep psql from obeying the data. Here there is nobody to obey.
            if blank && self.at == 0 && (rest.starts_with(b"\\restrict ") || rest.starts_with(b"\\unrestrict ")) {
                return Ok((rest.len(), false));
            }
            let command: String = String::from_utf8_lossy(&rest[1..])
                .chars()
                .take_while(|c| !c.is_whitespace())
                .take(20)
                .collect();
            let refusal = self.refuse(&format!("has the psql command \\{command}"));
            // Those are pg_dumpall's, and of a dump with --create.
            return Err(if matches!(command.as_str(), "connect" | "c") {
                refusal
            } else {
                refusal.remedy(
                    "pg_dump writes no such command: find out who put it there before anybody runs this script; or make the \
                     dump anew with pg_dump -Fc",
                )
            });
        }
        if blank {
            self.begun = self.line;
            // What follows the mark is not whole until it has its own.
            self.complete = false;
        }
        let follows_name = self.at > 0 && line.get(self.at - 1).is_some_and(|b| is_name_byte(*b));
        match first {
            b'\'' => {
                let before = self.at.checked_sub(1).and_then(|at| line.get(at));
                let alone = self.at < 2 || !is_name_byte(line[self.at - 2]);
                let escapes = matches!(before, Some(b'e' | b'E')) && alone || !self.standard_strings;
                self.inside = Inside::Text { escapes };
            }
            b'"' => self.inside = Inside::Name,
            b'(' => self.parentheses += 1,
            b')' => self.parentheses = self.parentheses.saturating_sub(1),
            b'$' if !follows_name => {
                if let Some(tag) = dollar_tag(rest) {
                    self.inside = Inside::Dollars(tag.to_vec());
                    return Ok((tag.len(), true));
                }
            }
            _ if is_name_byte(first) && !first.is_ascii_digit() && !follows_name => {
                let end = rest.iter().position(|b| !is_name_byte(*b)).unwrap_or(rest.len());
                // A text with a prefix (`E'…'`) begins at its quote.
                self.word(&rest[..end]);
                return Ok((end, true));
            }
            _ => {}
        }
        Ok((1, true))
    }

    /// Functions in standard SQL have statements of their own in their bodies.
    fn word(&mut self, word: &[u8]) {
        let word = String::from_utf8_lossy(word).to_ascii_uppercase();
        if self.head.len() < 4 {
            self.head.push(word.clone());
        }
        let head: Vec<&str> = self.head.iter().map(String::as_str).collect();
        let routine = matches!(
            head[..],
            ["CREATE", "FUNCTION" | "PROCEDURE", ..] | ["CREATE", "OR", "REPLACE", "FUNCTION" | "PROCEDURE", ..]
        );
        if !routine || self.parentheses > 0 {
            return;
        }
        match word.as_str() {
            "BEGIN" => self.blocks += 1,
            "CASE" if self.blocks > 0 => self.blocks += 1,
            "END" => self.blocks = self.blocks.saturating_sub(1),
            _ => {}
        }
    }

    /// A statement has ended; `after` is the rest of its line. `None` when there was nothing before the semicolon.
    fn statement(&mut self, after: &[u8]) -> Result<Option<Piece>, Problem> {
        self.head.clear();
        let bytes = std::mem::take(&mut self.statement);
        let line = self.begun;
        let Ok(sql) = String::from_utf8(bytes) else {
            return Err(self
                .refuse("is part of a statement that is not in UTF-8")
                .remedy("make the dump with pg_dump --encoding=UTF8, or with -Fc"));
        };
        let words = Words::of(&sql, 8);
        if words.len() == 0 {
            return Ok(None);
        }
        if words.first() == "COPY" {
            let words = Words::of(&sql, usize::MAX);
            let from_here = words.len() > 3 && words.is(words.len() - 2, "FROM") && words.is(words.len() - 1, "STDIN");
            if !from_here || !after.trim_ascii().is_empty() {
                return Err(self.refuse("copies from or to something else than the dump itself"));
            }
            self.at += after.len();
            self.inside = Inside::Rows;
            return Ok(Some(Piece::Copy { line, sql }));
        }
        if let Some(what) = beyond(&words, &sql) {
            return Err(self.refuse(&format!("reaches beyond the database: {what}")));
        }
        if words.first() == "SET" && words.is(1, "STANDARD_CONFORMING_STRINGS") {
            self.standard_strings = !words.is(2, "OFF");
        }
        Ok(Some(Piece::Statement { line, sql }))
    }

    fn refuse(&self, what: &str) -> Problem {
        Problem::new(
            Code::RestoreFailed,
            format!("line {} of {} {what}", self.line, self.shown),
        )
        .remedy(
            "make the dump of this one database with pg_dump, without --create, and not with pg_dumpall; or with -Fc",
        )
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

/// `$$` or `$tag$` at the beginning.
fn dollar_tag(rest: &[u8]) -> Option<&[u8]> {
    let end = rest.iter().skip(1).position(|b| *b == b'$')? + 1;
    let name = &rest[1..end];
    let fits = name.iter().all(|b| is_name_byte(*b) && *b != b'$') && !name.first().is_some_and(u8::is_ascii_digit);
    fits.then(|| &rest[..=end])
}

/// Inside of quotes: a doubled quote stays inside, a single one ends it.
fn leave(inside: &mut Inside, rest: &[u8], quote: u8) -> usize {
    if rest[0] != quote {
        return 1;
    }
    if rest.get(1) == Some(&quote) {
        return 2;
    }
    *inside = Inside::Nothing;
    1
}

#[cfg(test)]
mod tests;
