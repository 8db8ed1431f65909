//! Sites of an nginx that runs on this host.
//!
//! | move | what it does |
//! |---|---|
//! | `retain`, `snapshot` | the managed files go into the vault |
//! | `stage` | `nginx -t` on a copy of the configuration that has the wanted files |
//! | `switch` | write, `nginx -t`, reload, and wait until new workers serve it |
//! | `drain`, `resume` | the same, with a managed include that answers 503 with Retry-After, or does not |
//! | … of a backend | the same, with its servers `down` in the include of its upstream, or not |
//! | `resolve` | finds `zekka.v2.9.0`, `zekka-v2.9.0` or `zekka.backup` beside the managed files |
//! | undo | the same moves, the other way |
//!
//! Every managed server block includes the managed include, before its locations:
//! `include /etc/nginx/rollbackctl/zekka.inc;`. The file must exist (`touch` it once); from then on it is the driver's.
//! An upstream whose backends are drained one by one has an include in the place of its server lines; see [`upstream`].
//!
//! Invariants:
//! - A reload that nginx did not take is noticed, and the old configuration is put back and served again.
//! - Files that somebody changed since the plan was made are not overwritten.
//! - Whether the site or a backend is drained survives a switch and a restart of the agent: it is written in the includes.
//! - The last backend of an upstream that gets requests is never drained.

mod apply;
mod by_name;
pub mod config;
pub mod include;
mod link;
pub mod master;
mod readiness;
pub mod rehearse;
pub mod site;
mod traffic;
pub mod upstream;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};

use self::apply::Served;
pub use self::config::NginxConfig;
use self::include::{Include, Template};
use self::master::Master;
use self::rehearse::Tester;
use self::site::{Files, Seen, Site};
use super::env_file::short;
use super::{Action, Done, Driver, DriverInfo, Failure, Finding, Health, Observation, Probe, Retained, Revision, Role};
use crate::check::http::{client, plain_url};
use crate::files::{self, blocking, stays_beneath};
use crate::step::StepContext;
use crate::vault::Vault;

const KIND: &str = "nginx";

/// `verify` waits out a reload by somebody else (a renewed certificate, for one), and nothing longer.
const VERIFY_WITHIN: Duration = Duration::from_millis(500);
const VERIFY_POLL: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
pub struct NginxDriver {
    site: Site,
    master: Master,
    tester: Tester,
    template: Template,
    worker_timeout: Duration,
    drain_grace: Duration,
}

