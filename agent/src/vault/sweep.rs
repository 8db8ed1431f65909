//! Letting go: taking pins away, and removing the objects that no pin names.
//!
//! Invariants:
//! - An object that some pin names is never removed, whichever component's pin it is: contents are shared.
//! - Nor is one that is being kept: its pin comes last, so whoever puts objects holds [`Keeping`] until the pin is
//!   written, and nothing is swept meanwhile. The lock is the kernel's, because `rollback-agent database adopt` is another
//!   process with the same vault.
//! - When a single pin cannot be read, nothing is removed: nobody knows what it names.
//!
//! A sweep looks at everything. So what a killed agent left, or an earlier sweep that found somebody at work, goes with
//! the next one.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{MEMORY, ObjectId, Vault, VaultError, io, pin_name, sync_dir};

/// Beside `objects` and `pins`.
const LOCK: &str = "lock";

/// Nothing is swept while this is held.
#[derive(Debug)]
#[must_use = "it holds as long as it lives"]
pub struct Keeping {
    _lock: File,
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub objects: u64,
    pub bytes: u64,
}

impl Vault {
    /// Held from before the first object is put until its pin is written.
    pub fn keeping(&self) -> Result<Keeping, VaultError> {
        let lock = self.lock_file()?;
        // A sweep takes seconds, and nobody else ever makes this wait.
        lock.lock_shared().map_err(io("lock", &self.root.join(LOCK)))?;
        Ok(Keeping { _lock: lock })
    }

    pub(super) fn lock_file(&self) -> Result<File, VaultError> {
        let path = self.root.join(LOCK);
        std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io("open", &path))
    }

    /// Takes a pin away. What it named is removed by the next sweep. `false`: there was none.
    pub fn unpin(&self, component: &str, digest: &str) -> Result<bool, VaultError> {
        let path = self.pin_path(component, digest);
        match std::fs::remove_file(&path) {
            Ok(()) => {
                sync_dir(path.parent().unwrap_or(&self.root))?;
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(source) => Err(io("remove", &path)(source)),
        }
    }

    /// Every document of a component that reads as a `T`.
    pub fn documents<T: DeserializeOwned>(&self, component: &str) -> Result<Vec<T>, VaultError> {
        let mut found = Vec::new();
        for path in pins_in(&self.root.join("pins").join(component))? {
            // Another kind of document has other fields.
            found.extend(serde_json::from_value(read(&path)?).ok());
        }
        Ok(found)
    }

    /// Does any pin, of whichever component, say exactly this somewhere?
    pub fn mentions(&self, text: &str) -> Result<bool, VaultError> {
        for path in self.pins()? {
            if anywhere(&read(&path)?, &mut |found| found == text) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes every object that no pin names. `None`: something is being kept at this moment, and nothing was removed.
    pub fn sweep(&self) -> Result<Option<Swept>, VaultError> {
        let lock = self.lock_file()?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(io("lock", &self.root.join(LOCK))(source)),
        }
        let named = self.named()?;
        let mut swept = Swept::default();
        for head in list(&self.root.join("objects"))? {
            // What lies there beside the directories is what a killed `put` had not finished.
            let is_dir = head.is_dir();
            let objects = if is_dir { list(&head)? } else { vec![head.clone()] };
            let before = swept.objects;
            for path in objects {
                let id: ObjectId = name_of(&head) + &name_of(&path);
                if named.contains(&id) {
                    continue;
                }
                let bytes = std::fs::metadata(&path).map_or(0, |about| about.len());
                std::fs::remove_file(&path).map_err(io("remove", &path))?;
                (swept.objects, swept.bytes) = (swept.objects + 1, swept.bytes + bytes);
            }
            if is_dir && swept.objects > before {
                sync_dir(&head)?;
            }
        }
        Ok(Some(swept))
    }

    /// Every object that a pin names: whatever looks like the name of one.
    fn named(&self) -> Result<HashSet<ObjectId>, VaultError> {
        let mut named = HashSet::new();
        for path in self.pins()? {
            anywhere(&read(&path)?, &mut |text| {
                if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    named.insert(text.to_owned());
                }
                false
            });
        }
        Ok(named)
    }

    /// Every document that keeps objects.
    fn pins(&self) -> Result<Vec<PathBuf>, VaultError> {
        let memory = pin_name(MEMORY);
        let memory = memory.trim_end_matches(".json");
        let mut all = Vec::new();
        for component in list(&self.root.join("pins"))? {
            let pins = pins_in(&component)?.into_iter();
            all.extend(pins.filter(|pin| !name_of(pin).starts_with(memory)));
        }
        Ok(all)
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Without those that are just being written.
fn pins_in(dir: &Path) -> Result<Vec<PathBuf>, VaultError> {
    let mut paths = list(dir)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    Ok(paths)
}

/// Empty when there is no such directory.
fn list(dir: &Path) -> Result<Vec<PathBuf>, VaultError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(io("read", dir)(source)),
    };
    let paths: Result<Vec<PathBuf>, std::io::Error> = entries.map(|entry| Ok(entry?.path())).collect();
    paths.map_err(io("read", dir))
}

