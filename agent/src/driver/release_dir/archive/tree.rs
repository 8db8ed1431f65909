//! The tree that an archive describes, built in memory and judged as a whole. No path of it is ever opened.

use std::collections::{BTreeMap, VecDeque};

use super::{Limits, Stop, shown};
use crate::driver::release_dir::manifest::{Entry, Manifest, Owner};

/// Longest name and longest path, in bytes: Linux's NAME_MAX, and PATH_MAX less what stands before it.
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 3000;

/// Links that are followed within one path, as in the kernel.
const MAX_HOPS: usize = 40;

#[derive(Clone, Debug)]
pub(super) enum Node {
    Directory { mode: u32 },
    File { mode: u32, size: u64, sha256: String },
    Link { target: String },
}

pub(super) struct Tree<'l> {
    limits: &'l Limits,
    nodes: BTreeMap<String, Node>,
    bytes: u64,
    seen: u64,
}

pub(super) struct Finished {
    pub manifest: Manifest,
    pub top: Owner,
    pub prefix: String,
}

/// An entry's name as a path of names: relative, without `.` and `..`. Empty for the top itself.
pub(super) fn clean_name(name: &str, depth: usize) -> Result<String, String> {
    if name.starts_with('/') {
        return Err("the path is absolute".into());
    }
    if name.contains('\0') {
        return Err("the name has a NUL in it".into());
    }
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err("the path has .. in it".into()),
            part if part.len() > MAX_NAME => return Err(format!("a name is longer than {MAX_NAME} bytes")),
            part => parts.push(part),
        }
    }
    if parts.len() > depth {
        return Err(format!("it lies deeper than limits.depth allows ({depth})"));
    }
    let path = parts.join("/");
    if path.len() > MAX_PATH {
        return Err(format!("the path is longer than {MAX_PATH} bytes"));
    }
    Ok(path)
}

impl<'l> Tree<'l> {
    pub fn new(limits: &'l Limits) -> Self {
        Self {
            limits,
            nodes: BTreeMap::new(),
            bytes: 0,
            seen: 0,
        }
    }

    /// Before the content is read: an announced size that is too large need not be read to be refused.
    pub fn expect_room(&self, size: u64) -> Result<(), String> {
        if self.bytes.saturating_add(size) > self.limits.bytes {
            return Err(format!(
                "with it the content is larger than limits.bytes allows ({})",
                crate::size::shown(self.limits.bytes)
            ));
        }
        Ok(())
    }

    /// What a hard link stands for: a file of this archive that came before it, and nothing else.
    pub fn earlier_file(&self, target: &str) -> Result<Node, String> {
        let name = clean_name(target, self.limits.depth).map_err(|why| format!("a hard link: {why}"))?;
        match self.nodes.get(&name) {
            Some(Node::File { mode, size, sha256 }) => Ok(Node::File {
                mode: *mode,
                size: *size,
                sha256: sha256.clone(),
            }),
            Some(Node::Directory { .. } | Node::Link { .. }) | None => Err(format!(
                "a hard link to {}, which is no file that came before it",
                shown(target)
            )),
        }
    }

    pub fn add(&mut self, name: &str, node: Node) -> Result<(), String> {
        // Also repeated directories count: reading them costs time.
        self.seen += 1;
        if self.seen > self.limits.entries {
            return Err(format!("limits.entries allows {}", self.limits.entries));
        }
        let name = clean_name(name, self.limits.depth)?;
        match &node {
            Node::File { size, .. } => {
                self.expect_room(*size)?;
                self.bytes += size;
            }
            Node::Link { target } if target.is_empty() || target.contains('\0') => {
                return Err("a link to nothing".into());
            }
            Node::Directory { .. } | Node::Link { .. } => {}
        }
        match (self.nodes.get(&name), &node) {
            (None, Node::Directory { .. }) if name.is_empty() => Ok(()),
            (None, Node::File { .. } | Node::Link { .. }) if name.is_empty() => Err("it has no name".into()),
            (None, _) => {
                self.nodes.insert(name, node);
                Ok(())
            }
            // Tools that append write a directory again; the first permissions stay.
            (Some(Node::Directory { .. }), Node::Directory { .. }) => Ok(()),
            (Some(_), _) => Err("the name stands in the archive twice".into()),
        }
    }

