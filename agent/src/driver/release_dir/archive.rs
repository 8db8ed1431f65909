//! Releases in archives: `v2.9.0.tar.gz`, `.tgz`, `.tar.zst`, `.tar`, `.zip`.
//!
//! An archive is a stranger's list of instructions for writing files. So it is not unpacked: [`examine`] reads it from
//! the first byte to the last and writes nothing, and only what it accepted is read a second time, file by file, into
//! the vault ([`store`]). No name of an archive ever becomes a path here. The vault restores the release later, as it
//! restores every other.
//!
//! Invariants:
//! - An archive that is refused has not caused one byte to be written, in its target or anywhere else.
//! - Refused, with the entry's name: absolute paths, `..`, names that are too long or not UTF-8, links that leave the
//!   release (also by way of another link), entries beneath a link or a file, a name twice, devices, pipes and sockets,
//!   set-user-ID and set-group-ID programs, encrypted entries.
//! - Refused as a whole: what is larger, deeper or more numerous than [`Limits`]; what is truncated, damaged or goes on
//!   after its end; what differs from the checksums beside it or in it.
//! - Special bits of *directories* are dropped, as are the write permissions of group and others; owners are not taken
//!   from the archive.
//!
//! A single directory at the top is taken away when it is named after the release: `v2.9.0/`, `zekka-v2.9.0/`, or the
//! same without the `v` (`zekka-2.9.0/`). Any other name belongs to the release.

mod formats;
pub mod sums;
mod tree;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use self::formats::{Item, Kind};
use self::tree::{Node, Tree};
use super::manifest::{Entry, Manifest, Owner};
use crate::files::vault_problem;
use crate::vault::Vault;

/// A ratio means something only from here on: a small file of zeros is no bomb.
const RATIO_FLOOR: u64 = 16 << 20;

/// Largest list of checksums that is read.
const MAX_SUMS: u64 = 16 << 20;

/// What an archive may contain at most.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Content of all files together.
    #[serde(deserialize_with = "crate::size::deserialize")]
    pub bytes: u64,
    /// Files, directories and links together.
    pub entries: u64,
    /// How many times larger than the archive its content may be.
    pub ratio: u64,
    /// Directories within each other.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 2_000_000_000,
            entries: 200_000,
            ratio: 100,
            depth: 64,
        }
    }
}

/// How an archive is written, by the end of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    TarGz,
    TarZst,
    Tar,
    Zip,
}

/// Ends of names, in the order in which they are looked for.
pub const SUFFIXES: [(&str, Format); 5] = [
    (".tar.gz", Format::TarGz),
    (".tgz", Format::TarGz),
    (".tar.zst", Format::TarZst),
    (".tar", Format::Tar),
    (".zip", Format::Zip),
];

/// Set when nobody waits for the result any more. Blocking work cannot be cut off, it has to look.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// An open archive, and how far it is trusted.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub path: &'a Path,
    pub file: &'a File,
    pub format: Format,
    pub limits: &'a Limits,
    pub stop: &'a Stop,
}

/// An archive that was accepted.
#[derive(Debug)]
pub struct Examined {
    pub manifest: Manifest,
    /// Permissions for the release directory itself.
    pub top: Owner,
    /// Of the archive.
    pub sha256: String,
    /// Checksum lists at the top of the release: name and text.
    pub lists: Vec<(String, Vec<u8>)>,
    /// The directory at the top that was taken away, with its slash, or nothing.
    prefix: String,
}

/// Refuses an archive. `why` names the entry.
pub(super) fn refused(archive: &Path, why: impl std::fmt::Display) -> Problem {
    Problem::new(Code::ArchiveRefused, format!("{}: {why}", archive.display()))
}

/// The beginning of a name that may be hostile, safe to print.
pub(super) fn shown(name: &str) -> String {
    let short: String = name.chars().take(120).collect();
    let dots = if short.len() < name.len() { "…" } else { "" };
    format!("{short:?}{dots}")
}

/// Reads all of an archive and writes nothing. `owner` is who the release's files will belong to.
pub fn examine(source: &Source<'_>, release: &str, owner: (u32, u32)) -> Result<Examined, Problem> {
    let Source {
        path,
        file,
        format,
        limits,
        stop,
    } = *source;
    let sha256 = hash_whole(path, file, stop)?;
    let meter = Meter::new(file, limits, format, stop);
    let mut tree = Tree::new(limits);
    let mut lists = Vec::new();
    formats::each(path, file, format, &meter, &mut |item| {
        let Item { name, mode, kind } = item;
        let bad = |why: String| refused(path, format!("entry {}: {why}", shown(&name)));
        let node = match kind {
            Kind::Directory => Node::Directory { mode },
            Kind::Link { target } => Node::Link { target },
            Kind::HardLink { target } => tree.earlier_file(&target).map_err(bad)?,
            Kind::File { size, content } => {
                if mode & 0o6000 != 0 {
                    return Err(bad("it has the set-user-ID or set-group-ID bit".into()));
                }
                tree.expect_room(size).map_err(bad)?;
                let read = read_file(content, sums::is_list(&name)).map_err(|e| bad(e.to_string()))?;
                if read.size != size {
                    return Err(bad(format!(
                        "it has {} bytes, {size} are announced: the archive is damaged or truncated",
                        read.size
                    )));
                }
                if let Some(text) = read.kept {
                    lists.push((name.clone(), text));
                }
                Node::File {
                    mode,
                    size,
                    sha256: read.sha256,
                }
            }
        };
        tree.add(&name, node).map_err(bad)
    })?;
    let finished = tree.finish(release, owner, stop).map_err(|why| refused(path, why))?;
    let lists = lists
        .into_iter()
        .filter_map(|(name, text)| {
            let name = tree::clean_name(&name, usize::MAX).ok()?;
            let name = name.strip_prefix(&finished.prefix)?.to_owned();
            (!name.contains('/')).then_some((name, text))
        })
        .collect();
    Ok(Examined {
        manifest: finished.manifest,
        top: finished.top,
        sha256,
        lists,
        prefix: finished.prefix,
    })
}

