//! Finding a release that was never recorded, by the conventions of the runbooks:
//!
//! ```text
//! <root>/releases/v2.9.0/   <root>/backups/v2.9.0/   <root>/artifacts/v2.9.0/
//! then v2.9.0.tar.gz, .tgz, .tar.zst, .tar, .zip in the same directories
//! ```
//!
//! The first one that is there is taken, and the summary names the others. Its content goes into the vault and is pinned;
//! from there on the release is like every other. Nothing is written beneath `root`.
//!
//! Checksums that are there must agree: `<archive>.sha256` for the archive; `MANIFEST.sha256` or `SHA256SUMS` at the top
//! of the release, or beside an archive as `v2.9.0.MANIFEST.sha256`, for the files. When none is there, the summary says so.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};

use super::archive::{self, Examined, Format, SUFFIXES, Source, Stop, sums};
use super::layout::Layout;
use super::manifest::{Exclude, Manifest};
use super::walk::{Memory, read_tree};
use crate::driver::link::is_real_directory;
use crate::driver::{Retained, Revision};
use crate::files::{self, io_problem};

/// Something that goes by the release's name.
#[derive(Debug)]
enum Found {
    Directory(PathBuf),
    Archive(PathBuf, Format),
}

impl Found {
    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Archive(path, _) => path,
        }
    }
}

impl Layout {
    /// Pins what goes by this release's name. Blocks; ends soon after `stop` is set.
    pub fn resolve(&self, release: &str, stop: &Stop) -> Result<Retained, Problem> {
        check_name("release", release)?;
        let found = self.candidates(release)?;
        let (first, others) = found.split_first().ok_or_else(|| self.unresolved(release))?;
        let (revision, what) = match first {
            Found::Directory(dir) => self.take_directory(release, dir)?,
            Found::Archive(path, format) => self.take_archive(release, path, *format, stop)?,
        };
        let mut summary = format!("{}: {what}", self.relative(first.path()));
        if !others.is_empty() {
            let names: Vec<String> = others.iter().map(|f| self.relative(f.path())).collect();
            summary = format!(
                "{summary}; comes before, and was not compared with: {}",
                names.join(", ")
            );
        }
        Ok(Retained { revision, summary })
    }

    fn candidates(&self, release: &str) -> Result<Vec<Found>, Problem> {
        let mut found = Vec::new();
        for source in &self.sources {
            let dir = source.join(release);
            if is_real_directory(&dir)? {
                found.push(Found::Directory(dir));
            }
        }
        for source in &self.sources {
            for (suffix, format) in SUFFIXES {
                let path = source.join(format!("{release}{suffix}"));
                if std::fs::symlink_metadata(&path).is_ok() {
                    found.push(Found::Archive(path, format));
                }
            }
        }
        Ok(found)
    }

    fn unresolved(&self, release: &str) -> Problem {
        let sources: Vec<String> = self.sources.iter().map(|s| s.display().to_string()).collect();
        let suffixes: Vec<&str> = SUFFIXES.iter().map(|(suffix, _)| *suffix).collect();
        Problem::new(
            Code::Unresolved,
            format!(
                "{release} of {}: neither a directory {release}/ nor {release} with {} is in {}",
                self.component,
                suffixes.join(", "),
                sources.join(", ")
            ),
        )
    }

    fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    fn take_directory(&self, release: &str, dir: &Path) -> Result<(Revision, String), Problem> {
        let manifest = if dir.parent() == Some(self.releases.as_path()) {
            self.manifest(dir)?
        } else {
            // What is remembered goes by the directory's name, which a release has already.
            read_tree(dir, &self.exclude, &Memory::default())?.0
        };
        if manifest.files() == 0 {
            return Err(Problem::new(
                Code::Unresolved,
                format!("{} is there, but there is no file in it", dir.display()),
            ));
        }
        let mut checked = Vec::new();
        for list in sums::LISTS {
            if let Some(list_file) = files::read(&dir.join(list))? {
                let damaged = |why| Problem::new(Code::RevisionDamaged, format!("{}: {why}", dir.display()));
                checked.push(self.check_list(list, &list_file.content, &manifest).map_err(damaged)?);
            }
        }
        let revision = Revision {
            version: release.to_owned(),
            digest: manifest.digest(),
        };
        let mut what = manifest.summary();
        self.keep_tree(&revision, dir, manifest)?;
        what = format!("{what}, {}", listed_or(checked, "no list of checksums is in it"));
        Ok((revision, what))
    }

