//! One coordinator or several: setting them up, and who of them leads.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Control, ControlOptions, StoreKind, log_in};
use crate::binaries::Binaries;
use crate::coordinator::{Coordinator, CoordinatorOptions, FIRST, edit_toml};
use crate::ctl::Ctl;
use crate::store_server::StoreServer;
use crate::wait;

/// Until one of those that were just started leads.
const LEADS_WITHIN: Duration = Duration::from_secs(30);

/// A replica that is stopped takes connections and never answers.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// What a coordinator says of itself on `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// With this epoch.
    Leading(u64),
    /// It is well, and somebody else leads.
    Following(String),
    /// 503, and why.
    Unready(String),
    /// It does not answer.
    Silent,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leading {
    pub name: String,
    pub epoch: u64,
}

/// Everything that the coordinators need, before the first of them runs.
pub(super) async fn set_up(
    binaries: &Binaries,
    dir: &Path,
    options: &ControlOptions,
) -> Result<(Coordinator, Vec<Coordinator>, Option<StoreServer>)> {
    let store = match options.store {
        StoreKind::Sqlite => {
            ensure!(options.further_replicas == 0, "replicas cannot share a SQLite store");
            None
        }
        StoreKind::Postgres => {
            let log = log_in(dir, "store");
            Some(StoreServer::start(&dir.join("store"), &log, options.durable, options.keep).await?)
        }
    };
    let for_all = CoordinatorOptions {
        keep: options.keep,
        otlp: options.otlp.clone(),
        store: store.as_ref().map(|store| store.address(FIRST)),
        leadership: options.leadership.clone(),
        readiness: options.readiness.clone(),
    };
    let first = Coordinator::init(
        binaries,
        &dir.join("coordinator"),
        &log_in(dir, "coordinator"),
        &for_all,
    )?;
    let mut further = Vec::new();
    for number in 2..options.further_replicas + 2 {
        let name = format!("coord-{number}");
        let replica = first.replica(&name, binaries, &dir.join(&name), &log_in(dir, &name), options.keep)?;
        if let Some(store) = &store {
            replica.set_store_url(&store.address(&name).url)?;
        }
        further.push(replica);
    }
    Ok((first, further, store))
}

impl Control {
    /// All coordinators, the first one first.
    pub fn coordinators(&self) -> impl Iterator<Item = &Coordinator> {
        std::iter::once(&self.coordinator).chain(&self.further)
    }

    pub fn coordinators_mut(&mut self) -> impl Iterator<Item = &mut Coordinator> {
        std::iter::once(&mut self.coordinator).chain(&mut self.further)
    }

    pub fn replica(&mut self, name: &str) -> Result<&mut Coordinator> {
        let mut all = self.coordinators_mut();
        all.find(|coordinator| coordinator.name() == name)
            .with_context(|| format!("{name} is a coordinator"))
    }

    /// host:port of all coordinators.
    pub fn endpoints(&self) -> Vec<String> {
        self.coordinators().map(|c| c.endpoint().to_owned()).collect()
    }

    /// The server that holds the journal of all coordinators.
    pub fn store_server(&self) -> Result<&StoreServer> {
        self.store_server.as_ref().context("the journal is in PostgreSQL")
    }

    /// rollbackctl as one that knows only this coordinator.
    pub fn ctl_of(&self, name: &str) -> Ctl {
        Ctl::new(
            &self.binaries,
            &self.ctl.context().with_file_name(format!("{name}.toml")),
        )
    }

    /// Another operator, with a certificate of their own. They know all coordinators.
    pub fn operator(&self, name: &str) -> Result<Ctl> {
        let context = self.coordinator.add_operator(name)?;
        set_endpoints(&context, self.endpoints())?;
        Ok(Ctl::new(&self.binaries, &context))
    }

