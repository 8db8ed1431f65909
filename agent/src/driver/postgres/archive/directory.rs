//! Migrations as files: the project's directory, and the one with hand-written ways down.
//!
//! Layouts: `NNN_name.up.sql` with `NNN_name.down.sql` (golang-migrate, sqlx), `NNN_name.sql` with both parts (dbmate), or
//! `NNN_name.sql` with a way up only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rollback_proto::problem::{Code, Problem};

use super::dbmate;
use crate::driver::postgres::versions::parse_number;

/// Larger migration files are refused.
const MAX_SQL: u64 = 16 * 1024 * 1024;

/// The files of one migration.
#[derive(Clone, Debug, Default)]
pub(in crate::driver::postgres) struct Files {
    /// `002_scores`
    pub name: String,
    /// `002`
    pub digits: String,
    pub up: Option<PathBuf>,
    pub down: Option<PathBuf>,
}

/// The SQL of one migration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Texts {
    pub up: Option<String>,
    pub down: Option<String>,
}

impl Files {
    /// Reads what there is.
    pub(super) fn read(&self) -> Result<Texts, Problem> {
        let up = self.up.as_deref().map(read_sql).transpose()?;
        let down = self.down.as_deref().map(read_sql).transpose()?;
        Texts::apart(up, down, &self.name)
    }

    /// What messages call the file that the way down comes from.
    pub(super) fn down_name(&self) -> String {
        let path = self.down.as_ref().or(self.up.as_ref());
        let name = path.and_then(|p| p.file_name());
        name.map_or_else(|| self.name.clone(), |n| n.to_string_lossy().into_owned())
    }

    pub(super) fn up_name(&self) -> String {
        let name = self.up.as_ref().and_then(|p| p.file_name());
        name.map_or_else(|| self.name.clone(), |n| n.to_string_lossy().into_owned())
    }
}

impl Texts {
    /// Takes a file with both parts apart.
    pub(super) fn apart(up: Option<String>, down: Option<String>, name: &str) -> Result<Self, Problem> {
        let unclear = |why| {
            Problem::new(Code::MigrationsDiverged, format!("migration {name} is unclear: {why}"))
                .remedy("write it as dbmate does: one `-- migrate:up` part, then one `-- migrate:down` part")
        };
        let Some(parts) = up.as_deref().map(dbmate::parts).transpose().map_err(unclear)?.flatten() else {
            return Ok(Self { up, down });
        };
        Ok(Self {
            down: down.or_else(|| parts.down.map(str::to_owned)),
            up: Some(parts.up.to_owned()),
        })
    }
}

/// The migrations directory. Files that are named otherwise are none of our business; two migrations of one number are.
pub(in crate::driver::postgres) fn read_directory(dir: &Path) -> Result<BTreeMap<i64, Files>, Problem> {
    let mut found: BTreeMap<i64, Files> = BTreeMap::new();
    for (path, Name { digits, name, way }) in named_files(dir, "migrations")? {
        let Some(number) = parse_number(&digits) else { continue };
        let files = found.entry(number).or_default();
        let place = match way {
            Way::Down => &mut files.down,
            Way::Up | Way::Unsaid => &mut files.up,
        };
        if place.is_some() || (!files.name.is_empty() && files.name != name) {
            return Err(twice(dir, number, &files.name, &name));
        }
        *place = Some(path);
        (files.name, files.digits) = (name, digits);
    }
    Ok(found)
}

/// The directory with hand-written ways down.
pub(super) fn read_manual(dir: &Path) -> Result<BTreeMap<i64, Files>, Problem> {
    let mut found: BTreeMap<i64, Files> = BTreeMap::new();
    for (path, Name { digits, name, way }) in named_files(dir, "manual")? {
        let Some(number) = parse_number(&digits) else { continue };
        if way == Way::Up {
            let message = format!(
                "{} is a way up; the manual directory holds ways down only",
                path.display()
            );
            return Err(Problem::new(Code::BadConfig, message).remedy("move the file to the migrations directory"));
        }
        if let Some(other) = found.get(&number) {
            return Err(twice(dir, number, &other.name, &name));
        }
        let down = Some(path);
        found.insert(
            number,
            Files {
                name,
                digits,
                up: None,
                down,
            },
        );
    }
    Ok(found)
}

fn twice(dir: &Path, number: i64, one: &str, other: &str) -> Problem {
    let dir = dir.display();
    Problem::new(
        Code::MigrationsDiverged,
        format!("{dir} has two migrations with the number {number}: {one} and {other}"),
    )
    .remedy("give one of the files another number, or remove it")
}

fn named_files(dir: &Path, what: &str) -> Result<Vec<(PathBuf, Name)>, Problem> {
    let failed = |e| Problem::from_error(Code::FileFailed, format!("read {what} directory {}", dir.display()), &e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(parse_file_name) {
            found.push((path, name));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}

#[derive(Debug, PartialEq, Eq)]
enum Way {
    Up,
    Down,
    /// Neither `.up` nor `.down`.
    Unsaid,
}

#[derive(Debug, PartialEq, Eq)]
struct Name {
    digits: String,
    name: String,
    way: Way,
}

/// `002_scores.down.sql` is `002`, `002_scores`, down.
fn parse_file_name(file: &str) -> Option<Name> {
    let stem = file.strip_suffix(".sql")?;
    let (name, way) = match (stem.strip_suffix(".up"), stem.strip_suffix(".down")) {
        (Some(name), _) => (name, Way::Up),
        (None, Some(name)) => (name, Way::Down),
        (None, None) => (stem, Way::Unsaid),
    };
    let digits = leading_digits(name)?;
    rollback_proto::names::check_name("migration", name).ok()?;
    Some(Name {
        digits: digits.to_owned(),
        name: name.to_owned(),
        way,
    })
}

/// `002` of `002_scores`, `002-scores` and `002`.
pub(in crate::driver::postgres) fn leading_digits(name: &str) -> Option<&str> {
    let digits = &name[..name.find(|c: char| !c.is_ascii_digit()).unwrap_or(name.len())];
    let named = name.len() == digits.len() || name[digits.len()..].starts_with(['_', '-']);
    (!digits.is_empty() && named).then_some(digits)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_of_migrations_are_told_from_others() {
        let parsed = |file: &str| parse_file_name(file).map(|n| (n.digits, n.name, n.way));
        let expected = |digits: &str, name: &str, way| Some((digits.to_owned(), name.to_owned(), way));
        assert_eq!(parsed("002_scores.up.sql"), expected("002", "002_scores", Way::Up));
        assert_eq!(
            parsed("20240101120000_add-x.down.sql"),
            expected("20240101120000", "20240101120000_add-x", Way::Down)
        );
        assert_eq!(parsed("3_plain.sql"), expected("3", "3_plain", Way::Unsaid));
        for other in [
            "README.md",
            "scores.up.sql",
            "002_scores.up.sql.bak",
            "002x.up.sql",
            ".up.sql",
            "1_a b.up.sql",
        ] {
            assert_eq!(parsed(other), None, "{other}");
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
        assert_eq!(read_manual(dir.path()).expect_err("a way up").code, Code::BadConfig);
    }
}
