//! The git side of "full rollback, rebuild from git tag": what a tag means, and its files in a worktree of ours.
//!
//! Invariants:
//! - The project's own checkout, its index and its branches are never touched: files that people changed or keep there
//!   survive. Nothing is ever checked out in place.
//! - A tag is asked for as `refs/tags/…` behind `--end-of-options`: a branch of that name is not taken for it, and no
//!   name is taken for an option.
//! - No hook and no file-system monitor of the repository runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};

use super::pin::Source;
use crate::files::{blocking, io_problem};
use crate::program::{Output, Program};

const LIMIT: Duration = Duration::from_secs(30);

/// A repository on this host.
#[derive(Clone, Debug)]
pub struct Repository {
    pub path: PathBuf,
}

impl Repository {
    fn git(&self) -> Program {
        Program::new("git")
            .arg("-C")
            .arg(&self.path)
            // The repository is named in the agent's configuration, whoever owns it.
            .args(["-c", &format!("safe.directory={}", self.path.display())])
            .args(["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"])
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_OPTIONAL_LOCKS", "0")
    }

    async fn ask(&self, what: &str, program: Program) -> Result<Output, Problem> {
        let asked = program.output(LIMIT).await;
        asked.map_err(|e| Problem::from_error(Code::GitUnfit, format!("{what} in {}", self.path.display()), &e))
    }

    async fn run(&self, what: &str, program: Program, limit: Duration) -> Result<Output, Problem> {
        let run = program.run(limit).await;
        run.map_err(|e| Problem::from_error(Code::GitUnfit, format!("{what} in {}", self.path.display()), &e))
    }

    /// The commit that a tag means. `None`: there is no such tag.
    pub async fn tag(&self, tag: &str) -> Result<Option<Source>, Problem> {
        check_name("tag", tag)?;
        // Tells "no such tag" from "no such repository".
        self.common_dir().await?;
        let peel = self
            .git()
            .args(["rev-parse", "--verify", "--quiet", "--end-of-options"])
            .arg(format!("refs/tags/{tag}^{{commit}}"));
        let answer = self.ask("resolve tag", peel).await?;
        let commit = answer.stdout.trim();
        Ok((answer.code == Some(0) && is_commit(commit)).then(|| Source {
            tag: tag.to_owned(),
            commit: commit.to_owned(),
        }))
    }

    /// Is the commit there, with all of its files' names?
    pub async fn has(&self, commit: &str) -> Result<bool, Problem> {
        if !is_commit(commit) {
            return Ok(false);
        }
        let list = self
            .git()
            .args(["ls-tree", "-r", "--name-only", "--end-of-options", commit]);
        Ok(self.ask("list commit", list.detached_output()).await?.code == Some(0))
    }

    /// Is this file (relative to the repository) in the commit the same as on disk? `None`: the commit does not have it.
    pub async fn same_as_on_disk(&self, commit: &str, file: &Path) -> Result<Option<bool>, Problem> {
        let name = format!("{commit}:{}", file.display());
        let theirs = self
            .git()
            .args(["rev-parse", "--verify", "--quiet", "--end-of-options", &name]);
        let theirs = self.ask("look up file", theirs).await?;
        if theirs.code != Some(0) {
            return Ok(None);
        }
        let ours = self.git().args(["hash-object", "--"]).arg(self.path.join(file));
        let ours = self.run("hash file", ours, LIMIT).await?;
        Ok(Some(ours.stdout.trim() == theirs.stdout.trim()))
    }

    async fn common_dir(&self) -> Result<PathBuf, Problem> {
        let ask = self
            .git()
            .args(["rev-parse", "--path-format=absolute", "--git-common-dir"]);
        let output = self.run("look for the repository", ask, LIMIT).await?;
        Ok(PathBuf::from(output.stdout.trim_end_matches('\n')))
    }

    /// A fresh worktree of the commit. It lies within `.git`, so it shows nowhere, and there is one for each component,
    /// so that what a killed attempt left is found.
    pub async fn worktree(&self, component: &str, commit: &str, limit: Duration) -> Result<PathBuf, Problem> {
        if !is_commit(commit) {
            return Err(Problem::new(Code::GitUnfit, format!("{commit:?} is not a commit")));
        }
        self.remove_worktree(component).await?;
        let path = self.place(component).await?;
        // Twice: also over the note of a killed attempt, which Git calls locked.
        let add = self
            .git()
            .args(["worktree", "add", "--detach", "--force", "--force"])
            .arg(&path)
            .arg(commit);
        self.run("make a worktree", add, limit).await?;
        Ok(path)
    }

    /// Removes the component's worktree; there need not be one.
    pub async fn remove_worktree(&self, component: &str) -> Result<(), Problem> {
        let path = self.place(component).await?;
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(());
        }
        let remove = self.git().args(["worktree", "remove", "--force", "--force"]).arg(&path);
        if self.ask("remove the worktree", remove).await?.code == Some(0) {
            return Ok(());
        }
        // Not a worktree in Git's eyes: an attempt that was killed early.
        blocking(move || match std::fs::remove_dir_all(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io_problem("remove", &path, &e)),
        })
        .await
    }

    async fn place(&self, component: &str) -> Result<PathBuf, Problem> {
        check_name("component", component)?;
        Ok(self
            .common_dir()
            .await?
            .join("rollbackctl")
            .join(format!("compose-{component}")))
    }
}

/// A full object name, SHA-1 or SHA-256.
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}
