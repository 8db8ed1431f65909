//! The sealed backups of a database: what there is, which of them a restore takes, and which of them are retired.
//!
//! A backup is its manifest, `<name>.manifest.json`; the dump lies beside it, or, when it was taken in, wherever it was.
//! A dump without a manifest is nobody's backup, and nobody's to delete: its manifest was moved away, and somebody may want
//! to take it in again. A manifest that cannot be read as ours is left alone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use rollback_proto::kill_point;
use rollback_proto::problem::{Code, Problem};
use serde::Serialize;

use super::PostgresDriver;
use super::config::PostgresConfig;
use super::dump::Dump;
use super::manifest::{Manifest, Proof};
use super::staging::{self, file_problem};

const MANIFEST_SUFFIX: &str = ".manifest.json";

/// A backup that was proven.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    /// For people and for the command line: what its files are called.
    pub name: String,
    pub manifest: Manifest,
    pub manifest_path: PathBuf,
    pub dump: Dump,
}

impl Sealed {
    /// The dump is there and as long as it was. That it is the same is seen by its SHA-256, when it is used.
    pub fn is_whole(&self) -> bool {
        self.dump.bytes() == Some(self.manifest.bytes)
    }

    /// It was restored, and it shows this revision: itself, or as a restored copy shows it.
    pub fn shows(&self, revision: &str) -> bool {
        self.manifest.proof == Some(Proof::Restore)
            && (self.manifest.revision == revision || self.manifest.restored_revision.as_deref() == Some(revision))
    }

    /// Takes the SHA-256 again. An error when it is not what was proven.
    pub async fn check(&self) -> Result<(), Problem> {
        let next = || {
            let component = &self.manifest.component;
            let another = if self.manifest.external.is_some() {
                format!("take in another dump: rollback-agent database adopt {component} DUMP")
            } else {
                format!("make another backup: rollback-agent database backup {component}")
            };
            format!("move {} away; {another}", self.files())
        };
        let (sha256, bytes) = self.dump.sha256().await.map_err(|problem| {
            if problem.code == Code::BackupUnproven {
                problem.remedy(next())
            } else {
                problem
            }
        })?;
        if sha256 == self.manifest.sha256 && bytes == self.manifest.bytes {
            return Ok(());
        }
        let message = format!(
            "{} has changed since it was proven: {bytes} bytes, SHA-256 {sha256}, instead of {} bytes, {}",
            self.dump.path.display(),
            self.manifest.bytes,
            self.manifest.sha256
        );
        Err(Problem::new(Code::BackupUnproven, message).remedy(next()))
    }

    /// What to move away, so that it is no backup any more: the dump, if there is one, and the manifest.
    fn files(&self) -> String {
        let manifest = self.manifest_path.display();
        if self.dump.path.exists() {
            format!("{} and {manifest}", self.dump.path.display())
        } else {
            manifest.to_string()
        }
    }
}

/// What is dated later than this from now was dated by a wrong clock, then or now; a dump's own header may be off by a time
/// zone.
const FUTURE: SignedDuration = SignedDuration::from_hours(24);

/// All of a component's database, the newest first; what is dated in the future comes last. Empty when there is no directory yet.
pub(super) fn list(config: &PostgresConfig, component: &str) -> Result<Vec<Sealed>, Problem> {
    let dir = &config.backups;
    let failed = |e: std::io::Error| file_problem(format!("read {}", dir.display()), &e);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(read(&entry.map_err(failed)?.path()));
    }
    found.retain(|b| b.manifest.database == config.database && b.manifest.component == component);
    let now = Timestamp::now();
    let sane = |b: &Sealed| b.manifest.taken_at.duration_since(now) <= FUTURE;
    found.sort_by(|a, b| (sane(b), b.manifest.taken_at, &b.name).cmp(&(sane(a), a.manifest.taken_at, &a.name)));
    Ok(found)
}

fn read(path: &Path) -> Option<Sealed> {
    let name = path.file_name()?.to_str()?.strip_suffix(MANIFEST_SUFFIX)?.to_owned();
    let manifest = staging::read_json::<Manifest>(path).ok().flatten()?;
    let beside = || path.with_file_name(format!("{name}.dump"));
    let dump = Dump {
        path: manifest.external.clone().unwrap_or_else(beside),
        format: manifest.dump_format,
    };
    Some(Sealed {
        name,
        manifest,
        manifest_path: path.to_owned(),
        dump,
    })
}

/// The backup that a restore to a revision takes: the newest that was restored once, is there, and kept what the integrity
/// checks ask; if none did, the newest all the same.
pub(super) fn newest_of(config: &PostgresConfig, component: &str, revision: &str) -> Result<Option<Sealed>, Problem> {
    Ok(best(&list(config, component)?, revision).cloned())
}

fn best<'a>(all: &'a [Sealed], revision: &str) -> Option<&'a Sealed> {
    let mut fit = all.iter().filter(|b| b.shows(revision) && b.is_whole());
    let keeps = fit.clone().find(|b| b.manifest.broken.is_empty());
    keeps.or_else(|| fit.next())
}

/// What to do about a backup that turned out to be damaged: which one there is instead, and how it is chosen.
pub(super) fn instead_of(damaged: &Sealed, config: &PostgresConfig, component: &str, revision: &str) -> String {
    let all = list(config, component).unwrap_or_default();
    let next = all
        .iter()
        .find(|b| b.name != damaged.name && b.shows(revision) && b.is_whole());
    let aside = format!("move {} away", damaged.files());
    match next {
        Some(next) => format!(
            "it is damaged: {aside}, and a restore takes {} of {}",
            next.name, next.manifest.taken_at
        ),
        None => format!(
            "it is damaged, and there is no other one of this release: {aside}, and take in another dump: rollback-agent \
             database adopt {component} DUMP"
        ),
    }
}

