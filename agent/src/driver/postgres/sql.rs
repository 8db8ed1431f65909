//! What the SQL of a migration needs: where its statements begin, which of them cannot run inside the transaction that
//! the driver opens, and what it asks to be checked.
//!
//! Leaves out: grammar. Only the first words of each statement are looked at.

mod lexer;

use self::lexer::{Lexed, Statement};

/// Comments that are directives of ours begin so, after the dashes.
const DIRECTIVE: &str = "rollbackctl:";

/// Why a migration cannot be run by the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unsuitable {
    /// `CREATE INDEX CONCURRENTLY` and its like, or a `-- no-transaction` mark.
    NoTransaction(String),
    /// It begins or ends transactions in its midst.
    ControlsTransactions(String),
    /// `\dt` and its like: no server knows them.
    PsqlCommand(String),
    /// A `-- rollbackctl:` line that cannot be understood.
    BadDirective(String),
}

impl std::fmt::Display for Unsuitable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoTransaction(s) => write!(f, "{s:?} cannot run inside a transaction"),
            Self::ControlsTransactions(s) => write!(f, "{s:?} begins or ends a transaction of its own"),
            Self::PsqlCommand(s) => write!(
                f,
                "{s:?} is a command of psql, not SQL; take it out, and write what it was to show as \
                 `-- {DIRECTIVE}check-after SELECT …`"
            ),
            Self::BadDirective(why) => f.write_str(why),
        }
    }
}

/// A migration, cut into statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Script<'a> {
    /// All of it, to be sent at once inside our own transaction. A `BEGIN; … COMMIT;` around the whole is taken off: its
    /// COMMIT would end our transaction before the version row is written.
    pub body: &'a str,
    pub statements: Vec<Sentence<'a>>,
    /// The line that asks for no transaction around it (sqlx, dbmate, goose), if it has one.
    pub no_transaction: Option<&'a str>,
    pub checks: Checks,
}

/// One statement of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sentence<'a> {
    /// As it stands there, with its semicolon, without what comes before it.
    pub text: &'a str,
    /// It cannot run inside a transaction.
    pub needs_autocommit: bool,
    /// `ALTER TYPE … ADD VALUE`: can run in a transaction, but nothing can use the value before that is committed.
    pub adds_enum_value: bool,
    /// Its first words, for messages.
    pub shown: String,
}

/// Questions that must be answered with true, in the order in which they stand in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Checks {
    pub before: Vec<String>,
    pub after: Vec<String>,
}

impl Script<'_> {
    /// Why it cannot run in one transaction; `None` when it can.
    pub fn needs_autocommit(&self) -> Option<String> {
        let statement = || {
            self.statements
                .iter()
                .find(|s| s.needs_autocommit)
                .map(|s| s.shown.clone())
        };
        self.no_transaction
            .map(|line| line.trim().to_owned())
            .or_else(statement)
    }
}

/// Cuts a migration into its statements.
pub(super) fn split(text: &str) -> Result<Script<'_>, Unsuitable> {
    let Lexed {
        statements,
        comments,
        command,
    } = lexer::read(text);
    if let Some(command) = command {
        return Err(Unsuitable::PsqlCommand(command.to_owned()));
    }
    let mut no_transaction = no_transaction_mark(text);
    let mut body = text;
    let mut inner = &statements[..];
    if let [first, middle @ .., last] = &statements[..]
        && matches!(first.control(), Some(Control::Begin))
        && matches!(last.control(), Some(Control::Commit))
    {
        inner = middle;
        body = &text[first.end..last.start];
        // It brings a transaction of its own, so ours in its place is what it wants.
        no_transaction = None;
        if let Some(statement) = inner.iter().find(|s| s.needs_autocommit()) {
            return Err(Unsuitable::NoTransaction(statement.shown()));
        }
    }
    if let Some(statement) = inner.iter().find(|s| s.control().is_some()) {
        return Err(Unsuitable::ControlsTransactions(statement.shown()));
    }
    let sentence = |s: &Statement| Sentence {
        text: &text[s.start..s.end],
        needs_autocommit: s.needs_autocommit(),
        adds_enum_value: s.adds_enum_value(),
        shown: s.shown(),
    };
    Ok(Script {
        body,
        statements: inner.iter().map(sentence).collect(),
        no_transaction,
        checks: checks(&comments)?,
    })
}

/// One statement that asks something, without its semicolon. That it changes nothing is the business of the transaction
/// in which it is asked.
pub(super) fn question(text: &str) -> Result<&str, String> {
    let lexed = lexer::read(text);
    if let Some(command) = lexed.command {
        return Err(Unsuitable::PsqlCommand(command.to_owned()).to_string());
    }
    let [statement] = &lexed.statements[..] else {
        return Err(format!(
            "it has {} statements; one SELECT is asked for",
            lexed.statements.len()
        ));
    };
    match statement.words.first().map(String::as_str) {
        Some("SELECT" | "WITH" | "VALUES" | "TABLE") => {
            let text = &text[statement.start..statement.end];
            Ok(text.strip_suffix(';').unwrap_or(text).trim_end())
        }
        _ => Err(format!("{:?} is not a SELECT", statement.shown())),
    }
}

/// The first of the leading comments that says that the migration's tool runs it outside of a transaction.
fn no_transaction_mark(text: &str) -> Option<&str> {
    text.lines()
        .take_while(|l| l.trim().is_empty() || l.trim_start().starts_with("--"))
        .find(|l| {
            let mark = l.trim_start().trim_start_matches('-').trim().to_ascii_lowercase();
            matches!(mark.as_str(), "no-transaction" | "no_transaction" | "+notransaction")
                || mark.replace(' ', "").contains("transaction:false")
        })
}

