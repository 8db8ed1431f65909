//! Releases in directories of their own, with a link to the live one:
//!
//! ```text
//! /opt/zekka/releases/v2.9.0/   /opt/zekka/releases/v3.0.0/   /opt/zekka/current -> releases/v3.0.0
//! ```
//!
//! | move | what it does |
//! |---|---|
//! | `retain` | the live tree goes into the vault, file by file, under its digest |
//! | `resolve` | a directory or an archive of that name goes into the vault, from `releases`, `backups`, `artifacts` |
//! | `stage` | the wanted directory is completed from the vault, beside the live one |
//! | `stop`, `start` | run the configured vectors; end when `/proc` and the health check agree |
//! | `switch` | exchanges the link, and never touches the process |
//! | undo | the same moves, the other way |
//!
//! Invariants:
//! - A release directory is never written to once it has its name.
//! - A real directory at `current` is never touched, unless the configuration says `adopt`.
//! - Files that the application writes do not belong into a release directory; those that are there all the same are
//!   named in `exclude`. Changing `exclude` changes the digests of all releases: record them again.

pub mod archive;
pub mod layout;
pub mod manifest;
mod moves;
mod readiness;
mod resolve;
pub mod staging;
pub mod walk;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;

use self::archive::{Limits, Stop};
use self::layout::Layout;
use self::manifest::Exclude;
use super::{Action, Done, Driver, DriverInfo, Failure, Finding, Observation, Probe, Retained, Revision, Role};
use crate::application::{Application, ProcessConfig};
use crate::check::HealthCheck;
use crate::files::{blocking, stays_beneath};
use crate::step::StepContext;
use crate::vault::Vault;

const KIND: &str = "release-dir";

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseDirConfig {
    /// The component's directory, absolute.
    pub root: PathBuf,
    /// Directory of releases, beneath `root`.
    #[serde(default = "default_releases")]
    pub releases: PathBuf,
    /// The link to the live release, beneath `root`.
    #[serde(default = "default_current")]
    pub current: PathBuf,
    /// Components of this host whose content the application reads when it starts.
    #[serde(default)]
    pub reads: BTreeSet<String>,
    /// How the application is started and stopped. Without it, only the link is switched.
    pub process: Option<ProcessConfig>,
    pub health: Option<HealthCheck>,
    /// Paths that do not belong to a release; see [`Exclude`].
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Directories in which releases that were never recorded are looked for, as directories or archives. Beneath
    /// `root`, or absolute.
    #[serde(default = "default_sources")]
    pub sources: Vec<PathBuf>,
    /// What such an archive may contain.
    #[serde(default)]
    pub limits: Limits,
    /// Turn a real directory at `current` into a release and a link at the first switch.
    #[serde(default)]
    pub adopt: bool,
}

fn default_releases() -> PathBuf {
    "releases".into()
}

fn default_current() -> PathBuf {
    "current".into()
}

fn default_sources() -> Vec<PathBuf> {
    ["releases", "backups", "artifacts"].map(PathBuf::from).to_vec()
}

#[derive(Clone, Debug)]
pub struct ReleaseDirDriver {
    layout: Arc<Layout>,
    application: Application,
    reads: BTreeSet<String>,
}

impl ReleaseDirDriver {
    pub fn new(component: &str, config: ReleaseDirConfig, vault: Arc<Vault>) -> Result<Self, Problem> {
        check_name("component", component)?;
        let bad = |why: String| Problem::new(Code::BadConfig, format!("component {component}: {why}"));
        if !config.root.is_absolute() || config.root.parent().is_none() {
            return Err(bad(format!(
                "root {} must be an absolute directory",
                config.root.display()
            )));
        }
        for path in [&config.releases, &config.current] {
            if !stays_beneath(path) {
                return Err(bad(format!("{} must be a path beneath root", path.display())));
            }
        }
        for path in config.sources.iter().filter(|path| path.is_relative()) {
            if !stays_beneath(path) {
                return Err(bad(format!(
                    "{} must be a path beneath root, or absolute",
                    path.display()
                )));
            }
        }
        for name in &config.reads {
            check_name("component", name)?;
        }
        let exclude = Exclude::new(&config.exclude).map_err(bad)?;
        let mut layout = Layout::new(
            component,
            config.root,
            &config.releases,
            &config.current,
            exclude,
            vault,
        );
        layout.adopt = config.adopt;
        layout.sources = config.sources.iter().map(|source| layout.root.join(source)).collect();
        layout.limits = config.limits;
        let application =
            Application::new(config.process, config.health, &layout.root, &layout.current).map_err(bad)?;
        Ok(Self {
            layout: Arc::new(layout),
            application,
            reads: config.reads,
        })
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layout) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let layout = Arc::clone(&self.layout);
        blocking(move || work(&layout)).await
    }

    /// What is live, and where.
    async fn live(&self) -> Result<(Revision, PathBuf), Problem> {
        self.on_disk(|layout| layout.live().map(|(revision, dir, _)| (revision, dir)))
            .await
    }
}

