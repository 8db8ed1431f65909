//! Making a worktree of a commit beside the live one, and taking it away again.
//!
//! The note comes first (`Making`), then git, the shared links, the install program, and at the end, when everything is on
//! disk, the note that says *complete*. A kill anywhere before leaves what the next attempt removes and makes anew.

use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rustix::process::Signal;

use super::GitDriver;
use super::program::{MAKES, excerpt};
use super::repository::Commit;
use super::trees::{Note, Ready, State, Trees};
use crate::check::redact;
use crate::driver::Revision;
use crate::driver::link::{Current, is_real_directory};
use crate::files::{self, blocking, io_problem, vault_problem};
use crate::processes;
use crate::program::ProgramError;
use crate::step::StepContext;

/// What keeps an otherwise empty directory in git.
const PLACEHOLDERS: [&str; 3] = [".gitkeep", ".keep", ".gitignore"];

/// Makes `step.to` complete in a worktree. Says in one line what was done.
pub async fn stage(driver: &GitDriver, step: &StepContext) -> Result<String, Problem> {
    let trees = &driver.trees;
    check_name("rollback", &step.rollback_id)?;
    let commit = Commit::from_digest(&step.to.digest)?;
    bring_here(driver, step, &commit).await?;
    let why_not = match trees.ready(&commit).await? {
        Ready::Yes(note) => return Ok(format!("{} is complete", trees.releases.join(note.name).display())),
        Ready::No(why_not) => why_not,
    };
    clear_unfinished(trees).await?;
    let name = free_name(trees, &step.to, &commit)?;
    if let Err(problem) = make(driver, step, &name, &commit).await {
        // A disk that is full must not stay full because of us.
        step.progress("removing what was begun");
        return Err(match remove_unfinished(trees, &name).await {
            Ok(()) => problem,
            Err(left) => Problem {
                message: format!(
                    "{}; and what was begun is still there: {}",
                    problem.message, left.message
                ),
                ..problem
            },
        });
    }
    let made = format!("{} made of {}", trees.releases.join(&name).display(), commit.short());
    Ok(match why_not.is_empty() {
        true => made,
        false => format!("{made}; not used, and left alone: {}", why_not.join("; ")),
    })
}

/// The commit's objects are in the repository and stay there.
async fn bring_here(driver: &GitDriver, step: &StepContext, commit: &Commit) -> Result<(), Problem> {
    let repository = &driver.trees.repository;
    if !repository.has(commit).await? {
        let tag = driver.tag_of(&step.to, commit)?;
        if !driver.fetch {
            return Err(absent(driver, &step.to));
        }
        step.progress(format!("fetching {tag}"));
        let fetching = repository.fetch_tag(&tag, step.time_left());
        step.operation("git_fetch", fetching).await?;
        if !repository.has(commit).await? {
            return Err(absent(driver, &step.to));
        }
    }
    repository.keep(commit).await
}

pub fn absent(driver: &GitDriver, revision: &Revision) -> Problem {
    Problem::new(
        Code::RevisionMissing,
        format!(
            "commit {} of {} is not in {}",
            revision.digest.trim_start_matches("git:"),
            revision.version,
            driver.trees.repository.path.display()
        ),
    )
}

async fn make(driver: &GitDriver, step: &StepContext, name: &str, commit: &Commit) -> Result<(), Problem> {
    let trees = &driver.trees;
    let dir = trees.dir(name)?;
    trees.write_note(&Note {
        name: name.to_owned(),
        commit: commit.clone(),
        state: State::Making,
        made_for: Some(step.rollback_id.clone()),
    })?;
    step.progress(format!("checking out {} in {}", step.to.version, dir.display()));
    let adding = trees.repository.add_worktree(&dir, commit, step.time_left());
    step.operation("git_worktree_add", adding).await?;
    // Closed until it is complete: nobody else shall start half a release.
    let mode = std::fs::metadata(&dir)
        .map_err(|e| io_problem("look at", &dir, &e))?
        .permissions();
    set_mode(&dir, 0o700)?;
    for path in &trees.shared {
        link_shared(&trees.root, &dir, path)?;
    }
    if !trees.install.is_empty() {
        step.progress(format!("running {}", trees.install.join(" ")));
        step.operation("install", install(driver, &dir, step.deadline)).await?;
    }
    set_mode(&dir, mode.mode() & 0o7777)?;
    let head = trees.repository.head_of(&dir).await?;
    if head != *commit {
        return Err(Problem::new(
            Code::GitUnfit,
            format!("the install program checked out {} in {}", head.short(), dir.display()),
        ));
    }
    let (hash, made_for) = (trees.install_hash(), step.rollback_id.clone());
    let note = trees.complete_note(name, commit, Some(hash), Some(made_for)).await?;
    let releases = trees.releases.clone();
    step.operation("sync", blocking(move || sync_all(&releases))).await?;
    trees.write_note(&note)
}

