//! How the server's errors become problems.
//!
//! Problems go into journals, traces and terminals, so no row's content may be in them: what the server says of an error
//! about data (SQLSTATE classes 22 and 23) quotes values, and is replaced by the names of what the error is about.

use std::io::ErrorKind;

use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgDatabaseError;

/// A server's error with what helps to find its cause; other errors with their chain. Neither holds the password.
pub(super) fn sql_problem(code: Code, what: impl std::fmt::Display, error: &sqlx::Error) -> Problem {
    let Some(server) = server_error(error) else {
        return Problem::from_error(code, what, error);
    };
    let code = match server.code() {
        "53100" => Code::DiskFull,
        "55P03" | "40P01" => Code::DatabaseLocked,
        _ => code,
    };
    if is_about_data(server.code()) {
        return Problem::new(code, format!("{what}: {}", without_data(server)));
    }
    let mut message = format!("{what}: {} (SQLSTATE {})", server.message(), server.code());
    let place = server.r#where().filter(|text| !text.starts_with("COPY"));
    for (label, text) in [("detail", server.detail()), ("where", place)] {
        if let Some(text) = text {
            let text: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
            message.push_str(&format!("; {label}: {text}"));
        }
    }
    Problem::new(code, message)
}

pub(super) fn server_error(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error
        .as_database_error()
        .and_then(|e| e.try_downcast_ref::<PgDatabaseError>())
}

/// The server is starting, stopping, restarting or full: another attempt may succeed.
pub(super) fn is_passing(error: &sqlx::Error) -> bool {
    if let sqlx::Error::Io(io) = error {
        return matches!(
            io.kind(),
            // A server that is down has no socket.
            ErrorKind::ConnectionRefused
                | ErrorKind::NotFound
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
                | ErrorKind::WouldBlock
        );
    }
    server_error(error).is_some_and(|e| matches!(e.code(), "57P01" | "57P02" | "57P03" | "53300"))
}

fn is_about_data(sqlstate: &str) -> bool {
    sqlstate.starts_with("22") || sqlstate.starts_with("23")
}

fn without_data(error: &PgDatabaseError) -> String {
    let mut text = format!("{} (SQLSTATE {})", condition(error.code()), error.code());
    let table = match (error.schema(), error.table()) {
        (Some(schema), Some(table)) => Some(format!("{schema}.{table}")),
        (None, table) => table.map(str::to_owned),
        (Some(_), None) => None,
    };
    for (label, name) in [
        ("table", table.as_deref()),
        ("column", error.column()),
        ("constraint", error.constraint()),
        ("data type", error.data_type()),
        // Only this kind of line has names alone.
        (
            "where",
            error
                .r#where()
                .and_then(|text| text.lines().find(|l| l.starts_with("PL/pgSQL function "))),
        ),
    ] {
        if let Some(name) = name {
            text.push_str(&format!("; {label}: {name}"));
        }
    }
    text
}

/// What PostgreSQL's documentation calls it, in words.
fn condition(sqlstate: &str) -> &'static str {
    match sqlstate {
        "22001" => "a text is too long for its column",
        "22003" => "a number is out of range",
        "22004" => "a null value is not allowed",
        "22007" => "a value has not the form of a date or time",
        "22008" => "a date or time is out of range",
        "22012" => "division by zero",
        "22021" => "a character is not in the encoding",
        "2202E" => "array subscript error",
        "22023" => "invalid parameter value",
        "22026" => "a text has the wrong length",
        "22030" | "22032" | "22033" | "22034" | "22038" | "2203A" => "a value is not the expected JSON",
        "22P02" => "a value has not the form of its type",
        "22P03" => "a value has not the binary form of its type",
        "22P04" => "bad format of COPY data",
        "22P05" => "a character cannot be translated",
        "23001" => "restrict violation",
        "23502" => "not-null violation",
        "23503" => "foreign-key violation",
        "23505" => "unique violation",
        "23514" => "check violation",
        "23P01" => "exclusion violation",
        _ if sqlstate.starts_with("23") => "integrity constraint violation",
        _ => "data exception",
    }
}

/// What `pg_restore` and `pg_dump` say goes into messages, too: without what they quote of rows. They give no SQLSTATE, so
/// only the beginnings of their lines are kept where a line may quote one.
pub(super) fn tool_text_without_data(text: &str) -> String {
    let quotes_data = |line: &str| {
        ["DETAIL: ", "CONTEXT: "].iter().any(|label| line.contains(label))
            || ["COPY ", "LINE "]
                .iter()
                .any(|label| line.trim_start().starts_with(label))
    };
    let cut = |line: &str| {
        // `… ERROR:  invalid input syntax for type integer: "…"`, `… value "…" is out of range for type integer`.
        let from = line.find("ERROR:").map_or(line.len(), |at| at + "ERROR:".len());
        let (head, said) = line.split_at(from);
        let end = [": \"", "value \"", "value: "]
            .iter()
            .filter_map(|p| said.find(p))
            .min();
        match end {
            Some(end) => format!("{head}{} …", &said[..end]),
            None => line.to_owned(),
        }
    };
    text.lines()
        .filter(|line| !quotes_data(line))
        .map(cut)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pg_restore_quotes_of_rows_is_cut() {
        let said = "pg_restore: error: COPY failed for table \"users\": ERROR:  invalid input syntax for type integer: \"alice@example.org\"\n\
                    CONTEXT:  COPY users, line 3, column score: \"alice@example.org\"\n\
                    pg_restore: error: could not execute query: ERROR:  could not create unique index \"users_name\"\n\
                    DETAIL:  Key (name)=(alice) is duplicated.\n\
                    pg_restore: warning: errors ignored on restore: 1";
        let text = tool_text_without_data(said);
        assert!(!text.contains("alice"), "{text}");
        assert!(
            text.contains("for table \"users\"") && text.contains("invalid input syntax for type integer"),
            "{text}"
        );
        assert!(
            text.contains("unique index \"users_name\"") && text.contains("errors ignored"),
            "{text}"
        );
        assert_eq!(
            tool_text_without_data("No space left on device"),
            "No space left on device"
        );
    }

    #[test]
    fn errors_of_transport_that_pass() {
        for (kind, passing) in [
            (ErrorKind::ConnectionRefused, true),
            (ErrorKind::NotFound, true),
            (ErrorKind::ConnectionReset, true),
            (ErrorKind::PermissionDenied, false),
            (ErrorKind::InvalidData, false),
        ] {
            assert_eq!(is_passing(&sqlx::Error::Io(kind.into())), passing, "{kind:?}");
        }
        assert!(!is_passing(&sqlx::Error::RowNotFound));
    }
}