impl NginxDriver {
    pub fn new(component: &str, config: NginxConfig, vault: Arc<Vault>) -> Result<Self, Problem> {
        check_name("component", component)?;
        let bad = |why: String| Problem::new(Code::BadConfig, format!("component {component}: {why}"));
        let absolute = [&config.binary, &config.config, &config.pid_file, &config.error_log];
        if let Some(path) = absolute
            .into_iter()
            .chain(&config.prefix)
            .chain(&config.root)
            .find(|p| !p.is_absolute())
        {
            return Err(bad(format!("{} must be absolute", path.display())));
        }
        let conf_dir = config.config.parent().unwrap_or(Path::new("/")).to_owned();
        let root = config.root.unwrap_or_else(|| conf_dir.clone());
        if !root.starts_with(&conf_dir) {
            return Err(bad(format!(
                "root {} must lie beneath {}",
                root.display(),
                conf_dir.display()
            )));
        }
        let beneath = |path: &Path| {
            let relative = path.strip_prefix(&root).unwrap_or(path);
            match (stays_beneath(relative), relative.to_str()) {
                (true, Some(name)) => Ok(name.to_owned()),
                (false, _) | (_, None) => Err(bad(format!("{} must lie beneath root", path.display()))),
            }
        };
        // Sorted and without repetition: the digest depends on the names.
        let names: BTreeSet<String> = config
            .files
            .iter()
            .map(|path| beneath(path))
            .collect::<Result<_, _>>()?;
        let include = match &config.managed_include {
            Some(path) => beneath(path)?,
            None => format!("rollbackctl/{component}.inc"),
        };
        if names.is_empty() || names.contains(&include) {
            return Err(bad(
                "files must name at least one file, and not the managed include".into()
            ));
        }
        let mut upstreams = Vec::new();
        let mut taken: BTreeSet<String> = names.iter().cloned().chain([include.clone()]).collect();
        for upstream in config.upstream.0 {
            let file = beneath(&upstream.include)?;
            if !taken.insert(file.clone()) {
                return Err(bad(format!("upstream {file}: this file has another meaning already")));
            }
            upstreams.push(upstream.checked(root.join(file)).map_err(bad)?);
        }
        let marker = plain_url(&config.marker_url).map_err(bad)?;
        let template =
            Template::new(marker.path(), config.retry_after, config.maintenance_body.as_deref()).map_err(bad)?;
        Ok(Self {
            site: Site {
                component: component.to_owned(),
                include: root.join(include),
                names: names.into_iter().collect(),
                conf_dir,
                root,
                upstreams,
                vault,
            },
            master: Master {
                pid_file: config.pid_file,
                error_log: config.error_log,
                marker,
                host: config.marker_host,
                client: client().map_err(bad)?,
            },
            tester: Tester {
                binary: config.binary,
                prefix: config.prefix,
                config: config.config,
            },
            template,
            worker_timeout: config.worker_timeout,
            drain_grace: config.drain_grace,
        })
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Site) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let site = self.site.clone();
        blocking(move || work(&site)).await
    }

    /// What is on disk now.
    async fn look(&self) -> Result<Seen, Problem> {
        self.on_disk(Site::look).await
    }

    /// Is what is on disk served, to users?
    async fn health(&self, seen: &Seen) -> (Health, String) {
        let master = match self.master.process() {
            Ok(master) => master,
            Err(problem) => return (Health::Stopped, problem.message),
        };
        let workers = self.master.workers(master).active.len();
        let mut who = format!("master {}, {workers} workers", master.pid);
        // No request fails by this; but no backend could be drained.
        for problem in self.said(seen).into_iter().filter_map(Result::err) {
            who.push_str(&format!("; {}", problem.message));
        }
        let served = match seen.include.as_ref().and_then(Include::nonce) {
            Some(nonce) => self.master.serves(nonce).await,
            // The driver has not changed anything yet: any answer will do.
            None => self.master.ask(None).await.map(drop),
        };
        let (down, all) = self.down(seen);
        match served {
            Err(why) => (Health::Unhealthy, format!("{who}: {why}")),
            Ok(()) if workers == 0 => (Health::Unhealthy, who),
            Ok(()) if seen.drained() => (Health::Drained, format!("{who}, users get the maintenance answer")),
            Ok(()) if !down.is_empty() => {
                let verb = if down.len() == 1 { "gets" } else { "get" };
                let names = down.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                let count = down.len();
                (
                    Health::Drained,
                    format!("{who}, {count} of {all} backends {verb} no requests: {names}"),
                )
            }
            Ok(()) => (Health::Healthy, who),
        }
    }

    /// What is live, and the files of both ends of the step.
    async fn both_ends(&self, step: &StepContext) -> Result<(Seen, Files, Files), Problem> {
        let seen = self.look().await?;
        let (from, to) = (step.from.clone(), step.to.clone());
        self.on_disk(move |site| {
            let wanted = site.files_of(&to, &seen.files)?;
            // An earlier, killed switch may have changed a part of the live files; `stage` has put `from` into the vault.
            let origin = site.files_of(&from, &seen.files)?;
            site.expect_known(&seen.files, &origin, &wanted)?;
            Ok((seen, origin, wanted))
        })
        .await
    }
}

#[async_trait]
impl Driver for NginxDriver {
    fn info(&self) -> DriverInfo {
        DriverInfo {
            kind: KIND,
            role: Role::Proxy,
            capabilities: vec![
                Action::Prepare,
                Action::Stage,
                Action::Discard,
                Action::Snapshot,
                Action::Drain,
                Action::Resume,
                Action::Switch,
                Action::Verify,
                Action::Finish,
            ],
            reads: BTreeSet::new(),
            backends: self.backends(),
            restores: false,
        }
    }

    async fn observe(&self) -> Result<Observation, Problem> {
        let seen = self.look().await?;
        let (health, detail) = self.health(&seen).await;
        // Whole maintenance is told by nobody being named: users get no answer from those that are left either.
        let out = if health == Health::Drained && !seen.drained() {
            self.down(&seen).0
        } else {
            BTreeSet::new()
        };
        let revision = self.on_disk(move |site| site.revision(&seen.files)).await?;
        Ok(Observation {
            revision,
            health,
            detail,
            out,
        })
    }

    async fn retain(&self, release: &str) -> Result<Retained, Problem> {
        check_name("release", release)?;
        let live = self.look().await?.files;
        // A site that lacks the include could never be switched to: better said now than at night.
        self.expect_included("the live site", &live, self.tester.test_live())
            .await?;
        let release = release.to_owned();
        self.on_disk(move |site| {
            let count = live.values().flatten().count();
            let revision = site.keep(&live, Some(&release))?;
            Ok(Retained {
                revision,
                summary: format!("vault, {count} files"),
            })
        })
        .await
    }

    async fn resolve(&self, release: &str) -> Result<Retained, Problem> {
        check_name("release", release)?;
        let release = release.to_owned();
        self.on_disk(move |site| site.resolve(&release)).await
    }

    async fn forget(&self, revision: &Revision, _kept: &[Revision]) -> Result<String, Problem> {
        let digest = revision.digest.clone();
        self.on_disk(move |site| files::let_go(&site.vault, &site.component, &digest))
            .await
    }

    async fn prepare(&self, step: &StepContext) -> Vec<Finding> {
        self.findings(step).await
    }

