//! The worktrees in the releases directory, and what our notes say of each: which commit, complete or not, made for
//! which rollback.
//!
//! A worktree is made under the name that it will keep, because what an install program makes may hold its own path
//! (a Python environment, a build). Nothing in the directory itself says that it is complete: a note outside of it does.
//!
//! Invariants:
//! - A worktree without a note that says *complete* never becomes live.
//! - A worktree whose tracked files were changed is neither used again nor removed: the changes are somebody's.
//! - Only what a note of ours names is removed.

use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::repository::{Commit, Repository};
use crate::driver::Revision;
use crate::driver::link::{Current, CurrentLink, is_real_directory};
use crate::files::{self, io_problem, sha256_hex, vault_problem};
use crate::vault::Vault;

/// Directories that package managers make. Of a worktree that somebody else made, these alone are sure to belong to it.
const INSTALLED: [&str; 4] = ["node_modules/", "vendor/", ".venv/", "venv/"];

/// What the vault keeps of a revision. Its objects are kept by a ref of ours in the repository.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pin {
    pub version: String,
    pub commit: Commit,
    /// The tag by which the release was known when it was recorded.
    pub tag: Option<String>,
}

/// A worktree of ours, or one that was live when its release was recorded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Note {
    /// Name of the directory in the releases directory.
    pub name: String,
    pub commit: Commit,
    pub state: State,
    /// The rollback whose `discard` removes it; `None` when that is over.
    pub made_for: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Begun. What is in the directory is worth nothing.
    Making,
    Complete {
        /// Hash of the install vector that ran in it; `None` when somebody else made it and it was live.
        install: Option<String>,
        /// [`Changes::fingerprint`] when it was complete: some install programs write into tracked files.
        changes: String,
        /// Directories that the install program made.
        products: Vec<String>,
    },
}

/// Where a switch came from: the way back leads to that very directory, with whatever was changed in it by hand.
#[derive(Debug, Serialize, Deserialize)]
pub struct Departure {
    pub name: String,
    pub commit: Commit,
}

/// Changes of tracked files in a worktree.
#[derive(Clone, Debug)]
pub struct Changes {
    pub paths: Vec<String>,
    /// Empty when there are none.
    pub fingerprint: String,
}

impl Changes {
    /// "3 changed files: app.js, lib/a.js, …", safe to print.
    pub fn summary(&self) -> String {
        let first: Vec<String> = self
            .paths
            .iter()
            .take(3)
            .map(|path| path.escape_debug().to_string())
            .collect();
        let more = if self.paths.len() > first.len() { ", …" } else { "" };
        format!("{} changed tracked files: {}{more}", self.paths.len(), first.join(", "))
    }
}

/// What is live.
#[derive(Clone, Debug)]
pub struct Live {
    pub revision: Revision,
    pub commit: Commit,
    pub name: String,
    pub dir: PathBuf,
}

/// Is there a worktree that can become live as it is?
#[derive(Debug)]
pub enum Ready {
    Yes(Note),
    /// Why none of those that are there will do; empty when there is none.
    No(Vec<String>),
}

#[derive(Debug)]
pub struct Trees {
    pub component: String,
    pub root: PathBuf,
    pub releases: PathBuf,
    pub current: PathBuf,
    pub repository: Repository,
    /// Paths that are links to `<root>/shared/…` in every worktree.
    pub shared: Vec<String>,
    pub install: Vec<String>,
    pub vault: Arc<Vault>,
}

