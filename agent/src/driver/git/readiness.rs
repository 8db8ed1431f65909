//! What `prepare` finds: can this host go to the wanted commit right now, and come back? Reads only.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rollback_proto::problem::{Code, Problem};

use super::GitDriver;
use super::moves::neither;
use super::repository::Commit;
use super::staging::{absent, in_the_way};
use super::trees::{Live, Ready};
use crate::driver::Finding;
use crate::files::{self, blocking, io_problem};
use crate::program::SAFE_PATH;
use crate::step::StepContext;

/// Most entries that are looked at to learn how large a release is. What has more is large enough to be said so.
const MAX_ENTRIES: usize = 1_000_000;

pub async fn findings(driver: &GitDriver, step: &StepContext) -> Result<Vec<Finding>, Problem> {
    let trees = &driver.trees;
    // Before anything is made of them.
    let from = Commit::from_digest(&step.from.digest)?;
    let to = Commit::from_digest(&step.to.digest)?;
    let mut findings = Vec::new();
    let live = match trees.live().await {
        Ok(live) => {
            if live.commit != from && live.commit != to {
                findings.push(Finding::blocker(neither(&live.revision, step)));
            }
            findings.extend(dirty(driver, &live).await?);
            Some(live)
        }
        Err(problem) => {
            findings.push(Finding::blocker(problem));
            None
        }
    };
    for dir in [&trees.root, &trees.releases] {
        if !files::writable_by_us(dir) {
            findings.push(Finding::blocker(Problem::new(
                Code::FileFailed,
                format!("{} is not writable by the agent", dir.display()),
            )));
        }
    }
    if trees.repository.is_mirror().await? {
        let path = trees.repository.path.display();
        findings.push(Finding::warning(
            Problem::new(
                Code::GitUnfit,
                format!("{path} is a mirror: a fetch that prunes deletes the refs that keep recorded releases"),
            )
            .remedy(format!(
                "git -C {path} config remote.{0}.fetch '+refs/heads/*:refs/heads/*'",
                trees.repository.remote
            )),
        ));
    }
    findings.extend(moved_tag(driver, step, &to).await?);
    if !trees.repository.has(&to).await? {
        findings.push(remote_finding(driver, step, &to).await?);
        return Ok(findings);
    }
    match trees.ready(&to).await? {
        Ready::Yes(note) => {
            let dir = trees.dir(&note.name)?;
            findings.extend(programs(driver, &to, Some(&dir)).await?);
        }
        Ready::No(why_not) => {
            findings.extend(why_not.into_iter().map(|why| {
                Finding::warning(
                    Problem::new(Code::GitUnfit, format!("{why}; it is not used for {}", step.to.version))
                        .remedy("nothing: a fresh worktree will be made beside it, and it stays as it is"),
                )
            }));
            findings.extend(making(driver, &to, live.as_ref()).await?);
            findings.extend(programs(driver, &to, None).await?);
        }
    }
    Ok(findings)
}

async fn dirty(driver: &GitDriver, live: &Live) -> Result<Option<Finding>, Problem> {
    let changes = driver.trees.changes(&live.dir).await?;
    if changes.paths.is_empty() {
        return Ok(None);
    }
    let what = format!("the live worktree {} has {}", live.dir.display(), changes.summary());
    Ok(Some(Finding::warning(Problem::new(Code::GitUnfit, what).remedy(
        "nothing: the changes stay in that worktree and come back with it; commit what is worth keeping",
    ))))
}

/// Does the tag by which the release was recorded still mean this commit?
async fn moved_tag(driver: &GitDriver, step: &StepContext, to: &Commit) -> Result<Option<Finding>, Problem> {
    let trees = &driver.trees;
    let recorded = trees.pin(to)?.and_then(|pin| pin.tag);
    // A commit that was never recorded by a tag may still be asked for by a name that is a tag's.
    let tag = driver.tag_of(&step.to, to)?;
    Ok(match trees.repository.commit_at(&tag).await? {
        Some(found) if found == *to => None,
        Some(found) => Some(Finding::blocker(Problem::new(
            Code::NameMoved,
            format!(
                "{tag} leads to {} now; {} was recorded at {}",
                found.short(),
                step.to.version,
                to.short()
            ),
        ))),
        None => recorded.map(|tag| {
            Finding::warning(
                Problem::new(
                    Code::NameMoved,
                    format!("{tag} was deleted since {} was recorded", step.to.version),
                )
                .remedy("nothing: the recorded commit is kept by a ref of ours"),
            )
        }),
    })
}

