//! The link to the live release (`<root>/current` → `<root>/releases/<name>`), as the kinds have it that keep every
//! release in a directory of its own.
//!
//! Invariants:
//! - The link is exchanged by a rename: everybody sees either the old one or the new one.
//! - What is at `current` and is not a link is never replaced.
//!
//! Everything here blocks.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};

use crate::files::{self, io_problem};

/// What is found at `current`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Current {
    /// A link to a directory of this name in the releases directory; the directory may be gone.
    Release(String),
    /// A real directory: never touched unless the configuration says `adopt`.
    Directory,
    Missing,
    /// A link out of the releases directory, or something that is neither link nor directory.
    Elsewhere(PathBuf),
}

/// The link and the directories that it lies between. All absolute.
#[derive(Clone, Copy, Debug)]
pub struct CurrentLink<'a> {
    pub root: &'a Path,
    pub releases: &'a Path,
    pub at: &'a Path,
}

impl CurrentLink<'_> {
    pub fn read(&self) -> Result<Current, Problem> {
        let metadata = match std::fs::symlink_metadata(self.at) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Current::Missing),
            Err(e) => return Err(io_problem("look at", self.at, &e)),
        };
        if metadata.is_dir() {
            return Ok(Current::Directory);
        }
        if !metadata.is_symlink() {
            return Ok(Current::Elsewhere(self.at.to_owned()));
        }
        let target = std::fs::read_link(self.at).map_err(|e| io_problem("read link", self.at, &e))?;
        let target = self.at.parent().unwrap_or(self.root).join(target);
        // The release may have been deleted under the link: then its name is all there is.
        let real = std::fs::canonicalize(&target).unwrap_or_else(|_| target.clone());
        let releases = std::fs::canonicalize(self.releases).map_err(|e| io_problem("open", self.releases, &e))?;
        let in_releases = real.parent().is_some_and(|dir| dir == releases || dir == self.releases);
        match real.file_name().and_then(|name| name.to_str()) {
            Some(name) if in_releases && check_name("release directory", name).is_ok() => {
                Ok(Current::Release(name.to_owned()))
            }
            Some(_) | None => Ok(Current::Elsewhere(real)),
        }
    }

    /// Points the link to a directory of the releases directory, in one step that everybody sees either before or after.
    /// Durable when it returns. There must not be a real directory.
    pub fn point_to(&self, dir: &Path, id: &str) -> Result<(), Problem> {
        let temp = self.make_beside(dir, id)?;
        // Replaces a link; refuses to replace a directory. (`ln -sfn` would put the link inside it.)
        files::publish(&temp, self.at)
    }

    /// A link to this directory under a temporary name beside the link.
    pub fn make_beside(&self, dir: &Path, id: &str) -> Result<PathBuf, Problem> {
        let temp = files::beside(self.at, id);
        files::remove(&temp)?;
        // A relative link survives the root being mounted or copied elsewhere.
        let target = match (self.at.parent() == Some(self.root), dir.strip_prefix(self.root)) {
            (true, Ok(relative)) => relative.to_owned(),
            (true | false, Ok(_) | Err(_)) => dir.to_owned(),
        };
        std::os::unix::fs::symlink(&target, &temp).map_err(|e| io_problem("make link", &temp, &e))?;
        Ok(temp)
    }

    /// Does following the link lead to this very directory?
    pub fn expect_leads_to(&self, dir: &Path) -> Result<(), Problem> {
        let look = |path: &Path| std::fs::metadata(path).map_err(|e| io_problem("look at", path, &e));
        let (through, direct) = (look(self.at)?, look(dir)?);
        if (through.dev(), through.ino()) == (direct.dev(), direct.ino()) {
            Ok(())
        } else {
            Err(Problem::new(
                Code::WrongRevision,
                format!(
                    "{} does not lead to {} after the switch",
                    self.at.display(),
                    dir.display()
                ),
            ))
        }
    }
}

/// A directory and not a link to one. `false` when there is nothing.
pub fn is_real_directory(path: &Path) -> Result<bool, Problem> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io_problem("look at", path, &e)),
    }
}