fn checks(comments: &[&str]) -> Result<Checks, Unsuitable> {
    let mut checks = Checks::default();
    for comment in comments {
        let Some(directive) = comment.trim_start_matches('-').trim().strip_prefix(DIRECTIVE) else {
            // Somebody relies on a check that nobody would ask.
            if comment.contains(&format!("{DIRECTIVE}check")) {
                let message = format!("`{comment}`: a check must stand in a `--` comment of its own, at its beginning");
                return Err(Unsuitable::BadDirective(message));
            }
            continue;
        };
        let bad = |why: &str| Err(Unsuitable::BadDirective(format!("`-- {DIRECTIVE}{directive}`: {why}")));
        let (name, asked) = directive.split_once(char::is_whitespace).unwrap_or((directive, ""));
        let list = match name {
            "check-before" => &mut checks.before,
            "check-after" => &mut checks.after,
            _ => return bad("only check-before and check-after are known"),
        };
        match question(asked) {
            Ok(asked) => list.push(asked.to_owned()),
            Err(why) => return bad(&why),
        }
    }
    Ok(checks)
}

enum Control {
    Begin,
    Commit,
    Other,
}

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

    fn adds_enum_value(&self) -> bool {
        let words = self.words();
        matches!(words[..], ["ALTER", "TYPE", ..]) && words.windows(2).any(|two| two == ["ADD", "VALUE"])
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent inside our own transaction.
    fn in_transaction(text: &str) -> Result<&str, Unsuitable> {
        let script = split(text)?;
        match script.needs_autocommit() {
            Some(why) => Err(Unsuitable::NoTransaction(why)),
            None => Ok(script.body),
        }
    }

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

    #[test]
    fn statements_are_cut_where_they_end() {
        let text = "-- no-transaction\n-- a; b\nDROP INDEX CONCURRENTLY i; /* ; */ ALTER TYPE mood ADD VALUE 'so;so';\nSELECT 1";
        let script = split(text).expect("suitable");
        let found: Vec<_> = script
            .statements
            .iter()
            .map(|s| (s.text, s.needs_autocommit, s.adds_enum_value))
            .collect();
        assert_eq!(
            found,
            [
                ("DROP INDEX CONCURRENTLY i;", true, false),
                ("ALTER TYPE mood ADD VALUE 'so;so';", false, true),
                ("SELECT 1", false, false)
            ]
        );
        assert_eq!(script.no_transaction, Some("-- no-transaction"));
        let own = split("-- no-transaction\nBEGIN; DROP TABLE a; COMMIT;").expect("suitable");
        assert_eq!((own.no_transaction, own.body), (None, " DROP TABLE a; "));
        assert!(split("BEGIN; DROP INDEX CONCURRENTLY i; COMMIT;").is_err());
    }

    #[test]
    fn semicolons_inside_a_statement_do_not_end_it() {
        let rule = "CREATE RULE r AS ON INSERT TO t DO ALSO (INSERT INTO a VALUES (1); DELETE FROM b);";
        let function = "CREATE OR REPLACE FUNCTION f(n int) RETURNS int BEGIN ATOMIC\n  SELECT CASE n WHEN 1 THEN 2 END;\n  SELECT 3;\nEND;";
        let text = format!("{rule}{function}SELECT 1; CREATE FUNCTION g(atomic int) RETURNS int RETURN 4; SELECT (2");
        let script = split(&text).expect("suitable");
        let found: Vec<_> = script.statements.iter().map(|s| s.text).collect();
        assert_eq!(
            found,
            [
                rule,
                function,
                "SELECT 1;",
                "CREATE FUNCTION g(atomic int) RETURNS int RETURN 4;",
                "SELECT (2"
            ]
        );
        assert!(split(&format!("{function} COMMIT; SELECT 1")).is_err());
    }

    #[test]
    fn checks_are_found_in_comments_only() {
        let text = "--  rollbackctl:check-before SELECT count(*) = 0 FROM a;\nDROP TABLE a; -- rollbackctl:check-after SELECT 1 = 1\n\
                    DO $$ BEGIN\n-- rollbackctl:check-after SELECT 2\nEND $$; SELECT '\n-- rollbackctl:nothing';";
        let checks = split(text).expect("suitable").checks;
        assert_eq!(checks.before, ["SELECT count(*) = 0 FROM a"]);
        assert_eq!(checks.after, ["SELECT 1 = 1"]);
        for bad in [
            "-- rollbackctl:check SELECT 1",
            "-- rollbackctl:check-after",
            "-- rollbackctl:check-after DELETE FROM a",
            "-- rollbackctl:check-before SELECT 1; SELECT 2",
            "-- commit if this holds -- rollbackctl:check-after SELECT 1",
            "/* rollbackctl:check-after SELECT 1 */",
        ] {
            assert!(matches!(split(bad), Err(Unsuitable::BadDirective(_))), "{bad}");
        }
    }

    #[test]
    fn commands_of_psql_are_refused_wherever_they_stand() {
        for text in [
            "BEGIN;\nDROP TABLE a;\n\\dt\n\\d users\nCOMMIT;",
            "\\connect other",
            "SELECT 1 \\g",
        ] {
            assert!(matches!(split(text), Err(Unsuitable::PsqlCommand(_))), "{text}");
        }
        assert!(split("SELECT E'\\\\dt', '\\dt', $$\\dt$$ -- \\dt").is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[a-zA-Z$'\"/*;\\-\\\\ \nä]{0,60}") {
            let _ = in_transaction(&text);
        }
    }
}
