//! Where the SQL of migrations comes from: the migrations directory now, and the vault's copy made when a release was
//! recorded. Down migrations vanish from the directory together with the release that brought them.
//!
//! The archive goes before the directory: it holds what was there when the release was recorded as working. A file that
//! was edited since is reported; recording a release again takes the edited file in.
//!
//! Two kinds of pins: one for each recorded revision, and one, the library, with every migration that was ever seen, by
//! number.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};

use super::catalog::Schema;
use super::versions::parse_number;
use crate::vault::{ObjectId, Vault, VaultError};

/// Larger migration files are refused.
const MAX_SQL: u64 = 16 * 1024 * 1024;

/// The pin under which the library is kept; no digest looks like this.
const LIBRARY: &str = "migrations";

const FORMAT: u32 = 1;

/// The files of one migration in the directory.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    /// `002_scores`
    pub name: String,
    /// `002`
    pub digits: String,
    pub up: Option<PathBuf>,
    pub down: Option<PathBuf>,
}

/// A migration in the vault.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Archived {
    pub name: String,
    pub digits: String,
    pub up: Option<ObjectId>,
    pub down: Option<ObjectId>,
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
    pub digits: String,
    pub up: Option<String>,
    pub down: Option<String>,
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

#[derive(Clone, Debug)]
pub(super) struct Archive {
    component: String,
    vault: Arc<Vault>,
    directory: PathBuf,
}

