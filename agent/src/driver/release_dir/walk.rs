//! Reading a directory tree into a [`Manifest`], with a memory of what was hashed before.
//!
//! Hashing a release takes seconds, looking at the status of its files milliseconds. A file's hash is remembered under
//! its size, inode, mode, modification and change time. Change times cannot be set by programs, so a file whose content
//! was exchanged and whose modification time was put back is hashed again. A file that changed a moment before it was
//! hashed is not remembered: a second change within the clock's tick would be invisible.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::manifest::{Entry, Exclude, Manifest, Owner};
use crate::files::io_problem;

/// Longer than any file system's clock tick.
const SETTLED_NANOS: i128 = 100_000_000;

/// Most entries of one release. More is not a release but a mistake in the configuration (root "/", for one).
const MAX_ENTRIES: usize = 1_000_000;

/// The status under which a file's hash is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    inode: u64,
    mode: u32,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Hashes of one tree's files by path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory(BTreeMap<String, (Stamp, String)>);

/// Reads a tree. The new memory has the files of this tree only.
pub fn read_tree(top: &Path, exclude: &Exclude, memory: &Memory) -> Result<(Manifest, Memory), Problem> {
    let mut manifest = Manifest::default();
    let mut next = Memory::default();
    let mut pending = vec![String::new()];
    while let Some(dir) = pending.pop() {
        let path = top.join(&dir);
        let listing = std::fs::read_dir(&path).map_err(|e| io_problem("read directory", &path, &e))?;
        for item in listing {
            let item = item.map_err(|e| io_problem("read directory", &path, &e))?;
            let name = item.file_name().into_string().map_err(|name| {
                Problem::new(
                    Code::BadLayout,
                    format!("{}: the name {name:?} is not UTF-8", path.display()),
                )
            })?;
            let relative = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if exclude.matches(&relative) {
                continue;
            }
            let entry = read_entry(&item.path(), &relative, memory, &mut next)?;
            if matches!(entry, Entry::Directory { .. }) {
                pending.push(relative.clone());
            }
            manifest.entries.insert(relative, entry);
            if manifest.entries.len() > MAX_ENTRIES {
                return Err(Problem::new(
                    Code::BadLayout,
                    format!(
                        "{} has more than {MAX_ENTRIES} entries: not a release directory",
                        top.display()
                    ),
                ));
            }
        }
    }
    Ok((manifest, next))
}

fn read_entry(path: &Path, relative: &str, memory: &Memory, next: &mut Memory) -> Result<Entry, Problem> {
    let metadata = std::fs::symlink_metadata(path).map_err(|e| io_problem("look at", path, &e))?;
    let owner = Owner {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    };
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Ok(Entry::Directory { owner });
    }
    if kind.is_symlink() {
        let target = std::fs::read_link(path).map_err(|e| io_problem("read link", path, &e))?;
        let target = target.into_os_string().into_string().map_err(|target| {
            Problem::new(
                Code::BadLayout,
                format!("{}: the target {target:?} is not UTF-8", path.display()),
            )
        })?;
        return Ok(Entry::Link { target });
    }
    if !kind.is_file() {
        return Err(Problem::new(
            Code::BadLayout,
            format!(
                "{} is a device, pipe or socket; exclude it from the release",
                path.display()
            ),
        ));
    }
    let stamp = Stamp {
        size: metadata.size(),
        inode: metadata.ino(),
        mode: metadata.mode(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    };
    let sha256 = match memory.0.get(relative) {
        Some((known, hash)) if *known == stamp => hash.clone(),
        Some(_) | None => hash_file(path)?,
    };
    if settled(&stamp) {
        next.0.insert(relative.to_owned(), (stamp, sha256.clone()));
    }
    Ok(Entry::File {
        owner,
        size: metadata.size(),
        sha256,
    })
}

fn settled(stamp: &Stamp) -> bool {
    let nanos = |(seconds, nanos): (i64, i64)| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as i128);
    nanos(stamp.changed).max(nanos(stamp.modified)) + SETTLED_NANOS < now
}

fn hash_file(path: &Path) -> Result<String, Problem> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|e| io_problem("open", path, &e))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0u8; 128 * 1024];
    loop {
        match file.read(&mut chunk).map_err(|e| io_problem("read", path, &e))? {
            0 => return Ok(hex::encode(hash.finalize())),
            n => hash.update(&chunk[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn tree(dir: &Path) -> (Manifest, Memory) {
        read_tree(dir, &Exclude::default(), &Memory::default()).expect("read")
    }

    #[tokio::test]
    async fn a_change_with_its_time_put_back_is_seen() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a");
        std::fs::write(&path, "one").expect("write");
        let time = std::fs::metadata(&path).expect("stat").modified().expect("mtime");
        // Wait for the condition that lets the hash be remembered.
        let (before, memory) = loop {
            let (manifest, memory) = tree(dir.path());
            if !memory.0.is_empty() {
                break (manifest, memory);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        std::fs::write(&path, "two").expect("write");
        std::fs::File::options()
            .write(true)
            .open(&path)
            .expect("open")
            .set_modified(time)
            .expect("set time");
        let (after, _) = read_tree(dir.path(), &Exclude::default(), &memory).expect("read");
        assert_ne!(before.digest(), after.digest());
    }

    #[tokio::test]
    async fn remembers_what_has_settled() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a");
        std::fs::write(&path, "one").expect("write");
        let (_, fresh) = tree(dir.path());
        assert!(
            fresh.0.is_empty(),
            "a file written a moment ago may change again within the clock's tick"
        );
        let mut memory = loop {
            let (_, memory) = tree(dir.path());
            if !memory.0.is_empty() {
                break memory;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        // A hash that only the memory can have proves that the file was not read again.
        memory.0.get_mut("a").expect("remembered").1 = "from-memory".into();
        let (manifest, _) = read_tree(dir.path(), &Exclude::default(), &memory).expect("read");
        assert!(matches!(&manifest.entries["a"], Entry::File { sha256, .. } if sha256 == "from-memory"));
    }

    #[test]
    fn refuses_sockets_and_reads_links_as_links() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::os::unix::fs::symlink("/etc/shadow", dir.path().join("link")).expect("link");
        let (manifest, _) = tree(dir.path());
        assert_eq!(
            manifest.entries["link"],
            Entry::Link {
                target: "/etc/shadow".into()
            }
        );
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s")).expect("socket");
        let problem = read_tree(dir.path(), &Exclude::default(), &Memory::default()).expect_err("socket");
        assert_eq!(problem.code, Code::BadLayout);
    }
}
