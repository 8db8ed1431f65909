//! Env files: one file with `NAME=value` lines that an application reads when it starts.
//!
//! | move | what it does |
//! |---|---|
//! | `retain`, `snapshot` | the live content goes into the vault, under its digest |
//! | `resolve` | the same, from `<path>.v2.9.0`, `<path>-v2.9.0` or `<path>.backup` |
//! | `stage` | the wanted content is written beside the live file, complete and synced |
//! | `switch` | a rename puts it in place; mode and owner stay those of the live file |
//! | undo | the same `switch`, the other way: content comes from the vault when nothing is staged |
//!
//! Invariants:
//! - Values never leave this host, nor appear in a message, a log or a trace: digests and *names* of variables do.
//! - Content that the vault does not hold is never overwritten.
//! - A file that somebody changed since the plan was made is not touched.
//!
//! Left out: making the content effective. The application that `reads` this component is stopped before the switch
//! and started afterwards, and its driver looks into the environment of the process.

pub mod variables;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};

use self::variables::{Variables, listed};
use super::{Action, Done, Driver, DriverInfo, Failure, Finding, Health, Observation, Probe, Retained, Revision, Role};
use crate::files::{self, Attributes, FileState, blocking, vault_problem};
use crate::step::StepContext;
use crate::vault::Vault;

const KIND: &str = "env-file";

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvFileConfig {
    /// The file, absolute. Not a symbolic link.
    pub path: PathBuf,
}

/// What the vault keeps for one content.
#[derive(Serialize, Deserialize)]
struct Pin {
    /// The release under which this content was recorded first; `None` when it was only ever a snapshot.
    release: Option<String>,
    object: String,
}

#[derive(Clone, Debug)]
pub struct EnvFileDriver {
    component: String,
    path: PathBuf,
    vault: Arc<Vault>,
}

impl EnvFileDriver {
    pub fn new(component: &str, config: EnvFileConfig, vault: Arc<Vault>) -> Result<Self, Problem> {
        check_name("component", component)?;
        if !config.path.is_absolute() || config.path.file_name().is_none() {
            return Err(Problem::new(
                Code::BadConfig,
                format!(
                    "component {component}: path {} must be an absolute file name",
                    config.path.display()
                ),
            ));
        }
        Ok(Self {
            component: component.to_owned(),
            path: config.path,
            vault,
        })
    }

    /// The live file. Its absence is an error: there is nothing that a revision could be made of.
    fn live(&self) -> Result<FileState, Problem> {
        files::read(&self.path)?
            .ok_or_else(|| Problem::new(Code::FileFailed, format!("{} does not exist", self.path.display())))
    }

    fn pin_of(&self, digest: &str) -> Result<Option<Pin>, Problem> {
        self.vault
            .pinned(&self.component, digest)
            .map_err(|e| vault_problem(&e))
    }

    fn revision(&self, content: &[u8]) -> Result<Revision, Problem> {
        let digest = digest(content);
        let release = self.pin_of(&digest)?.and_then(|pin| pin.release);
        Ok(Revision {
            version: release.unwrap_or_else(|| short(&digest)),
            digest,
        })
    }

    /// Puts content into the vault. A name that was given before stays: what is told apart is content.
    fn keep(&self, content: &[u8], release: Option<&str>) -> Result<Revision, Problem> {
        let digest = digest(content);
        let _keeping = self.vault.keeping().map_err(|e| vault_problem(&e))?;
        let known = self.pin_of(&digest)?;
        let object = self.vault.put_bytes(content).map_err(|e| vault_problem(&e))?;
        let known_release = known.as_ref().and_then(|pin| pin.release.clone());
        let release = known_release.clone().or_else(|| release.map(str::to_owned));
        if known.is_none() || known_release != release {
            let pin = Pin {
                release: release.clone(),
                object,
            };
            self.vault
                .pin(&self.component, &digest, &pin)
                .map_err(|e| vault_problem(&e))?;
        }
        Ok(Revision {
            version: release.unwrap_or_else(|| short(&digest)),
            digest,
        })
    }

