//! Changes to files of the host, made so that a kill at any point leaves the old content or the new one, never a mix;
//! and what goes wrong with files, as problems that an operator can read.
//!
//! Invariants:
//! - A file is replaced by a rename of a complete, synced file beside it; the directory is synced afterwards.
//! - Mode and owner of the replaced file are kept. A new file is never readable by more people than the old one, not
//!   even for an instant.
//! - A symbolic link in the last place of a path is never followed.
//!
//! All of it blocks; asynchronous callers wrap it in [`blocking`].

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rollback_proto::problem::{Code, Problem};
use sha2::{Digest as _, Sha256};

use crate::size;
use crate::vault::{Vault, VaultError};

/// Largest configuration file that is managed. Anything larger is not a configuration file.
pub const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Runs blocking file work off the runtime's threads.
pub async fn blocking<T, F>(work: F) -> Result<T, Problem>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Problem> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Problem::from_error(Code::Internal, "file work", &e)),
    }
}

/// "verb object: what the system said", with the code that fits.
pub fn io_problem(verb: impl Display, path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(code_of(error), format!("{verb} {}: {error}", path.display()))
}

fn code_of(error: &std::io::Error) -> Code {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Code::DiskFull,
        _ => Code::FileFailed,
    }
}

pub fn vault_problem(error: &VaultError) -> Problem {
    let code = match error {
        VaultError::Io { source, .. } => code_of(source),
        VaultError::Damaged { .. } | VaultError::BadPin { .. } => Code::RevisionDamaged,
    };
    Problem::from_error(code, "vault", error)
}

pub fn sha256_hex(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

/// Who may do what with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, with the special ones.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A regular file, as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileState {
    pub content: Vec<u8>,
    pub attributes: Attributes,
}

/// Reads a regular file of at most [`MAX_FILE`] bytes. `None` when there is nothing at this path. A link, a directory
/// or a device there is `BadLayout`.
pub fn read(path: &Path) -> Result<Option<FileState>, Problem> {
    let open = OpenOptions::new()
        .read(true)
        .custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32)
        .open(path);
    let file = match open {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(Problem::new(
                Code::BadLayout,
                format!("{} is a symbolic link; name the file that it points to", path.display()),
            ));
        }
        Err(e) => return Err(io_problem("open", path, &e)),
    };
    let metadata = file.metadata().map_err(|e| io_problem("read", path, &e))?;
    if !metadata.is_file() {
        return Err(Problem::new(
            Code::BadLayout,
            format!("{} is not a regular file", path.display()),
        ));
    }
    let mut content = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut content)
        .map_err(|e| io_problem("read", path, &e))?;
    if content.len() as u64 > MAX_FILE {
        return Err(Problem::new(
            Code::BadLayout,
            format!("{} is larger than {} MiB", path.display(), MAX_FILE / 1024 / 1024),
        ));
    }
    let attributes = Attributes {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    };
    Ok(Some(FileState { content, attributes }))
}

/// Writes a file that was not there, whole and synced, with these attributes from its first readable byte on. What an
/// earlier, killed attempt left at `path` is replaced. Nothing is left behind when it fails.
pub fn write_new(path: &Path, content: &[u8], attributes: Attributes) -> Result<(), Problem> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(io_problem("remove the leftover", path, &e)),
    }
    let result = fill(path, content, attributes).map_err(|e| io_problem("write", path, &e));
    if result.is_err() {
        // The first error is the one to report; a leftover is replaced next time.
        let _ = std::fs::remove_file(path);
    }
    result
}

fn fill(path: &Path, content: &[u8], attributes: Attributes) -> std::io::Result<()> {
    // `create_new` implies that a link put there meanwhile is refused.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    let made = file.metadata()?;
    if (made.uid(), made.gid()) != (attributes.uid, attributes.gid) {
        std::os::unix::fs::fchown(&file, Some(attributes.uid), Some(attributes.gid))?;
    }
    // After the owner: changing the owner takes special bits away.
    file.set_permissions(std::fs::Permissions::from_mode(attributes.mode))?;
    file.sync_all()
}

