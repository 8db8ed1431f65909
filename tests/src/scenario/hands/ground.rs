//! The smallest fleet that can be steered: hosts of the application alone, without a database and without a proxy, so
//! that every host is a batch of its own business. And what an operator types, with the words left away that are always
//! the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::control::Control;
use crate::ctl::{Answer, Ctl};
use crate::deployed::release::ReleaseApp;
use crate::deployed::{Deployed, HEALTHY_WITHIN, deploy};
use crate::facts::AppFacts;
use crate::journal::Journal;
use crate::scenario::expect_nothing;
use crate::wait;
use crate::zekka::{AppHost, Version};

/// Where the fleet goes back to, and where it comes from.
pub const OLD: Version = Version::V2_9_0;
pub const NEW: Version = Version::V3_0_0;

/// The name in the certificate of a fleet's first operator.
pub const FIRST_OPERATOR: &str = "admin";

/// Nothing that is awaited here takes so long, on a busy machine either.
const SOON: Duration = Duration::from_secs(30);

/// By host.
pub type AppsFacts = BTreeMap<String, AppFacts>;

/// The application on every host, with an agent each.
#[derive(Debug)]
pub struct Apps(BTreeMap<String, ReleaseApp>);

impl Apps {
    /// v2.9.0 and then v3.0.0 live on every host, and both recorded.
    pub async fn deployed(control: &mut Control, hosts: &[&str]) -> Result<Self> {
        Self::deployed_within(control, hosts, HEALTHY_WITHIN).await
    }

    /// As [`Apps::deployed`], with agents that wait for the application so long.
    pub async fn deployed_within(control: &mut Control, hosts: &[&str], within: &'static str) -> Result<Self> {
        let mut apps = Self(BTreeMap::new());
        for host in hosts {
            let mut app = ReleaseApp::of(control, host)?;
            app.healthy_within = within;
            deploy(&app, OLD).await?;
            control.start_agent(host, "app", &app.component()).await?;
            apps.0.insert((*host).to_owned(), app);
        }
        control.wait_connected(hosts).await?;
        control.ctl.record(OLD.name()).await?.expect_code(0)?;
        apps.deploy(NEW).await?;
        control.ctl.record(NEW.name()).await?.expect_code(0)?;
        Ok(apps)
    }

    /// Brings a version live on every host by hand.
    pub async fn deploy(&self, version: Version) -> Result<()> {
        for app in self.0.values() {
            deploy(app, version).await?;
        }
        Ok(())
    }

    pub fn app(&self, host: &str) -> Result<&ReleaseApp> {
        self.0.get(host).with_context(|| format!("{host} has the application"))
    }

    pub fn host(&self, host: &str) -> Result<&AppHost> {
        self.app(host).map(|app| &app.host)
    }

    pub fn facts(&self) -> Result<AppsFacts> {
        let facts = |(name, app): (&String, &ReleaseApp)| {
            let facts = AppFacts::gather(&app.host).with_context(|| format!("look at {name}"))?;
            Ok((name.clone(), facts))
        };
        self.0.iter().map(facts).collect()
    }

    /// This version runs on this host.
    pub fn expect(&self, host: &str, version: Version) -> Result<AppFacts> {
        let facts = AppFacts::gather(self.host(host)?).with_context(|| format!("look at {host}"))?;
        let what = format!("{} does not run on {host}", version.name());
        expect_nothing(&what, &facts.misfits(host, version))?;
        Ok(facts)
    }

    /// This version runs everywhere.
    pub fn expect_all(&self, version: Version) -> Result<AppsFacts> {
        let hosts = self.0.keys();
        hosts
            .map(|host| Ok((host.clone(), self.expect(host, version)?)))
            .collect()
    }

    /// Everything of this host, the process included, is what it was: nothing was even tried.
    pub fn expect_untouched(&self, host: &str, before: &AppsFacts) -> Result<()> {
        let (was, is) = (before.get(host), AppFacts::gather(self.host(host)?)?);
        ensure!(was == Some(&is), "{host} was {was:?}, and now it is {is:?}");
        Ok(())
    }

    /// As [`Apps::expect_untouched`], but what was staged may lie beside what is live.
    pub fn expect_not_begun(&self, host: &str, before: &AppsFacts) -> Result<()> {
        let live = |facts: &AppFacts| AppFacts {
            root_entries: Vec::new(),
            ..facts.clone()
        };
        let (was, is) = (before.get(host).map(live), live(&AppFacts::gather(self.host(host)?)?));
        ensure!(was.as_ref() == Some(&is), "{host} was {was:?}, and now it is {is:?}");
        Ok(())
    }

    /// [`Apps::expect_untouched`] of all hosts.
    pub fn expect_all_untouched(&self, before: &AppsFacts) -> Result<()> {
        self.0.keys().try_for_each(|host| self.expect_untouched(host, before))
    }

    /// How often a version was started on a host: once by its deployment, and since then by rollbacks.
    pub fn starts(&self, host: &str, version: Version) -> Result<usize> {
        let wanted = ("start".to_owned(), version.name().to_owned());
        let effects = self.host(host)?.effects()?;
        Ok(effects.into_iter().filter(|effect| *effect == wanted).count())
    }