impl Trees {
    pub fn link(&self) -> CurrentLink<'_> {
        CurrentLink {
            root: &self.root,
            releases: &self.releases,
            at: &self.current,
        }
    }

    /// The directory of a release as git names it. Git follows links; the release itself need not be there.
    pub fn dir(&self, name: &str) -> Result<PathBuf, Problem> {
        check_name("release directory", name)?;
        let releases = std::fs::canonicalize(&self.releases).map_err(|e| io_problem("open", &self.releases, &e))?;
        Ok(releases.join(name))
    }

    pub fn pin(&self, commit: &Commit) -> Result<Option<Pin>, Problem> {
        self.vault
            .pinned(&self.component, &commit.digest())
            .map_err(|e| vault_problem(&e))
    }

    pub async fn live(&self) -> Result<Live, Problem> {
        let name = match self.link().read()? {
            Current::Release(name) => name,
            found @ (Current::Directory | Current::Missing | Current::Elsewhere(_)) => {
                return Err(self.bad_layout(&found));
            }
        };
        let dir = self.dir(&name)?;
        let commit = self.repository.head_of(&dir).await?;
        let version = self.version_of(&commit, &name).await?;
        let digest = commit.digest();
        Ok(Live {
            revision: Revision { version, digest },
            commit,
            name,
            dir,
        })
    }

    /// For people: as it was recorded, else by its tag, else by the beginning of its id.
    async fn version_of(&self, commit: &Commit, name: &str) -> Result<String, Problem> {
        if let Some(pin) = self.pin(commit)? {
            return Ok(pin.version);
        }
        let mut tagged = match self.repository.has(commit).await? {
            true => self.repository.releases_at(commit).await?,
            false => Vec::new(),
        };
        // One commit may have several tags: whoever made the directory knew which release it is.
        if tagged.iter().any(|release| release == name) {
            return Ok(name.to_owned());
        }
        tagged.truncate(1);
        Ok(tagged.pop().unwrap_or_else(|| commit.short().to_owned()))
    }

    /// Why `current` cannot be used as it is, and how to get there.
    pub fn bad_layout(&self, found: &Current) -> Problem {
        let at = self.current.display();
        let what = match found {
            Current::Release(name) => format!("{at} leads to {name}"),
            Current::Directory => format!("{at} is a directory, not a link to a worktree"),
            Current::Missing => format!("{at} does not exist"),
            Current::Elsewhere(path) => {
                format!("{at} leads to {}, not into {}", path.display(), self.releases.display())
            }
        };
        let (repository, releases) = (self.repository.path.display(), self.releases.display());
        let aside = match found {
            Current::Directory => format!("mv {at} {at}.before && "),
            Current::Release(_) | Current::Missing | Current::Elsewhere(_) => String::new(),
        };
        let install = if self.install.is_empty() {
            "bring over what git does not have (configuration, uploads)".to_owned()
        } else {
            format!("cd {releases}/VERSION && {}", self.install.join(" "))
        };
        Problem::new(Code::BadLayout, what).remedy(format!(
            "once, by hand, with the live VERSION: (1) git -C {repository} worktree add --detach {releases}/VERSION VERSION; \
             (2) {install}; (3) {aside}ln -sfT {releases}/VERSION {at}, and start the application from {at}"
        ))
    }

    pub async fn changes(&self, dir: &Path) -> Result<Changes, Problem> {
        let status = self.repository.status(dir, &self.shared).await?;
        if status.is_empty() {
            return Ok(Changes {
                paths: Vec::new(),
                fingerprint: String::new(),
            });
        }
        let difference = self.repository.difference(dir, &self.shared).await?;
        let fingerprint = sha256_hex(format!("{}\0\0{difference}", status.join("\0")).as_bytes());
        let paths = status
            .iter()
            .map(|line| line.get(3..).unwrap_or(line).to_owned())
            .collect();
        Ok(Changes { paths, fingerprint })
    }

    /// The note of a worktree that is complete as it lies there.
    pub async fn complete_note(
        &self,
        name: &str,
        commit: &Commit,
        install: Option<String>,
        made_for: Option<String>,
    ) -> Result<Note, Problem> {
        let dir = self.dir(name)?;
        let ours = install.is_some();
        let mut products = self.repository.untracked(&dir, &self.shared).await?;
        products.retain(|path| path.ends_with('/') && (ours || INSTALLED.contains(&path.as_str())));
        // What somebody changed in a worktree of theirs is no part of the release.
        let changes = if ours {
            self.changes(&dir).await?.fingerprint
        } else {
            String::new()
        };
        Ok(Note {
            name: name.to_owned(),
            commit: commit.clone(),
            state: State::Complete {
                install,
                changes,
                products,
            },
            made_for,
        })
    }

    /// A complete worktree of this commit.
    pub async fn ready(&self, commit: &Commit) -> Result<Ready, Problem> {
        let mut why_not = Vec::new();
        for note in self.notes()? {
            if note.commit != *commit {
                continue;
            }
            match self.unfit(&note).await? {
                None => return Ok(Ready::Yes(note)),
                Some(why) => why_not.push(format!("{}: {why}", self.releases.join(&note.name).display())),
            }
        }
        Ok(Ready::No(why_not))
    }

    /// Why this worktree cannot become live as it is.
    async fn unfit(&self, note: &Note) -> Result<Option<String>, Problem> {
        let State::Complete {
            install,
            changes,
            products,
        } = &note.state
        else {
            return Ok(Some("it was never finished".into()));
        };
        let dir = self.dir(&note.name)?;
        if !is_real_directory(&dir)? {
            return Ok(Some("it is gone".into()));
        }
        if install.as_ref().is_some_and(|hash| *hash != self.install_hash()) {
            return Ok(Some("another install vector ran in it".into()));
        }
        match self.repository.head_of(&dir).await {
            Ok(head) if head == note.commit => {}
            Ok(head) => return Ok(Some(format!("{} was checked out in it", head.short()))),
            Err(problem) => return Ok(Some(problem.message)),
        }
        let found = self.changes(&dir).await?;
        if found.fingerprint != *changes {
            return Ok(Some(found.summary()));
        }
        let gone =
            |product: &&String| std::fs::read_dir(dir.join(product)).map_or(true, |mut inside| inside.next().is_none());
        if let Some(product) = products.iter().find(gone) {
            return Ok(Some(format!("{product} is gone")));
        }
        let unlinked = |path: &&String| std::fs::read_link(dir.join(path)).is_err();
        // Whoever made a worktree by hand may have brought these files there in another way.
        match self.shared.iter().find(unlinked) {
            Some(path) if install.is_some() => Ok(Some(format!("{path} is not the link to the shared one"))),
            Some(_) | None => Ok(None),
        }
    }

    pub fn install_hash(&self) -> String {
        sha256_hex(self.install.join("\0").as_bytes())
    }

    fn notes_dir(&self) -> PathBuf {
        self.root.join(".rollbackctl")
    }

    fn note_path(&self, name: &str) -> PathBuf {
        self.notes_dir().join(format!("tree~{}~{name}.json", self.component))
    }

    fn departure_path(&self, id: &str) -> PathBuf {
        self.notes_dir().join(format!("left~{}~{id}.json", self.component))
    }

    /// All worktrees that we know, by name.
    pub fn notes(&self) -> Result<Vec<Note>, Problem> {
        let mut notes = Vec::new();
        for path in self.ours("tree")? {
            if let Some(note) = read_note::<Note>(&path)? {
                check_name("release directory", &note.name)?;
                notes.push(note);
            }
        }
        notes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(notes)
    }

    pub fn note(&self, name: &str) -> Result<Option<Note>, Problem> {
        read_note(&self.note_path(name))
    }

    pub fn write_note(&self, note: &Note) -> Result<(), Problem> {
        self.write(&self.note_path(&note.name), note)
    }

    pub fn remove_note(&self, name: &str) -> Result<(), Problem> {
        files::remove(&self.note_path(name))
    }

    pub fn departure(&self, id: &str) -> Result<Option<Departure>, Problem> {
        read_note(&self.departure_path(id))
    }

    /// Keeps the first one of a rollback.
    pub fn note_departure(&self, id: &str, live: &Live) -> Result<(), Problem> {
        if self.departure(id)?.is_some() {
            return Ok(());
        }
        let departure = Departure {
            name: live.name.clone(),
            commit: live.commit.clone(),
        };
        self.write(&self.departure_path(id), &departure)
    }

    /// Of all rollbacks that are not over.
    pub fn departures(&self) -> Result<Vec<Departure>, Problem> {
        let paths = self.ours("left")?;
        let read: Result<Vec<_>, Problem> = paths.iter().map(|path| read_note(path)).collect();
        Ok(read?.into_iter().flatten().collect())
    }

    pub fn forget_departures(&self) -> Result<(), Problem> {
        self.ours("left")?.iter().try_for_each(|path| files::remove(path))
    }

    fn write(&self, path: &Path, note: &impl Serialize) -> Result<(), Problem> {
        let dir = self.notes_dir();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|e| io_problem("create", &dir, &e))?;
        let text = serde_json::to_vec(note).map_err(|e| Problem::from_error(Code::Internal, "write a note", &e))?;
        let temp = files::beside(path, "new");
        files::write_new(&temp, &text, files::own_attributes(0o600))?;
        files::publish(&temp, path)
    }

    /// No name of a component has a `~`, so that of one is never the beginning of another's.
    fn ours(&self, kind: &str) -> Result<Vec<PathBuf>, Problem> {
        let (dir, prefix) = (self.notes_dir(), format!("{kind}~{}~", self.component));
        match std::fs::read_dir(&dir) {
            Ok(entries) => Ok(entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
                .map(|entry| entry.path())
                .collect()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(io_problem("read directory", &dir, &e)),
        }
    }
}

/// A note that cannot be read says nothing: what it stood for is not ours then, and not complete.
fn read_note<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Problem> {
    Ok(files::read(path)?.and_then(|state| serde_json::from_slice(&state.content).ok()))
}
