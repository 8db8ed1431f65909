//! Releases as git worktrees: one for each commit, with what is installed in it, and a link to the live one.
//!
//! ```text
//! /opt/zekka/repo.git    /opt/zekka/releases/v2.9.0/   /opt/zekka/releases/v3.0.0/   /opt/zekka/current -> releases/v3.0.0
//! ```
//!
//! ```toml
//! kind = "git"
//! root = "/opt/zekka"
//! repository = "/opt/zekka/repo.git"
//! install = ["npm", "ci", "--omit=dev"]
//! shared = [".env", "uploads"]            # links to /opt/zekka/shared/.env and …/uploads
//! ```
//!
//! | move | what it does |
//! |---|---|
//! | `retain` | a ref of ours keeps the live commit's objects; the vault keeps its name |
//! | `stage` | a fresh worktree beside the live one, and the install program in it |
//! | `stop`, `start` | the process manager's |
//! | `switch` | exchanges the link, and never touches the process |
//! | undo | the same moves, the other way, to the very directory that was left |
//!
//! Invariants:
//! - Nothing is ever checked out in place: `git checkout` silently overwrites ignored local files.
//! - A revision is a full commit id. Names are tags, resolved once, and a tag that moved since is a blocker.
//! - Worktrees that hold somebody's changes are neither used, nor overwritten, nor removed.
//!
//! Leaves out: turning a checkout in place into this layout (the message says how), submodules (the install program may
//! bring them), and removing worktrees of releases that are recorded: they are what makes a rollback fast.

mod moves;
mod program;
mod readiness;
mod repository;
mod staging;
mod trees;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;

use self::program::Git;
use self::repository::{Commit, Repository, TagTemplate};
use self::trees::{Pin, Trees};
use super::{Action, Done, Driver, DriverInfo, Failure, Finding, Observation, Probe, Retained, Revision, Role};
use crate::application::{Application, ProcessConfig};
use crate::check::HealthCheck;
use crate::files::{stays_beneath, vault_problem};
use crate::step::StepContext;
use crate::vault::Vault;

const KIND: &str = "git";

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitConfig {
    /// The component's directory, absolute.
    pub root: PathBuf,
    /// A clone on this host, bare or not, absolute. Nothing is ever checked out in it.
    pub repository: PathBuf,
    /// Directory of worktrees, beneath `root`.
    #[serde(default = "default_releases")]
    pub releases: PathBuf,
    /// The link to the live worktree, beneath `root`.
    #[serde(default = "default_current")]
    pub current: PathBuf,
    /// The tag of a release: `{release}`, `release-{release}`, `app/{release}`.
    #[serde(default = "default_tag")]
    pub tag: String,
    /// Runs in every fresh worktree, with its arguments. Relative paths begin there.
    #[serde(default)]
    pub install: Vec<String>,
    /// Its environment, besides PATH and LC_ALL, which may be set here, too.
    #[serde(default)]
    pub install_env: BTreeMap<String, String>,
    /// Paths that in every worktree are links to `<root>/shared/<path>`.
    #[serde(default)]
    pub shared: Vec<String>,
    /// Fetch a release's tag from `remote` when its commit is missing.
    #[serde(default)]
    pub fetch: bool,
    #[serde(default = "default_remote")]
    pub remote: String,
    /// The user to whom repository and releases belong: git and the install program run as this user. Default: the
    /// agent's own.
    pub owner: Option<String>,
    /// Components of this host whose content the application reads when it starts.
    #[serde(default)]
    pub reads: BTreeSet<String>,
    /// How the application is started and stopped. Without it, only the link is switched.
    pub process: Option<ProcessConfig>,
    pub health: Option<HealthCheck>,
}

fn default_releases() -> PathBuf {
    "releases".into()
}

fn default_current() -> PathBuf {
    "current".into()
}

fn default_tag() -> String {
    "{release}".into()
}

fn default_remote() -> String {
    "origin".into()
}

#[derive(Clone, Debug)]
pub struct GitDriver {
    trees: Arc<Trees>,
    application: Application,
    install_env: BTreeMap<String, String>,
    fetch: bool,
    reads: BTreeSet<String>,
}

