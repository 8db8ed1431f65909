//! Bringing a release directory back from the vault, beside the live one, and taking it away again.
//!
//! Invariants:
//! - Nothing is written into a directory that has a release's name: the tree is unpacked under a hidden name, synced,
//!   compared with the recorded digest, and renamed.
//! - What was there under the name is moved aside, never deleted: it is not ours.
//! - A note outside of the release (`<root>/.rollbackctl/staged~….json`), written before the first rename, says what is
//!   ours. `discard` removes what a note names, and nothing else.
//! - The live directory is never moved: a revision whose name it has is staged under the name with the digest.

use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};

use super::layout::{Layout, candidate_names};
use super::manifest::{Entry, Exclude, Owner, Pin};
use super::walk::{Memory, read_tree};
use crate::driver::Revision;
use crate::driver::link::{Current, is_real_directory};
use crate::files::{self, io_problem, vault_problem};

/// What `stage` made (or was about to make when it was killed).
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// Name of the directory in the releases directory.
    made: String,
    digest: String,
    /// Name under which what was there before is kept.
    aside: Option<String>,
}

/// How the revision came to be complete.
#[derive(Debug)]
pub enum Staged {
    AlreadyThere(PathBuf),
    Restored { dir: PathBuf, moved_aside: Option<String> },
}

impl Staged {
    pub fn dir(&self) -> &Path {
        match self {
            Self::AlreadyThere(dir) | Self::Restored { dir, .. } => dir,
        }
    }
}

impl Layout {
    fn note_path(&self, id: &str) -> PathBuf {
        self.notes_dir().join(format!("staged~{}~{id}.json", self.component))
    }

    fn unpack_path(&self, id: &str) -> PathBuf {
        self.releases.join(format!(".staging~{}~{id}", self.component))
    }

    /// Makes the revision complete in a directory of its own. Repeatable after a kill at any point.
    pub fn make_complete(&self, to: &Revision, id: &str, deadline: Instant) -> Result<Staged, Problem> {
        check_name("rollback", id)?;
        if let Some(dir) = self.directory_of(to)? {
            return Ok(Staged::AlreadyThere(dir));
        }
        let pin = self.kept(to)?.ok_or_else(|| self.missing(to))?;
        let live = self.current()?;
        let name = candidate_names(to)?
            .into_iter()
            .find(|name| live != Current::Release(name.clone()))
            .ok_or_else(|| Problem::new(Code::BadLayout, "the live release has every name of this revision"))?;
        let dir = self.releases.join(&name);
        let aside = self.aside_for(&name, id)?;
        self.write_note(
            id,
            &Note {
                made: name,
                digest: to.digest.clone(),
                aside: aside.clone(),
            },
        )?;
        let unpacked = self.unpack_path(id);
        if let Err(problem) = self.unpack(&pin, &unpacked, to, deadline) {
            // A disk that is full must not stay full because of us.
            remove_tree(&unpacked)?;
            if aside.as_ref().is_none_or(|name| !self.releases.join(name).exists()) {
                files::remove(&self.note_path(id))?;
            }
            return Err(problem);
        }
        if let Some(aside) = &aside
            && std::fs::symlink_metadata(&dir).is_ok()
        {
            std::fs::rename(&dir, self.releases.join(aside)).map_err(|e| io_problem("move aside", &dir, &e))?;
        }
        std::fs::rename(&unpacked, &dir).map_err(|e| io_problem("rename into place", &dir, &e))?;
        files::sync_parent(&dir)?;
        Ok(Staged::Restored {
            dir,
            moved_aside: aside,
        })
    }

    pub fn missing(&self, revision: &Revision) -> Problem {
        Problem::new(
            Code::RevisionMissing,
            format!(
                "{} of {} is neither in {} with the recorded content nor in the vault",
                revision.version,
                self.component,
                self.releases.display()
            ),
        )
    }

    /// A name for what is in the way; an earlier, killed attempt may have moved it already.
    fn aside_for(&self, name: &str, id: &str) -> Result<Option<String>, Problem> {
        let aside = format!(".{name}.damaged-{id}");
        let moved = self.releases.join(&aside);
        let in_the_way = std::fs::symlink_metadata(self.releases.join(name)).is_ok();
        if in_the_way && std::fs::symlink_metadata(&moved).is_ok() {
            return Err(Problem::new(
                Code::BadLayout,
                format!("both {name} and {} are in the way", moved.display()),
            ));
        }
        Ok((in_the_way || moved.exists()).then_some(aside))
    }

