//! The fingerprint of a schema: a readable list of everything that a migration can change, and the digest over it that
//! is the revision of a database.
//!
//! Equal schemas have equal lists, whatever the order in which their columns came to be. What is read is decided in
//! `catalog.sql`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::versions::Applied;

/// Differing lines that a message shows.
const SHOWN: usize = 4;

/// What a thing is called (`column public.users.score`) and how it is defined (`integer not null default 0`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Schema(pub BTreeMap<String, String>);

impl Schema {
    /// Reads the schema of the session's database. The session is a reader, or has an empty search path for now.
    pub async fn read(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let rows = sqlx::query(include_str!("catalog.sql")).fetch_all(connection).await?;
        rows.iter()
            .map(|row| Ok((row.try_get("key")?, row.try_get("definition")?)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// `sha256:…` over the schema and the applied migrations.
    pub fn digest(&self, applied: &Applied) -> String {
        let mut hash = Sha256::new();
        hash.update("rollbackctl schema 1\n");
        for (key, definition) in &self.0 {
            // Lengths, so that no definition can look like the beginning of the next line.
            hash.update(format!("{} {}\n{key}\n{definition}\n", key.len(), definition.len()));
        }
        for line in applied.lines() {
            hash.update(line);
        }
        format!("sha256:{}", hex::encode(hash.finalize()))
    }

    /// The first differences to what was expected, for a message; `None` when there are none.
    pub fn differences(&self, expected: &Self) -> Option<String> {
        let mut lines = Vec::new();
        for (key, definition) in &expected.0 {
            match self.0.get(key) {
                None => lines.push(format!("missing: {}", shown(key, definition))),
                Some(found) if found != definition => {
                    lines.push(format!(
                        "changed: {}, expected {}",
                        shown(key, found),
                        shown("", definition)
                    ));
                }
                Some(_) => {}
            }
        }
        for (key, definition) in &self.0 {
            if !expected.0.contains_key(key) {
                lines.push(format!("not expected: {}", shown(key, definition)));
            }
        }
        if lines.is_empty() {
            return None;
        }
        let more = lines.len().saturating_sub(SHOWN);
        lines.truncate(SHOWN);
        let mut text = lines.join("; ");
        if more > 0 {
            text.push_str(&format!("; and {more} more"));
        }
        Some(text)
    }

    /// What this schema, read of a restored copy, looks like where the copy came from. A restore prints and parses every
    /// expression anew, and some come out otherwise (`status IN ('a', 'b')` on a varchar column): where a thing is still
    /// as it was when it was `restored`, the `live` form of it is meant. What a migration made anew is in its own form.
    pub fn in_live_form(mut self, live: &Self, restored: &Self) -> Self {
        self.0.retain(|key, definition| {
            let as_restored = restored.0.get(key) == Some(definition);
            match live.0.get(key) {
                Some(live) if as_restored => definition.clone_from(live),
                // A fresh database has a schema `public` even if the original dropped its own.
                None if as_restored => return false,
                Some(_) | None => {}
            }
            true
        });
        self
    }

    /// Things that one of the two has and the other has not, by name only.
    pub fn missing_from(&self, other: &Self) -> Vec<&str> {
        self.0
            .keys()
            .filter(|key| !other.0.contains_key(*key))
            .map(String::as_str)
            .collect()
    }
}

fn shown(key: &str, definition: &str) -> String {
    let definition = definition.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = definition.chars().take(120).collect();
    let dots = if short.len() < definition.len() { "…" } else { "" };
    format!("{key} {short}{dots}").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(lines: &[(&str, &str)]) -> Schema {
        Schema(lines.iter().map(|(k, d)| ((*k).to_owned(), (*d).to_owned())).collect())
    }

    #[test]
    fn differences_name_what_is_missing_changed_and_new() {
        let expected = schema(&[("column a.b", "integer"), ("table a", "")]);
        let found = schema(&[("column a.b", "bigint"), ("table c", "")]);
        let text = found.differences(&expected).expect("they differ");
        assert_eq!(
            text,
            "changed: column a.b bigint, expected integer; missing: table a; not expected: table c"
        );
        assert_eq!(found.differences(&found), None);
    }

    #[test]
    fn a_line_cannot_be_forged_by_another_definition() {
        let one = schema(&[("a", "x\nb\ny")]);
        let two = schema(&[("a", "x"), ("b", "y")]);
        let none = Applied::default();
        assert_ne!(one.digest(&none), two.digest(&none));
    }

    #[test]
    fn what_a_restore_prints_otherwise_is_the_same() {
        let live = schema(&[("constraint t c", "live form"), ("column t.x", "int")]);
        let restored = schema(&[
            ("constraint t c", "restored form"),
            ("column t.x", "int"),
            ("schema public", ""),
        ]);
        assert_eq!(restored.clone().in_live_form(&live, &restored), live);
        // Dropped and made again on the copy: it has the live form there.
        let again = schema(&[
            ("constraint t c", "live form"),
            ("column t.x", "int"),
            ("schema public", ""),
        ]);
        assert_eq!(again.in_live_form(&live, &restored), live);
        let other = schema(&[("constraint t c", "older form"), ("table u", "")]);
        assert_eq!(other.clone().in_live_form(&live, &restored), other);
    }
}