    /// Judges the whole, and takes the directory at the top away when it is named after the release.
    pub fn finish(mut self, release: &str, owner: (u32, u32), stop: &Stop) -> Result<Finished, String> {
        self.complete_parents()?;
        let prefix = self.prefix(release);
        let mut top_mode = 0o755;
        let nodes: BTreeMap<String, Node> = match prefix.strip_suffix('/') {
            None => self.nodes,
            Some(top) => {
                if let Some(Node::Directory { mode }) = self.nodes.get(top) {
                    top_mode = *mode;
                }
                let inside = |(name, node): (String, Node)| Some((name.strip_prefix(&prefix)?.to_owned(), node));
                self.nodes.into_iter().filter_map(inside).collect()
            }
        };
        for (name, node) in &nodes {
            if let Node::Link { target } = node {
                if stop.stopped() {
                    return Err("it was not read in time".into());
                }
                follow(&nodes, name, target)
                    .map_err(|why| format!("entry {} is a link to {}: {why}", shown(name), shown(target)))?;
            }
        }
        // A release that its own process cannot list or read is of no use, and one that others can write is no release.
        let owned = |mode: u32, least: u32| Owner {
            mode: (mode & 0o755) | least,
            uid: owner.0,
            gid: owner.1,
        };
        let entry = |(name, node)| {
            let entry = match node {
                Node::Directory { mode } => Entry::Directory {
                    owner: owned(mode, 0o700),
                },
                Node::File { mode, size, sha256 } => Entry::File {
                    owner: owned(mode, 0o600),
                    size,
                    sha256,
                },
                Node::Link { target } => Entry::Link { target },
            };
            (name, entry)
        };
        let manifest = Manifest {
            entries: nodes.into_iter().map(entry).collect(),
        };
        if manifest.files() == 0 {
            return Err("there is no file in it".into());
        }
        Ok(Finished {
            manifest,
            top: owned(top_mode, 0o700),
            prefix,
        })
    }

    /// Adds directories that are only mentioned in paths. Nothing may lie beneath anything but a directory.
    fn complete_parents(&mut self) -> Result<(), String> {
        let mut missing = BTreeMap::new();
        for name in self.nodes.keys() {
            for (at, _) in name.match_indices('/') {
                let parent = &name[..at];
                match self.nodes.get(parent) {
                    Some(Node::Directory { .. }) => {}
                    Some(Node::File { .. } | Node::Link { .. }) => {
                        return Err(format!(
                            "entry {} lies beneath {}, which is no directory",
                            shown(name),
                            shown(parent)
                        ));
                    }
                    None => {
                        missing.insert(parent.to_owned(), Node::Directory { mode: 0o755 });
                    }
                }
            }
            if (self.nodes.len() + missing.len()) as u64 > self.limits.entries {
                return Err(format!(
                    "it has more entries than limits.entries allows ({})",
                    self.limits.entries
                ));
            }
        }
        self.nodes.append(&mut missing);
        Ok(())
    }

    /// The only directory at the top with its slash, when it is named after the release; else nothing.
    fn prefix(&self, release: &str) -> String {
        let mut tops = self.nodes.iter().filter(|(name, _)| !name.contains('/'));
        let (Some((top, Node::Directory { .. })), None) = (tops.next(), tops.next()) else {
            return String::new();
        };
        let bare = release.strip_prefix('v').unwrap_or(release);
        let named = [release, bare]
            .iter()
            .any(|version| top == version || top.strip_suffix(version).is_some_and(|name| name.ends_with('-')));
        if named { format!("{top}/") } else { String::new() }
    }
}

/// Follows a link name by name, and through other links of the same tree. It may end nowhere; it may not pass above the
/// top on its way, not even to come back.
fn follow(nodes: &BTreeMap<String, Node>, name: &str, target: &str) -> Result<(), String> {
    let mut at: Vec<&str> = name.split('/').collect();
    at.pop();
    let mut ahead: VecDeque<&str> = VecDeque::new();
    let mut hops = 0;
    let mut next = target;
    loop {
        if next.starts_with('/') {
            return Err("it leads out of the release".into());
        }
        for part in next.split('/').rev() {
            ahead.push_front(part);
        }
        let through = loop {
            match ahead.pop_front() {
                None => return Ok(()),
                Some("" | ".") => {}
                Some("..") => {
                    at.pop().ok_or("it leads out of the release")?;
                }
                Some(part) => {
                    at.push(part);
                    if let Some(Node::Link { target }) = nodes.get(&at.join("/")) {
                        at.pop();
                        break target;
                    }
                }
            }
        };
        hops += 1;
        if hops > MAX_HOPS {
            return Err("it leads in a circle".into());
        }
        next = through;
    }
}