/// The commit is not here: may and can it be fetched?
async fn remote_finding(driver: &GitDriver, step: &StepContext, to: &Commit) -> Result<Finding, Problem> {
    let repository = &driver.trees.repository;
    let tag = driver.tag_of(&step.to, to)?;
    let mut problem = absent(driver, &step.to);
    if driver.fetch {
        match repository.remote_tag(&tag).await {
            Ok(Some(there)) if there == *to => {
                return Ok(Finding::warning(
                    problem.remedy(format!("nothing: {tag} will be fetched from {}", repository.remote)),
                ));
            }
            Ok(Some(there)) => {
                let what = format!(
                    "{tag} leads to {} at {}, not to {}",
                    there.short(),
                    repository.remote,
                    to.short()
                );
                return Ok(Finding::blocker(Problem::new(Code::NameMoved, what)));
            }
            Ok(None) => problem
                .message
                .push_str(&format!(", and {} has no {tag}", repository.remote)),
            Err(asked) => problem.message.push_str(&format!(", and {}", asked.message)),
        }
    }
    let path = repository.path.display();
    if repository.is_shallow().await? {
        problem.message.push_str("; the repository is a shallow clone");
        problem = problem.remedy(format!("git -C {path} fetch --unshallow --tags"));
    } else if !driver.fetch {
        problem = problem.remedy(format!("git -C {path} fetch --tags, or set fetch = true"));
    }
    Ok(Finding::blocker(problem))
}

/// Can a fresh worktree be made and filled?
async fn making(driver: &GitDriver, to: &Commit, live: Option<&Live>) -> Result<Vec<Finding>, Problem> {
    let trees = &driver.trees;
    let repository = &trees.repository;
    let mut findings = Vec::new();
    let missing = repository.missing_objects(to).await?;
    if let Some(first) = missing.first() {
        let path = repository.path.display();
        findings.push(Finding::blocker(
            Problem::new(
                Code::GitUnfit,
                format!(
                    "{path} lacks {} objects of commit {}, {first} for one",
                    missing.len(),
                    to.short()
                ),
            )
            .remedy(format!(
                "git -C {path} fetch --refetch, or copy the objects from another clone; then git fsck"
            )),
        ));
        // What follows reads these objects.
        return Ok(findings);
    }
    if !repository.entries(to, ".gitmodules").await?.is_empty() {
        findings.push(Finding::warning(
            Problem::new(
                Code::GitUnfit,
                format!("{} has submodules, which git leaves empty", to.short()),
            )
            .remedy("let the install vector bring them, or vendor them"),
        ));
    }
    for filter in repository.undefined_filters(to).await? {
        let shown: String = filter.escape_debug().take(40).collect();
        findings.push(Finding::blocker(
            Problem::new(
                Code::GitUnfit,
                format!(
                    "{} has files of the filter {shown}, which the repository does not define",
                    to.short()
                ),
            )
            .remedy(format!(
                "in the repository's own configuration: git -C {} lfs install --local, for one",
                repository.path.display()
            )),
        ));
    }
    for path in &trees.shared {
        let target = trees.root.join("shared").join(path);
        if !target.exists() {
            let what = format!(
                "{} does not exist, where the release's {path} shall lead",
                target.display()
            );
            findings.push(Finding::blocker(
                Problem::new(Code::BadLayout, what).remedy("put the shared file or directory there"),
            ));
        }
        let has = repository.entries(to, path).await?;
        if has.iter().any(|(mode, _)| mode != "040000") {
            findings.push(Finding::blocker(in_the_way(path)));
        }
    }
    if let Some(program) = trees.install.first()
        && !found(driver, to, program).await?
    {
        findings.push(Finding::blocker(
            Problem::new(
                Code::ProgramFailed,
                format!("the install program {program} does not exist or is not executable"),
            )
            .remedy("install it, or name its directory: install_env = { PATH = \"…\" }"),
        ));
    }
    if let Some(live) = live {
        findings.extend(room(&trees.releases, &live.dir).await?);
    }
    Ok(findings)
}

