//! The directories on disk: `<root>/releases/<version>/`, the link `<root>/current`, and which release is which.
//!
//! A release lives in a directory named after its version, or, when that name is taken by the live release with other
//! content, after its version and the beginning of its digest (`v2.9.0+1f3a9c02`).
//!
//! Everything here blocks.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};

use super::archive::Limits;
use super::manifest::{Entry, Exclude, Manifest, Owner, Pin};
use super::walk::{self, Memory};
use crate::driver::Revision;
use crate::driver::link::{Current, CurrentLink, is_real_directory};
use crate::files::{self, io_problem, vault_problem};
use crate::vault::{MEMORY, Vault};

/// The configured paths of one component.
#[derive(Debug)]
pub struct Layout {
    pub component: String,
    pub root: PathBuf,
    pub releases: PathBuf,
    pub current: PathBuf,
    pub adopt: bool,
    pub exclude: Exclude,
    pub vault: Arc<Vault>,
    /// Where releases that were never recorded are looked for.
    pub sources: Vec<PathBuf>,
    /// What an archive of such a release may contain.
    pub limits: Limits,
    memories: Mutex<HashMap<String, Memory>>,
}

impl Layout {
    pub fn new(
        component: &str,
        root: PathBuf,
        releases: &Path,
        current: &Path,
        exclude: Exclude,
        vault: Arc<Vault>,
    ) -> Self {
        Self {
            component: component.to_owned(),
            releases: root.join(releases),
            current: root.join(current),
            root,
            adopt: false,
            exclude,
            vault,
            sources: Vec::new(),
            limits: Limits::default(),
            memories: Mutex::new(HashMap::new()),
        }
    }

    /// Directory for notes of ours, outside of every release.
    pub fn notes_dir(&self) -> PathBuf {
        self.root.join(".rollbackctl")
    }