/// Deletes backups of our own making that are neither among the newest `retain_backups`, nor the one of a recorded revision
/// that a restore would take; of the latter at most `retain_backups` more are spared. Never `keep`, and never a dump that was
/// taken in: that one is somebody else's.
pub(super) fn retire(
    config: &PostgresConfig,
    component: &str,
    keep: &Path,
    recorded: impl Fn(&str) -> bool,
) -> Result<usize, Problem> {
    let mut own = list(config, component)?;
    own.retain(|b| b.manifest.external.is_none());
    let limit = config.retain_backups as usize;
    let wanted: BTreeSet<&str> = own
        .iter()
        .filter_map(|b| best(&own, &b.manifest.revision))
        .map(|b| b.name.as_str())
        .collect();
    let (mut spared, mut retired) = (0, 0);
    for (place, backup) in own.iter().enumerate() {
        let revision = &backup.manifest.revision;
        let wanted = wanted.contains(backup.name.as_str());
        if place < limit || backup.dump.path == keep {
            continue;
        }
        if wanted && spared < limit && recorded(revision) {
            spared += 1;
            continue;
        }
        // Without its dump a manifest is no backup any more, and the next time it is found and goes, too. The other way
        // round a kill in between would leave a dump that nobody lists, for good.
        for file in [&backup.dump.path, &backup.manifest_path] {
            match std::fs::remove_file(file) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(file_problem(format!("remove {}", file.display()), &e));
                }
                Ok(()) | Err(_) => {}
            }
            kill_point::pass(|| "retire.file_removed".to_owned());
        }
        retired += 1;
    }
    Ok(retired)
}

/// Where a dump of our own making gets when it is sealed.
pub(super) fn sealed_path(backups: &Path, manifest: &Manifest, tag: &str) -> PathBuf {
    let stamp = manifest.taken_at.strftime("%Y%m%dT%H%M%SZ");
    backups.join(format!("{}-{stamp}-{tag}.dump", manifest.database))
}

/// Where the manifest of a dump in the directory of backups is.
pub(super) fn manifest_path(dump: &Path) -> PathBuf {
    dump.with_extension("manifest.json")
}

/// A backup as the command line shows it.
#[derive(Clone, Debug, Serialize)]
pub struct BackupLine {
    pub name: String,
    /// Of the dump.
    pub path: String,
    /// RFC 3339.
    pub taken_at: String,
    /// Where that instant is from.
    pub dated_by: &'static str,
    pub version: String,
    pub revision: String,
    pub format: &'static str,
    pub bytes: u64,
    pub tables: u64,
    pub rows: u64,
    pub sha256: String,
    /// `restore` or `checksum`.
    pub verified: &'static str,
    /// Somebody else's dump, which was taken in.
    pub adopted: bool,
    /// Integrity checks that do not hold in it.
    pub broken: Vec<String>,
    /// Why a restore cannot take it.
    pub unfit: Option<String>,
}

impl From<Sealed> for BackupLine {
    fn from(backup: Sealed) -> Self {
        let found = backup.dump.bytes();
        let m = backup.manifest;
        let unfit = match (found, m.proof) {
            (None, _) => Some("the dump is gone".to_owned()),
            (Some(bytes), _) if bytes != m.bytes => Some(format!("the dump has {bytes} bytes instead of {}", m.bytes)),
            (Some(_), Some(Proof::Restore)) => None,
            (Some(_), Some(Proof::Checksum)) => Some("it was never restored".to_owned()),
            (Some(_), None) => Some("it was never proven".to_owned()),
        };
        Self {
            name: backup.name,
            path: backup.dump.path.display().to_string(),
            taken_at: m.taken_at.to_string(),
            dated_by: m.dated_by.describe(),
            version: m.version,
            revision: m.revision,
            format: m.dump_format.name(),
            bytes: m.bytes,
            tables: m.figures.tables.len() as u64,
            rows: m.figures.rows(),
            sha256: m.sha256,
            verified: m.proof.map_or("nothing", Proof::name),
            adopted: m.external.is_some(),
            broken: m.broken,
            unfit,
        }
    }
}

impl PostgresDriver {
    /// The sealed backups of this database, the newest first.
    pub fn backups(&self) -> Result<Vec<BackupLine>, Problem> {
        let found = list(&self.config, &self.component)?;
        Ok(found.into_iter().map(BackupLine::from).collect())
    }

    /// Takes the SHA-256 of backups again: of one, or of all. Answers with their names, and what is wrong with each.
    pub async fn check_backups(&self, name: Option<&str>) -> Result<Vec<(String, Result<(), Problem>)>, Problem> {
        let mut chosen = list(&self.config, &self.component)?;
        if let Some(name) = name {
            chosen.retain(|b| b.name == name);
            if chosen.is_empty() {
                let message = format!("database {} has no backup {name:?}", self.config.database);
                return Err(Problem::new(Code::NoBackup, message));
            }
        }
        let mut answers = Vec::new();
        for backup in chosen {
            let answer = backup.check().await;
            answers.push((backup.name, answer));
        }
        Ok(answers)
    }
}