/// A pin that another component has taken away meanwhile says nothing.
fn read(path: &Path) -> Result<Value, VaultError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Value::Null),
        Err(source) => return Err(io("read", path)(source)),
    };
    serde_json::from_slice(&bytes).map_err(|source| VaultError::BadPin {
        path: path.to_owned(),
        source,
    })
}

/// Is there a text in this document for which `fits` holds? Keys count, too.
fn anywhere(value: &Value, fits: &mut impl FnMut(&str) -> bool) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
        Value::String(text) => fits(text),
        Value::Array(items) => items.iter().any(|item| anywhere(item, fits)),
        Value::Object(fields) => fields.iter().any(|(key, item)| fits(key) || anywhere(item, fits)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vault() -> (tempfile::TempDir, Vault) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let vault = Vault::open(dir.path().join("vault")).expect("vault");
        (dir, vault)
    }

    #[test]
    fn only_what_nobody_names_is_swept() {
        let (_dir, vault) = vault();
        let [shared, own, remembered, manifest] =
            ["shared", "own", "remembered", "manifest"].map(|text| vault.put_bytes(text.as_bytes()).expect("put"));
        vault
            .pin("api", "sha256:1", &json!({"a": shared, "b": own}))
            .expect("pin");
        vault
            .pin("web", "sha256:1", &json!({"files": {"x": {"sha256": shared}}}))
            .expect("pin");
        vault.pin("web", "git:2", &json!({ manifest.clone(): 1 })).expect("pin");
        // What a directory's files hash to says nothing of the vault.
        vault
            .pin("web", &format!("{MEMORY}v3"), &json!({ "x": remembered }))
            .expect("pin");
        assert!(vault.unpin("api", "sha256:1").expect("unpin"));
        assert!(!vault.unpin("api", "sha256:1").expect("unpin again"));
        let swept = vault.sweep().expect("sweep").expect("nobody keeps anything");
        assert_eq!(swept, Swept { objects: 2, bytes: 13 });
        assert!(vault.has(&shared) && vault.has(&manifest));
        assert!(!vault.has(&own) && !vault.has(&remembered));
        assert_eq!(vault.sweep().expect("again"), Some(Swept::default()));
    }

    #[test]
    fn nothing_is_swept_while_something_is_kept_or_a_pin_is_damaged() {
        let (dir, vault) = vault();
        let keeping = vault.keeping().expect("keeping");
        let put = vault.put_bytes(b"no pin names it yet").expect("put");
        assert_eq!(vault.sweep().expect("refused"), None);
        drop(keeping);
        vault.pin("api", "sha256:1", &json!({})).expect("pin");
        let pin = dir.path().join("vault/pins/api/sha256-1.json");
        std::fs::write(&pin, "{\"object\": \"half").expect("damage");
        assert!(matches!(vault.sweep(), Err(VaultError::BadPin { .. })));
        assert!(vault.has(&put));
        std::fs::remove_file(pin).expect("remove");
        assert_eq!(vault.sweep().expect("sweep").map(|swept| swept.objects), Some(1));
    }
}
