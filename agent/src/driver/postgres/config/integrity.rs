//! `integrity = [{ name = "users", sql = "SELECT count(*) > 0 FROM users" }]`: questions about the data that must be
//! answered with true. A plain string is a question, too, and is called after its place in the list.
//!
//! Only the form is checked here. That a question changes nothing is seen to where it is asked: in a read-only
//! transaction.

use rollback_proto::problem::Problem;
use serde::{Deserialize, Deserializer};

use super::bad;
use crate::driver::postgres::sql;

/// One question. Its first column of its only row must be true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntegrityCheck {
    /// What messages call it; empty until [`check_all`]'s callers ask for [`IntegrityCheck::name`].
    name: Option<String>,
    pub sql: String,
}

impl IntegrityCheck {
    /// `place` is the position in the list, from 0.
    pub fn name(&self, place: usize) -> String {
        self.name
            .clone()
            .unwrap_or_else(|| format!("integrity check {}", place + 1))
    }
}

impl<'de> Deserialize<'de> for IntegrityCheck {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Named {
            name: String,
            sql: String,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Plain(String),
            Named(Named),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Plain(sql) => Self { name: None, sql },
            Form::Named(Named { name, sql }) => Self { name: Some(name), sql },
        })
    }
}

/// Each is one statement that asks, and no two have one name.
pub(super) fn check_all(checks: &[IntegrityCheck]) -> Result<(), Problem> {
    for (place, check) in checks.iter().enumerate() {
        let name = check.name(place);
        if check
            .name
            .as_ref()
            .is_some_and(|name| name.trim().is_empty() || name.len() > 100)
        {
            return Err(bad(format!("integrity: the name {name:?} must have 1 to 100 bytes")));
        }
        sql::question(&check.sql).map_err(|why| bad(format!("integrity: {name}: {why}")))?;
        if (0..place).any(|earlier| checks[earlier].name(earlier) == name) {
            return Err(bad(format!("integrity: two checks are called {name:?}")));
        }
    }
    Ok(())
}