/// Opens a file that only we may read and write, as it is; makes it when there is none.
pub fn open_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Puts `staged` in the place of `path`. Once this returns, the new content survives a power cut.
pub fn publish(staged: &Path, path: &Path) -> Result<(), Problem> {
    std::fs::rename(staged, path).map_err(|e| io_problem("rename into place", path, &e))?;
    sync_parent(path)
}

/// Removes a file; it need not be there.
pub fn remove(path: &Path) -> Result<(), Problem> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(io_problem("remove", path, &e)),
    }
}

pub fn sync_parent(path: &Path) -> Result<(), Problem> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    crate::vault::sync_dir(parent).map_err(|e| vault_problem(&e))
}

/// Attributes for a file of ours that replaces nothing.
pub fn own_attributes(mode: u32) -> Attributes {
    Attributes {
        mode,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

/// `.name.rollbackctl-<id>` beside `path`: hidden from globs such as `sites-enabled/*`, and known as ours.
pub fn beside(path: &Path, id: &str) -> PathBuf {
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    path.with_file_name(format!(".{name}.rollbackctl-{id}"))
}

/// Removes what [`beside`] named for this path, under whatever id, except for `keep`. What a rollback that was held left
/// there holds secrets as much as the live file does.
pub fn remove_beside(path: &Path, keep: Option<&Path>) -> Result<(), Problem> {
    let (Some(dir), prefix) = (path.parent(), beside(path, "")) else {
        return Ok(());
    };
    let prefix = prefix.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for entry in std::fs::read_dir(dir).map_err(|e| io_problem("list", dir, &e))? {
        let found = entry.map_err(|e| io_problem("list", dir, &e))?.path();
        let ours = found
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        if ours && Some(found.as_path()) != keep {
            remove(&found)?;
        }
    }
    Ok(())
}

/// Bytes that this process may still write on the file system that holds `path`.
pub fn free_space(path: &Path) -> Result<u64, Problem> {
    let stat = rustix::fs::statvfs(path).map_err(|e| io_problem("ask for free space of", path, &e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Is this directory one where nobody but its owner can exchange names under our hands? Sticky directories do not
/// count as safe: others may still put a link at the name that we are about to make.
pub fn writable_by_others(dir: &Path) -> Result<bool, Problem> {
    let metadata = std::fs::metadata(dir).map_err(|e| io_problem("look at", dir, &e))?;
    Ok(metadata.mode() & 0o002 != 0)
}

/// Can this process make names in the directory?
pub fn writable_by_us(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

/// Opens a path relative to a root without leaving it: `..`, absolute links and links that lead outside are refused by
/// the kernel (`openat2`, `RESOLVE_BENEATH`). The answer is the real path, for later use by name.
pub fn beneath(root: &Path, relative: &Path) -> Result<PathBuf, Problem> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
    let at_root = openat(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| io_problem("open", root, &e.into()))?;
    let full = root.join(relative);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(
        &at_root,
        relative,
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(|e| match e {
        rustix::io::Errno::XDEV | rustix::io::Errno::LOOP => Problem::new(
            Code::BadLayout,
            format!("{} leads out of {}", full.display(), root.display()),
        ),
        other => io_problem("open", &full, &other.into()),
    })?;
    std::fs::canonicalize(&full).map_err(|e| io_problem("resolve", &full, &e))
}

/// Is this a path that stays where it is joined: relative, without `..`?
pub fn stays_beneath(relative: &Path) -> bool {
    use std::path::Component;
    let mut parts = relative.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Takes a component's pin away, and from the vault what no other pin names. One line for people.
pub fn let_go(vault: &Vault, component: &str, digest: &str) -> Result<String, Problem> {
    let unpinned = vault.unpin(component, digest).map_err(|e| vault_problem(&e))?;
    // Also when there was no pin: an earlier attempt may have been killed between the two.
    let swept = vault.sweep().map_err(|e| vault_problem(&e))?;
    Ok(match (unpinned, swept) {
        (_, Some(swept)) if swept.objects > 0 => format!(
            "{} objects, {} of the vault are free",
            swept.objects,
            size::shown(swept.bytes)
        ),
        (true, Some(_)) => "what it had in the vault belongs to others, too".to_owned(),
        (_, None) => "the vault is in use; what is free goes the next time".to_owned(),
        (false, Some(_)) => "nothing was kept for it".to_owned(),
    })
}