    pub fn link(&self) -> CurrentLink<'_> {
        CurrentLink {
            root: &self.root,
            releases: &self.releases,
            at: &self.current,
        }
    }

    pub fn current(&self) -> Result<Current, Problem> {
        self.link().read()
    }

    /// The manifest of a directory, using and renewing what is remembered of it.
    pub fn manifest(&self, dir: &Path) -> Result<Manifest, Problem> {
        let key = dir
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let known = self.memory(&key);
        let (manifest, memory) = walk::read_tree(dir, &self.exclude, &known)?;
        if memory != known {
            // Only a help for the next time: a memory that cannot be written costs one more hashing.
            let _ = self.vault.pin(&self.component, &format!("{MEMORY}{key}"), &memory);
            self.memories
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(key, memory);
        }
        Ok(manifest)
    }

    fn memory(&self, key: &str) -> Memory {
        if let Some(memory) = self.memories.lock().unwrap_or_else(PoisonError::into_inner).get(key) {
            return memory.clone();
        }
        self.vault
            .pinned(&self.component, &format!("{MEMORY}{key}"))
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// The live revision, and its directory.
    pub fn live(&self) -> Result<(Revision, PathBuf, Manifest), Problem> {
        match self.current()? {
            Current::Release(name) => {
                let dir = self.releases.join(&name);
                let manifest = self.manifest(&dir)?;
                let digest = manifest.digest();
                Ok((
                    Revision {
                        version: version_of(&name, &digest),
                        digest,
                    },
                    dir,
                    manifest,
                ))
            }
            Current::Directory if self.adopt => {
                let manifest = self.manifest(&self.current)?;
                let digest = manifest.digest();
                let version = format!("adopted-{}", crate::driver::env_file::short(&digest));
                Ok((Revision { version, digest }, self.current.clone(), manifest))
            }
            other => Err(self.bad_layout(&other)),
        }
    }

    /// Why `current` cannot be used as it is.
    pub fn bad_layout(&self, found: &Current) -> Problem {
        let at = self.current.display();
        let releases = self.releases.display();
        match found {
            Current::Release(name) => Problem::new(Code::BadLayout, format!("{at} points to release {name}")),
            Current::Directory => Problem::new(
                Code::BadLayout,
                format!("{at} is a directory, not a link; linking over it would put the link inside it"),
            )
            .remedy("move the directory into the releases directory and link to it, or set adopt = true"),
            Current::Missing => Problem::new(Code::BadLayout, format!("{at} does not exist")),
            Current::Elsewhere(path) => Problem::new(
                Code::BadLayout,
                format!("{at} leads to {}, which is not a release in {releases}", path.display()),
            ),
        }
    }

    /// The directory that holds exactly this revision.
    pub fn directory_of(&self, revision: &Revision) -> Result<Option<PathBuf>, Problem> {
        for name in candidate_names(revision)? {
            let dir = self.releases.join(name);
            if is_real_directory(&dir)? && self.manifest(&dir)?.digest() == revision.digest {
                return Ok(Some(dir));
            }
        }
        Ok(None)
    }

    /// The pin of a revision that the vault holds completely.
    pub fn kept(&self, revision: &Revision) -> Result<Option<Pin>, Problem> {
        let pin: Option<Pin> = self
            .vault
            .pinned(&self.component, &revision.digest)
            .map_err(|e| vault_problem(&e))?;
        let Some(pin) = pin else { return Ok(None) };
        if pin.manifest.digest() != revision.digest {
            return Err(Problem::new(
                Code::RevisionDamaged,
                format!("the vault's manifest of {} has another digest", revision.version),
            ));
        }
        let whole = pin.manifest.entries.values().all(|entry| match entry {
            Entry::File { sha256, .. } => self.vault.has(sha256),
            Entry::Directory { .. } | Entry::Link { .. } => true,
        });
        Ok(whole.then_some(pin))
    }

    /// Copies the live tree into the vault and pins it.
    pub fn keep_live(&self) -> Result<(Revision, Manifest), Problem> {
        let (revision, dir, manifest) = self.live()?;
        let manifest = self.keep_tree(&revision, &dir, manifest)?;
        Ok((revision, manifest))
    }

    /// Copies a tree into the vault and pins it. Nothing is copied when the vault has it already.
    pub fn keep_tree(&self, revision: &Revision, dir: &Path, manifest: Manifest) -> Result<Manifest, Problem> {
        let _keeping = self.vault.keeping().map_err(|e| vault_problem(&e))?;
        if self.kept(revision)?.is_some() {
            return Ok(manifest);
        }
        for (path, entry) in &manifest.entries {
            let Entry::File { sha256, .. } = entry else { continue };
            if self.vault.has(sha256) {
                continue;
            }
            let stored = self.vault.put_file(&dir.join(path)).map_err(|e| vault_problem(&e))?;
            if stored != *sha256 {
                return Err(Problem::new(
                    Code::WrongRevision,
                    format!(
                        "{} changed while it was copied into the vault",
                        dir.join(path).display()
                    ),
                )
                .remedy("exclude files that the application writes, or stop writing into the release directory"));
            }
        }
        let top = std::fs::metadata(dir).map_err(|e| io_problem("look at", dir, &e))?;
        let top = Owner {
            mode: top.mode() & 0o7777,
            uid: top.uid(),
            gid: top.gid(),
        };
        self.pin_tree(revision, top, manifest)
    }

    /// Takes the vault's copy away. The directory of that release is somebody else's and stays.
    pub fn forget(&self, revision: &Revision) -> Result<String, Problem> {
        for name in candidate_names(revision)? {
            if !is_real_directory(&self.releases.join(&name))? {
                let memory = format!("{MEMORY}{name}");
                self.vault
                    .unpin(&self.component, &memory)
                    .map_err(|e| vault_problem(&e))?;
            }
        }
        files::let_go(&self.vault, &self.component, &revision.digest)
    }

    /// Pins a tree whose files are all in the vault.
    pub fn pin_tree(&self, revision: &Revision, top: Owner, manifest: Manifest) -> Result<Manifest, Problem> {
        let pin = Pin {
            version: revision.version.clone(),
            top,
            manifest,
        };
        self.vault
            .pin(&self.component, &revision.digest, &pin)
            .map_err(|e| vault_problem(&e))?;
        Ok(pin.manifest)
    }

    /// Exchanges the real directory at `current` for a link, and moves the directory into the releases directory. Goes
    /// on where a killed attempt stopped.
    pub fn adopt_directory(&self, dir: &Path, as_name: &str, id: &str) -> Result<(), Problem> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let temp = files::beside(&self.current, id);
        if self.current()? == Current::Directory {
            self.link().make_beside(dir, id)?;
            renameat_with(CWD, &temp, CWD, &self.current, RenameFlags::EXCHANGE)
                .map_err(|e| io_problem("exchange for a link", &self.current, &e.into()))?;
            files::sync_parent(&self.current)?;
        }
        if is_real_directory(&temp)? {
            let name = self.releases.join(as_name);
            std::fs::rename(&temp, &name).map_err(|e| io_problem("move into place", &name, &e))?;
            files::sync_parent(&temp)?;
            files::sync_parent(&name)?;
        }
        Ok(())
    }
}

/// Directory names under which a revision may live, in the order of preference. Checked here again: the version comes
/// from another machine and becomes a path.
pub fn candidate_names(revision: &Revision) -> Result<[String; 2], Problem> {
    check_name("version", &revision.version)?;
    let short = short_digest(&revision.digest);
    if !short.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Problem::new(
            Code::BadName,
            "a digest has characters other than hexadecimal digits",
        ));
    }
    Ok([revision.version.clone(), format!("{}+{short}", revision.version)])
}

fn short_digest(digest: &str) -> String {
    digest
        .strip_prefix("sha256:")
        .unwrap_or(digest)
        .chars()
        .take(8)
        .collect()
}

/// The version that a directory's name stands for.
fn version_of(name: &str, digest: &str) -> String {
    match name.rsplit_once('+') {
        Some((version, suffix)) if suffix == short_digest(digest) => version.to_owned(),
        Some(_) | None => name.to_owned(),
    }
}
