//! How a restored copy prints what was recorded otherwise.
//!
//! A restore parses every expression anew, and some come out in another form (`status IN ('a', 'b')` on a varchar column)
//! that means the same. Then a database that was restored from a backup would have another fingerprint than the release
//! that the backup shows. Which forms belong together is learned from the restore itself, where the copy is known to be
//! of that very schema, and the schema of the live database is read through it ([`Forms::recorded`]).
//!
//! A line in a known form means the same wherever it occurs, so what was learned stays true; it is never removed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rollback_proto::problem::Problem;
use serde::{Deserialize, Serialize};

use super::catalog::Schema;
use super::config::PostgresConfig;
use super::staging;

/// What a thing is called; its definition as restored; its definition as recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Forms(BTreeMap<String, BTreeMap<String, String>>);

fn path(config: &PostgresConfig) -> PathBuf {
    config.backups.join(format!("{}.forms.json", config.database))
}

impl Forms {
    /// Nothing when no restore ever taught any.
    pub fn load(config: &PostgresConfig) -> Result<Self, Problem> {
        staging::read_json(&path(config)).map(Option::unwrap_or_default)
    }

    /// Durable when it returns.
    pub fn save(&self, config: &PostgresConfig) -> Result<(), Problem> {
        staging::write_json(&path(config), self)
    }

    /// The schema in the forms that were recorded.
    pub fn recorded(&self, schema: Schema) -> Schema {
        let line = |(key, definition): (String, String)| {
            let recorded = self.0.get(&key).and_then(|forms| forms.get(&definition)).cloned();
            (key, recorded.unwrap_or(definition))
        };
        Schema(schema.0.into_iter().map(line).collect())
    }

    /// Takes every difference between the two for one of form: the caller knows that they are the same schema. Answers
    /// whether anything was new.
    pub fn learn(&mut self, recorded: &Schema, restored: &Schema) -> bool {
        let mut new = false;
        for (key, definition) in &recorded.0 {
            let Some(form) = restored.0.get(key).filter(|form| *form != definition) else {
                continue;
            };
            let known = self
                .0
                .entry(key.clone())
                .or_default()
                .insert(form.clone(), definition.clone());
            new |= known.as_ref() != Some(definition);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(lines: &[(&str, &str)]) -> Schema {
        Schema(lines.iter().map(|(k, d)| ((*k).to_owned(), (*d).to_owned())).collect())
    }

    #[test]
    fn a_restored_schema_is_read_as_the_one_that_was_recorded() {
        let recorded = schema(&[("constraint t c", "x IN (1, 2)"), ("table t", "")]);
        let restored = schema(&[("constraint t c", "x = ANY (1, 2)"), ("table t", "")]);
        let mut forms = Forms::default();
        assert!(forms.learn(&recorded, &restored));
        assert!(!forms.learn(&recorded, &restored));
        assert_eq!(forms.recorded(restored), recorded);
        let other = schema(&[("constraint t c", "x = ANY (1, 2, 3)"), ("table u", "x = ANY (1, 2)")]);
        assert_eq!(forms.recorded(other.clone()), other);
    }
}
