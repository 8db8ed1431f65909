//! Runs steps, at most once for each key, in tasks of their own.
//!
//! ```text
//!            same key, running ──▶ join it
//! execute ─┤ same key, ended ────▶ the ledger's answer
//!            new ─▶ component's turn ─▶ INTENT durable ─▶ driver ─▶ OUTCOME durable ─▶ everybody who asked
//! ```
//!
//! Invariants:
//! - An intent is durable before the driver is called; an outcome is durable before anybody hears of it.
//! - A key never runs twice at the same time, and never again once it ended.
//! - One mutating step of a component at a time. Steps that only read take no turn.
//! - A caller that goes away changes nothing. A driver that panics or overruns its deadline ends as an outcome.
//! - Nothing runs before the steps that the last process left unfinished are resolved ([`recovery`]).
//!
//! Leaves out who may ask (the server) and what an action does (the drivers).

mod drive;
pub mod inspect;
mod order;
mod recall;
mod recovery;
mod running;
mod settle;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::Context;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tokio::sync::{Semaphore, SetOnce};
use tokio_util::task::TaskTracker;

use self::order::Order;
pub use self::running::Events;
use self::running::Running;
use crate::config::NamedDriver;
use crate::convert;
use crate::driver::{Driver, DriverInfo};
use crate::ledger::{Begin, Ledger, StepKey};
use crate::vault::Vault;

/// Steps that run or wait for their component's turn. A rollback has one for each component.
const MAX_RUNNING: usize = 256;

/// How long things may take that no request bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A driver that is still busy this long after its step's deadline is dropped.
    pub grace: Duration,
    /// Of `probe`.
    pub probe: Duration,
    /// Of `observe`, for each component.
    pub observe: Duration,
    /// How long `retain` waits for its component's turn.
    pub retain_turn: Duration,
    /// Of `retain` itself.
    pub retain: Duration,
    /// Longest pause between two attempts to write an outcome.
    pub ledger_backoff: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(2),
            probe: Duration::from_secs(60),
            observe: Duration::from_secs(10),
            retain_turn: Duration::from_secs(10),
            retain: Duration::from_secs(600),
            ledger_backoff: Duration::from_secs(5),
        }
    }
}

/// A component of this host.
#[derive(Debug)]
struct Component {
    driver: Arc<dyn Driver>,
    info: DriverInfo,
    /// One permit, given in the order of asking: whose turn it is to change the component.
    turn: Arc<Semaphore>,
}

/// What an executor is made of.
#[derive(Debug)]
pub struct Parts {
    /// This agent's name.
    pub host: String,
    pub components: Vec<NamedDriver>,
    pub vault: Arc<Vault>,
    pub ledger: Ledger,
    pub limits: Limits,
}

/// A cheap handle.
#[derive(Clone, Debug)]
pub struct Executor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: String,
    components: BTreeMap<String, Component>,
    vault: Arc<Vault>,
    ledger: Ledger,
    limits: Limits,
    /// Steps whose outcome is not known yet. Held for map operations only.
    running: Mutex<HashMap<StepKey, Running>>,
    /// Every step, `retain` and the recovery. Closed when the agent stops.
    tasks: TaskTracker,
    recovered: SetOnce<()>,
}

impl Executor {
    /// Starts to resolve what the last process left unfinished. Steps wait for that; observing does not.
    pub fn start(parts: Parts) -> Self {
        let components = parts
            .components
            .into_iter()
            .map(|(name, driver)| {
                let info = driver.info();
                (
                    name,
                    Component {
                        driver,
                        info,
                        turn: Arc::new(Semaphore::new(1)),
                    },
                )
            })
            .collect();
        let executor = Self(Arc::new(Inner {
            host: parts.host,
            components,
            vault: parts.vault,
            ledger: parts.ledger,
            limits: parts.limits,
            running: Mutex::default(),
            tasks: TaskTracker::new(),
            recovered: SetOnce::new(),
        }));
        executor.0.tasks.spawn(recovery::recover(Arc::clone(&executor.0)));
        executor
    }