impl GitDriver {
    pub fn new(component: &str, config: GitConfig, vault: Arc<Vault>) -> Result<Self, Problem> {
        check_name("component", component)?;
        let bad = |why: String| Problem::new(Code::BadConfig, format!("component {component}: {why}"));
        for (key, path) in [("root", &config.root), ("repository", &config.repository)] {
            if !path.is_absolute() || path.parent().is_none() {
                return Err(bad(format!("{key} {} must be an absolute directory", path.display())));
            }
        }
        let shared = config.shared.iter().map(Path::new);
        for path in [config.releases.as_path(), config.current.as_path()]
            .into_iter()
            .chain(shared)
        {
            if !stays_beneath(path) {
                return Err(bad(format!("{} must be a path beneath root", path.display())));
            }
        }
        if config.install.first().is_some_and(String::is_empty) {
            return Err(bad("install begins with an empty program".into()));
        }
        if let Some(owner) = &config.owner {
            check_name("user", owner)?;
        }
        for name in &config.reads {
            check_name("component", name)?;
        }
        let tags = TagTemplate::new(&config.tag).map_err(bad)?;
        let git = Git::new(config.owner);
        let repository = Repository::new(component, git, config.repository, config.remote, tags).map_err(bad)?;
        let trees = Trees {
            component: component.to_owned(),
            releases: config.root.join(config.releases),
            current: config.root.join(config.current),
            root: config.root,
            repository,
            shared: config.shared,
            install: config.install,
            vault,
        };
        let application = Application::new(config.process, config.health, &trees.root, &trees.current).map_err(bad)?;
        Ok(Self {
            trees: Arc::new(trees),
            application,
            install_env: config.install_env,
            fetch: config.fetch,
            reads: config.reads,
        })
    }

    /// The tag by which a revision was recorded, or by which its name would be looked for.
    fn tag_of(&self, revision: &Revision, commit: &Commit) -> Result<String, Problem> {
        let recorded = self.trees.pin(commit)?.and_then(|pin| pin.tag);
        recorded.map_or_else(|| self.trees.repository.tags.reference(&revision.version), Ok)
    }

    /// The ref first: whoever finds the pin finds the objects.
    async fn keep(&self, pin: Pin) -> Result<Retained, Problem> {
        self.trees.repository.keep(&pin.commit).await?;
        let digest = pin.commit.digest();
        self.trees
            .vault
            .pin(&self.trees.component, &digest, &pin)
            .map_err(|e| vault_problem(&e))?;
        let known = pin.tag.unwrap_or_else(|| "no tag".into());
        Ok(Retained {
            summary: format!(
                "kept in {} by a ref of ours; {known}",
                self.trees.repository.path.display()
            ),
            revision: Revision {
                version: pin.version,
                digest,
            },
        })
    }

    /// The commit that the release's tag leads to, fetched when that is allowed and the tag is not here.
    async fn find(&self, release: &str) -> Result<(String, Commit), Problem> {
        let repository = &self.trees.repository;
        let tag = repository.tags.reference(release)?;
        let mut found = repository.commit_at(&tag).await?;
        let mut remote = String::new();
        if found.is_none() && self.fetch {
            let limit = std::time::Duration::from_secs(60);
            match repository.fetch_tag(&tag, limit).await {
                Ok(()) => found = repository.commit_at(&tag).await?,
                Err(problem) => remote = format!("; {}", problem.message),
            }
        }
        match found {
            Some(commit) => Ok((tag, commit)),
            None => Err(Problem::new(
                Code::Unresolved,
                format!(
                    "{} has no {tag} ({}){remote}; branches are not looked at, they move",
                    repository.path.display(),
                    repository.newest_tags().await?
                ),
            )),
        }
    }
}