    async fn stage(&self, step: &StepContext) -> Result<Done, Failure> {
        check_name("rollback", &step.rollback_id)?;
        let (seen, from, wanted) = self.both_ends(step).await?;
        // The way back, for a switch that is killed half-way.
        let keep = self.on_disk(move |site| {
            site.keep(&from, None)?;
            site.keep(&seen.files, None)
        });
        step.operation("vault_put", keep).await?;
        let test = self.tester.test_with(&self.site, &wanted);
        // Whether it has the includes of upstreams concerns the next rollback, not this one: `prepare` has said so.
        step.operation("nginx_test", self.expect_managed(&step.to.version, &wanted, test))
            .await?;
        Ok(Done::new(format!("nginx accepts {}", step.to.version)))
    }

    async fn discard(&self, step: &StepContext) -> Result<Done, Failure> {
        check_name("rollback", &step.rollback_id)?;
        let id = step.rollback_id.clone();
        step.operation("remove_staged", self.on_disk(move |site| site.remove_leftovers(&id)))
            .await?;
        Ok(Done::new("nothing staged"))
    }

    async fn switch(&self, step: &StepContext) -> Result<Done, Failure> {
        check_name("rollback", &step.rollback_id)?;
        let (seen, from, to) = self.both_ends(step).await?;
        // Who gets requests stays as it is.
        let (old, new) = (
            Served {
                files: from.clone(),
                ..Served::of(&seen)
            },
            Served {
                files: to,
                ..Served::of(&seen)
            },
        );
        if !self.is_served(&new, &seen).await {
            self.on_disk(move |site| site.keep(&from, None)).await?;
            self.apply(step, &old, &new).await?;
        }
        let seen = self.on_disk(|site| site.revision(&site.live()?)).await?;
        if seen != step.to {
            return Err(Failure::Indeterminate(Problem::new(
                Code::WrongRevision,
                "the managed files were changed by somebody else during the switch",
            )));
        }
        // What has no name yet gets one when it becomes live as a release.
        let name = step.to.clone();
        let seen = self
            .on_disk(move |site| {
                let name = (name.version != short(&name.digest)).then_some(name.version);
                site.keep(&site.live()?, name.as_deref())
            })
            .await?;
        let summary = format!("new workers serve {}", seen.version);
        Ok(Done::at(seen, summary))
    }

    async fn snapshot(&self, step: &StepContext) -> Result<Done, Failure> {
        let work = self.on_disk(|site| site.keep(&site.live()?, None));
        let revision = step.operation("vault_put", work).await?;
        let summary = format!("{} is in the vault", revision.version);
        Ok(Done::at(revision, summary))
    }

    async fn drain(&self, step: &StepContext) -> Result<Done, Failure> {
        self.set_traffic(step, true).await
    }

    async fn resume(&self, step: &StepContext) -> Result<Done, Failure> {
        self.set_traffic(step, false).await
    }

    async fn verify(&self, step: &StepContext) -> Result<Done, Failure> {
        let until = step.deadline.min(Instant::now() + VERIFY_WITHIN);
        let settled = async {
            loop {
                let seen = self.observe().await?;
                if seen.health == Health::Healthy || Instant::now() >= until {
                    return Ok::<_, Problem>(seen);
                }
                tokio::time::sleep(VERIFY_POLL).await;
            }
        };
        let seen = step.operation("observe", settled).await?;
        match seen.health {
            Health::Healthy => Ok(Done::at(seen.revision, seen.detail)),
            Health::Stopped => Err(Failure::Failed(Problem::new(Code::NginxDown, seen.detail))),
            Health::Unhealthy | Health::Drained | Health::Unknown | Health::Unspecified => {
                Err(Failure::Failed(Problem::new(Code::Unhealthy, seen.detail)))
            }
        }
    }

    async fn finish(&self, step: &StepContext) -> Result<Done, Failure> {
        self.discard(step).await
    }

    async fn probe(&self, step: &StepContext) -> Probe {
        let seen = match self.look().await {
            Ok(seen) => seen,
            Err(problem) => return Probe::Indeterminate(problem),
        };
        let digest = site::digest(&seen.files);
        let wanted = match step.action {
            Action::Switch => digest == step.to.digest,
            Action::Drain | Action::Resume => return self.probe_traffic(step, &seen).await,
            Action::Prepare
            | Action::Stage
            | Action::Discard
            | Action::Snapshot
            | Action::Verify
            | Action::Finish
            | Action::Stop
            | Action::Start
            | Action::Unspecified => return Probe::Repeatable("nothing live is touched by this move".into()),
        };
        if wanted && self.is_served(&Served::of(&seen), &seen).await {
            let revision = Revision {
                version: step.to.version.clone(),
                digest,
            };
            return Probe::Applied(Done::at(revision, "served by the present workers"));
        }
        Probe::Repeatable("the configuration that is wanted is not served, or not provably".into())
    }
}
