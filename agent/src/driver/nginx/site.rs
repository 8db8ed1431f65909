//! The managed files: reading and writing them, and keeping their contents in the vault.
//!
//! A revision is the set of managed files with their contents; a file that is absent is part of it, too. The managed
//! include is not: it says how the site is served, not what it is. Nor are the includes of upstreams.
//!
//! Where a managed name is a link (Debian's sites-enabled), the file that it leads to is read and replaced, and the link
//! stays. A revision that has no such file takes away the link alone: what it leads to is available, not enabled.
//!
//! Everything here blocks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::include::{Include, is_included};
use super::link;
use super::upstream::Upstream;
use crate::driver::Revision;
use crate::driver::env_file::short;
use crate::files::{self, Attributes, vault_problem};
use crate::vault::Vault;

/// Content of one managed file, and the mode for making it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub bytes: Vec<u8>,
    pub mode: u32,
    /// What the link says, where the managed name is one.
    pub link: Option<PathBuf>,
}

/// Managed files by their path relative to the root. `None`: there is no such file.
pub type Files = BTreeMap<String, Option<Content>>;

#[derive(Serialize, Deserialize)]
struct Pin {
    /// The release under which this content was recorded first; `None` when it was only ever a snapshot.
    release: Option<String>,
    files: BTreeMap<String, Option<PinnedFile>>,
}

#[derive(Serialize, Deserialize)]
struct PinnedFile {
    object: String,
    mode: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct Site {
    pub component: String,
    /// Directory of nginx's main configuration file: where relative includes begin.
    pub conf_dir: PathBuf,
    pub root: PathBuf,
    pub names: Vec<String>,
    pub include: PathBuf,
    pub upstreams: Vec<Upstream>,
    pub vault: Arc<Vault>,
}

/// What is on disk.
#[derive(Clone, Debug)]
pub struct Seen {
    pub files: Files,
    pub include: Option<Include>,
    /// The includes of the upstreams, in their order.
    pub upstreams: Vec<Option<Vec<u8>>>,
}

impl Seen {
    pub fn drained(&self) -> bool {
        self.include.as_ref().is_some_and(Include::drained)
    }
}

pub fn digest(all: &Files) -> String {
    let mut hash = Sha256::new();
    for (name, content) in all {
        hash.update(name.as_bytes());
        hash.update([0]);
        match content {
            Some(content) => hash.update(files::sha256_hex(&content.bytes)),
            None => hash.update("absent"),
        }
        hash.update([0]);
    }
    format!("sha256:{}", hex::encode(hash.finalize()))
}

impl Site {
    /// The path of a managed name, whose directory must not lead out of the root.
    fn name_path(&self, name: &str) -> Result<PathBuf, Problem> {
        let relative = Path::new(name);
        if !files::stays_beneath(relative) {
            return Err(Problem::new(
                Code::BadLayout,
                format!("{name:?} leads out of {}", self.root.display()),
            ));
        }
        if let Some(dir) = relative.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            files::beneath(&self.root, dir)?;
        }
        Ok(self.root.join(relative))
    }

    /// The path of the file behind a managed name: that name itself, or where its link leads.
    pub fn path_of(&self, name: &str) -> Result<PathBuf, Problem> {
        let path = self.name_path(name)?;
        Ok(link::followed(&self.root, &path)?.unwrap_or(path))
    }

    fn state_of(&self, name: &str) -> Result<Option<Content>, Problem> {
        let path = self.name_path(name)?;
        let (path, link) = match link::followed(&self.root, &path)? {
            Some(target) => (target, Some(link::read(&path)?)),
            None => (path, None),
        };
        Ok(files::read(&path)?.map(|state| Content {
            bytes: state.content,
            mode: state.attributes.mode,
            link,
        }))
    }

    pub fn live(&self) -> Result<Files, Problem> {
        self.names
            .iter()
            .map(|name| Ok((name.clone(), self.state_of(name)?)))
            .collect()
    }

    pub fn look(&self) -> Result<Seen, Problem> {
        Ok(Seen {
            files: self.live()?,
            include: self.include_state()?,
            upstreams: self.upstream_contents()?,
        })
    }

    pub fn upstream_contents(&self) -> Result<Vec<Option<Vec<u8>>>, Problem> {
        let read = |upstream: &Upstream| Ok(files::read(&upstream.file)?.map(|state| state.content));
        self.upstreams.iter().map(read).collect()
    }