async fn found(driver: &GitDriver, to: &Commit, program: &str) -> Result<bool, Problem> {
    let executable = |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    if program.starts_with('/') {
        return Ok(executable(Path::new(program)));
    }
    if program.contains('/') {
        let entries = driver.trees.repository.entries(to, program).await?;
        return Ok(entries.iter().any(|(mode, _)| mode == "100755"));
    }
    let path = driver.install_env.get("PATH").map_or(SAFE_PATH, String::as_str);
    Ok(path.split(':').any(|dir| executable(&Path::new(dir).join(program))))
}

/// A release needs about as much room as the live one, with what is installed in it.
async fn room(releases: &Path, live: &Path) -> Result<Option<Finding>, Problem> {
    let (releases, live) = (releases.to_owned(), live.to_owned());
    blocking(move || {
        let (needed, free) = (size_of(&live)?, files::free_space(&releases)?);
        Ok((free < needed).then(|| {
            Finding::blocker(Problem::new(
                Code::DiskFull,
                format!(
                    "a release of the live one's size needs {:.1} MB in {}, {:.1} MB are free",
                    needed as f64 / 1e6,
                    releases.display(),
                    free as f64 / 1e6
                ),
            ))
        }))
    })
    .await
}

fn size_of(dir: &Path) -> Result<u64, Problem> {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut seen, mut pending) = (0, 0, vec![dir.to_owned()]);
    while let Some(dir) = pending.pop() {
        // The application may remove files while they are counted.
        let Ok(listing) = std::fs::read_dir(&dir) else { continue };
        for entry in listing.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            seen += 1;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
            if seen > MAX_ENTRIES {
                let many = std::io::Error::other(format!("more than {MAX_ENTRIES} entries"));
                return Err(io_problem("measure", &dir, &many));
            }
        }
    }
    Ok(bytes)
}

/// Has the release what the process manager runs? In a release that is not checked out yet, git knows.
async fn programs(driver: &GitDriver, to: &Commit, dir: Option<&Path>) -> Result<Vec<Finding>, Problem> {
    let application = &driver.application;
    let mut findings = Vec::new();
    for file in application.files_in_release() {
        let there = match dir {
            Some(dir) => dir.join(&file).is_file(),
            None => mode_of(driver, to, &file.to_string_lossy()).await? != Mode::Absent,
        };
        if !there {
            findings.push(Finding::blocker(Problem::new(
                Code::ManagerFailed,
                format!(
                    "{} has no {}, which the process manager starts it from",
                    to.short(),
                    file.display()
                ),
            )));
        }
    }
    // The first pass only learns what is asked for.
    let asked = RefCell::new(BTreeSet::new());
    application.check_programs(|path| {
        asked.borrow_mut().insert(path.to_owned());
        true
    });
    let mut answers = BTreeMap::new();
    for path in asked.into_inner() {
        let answer = match dir {
            Some(dir) => rustix::fs::access(dir.join(&path), rustix::fs::Access::EXEC_OK).is_ok(),
            None => matches!(mode_of(driver, to, &path).await?, Mode::Executable | Mode::Installed),
        };
        answers.insert(path, answer);
    }
    let problems = application.check_programs(|path| answers.get(path).copied().unwrap_or(false));
    findings.extend(problems.into_iter().map(Finding::blocker));
    Ok(findings)
}

/// What a path will be in a worktree that is not made yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Executable,
    Plain,
    /// Not in git, but the install program may make it.
    Installed,
    Absent,
}

async fn mode_of(driver: &GitDriver, to: &Commit, path: &str) -> Result<Mode, Problem> {
    let entries = driver.trees.repository.entries(to, path).await?;
    Ok(match entries.first() {
        // A link may lead to a program.
        Some((mode, _)) if matches!(mode.as_str(), "100755" | "120000") => Mode::Executable,
        Some(_) => Mode::Plain,
        None if driver.trees.install.is_empty() => Mode::Absent,
        None => Mode::Installed,
    })
}
