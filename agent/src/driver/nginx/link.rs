//! Managed names that are links, as Debian's sites-enabled has them.
//!
//! A link is followed by hand, hop by hop, because most of these links are absolute, which the kernel's own
//! `RESOLVE_BENEATH` refuses. Every hop must stay beneath the root.

use std::path::{Component, Path, PathBuf};

use rollback_proto::problem::{Code, Problem};

use crate::files::{self, io_problem};

/// More hops than anybody makes on purpose.
const HOPS: usize = 8;

pub fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

pub fn read(path: &Path) -> Result<PathBuf, Problem> {
    std::fs::read_link(path).map_err(|e| io_problem("read the link", path, &e))
}

/// Where this name leads, beneath the root; there need not be anything. `None` when it is no link.
pub fn followed(root: &Path, path: &Path) -> Result<Option<PathBuf>, Problem> {
    let is_link = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    if !is_link(path) {
        return Ok(None);
    }
    let mut at = path.to_owned();
    for _ in 0..HOPS {
        at = target(root, &at, &read(&at)?)?;
        if !is_link(&at) {
            return Ok(Some(at));
        }
    }
    let message = format!("{} leads from link to link without an end", path.display());
    Err(Problem::new(Code::BadLayout, message))
}

/// Where a link at `path` that says `link` leads. Its directory exists and lies beneath the root.
pub fn target(root: &Path, path: &Path, link: &Path) -> Result<PathBuf, Problem> {
    let real = |dir: &Path| std::fs::canonicalize(dir).map_err(|e| io_problem("open", dir, &e));
    let outside = || {
        Problem::new(
            Code::BadLayout,
            format!(
                "{} leads to {}, out of {}",
                path.display(),
                link.display(),
                root.display()
            ),
        )
        .remedy("set `root` to a directory that holds both, or manage a file instead of the link")
    };
    let root = real(root)?;
    let dir = path.parent().ok_or_else(outside)?;
    // An absolute link replaces the directory. `..` is taken away from a path whose beginning is real.
    let mut plain = PathBuf::new();
    for part in real(dir)?.join(link).components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            Component::RootDir | Component::Normal(_) | Component::Prefix(_) => plain.push(part),
        }
    }
    let (Some(dir), Some(name)) = (plain.parent(), plain.file_name()) else {
        return Err(outside());
    };
    // The link may name the root by another of its names.
    let dir = real(dir)?;
    let inside = dir.strip_prefix(&root).map_err(|_| outside())?;
    if inside.as_os_str().is_empty() {
        return Ok(root.join(name));
    }
    Ok(files::beneath(&root, inside)?.join(name))
}

/// Puts a link at `path`, where nothing is.
pub fn make(path: &Path, link: &Path, id: &str) -> Result<(), Problem> {
    let temp = files::beside(path, id);
    files::remove(&temp)?;
    std::os::unix::fs::symlink(link, &temp).map_err(|e| io_problem("make link", &temp, &e))?;
    files::publish(&temp, path)
}
