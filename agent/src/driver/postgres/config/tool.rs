//! `[component.tool]`: the project's own migration tool, as vectors of arguments. Nothing is run by a shell.
//!
//! Which database a run is about is said through the environment only, because the rehearsal runs the same vectors on a
//! copy. Values of `env` may hold `{database}`, `{host}`, `{port}` and `{user}`; a password is never among them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use regex::Regex;
use rollback_proto::problem::Problem;
use serde::Deserialize;

use super::bad;

/// Variables that the driver sets itself, for every run.
const OURS: [&str; 6] = ["PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSFILE", "PGAPPNAME"];

/// Names that `{…}` in a value may have.
const PLACEHOLDERS: [&str; 4] = ["database", "host", "port", "user"];

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolConfig {
    /// Where the vectors are run.
    pub directory: PathBuf,
    /// Prints the applied migrations, the oldest first; changes nothing.
    pub status: Vec<String>,
    /// Group 1 of each line that matches is the name of an applied migration. Without it every line that is not empty
    /// is a name.
    #[serde(default)]
    pub applied: Option<String>,
    /// Takes the newest migration, or the newest batch of them, down.
    pub down: Vec<String>,
    /// Brings the next migration, or all that are missing, up.
    pub up: Vec<String>,
    /// Where the tool notes what it did, `table` or `schema.table`. Dates and numbers in them come out otherwise when a
    /// migration has gone down and up again, so their content is not compared.
    #[serde(default)]
    pub tables: Vec<String>,
    /// Limit for each run.
    #[serde(default = "default_timeout", deserialize_with = "crate::duration::deserialize")]
    pub timeout: Duration,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

fn default_timeout() -> Duration {
    Duration::from_secs(300)
}

impl ToolConfig {
    pub(super) fn check(&self) -> Result<(), Problem> {
        if !self.directory.is_absolute() {
            let directory = self.directory.display();
            return Err(bad(format!("tool.directory {directory} must be an absolute path")));
        }
        for (key, argv) in [("status", &self.status), ("down", &self.down), ("up", &self.up)] {
            if argv.first().is_none_or(|program| program.trim().is_empty()) {
                return Err(bad(format!(
                    "tool.{key} must name a program and its arguments, each a string of its own"
                )));
            }
            if argv.iter().any(|arg| arg.contains('\0')) {
                return Err(bad(format!("tool.{key} has a zero byte in it")));
            }
        }
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(24 * 3600) {
            return Err(bad("tool.timeout must be between 1ms and 24h".into()));
        }
        self.pattern().map(|_| ())?;
        self.tables
            .iter()
            .try_for_each(|name| super::check_table("tool.tables", name))?;
        for (name, value) in &self.env {
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err(bad(format!("tool.env: {name:?} is not the name of a variable")));
            }
            if OURS.contains(&name.as_str()) {
                return Err(bad(format!("tool.env: {name} is set by the agent; leave it out")));
            }
            if name == "PGPASSWORD" {
                let message = "tool.env: no password belongs here; password_file reaches the tool as PGPASSFILE";
                return Err(bad(message.into()));
            }
            fill(value, |_| Some(String::new())).map_err(|why| bad(format!("tool.env: {name}: {why}")))?;
        }
        Ok(())
    }

    /// `applied`, ready to use; `None` when every line counts.
    pub(in crate::driver::postgres) fn pattern(&self) -> Result<Option<Regex>, Problem> {
        let Some(text) = &self.applied else { return Ok(None) };
        let pattern = Regex::new(text).map_err(|e| bad(format!("tool.applied {text:?} is not a pattern: {e}")))?;
        if pattern.captures_len() < 2 {
            return Err(bad(format!(
                "tool.applied {text:?} needs a group (…) around the migration's name"
            )));
        }
        Ok(Some(pattern))
    }

    /// Whether a table, or a sequence that is named after one, is the tool's own. `name` is `schema.table`.
    pub(in crate::driver::postgres) fn keeps(&self, name: &str) -> bool {
        let (schema, bare) = name.split_once('.').unwrap_or(("", name));
        self.tables.iter().any(|own| {
            let (own_schema, own) = own.split_once('.').unwrap_or((schema, own));
            own_schema == schema
                && bare
                    .strip_prefix(own)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        })
    }

    /// The variables for a run against `database`.
    pub(in crate::driver::postgres) fn variables(
        &self,
        value_of: impl Fn(&str) -> Option<String>,
    ) -> Result<Vec<(String, String)>, Problem> {
        let one = |(name, value): (&String, &String)| {
            let filled = fill(value, &value_of).map_err(|why| bad(format!("tool.env: {name}: {why}")))?;
            Ok((name.clone(), filled))
        };
        self.env.iter().map(one).collect()
    }
}

/// Puts values in the place of `{name}`.
fn fill(text: &str, value_of: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or("a { is never closed")?;
        let value = Some(name).filter(|n| PLACEHOLDERS.contains(n)).and_then(&value_of);
        let value = value.ok_or_else(|| format!("{{{name}}} is none of {{{}}}", PLACEHOLDERS.join("}, {")))?;
        filled.push_str(before);
        filled.push_str(&value);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(extra: &str) -> ToolConfig {
        let text = format!("directory = '/opt/zekka'\nstatus = ['npm']\ndown = ['npm']\nup = ['npm']\n{extra}");
        toml::from_str(&text).expect(extra)
    }

    #[test]
    fn what_could_not_be_run_is_refused() {
        tool("").check().expect("valid");
        tool("applied = '^\\[x\\] (\\S+)'\ntimeout = '10m'")
            .check()
            .expect("valid");
        for extra in [
            "tables = ['a b']",
            "applied = '['",
            "applied = '^x'",
            "timeout = '0s'",
            "[env]\nPGDATABASE = 'live'",
            "[env]\nPGPASSWORD = 'x'",
            "[env]\n'A B' = 'x'",
            "[env]\nDATABASE_URL = 'postgresql://{users}@x'",
            "[env]\nDATABASE_URL = 'postgresql://{user'",
        ] {
            assert!(tool(extra).check().is_err(), "{extra}");
        }
        let mut other = tool("");
        other.status.clear();
        assert!(other.check().is_err());
        let mut other = tool("");
        other.directory = "current".into();
        assert!(other.check().is_err());
    }

    #[test]
    fn its_own_tables_and_their_sequences_are_known() {
        let tool = tool("tables = ['knex_migrations', 'meta.applied']");
        for (name, own) in [
            ("public.knex_migrations", true),
            ("public.knex_migrations_id_seq", true),
            ("public.knex_migrations2", false),
            ("meta.applied", true),
            ("public.applied", false),
        ] {
            assert_eq!(tool.keeps(name), own, "{name}");
        }
    }

    #[test]
    fn placeholders_are_filled_once() {
        let tool = tool("[env]\nDATABASE_URL = 'postgresql://{user}@/{database}?host={host}&port={port}'");
        let value = |name: &str| {
            Some(if name == "user" {
                "{database}".to_owned()
            } else {
                name.to_uppercase()
            })
        };
        let variables = tool.variables(value).expect("known");
        assert_eq!(variables[0].1, "postgresql://{database}@/DATABASE?host=HOST&port=PORT");
    }
}
