//! What `stage` leaves for `snapshot` and `switch`, on disk, so that they find it after the agent was restarted.
//!
//! One directory for each rollback and component beside the sealed backups, `.incoming-<tag>` (0700): the dump, its
//! manifest, and the account of the rehearsal. The account is written last: who finds it finds a rehearsal that ended
//! well. `finish` and `discard` remove the directory.
//!
//! The dump leaves the directory last of all when it is sealed: its manifest has its place by then. So whatever lies under
//! the name of a backup was proven, and what was not is in here. Whoever removes what is in here first moves a dump out
//! whose manifest is there already ([`Staging::finish_sealing`]).

use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::backups;
use super::loss::Loss;
use super::manifest::Manifest;
use super::travel::Waypoint;
use crate::vault::sync_dir;

const PREFIX: &str = ".incoming-";

/// The account of a rehearsal that ended well.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Rehearsed {
    pub rollback_id: String,
    pub component: String,
    /// Digests of the two ends.
    pub from: String,
    pub to: String,
    /// Identity of the SQL that was rehearsed.
    pub route: String,
    /// What each part of the way down takes away, and going up must put back.
    pub losses: Vec<Loss>,
    /// The waypoints between the ends, from `from` to `to` and back again.
    pub there: Vec<Waypoint>,
    pub back: Vec<Waypoint>,
    pub ended_at: Timestamp,
}

#[derive(Clone, Debug)]
pub(super) struct Staging {
    dir: PathBuf,
}

impl Staging {
    /// Nothing is made yet.
    pub fn new(backups: &Path, tag: &str) -> Self {
        Self {
            dir: backups.join(format!("{PREFIX}{tag}")),
        }
    }

    pub fn dump(&self) -> PathBuf {
        self.dir.join("dump")
    }

    /// The directory of every rollback of a component that is not over. `owner` is what its tags begin with.
    pub fn all(backups: &Path, owner: &str) -> Result<Vec<Self>, Problem> {
        let failed = |e| file_problem(format!("read {}", backups.display()), &e);
        let entries = match std::fs::read_dir(backups) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let dir = entry.map_err(failed)?.path();
            let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with(owner)) {
                found.push(Self { dir });
            }
        }
        Ok(found)
    }

    /// A document of another part of the driver.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes the directory.
    pub fn make(&self) -> Result<(), Problem> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|e| file_problem(format!("make {}", self.dir.display()), &e))
    }

    pub fn manifest(&self) -> PathBuf {
        self.dir.join("manifest.json")
    }

    pub fn rehearsed(&self) -> PathBuf {
        self.dir.join("rehearsed.json")
    }

    /// There while a switch is on its way on the live database. Who finds it without knowing where the database is cannot
    /// say that nothing was done.
    pub fn under_way(&self) -> PathBuf {
        self.dir.join("under-way")
    }

    /// Gives a dump its place whose manifest got its own already: whoever sealed it was killed in between.
    fn finish_sealing(&self) -> Result<(), Problem> {
        let (Some(backups), Some(tag)) = (self.dir.parent(), self.tag()) else {
            return Ok(());
        };
        // What cannot be read is of no backup that was sealed.
        let Ok(Some(staged)) = read_json::<Manifest>(&self.manifest()) else {
            return Ok(());
        };
        let sealed = backups::sealed_path(backups, &staged, tag);
        let noted = read_json::<Manifest>(&backups::manifest_path(&sealed)).ok().flatten();
        let same = noted.is_some_and(|m| m.sha256 == staged.sha256 && m.bytes == staged.bytes);
        if !same || sealed.exists() || !self.dump().exists() {
            return Ok(());
        }
        std::fs::rename(self.dump(), &sealed)
            .map_err(|e| file_problem(format!("rename to {}", sealed.display()), &e))?;
        sync_dir(backups).map_err(|e| Problem::from_error(Code::FileFailed, "seal the backup", &e))
    }

    fn tag(&self) -> Option<&str> {
        self.dir.file_name()?.to_str()?.strip_prefix(PREFIX)
    }

    /// Makes the directory, and takes an earlier dump out of it. The account of a rehearsal stays: it is about the SQL.
    pub fn begin_dump(&self) -> Result<(), Problem> {
        self.make()?;
        self.finish_sealing()?;
        for path in [self.manifest(), self.dump()] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(file_problem(format!("remove {}", path.display()), &e));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Succeeds when there is nothing.
    pub fn remove(&self) -> Result<(), Problem> {
        self.finish_sealing()?;
        match std::fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(file_problem(format!("remove {}", self.dir.display()), &e))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Removes what killed runs of a component left in the directory of backups: unfinished dumps of any rollback, files with
/// a password. `owner` is what the component's tags begin with. One step of a component runs at a time.
pub(super) fn remove_leftovers(backups: &Path, owner: &str) -> Result<usize, Problem> {
    let failed = |e| file_problem(format!("read {}", backups.display()), &e);
    let mut removed = 0;
    for entry in std::fs::read_dir(backups).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let ours = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(owner));
        if ours(PREFIX) {
            Staging { dir: path }.remove()?;
        } else if ours(super::tools::PASSFILE_PREFIX) {
            std::fs::remove_file(&path).map_err(|e| file_problem(format!("remove {}", path.display()), &e))?;
        } else {
            continue;
        }
        removed += 1;
    }
    Ok(removed)
}

/// Writes a document beside its place and renames it there. Durable when it returns.
pub(super) fn write_json(path: &Path, document: &impl Serialize) -> Result<(), Problem> {
    let failed = |e: &std::io::Error| file_problem(format!("write {}", path.display()), e);
    let dir = path.parent().unwrap_or(Path::new("/"));
    let bytes = serde_json::to_vec_pretty(document)
        .map_err(|e| Problem::from_error(Code::Internal, format!("write {}", path.display()), &e))?;
    let mut temp = tempfile::Builder::new()
        .prefix(".writing-")
        .tempfile_in(dir)
        .map_err(|e| failed(&e))?;
    temp.write_all(&bytes)
        .and_then(|()| temp.as_file().sync_all())
        .map_err(|e| failed(&e))?;
    temp.persist(path).map_err(|e| failed(&e.error))?;
    sync_dir(dir).map_err(|e| Problem::from_error(Code::FileFailed, format!("write {}", path.display()), &e))
}

/// `None` when there is no such file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Problem> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Problem::from_error(Code::FileFailed, format!("read {}", path.display()), &e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file_problem(format!("read {}", path.display()), &e)),
    }
}

pub(super) fn file_problem(what: String, error: &std::io::Error) -> Problem {
    let full = matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    );
    Problem::from_error(if full { Code::DiskFull } else { Code::FileFailed }, what, error)
}