    /// Content of a revision, from the vault.
    fn kept(&self, revision: &Revision) -> Result<Vec<u8>, Problem> {
        let missing = || {
            Problem::new(
                Code::RevisionMissing,
                format!(
                    "{} of {} ({}) is not in the vault",
                    revision.version,
                    self.path.display(),
                    revision.digest
                ),
            )
            .remedy("put the file of that release in place by hand, or record the release while it is live")
        };
        let pin = self.pin_of(&revision.digest)?.ok_or_else(missing)?;
        if !self.vault.has(&pin.object) {
            return Err(missing());
        }
        let content = self.vault.get(&pin.object).map_err(|e| vault_problem(&e))?;
        if digest(&content) != revision.digest {
            return Err(Problem::new(
                Code::RevisionDamaged,
                format!(
                    "the vault's content for {} of {} has another digest",
                    revision.version,
                    self.path.display()
                ),
            ));
        }
        Ok(content)
    }

    /// Files beside the live one that may hold the content of a release, the best first. The last one names none.
    fn places_of(&self, release: &str) -> [(PathBuf, bool); 3] {
        let beside = |end: String| {
            let mut name = self.path.file_name().unwrap_or_default().to_owned();
            name.push(end);
            self.path.with_file_name(name)
        };
        [
            (beside(format!(".{release}")), true),
            (beside(format!("-{release}")), true),
            (beside(".backup".into()), false),
        ]
    }

    fn resolve_now(&self, release: &str) -> Result<Retained, Problem> {
        let places = self.places_of(release);
        // Whoever can put a file there would choose what the application runs with.
        if files::writable_by_others(self.parent())? {
            return Err(Problem::new(
                Code::BadLayout,
                format!(
                    "{} is writable by everybody; nothing there is believed",
                    self.parent().display()
                ),
            ));
        }
        for (path, named) in &places {
            let Some(found) = files::read(path)? else { continue };
            // A guess gives no lasting name: the next release that is looked for may find the same file.
            let kept = self.keep(&found.content, named.then_some(release))?;
            let revision = Revision {
                version: release.to_owned(),
                ..kept
            };
            let mut summary = format!("vault, {} bytes from {}", found.content.len(), path.display());
            if !named {
                summary = format!("{summary}, which names no release: it is taken for {release}'s");
            }
            if files::read(&self.path)?.is_some_and(|live| live.content == found.content) {
                summary = format!("{summary}; the live file is the same");
            }
            return Ok(Retained { revision, summary });
        }
        let looked: Vec<String> = places.iter().map(|(path, _)| path.display().to_string()).collect();
        Err(Problem::new(
            Code::Unresolved,
            format!(
                "{release} of {}: there is none of {}",
                self.component,
                looked.join(", ")
            ),
        ))
    }

    fn staged_path(&self, id: &str) -> PathBuf {
        files::beside(&self.path, id)
    }

    /// Is the live file where this step begins or ends? Anything else was changed by somebody else.
    fn expect_known(&self, live: &FileState, step: &Step) -> Result<(), Problem> {
        let found = digest(&live.content);
        if found == step.from.digest || found == step.to.digest {
            return Ok(());
        }
        Err(Problem::new(
            Code::WrongRevision,
            format!(
                "{} is neither at {} nor at {}: it was changed since the plan was made",
                self.path.display(),
                step.from.version,
                step.to.version
            ),
        ))
    }

    fn prepare_now(&self, step: &Step) -> Result<Vec<Finding>, Problem> {
        let mut findings = Vec::new();
        let live = self.live()?;
        if let Err(stale) = self.expect_known(&live, step) {
            findings.push(Finding::blocker(stale));
        }
        match self.kept(&step.to) {
            Ok(wanted) => findings.extend(self.differing_names(&live, &wanted)),
            Err(_) if digest(&live.content) == step.to.digest => {}
            Err(problem) => findings.push(Finding::blocker(problem)),
        }
        let dir = self.parent();
        if files::writable_by_others(dir)? {
            findings.push(Finding::blocker(Problem::new(
                Code::BadLayout,
                format!(
                    "{} is writable by everybody; a file of secrets is not replaced there",
                    dir.display()
                ),
            )));
        }
        if !files::writable_by_us(dir) {
            findings.push(Finding::blocker(Problem::new(
                Code::FileFailed,
                format!("{} is not writable by the agent", dir.display()),
            )));
        }
        // Twice: staged beside, and what the vault keeps.
        let room = 2 * live.content.len().max(4096) as u64;
        if files::free_space(dir)? < room {
            findings.push(Finding::blocker(Problem::new(
                Code::DiskFull,
                format!("{}: no room", dir.display()),
            )));
        }
        Ok(findings)
    }

