//! What the repository knows: commits, tags, and the refs of ours that keep a recorded commit from being collected.
//!
//! Invariants:
//! - A name becomes a full commit id before anything is done with it, and only ever as `refs/tags/…`: a branch of the
//!   same name is another thing.
//! - Nothing here forces: a tag that git would have to overwrite stays what it is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};

use super::program::Git;
use crate::files;

/// Limit of a question that git answers from what is on disk.
const QUICK: Duration = Duration::from_secs(10);
/// Limit of a question that walks through all files of a release.
const THOROUGH: Duration = Duration::from_secs(60);

/// A commit's full id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Commit(String);

impl TryFrom<String> for Commit {
    type Error = String;

    fn try_from(id: String) -> Result<Self, String> {
        let hex = id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        // SHA-1 or SHA-256, whichever the repository has.
        if hex && matches!(id.len(), 40 | 64) {
            Ok(Self(id))
        } else {
            Err("this is not a full commit id".into())
        }
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Commit {
    pub fn from_digest(digest: &str) -> Result<Self, Problem> {
        digest
            .strip_prefix("git:")
            .and_then(|id| Self::try_from(id.to_owned()).ok())
            .ok_or_else(|| Problem::new(Code::BadName, "the digest is not git: and a full commit id"))
    }

    pub fn digest(&self) -> String {
        format!("git:{}", self.0)
    }

    pub fn short(&self) -> &str {
        &self.0[..12]
    }

    /// From a line that git wrote.
    fn read(line: &str) -> Result<Self, Problem> {
        Self::try_from(line.trim().to_owned())
            .map_err(|why| Problem::new(Code::GitUnfit, format!("git answered {:?}: {why}", line.trim())))
    }
}

/// How a release's name becomes a tag's: `{release}`, `release-{release}`, `app/{release}`.
#[derive(Clone, Debug)]
pub struct TagTemplate {
    before: String,
    after: String,
}

impl TagTemplate {
    pub fn new(template: &str) -> Result<Self, String> {
        let bad = || format!("tag {template:?} must have {{release}} once, and only A-Z a-z 0-9 . _ + - / around it");
        let (before, after) = template.split_once("{release}").ok_or_else(bad)?;
        let plain = |part: &str| {
            part.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'+' | b'-' | b'/'))
        };
        if !plain(before) || !plain(after) || before.starts_with(['/', '.']) {
            return Err(bad());
        }
        Ok(Self {
            before: before.to_owned(),
            after: after.to_owned(),
        })
    }

    /// `refs/tags/…` of a release. Its name is checked here once more: it comes from another machine.
    pub fn reference(&self, release: &str) -> Result<String, Problem> {
        check_name("release", release)?;
        Ok(format!("refs/tags/{}{release}{}", self.before, self.after))
    }

    fn release(&self, reference: &str) -> Option<String> {
        let name = reference
            .strip_prefix("refs/tags/")?
            .strip_prefix(&self.before)?
            .strip_suffix(&self.after)?;
        check_name("release", name).ok()?;
        Some(name.to_owned())
    }
}

#[derive(Debug)]
pub struct Repository {
    pub git: Git,
    pub path: PathBuf,
    pub remote: String,
    pub tags: TagTemplate,
    /// Where our refs are: `refs/rollbackctl/<component>`.
    namespace: String,
}

impl Repository {
    pub fn new(component: &str, git: Git, path: PathBuf, remote: String, tags: TagTemplate) -> Result<Self, String> {
        // Names that are allowed for a component and not for a part of a ref.
        if component.contains("..") || component.ends_with(".lock") || component.ends_with('.') {
            return Err("the component's name cannot be a part of a git ref".into());
        }
        check_name("remote", &remote).map_err(|problem| problem.message)?;
        Ok(Self {
            git,
            path,
            remote,
            tags,
            namespace: format!("refs/rollbackctl/{component}"),
        })
    }

    async fn ask(&self, args: &[&str]) -> Result<Option<String>, Problem> {
        self.git.ask(&self.path, args, QUICK).await
    }

    async fn run(&self, args: &[&str]) -> Result<String, Problem> {
        self.git.run(&self.path, args, QUICK).await
    }

    /// The commit that a full ref name leads to, annotated tags peeled. `None` when there is no such ref.
    pub async fn commit_at(&self, reference: &str) -> Result<Option<Commit>, Problem> {
        let peeled = format!("{reference}^{{commit}}");
        let found = self
            .ask(&["rev-parse", "--verify", "--quiet", "--end-of-options", &peeled])
            .await?;
        found.as_deref().map(Commit::read).transpose()
    }

    /// Releases whose tags lead to this commit, the highest version first.
    pub async fn releases_at(&self, commit: &Commit) -> Result<Vec<String>, Problem> {
        let at = format!("--points-at={commit}");
        let found = self
            .run(&[
                "for-each-ref",
                "--sort=-version:refname",
                "--format=%(refname)",
                &at,
                "refs/tags/",
            ])
            .await?;
        Ok(found.lines().filter_map(|line| self.tags.release(line)).collect())
    }

