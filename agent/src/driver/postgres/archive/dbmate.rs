//! dbmate's layout: one file for each migration, with the way up and the way down in it.
//!
//! ```sql
//! -- migrate:up
//! CREATE TABLE users (id bigint);
//! -- migrate:down transaction:false
//! DROP TABLE users;
//! ```
//!
//! Each part keeps its own line of the marker: the options in it are about that part. What was archived as a whole before
//! this layout was known comes apart when it is read.

use crate::driver::postgres::sql;

const MARKER: &str = "migrate:";

/// The two ways of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    pub up: &'a str,
    /// `None` when there is no such part, or nothing in it.
    pub down: Option<&'a str>,
}

/// Takes a file apart. `None` when it is not of this layout; an error when it is, but nobody could say what it means.
pub(super) fn parts(text: &str) -> Result<Option<Parts<'_>>, &'static str> {
    let (mut up, mut down) = (None, None);
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        match marker(line) {
            Some("up") if up.is_some() => return Err("it has two `-- migrate:up` parts"),
            Some("down") if down.is_some() => return Err("it has two `-- migrate:down` parts"),
            Some("up") => up = Some(at),
            Some("down") => down = Some(at),
            Some(_) | None => {}
        }
        at += line.len();
    }
    match (up, down) {
        (None, _) => Ok(None),
        (Some(up), Some(down)) if down < up => Err("its `-- migrate:down` part comes before `-- migrate:up`"),
        (Some(up), down) => {
            if holds_sql(&text[..up]) {
                return Err("it has SQL before `-- migrate:up`");
            }
            Ok(Some(Parts {
                up: &text[up..down.unwrap_or(text.len())],
                down: down.map(|down| &text[down..]).filter(|text| holds_sql(text)),
            }))
        }
    }
}

/// `up` of `-- migrate:up transaction:false`.
fn marker(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("--")?.trim_start().strip_prefix(MARKER)?;
    let word = rest.split_whitespace().next()?;
    rest.starts_with(word).then_some(word)
}

/// More than comments and white space.
fn holds_sql(text: &str) -> bool {
    // What cannot be run is SQL all the same.
    sql::split(text).map_or(true, |script| !script.statements.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_keep_their_options() {
        let text =
            "-- by hand\n\n-- migrate:up\nCREATE TABLE a (b int);\n\n--migrate:down transaction:false\nDROP TABLE a;\n";
        let found = parts(text).expect("clear").expect("of this layout");
        assert_eq!(found.up, "-- migrate:up\nCREATE TABLE a (b int);\n\n");
        assert_eq!(found.down, Some("--migrate:down transaction:false\nDROP TABLE a;\n"));
        // What was taken apart once stays as it is.
        assert_eq!(parts(found.up).expect("clear").expect("of this layout").up, found.up);
    }

    #[test]
    fn a_part_without_sql_is_no_way_down() {
        for text in [
            "-- migrate:up\nSELECT 1;",
            "-- migrate:up\nSELECT 1;\n-- migrate:down\n\n-- nothing yet\n",
        ] {
            assert_eq!(
                parts(text).expect("clear").expect("of this layout").down,
                None,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_not_of_this_layout_is_left_alone_and_what_is_unclear_is_refused() {
        for text in [
            "SELECT 1;",
            "-- migrated: up\n",
            "SELECT '-- migrate:up';",
            "-- migrate:\nup",
        ] {
            assert_eq!(parts(text), Ok(None), "{text}");
        }
        for text in [
            "-- migrate:up\nSELECT 1;\n-- migrate:up\nSELECT 2;",
            "-- migrate:down\nSELECT 1;\n-- migrate:up\nSELECT 2;",
            "SELECT 0;\n-- migrate:up\nSELECT 1;",
        ] {
            assert!(parts(text).is_err(), "{text}");
        }
    }
}