#[async_trait]
impl Driver for GitDriver {
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
        let live = self.trees.live().await?;
        let (health, mut detail) = self.application.health(&live.revision.version).await;
        let changes = self.trees.changes(&live.dir).await?;
        if !changes.paths.is_empty() {
            detail = format!("{detail}; {}", changes.summary());
        }
        Ok(Observation {
            revision: live.revision,
            health,
            detail,
            out: BTreeSet::new(),
        })
    }

    async fn retain(&self, release: &str) -> Result<Retained, Problem> {
        check_name("release", release)?;
        let trees = &self.trees;
        let live = trees.live().await?;
        if !trees.repository.has(&live.commit).await? {
            return Err(Problem::new(
                Code::GitUnfit,
                format!(
                    "{} is at {}, which {} does not have",
                    live.dir.display(),
                    live.commit.short(),
                    trees.repository.path.display()
                ),
            )
            .remedy("make releases as worktrees of the configured repository, or push their commits there"));
        }
        let pin = match trees.pin(&live.commit)? {
            Some(pin) => pin,
            None => {
                let tagged = trees.repository.releases_at(&live.commit).await?;
                let version = match tagged.iter().any(|name| name == release) || tagged.is_empty() {
                    // A commit without a tag has no name of its own.
                    true => release.to_owned(),
                    false => live.revision.version,
                };
                let tag = tagged
                    .contains(&version)
                    .then(|| trees.repository.tags.reference(&version))
                    .transpose()?;
                Pin {
                    version,
                    commit: live.commit.clone(),
                    tag,
                }
            }
        };
        if trees.note(&live.name)?.is_none_or(|note| note.commit != live.commit) {
            let note = trees.complete_note(&live.name, &live.commit, None, None).await?;
            trees.write_note(&note)?;
        }
        self.keep(pin).await
    }

    async fn resolve(&self, release: &str) -> Result<Retained, Problem> {
        let (tag, commit) = self.find(release).await?;
        let missing = self.trees.repository.missing_objects(&commit).await?;
        if let Some(first) = missing.first() {
            return Err(Problem::new(
                Code::GitUnfit,
                format!(
                    "{tag} is there, but {} of its objects are missing, {first} for one",
                    missing.len()
                ),
            ));
        }
        self.keep(Pin {
            version: release.to_owned(),
            commit,
            tag: Some(tag),
        })
        .await
    }

    async fn forget(&self, revision: &Revision, _kept: &[Revision]) -> Result<String, Problem> {
        staging::forget(&self.trees, &Commit::from_digest(&revision.digest)?).await
    }

    async fn prepare(&self, step: &StepContext) -> Vec<Finding> {
        let mut findings = step
            .operation("look_at_repository", readiness::findings(self, step))
            .await
            .unwrap_or_else(|problem| vec![Finding::blocker(problem)]);
        findings.extend(step.operation("ask_process_manager", self.application.ready()).await);
        findings
    }

    async fn stage(&self, step: &StepContext) -> Result<Done, Failure> {
        Ok(Done::new(staging::stage(self, step).await?))
    }

    async fn discard(&self, step: &StepContext) -> Result<Done, Failure> {
        let discarding = staging::discard(&self.trees);
        Ok(Done::new(step.operation("remove_staged", discarding).await?))
    }

    async fn switch(&self, step: &StepContext) -> Result<Done, Failure> {
        let seen = step.operation("switch_link", moves::switch(&self.trees, step)).await?;
        let summary = format!("{} points to {}", self.trees.current.display(), seen.version);
        Ok(Done::at(seen, summary))
    }

    async fn stop(&self, step: &StepContext) -> Result<Done, Failure> {
        self.application.stop(KIND, step).await
    }

    async fn start(&self, step: &StepContext) -> Result<Done, Failure> {
        let live = step.operation("observe", self.trees.live()).await?;
        self.application.start(KIND, step, live.revision, &live.dir).await
    }

    async fn verify(&self, step: &StepContext) -> Result<Done, Failure> {
        let live = step.operation("observe", self.trees.live()).await?;
        self.application.verify(step, live.revision, &live.dir).await
    }

    async fn finish(&self, step: &StepContext) -> Result<Done, Failure> {
        step.operation("tidy_up", staging::settle(&self.trees)).await?;
        Ok(Done::new("nothing left behind"))
    }

    async fn probe(&self, step: &StepContext) -> Probe {
        moves::probe(self, step).await
    }
}