    fn pin_of(&self, digest: &str) -> Result<Option<Pin>, Problem> {
        self.vault
            .pinned(&self.component, digest)
            .map_err(|e| vault_problem(&e))
    }

    pub fn revision(&self, all: &Files) -> Result<Revision, Problem> {
        let digest = digest(all);
        let release = self.pin_of(&digest)?.and_then(|pin| pin.release);
        Ok(Revision {
            version: release.unwrap_or_else(|| short(&digest)),
            digest,
        })
    }

    /// Puts the files into the vault. A name that was given before stays.
    pub fn keep(&self, all: &Files, release: Option<&str>) -> Result<Revision, Problem> {
        let digest = digest(all);
        let _keeping = self.vault.keeping().map_err(|e| vault_problem(&e))?;
        let known = self.pin_of(&digest)?;
        let known_release = known.as_ref().and_then(|pin| pin.release.clone());
        let release = known_release.clone().or_else(|| release.map(str::to_owned));
        if known.is_none() || known_release != release {
            let mut pinned = BTreeMap::new();
            for (name, content) in all {
                let file = match content {
                    Some(Content { bytes, mode, link }) => {
                        let object = self.vault.put_bytes(bytes).map_err(|e| vault_problem(&e))?;
                        let (mode, link) = (*mode, link.clone());
                        Some(PinnedFile { object, mode, link })
                    }
                    None => None,
                };
                pinned.insert(name.clone(), file);
            }
            let pin = Pin {
                release: release.clone(),
                files: pinned,
            };
            self.vault
                .pin(&self.component, &digest, &pin)
                .map_err(|e| vault_problem(&e))?;
        }
        Ok(Revision {
            version: release.unwrap_or_else(|| short(&digest)),
            digest,
        })
    }

    /// The files of a revision, from where it is live or from the vault.
    pub fn files_of(&self, revision: &Revision, live: &Files) -> Result<Files, Problem> {
        if digest(live) == revision.digest {
            return Ok(live.clone());
        }
        let missing = || {
            Problem::new(
                Code::RevisionMissing,
                format!("{} of {} is not in the vault", revision.version, self.component),
            )
        };
        let pin = self.pin_of(&revision.digest)?.ok_or_else(missing)?;
        let mut all = Files::new();
        for (name, file) in pin.files {
            let content = match file {
                Some(PinnedFile { object, .. }) if !self.vault.has(&object) => return Err(missing()),
                Some(PinnedFile { object, mode, link }) => Some(Content {
                    bytes: self.vault.get(&object).map_err(|e| vault_problem(&e))?,
                    mode,
                    link,
                }),
                None => None,
            };
            all.insert(name, content);
        }
        let names: Vec<&String> = all.keys().collect();
        if names != self.names.iter().collect::<Vec<_>>() {
            return Err(Problem::new(
                Code::RevisionMissing,
                format!(
                    "{} was recorded with other managed files than are configured now",
                    revision.version
                ),
            )
            .remedy("set `files` as it was when the release was recorded"));
        }
        if digest(&all) == revision.digest {
            Ok(all)
        } else {
            Err(Problem::new(
                Code::RevisionDamaged,
                format!("the vault's files for {} have another digest", revision.version),
            ))
        }
    }

    /// Is every live file that of one of the two revisions? A killed switch leaves a mixture, a person leaves something
    /// else.
    pub fn expect_known(&self, live: &Files, from: &Files, to: &Files) -> Result<(), Problem> {
        let bytes = |all: &Files, name: &String| all.get(name).cloned().flatten().map(|content| content.bytes);
        let strange = self.names.iter().find(|name| {
            let found = bytes(live, name);
            found != bytes(from, name) && found != bytes(to, name)
        });
        match strange {
            None => Ok(()),
            Some(name) => Err(Problem::new(
                Code::WrongRevision,
                format!("{} was changed since the plan was made", self.root.join(name).display()),
            )),
        }
    }

