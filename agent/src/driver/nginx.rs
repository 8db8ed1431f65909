//! Sites of an nginx that runs on this host.
//!
//! | move | what it does |
//! |---|---|
//! | `retain`, `snapshot` | the managed files go into the vault |
//! | `stage` | `nginx -t` on a copy of the configuration that has the wanted files |
//! | `switch` | write, `nginx -t`, reload, and wait until new workers serve it |
//! | `drain`, `resume` | the same, with a managed include that answers 503 with Retry-After, or does not |
//! | undo | the same moves, the other way |
//!
//! Every managed server block includes the managed include, before its locations:
//! `include /etc/nginx/rollbackctl/zekka.inc;`. The file must exist (`touch` it once); from then on it is the driver's.
//!
//! Invariants:
//! - A reload that nginx did not take is noticed, and the old configuration is put back and served again.
//! - Files that somebody changed since the plan was made are not overwritten.
//! - Whether the site is drained survives a switch and a restart of the agent: it is written in the include.

mod apply;
pub mod include;
pub mod master;
mod readiness;
pub mod rehearse;
pub mod site;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;

use self::apply::Served;
use self::include::{Include, Template};
use self::master::Master;
use self::rehearse::Tester;
use self::site::{Files, Site};
use super::{Action, Done, Driver, DriverInfo, Failure, Finding, Health, Observation, Probe, Retained, Revision, Role};
use crate::check::http::{client, plain_url};
use crate::files::{blocking, stays_beneath};
use crate::step::StepContext;
use crate::vault::Vault;

const KIND: &str = "nginx";

/// `verify` waits out a reload by somebody else (a renewed certificate, for one), and nothing longer.
const VERIFY_WITHIN: Duration = Duration::from_millis(500);
const VERIFY_POLL: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NginxConfig {
    #[serde(default = "default_binary")]
    pub binary: PathBuf,
    /// What `nginx -p` is given, where nginx was started with it.
    pub prefix: Option<PathBuf>,
    /// The main configuration file.
    #[serde(default = "default_config")]
    pub config: PathBuf,
    #[serde(default = "default_pid_file")]
    pub pid_file: PathBuf,
    /// Quoted when a reload fails, and watched so that it is noticed at once.
    #[serde(default = "default_error_log")]
    pub error_log: PathBuf,
    /// The directory that holds all that is managed. Default: that of `config`.
    pub root: Option<PathBuf>,
    /// The managed files, relative to `root` or absolute beneath it.
    pub files: Vec<PathBuf>,
    /// The file that every managed server block includes. Default: `rollbackctl/<component>.inc`.
    pub managed_include: Option<PathBuf>,
    /// Where the marker is asked for: an http address of a managed server block, as seen from this host.
    pub marker_url: String,
    /// Host header for the marker, where server blocks are told apart by name.
    pub marker_host: Option<String>,
    /// What users are told while the site is drained.
    #[serde(default = "default_retry_after", deserialize_with = "crate::duration::deserialize")]
    pub retry_after: Duration,
    pub maintenance_body: Option<String>,
    /// How long a reload may take until new workers serve it.
    #[serde(
        default = "default_worker_timeout",
        deserialize_with = "crate::duration::deserialize"
    )]
    pub worker_timeout: Duration,
    /// How long `drain` waits for requests that old workers are still answering.
    #[serde(default = "default_drain_grace", deserialize_with = "crate::duration::deserialize")]
    pub drain_grace: Duration,
}

fn default_binary() -> PathBuf {
    "/usr/sbin/nginx".into()
}

fn default_config() -> PathBuf {
    "/etc/nginx/nginx.conf".into()
}

fn default_pid_file() -> PathBuf {
    "/run/nginx.pid".into()
}

fn default_error_log() -> PathBuf {
    "/var/log/nginx/error.log".into()
}

fn default_retry_after() -> Duration {
    Duration::from_secs(30)
}

fn default_worker_timeout() -> Duration {
    Duration::from_secs(10)
}

