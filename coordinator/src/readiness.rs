//! Could the fleet go back, if it had to now? The leader looks in the background, so that the answer is there before the
//! question is asked.
//!
//! ```text
//! (leads) → no rollback runs → for each of the last N stable releases: observe, plan, every PREPARE → stored → pause → …
//! ```
//!
//! Invariants:
//! - Nothing is asked of agents while a rollback runs; a check that is under way when one begins is dropped where it stands.
//!   What its agents still do reads only, and holds up no step.
//! - One release after the other, and no more than `hosts_at_once` hosts at a time. At least half of the time is pause.
//! - What is stored is of a check that came to its end, by a leader: what was found before stays until then, and grows old.
//!
//! Leaves out what to do about it: that stands with each finding.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rollback_engine::event::{Finding, Problem, Severity};
use rollback_engine::ids::{Epoch, Target};
use rollback_engine::plan::Plan;
use rollback_engine::planner::Request;
use rollback_engine::release::{Release, ReleaseEntry};
use rollback_proto::problem::{Code, Problem as CodedProblem};
use rollback_proto::{jitter, v1};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::api::{matches, plan_for};
use crate::config::ReadinessConfig;
use crate::hold::{self, Holds};
use crate::inventory::Inventory;
use crate::leader::Leader;
use crate::metrics::ReadinessFigures;
use crate::prospect::{self, Found};
use crate::replica::Replica;
use crate::store::{Document, DocumentKind, Store, StoreError};
use crate::survey::{self, HostSurvey};
use crate::{convert, shelf};

/// A check that is older than so many rounds is not being kept up.
const STALE_AFTER: u32 = 3;
/// The first round of a term comes within this time: replicas that take turns do not all begin with one.
const FIRST: Duration = Duration::from_secs(30);
/// After a round that the store or the fleet broke off.
const AGAIN: Duration = Duration::from_secs(5);
/// Who is in a hurry names none.
const RUNBOOK: &str = "default";

/// What a check of one release found, as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checked {
    pub release: String,
    /// The release's place among the others.
    pub rank: Timestamp,
    pub checked_at: Timestamp,
    pub took_ms: u64,
    /// How often it is to be checked.
    pub every_ms: u64,
    /// No plan can be made.
    pub problem: Option<Problem>,
    /// Blockers and warnings.
    pub findings: Vec<OfComponent>,
    pub hosts: u32,
    pub components: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OfComponent {
    pub target: Target,
    pub finding: Finding,
}

impl Checked {
    fn read(document: &Document) -> Option<Self> {
        let body = document.body.as_deref()?;
        serde_json::from_str(body)
            .inspect_err(|error| tracing::error!(%error, release = document.key, "a check in the store is damaged"))
            .ok()
    }

    pub fn blockers(&self) -> usize {
        let blocks = |f: &&OfComponent| f.finding.severity == Severity::Blocker;
        self.findings.iter().filter(blocks).count()
    }

    pub fn is_ready(&self) -> bool {
        self.problem.is_none() && self.blockers() == 0
    }

    pub fn is_stale(&self, now: Timestamp) -> bool {
        let every = Duration::from_millis(self.every_ms);
        Duration::try_from(now.duration_since(self.checked_at)).is_ok_and(|age| age > every * STALE_AFTER)
    }

    pub fn to_wire(&self, now: Timestamp) -> v1::Readiness {
        let findings = self.findings.iter();
        v1::Readiness {
            release: self.release.clone(),
            checked_at: Some(convert::timestamp(self.checked_at)),
            took: Some(convert::duration(Duration::from_millis(self.took_ms))),
            ready: self.is_ready(),
            problem: self.problem.as_ref().map(convert::problem_to_wire),
            findings: findings.map(|f| convert::finding_of(&f.target, &f.finding)).collect(),
            hosts: self.hosts,
            components: self.components,
            stale: self.is_stale(now),
        }
    }
}

/// All that is known, the newest release first. Any replica can read it.
pub async fn known(store: &dyn Store) -> Result<Vec<Checked>, StoreError> {
    let documents = store.documents(DocumentKind::Readiness).await?;
    let mut known: Vec<Checked> = documents.iter().filter_map(Checked::read).collect();
    known.sort_by(|a, b| (b.rank, &b.release).cmp(&(a.rank, &a.release)));
    Ok(known)
}

