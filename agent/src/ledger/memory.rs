//! A ledger in memory, for simulations: what was written outlives the agent that wrote it, as a disk does.
//!
//! Invariants:
//! - The promises of the ledger on disk, by the same suite of tests. A request is a transaction.
//! - Deterministic: no threads, no clock of its own, no order that depends on hashing.
//! - One owner: who opens it takes it over. Handles from before are refused, as those of a process that is gone.
//!
//! Leaves out batches (each request would be durable by itself) and damage to what was written.

mod records;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rollback_proto::v1::{ExecuteRequest, Outcome};
use tokio::sync::oneshot;

use self::records::{Change, Records};
use super::actor::Ask;
use super::{Fence, Ledger, LedgerError, Place, StepKey, StepState};

/// One of the changes of a request: all of them become durable, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Epoch(Fence),
    Begin(StepKey),
    Finish(StepKey),
    Interrupt(StepKey),
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is durable, and answered.
    None,
    /// It is not written, and that is said: a full disk.
    Refused,
    /// It is durable, and answered as if it had failed: the answer to COMMIT was lost.
    Unknown,
    /// The host ends before it is durable. Nothing is answered any more until the ledger is opened again.
    CrashBefore,
    /// The host ends when it is durable, and before anybody hears of it.
    CrashAfter,
}

/// A step, for whoever judges a simulation.
#[derive(Clone, Debug)]
pub struct Record {
    pub key: StepKey,
    pub state: StepState,
    /// How often it was cut off.
    pub interruptions: u32,
    pub request: ExecuteRequest,
    pub outcome: Option<Outcome>,
}

type Decide = Box<dyn FnMut(&[Write]) -> Fault + Send>;

/// The disk of a simulated host. Clones are the same disk.
#[derive(Clone)]
pub struct Memory(Arc<Mutex<Disk>>);

struct Disk {
    name: String,
    /// How often everything was lost.
    losses: u32,
    records: Records,
    /// Counts openings: handles of an earlier one are refused.
    life: u64,
    crashed: bool,
    /// Of a request, half of it before its write and half of it after.
    latency: Duration,
    decide: Option<Decide>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.lock();
        f.debug_struct("Memory")
            .field("generation", &disk.generation())
            .field("life", &disk.life)
            .finish_non_exhaustive()
    }
}

impl Disk {
    fn generation(&self) -> String {
        format!("{}.{}", self.name, self.losses)
    }
}

impl Memory {
    /// An empty one. The name is a part of its generation.
    pub fn new(name: impl Into<String>) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            name: name.into(),
            losses: 0,
            records: Records::default(),
            life: 0,
            crashed: false,
            latency: Duration::ZERO,
            decide: None,
        })))
    }

    /// As the agent does when it starts. Handles from before are refused from here on, and a crash is over.
    pub fn open(&self) -> Ledger {
        let mut disk = self.lock();
        disk.life += 1;
        disk.crashed = false;
        disk.records.forget();
        Ledger {
            generation: disk.generation().into(),
            place: Place::Memory(Life {
                disk: self.clone(),
                number: disk.life,
            }),
        }
    }

    /// How long a request takes. With none, other tasks have their turn all the same, before the write and after it.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// From here on, what becomes of each request that writes. It must not call this ledger.
    pub fn decide(&self, decide: impl FnMut(&[Write]) -> Fault + Send + 'static) {
        self.lock().decide = Some(Box::new(decide));
    }

    /// A fault was to crash the host. Whoever runs the simulation ends the host then; nothing of it is answered.
    pub fn crashed(&self) -> bool {
        self.lock().crashed
    }

    /// Everything is lost. The next opening finds another, empty ledger.
    pub fn lose(&self) {
        let mut disk = self.lock();
        disk.losses += 1;
        disk.life += 1;
        disk.records = Records::default();
    }

    /// The ledger's clock, by which steps grow old, goes on. It stands still otherwise.
    pub fn pass(&self, time: Duration) {
        self.lock().records.now += time;
    }

    /// The highest epoch, and whose it is.
    pub fn fence(&self) -> Option<Fence> {
        self.lock().records.fence().cloned()
    }

    /// Every step, oldest first.
    pub fn records(&self) -> Vec<Record> {
        self.lock().records.all()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ledger from one opening to the next.
#[derive(Clone, Debug)]
pub(super) struct Life {
    disk: Memory,
    number: u64,
}

impl Life {
    pub async fn answer(&self, ask: Ask) {
        self.elapse().await;
        match ask {
            Ask::Observe { fence, reply } => self.transact(reply, |records| records.observe(&fence)).await,
            Ask::Look {
                fence,
                key,
                digest,
                reply,
            } => {
                self.transact(reply, |records| records.look(&fence, &key, &digest))
                    .await
            }
            Ask::Begin {
                fence,
                key,
                digest,
                request,
                reply,
            } => {
                let begin = |records: &Records| records.begin(&fence, &key, &digest, *request);
                self.transact(reply, begin).await;
            }
            Ask::Finish { key, outcome, reply } => {
                self.transact(reply, |records| records.finish(&key, outcome)).await;
            }
            Ask::Interrupt { key, reply } => self.transact(reply, |records| records.interrupt(&key)).await,
            Ask::Unfinished { reply } => self.transact(reply, |records| Ok((records.unfinished(), vec![]))).await,
            Ask::Recall {
                fence,
                rollbacks,
                reply,
            } => self.transact(reply, |records| records.recall(&fence, &rollbacks)).await,
        }
    }

    async fn transact<T>(
        &self,
        reply: oneshot::Sender<Result<T, LedgerError>>,
        plan: impl FnOnce(&Records) -> Result<(T, Vec<Change>), LedgerError>,
    ) {
        let Some(answer) = self.write(plan) else {
            // The process that would answer is gone.
            return std::future::pending().await;
        };
        self.elapse().await;
        if self.disk.crashed() {
            return std::future::pending().await;
        }
        // A caller that went away does not need the answer.
        drop(reply.send(answer));
    }

    /// `None`: there is nobody any more who could answer.
    fn write<T>(
        &self,
        plan: impl FnOnce(&Records) -> Result<(T, Vec<Change>), LedgerError>,
    ) -> Option<Result<T, LedgerError>> {
        let mut disk = self.disk.lock();
        if disk.life != self.number {
            return Some(Err(LedgerError::Stopping));
        }
        if disk.crashed {
            return None;
        }
        let (answer, changes) = match plan(&disk.records) {
            Ok(planned) => planned,
            Err(refused) => return Some(Err(refused)),
        };
        let fault = match &mut disk.decide {
            Some(decide) if !changes.is_empty() => {
                let writes: Vec<Write> = changes.iter().map(Change::write).collect();
                decide(&writes)
            }
            Some(_) | None => Fault::None,
        };
        match fault {
            Fault::None | Fault::Unknown | Fault::CrashAfter => disk.records.apply(changes),
            Fault::Refused | Fault::CrashBefore => {}
        }
        match fault {
            Fault::None => Some(Ok(answer)),
            Fault::Refused => Some(Err(failed("the disk is full"))),
            Fault::Unknown => Some(Err(failed("the answer to COMMIT was lost"))),
            Fault::CrashBefore | Fault::CrashAfter => {
                disk.crashed = true;
                None
            }
        }
    }

    async fn elapse(&self) {
        let latency = self.disk.lock().latency;
        if latency.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(latency / 2).await;
        }
    }
}

fn failed(why: &str) -> LedgerError {
    LedgerError::Disk(Arc::new(sqlx::Error::Io(std::io::Error::other(why.to_owned()))))
}
