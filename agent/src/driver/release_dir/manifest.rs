//! What a release directory consists of, and the digest that identifies it.
//!
//! The digest covers every path with its kind, the content of files, whether a file is executable, and where links
//! point. Owners, other permission bits and times are kept for coming back but do not make another revision: a checkout
//! by another person under another umask is the same release.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Who owns an entry, and its permission bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    Directory { owner: Owner },
    File { owner: Owner, size: u64, sha256: String },
    Link { target: String },
}

/// Paths are relative, UTF-8, with `/` between names. The order puts every directory before what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub entries: BTreeMap<String, Entry>,
}

/// What the vault keeps for a release directory.
#[derive(Debug, Serialize, Deserialize)]
pub struct Pin {
    pub version: String,
    /// Of the release directory itself.
    pub top: Owner,
    pub manifest: Manifest,
}

impl Manifest {
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            // Neither a path nor a link's target can hold a NUL, so fields cannot run into each other.
            hash.update(bytes);
            hash.update([0]);
        };
        for (path, entry) in &self.entries {
            field(path.as_bytes());
            match entry {
                Entry::Directory { .. } => field(b"directory"),
                Entry::File { owner, sha256, .. } => {
                    field(if owner.mode & 0o111 == 0 {
                        b"file"
                    } else {
                        b"executable"
                    });
                    field(sha256.as_bytes());
                }
                Entry::Link { target } => {
                    field(b"link");
                    field(target.as_bytes());
                }
            }
        }
        format!("sha256:{}", hex::encode(hash.finalize()))
    }

    pub fn bytes(&self) -> u64 {
        self.entries
            .values()
            .map(|entry| if let Entry::File { size, .. } = entry { *size } else { 0 })
            .sum()
    }

    pub fn files(&self) -> usize {
        self.entries
            .values()
            .filter(|entry| matches!(entry, Entry::File { .. }))
            .count()
    }

    /// Room that a copy needs, with what the file system adds for each entry.
    pub fn room(&self) -> u64 {
        self.bytes() + 4096 * self.entries.len() as u64
    }

    pub fn is_executable(&self, path: &str) -> bool {
        matches!(self.entries.get(path), Some(Entry::File { owner, .. }) if owner.mode & 0o111 != 0)
            || matches!(self.entries.get(path), Some(Entry::Link { .. }))
    }

    pub fn has(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    /// "214 files, 3.1 MB".
    pub fn summary(&self) -> String {
        format!("{} files, {:.1} MB", self.files(), self.bytes() as f64 / 1e6)
    }
}

/// Paths of a release directory that do not belong to the release: caches and logs that the application writes there.
/// They are neither part of the digest nor kept in the vault.
///
/// A pattern is anchored at the top of the release directory; `*` stands for any characters within one name; a leading
/// `**/` lets the rest match at any depth. What is beneath a match is excluded, too.
#[derive(Clone, Debug, Default)]
pub struct Exclude(Vec<String>);

impl Exclude {
    pub fn new(patterns: &[String]) -> Result<Self, String> {
        for pattern in patterns {
            let names = pattern.strip_prefix("**/").unwrap_or(pattern);
            if names.is_empty() || names.split('/').any(|n| matches!(n, "" | "." | ".." | "**")) {
                return Err(format!(
                    "exclude {pattern:?}: write names with / between them; ** only at the beginning, as in **/*.log"
                ));
            }
        }
        Ok(Self(patterns.to_vec()))
    }

    /// `path` is asked for on the way down, so only complete matches need to be found.
    pub fn matches(&self, path: &str) -> bool {
        self.0.iter().any(|pattern| match pattern.strip_prefix("**/") {
            Some(rest) => {
                let starts = std::iter::once(0).chain(path.match_indices('/').map(|(at, _)| at + 1));
                starts.into_iter().any(|at| names_match(rest, &path[at..]))
            }
            None => names_match(pattern, path),
        })
    }
}

pub(crate) fn names_match(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut names) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), names.next()) {
            (None, None) => return true,
            (Some(p), Some(n)) if name_matches(p.as_bytes(), n.as_bytes()) => {}
            (Some(_), Some(_)) | (None, Some(_)) | (Some(_), None) => return false,
        }
    }
}

/// `*` is any run of bytes. Linear: only the last star is ever tried again.
fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, n));
            p += 1;
        } else if p < pattern.len() && pattern[p] == name[n] {
            p += 1;
            n += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            n = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner {
        mode: 0o644,
        uid: 0,
        gid: 0,
    };

    fn file(sha256: &str, mode: u32) -> Entry {
        Entry::File {
            owner: Owner { mode, ..OWNER },
            size: 1,
            sha256: sha256.into(),
        }
    }

    fn digest(entries: &[(&str, Entry)]) -> String {
        Manifest {
            entries: entries.iter().map(|(p, e)| ((*p).to_owned(), e.clone())).collect(),
        }
        .digest()
    }

    #[test]
    fn the_digest_tells_releases_apart_and_nothing_else() {
        let base = digest(&[("a", file("x", 0o644))]);
        assert_eq!(
            base,
            digest(&[("a", file("x", 0o600))]),
            "another umask is the same release"
        );
        for other in [
            digest(&[("a", file("y", 0o644))]),
            digest(&[("b", file("x", 0o644))]),
            digest(&[("a", file("x", 0o755))]),
            digest(&[("a", Entry::Link { target: "x".into() })]),
            digest(&[("a", Entry::Directory { owner: OWNER })]),
            digest(&[("a", file("x", 0o644)), ("b", Entry::Directory { owner: OWNER })]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn excludes_what_the_patterns_say_and_not_more() {
        let exclude = Exclude::new(&[
            "tmp".into(),
            "node_modules/.cache".into(),
            "**/*.log".into(),
            "a*c".into(),
        ])
        .expect("good patterns");
        for out in ["tmp", "node_modules/.cache", "x.log", "a/b/x.log", "abc", "ac"] {
            assert!(exclude.matches(out), "{out}");
        }
        for kept in [
            "lib/tmp",
            "tmpx",
            "node_modules",
            "x/.cache",
            "logs",
            "x.log.js",
            "a/c",
            "abcd",
        ] {
            assert!(!exclude.matches(kept), "{kept}");
        }
        for bad in ["", "/tmp", "a//b", "../x", "a/**/b"] {
            assert!(Exclude::new(&[bad.into()]).is_err(), "{bad}");
        }
    }
}