    /// Starts a step, joins the running one, or answers from the ledger. Returns when the step was accepted (its intent
    /// is durable) or is refused. `parent` is the caller's trace.
    pub async fn execute(&self, request: v1::ExecuteRequest, parent: Context) -> Result<Events, Problem> {
        let inner = &self.0;
        let order = Order::check(request, |component| inner.components.get(component).map(|c| &c.info))?;
        inner.ready(order.deadline).await?;
        loop {
            // A step that is joined writes nothing, and its caller must be the leader all the same.
            inner.ledger.observe_epoch(order.fence.clone()).await?;
            self.check_generation(&order)?;
            if order.time_left().is_zero() && !self.knows(&order).await? {
                return Err(order.expired());
            }
            let mut events = self.join_or_start(&order, &parent)?;
            match events.accepted().await {
                Ok(()) => return Ok(events),
                // The refusal was for whoever started it: a leader that we replaced, or one with less time. That step
                // is out of the map, so this ends with a step of our own, or another that was accepted.
                Err(_) if events.joined() => {}
                Err(problem) => return Err(problem),
            }
        }
    }

    /// A ledger that is not the one that the leader knows may have lost what was done under this very key.
    fn check_generation(&self, order: &Order) -> Result<(), Problem> {
        let (expected, ours) = (&order.request.ledger_generation, self.0.ledger.generation());
        if !order.mutates() || expected.is_empty() || expected == ours {
            return Ok(());
        }
        let host = &self.0.host;
        let message = format!("{host}: the ledger is {ours}, the coordinator knows {expected}");
        Err(Problem::new(Code::LedgerLost, message))
    }

    /// Does the step run, or is its outcome in the ledger? Such a step is answered however late the question comes: what
    /// became of it matters more than its deadline.
    async fn knows(&self, order: &Order) -> Result<bool, Problem> {
        if self.0.running().contains_key(&order.key) {
            return Ok(true);
        }
        let looked = self
            .0
            .ledger
            .look(order.fence.clone(), order.key.clone(), order.digest)
            .await?;
        Ok(match looked {
            Begin::Known(_) | Begin::ArgsDiffer => true,
            Begin::New | Begin::Unfinished => false,
        })
    }

    fn join_or_start(&self, order: &Order, parent: &Context) -> Result<Events, Problem> {
        let mut running = self.0.running();
        if let Some(step) = running.get(&order.key) {
            return if step.digest == order.digest {
                Ok(step.join())
            } else {
                Err(order.key_reused())
            };
        }
        if self.0.tasks.is_closed() {
            return Err(stopping());
        }
        if running.len() >= MAX_RUNNING {
            return Err(Problem::new(
                Code::ComponentBusy,
                format!("{}: {MAX_RUNNING} steps run or wait already", self.0.host),
            ));
        }
        let (step, reporter, events) = Running::start(order.digest);
        running.insert(order.key.clone(), step);
        let (inner, order) = (Arc::clone(&self.0), order.clone());
        self.0
            .tasks
            .spawn(settle::settle(inner, order, reporter, parent.clone()));
        Ok(events)
    }

    /// Components, as the coordinator sees them.
    pub fn describe(&self) -> Vec<v1::ComponentInfo> {
        self.0
            .components
            .iter()
            .map(|(name, component)| convert::component_info(name, &component.info))
            .collect()
    }

    /// Resolves once the steps of the last process are.
    pub async fn recovered(&self) {
        self.0.recovered.wait().await;
    }

    /// Accepts nothing more, and waits for what runs, up to `patience`. What is still running then is cut off with the
    /// process; its intent is in the ledger, and the next start resolves it. True when nothing was left.
    pub async fn stop(&self, patience: Duration) -> bool {
        self.0.tasks.close();
        tokio::time::timeout(patience, self.0.tasks.wait()).await.is_ok()
    }
}

impl Inner {
    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<StepKey, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ready(&self, deadline: tokio::time::Instant) -> Result<(), Problem> {
        match tokio::time::timeout_at(deadline, self.recovered.wait()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Problem::new(
                Code::ComponentBusy,
                format!(
                    "{}: the steps that the last run of the agent left unfinished are being resolved",
                    self.host
                ),
            )),
        }
    }
}

fn stopping() -> Problem {
    Problem::new(Code::HostUnreachable, "the agent is stopping").remedy("ask again when the agent is back")
}

#[cfg(test)]
pub(crate) mod tests;