/// Keeps the answers new whenever this replica leads, until the process stops.
pub async fn keep(replica: Replica, config: ReadinessConfig) {
    let stop = replica.parts().stop.clone();
    let metrics = Arc::clone(&replica.parts().metrics);
    metrics.readiness_every(if config.releases == 0 {
        Duration::ZERO
    } else {
        config.every
    });
    let mut past = Epoch(0);
    loop {
        let leader = tokio::select! {
            () = stop.cancelled() => return,
            leader = replica.until_leading_after(past) => leader,
        };
        let term = leader.shared().term.clone();
        past = term.epoch();
        let checker = Checker {
            leader,
            inventory: Arc::clone(&replica.parts().inventory),
            config: config.clone(),
        };
        tokio::select! {
            biased;
            () = term.ended() => {}
            () = checker.in_term() => {}
        }
        metrics.readiness(Vec::new());
    }
}

/// Of one term.
struct Checker {
    leader: Leader,
    inventory: Arc<Inventory>,
    config: ReadinessConfig,
}

impl Checker {
    /// Goes on until the term ends.
    async fn in_term(&self) {
        if self.config.releases == 0 {
            // What was found when it was switched on would only grow old.
            if let Err(error) = self.forget_others(&[]).await {
                tracing::warn!(%error, "forget what was found of releases");
            }
            return std::future::pending().await;
        }
        let first = self.config.every.min(FIRST);
        let due = match self.show().await {
            Ok(known) => known.iter().map(|checked| checked.checked_at).min(),
            Err(_) => None,
        };
        // What the last leader found a minute ago need not be found again now.
        let fresh = due.and_then(|at| Duration::try_from(Timestamp::now().duration_since(at)).ok());
        let mut pause = fresh
            .map_or(Duration::ZERO, |age| self.config.every.saturating_sub(age))
            .max(jitter::spread(first, 0.1..=1.0));
        loop {
            tokio::select! {
                // What it was found to be is not what it is after a rollback.
                () = self.leader.until_busy() => {}
                // The way back from what was deployed just now is what is wanted first.
                () = self.leader.until_recorded() => {}
                () = tokio::time::sleep(pause) => {}
            }
            self.leader.until_idle().await;
            let began = Instant::now();
            let round = tokio::select! {
                biased;
                () = self.leader.until_busy() => None,
                round = self.round() => Some(round),
            };
            let took = began.elapsed();
            pause = match round {
                // Again as soon as it is over.
                None => Duration::ZERO,
                Some(Ok(())) => jitter::spread(self.config.every.saturating_sub(took).max(took), 0.9..=1.0),
                Some(Err(error)) => {
                    tracing::warn!(%error, "check whether the fleet could go back; trying again");
                    jitter::spread(self.config.every.min(AGAIN), 0.5..=1.0)
                }
            };
        }
    }

    /// Every release once.
    async fn round(&self) -> Result<(), StoreError> {
        let shared = self.leader.shared();
        let releases = shared.store.releases().await?;
        let survey = survey::observe_by(&self.inventory, self.config.hosts_at_once).await;
        let holds = hold::all(shared.store.as_ref()).await?;
        let wanted = worth_checking(releases, &survey, &holds, self.config.releases);
        self.forget_others(&wanted).await?;
        let mut survey = Some(survey);
        for release in wanted {
            let began = (Timestamp::now(), Instant::now());
            let survey = match survey.take() {
                Some(survey) => survey,
                None => survey::observe_by(&self.inventory, self.config.hosts_at_once).await,
            };
            let (problem, findings) = self.check(&release, &survey).await;
            let hosts: BTreeSet<&str> = release.entries.iter().map(|e| e.target.host.as_str()).collect();
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
            let checked = Checked {
                release: release.name.0.clone(),
                rank: release.rank(),
                checked_at: began.0,
                took_ms: millis(began.1.elapsed()),
                every_ms: millis(self.config.every),
                problem,
                findings,
                hosts: count(hosts.len()),
                components: count(release.entries.len()),
            };
            tracing::debug!(
                release = checked.release,
                ready = checked.is_ready(),
                blockers = checked.blockers(),
                "checked"
            );
            let body = serde_json::to_string(&checked).map_err(|e| StoreError::Damaged {
                what: "a check",
                why: e.to_string(),
            })?;
            let document = Document {
                kind: DocumentKind::Readiness,
                key: checked.release,
                body: Some(body),
            };
            shared.store.put_documents(shared.term.fence(), &[document]).await?;
            self.show().await?;
        }
        Ok(())
    }

