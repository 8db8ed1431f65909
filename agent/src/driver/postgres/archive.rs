//! Where the SQL of migrations comes from: the migrations directory now, and the vault's copy made when a release was
//! recorded. Down migrations vanish from the directory together with the release that brought them.
//!
//! The archive goes before the directory: it holds what was there when the release was recorded as working. A file that
//! was edited since is reported; recording a release again takes the edited file in.
//!
//! A hand-written way down goes before both. It is looked at until it is rehearsed; then the vault's copy of what was
//! rehearsed counts ([`Hand`]).
//!
//! Two kinds of pins: one for each recorded revision, and one, the library, with every migration that was ever seen, by
//! number. Of migrations that the project's own tool runs only the names are recorded.

mod dbmate;
mod directory;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};

pub(super) use self::directory::leading_digits;
use self::directory::{Files, Texts, read_directory, read_manual};
use super::catalog::Schema;
use super::config::PostgresConfig;
use super::versions::Applied;
use crate::driver::Action;
use crate::vault::{ObjectId, Vault, VaultError};

/// The pin under which the library is kept; no digest looks like this.
const LIBRARY: &str = "migrations";

const FORMAT: u32 = 1;

/// A migration in the vault.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Archived {
    pub name: String,
    pub digits: String,
    pub up: Option<ObjectId>,
    pub down: Option<ObjectId>,
    /// The hand-written way down that was there when it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manual: Option<ObjectId>,
    /// What its row in the version table said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<String>,
}

/// What is pinned for a revision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Recorded {
    format: u32,
    pub version: String,
    pub applied: BTreeMap<i64, Archived>,
    /// The fingerprint's lines.
    schema: ObjectId,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Library {
    format: u32,
    migrations: BTreeMap<i64, Archived>,
}

/// A migration's SQL, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub name: String,
    /// What its row in the version table says, or would say.
    pub digits: String,
    pub up: Option<String>,
    pub down: Option<String>,
    /// The way down was written by hand: it may take its row out of the version table itself.
    pub manual: bool,
    /// File names whose content is not what was archived.
    pub edited: Vec<String>,
}

/// Which copy of a migration is recorded when the directory and the vault differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefer {
    /// The directory's: an operator records a release.
    Files,
    /// The vault's, as far as it has one: a rollback makes sure that it can come back.
    Archive,
}

/// Which hand-written ways down count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hand {
    /// Those in the directory now: nothing was rehearsed yet.
    Now,
    /// Those that were recorded when the rollback was staged: these were rehearsed.
    Staged,
}