fn default_drain_grace() -> Duration {
    Duration::from_secs(5)
}

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
    async fn look(&self) -> Result<(Files, Option<Include>), Problem> {
        self.on_disk(|site| Ok((site.live()?, site.include_state()?))).await
    }

    /// Is what is on disk served, to users?
    async fn health(&self, include: Option<&Include>) -> (Health, String) {
        let master = match self.master.process() {
            Ok(master) => master,
            Err(problem) => return (Health::Stopped, problem.message),
        };
        let workers = self.master.workers(master).active.len();
        let who = format!("master {}, {workers} workers", master.pid);
        let served = match include.and_then(Include::nonce) {
            Some(nonce) => self.master.serves(nonce).await,
            // The driver has not changed anything yet: any answer will do.
            None => self.master.ask(None).await.map(drop),
        };
        match served {
            Err(why) => (Health::Unhealthy, format!("{who}: {why}")),
            Ok(()) if workers == 0 => (Health::Unhealthy, who),
            Ok(()) if include.is_some_and(Include::drained) => {
                (Health::Drained, format!("{who}, users get the maintenance answer"))
            }
            Ok(()) => (Health::Healthy, who),
        }
    }

    /// `drain` and `resume`: the files stay what they are.
    async fn set_drained(&self, step: &StepContext, drained: bool) -> Result<Done, Failure> {
        check_name("rollback", &step.rollback_id)?;
        let (live, include) = self.look().await?;
        let revision = self.on_disk({
            let live = live.clone();
            move |site| site.revision(&live)
        });
        let revision = revision.await?;
        let before = include.as_ref().is_some_and(Include::drained);
        if !drained && !before && matches!(include, Some(Include::Unwritten) | None) {
            return Ok(Done::at(revision, "nothing is drained"));
        }
        let mut busy = 0;
        if !self.is_served(&live, drained, &live, include.as_ref()).await {
            let old = Served {
                files: live.clone(),
                drained: before,
            };
            let leaving = self.apply(step, &old, &Served { files: live, drained }).await?;
            if drained {
                busy = self.let_finish(step, leaving).await;
            }
        }
        if drained {
            step.operation("maintenance_answer", self.expect_maintenance()).await?;
        }
        Ok(Done::at(
            revision,
            match (drained, busy) {
                (false, _) => "users are served again".to_owned(),
                (true, 0) => "users get the maintenance answer".to_owned(),
                (true, busy) => format!("users get the maintenance answer; {busy} workers still finish old requests"),
            },
        ))
    }

    /// Files of both ends of the step, with what is live between them.
    async fn both_ends(&self, step: &StepContext) -> Result<(Files, Files, Files, Option<Include>), Problem> {
        let (live, include) = self.look().await?;
        let (from, to) = (step.from.clone(), step.to.clone());
        self.on_disk(move |site| {
            let wanted = site.files_of(&to, &live)?;
            // An earlier, killed switch may have changed a part of the live files; `stage` has put `from` into the vault.
            let origin = site.files_of(&from, &live)?;
            site.expect_known(&live, &origin, &wanted)?;
            Ok((live, origin, wanted, include))
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
            backends: BTreeSet::new(),
        }
    }

    async fn observe(&self) -> Result<Observation, Problem> {
        let (live, include) = self.look().await?;
        let revision = self.on_disk(move |site| site.revision(&live)).await?;
        let (health, detail) = self.health(include.as_ref()).await;
        Ok(Observation {
            revision,
            health,
            detail,
        })
    }

    async fn retain(&self, release: &str) -> Result<Retained, Problem> {
        check_name("release", release)?;
        let (live, _) = self.look().await?;
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

    async fn prepare(&self, step: &StepContext) -> Vec<Finding> {
        self.findings(step).await
    }

    async fn stage(&self, step: &StepContext) -> Result<Done, Failure> {
        check_name("rollback", &step.rollback_id)?;
        let (live, from, wanted, _) = self.both_ends(step).await?;
        // The way back, for a switch that is killed half-way.
        let keep = self.on_disk(move |site| {
            site.keep(&from, None)?;
            site.keep(&live, None)
        });
        step.operation("vault_put", keep).await?;
        let test = self.tester.test_with(&self.site, &wanted);
        step.operation("nginx_test", self.expect_included(&step.to.version, &wanted, test))
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
        let (live, from, to, include) = self.both_ends(step).await?;
        let drained = include.as_ref().is_some_and(Include::drained);
        if !self.is_served(&to, drained, &live, include.as_ref()).await {
            let (site, origin) = (self.site.clone(), from.clone());
            blocking(move || site.keep(&origin, None)).await?;
            self.apply(step, &Served { files: from, drained }, &Served { files: to, drained })
                .await?;
        }
        let seen = self.on_disk(|site| site.revision(&site.live()?)).await?;
        if seen != step.to {
            return Err(Failure::Indeterminate(Problem::new(
                Code::WrongRevision,
                "the managed files were changed by somebody else during the switch",
            )));
        }
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
        self.set_drained(step, true).await
    }

    async fn resume(&self, step: &StepContext) -> Result<Done, Failure> {
        self.set_drained(step, false).await
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
        let (live, include) = match self.look().await {
            Ok(seen) => seen,
            Err(problem) => return Probe::Indeterminate(problem),
        };
        let drained = include.as_ref().is_some_and(Include::drained);
        let wanted = match step.action {
            Action::Switch => site::digest(&live) == step.to.digest,
            Action::Drain => drained,
            Action::Resume => !drained,
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
        if wanted && self.is_served(&live, drained, &live, include.as_ref()).await {
            let revision = Revision {
                version: step.to.version.clone(),
                digest: site::digest(&live),
            };
            return Probe::Applied(Done::at(revision, "served by the present workers"));
        }
        Probe::Repeatable("the configuration that is wanted is not served, or not provably".into())
    }
}