    fn check_list(&self, name: &str, text: &[u8], manifest: &Manifest) -> Result<String, String> {
        sums::check(name, text, manifest, &|path| excluded(&self.exclude, path))
    }

    fn take_archive(
        &self,
        release: &str,
        path: &Path,
        format: Format,
        stop: &Stop,
    ) -> Result<(Revision, String), Problem> {
        let file = open_regular(path)?;
        // Who owns the releases owns this one, too: the archive's owners are those of the machine that made it.
        let owner = std::fs::metadata(&self.releases).map_err(|e| io_problem("look at", &self.releases, &e))?;
        let source = Source {
            path,
            file: &file,
            format,
            limits: &self.limits,
            stop,
        };
        let mut examined = archive::examine(&source, release, (owner.uid(), owner.gid()))?;
        let mut checked = vec![check_sum_beside(path, &examined)?];
        checked.extend(self.check_lists(release, path, &examined)?);
        self.expect_vault_room(&examined)?;
        let _keeping = self.vault.keeping().map_err(|e| files::vault_problem(&e))?;
        let skip = |name: &str| excluded(&self.exclude, name);
        archive::store(&source, &examined, &skip, &self.vault)?;
        examined.manifest.entries.retain(|name, _| !skip(name));
        let revision = Revision {
            version: release.to_owned(),
            digest: examined.manifest.digest(),
        };
        let what = format!("{}, {}", examined.manifest.summary(), checked.join(", "));
        self.pin_tree(&revision, examined.top, examined.manifest)?;
        Ok((revision, what))
    }

    /// Lists in the archive, and beside it.
    fn check_lists(&self, release: &str, path: &Path, examined: &Examined) -> Result<Vec<String>, Problem> {
        let mut checked = Vec::new();
        let differs = |why: String| archive::refused(path, why);
        for (list, text) in &examined.lists {
            checked.push(self.check_list(list, text, &examined.manifest).map_err(differs)?);
        }
        for list in sums::LISTS {
            let beside = path.with_file_name(format!("{release}.{list}"));
            if let Some(found) = files::read(&beside)? {
                let name = format!("{release}.{list}");
                checked.push(
                    self.check_list(&name, &found.content, &examined.manifest)
                        .map_err(differs)?,
                );
            }
        }
        Ok(checked)
    }

    fn expect_vault_room(&self, examined: &Examined) -> Result<(), Problem> {
        let (needed, free) = (examined.manifest.room(), files::free_space(self.vault.root())?);
        if needed <= free {
            return Ok(());
        }
        Err(Problem::new(
            Code::DiskFull,
            format!(
                "{} are needed in {}, {} are free",
                crate::size::shown(needed),
                self.vault.root().display(),
                crate::size::shown(free)
            ),
        ))
    }
}

/// `<archive>.sha256`: compared when it is there.
fn check_sum_beside(path: &Path, examined: &Examined) -> Result<String, Problem> {
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let beside = path.with_file_name(format!("{name}.sha256"));
    let Some(list) = files::read(&beside)? else {
        return Ok(format!("no {name}.sha256 to check it against"));
    };
    let expected = sums::expected_of(&String::from_utf8_lossy(&list.content), &name)
        .map_err(|why| archive::refused(path, format!("{}: {why}", beside.display())))?;
    if expected == examined.sha256 {
        Ok("SHA-256 checked".into())
    } else {
        Err(archive::refused(
            path,
            format!(
                "its SHA-256 is {}, {} says {expected}",
                examined.sha256,
                beside.display()
            ),
        ))
    }
}

fn listed_or(checked: Vec<String>, otherwise: &str) -> String {
    if checked.is_empty() {
        otherwise.to_owned()
    } else {
        checked.join(", ")
    }
}

/// Is this path, or a directory above it, excluded from releases?
fn excluded(exclude: &Exclude, path: &str) -> bool {
    let above = path.match_indices('/').map(|(at, _)| &path[..at]);
    above.chain(std::iter::once(path)).any(|part| exclude.matches(part))
}

fn open_regular(path: &Path) -> Result<File, Problem> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
    let open = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let not_regular = || Problem::new(Code::BadLayout, format!("{} is not a regular file", path.display()));
    let file = match open {
        Ok(file) => file,
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => return Err(not_regular()),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Problem::new(Code::Unresolved, format!("{} is gone", path.display())));
        }
        Err(e) => return Err(io_problem("open", path, &e)),
    };
    let metadata = file.metadata().map_err(|e| io_problem("look at", path, &e))?;
    if metadata.is_file() {
        Ok(file)
    } else {
        Err(not_regular())
    }
}
