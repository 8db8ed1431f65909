//! Following a rollback to its end: the journal from where we are, then live, across lost connections, restarts of the
//! coordinator and changes of the leader.
//!
//! Invariants:
//! - No journal event is passed on twice, and none is left out: every new stream begins after the last `seq` seen.
//! - A replica that does not lead tells what it has in its store, and then who leads. Going there is no loss, and nobody is
//!   told; that nobody leads is one.
//! - A lost connection is never the end. Only the rollback's own end, a refusal (no such rollback), the operator or
//!   `--timeout` are.

mod attend;
mod conclude;
mod interrupt;
mod screen;

use std::time::{Duration, Instant};

use futures::Stream;
use futures::stream::unfold;
use rollback_proto::problem::{Code, Hint, Problem};
use rollback_proto::v1::RollbackEvent;
use rollback_proto::v1::rollback_event::Kind;
use tokio::time::timeout;
use tonic::Streaming;

use crate::client::{Backoff, CallError, Client};

pub use attend::{Attended, attend};
pub use conclude::{conclude, left_running};
pub use interrupt::Interrupts;
pub use screen::Screen;

/// What following a rollback tells.
#[derive(Debug)]
pub enum Signal {
    Event(Box<RollbackEvent>),
    /// The connection is gone; we are trying to come back.
    Lost(Problem),
    /// It is gone still, for this reason by now.
    StillLost(Problem),
    /// The connection is there again.
    Back,
    /// The coordinator refuses. Last signal.
    Refused(CallError),
}

struct Follower<'a> {
    client: &'a mut Client,
    id: String,
    after_seq: u64,
    stream: Option<Streaming<RollbackEvent>>,
    backoff: Backoff,
    /// `Lost` was told and `Back` was not.
    is_lost: bool,
    /// When the last word about that was said.
    said_at: Instant,
    is_over: bool,
    /// The stream ended by naming the leader: there without a pause.
    is_referred: bool,
    /// How often that was so since the last event or pause.
    referrals: u32,
    /// The end, which is told after `Back`.
    end: Option<Signal>,
}

/// Replicas that point at each other, or at one that is gone, are asked again after a pause.
const REFERRALS: u32 = 2;
/// A stream that was open for so long is one of a coordinator that leads: one that does not ends it at once.
const IS_BACK_AFTER: Duration = Duration::from_millis(500);

/// Whoever waits is told every now and then for what.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Ends after [`Kind::Ended`] or [`Signal::Refused`]. Cancellation-safe as a stream: what was read is never dropped.
pub fn follow(client: &mut Client, id: String) -> impl Stream<Item = Signal> + '_ {
    let follower = Follower {
        client,
        id,
        after_seq: 0,
        stream: None,
        backoff: Backoff::new(),
        is_lost: false,
        said_at: Instant::now(),
        is_over: false,
        is_referred: false,
        referrals: 0,
        end: None,
    };
    unfold(follower, |mut follower| async move {
        follower.next().await.map(|signal| (signal, follower))
    })
}

impl Follower<'_> {
    async fn next(&mut self) -> Option<Signal> {
        if let Some(end) = self.end.take() {
            return Some(end);
        }
        if self.is_over {
            return None;
        }
        loop {
            let Some(stream) = &mut self.stream else {
                match self.open().await {
                    Some(signal) => return Some(signal),
                    None => continue,
                }
            };
            let message = if self.is_lost {
                match timeout(IS_BACK_AFTER, stream.message()).await {
                    Ok(message) => message,
                    Err(_) => {
                        self.is_lost = false;
                        return Some(Signal::Back);
                    }
                }
            } else {
                stream.message().await
            };
            let error = match message {
                Ok(Some(event)) => match self.accept(event) {
                    Some(signal) => return Some(signal),
                    None => continue,
                },
                // A coordinator that shuts down ends its streams in order. Another one goes on.
                Ok(None) => {
                    self.client.drop_connection();
                    CallError {
                        problem: Problem::new(Code::HostUnreachable, "the coordinator ended the stream"),
                        lost: true,
                    }
                }
                Err(status) => self.client.failed(&status),
            };
            self.stream = None;
            if self.refers(&error.problem) {
                continue;
            }
            if let Some(signal) = self.lose(error) {
                return Some(signal);
            }
        }
    }

    /// Does this say where it goes on? The client has noted where.
    fn refers(&mut self, problem: &Problem) -> bool {
        let names_leader = matches!(problem.hint, Some(Hint::Leader(_)));
        self.is_referred = problem.code == Code::NotLeader && names_leader && self.referrals < REFERRALS;
        self.referrals += u32::from(self.is_referred);
        self.is_referred
    }

    /// One attempt to open the stream. `None`: nothing to tell.
    async fn open(&mut self) -> Option<Signal> {
        let is_referred = std::mem::take(&mut self.is_referred);
        if self.is_lost && !is_referred {
            self.backoff.pause().await;
            self.referrals = 0;
        }
        match self.client.watch(&self.id, self.after_seq).await {
            Ok(stream) => {
                self.stream = Some(stream);
                None
            }
            Err(error) => self.lose(error),
        }
    }

    /// Passes on what is new.
    fn accept(&mut self, event: RollbackEvent) -> Option<Signal> {
        let ends = event.kind == i32::from(Kind::Ended);
        // Progress lines have no place in the journal: seq 0. The end is the end also when a store that lost events gives it
        // a number that was seen before.
        if event.seq != 0 && !ends {
            if event.seq <= self.after_seq {
                return None;
            }
            self.after_seq = event.seq;
        }
        self.backoff.reset();
        self.referrals = 0;
        self.is_over = ends;
        let signal = Signal::Event(Box::new(event));
        if self.is_over && std::mem::take(&mut self.is_lost) {
            self.end = Some(signal);
            return Some(Signal::Back);
        }
        Some(signal)
    }

    /// Tells a loss once, a refusal always.
    fn lose(&mut self, error: CallError) -> Option<Signal> {
        if !error.lost {
            self.is_over = true;
            return Some(Signal::Refused(error));
        }
        let is_news = !std::mem::replace(&mut self.is_lost, true);
        if !is_news && self.said_at.elapsed() < SAY_AGAIN {
            return None;
        }
        self.said_at = Instant::now();
        Some(if is_news {
            Signal::Lost(error.problem)
        } else {
            Signal::StillLost(error.problem)
        })
    }
}