    /// What is not checked any more is not kept, and not counted.
    async fn forget_others(&self, wanted: &[Release]) -> Result<(), StoreError> {
        let shared = self.leader.shared();
        let stored = shared.store.documents(DocumentKind::Readiness).await?;
        let gone: Vec<Document> = stored
            .into_iter()
            .filter(|document| wanted.iter().all(|release| release.name.as_str() != document.key))
            .map(|document| Document { body: None, ..document })
            .collect();
        if !gone.is_empty() {
            shared.store.put_documents(shared.term.fence(), &gone).await?;
        }
        self.show().await.map(drop)
    }

    /// Has the metrics say what is stored.
    async fn show(&self) -> Result<Vec<Checked>, StoreError> {
        let known = known(self.leader.shared().store.as_ref()).await?;
        let figures = known.iter().map(|checked| ReadinessFigures {
            release: checked.release.clone(),
            ready: checked.is_ready(),
            blockers: checked.blockers(),
            checked_at: checked.checked_at,
        });
        self.leader.shared().metrics.readiness(figures.collect());
        Ok(known)
    }

    /// Why no plan can be made, and what stands in the way on which host.
    async fn check(&self, release: &Release, survey: &[HostSurvey]) -> (Option<Problem>, Vec<OfComponent>) {
        let mut findings = away(release, survey);
        let is_away = |entry: &ReleaseEntry| findings.iter().any(|f| f.target.host == entry.target.host);
        // What the others would say is worth knowing, too.
        let reachable = Release {
            entries: release.entries.iter().filter(|e| !is_away(e)).cloned().collect(),
            ..release.clone()
        };
        if reachable.entries.is_empty() && !findings.is_empty() {
            return (None, findings);
        }
        match self.plan(&reachable, survey).await {
            Err(problem) => (Some(convert::problem(problem)), findings),
            Ok(plan) => {
                let found = prospect::prepare(&self.leader.shared().dispatcher, &plan, self.config.hosts_at_once).await;
                let worth_telling = |f: &Found| f.finding.severity != Severity::Ok;
                let found = found.into_iter().filter(worth_telling);
                findings.extend(found.map(|Found { target, finding }| OfComponent { target, finding }));
                (None, findings)
            }
        }
    }

    /// As an operator would get it who says nothing but where to.
    async fn plan(&self, release: &Release, survey: &[HostSurvey]) -> Result<Plan, CodedProblem> {
        let store = self.leader.shared().store.as_ref();
        let runbook = shelf::called(store, RUNBOOK).await?.runbook()?;
        plan_for(survey, release, &runbook, &Request::default())
    }
}

/// The newest stable ones before what runs now: what `previous` would be, and what comes before that.
fn worth_checking(releases: Vec<Release>, survey: &[HostSurvey], holds: &Holds, count: usize) -> Vec<Release> {
    let now = releases.iter().find(|r| runs(r, survey)).map(Release::rank);
    releases
        .into_iter()
        .filter(|r| r.stable && !holds.contains_key(&r.name))
        .filter(|r| now.is_none_or(|now| r.rank() < now) && !runs(r, survey))
        .take(count)
        .collect()
}

/// Is it what runs, as far as can be seen? A host that is away does not make another release of what the others run.
fn runs(release: &Release, survey: &[HostSurvey]) -> bool {
    let seen = |entry: &&ReleaseEntry| state_of(entry.target.host.as_str(), survey).is_some_and(Result::is_ok);
    let seen = Release {
        entries: release.entries.iter().filter(seen).cloned().collect(),
        ..release.clone()
    };
    matches(&seen, survey)
}

type States = Result<Vec<v1::ComponentState>, CodedProblem>;

/// `None`: nobody of this name has registered.
fn state_of<'s>(host: &str, survey: &'s [HostSurvey]) -> Option<&'s States> {
    let found = survey.binary_search_by(|h| h.agent.record.name.as_str().cmp(host));
    found.ok().and_then(|at| survey.get(at)).map(|h| &h.states)
}

/// Hosts of the release that do not answer: one blocker each, with the first of its components.
fn away(release: &Release, survey: &[HostSurvey]) -> Vec<OfComponent> {
    let mut told = BTreeSet::new();
    let mut away = Vec::new();
    for entry in &release.entries {
        let host = entry.target.host.as_str();
        let problem = match state_of(host, survey) {
            Some(Ok(_)) => continue,
            Some(Err(problem)) => problem.clone(),
            None => CodedProblem::new(
                Code::HostUnreachable,
                format!("{host}: no agent of this name has registered"),
            ),
        };
        if told.insert(host) {
            let Problem { code, message, remedy } = convert::problem(problem);
            away.push(OfComponent {
                target: entry.target.clone(),
                finding: Finding {
                    severity: Severity::Blocker,
                    code,
                    message,
                    remedy,
                    loss: None,
                },
            });
        }
    }
    away
}