    /// What will change, by name.
    fn differing_names(&self, live: &FileState, wanted: &[u8]) -> Option<Finding> {
        let now = Variables::parse(&String::from_utf8_lossy(&live.content));
        let then = Variables::parse(&String::from_utf8_lossy(wanted));
        let names = now.names_that_differ(&then);
        (!names.is_empty()).then(|| {
            let message = format!(
                "{}: these variables will change: {}",
                self.path.display(),
                listed(&names)
            );
            Finding::ok(Problem::new(Code::WrongRevision, message).remedy(""))
        })
    }

    fn parent(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Writes the wanted content beside the live file, unless it is there already.
    fn stage_now(&self, step: &Step) -> Result<PathBuf, Problem> {
        let live = self.live()?;
        self.expect_known(&live, step)?;
        // The way back must exist before the way forward is built.
        self.keep(&live.content, None)?;
        let staged = self.staged_path(&step.id);
        files::remove_beside(&self.path, Some(&staged))?;
        self.write_beside(&staged, &self.kept(&step.to)?, live.attributes)?;
        Ok(staged)
    }

    /// Leaves an already complete staged file alone, so that `switch` after `stage` only renames.
    fn write_beside(&self, staged: &Path, content: &[u8], attributes: Attributes) -> Result<(), Problem> {
        match files::read(staged) {
            Ok(Some(found)) if found.content == content && found.attributes == attributes => Ok(()),
            Ok(_) | Err(_) => files::write_new(staged, content, attributes),
        }
    }

    fn switch_now(&self, step: &Step) -> Result<Revision, Problem> {
        let live = self.live()?;
        self.expect_known(&live, step)?;
        if digest(&live.content) != step.to.digest {
            if files::writable_by_others(self.parent())? {
                return Err(Problem::new(
                    Code::BadLayout,
                    format!("{} is writable by everybody", self.parent().display()),
                ));
            }
            self.keep(&live.content, None)?;
            let staged = self.staged_path(&step.id);
            self.write_beside(&staged, &self.kept(&step.to)?, live.attributes)?;
            files::publish(&staged, &self.path)?;
        }
        let seen = self.live()?;
        let revision = self.revision(&seen.content)?;
        if revision != step.to || seen.attributes != live.attributes {
            return Err(Problem::new(
                Code::WrongRevision,
                format!("{} was changed by somebody else during the switch", self.path.display()),
            ));
        }
        // What has no name yet gets one when it becomes live as a release.
        let name = (step.to.version != short(&revision.digest)).then_some(step.to.version.as_str());
        self.keep(&seen.content, name)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let driver = self.clone();
        blocking(move || work(&driver)).await
    }
}

/// What the blocking parts need of a step.
#[derive(Clone)]
struct Step {
    id: String,
    from: Revision,
    to: Revision,
}

impl Step {
    fn of(step: &StepContext) -> Result<Self, Problem> {
        check_name("rollback", &step.rollback_id)?;
        Ok(Self {
            id: step.rollback_id.clone(),
            from: step.from.clone(),
            to: step.to.clone(),
        })
    }
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", files::sha256_hex(content))
}

/// The beginning of a digest, for people, where no release name is known.
pub(crate) fn short(digest: &str) -> String {
    digest
        .strip_prefix("sha256:")
        .unwrap_or(digest)
        .chars()
        .take(12)
        .collect()
}

#[async_trait]
impl Driver for EnvFileDriver {
    fn info(&self) -> DriverInfo {
        DriverInfo {
            kind: KIND,
            role: Role::Config,
            capabilities: vec![
                Action::Prepare,
                Action::Stage,
                Action::Discard,
                Action::Snapshot,
                Action::Switch,
                Action::Verify,
                Action::Finish,
            ],
            reads: BTreeSet::new(),
            backends: BTreeSet::new(),
            restores: false,
        }
    }