/// Puts the files of an examined archive into the vault. The archive may have been exchanged since: content that was
/// not examined is not accepted. Files that `excluded` names are left out.
pub fn store(
    source: &Source<'_>,
    examined: &Examined,
    excluded: &dyn Fn(&str) -> bool,
    vault: &Vault,
) -> Result<(), Problem> {
    let Source {
        path,
        file,
        format,
        limits,
        stop,
    } = *source;
    let meter = Meter::new(file, limits, format, stop);
    formats::each(path, file, format, &meter, &mut |item| {
        let Kind::File { content, .. } = item.kind else {
            return Ok(());
        };
        let changed = || refused(path, "it was exchanged while it was read");
        let name = tree::clean_name(&item.name, usize::MAX).map_err(|_| changed())?;
        let name = name.strip_prefix(&examined.prefix).ok_or_else(changed)?;
        let Some(Entry::File { sha256, .. }) = examined.manifest.entries.get(name) else {
            return Err(changed());
        };
        if excluded(name) || vault.has(sha256) {
            return Ok(());
        }
        let stored = vault.put(content).map_err(|e| vault_problem(&e))?;
        if stored == *sha256 { Ok(()) } else { Err(changed()) }
    })
}

struct ReadFile {
    size: u64,
    sha256: String,
    kept: Option<Vec<u8>>,
}

/// Hashes to the end, and keeps the content where it is wanted.
fn read_file(content: &mut dyn Read, keep: bool) -> io::Result<ReadFile> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0u8; 64 * 1024];
    let (mut size, mut kept) = (0, keep.then(Vec::new));
    loop {
        let n = content.read(&mut chunk)?;
        if n == 0 {
            break;
        }
        size += n as u64;
        hash.update(&chunk[..n]);
        if let Some(kept) = &mut kept {
            kept.extend_from_slice(&chunk[..n]);
            if kept.len() as u64 > MAX_SUMS {
                return Err(io::Error::other("a list of checksums is not that long"));
            }
        }
    }
    Ok(ReadFile {
        size,
        sha256: hex::encode(hash.finalize()),
        kept,
    })
}

fn hash_whole(path: &Path, mut file: &File, stop: &Stop) -> Result<String, Problem> {
    let failed = |e: io::Error| crate::files::io_problem("read", path, &e);
    io::Seek::rewind(&mut file).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0u8; 128 * 1024];
    loop {
        if stop.stopped() {
            return Err(too_late(path));
        }
        match file.read(&mut chunk).map_err(failed)? {
            0 => return Ok(hex::encode(hash.finalize())),
            n => hash.update(&chunk[..n]),
        }
    }
}

fn too_late(path: &Path) -> Problem {
    Problem::new(Code::StepTimeout, format!("{} was not read in time", path.display()))
}

/// Counts what comes out of an archive. One for each reading.
#[derive(Debug)]
struct Meter {
    /// Bytes of the archive itself.
    archive: u64,
    total: Cell<u64>,
    most: u64,
    ratio: u64,
    /// What may still be read for headers. `None`: content is being read.
    headers: Cell<Option<u64>>,
    stop: Stop,
}

impl Meter {
    fn new(file: &File, limits: &Limits, format: Format, stop: &Stop) -> Rc<Self> {
        // A tape archive's headers and padding come out of the decompressor, too.
        let framing = match format {
            Format::TarGz | Format::TarZst | Format::Tar => limits.entries.saturating_mul(2048).saturating_add(1 << 20),
            Format::Zip => 0,
        };
        Rc::new(Self {
            archive: file.metadata().map_or(0, |m| m.len()),
            total: Cell::new(0),
            most: limits.bytes.saturating_add(framing),
            ratio: limits.ratio,
            headers: Cell::new(None),
            stop: stop.clone(),
        })
    }

    fn count(&self, n: u64) -> io::Result<()> {
        let total = self.total.get() + n;
        self.total.set(total);
        if self.stop.stopped() {
            return Err(io::Error::other("it was not read in time"));
        }
        if total > self.most {
            return Err(io::Error::other(format!(
                "its content is larger than limits.bytes allows ({})",
                crate::size::shown(self.most)
            )));
        }
        if total > RATIO_FLOOR && total / self.ratio.max(1) > self.archive {
            return Err(io::Error::other(format!(
                "its content is more than {} times larger than the archive (limits.ratio)",
                self.ratio
            )));
        }
        if let Some(left) = self.headers.get() {
            // Long names and extended headers are read into memory whole, by whatever length they announce.
            let left = left
                .checked_sub(n)
                .ok_or_else(|| io::Error::other("an entry has more than 1 MiB of headers"))?;
            self.headers.set(Some(left));
        }
        Ok(())
    }
}

/// A reader whose bytes are counted.
struct Metered<R> {
    inner: R,
    meter: Rc<Meter>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.meter.count(n as u64)?;
        Ok(n)
    }
}