    /// Waits until a version is being started on a host for the nth time.
    pub async fn wait_started(&self, host: &str, version: Version, nth: usize) -> Result<()> {
        let what = format!("{} is started on {host}", version.name());
        wait::until_true(&what, SOON, async || {
            self.starts(host, version).is_ok_and(|starts| starts >= nth)
        })
        .await
    }

    /// Waits until a version serves on a host, whoever started it.
    pub async fn wait_running(&self, host: &str, version: Version) -> Result<()> {
        let (app, what) = (self.host(host)?, format!("{} runs on {host}", version.name()));
        wait::until_true(&what, SOON, async || {
            AppFacts::gather(app).is_ok_and(|facts| facts.misfits(host, version).is_empty())
        })
        .await
    }
}

/// `fleet rollback ARGS…`, told to an operator's machine. Ends when the rollback has ended.
pub async fn roll_back(ctl: &Ctl, args: &[&str]) -> Result<Answer> {
    ctl.run(&[&["fleet", "rollback", "--yes", "-o", "json"], args].concat())
        .await
}

/// Starts a rollback and does not wait for it. Hands out its ID.
pub async fn start(ctl: &Ctl, args: &[&str]) -> Result<String> {
    let begun = roll_back(ctl, &[args, &["--detach"]].concat()).await?.expect_code(7)?;
    let begun = begun.json()?;
    let id = begun["rollback_id"].as_str().context("the answer names the rollback")?;
    Ok(id.to_owned())
}

/// Waits for a rollback's end, which must have this exit code, and hands out its result.
pub async fn ended(ctl: &Ctl, id: &str, code: i32) -> Result<Value> {
    let answer = ctl.run(&["rollback", "watch", id, "-o", "json"]).await?;
    answer.expect_code(code)?.json()
}

/// An act that is granted: `rollback VERB ID ARGS…`.
pub async fn steer(ctl: &Ctl, verb: &str, id: &str, args: &[&str]) -> Result<Answer> {
    ctl.run(&[&["rollback", verb, id], args].concat()).await?.expect_code(0)
}

/// An act that is refused, with this code and these words.
pub async fn expect_refused(ctl: &Ctl, args: &[&str], code: &str, words: &[&str]) -> Result<Answer> {
    let answer = ctl.run(args).await?;
    ensure!(answer.code != 0, "it was not refused: {answer}");
    let text = answer.text();
    for word in [&[code], words].concat() {
        ensure!(text.contains(word), "the refusal does not say {word:?}: {answer}");
    }
    Ok(answer)
}

/// Waits until a rollback stands still with so many steps in flight, and hands out what is said of that.
pub async fn standstill(ctl: &Ctl, id: &str, in_flight: u64) -> Result<Value> {
    let what = format!("rollback {id} stands still with {in_flight} steps in flight");
    let mut seen = Value::Null;
    let stood = wait::until(&what, SOON, async || {
        seen = ctl.show(id).await.ok()?;
        let standstill = &seen["standstill"];
        (!standstill.is_null() && standstill["in_flight"] == in_flight).then(|| standstill.clone())
    })
    .await;
    match stood {
        Ok(standstill) => Ok(standstill),
        Err(error) => bail!("{error:#}; it is {}", summary_of(&seen)),
    }
}

/// A report without what is long in it.
fn summary_of(report: &Value) -> Value {
    let mut summary = report.clone();
    if let Value::Object(fields) = &mut summary {
        fields.retain(|name, _| !matches!(name.as_str(), "steps" | "plan" | "phases" | "events"));
    }
    summary
}

/// Who did what and why, as the journal has it: `admin pause: looking at the logs`.
pub async fn acts(control: &Control, id: &str) -> Result<Vec<String>> {
    let journal = match control.store_server() {
        Ok(store) => Journal::of_postgres(store)?,
        Err(_) => Journal::of_sqlite(&control.coordinator.store()).await?,
    };
    let acts = journal.acts(id)?;
    let text = |act: &Value, key: &str| act[key].as_str().unwrap_or_default().to_owned();
    let shown = |act: &Value| format!("{} {}: {}", text(act, "by"), text(act, "act"), text(act, "reason"));
    Ok(acts.iter().map(shown).collect())
}

/// Applies a runbook that is the built-in one, as an operator reads it, but for these changes.
pub async fn apply_runbook(control: &Control, name: &str, change: impl FnOnce(&mut toml::Table)) -> Result<Answer> {
    let builtin = control.ctl.run(&["runbook", "show", "default"]).await?.expect_code(0)?;
    let mut runbook: toml::Table = builtin.stdout.parse().context("read the built-in runbook")?;
    runbook.insert("name".to_owned(), name.into());
    change(&mut runbook);
    let file = control.dir().join(format!("{name}.toml"));
    std::fs::write(&file, toml::to_string(&runbook).context("write the runbook")?).context("save the runbook")?;
    control
        .ctl
        .run(&["runbook", "apply", shown(&file)?])
        .await?
        .expect_code(0)
}

/// A path as an argument.
pub fn shown(path: &Path) -> Result<&str> {
    path.to_str().context("a path is UTF-8")
}