    /// The newest tags, for a message.
    pub async fn newest_tags(&self) -> Result<String, Problem> {
        let found = self
            .run(&[
                "for-each-ref",
                "--sort=-creatordate",
                "--count=5",
                "--format=%(refname:lstrip=2)",
                "refs/tags/",
            ])
            .await?;
        let tags: Vec<&str> = found.lines().collect();
        Ok(if tags.is_empty() {
            "there are no tags".into()
        } else {
            format!("the newest tags are {}", tags.join(", "))
        })
    }

    pub async fn has(&self, commit: &Commit) -> Result<bool, Problem> {
        let object = format!("{commit}^{{commit}}");
        // `cat-file -e` answers 128 for an object that is not there, as it does for a repository that is broken.
        self.run(&["rev-parse", "--git-dir"]).await?;
        Ok(self.run(&["cat-file", "-e", &object]).await.is_ok())
    }

    pub async fn is_shallow(&self) -> Result<bool, Problem> {
        Ok(self.run(&["rev-parse", "--is-shallow-repository"]).await?.trim() == "true")
    }

    /// Objects that a checkout of this commit would need and that are not there (some of them, when there are many).
    pub async fn missing_objects(&self, commit: &Commit) -> Result<Vec<String>, Problem> {
        let id = commit.to_string();
        // The missing ones come last, and of a long output the end is kept.
        let args = [
            "rev-list",
            "--objects",
            "--no-walk",
            "--missing=print",
            "--end-of-options",
            &id,
        ];
        let found = self.git.run(&self.path, &args, THOROUGH).await?;
        Ok(found
            .lines()
            .filter_map(|line| line.strip_prefix('?'))
            .map(str::to_owned)
            .collect())
    }

    /// Mode and name of what the commit has at this path and, for a directory with `/` at its end, directly in it.
    pub async fn entries(&self, commit: &Commit, path: &str) -> Result<Vec<(String, String)>, Problem> {
        let found = self.run(&["ls-tree", "-z", &commit.to_string(), "--", path]).await?;
        Ok(found
            .split('\0')
            .filter_map(|entry| entry.split_once('\t'))
            .map(|(about, name)| (about.split(' ').next().unwrap_or_default().to_owned(), name.to_owned()))
            .collect())
    }