    /// As [`Control::ctl_of`], of the one that leads. A follower's knowledge of agents is some seconds old.
    pub(super) async fn ctl_of_leader(&self) -> Option<Ctl> {
        Some(match self.further.is_empty() {
            true => self.ctl.clone(),
            false => self.ctl_of(&self.leader().await?.name),
        })
    }

    /// Starts all of them, tells the operator of all, and waits until one leads.
    pub(super) async fn run_coordinators(&mut self) -> Result<()> {
        let of_all = self.ctl.context();
        for coordinator in self.coordinators() {
            let of_one = self.ctl_of(coordinator.name());
            std::fs::copy(of_all, of_one.context()).context("copy the context")?;
            set_endpoints(of_one.context(), vec![coordinator.endpoint().to_owned()])?;
        }
        set_endpoints(of_all, self.endpoints())?;
        for coordinator in self.coordinators_mut() {
            coordinator.spawn()?;
        }
        for coordinator in self.coordinators_mut() {
            coordinator.wait_ready().await?;
        }
        self.wait_leader(LEADS_WITHIN).await.map(drop)
    }

    /// What each of them says of itself, by name, with an HTTP client of our own.
    pub async fn standings(&self) -> Vec<(String, Standing)> {
        let asked = self.coordinators().map(async |coordinator| {
            let standing = standing(&coordinator.page("/readyz")).await;
            (coordinator.name().to_owned(), standing)
        });
        futures::future::join_all(asked).await
    }

    /// The one that says that it leads; of several (one of them does not know yet that it does no more) the one with the
    /// highest epoch.
    pub async fn leader(&self) -> Option<Leading> {
        let leading = self
            .standings()
            .await
            .into_iter()
            .filter_map(|(name, standing)| match standing {
                Standing::Leading(epoch) => Some(Leading { name, epoch }),
                Standing::Following(_) | Standing::Unready(_) | Standing::Silent => None,
            });
        leading.max_by_key(|leading| leading.epoch)
    }

    pub async fn wait_leader(&self, within: Duration) -> Result<Leading> {
        self.wait_leader_after(0, within).await
    }

    /// Waits until somebody leads with a higher epoch than this one.
    pub async fn wait_leader_after(&self, epoch: u64, within: Duration) -> Result<Leading> {
        let leading = wait::until("a coordinator leads", within, async || {
            self.leader().await.filter(|leading| leading.epoch > epoch)
        });
        match leading.await {
            Ok(leading) => Ok(leading),
            Err(error) => bail!("{error:#}; they say: {:?}", self.standings().await),
        }
    }

    /// Waits until every coordinator leads or follows.
    pub async fn wait_all_ready(&self) -> Result<()> {
        let ready = wait::until_true("every coordinator leads or follows", LEADS_WITHIN, async || {
            let standings = self.standings().await;
            let well = |standing: &Standing| match standing {
                Standing::Leading(_) | Standing::Following(_) => true,
                Standing::Unready(_) | Standing::Silent => false,
            };
            standings.iter().all(|(_, standing)| well(standing))
        });
        match ready.await {
            Ok(()) => Ok(()),
            Err(error) => bail!("{error:#}; they say: {:?}", self.standings().await),
        }
    }
}

fn set_endpoints(context: &Path, endpoints: Vec<String>) -> Result<()> {
    edit_toml(context, |context| {
        context.insert("endpoints".to_owned(), endpoints.into());
    })
}

async fn standing(url: &str) -> Standing {
    let asked = async {
        let answer = reqwest::get(url).await.ok()?;
        let ready = answer.status().is_success();
        Some((ready, answer.text().await.ok()?))
    };
    let Ok(Some((ready, text))) = tokio::time::timeout(ANSWERS_WITHIN, asked).await else {
        return Standing::Silent;
    };
    let text = text.trim().to_owned();
    let epoch = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("leading with epoch "));
    match epoch.map(str::parse) {
        Some(Ok(epoch)) if ready => Standing::Leading(epoch),
        Some(_) | None if ready => Standing::Following(text),
        Some(_) | None => Standing::Unready(text),
    }
}