    async fn observe(&self) -> Result<Observation, Problem> {
        self.run(|d| {
            let live = d.live()?;
            let count = Variables::parse(&String::from_utf8_lossy(&live.content)).iter().count();
            Ok(Observation {
                revision: d.revision(&live.content)?,
                health: Health::Unknown,
                detail: format!("{count} variables, mode {:04o}", live.attributes.mode),
                out: BTreeSet::new(),
            })
        })
        .await
    }

    async fn retain(&self, release: &str) -> Result<Retained, Problem> {
        check_name("release", release)?;
        let release = release.to_owned();
        self.run(move |d| {
            let live = d.live()?;
            let revision = d.keep(&live.content, Some(&release))?;
            Ok(Retained {
                revision,
                summary: format!("vault, {} bytes", live.content.len()),
            })
        })
        .await
    }

    async fn resolve(&self, release: &str) -> Result<Retained, Problem> {
        check_name("release", release)?;
        let release = release.to_owned();
        self.run(move |d| d.resolve_now(&release)).await
    }

    async fn forget(&self, revision: &Revision, _kept: &[Revision]) -> Result<String, Problem> {
        let digest = revision.digest.clone();
        self.run(move |d| files::let_go(&d.vault, &d.component, &digest)).await
    }

    async fn prepare(&self, step: &StepContext) -> Vec<Finding> {
        let found = match Step::of(step) {
            Ok(s) => {
                step.operation("look_at_file", self.run(move |d| d.prepare_now(&s)))
                    .await
            }
            Err(problem) => Err(problem),
        };
        found.unwrap_or_else(|problem| vec![Finding::blocker(problem)])
    }

    async fn stage(&self, step: &StepContext) -> Result<Done, Failure> {
        let s = Step::of(step)?;
        step.operation("write_beside", self.run(move |d| d.stage_now(&s)))
            .await?;
        Ok(Done::new(format!("{} staged beside the live file", step.to.version)))
    }

    async fn discard(&self, step: &StepContext) -> Result<Done, Failure> {
        // Also an earlier rollback's: no two run on one component, so nobody needs it any more.
        step.operation("remove_staged", self.run(move |d| files::remove_beside(&d.path, None)))
            .await?;
        Ok(Done::new("nothing staged"))
    }

    async fn switch(&self, step: &StepContext) -> Result<Done, Failure> {
        let s = Step::of(step)?;
        let seen = step.operation("rename", self.run(move |d| d.switch_now(&s))).await?;
        let summary = format!("{} is at {}", self.path.display(), seen.version);
        Ok(Done::at(seen, summary))
    }

    async fn snapshot(&self, step: &StepContext) -> Result<Done, Failure> {
        let work = self.run(|d| {
            let live = d.live()?;
            d.keep(&live.content, None)
        });
        let revision = step.operation("vault_put", work).await?;
        let summary = format!("{} is in the vault", revision.version);
        Ok(Done::at(revision, summary))
    }

    async fn verify(&self, step: &StepContext) -> Result<Done, Failure> {
        let seen = step.operation("observe", self.observe()).await?;
        Ok(Done::at(seen.revision, seen.detail))
    }

    async fn finish(&self, step: &StepContext) -> Result<Done, Failure> {
        self.discard(step).await
    }

    async fn probe(&self, step: &StepContext) -> Probe {
        let seen = match self.observe().await {
            Ok(seen) => seen.revision,
            Err(problem) => return Probe::Indeterminate(problem),
        };
        match step.action {
            Action::Switch if seen == step.to => Probe::Applied(Done::at(seen, "the file is at the wanted content")),
            Action::Switch if seen != step.from => Probe::Indeterminate(Problem::new(
                Code::WrongRevision,
                format!(
                    "{} is neither at {} nor at {}",
                    self.path.display(),
                    step.from.version,
                    step.to.version
                ),
            )),
            Action::Switch
            | Action::Prepare
            | Action::Stage
            | Action::Discard
            | Action::Snapshot
            | Action::Verify
            | Action::Finish
            | Action::Unspecified
            | Action::Drain
            | Action::Resume
            | Action::Stop
            | Action::Start => Probe::Repeatable("every move of an env file may be repeated".into()),
        }
    }
}