impl Archive {
    pub fn new(component: &str, vault: Arc<Vault>, directory: &Path) -> Self {
        Self {
            component: component.to_owned(),
            vault,
            directory: directory.to_owned(),
        }
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

    /// Every migration number that the directory or the vault knows.
    pub fn numbers(&self) -> Result<BTreeSet<i64>, Problem> {
        Ok(read_directory(&self.directory)?
            .into_keys()
            .chain(self.library()?.migrations.into_keys())
            .collect())
    }

    /// `002_scores` for 2, if any source knows the name.
    pub fn name(&self, number: i64) -> Result<Option<String>, Problem> {
        if let Some(files) = read_directory(&self.directory)?.remove(&number) {
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
        applied: &BTreeSet<i64>,
        schema: &Schema,
        prefer: Prefer,
    ) -> Result<Vec<String>, Problem> {
        let files = read_directory(&self.directory)?;
        let mut library = self.library()?;
        let mut entries = BTreeMap::new();
        let mut one_way = Vec::new();
        for number in applied {
            let mut entry = library.migrations.remove(number).unwrap_or_default();
            if let Some(files) = files.get(number) {
                let up = files
                    .up
                    .as_deref()
                    .map(|p| self.vault.put_file(p))
                    .transpose()
                    .map_err(vault_problem)?;
                let down = files
                    .down
                    .as_deref()
                    .map(|p| self.vault.put_file(p))
                    .transpose()
                    .map_err(vault_problem)?;
                let choose = |file: Option<ObjectId>, shelved: Option<ObjectId>| match prefer {
                    Prefer::Files => file.or(shelved),
                    Prefer::Archive => shelved.or(file),
                };
                entry = Archived {
                    name: files.name.clone(),
                    digits: files.digits.clone(),
                    up: choose(up, entry.up),
                    down: choose(down, entry.down),
                };
            }
            if entry.name.is_empty() {
                entry.name = number.to_string();
                entry.digits = number.to_string();
            }
            if entry.down.is_none() {
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

    /// The SQL of these migrations: from one of the revisions' own records, else the library, else the directory.
    pub fn resolve(
        &self,
        recorded: &[Option<&Recorded>],
        numbers: &BTreeSet<i64>,
    ) -> Result<BTreeMap<i64, Known>, Problem> {
        let files = read_directory(&self.directory)?;
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
            let archived = |pick: fn(&Archived) -> Option<&ObjectId>| own.and_then(pick).or(shelved.and_then(pick));
            let (up, down) = (archived(|a| a.up.as_ref()), archived(|a| a.down.as_ref()));
            known.up = self.text(up, local.and_then(|f| f.up.as_deref()), &mut known.edited)?;
            known.down = self.text(down, local.and_then(|f| f.down.as_deref()), &mut known.edited)?;
            all.insert(*number, known);
        }
        Ok(all)
    }

    fn text(
        &self,
        archived: Option<&ObjectId>,
        file: Option<&Path>,
        edited: &mut Vec<String>,
    ) -> Result<Option<String>, Problem> {
        let local = file.map(read_sql).transpose()?;
        let Some(id) = archived else { return Ok(local) };
        let bytes = self.vault.get(id).map_err(vault_problem)?;
        let text = String::from_utf8(bytes)
            .map_err(|e| Problem::from_error(Code::RevisionDamaged, "read an archived migration", &e))?;
        if let (Some(local), Some(name)) = (&local, file.and_then(Path::file_name))
            && *local != text
        {
            edited.push(name.to_string_lossy().into_owned());
        }
        Ok(Some(text))
    }
}

/// The migrations directory. Files that are named otherwise are none of our business; two migrations of one number are.
pub(super) fn read_directory(dir: &Path) -> Result<BTreeMap<i64, Files>, Problem> {
    let failed = |e| {
        Problem::from_error(
            Code::FileFailed,
            format!("read migrations directory {}", dir.display()),
            &e,
        )
    };
    let mut found: BTreeMap<i64, Files> = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some((digits, name, down)) = path.file_name().and_then(|n| n.to_str()).and_then(parse_file_name) else {
            continue;
        };
        let Some(number) = parse_number(digits) else { continue };
        let files = found.entry(number).or_default();
        let place = if down { &mut files.down } else { &mut files.up };
        if place.is_some() || (!files.name.is_empty() && files.name != name) {
            return Err(Problem::new(
                Code::MigrationsDiverged,
                format!(
                    "{} has two migrations with the number {number}: {} and {name}",
                    dir.display(),
                    files.name
                ),
            )
            .remedy("give one of the files another number, or remove it"));
        }
        *place = Some(path.clone());
        (files.name, files.digits) = (name.to_owned(), digits.to_owned());
    }
    Ok(found)
}

/// `002_scores.down.sql` is `("002", "002_scores", true)`. Without `.up` or `.down` it is an up migration.
fn parse_file_name(file: &str) -> Option<(&str, &str, bool)> {
    let stem = file.strip_suffix(".sql")?;
    let (name, down) = match (stem.strip_suffix(".up"), stem.strip_suffix(".down")) {
        (Some(name), _) => (name, false),
        (None, Some(name)) => (name, true),
        (None, None) => (stem, false),
    };
    let digits = &name[..name.find(|c: char| !c.is_ascii_digit()).unwrap_or(name.len())];
    let named = name.len() == digits.len() || name[digits.len()..].starts_with(['_', '-']);
    (!digits.is_empty() && named && rollback_proto::names::check_name("migration", name).is_ok())
        .then_some((digits, name, down))
}

fn read_sql(path: &Path) -> Result<String, Problem> {
    let failed = |e| Problem::from_error(Code::FileFailed, format!("read {}", path.display()), &e);
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_SQL {
        return Err(Problem::new(
            Code::FileFailed,
            format!("{} has {size} bytes, at most {MAX_SQL} are read", path.display()),
        ));
    }
    std::fs::read_to_string(path).map_err(failed)
}

fn vault_problem(error: VaultError) -> Problem {
    let code = match &error {
        VaultError::Damaged { .. } | VaultError::BadPin { .. } => Code::RevisionDamaged,
        VaultError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Code::DiskFull,
        VaultError::Io { .. } => Code::FileFailed,
    };
    Problem::from_error(code, "use the vault", &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_of_migrations_are_told_from_others() {
        assert_eq!(parse_file_name("002_scores.up.sql"), Some(("002", "002_scores", false)));
        assert_eq!(
            parse_file_name("20240101120000_add-x.down.sql"),
            Some(("20240101120000", "20240101120000_add-x", true))
        );
        assert_eq!(parse_file_name("3_plain.sql"), Some(("3", "3_plain", false)));
        for other in [
            "README.md",
            "scores.up.sql",
            "002_scores.up.sql.bak",
            "002x.up.sql",
            ".up.sql",
            "1_a b.up.sql",
        ] {
            assert_eq!(parse_file_name(other), None, "{other}");
        }
    }

    #[test]
    fn two_migrations_of_one_number_are_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for name in ["2_a.up.sql", "2_a.down.sql", "readme"] {
            std::fs::write(dir.path().join(name), "SELECT 1").expect("write");
        }
        let files = read_directory(dir.path()).expect("one migration");
        assert!(files[&2].up.is_some() && files[&2].down.is_some());
        std::fs::write(dir.path().join("002_b.up.sql"), "SELECT 1").expect("write");
        assert_eq!(
            read_directory(dir.path()).expect_err("two").code,
            Code::MigrationsDiverged
        );
    }
}