/// Git and install programs do not sync what they write.
fn sync_all(dir: &Path) -> Result<(), Problem> {
    let problem = |e: std::io::Error| io_problem("sync", dir, &e);
    let at = std::fs::File::open(dir).map_err(problem)?;
    rustix::fs::syncfs(&at).map_err(|e| problem(e.into()))
}

fn set_mode(dir: &Path, mode: u32) -> Result<(), Problem> {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
        .map_err(|e| io_problem("set the mode of", dir, &e))
}

/// Links `<root>/shared/<path>` into the worktree. Whatever the release has there stays, except for an empty directory.
fn link_shared(root: &Path, dir: &Path, path: &str) -> Result<(), Problem> {
    let (target, at) = (root.join("shared").join(path), dir.join(path));
    // One directory after the other: a link of the release may lead anywhere, and the agent may be root.
    let above: Vec<&Path> = Path::new(path).ancestors().skip(1).collect();
    for parent in above.into_iter().rev().map(|parent| dir.join(parent)) {
        match std::fs::create_dir(&parent) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists && is_real_directory(&parent)? => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(in_the_way(path)),
            Err(e) => return Err(io_problem("create", &parent, &e)),
        }
    }
    if std::fs::symlink_metadata(&at).is_ok_and(|metadata| metadata.is_dir()) {
        for name in PLACEHOLDERS {
            files::remove(&at.join(name))?;
        }
        std::fs::remove_dir(&at).map_err(|e| match e.kind() {
            ErrorKind::DirectoryNotEmpty => in_the_way(path),
            _ => io_problem("remove", &at, &e),
        })?;
    }
    symlink(target, &at).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => in_the_way(path),
        _ => io_problem("make link", &at, &e),
    })
}

pub fn in_the_way(path: &str) -> Problem {
    Problem::new(
        Code::BadLayout,
        format!("the release has a {path} of its own, where the link to the shared one would go"),
    )
    .remedy("take it out of the release, or out of `shared`")
}

async fn install(driver: &GitDriver, dir: &Path, deadline: Instant) -> Result<(), Problem> {
    let trees = &driver.trees;
    let mut argv = trees.install.clone();
    if let Some(first) = argv.first_mut()
        && first.contains('/')
        && !first.starts_with('/')
    {
        *first = dir.join(&*first).to_string_lossy().into_owned();
    }
    let name = trees.install.join(" ");
    let mut program = trees.repository.git.as_owner(argv).await?.cwd(dir);
    for (variable, value) in &driver.install_env {
        program = program.env(variable, value);
    }
    let program = program.env(MAKES, dir);
    let limit = deadline.saturating_duration_since(Instant::now());
    let output = program.output(limit).await.map_err(|e| match &e {
        ProgramError::Deadline { .. } => Problem::new(Code::StepTimeout, format!("{name}: {e}")),
        ProgramError::Start { .. } | ProgramError::Failed { .. } => Problem::from_error(Code::ProgramFailed, &name, &e),
    })?;
    if output.code == Some(0) {
        return Ok(());
    }
    let said = if output.stderr.trim().is_empty() {
        output.stdout
    } else {
        output.stderr
    };
    let status = output
        .code
        .map_or("a signal".to_owned(), |code| format!("status {code}"));
    // It may have printed what it was given, a token of a registry for one.
    let given = driver.install_env.iter();
    let said = redact::hide(
        excerpt(&said),
        given.map(|(name, value)| (name.as_str(), value.as_str())),
    );
    let what = format!("{name} in {} ended with {status}: {said}", dir.display());
    Err(Problem::new(Code::ProgramFailed, what)
        .remedy("run it by hand in a worktree of that release; the live release was not touched"))
}

/// `v2.9.0`, or when somebody's directory has that name, `v2.9.0+1f3a9c02`, `v2.9.0+1f3a9c02.2`, …
fn free_name(trees: &Trees, to: &Revision, commit: &Commit) -> Result<String, Problem> {
    check_name("version", &to.version)?;
    let short = commit.short();
    let short = &short[..8];
    let numbered = (2..100).map(|n| format!("{}+{short}.{n}", to.version));
    let names = [to.version.clone(), format!("{}+{short}", to.version)];
    for name in names.into_iter().chain(numbered) {
        let dir = trees.dir(&name)?;
        if std::fs::symlink_metadata(&dir).is_err() {
            return Ok(name);
        }
    }
    Err(Problem::new(
        Code::BadLayout,
        format!(
            "{} has a hundred directories of {} already",
            trees.releases.display(),
            to.version
        ),
    ))
}

/// Removes what killed attempts began. One step of a component runs at a time: whoever is at work there has outlived the
/// agent that started it.
pub async fn clear_unfinished(trees: &Trees) -> Result<(), Problem> {
    for note in trees.notes()? {
        if matches!(note.state, State::Making) && trees.link().read()? != Current::Release(note.name.clone()) {
            remove_unfinished(trees, &note.name).await?;
        }
    }
    Ok(())
}

