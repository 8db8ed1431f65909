//! Walking through an archive, entry by entry, whatever its format. What is found is passed on as it is written there;
//! whether it is acceptable is decided in [`super::tree`], apart from kinds of entries that no release has.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use rollback_proto::problem::Problem;
use tar::EntryType;

use super::{Format, Meter, Metered, refused, shown};

/// Headers of one entry, at most.
const MAX_HEADERS: u64 = 1 << 20;

/// Longest target of a link.
const MAX_TARGET: u64 = 4096;

/// A tape archive ends with this many bytes of zeros, at least.
const END: usize = 1024;

pub(super) struct Item<'a> {
    /// As the archive has it; UTF-8, otherwise unchecked.
    pub name: String,
    /// Permission bits with the special ones.
    pub mode: u32,
    pub kind: Kind<'a>,
}

pub(super) enum Kind<'a> {
    Directory,
    File { size: u64, content: &'a mut dyn Read },
    Link { target: String },
    HardLink { target: String },
}

type Visit<'v> = dyn FnMut(Item<'_>) -> Result<(), Problem> + 'v;

/// Calls `visit` for each entry, and reads on to the very end of the archive.
pub(super) fn each(
    path: &Path,
    mut file: &File,
    format: Format,
    meter: &Rc<Meter>,
    visit: &mut Visit<'_>,
) -> Result<(), Problem> {
    file.rewind().map_err(|e| crate::files::io_problem("read", path, &e))?;
    let buffered = BufReader::with_capacity(128 * 1024, file);
    match format {
        Format::TarGz => tape(path, MultiGzDecoder::new(buffered), meter, visit),
        Format::TarZst => {
            let decoder = zstd::Decoder::with_buffer(buffered).map_err(|e| refused(path, e))?;
            tape(path, decoder, meter, visit)
        }
        Format::Tar => tape(path, buffered, meter, visit),
        Format::Zip => zip(path, buffered, meter, visit),
    }
}

/// Remembers how many zeros the stream ended with.
struct Tail<R> {
    inner: R,
    zeros: Rc<Cell<usize>>,
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let end = buffer[..n].iter().rev().take_while(|b| **b == 0).count();
        self.zeros.set(if end == n {
            self.zeros.get().saturating_add(n)
        } else {
            end
        });
        Ok(n)
    }
}

fn tape(path: &Path, stream: impl Read, meter: &Rc<Meter>, visit: &mut Visit<'_>) -> Result<(), Problem> {
    let zeros = Rc::new(Cell::new(0));
    let mut stream = Tail {
        inner: Metered {
            inner: stream,
            meter: Rc::clone(meter),
        },
        zeros: Rc::clone(&zeros),
    };
    let broken = |e: io::Error| refused(path, e);
    let mut archive = tar::Archive::new(&mut stream);
    let mut entries = archive.entries().map_err(broken)?;
    loop {
        meter.headers.set(Some(MAX_HEADERS));
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(broken)?;
        meter.headers.set(None);
        let name = utf8(path, &entry.path_bytes())?;
        let mode = entry
            .header()
            .mode()
            .map_err(|e| refused(path, format!("{}: {e}", shown(&name))))?
            & 0o7777;
        let target = |entry: &tar::Entry<'_, _>| match entry.link_name_bytes() {
            Some(target) => utf8(path, &target),
            None => Err(refused(path, format!("entry {}: a link to nothing", shown(&name)))),
        };
        let kind = match entry.header().entry_type() {
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Link {
                target: target(&entry)?,
            },
            EntryType::Link => Kind::HardLink {
                target: target(&entry)?,
            },
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File {
                size: entry.size(),
                content: &mut entry,
            },
            // Says things of the archive, not of a file: `git archive` writes the commit there.
            EntryType::XGlobalHeader => continue,
            other => {
                let what = match other {
                    EntryType::Block | EntryType::Char => "a device",
                    EntryType::Fifo => "a pipe",
                    _ => "of a kind that no release has",
                };
                return Err(refused(path, format!("entry {} is {what}", shown(&name))));
            }
        };
        visit(Item { name, mode, kind })?;
        // What was not wanted is content all the same. Left unread, it would count as headers of the next entry.
        io::copy(&mut entry, &mut io::sink()).map_err(broken)?;
    }
    // The decompressor checks its own sum only at its end, and what stands behind the end of the archive is not ours to
    // pass over in silence.
    meter.headers.set(None);
    io::copy(&mut stream, &mut io::sink()).map_err(broken)?;
    if zeros.get() < END {
        return Err(refused(
            path,
            "it has no end: it is truncated, or something was appended to it",
        ));
    }
    Ok(())
}

fn utf8(path: &Path, bytes: &[u8]) -> Result<String, Problem> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| {
        let name = String::from_utf8_lossy(bytes);
        refused(path, format!("entry {}: the name is not UTF-8", shown(&name)))
    })
}

fn zip(path: &Path, file: impl Read + Seek, meter: &Rc<Meter>, visit: &mut Visit<'_>) -> Result<(), Problem> {
    let mut archive = zip::ZipArchive::new(file).map_err(|e| refused(path, e))?;
    if archive.has_duplicate_names() {
        return Err(refused(path, "a name stands in it twice"));
    }
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|e| refused(path, e))?;
        // The raw bytes: a code page would give other names than the ones that a person sees elsewhere.
        let name = utf8(path, entry.name_raw())?;
        let bad = |why: &str| refused(path, format!("entry {} {why}", shown(&name)));
        if name.contains('\\') {
            return Err(bad("has a backslash in its name; names have / between them"));
        }
        let is_dir = entry.is_dir();
        // `unix_mode` leaves the special bits out. Where another system wrote the entry, the upper half means nothing.
        let full = match entry.system() {
            zip::System::Unix => Some(entry.external_attributes() >> 16).filter(|mode| *mode != 0),
            _ => entry.unix_mode(),
        };
        let size = entry.size();
        let mut content = Metered {
            inner: &mut entry,
            meter: Rc::clone(meter),
        };
        let mode = full.map_or(if is_dir { 0o755 } else { 0o644 }, |mode| mode & 0o7777);
        let kind = match (full.unwrap_or(0) & 0o170_000, is_dir) {
            (0o040_000 | 0, true) => Kind::Directory,
            (0o100_000 | 0, false) => Kind::File {
                size,
                content: &mut content,
            },
            (0o120_000, false) => {
                let mut target = Vec::new();
                let read = (&mut content).take(MAX_TARGET + 1).read_to_end(&mut target);
                read.map_err(|e| bad(&format!("cannot be read: {e}")))?;
                if target.len() as u64 > MAX_TARGET {
                    return Err(bad("is a link with a target that is too long"));
                }
                let target = String::from_utf8(target).map_err(|_| bad("is a link whose target is not UTF-8"))?;
                Kind::Link { target }
            }
            (0o060_000 | 0o020_000, _) => return Err(bad("is a device")),
            (0o010_000, _) => return Err(bad("is a pipe")),
            (0o140_000, _) => return Err(bad("is a socket")),
            _ => return Err(bad("is of a kind that no release has")),
        };
        visit(Item { name, mode, kind })?;
    }
    Ok(())
}