    fn write_note(&self, id: &str, note: &Note) -> Result<(), Problem> {
        let dir = self.notes_dir();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|e| io_problem("create", &dir, &e))?;
        let path = self.note_path(id);
        let text = serde_json::to_vec(note).map_err(|e| Problem::from_error(Code::Internal, "write a note", &e))?;
        let temp = files::beside(&path, "new");
        files::write_new(&temp, &text, files::own_attributes(0o600))?;
        files::publish(&temp, &path)
    }

    fn unpack(&self, pin: &Pin, into: &Path, to: &Revision, deadline: Instant) -> Result<(), Problem> {
        let manifest = &pin.manifest;
        remove_tree(into)?;
        let room = files::free_space(&self.releases)?;
        if room < manifest.room() {
            return Err(Problem::new(
                Code::DiskFull,
                format!(
                    "{} needs {:.1} MB in {}, {:.1} MB are free",
                    to.version,
                    manifest.room() as f64 / 1e6,
                    self.releases.display(),
                    room as f64 / 1e6
                ),
            ));
        }
        // Closed to others until it is complete.
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(into)
            .map_err(|e| io_problem("create", into, &e))?;
        for (path, entry) in &manifest.entries {
            // Nobody can cut this off from outside, and nobody must find it still at work later.
            if Instant::now() >= deadline {
                return Err(Problem::new(
                    Code::StepTimeout,
                    format!("{} was not restored in time", to.version),
                ));
            }
            if !files::stays_beneath(Path::new(path)) {
                return Err(Problem::new(
                    Code::RevisionDamaged,
                    format!("the path {path:?} leaves the release"),
                ));
            }
            let at = into.join(path);
            match entry {
                Entry::Directory { .. } => {
                    std::fs::DirBuilder::new()
                        .mode(0o700)
                        .create(&at)
                        .map_err(|e| io_problem("create", &at, &e))?;
                }
                Entry::File { owner, sha256, .. } => {
                    self.vault
                        .copy_to(sha256, &at, owner.mode & 0o777)
                        .map_err(|e| vault_problem(&e))?;
                    own(&at, *owner)?;
                }
                Entry::Link { .. } => {}
            }
        }
        // Links last, so that nothing is ever written through one; modes of directories after what is in them, for a
        // directory that is read-only; children before parents.
        for (path, entry) in manifest.entries.iter().rev() {
            let at = into.join(path);
            match entry {
                Entry::Link { target } => {
                    std::os::unix::fs::symlink(target, &at).map_err(|e| io_problem("make link", &at, &e))?;
                }
                Entry::Directory { owner } => {
                    sync_directory(&at)?;
                    own(&at, *owner)?;
                }
                Entry::File { .. } => {}
            }
        }
        sync_directory(into)?;
        own(into, pin.top)?;
        let (found, _) = read_tree(into, &Exclude::default(), &Memory::default())?;
        if found.digest() == to.digest {
            Ok(())
        } else {
            Err(Problem::new(
                Code::RevisionDamaged,
                format!("{} came out of the vault with another digest", to.version),
            ))
        }
    }

    /// Takes away what `stage` made, for this rollback or an earlier one. What is live stays.
    pub fn discard(&self) -> Result<usize, Problem> {
        let mut removed = 0;
        for path in self.ours_in(&self.releases, ".staging")? {
            remove_tree(&path)?;
        }
        for path in self.ours_in(&self.notes_dir(), "staged")? {
            let text = std::fs::read(&path).map_err(|e| io_problem("read", &path, &e))?;
            if let Ok(note) = serde_json::from_slice::<Note>(&text)
                && self.take_away(&note)?
            {
                removed += 1;
            }
            files::remove(&path)?;
        }
        Ok(removed)
    }

    fn take_away(&self, note: &Note) -> Result<bool, Problem> {
        check_name("release directory", &note.made)?;
        let dir = self.releases.join(&note.made);
        if self.current()? == Current::Release(note.made.clone()) {
            return Ok(false);
        }
        // Content that differs from what was staged is not ours: it was there before, or was put there since.
        let ours = is_real_directory(&dir)? && self.manifest(&dir)?.digest() == note.digest;
        if ours {
            let doomed = self.releases.join(format!(".staging~{}~discarded", self.component));
            remove_tree(&doomed)?;
            std::fs::rename(&dir, &doomed).map_err(|e| io_problem("take away", &dir, &e))?;
            remove_tree(&doomed)?;
        }
        if let Some(aside) = note.aside.as_ref().map(|name| self.releases.join(name))
            && is_real_directory(&aside)?
            && std::fs::symlink_metadata(&dir).is_err()
        {
            std::fs::rename(&aside, &dir).map_err(|e| io_problem("put back", &dir, &e))?;
        }
        files::sync_parent(&dir)?;
        Ok(ours)
    }

    /// The rollback is over: what is staged stays, and is not ours any more. Returns what was moved aside.
    pub fn settle(&self) -> Result<Vec<String>, Problem> {
        let mut aside = Vec::new();
        for path in self.ours_in(&self.releases, ".staging")? {
            remove_tree(&path)?;
        }
        for path in self.ours_in(&self.notes_dir(), "staged")? {
            let text = std::fs::read(&path).map_err(|e| io_problem("read", &path, &e))?;
            if let Ok(Note { aside: Some(name), .. }) = serde_json::from_slice::<Note>(&text)
                && self.releases.join(&name).exists()
            {
                aside.push(name);
            }
            files::remove(&path)?;
        }
        Ok(aside)
    }

    /// Paths in a directory whose names are `<kind>~<component>~…`. No name of a component has a `~`, so that of one is
    /// never the beginning of another's.
    fn ours_in(&self, dir: &Path, kind: &str) -> Result<Vec<PathBuf>, Problem> {
        let prefix = format!("{kind}~{}~", self.component);
        match std::fs::read_dir(dir) {
            Ok(entries) => Ok(entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
                .map(|entry| entry.path())
                .collect()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(io_problem("read directory", dir, &e)),
        }
    }
}

/// Owner first: changing it takes special bits away.
fn own(path: &Path, owner: Owner) -> Result<(), Problem> {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid))
            .map_err(|e| io_problem("set the owner of", path, &e))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(owner.mode))
        .map_err(|e| io_problem("set the mode of", path, &e))
}

fn sync_directory(dir: &Path) -> Result<(), Problem> {
    crate::vault::sync_dir(dir).map_err(|e| vault_problem(&e))
}

/// Removes a tree of ours; it need not be there. Links in it are removed, not followed.
fn remove_tree(path: &Path) -> Result<(), Problem> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(io_problem("remove", path, &e)),
    }
}