    /// Filters that the commit's top attributes name and that the repository does not define: git would check the files
    /// out unfiltered without a word (pointers instead of large files).
    pub async fn undefined_filters(&self, commit: &Commit) -> Result<Vec<String>, Problem> {
        if self.entries(commit, ".gitattributes").await?.is_empty() {
            return Ok(Vec::new());
        }
        let attributes = self
            .run(&["cat-file", "blob", &format!("{commit}:.gitattributes")])
            .await?;
        let mut named: Vec<&str> = attributes
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("filter="))
            .collect();
        named.sort_unstable();
        named.dedup();
        let defined = self
            .ask(&["config", "--name-only", "--get-regexp", r"^filter\."])
            .await?;
        let defined = defined.unwrap_or_default();
        let is_defined = |filter: &&str| {
            defined
                .lines()
                .any(|line| line == format!("filter.{filter}.smudge") || line == format!("filter.{filter}.process"))
        };
        named.retain(|filter| !is_defined(filter));
        Ok(named.into_iter().map(str::to_owned).collect())
    }

    /// Fetches one tag. Refused by git when it would overwrite one that is here.
    pub async fn fetch_tag(&self, reference: &str, limit: Duration) -> Result<(), Problem> {
        let refspec = format!("{reference}:{reference}");
        let args = [
            "fetch",
            "--no-tags",
            "--no-prune",
            "--no-write-fetch-head",
            "--no-recurse-submodules",
            "--end-of-options",
            &self.remote,
            &refspec,
        ];
        self.git.run(&self.path, &args, limit).await.map(|_| ())
    }

    /// The commit that the tag has at the remote.
    pub async fn remote_tag(&self, reference: &str) -> Result<Option<Commit>, Problem> {
        let peeled = format!("{reference}^{{}}");
        let args = ["ls-remote", "--end-of-options", &self.remote, reference, &peeled];
        let found = self.git.run(&self.path, &args, THOROUGH).await?;
        // The peeled line of an annotated tag comes after the tag's own.
        let line = found.lines().last().and_then(|line| line.split('\t').next());
        line.map(Commit::read).transpose()
    }

    /// Would a fetch with pruning delete our refs, as it does in a mirror?
    pub async fn is_mirror(&self) -> Result<bool, Problem> {
        let found = self.ask(&["config", "--get-regexp", r"^remote\..*\.fetch$"]).await?;
        Ok(found.is_some_and(|lines| lines.contains(":refs/*")))
    }

    fn keeper(&self, commit: &Commit) -> String {
        format!("{}/{commit}", self.namespace)
    }

    /// Makes the ref that keeps the commit's objects from being collected. Durable when it returns.
    pub async fn keep(&self, commit: &Commit) -> Result<(), Problem> {
        let keeper = self.keeper(commit);
        if self.commit_at(&keeper).await?.as_ref() == Some(commit) {
            return Ok(());
        }
        self.remove_stale_lock(&keeper).await?;
        let id = commit.to_string();
        self.run(&["update-ref", "--no-deref", &keeper, &id]).await?;
        Ok(())
    }

    /// Takes that ref away. The objects stay as long as a tag or a branch leads to them.
    pub async fn forget(&self, commit: &Commit) -> Result<bool, Problem> {
        let keeper = self.keeper(commit);
        if self.commit_at(&keeper).await?.is_none() {
            return Ok(false);
        }
        self.remove_stale_lock(&keeper).await?;
        self.run(&["update-ref", "--no-deref", "-d", &keeper]).await?;
        Ok(true)
    }

    /// A git that was killed in the middle leaves its lock behind for ever. Nobody but this agent makes refs of this
    /// name, and packing them takes seconds: an old lock is nobody's.
    async fn remove_stale_lock(&self, reference: &str) -> Result<(), Problem> {
        const STALE: Duration = Duration::from_secs(60);
        let common = self
            .run(&["rev-parse", "--path-format=absolute", "--git-common-dir"])
            .await?;
        let lock = Path::new(common.trim_end_matches('\n')).join(format!("{reference}.lock"));
        let age = std::fs::symlink_metadata(&lock)
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|made| SystemTime::now().duration_since(made).ok());
        match age {
            Some(age) if age > STALE => files::remove(&lock),
            Some(_) | None => Ok(()),
        }
    }

    /// Makes a worktree at this commit, without a branch.
    pub async fn add_worktree(&self, dir: &Path, commit: &Commit, limit: Duration) -> Result<(), Problem> {
        let (shown, id) = (dir.to_string_lossy(), commit.to_string());
        let args = [
            "worktree",
            "add",
            "--quiet",
            "--detach",
            "--no-guess-remote",
            "--end-of-options",
            &shown,
            &id,
        ];
        self.git.make(dir, &self.path, &args, limit).await
    }

    /// Makes the repository forget a worktree whose directory is gone. Does nothing when it does not know it.
    pub async fn forget_worktree(&self, dir: &Path) -> Result<(), Problem> {
        let list = self.run(&["worktree", "list", "--porcelain"]).await?;
        let known = format!("worktree {}", dir.display());
        if !list.lines().any(|line| line == known) {
            return Ok(());
        }
        // Twice: a worktree that was being made is locked.
        self.run(&[
            "worktree",
            "remove",
            "--force",
            "--force",
            "--end-of-options",
            &dir.to_string_lossy(),
        ])
        .await?;
        Ok(())
    }

    /// The commit that is checked out in a directory, which must be the top of a worktree or clone itself.
    pub async fn head_of(&self, dir: &Path) -> Result<Commit, Problem> {
        let args = ["rev-parse", "--verify", "--end-of-options", "HEAD^{commit}"];
        Commit::read(&self.git.run(dir, &args, QUICK).await?)
    }

    /// `git status` of a worktree's tracked files, except for these paths, which are ours.
    pub async fn status(&self, dir: &Path, except: &[String]) -> Result<Vec<String>, Problem> {
        let args = [
            "status",
            "--porcelain=v1",
            "-z",
            "--no-renames",
            "--untracked-files=no",
            "--ignore-submodules=all",
        ];
        self.in_tree(dir, &args, except).await
    }

    /// The differences of a worktree's tracked files from its commit, as text that is equal when they are.
    pub async fn difference(&self, dir: &Path, except: &[String]) -> Result<String, Problem> {
        let args = [
            "diff",
            "--no-ext-diff",
            "--no-textconv",
            "--no-color",
            "--binary",
            "HEAD",
        ];
        Ok(self.in_tree(dir, &args, except).await?.join("\0"))
    }

    /// What is in a worktree and not in its commit; whole directories as one, with `/` at the end.
    pub async fn untracked(&self, dir: &Path, except: &[String]) -> Result<Vec<String>, Problem> {
        let args = [
            "status",
            "--porcelain=v1",
            "-z",
            "--ignored=traditional",
            "--untracked-files=normal",
        ];
        let found = self.in_tree(dir, &args, except).await?;
        Ok(found
            .iter()
            .filter_map(|line| line.strip_prefix("!! ").or_else(|| line.strip_prefix("?? ")))
            .map(str::to_owned)
            .collect())
    }

    async fn in_tree(&self, dir: &Path, args: &[&str], except: &[String]) -> Result<Vec<String>, Problem> {
        let mut args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        args.extend(["--".to_owned(), ".".to_owned()]);
        args.extend(except.iter().map(|path| format!(":(exclude,top,literal){path}")));
        let found = self.git.run(dir, &args, THOROUGH).await?;
        Ok(found
            .split('\0')
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect())
    }
}