#[async_trait]
impl Driver for ReleaseDirDriver {
    fn info(&self) -> DriverInfo {
        let mut capabilities = vec![
            Action::Prepare,
            Action::Stage,
            Action::Discard,
            Action::Switch,
            Action::Verify,
            Action::Finish,
        ];
        capabilities.extend(self.application.capabilities());
        DriverInfo {
            kind: KIND,
            role: Role::App,
            capabilities,
            reads: self.reads.clone(),
            backends: BTreeSet::new(),
            restores: false,
        }
    }

    async fn observe(&self) -> Result<Observation, Problem> {
        let (revision, _) = self.live().await?;
        let (health, detail) = self.application.health(&revision.version).await;
        Ok(Observation {
            revision,
            health,
            detail,
            out: BTreeSet::new(),
        })
    }

    async fn retain(&self, release: &str) -> Result<Retained, Problem> {
        check_name("release", release)?;
        let (revision, manifest) = self.on_disk(Layout::keep_live).await?;
        Ok(Retained {
            revision,
            summary: format!("vault, {}", manifest.summary()),
        })
    }

    async fn resolve(&self, release: &str) -> Result<Retained, Problem> {
        // The work goes on in a thread of its own when the caller gives up; it must not go on for long.
        let stop = StopOnDrop(Stop::default());
        let (release, stopped) = (release.to_owned(), stop.0.clone());
        self.on_disk(move |layout| layout.resolve(&release, &stopped)).await
    }

    async fn forget(&self, revision: &Revision, _kept: &[Revision]) -> Result<String, Problem> {
        let revision = revision.clone();
        self.on_disk(move |layout| layout.forget(&revision)).await
    }

    async fn prepare(&self, step: &StepContext) -> Vec<Finding> {
        let (from, to, application) = (step.from.clone(), step.to.clone(), self.application.clone());
        let work = self.on_disk(move |layout| readiness::findings(layout, &application, &from, &to));
        let mut findings = step
            .operation("look_at_releases", work)
            .await
            .unwrap_or_else(|problem| vec![Finding::blocker(problem)]);
        findings.extend(step.operation("ask_process_manager", self.application.ready()).await);
        findings
    }

    async fn stage(&self, step: &StepContext) -> Result<Done, Failure> {
        let (to, id, until) = (step.to.clone(), step.rollback_id.clone(), step.deadline);
        let staged = step
            .operation(
                "complete_release",
                self.on_disk(move |l| l.make_complete(&to, &id, until)),
            )
            .await?;
        Ok(Done::new(match staged {
            staging::Staged::AlreadyThere(dir) => format!("{} is complete", dir.display()),
            staging::Staged::Restored { dir, moved_aside: None } => {
                format!("{} restored from the vault", dir.display())
            }
            staging::Staged::Restored {
                dir,
                moved_aside: Some(aside),
            } => {
                format!(
                    "{} restored from the vault; what was there is kept as {aside}",
                    dir.display()
                )
            }
        }))
    }

    async fn discard(&self, step: &StepContext) -> Result<Done, Failure> {
        let removed = step.operation("remove_staged", self.on_disk(Layout::discard)).await?;
        Ok(Done::new(if removed == 0 {
            "nothing staged"
        } else {
            "the staged release was removed"
        }))
    }

    async fn switch(&self, step: &StepContext) -> Result<Done, Failure> {
        let (from, to, id, until) = (
            step.from.clone(),
            step.to.clone(),
            step.rollback_id.clone(),
            step.deadline,
        );
        let seen = step
            .operation("switch_link", self.on_disk(move |l| l.switch(&from, &to, &id, until)))
            .await?;
        let summary = format!("{} points to {}", self.layout.current.display(), seen.version);
        Ok(Done::at(seen, summary))
    }

    async fn stop(&self, step: &StepContext) -> Result<Done, Failure> {
        self.application.stop(KIND, step).await
    }

    async fn start(&self, step: &StepContext) -> Result<Done, Failure> {
        let (live, dir) = step.operation("observe", self.live()).await?;
        self.application.start(KIND, step, live, &dir).await
    }

    async fn verify(&self, step: &StepContext) -> Result<Done, Failure> {
        let (live, dir) = step.operation("observe", self.live()).await?;
        self.application.verify(step, live, &dir).await
    }

    async fn finish(&self, step: &StepContext) -> Result<Done, Failure> {
        let aside = step.operation("tidy_up", self.on_disk(Layout::settle)).await?;
        Ok(Done::new(if aside.is_empty() {
            "nothing left behind".to_owned()
        } else {
            format!("kept, because it is not ours to delete: {}", aside.join(", "))
        }))
    }

    async fn probe(&self, step: &StepContext) -> Probe {
        moves::probe(self, step).await
    }
}

struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Two revisions of one plan, for messages.
fn neither(from: &Revision, to: &Revision) -> String {
    format!("neither {} nor {}", from.version, to.version)
}
