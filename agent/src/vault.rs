//! The agent's vault: content kept by its SHA-256, so that a revision can come back after the file, directory or
//! migration that it was made from is gone.
//!
//! Layout under the vault's directory (0700): `objects/ab/cdef…` (contents, 0600, never changed once there) and
//! `pins/<component>/<digest>.json` (what a component needs in order to come back to that digest: a JSON document that
//! its driver understands and that names objects). A pin is written last, after every object it names is durable:
//! whoever finds a pin finds everything. What no pin names any more is removed by [`Vault::sweep`], and by nothing else.

mod sweep;

use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

pub use self::sweep::{Keeping, Swept};

/// SHA-256 of some content, as 64 hex digits: an object's name.
pub type ObjectId = String;

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("{verb} {}", path.display())]
    Io {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("object {id} in the vault is damaged: its content has digest {found}")]
    Damaged { id: ObjectId, found: ObjectId },
    #[error("pin {} cannot be read", path.display())]
    BadPin {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

fn io(verb: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> VaultError {
    let path = path.to_owned();
    move |source| VaultError::Io { verb, path, source }
}

/// Documents whose name begins so remember digests of files that are elsewhere. They keep no object.
pub const MEMORY: &str = "hashes:";

/// Blocking: callers with much to copy use `spawn_blocking`.
#[derive(Debug)]
pub struct Vault {
    root: PathBuf,
}

impl Vault {
    /// Opens or makes the vault. The directory is 0700: it holds env files.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, VaultError> {
        let root = root.into();
        for dir in ["objects", "pins"] {
            let path = root.join(dir);
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(io("create", &path))?;
        }
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o700)).map_err(io("restrict", &root))?;
        let vault = Self { root };
        // Made now, so that a disk that is full later keeps nobody from locking.
        vault.lock_file()?;
        Ok(vault)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    fn object_path(&self, id: &str) -> PathBuf {
        let (head, tail) = id.split_at_checked(2).unwrap_or((id, ""));
        self.root.join("objects").join(head).join(tail)
    }

    fn pin_path(&self, component: &str, digest: &str) -> PathBuf {
        self.root.join("pins").join(component).join(pin_name(digest))
    }

    /// Stores content. Durable when it returns; storing the same content again costs one read.
    pub fn put(&self, content: &mut dyn Read) -> Result<ObjectId, VaultError> {
        let staging = self.root.join("objects");
        let mut temp = tempfile::Builder::new()
            .prefix(".incoming-")
            .permissions(std::fs::Permissions::from_mode(0o600))
            .tempfile_in(&staging)
            .map_err(io("create a file in", &staging))?;
        let mut hash = Sha256::new();
        let mut chunk = vec![0u8; 128 * 1024];
        loop {
            let n = content.read(&mut chunk).map_err(io("read content for", &staging))?;
            if n == 0 {
                break;
            }
            hash.update(&chunk[..n]);
            temp.write_all(&chunk[..n]).map_err(io("write", temp.path()))?;
        }
        let id = hex::encode(hash.finalize());
        let path = self.object_path(&id);
        if path.exists() {
            return Ok(id);
        }
        temp.as_file().sync_all().map_err(io("sync", temp.path()))?;
        let dir = path.parent().unwrap_or(&staging);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io("create", dir))?;
        temp.persist(&path).map_err(|e| VaultError::Io {
            verb: "write",
            path: path.clone(),
            source: e.error,
        })?;
        sync_dir(dir)?;
        sync_dir(&staging)?;
        Ok(id)
    }

    pub fn put_bytes(&self, content: &[u8]) -> Result<ObjectId, VaultError> {
        self.put(&mut &content[..])
    }

    pub fn put_file(&self, path: &Path) -> Result<ObjectId, VaultError> {
        let mut file = std::fs::File::open(path).map_err(io("open", path))?;
        self.put(&mut file)
    }

    pub fn has(&self, id: &str) -> bool {
        self.object_path(id).is_file()
    }

    /// Reads an object and checks its content against its name.
    pub fn get(&self, id: &str) -> Result<Vec<u8>, VaultError> {
        let path = self.object_path(id);
        let content = std::fs::read(&path).map_err(io("read", &path))?;
        let found = hex::encode(Sha256::digest(&content));
        if found == id {
            Ok(content)
        } else {
            Err(VaultError::Damaged {
                id: id.to_owned(),
                found,
            })
        }
    }

    /// Copies an object to a new file of this mode, checking its content on the way. The file is synced; its directory
    /// is not.
    pub fn copy_to(&self, id: &str, to: &Path, mode: u32) -> Result<(), VaultError> {
        let from = self.object_path(id);
        let mut source = std::fs::File::open(&from).map_err(io("open", &from))?;
        let mut target = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(to)
            .map_err(io("create", to))?;
        let mut hash = Sha256::new();
        let mut chunk = vec![0u8; 128 * 1024];
        loop {
            let n = source.read(&mut chunk).map_err(io("read", &from))?;
            if n == 0 {
                break;
            }
            hash.update(&chunk[..n]);
            target.write_all(&chunk[..n]).map_err(io("write", to))?;
        }
        let found = hex::encode(hash.finalize());
        if found != id {
            return Err(VaultError::Damaged {
                id: id.to_owned(),
                found,
            });
        }
        // The umask may have taken bits away.
        target
            .set_permissions(std::fs::Permissions::from_mode(mode))
            .map_err(io("set the mode of", to))?;
        target.sync_all().map_err(io("sync", to))
    }

    /// Writes (or replaces) what a component needs in order to come back to `digest`. Durable when it returns.
    pub fn pin(&self, component: &str, digest: &str, document: &impl Serialize) -> Result<(), VaultError> {
        let path = self.pin_path(component, digest);
        let dir = path.parent().unwrap_or(&self.root);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io("create", dir))?;
        let mut temp = tempfile::NamedTempFile::new_in(dir).map_err(io("create a file in", dir))?;
        serde_json::to_writer(&mut temp, document).map_err(|source| VaultError::BadPin {
            path: path.clone(),
            source,
        })?;
        temp.as_file().sync_all().map_err(io("sync", temp.path()))?;
        temp.persist(&path).map_err(|e| VaultError::Io {
            verb: "write",
            path: path.clone(),
            source: e.error,
        })?;
        sync_dir(dir)
    }

    /// The document pinned for this revision of the component; `None` when it was never pinned.
    pub fn pinned<T: DeserializeOwned>(&self, component: &str, digest: &str) -> Result<Option<T>, VaultError> {
        let path = self.pin_path(component, digest);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| VaultError::BadPin { path, source }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(VaultError::Io {
                verb: "read",
                path,
                source,
            }),
        }
    }
}

fn pin_name(digest: &str) -> String {
    format!("{}.json", digest.replace(':', "-"))
}

/// Makes renames and new names in a directory durable.
pub fn sync_dir(dir: &Path) -> Result<(), VaultError> {
    std::fs::File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(io("sync", dir))
}
