//! A dump on disk, of our own making or of somebody else's: its kind, its size and its SHA-256.
//!
//! Three kinds are taken, as `pg_dump` makes them: `-Fc` (custom), `-Fd` (directory), and a plain SQL script, which may be
//! compressed with gzip. The kind is read from the content, never from the name.
//!
//! Left out: `-Ft` (tar), which can be restored neither in parallel nor in part.

mod header;
mod restore;
mod script;
mod statement;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub(super) use self::header::Header;
pub(super) use self::restore::{CARELESS, Owners, Restoring, restore_dump};
use super::staging::file_problem;

/// `toc.dat` holds the contents of a directory dump.
const CONTENTS: &str = "toc.dat";

const GZIP: [u8; 2] = [0x1f, 0x8b];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DumpFormat {
    #[default]
    Custom,
    Directory,
    Plain,
}

impl DumpFormat {
    pub fn name(self) -> &'static str {
        match self {
            Self::Custom => "custom",
            Self::Directory => "directory",
            Self::Plain => "plain SQL",
        }
    }
}

/// A dump that is to be read.
#[derive(Clone, Debug)]
pub(super) struct Dump {
    pub path: PathBuf,
    pub format: DumpFormat,
}

impl Dump {
    /// Looks at what lies there. Restores nothing: that it *is* a dump only a restore tells.
    pub fn recognise(path: &Path) -> Result<Self, Problem> {
        let refuse = |why: &str, next: &str| {
            Err(Problem::new(Code::BackupUnproven, format!("{} {why}", path.display())).remedy(next))
        };
        let failed = |e: std::io::Error| file_problem(format!("read {}", path.display()), &e);
        let found = |format| {
            Ok(Self {
                path: path.to_owned(),
                format,
            })
        };
        let meta = std::fs::metadata(path).map_err(failed)?;
        if meta.is_dir() {
            return if path.join(CONTENTS).is_file() {
                found(DumpFormat::Directory)
            } else {
                refuse(
                    "is a directory without toc.dat, so pg_dump -Fd did not make it, or did not end",
                    "give the directory that pg_dump -Fd made",
                )
            };
        }
        if !meta.is_file() {
            return refuse("is neither a file nor a directory", "give a dump");
        }
        if meta.len() == 0 {
            return refuse("is empty", "look for the dump that was meant, or make one");
        }
        let mut head = Vec::with_capacity(512);
        std::fs::File::open(path)
            .and_then(|file| file.take(512).read_to_end(&mut head))
            .map_err(failed)?;
        if head.starts_with(b"PGDMP") {
            return found(DumpFormat::Custom);
        }
        if head.get(257..262) == Some(b"ustar") {
            return refuse(
                "is a tar archive",
                "unpack a plain script or a directory dump from it; make dumps with pg_dump -Fc",
            );
        }
        if head.starts_with(&GZIP) || !head.contains(&0) {
            return found(DumpFormat::Plain);
        }
        refuse(
            "is neither a custom dump, nor a directory dump, nor a plain SQL script (.sql, .sql.gz)",
            "make dumps with pg_dump -Fc",
        )
    }

    /// SHA-256 and length. Of a directory: over its files in the order of their names, with names and lengths.
    pub async fn sha256(&self) -> Result<(String, u64), Problem> {
        sha256_of(&self.path, false).await
    }

    /// Length in bytes, without reading it. `None` when it is gone.
    pub fn bytes(&self) -> Option<u64> {
        let meta = std::fs::metadata(&self.path).ok()?;
        match self.format {
            DumpFormat::Custom | DumpFormat::Plain => meta.is_file().then_some(meta.len()),
            DumpFormat::Directory => files_of(&self.path)
                .ok()?
                .iter()
                .map(|file| std::fs::metadata(file).ok().map(|m| m.len()))
                .sum(),
        }
    }
}

/// The same for a file or directory of any kind. `sync` makes the content durable first.
pub(super) async fn sha256_of(path: &Path, sync: bool) -> Result<(String, u64), Problem> {
    let path = path.to_owned();
    let shown = path.display().to_string();
    let work = move || -> std::io::Result<(String, u64)> {
        let mut hash = Sha256::new();
        let mut bytes = 0;
        if !path.is_dir() {
            bytes = feed(&mut hash, &path, sync)?;
            return Ok((hex::encode(hash.finalize()), bytes));
        }
        for file in files_of(&path)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let length = std::fs::metadata(&file)?.len();
            hash.update(format!("{} {length}\n{name}\n", name.len()));
            bytes += feed(&mut hash, &file, sync)?;
        }
        Ok((hex::encode(hash.finalize()), bytes))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => Err(Problem::new(
            Code::BackupUnproven,
            format!("the backup {shown} is gone"),
        )),
        Ok(Err(e)) => Err(file_problem(format!("read {shown}"), &e)),
        Err(e) => Err(Problem::from_error(Code::Internal, "hash a backup", &e)),
    }
}

fn feed(hash: &mut Sha256, path: &Path, sync: bool) -> std::io::Result<u64> {
    let mut file = std::fs::File::open(path)?;
    if sync {
        file.sync_all()?;
    }
    let mut chunk = vec![0u8; 256 * 1024];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            return Ok(bytes);
        }
        hash.update(&chunk[..n]);
        bytes += n as u64;
    }
}

/// The files of a directory dump, which has no directories in it.
fn files_of(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = std::fs::read_dir(dir)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}

/// The bytes of a plain script, whether it is compressed or not.
fn open_script(path: &Path) -> std::io::Result<Box<dyn std::io::BufRead + Send>> {
    let mut file = std::fs::File::open(path)?;
    let mut head = [0; 2];
    let read = file.read(&mut head)?;
    std::io::Seek::rewind(&mut file)?;
    Ok(if read == 2 && head == GZIP {
        let inflated = flate2::bufread::MultiGzDecoder::new(std::io::BufReader::with_capacity(128 * 1024, file));
        Box::new(std::io::BufReader::with_capacity(128 * 1024, inflated))
    } else {
        Box::new(std::io::BufReader::with_capacity(128 * 1024, file))
    })
}