impl Hand {
    /// A switch runs what `stage` rehearsed.
    pub fn of(action: Action) -> Self {
        match action {
            Action::Switch => Self::Staged,
            Action::Unspecified
            | Action::Prepare
            | Action::Stage
            | Action::Discard
            | Action::Snapshot
            | Action::Verify
            | Action::Finish
            | Action::Drain
            | Action::Resume
            | Action::Stop
            | Action::Start => Self::Now,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Archive {
    component: String,
    vault: Arc<Vault>,
    migrations: Option<PathBuf>,
    manual: Option<PathBuf>,
}

impl Archive {
    pub fn new(component: &str, vault: Arc<Vault>, config: &PostgresConfig) -> Self {
        Self {
            component: component.to_owned(),
            vault,
            migrations: config.migrations.clone(),
            manual: config.manual.clone(),
        }
    }

    pub fn vault(&self) -> Arc<Vault> {
        Arc::clone(&self.vault)
    }

    /// What was pinned for this revision; `None` when it was never recorded.
    pub fn recorded(&self, digest: &str) -> Result<Option<Recorded>, Problem> {
        self.vault.pinned(&self.component, digest).map_err(vault_problem)
    }

    pub fn schema_of(&self, recorded: &Recorded) -> Result<Schema, Problem> {
        let bytes = self.vault.get(&recorded.schema).map_err(vault_problem)?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Problem::from_error(Code::RevisionDamaged, "read a recorded schema", &e))
    }

    fn library(&self) -> Result<Library, Problem> {
        Ok(self
            .vault
            .pinned(&self.component, LIBRARY)
            .map_err(vault_problem)?
            .unwrap_or_default())
    }

    fn files(&self) -> Result<BTreeMap<i64, Files>, Problem> {
        self.migrations
            .as_deref()
            .map_or_else(|| Ok(BTreeMap::new()), read_directory)
    }

    fn hand_written(&self) -> Result<BTreeMap<i64, Files>, Problem> {
        self.manual.as_deref().map_or_else(|| Ok(BTreeMap::new()), read_manual)
    }

    /// Every migration number that the directory or the vault knows.
    pub fn numbers(&self) -> Result<BTreeSet<i64>, Problem> {
        let files = self.files()?.into_keys();
        Ok(files.chain(self.library()?.migrations.into_keys()).collect())
    }

    /// `002_scores` for 2, if any source knows the name.
    pub fn name(&self, number: i64) -> Result<Option<String>, Problem> {
        if let Some(files) = self.files()?.remove(&number) {
            return Ok(Some(files.name));
        }
        Ok(self.library()?.migrations.remove(&number).map(|m| m.name))
    }

    /// Pins a revision: the SQL of its applied migrations, both ways, and its schema. What the directory no longer has
    /// is taken from earlier copies. Durable when it returns. Answers with the names of migrations without a way down.
    pub fn record(
        &self,
        digest: &str,
        version: &str,
        numbers: &BTreeSet<i64>,
        applied: &Applied,
        schema: &Schema,
        prefer: Prefer,
    ) -> Result<Vec<String>, Problem> {
        let (files, manual) = (self.files()?, self.hand_written()?);
        let _keeping = self.vault.keeping().map_err(vault_problem)?;
        let mut library = self.library()?;
        let mut entries = BTreeMap::new();
        let mut one_way = Vec::new();
        for number in numbers {
            let mut entry = library.migrations.remove(number).unwrap_or_default();
            if let Some(files) = files.get(number) {
                let texts = files.read()?;
                let choose = |file: Option<ObjectId>, shelved: Option<ObjectId>| match prefer {
                    Prefer::Files => file.or(shelved),
                    Prefer::Archive => shelved.or(file),
                };
                entry.up = choose(self.shelve(texts.up.as_deref())?, entry.up);
                entry.down = choose(self.shelve(texts.down.as_deref())?, entry.down);
                (entry.name, entry.digits) = (files.name.clone(), files.digits.clone());
            }
            if let Some(row) = applied.text_of(*number) {
                entry.row = Some(row.to_owned());
            }
            if entry.name.is_empty() {
                entry.name = entry.row.clone().unwrap_or_else(|| number.to_string());
                entry.digits = number.to_string();
            }
            entry.manual = match manual.get(number) {
                Some(files) => self.shelve(check_hand(files, &entry.name)?.read()?.down.as_deref())?,
                None => None,
            };
            if entry.down.is_none() && entry.manual.is_none() && !applied.is_of_a_tool() {
                one_way.push(entry.name.clone());
            }
            library.migrations.insert(*number, entry.clone());
            entries.insert(*number, entry);
        }
        let lines =
            serde_json::to_vec(schema).map_err(|e| Problem::from_error(Code::Internal, "write a schema", &e))?;
        let schema = self.vault.put_bytes(&lines).map_err(vault_problem)?;
        library.format = FORMAT;
        self.vault
            .pin(&self.component, LIBRARY, &library)
            .map_err(vault_problem)?;
        let recorded = Recorded {
            format: FORMAT,
            version: version.to_owned(),
            applied: entries,
            schema,
        };
        self.vault
            .pin(&self.component, digest, &recorded)
            .map_err(vault_problem)?;
        Ok(one_way)
    }

    fn shelve(&self, text: Option<&str>) -> Result<Option<ObjectId>, Problem> {
        text.map(|text| self.vault.put_bytes(text.as_bytes()).map_err(vault_problem))
            .transpose()
    }

    /// The SQL of these migrations: from one of the revisions' own records, else the library, else the directory.
    pub fn resolve(
        &self,
        recorded: &[Option<&Recorded>],
        numbers: &BTreeSet<i64>,
        hand: Hand,
    ) -> Result<BTreeMap<i64, Known>, Problem> {
        let files = self.files()?;
        let manual = match hand {
            Hand::Now => self.hand_written()?,
            Hand::Staged => BTreeMap::new(),
        };
        let library = self.library()?;
        let mut all = BTreeMap::new();
        for number in numbers {
            let own = recorded.iter().flatten().find_map(|r| r.applied.get(number));
            let shelved = library.migrations.get(number);
            let local = files.get(number);
            let mut known = Known::default();
            if let Some((name, digits)) = own
                .or(shelved)
                .map(|a| (&a.name, &a.digits))
                .or(local.map(|f| (&f.name, &f.digits)))
            {
                (known.name, known.digits) = (name.clone(), digits.clone());
            } else {
                (known.name, known.digits) = (number.to_string(), number.to_string());
            }
            if let Some(row) = own
                .and_then(|a| a.row.as_ref())
                .or(shelved.and_then(|a| a.row.as_ref()))
            {
                known.digits.clone_from(row);
            } else if library.names_its_rows() {
                known.digits.clone_from(&known.name);
            }
            let archived = |pick: fn(&Archived) -> Option<&ObjectId>| own.and_then(pick).or(shelved.and_then(pick));
            let texts = Texts::apart(
                self.text(archived(|a| a.up.as_ref()))?,
                self.text(archived(|a| a.down.as_ref()))?,
                &known.name,
            )?;
            let local_texts = local.map(Files::read).transpose()?.unwrap_or_default();
            if let Some(files) = local {
                let differs = |kept: &Option<String>, file: &Option<String>| matches!((kept, file), (Some(kept), Some(file)) if kept != file);
                known
                    .edited
                    .extend(differs(&texts.up, &local_texts.up).then(|| files.up_name()));
                known
                    .edited
                    .extend(differs(&texts.down, &local_texts.down).then(|| files.down_name()));
                known.edited.dedup();
            }
            known.up = texts.up.or(local_texts.up);
            known.down = texts.down.or(local_texts.down);
            let by_hand = match (hand, manual.get(number)) {
                (Hand::Now, Some(files)) => check_hand(files, &known.name)?.read()?.down,
                (Hand::Now, None) => None,
                (Hand::Staged, _) => self.text(own.or(shelved).and_then(|a| a.manual.as_ref()))?,
            };
            if by_hand.is_some() {
                (known.down, known.manual) = (by_hand, true);
            }
            all.insert(*number, known);
        }
        Ok(all)
    }

    fn text(&self, archived: Option<&ObjectId>) -> Result<Option<String>, Problem> {
        let Some(id) = archived else { return Ok(None) };
        let bytes = self.vault.get(id).map_err(vault_problem)?;
        String::from_utf8(bytes)
            .map(Some)
            .map_err(|e| Problem::from_error(Code::RevisionDamaged, "read an archived migration", &e))
    }
}

impl Library {
    /// The project's tool writes whole names into its table (`20240115_security`), not numbers alone.
    fn names_its_rows(&self) -> bool {
        let mut rows = self.migrations.values().filter_map(|m| m.row.as_ref()).peekable();
        rows.peek().is_some() && rows.all(|row| !row.bytes().all(|b| b.is_ascii_digit()))
    }
}

/// A hand-written file that has only the number in common with the migration was meant for another one.
fn check_hand<'a>(files: &'a Files, name: &str) -> Result<&'a Files, Problem> {
    if files.name == name || files.name == files.digits || leading_digits(name) == Some(name) {
        return Ok(files);
    }
    let message = format!(
        "the hand-written {} has the number of migration {name}, but another name",
        files.down_name()
    );
    Err(Problem::new(Code::MigrationsDiverged, message).remedy(format!(
        "call it {name}.sql if it is the way down of {name}; remove it otherwise"
    )))
}

fn vault_problem(error: VaultError) -> Problem {
    let code = match &error {
        VaultError::Damaged { .. } | VaultError::BadPin { .. } => Code::RevisionDamaged,
        VaultError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Code::DiskFull,
        VaultError::Io { .. } => Code::FileFailed,
    };
    Problem::from_error(code, "use the vault", &error)
}
