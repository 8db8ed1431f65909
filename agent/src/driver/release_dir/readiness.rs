//! What `prepare` finds: can this host go to the wanted release right now, and come back?

use rollback_proto::problem::{Code, Problem};

use super::layout::{Layout, candidate_names};
use super::neither;
use crate::application::Application;
use crate::driver::link::Current;
use crate::driver::{Finding, Revision};
use crate::files;

/// Blocks; reads only.
pub fn findings(
    layout: &Layout,
    application: &Application,
    from: &Revision,
    to: &Revision,
) -> Result<Vec<Finding>, Problem> {
    // Before any path is made of them.
    candidate_names(from)?;
    candidate_names(to)?;
    let mut findings = Vec::new();
    match layout.current()? {
        Current::Release(_) => findings.extend(live_findings(layout, from, to)),
        Current::Directory if layout.adopt => {
            findings.push(Finding::warning(Problem::new(
                Code::BadLayout,
                format!(
                    "{} is a directory; it becomes a release and a link at the switch",
                    layout.current.display()
                ),
            )));
        }
        found @ (Current::Directory | Current::Missing | Current::Elsewhere(_)) => {
            findings.push(Finding::blocker(layout.bad_layout(&found)));
        }
    }
    findings.extend(target_findings(layout, application, to)?);
    for dir in [&layout.root, &layout.releases] {
        if !files::writable_by_us(dir) {
            findings.push(Finding::blocker(Problem::new(
                Code::FileFailed,
                format!("{} is not writable by the agent", dir.display()),
            )));
        }
    }
    Ok(findings)
}

/// Is what is live what the plan was made from?
fn live_findings(layout: &Layout, from: &Revision, to: &Revision) -> Option<Finding> {
    match layout.live() {
        Ok((live, _, _)) if live == *from || live == *to => None,
        Ok((live, _, _)) if live.version == from.version => Some(Finding::blocker(
            Problem::new(
                Code::RevisionDamaged,
                format!(
                    "{} was changed since the plan was made: undoing could not bring it back",
                    live.version
                ),
            )
            .remedy("plan again; exclude files that the application writes into its release directory"),
        )),
        Ok((live, _, _)) => Some(Finding::blocker(Problem::new(
            Code::WrongRevision,
            format!("{} is live, which is {}", live.version, neither(from, to)),
        ))),
        Err(problem) => Some(Finding::blocker(problem)),
    }
}

fn target_findings(layout: &Layout, application: &Application, to: &Revision) -> Result<Vec<Finding>, Problem> {
    let mut findings = Vec::new();
    let dir = layout.directory_of(to)?;
    let kept = match &dir {
        Some(_) => None,
        None => match layout.kept(to) {
            Ok(Some(pin)) => Some(pin.manifest),
            Ok(None) => return Ok(vec![Finding::blocker(layout.missing(to))]),
            Err(problem) => return Ok(vec![Finding::blocker(problem)]),
        },
    };
    if let Some(manifest) = &kept {
        findings.push(Finding::warning(
            Problem::new(
                Code::RevisionMissing,
                format!("{} is missing or changed in {}", to.version, layout.releases.display()),
            )
            .remedy("nothing: it will be restored from the vault"),
        ));
        let free = files::free_space(&layout.releases)?;
        if free < manifest.room() {
            findings.push(Finding::blocker(Problem::new(
                Code::DiskFull,
                format!(
                    "restoring {} needs {:.1} MB in {}, {:.1} MB are free",
                    to.version,
                    manifest.room() as f64 / 1e6,
                    layout.releases.display(),
                    free as f64 / 1e6
                ),
            )));
        }
    }
    let executable = |path: &str| match (&dir, &kept) {
        (Some(dir), _) => rustix::fs::access(dir.join(path), rustix::fs::Access::EXEC_OK).is_ok(),
        (None, Some(manifest)) => manifest.is_executable(path),
        (None, None) => false,
    };
    findings.extend(application.check_programs(executable).into_iter().map(Finding::blocker));
    for file in application.files_in_release() {
        let there = match (&dir, &kept) {
            (Some(dir), _) => dir.join(&file).is_file(),
            (None, Some(manifest)) => manifest.has(&file.to_string_lossy()),
            (None, None) => false,
        };
        if !there {
            findings.push(Finding::blocker(Problem::new(
                Code::ManagerFailed,
                format!(
                    "{} has no {}, which the process manager starts it from",
                    to.version,
                    file.display()
                ),
            )));
        }
    }
    Ok(findings)
}
