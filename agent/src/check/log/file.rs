//! Reading a log file from where it stood on, across rotations.
//!
//! A place in a file is its inode, an offset, and a hash of what stood just before the offset: inodes are given out again,
//! and a file that was emptied grows back beyond the offset.
//!
//! | what happened | what is read |
//! |---|---|
//! | nothing | the file, from the offset |
//! | renamed (`app.log.1`), once or several times | that file from the offset, those that came after it, the new one |
//! | copied and emptied (logrotate's `copytruncate`) | the copy from the offset, the file from its beginning |
//! | emptied, without a copy (an application that starts its log anew) | the file from its beginning |
//! | renamed and compressed, or gone | not all of it can be read |
//!
//! A file that was empty has nothing before the offset to be known by: there, all that was rotated since is read.
//!
//! A file that was removed and whose inode was given to its successor cannot be told from one that was emptied.
//!
//! Links in the last place of the path are not followed: who may write the directory could have any file quoted.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::MOST;
use crate::files::sha256_hex;

/// Bytes before the offset that are hashed.
const TAIL: u64 = 256;

/// Lines that are longer are judged in pieces.
const PIECE: u64 = 64 * 1024;

/// File systems keep times coarser than the clock shows them.
const CLOCK_TICK: Duration = Duration::from_millis(100);

/// Names that rotation programs give to what they compressed.
const COMPRESSED: [&str; 5] = [".gz", ".zst", ".xz", ".bz2", ".Z"];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    device: u64,
    inode: u64,
    offset: u64,
    tail: String,
}

/// Where a file ends now. `None`: there is none.
pub(super) fn place(path: &Path) -> Result<Option<Place>, String> {
    let Some(mut file) = open(path)? else { return Ok(None) };
    let metadata = file.metadata().map_err(|e| e.to_string())?;
    let offset = metadata.size();
    Ok(Some(Place {
        device: metadata.dev(),
        inode: metadata.ino(),
        offset,
        tail: tail_before(&mut file, offset).map_err(|e| e.to_string())?,
    }))
}

fn tail_before(file: &mut File, offset: u64) -> std::io::Result<String> {
    let from = offset.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(offset - from).read_to_end(&mut bytes)?;
    Ok(sha256_hex(&bytes))
}

fn open(path: &Path) -> Result<Option<File>, String> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err("it is a symbolic link; name the file that it points to".into());
        }
        Err(e) => return Err(e.to_string()),
    };
    let metadata = file.metadata().map_err(|e| e.to_string())?;
    if metadata.is_file() {
        Ok(Some(file))
    } else {
        Err("it is not a regular file".into())
    }
}

impl Place {
    fn is_of(&self, metadata: &std::fs::Metadata) -> bool {
        (metadata.dev(), metadata.ino()) == (self.device, self.inode)
    }

    /// Nothing stood before the offset by which the content could be known again.
    fn is_at_beginning(&self) -> bool {
        self.offset == 0
    }

    /// Does the file still hold what stood before the offset?
    fn still_in(&self, file: &mut File) -> std::io::Result<bool> {
        Ok(file.metadata()?.size() >= self.offset && tail_before(file, self.offset)? == self.tail)
    }
}

/// Passes on each line that was written since the place was taken. The answer says what is remarkable, or why there are
/// lines that were not read.
pub(super) fn lines_since(
    path: &Path,
    place: Option<&Place>,
    since: SystemTime,
    line: &mut dyn FnMut(&str),
) -> Result<String, String> {
    let Parts { files, note, missing } = parts(path, place, since)?;
    let mut left = MOST;
    for (file, offset) in files {
        left = read_lines(file, offset, left, line)?;
    }
    match missing {
        Some(why) => Err(why),
        None => Ok(note),
    }
}

struct Parts {
    /// In the order in which they were written.
    files: Vec<(File, u64)>,
    note: String,
    /// Why these are not all.
    missing: Option<String>,
}