async fn remove_unfinished(trees: &Trees, name: &str) -> Result<(), Problem> {
    end_makers(&trees.dir(name)?).await?;
    remove(trees, name).await
}

/// Ends git and the install program, and all that they have started, in a worktree that is worth nothing.
async fn end_makers(dir: &Path) -> Result<(), Problem> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let until = Instant::now() + PATIENCE;
    loop {
        let at_work = dir.to_owned();
        let makers = blocking(move || Ok(processes::started_with(MAKES, at_work.as_os_str()))).await?;
        let Some(first) = makers.first() else { return Ok(()) };
        if Instant::now() >= until {
            let what = format!("process {} still works in {}", first.pid, dir.display());
            return Err(Problem::new(Code::StillRunning, what).remedy("end it, then stage again"));
        }
        for maker in &makers {
            processes::signal(*maker, Signal::KILL)?;
        }
        // They may have started others meanwhile.
        for maker in makers {
            processes::wait_gone(maker, until).await;
        }
    }
}

/// Removes a worktree that a note names, and then the note. The directory goes first: git refuses to remove one that was
/// never finished, and forgets one that is gone.
async fn remove(trees: &Trees, name: &str) -> Result<(), Problem> {
    let dir = trees.dir(name)?;
    let doomed = dir.clone();
    blocking(move || match std::fs::remove_dir_all(&doomed) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(io_problem("remove", &doomed, &e)),
    })
    .await?;
    trees.repository.forget_worktree(&dir).await?;
    trees.remove_note(name)
}

/// Takes away what `stage` made, for this rollback or an earlier one, and says what it kept. What is live stays, and so
/// does what somebody has changed since.
pub async fn discard(trees: &Trees) -> Result<String, Problem> {
    clear_unfinished(trees).await?;
    let (mut removed, mut kept) = (Vec::new(), Vec::new());
    let live = trees.link().read()?;
    let way_back = trees.departures()?;
    for note in trees.notes()? {
        let State::Complete { changes, .. } = &note.state else {
            continue;
        };
        let needed = live == Current::Release(note.name.clone()) || way_back.iter().any(|left| left.name == note.name);
        if note.made_for.is_none() || needed {
            continue;
        }
        let dir = trees.dir(&note.name)?;
        let untouched = match trees.changes(&dir).await {
            Ok(found) => found.fingerprint == *changes,
            // Not a worktree any more: gone, or half removed by an attempt that was killed.
            Err(_) => true,
        };
        if untouched {
            remove(trees, &note.name).await?;
            removed.push(note.name);
        } else {
            kept.push(note.name);
        }
    }
    if way_back.iter().all(|left| live == Current::Release(left.name.clone())) {
        trees.forget_departures()?;
    }
    Ok(match (removed.is_empty(), kept.is_empty()) {
        (true, true) => "nothing staged".into(),
        (false, true) => format!("removed {}", removed.join(", ")),
        (true | false, false) => format!("kept, because files in it were changed since: {}", kept.join(", ")),
    })
}

/// The release is not kept any more: the ref, the pin, and the worktrees that we have made of it. Those that somebody
/// else made or changed stay. A worktree that a rollback is about to use, or came from, is no reason to be asked this:
/// the coordinator names what its rollbacks need.
pub async fn forget(trees: &Trees, commit: &Commit) -> Result<String, Problem> {
    let live = trees.link().read()?;
    let mut said = Vec::new();
    for note in trees.notes()? {
        let State::Complete { install, changes, .. } = &note.state else {
            continue;
        };
        let ours = install.is_some() && note.made_for.is_none();
        if note.commit != *commit || !ours || live == Current::Release(note.name.clone()) {
            continue;
        }
        let shown = trees.releases.join(&note.name);
        let untouched = match trees.changes(&trees.dir(&note.name)?).await {
            Ok(found) => found.fingerprint == *changes,
            // Half removed by an attempt that was killed.
            Err(_) => true,
        };
        if untouched {
            remove(trees, &note.name).await?;
            said.push(format!("worktree {} removed", shown.display()));
        } else {
            said.push(format!("worktree {} stays: files in it were changed", shown.display()));
        }
    }
    // The pin before the ref: whoever finds the pin finds the objects.
    let unpinned = trees
        .vault
        .unpin(&trees.component, &commit.digest())
        .map_err(|e| vault_problem(&e))?;
    if trees.repository.forget(commit).await? || unpinned {
        said.push(format!("the ref of ours at {} is gone", commit.short()));
    }
    Ok(match said.is_empty() {
        true => "nothing was kept for it".to_owned(),
        false => said.join("; "),
    })
}

/// The rollback is over: what is complete stays, and is not ours to discard any more.
pub async fn settle(trees: &Trees) -> Result<(), Problem> {
    clear_unfinished(trees).await?;
    for mut note in trees.notes()? {
        if note.made_for.take().is_some() {
            trees.write_note(&note)?;
        }
    }
    trees.forget_departures()
}