    /// Makes the managed files what they should be. Each is replaced whole; those that are right are not touched.
    pub fn write(&self, all: &Files, id: &str) -> Result<(), Problem> {
        for (name, content) in all {
            let path = self.name_path(name)?;
            let Some(Content { bytes, mode, link }) = content else {
                files::remove(&path)?;
                continue;
            };
            if let Some(link) = link.as_ref().filter(|_| !link::is_there(&path)) {
                // A link that leads nowhere makes nginx refuse everything: first the file, then the link.
                let target = link::target(&self.root, &path, link)?;
                write_file(&target, bytes, *mode, id)?;
                link::make(&path, link, id)?;
            } else {
                write_file(&self.path_of(name)?, bytes, *mode, id)?;
            }
        }
        Ok(())
    }

    /// Makes the includes of upstreams what they should be. One that should be absent was so from the beginning.
    pub fn write_upstreams(&self, contents: &[Option<Vec<u8>>], id: &str) -> Result<(), Problem> {
        for (upstream, content) in self.upstreams.iter().zip(contents) {
            if let Some(content) = content {
                write_file(&upstream.file, content, 0o644, id)?;
            }
        }
        Ok(())
    }

    pub fn include_state(&self) -> Result<Option<Include>, Problem> {
        Ok(files::read(&self.include)?.map(|state| Include::parse(&String::from_utf8_lossy(&state.content))))
    }

    /// The managed include as it is; an error when somebody else's content is in it.
    pub fn include_bytes(&self) -> Result<Option<Vec<u8>>, Problem> {
        match files::read(&self.include)?.map(|state| state.content) {
            Some(content) if Include::parse(&String::from_utf8_lossy(&content)) == Include::Foreign => {
                Err(self.foreign_include())
            }
            content => Ok(content),
        }
    }

    /// Writes the managed include, unless somebody else's content is there.
    pub fn write_include(&self, text: &str, id: &str) -> Result<(), Problem> {
        self.include_bytes()?;
        let live = files::read(&self.include)?;
        let attributes = live.map_or_else(|| files::own_attributes(0o644), |state| state.attributes);
        replace(&self.include, text.as_bytes(), attributes, id)
    }

    /// Makes the include what it was, writing only if it is not.
    pub fn restore_include(&self, before: Option<&[u8]>, id: &str) -> Result<(), Problem> {
        match (files::read(&self.include)?, before) {
            (Some(now), Some(before)) if now.content == before => Ok(()),
            (Some(now), Some(before)) => replace(&self.include, before, now.attributes, id),
            (None, Some(before)) => replace(&self.include, before, files::own_attributes(0o644), id),
            (Some(_) | None, None) => files::remove(&self.include),
        }
    }

    pub fn foreign_include(&self) -> Problem {
        Problem::new(
            Code::NginxInclude,
            format!("{} has content that the agent did not write", self.include.display()),
        )
        .remedy("move its content elsewhere; the agent owns this file")
    }

    /// Does any managed file include the managed include, by what is written in it?
    pub fn includes_managed(&self, all: &Files) -> bool {
        all.values()
            .flatten()
            .any(|content| is_included(&String::from_utf8_lossy(&content.bytes), &self.include, &self.conf_dir))
    }

    /// What to do about a site that lacks the include.
    pub fn include_missing(&self, whose: &str) -> Problem {
        Problem::new(
            Code::NginxInclude,
            format!("{whose} does not include {}", self.include.display()),
        )
        .remedy(format!(
            "add to every managed server block, before its locations: include {};",
            self.include.display()
        ))
    }

    /// Temporary files of this rollback, as a kill may have left them.
    pub fn remove_leftovers(&self, id: &str) -> Result<(), Problem> {
        for name in &self.names {
            files::remove(&files::beside(&self.path_of(name)?, id))?;
            files::remove(&files::beside(&self.name_path(name)?, id))?;
        }
        for upstream in &self.upstreams {
            files::remove(&files::beside(&upstream.file, id))?;
        }
        files::remove(&files::beside(&self.include, id))
    }
}

fn write_file(path: &Path, bytes: &[u8], mode: u32, id: &str) -> Result<(), Problem> {
    let live = files::read(path)?;
    if live.as_ref().is_some_and(|state| state.content == bytes) {
        return Ok(());
    }
    let attributes = live.map_or_else(|| files::own_attributes(mode), |state| state.attributes);
    replace(path, bytes, attributes, id)
}

fn replace(path: &Path, content: &[u8], attributes: Attributes, id: &str) -> Result<(), Problem> {
    let temp = files::beside(path, id);
    files::write_new(&temp, content, attributes)?;
    files::publish(&temp, path)
}