fn parts(path: &Path, place: Option<&Place>, since: SystemTime) -> Result<Parts, String> {
    let mut current = open(path)?.ok_or("it does not exist")?;
    let metadata = current.metadata().map_err(|e| e.to_string())?;
    let same = place.is_some_and(|p| p.is_of(&metadata));
    let began_empty = same && place.is_some_and(Place::is_at_beginning);
    if let Some(place) = place
        && same
        && !began_empty
        && place.still_in(&mut current).map_err(|e| e.to_string())?
    {
        return Ok(Parts {
            files: vec![(current, place.offset)],
            note: String::new(),
            missing: None,
        });
    }
    let mut files = Vec::new();
    let mut missing = None;
    // Without anything that was there before, all that was written since is new, rotated or not.
    let mut found = place.is_none() || began_empty;
    for rotated in rotated_since(path, &metadata, place, since)? {
        if COMPRESSED.iter().any(|end| rotated.to_string_lossy().ends_with(end)) {
            missing = Some(format!("{} was compressed since the switch", rotated.display()));
            continue;
        }
        let Some(mut file) = open(&rotated).map_err(|why| format!("{}: {why}", rotated.display()))? else {
            missing = Some(format!("{} is gone", rotated.display()));
            continue;
        };
        let held = match place {
            Some(place) if !found && place.is_at_beginning() => {
                place.is_of(&file.metadata().map_err(|e| e.to_string())?)
            }
            Some(place) if !found => place.still_in(&mut file).map_err(|e| e.to_string())?,
            Some(_) | None => false,
        };
        match place {
            Some(place) if held => {
                // What comes before it was written before the mark.
                found = true;
                missing = None;
                files = vec![(file, place.offset)];
            }
            Some(_) | None => files.push((file, 0)),
        }
    }
    if same && !found {
        // Emptied in its place: what was rotated before has nothing to do with it.
        files.clear();
    }
    files.push((current, 0));
    let note = match (found, same) {
        (true, _) if files.len() == 1 => "",
        (true, _) => "rotated since",
        // The same file without what it held: emptied. Who empties a log writes nothing that matters before.
        (false, true) => "emptied since",
        (false, false) => {
            missing
                .get_or_insert_with(|| "it was rotated since the switch, and the older part is not to be found".into());
            ""
        }
    };
    let note = if place.is_none() { "" } else { note };
    Ok(Parts {
        files,
        note: note.into(),
        missing,
    })
}

/// Files beside the log that are named as a rotated one and were written since, or are the place's own, the oldest first.
fn rotated_since(
    path: &Path,
    current: &std::fs::Metadata,
    place: Option<&Place>,
    since: SystemTime,
) -> Result<Vec<PathBuf>, String> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let name = name.to_string_lossy();
    let since = since.checked_sub(CLOCK_TICK).unwrap_or(since);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| e.to_string())?.flatten() {
        let (other, Ok(metadata)) = (entry.file_name(), entry.metadata()) else {
            continue;
        };
        let is_current = (metadata.dev(), metadata.ino()) == (current.dev(), current.ino());
        let Ok(modified) = metadata.modified() else { continue };
        // Renaming changes no modification time: files that were only renamed once more have nothing new in them.
        let new = modified >= since && is_rotated(&name, &other.to_string_lossy());
        if metadata.is_file() && !is_current && (new || place.is_some_and(|place| place.is_of(&metadata))) {
            found.push((modified, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// `app.log` becomes `app.log.1`, `app.log-20260101.gz`, `app.log.old` or `app-2026-01-01.log`. The application's other
/// logs are none of it: `app-error.log`, or `app-2.log` of its second process.
fn is_rotated(name: &str, other: &str) -> bool {
    let plain = COMPRESSED.iter().find_map(|end| other.strip_suffix(end));
    let other = plain.unwrap_or(other);
    let number = |text: &str, digits: usize| {
        let rest = text.strip_prefix(['.', '-']).unwrap_or_default();
        rest.chars().all(|c| c.is_ascii_digit() || "-_.:T".contains(c))
            && rest.chars().filter(char::is_ascii_digit).count() >= digits
    };
    if let Some(more) = other.strip_prefix(name) {
        return number(more, 1) || matches!(more, ".old" | ".bak");
    }
    let (stem, end) = name.rsplit_once('.').unwrap_or((name, ""));
    let between = other
        .strip_prefix(stem)
        .and_then(|rest| rest.strip_suffix(end)?.strip_suffix('.'));
    // Of a date.
    between.is_some_and(|between| number(between, 6))
}

/// Reads to the end of what is there now. Returns how much may still be read of other files.
fn read_lines(mut file: File, offset: u64, left: u64, line: &mut dyn FnMut(&str)) -> Result<u64, String> {
    // What is written while this reads is another check's.
    let end = file.metadata().map_err(|e| e.to_string())?.size();
    file.seek(SeekFrom::Start(offset)).map_err(|e| e.to_string())?;
    let wanted = end.saturating_sub(offset);
    let mut reader = BufReader::new(file.take(wanted.min(left)));
    let mut piece = Vec::new();
    loop {
        piece.clear();
        let n = (&mut reader)
            .take(PIECE)
            .read_until(b'\n', &mut piece)
            .map_err(|e| e.to_string())?;
        if n == 0 {
            break;
        }
        line(&String::from_utf8_lossy(&piece));
    }
    if wanted > left {
        return Err(format!(
            "more than {} were written since the switch",
            crate::size::shown(MOST)
        ));
    }
    Ok(left - wanted)
}
