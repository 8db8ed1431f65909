//! Following a rollback to its end: the journal from where we are, then live, across lost connections, restarts of the
//! coordinator and changes of the leader.
//!
//! Invariants:
//! - No journal event is passed on twice, and none is left out: every new stream begins after the last `seq` seen.
//! - The events come from the leader. A replica that does not lead names the one that does, and the client goes there
//!   within one attempt; that nobody leads is a lost connection like any other.
//! - A lost connection is never the end. Only the rollback's own end, a refusal (no such rollback), the operator or
//!   `--timeout` are.

mod attend;
mod conclude;
mod interrupt;
mod screen;

use futures::Stream;
use futures::stream::unfold;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::RollbackEvent;
use rollback_proto::v1::rollback_event::Kind;
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
    is_over: bool,
}

/// Ends after [`Kind::Ended`] or [`Signal::Refused`]. Cancellation-safe as a stream: what was read is never dropped.
pub fn follow(client: &mut Client, id: String) -> impl Stream<Item = Signal> + '_ {
    let follower = Follower {
        client,
        id,
        after_seq: 0,
        stream: None,
        backoff: Backoff::new(),
        is_lost: false,
        is_over: false,
    };
    unfold(follower, |mut follower| async move {
        follower.next().await.map(|signal| (signal, follower))
    })
}

impl Follower<'_> {
    async fn next(&mut self) -> Option<Signal> {
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
            let error = match stream.message().await {
                Ok(Some(event)) => match self.accept(event) {
                    Some(signal) => return Some(signal),
                    None => continue,
                },
                // A coordinator that shuts down, or leads no longer, ends its streams in order. Another one goes on.
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
            if let Some(signal) = self.lose(error) {
                return Some(signal);
            }
        }
    }

    /// One attempt to open the stream. `None`: nothing to tell.
    async fn open(&mut self) -> Option<Signal> {
        if self.is_lost {
            self.backoff.pause().await;
        }
        match self.client.watch(&self.id, self.after_seq).await {
            Ok(stream) => {
                self.stream = Some(stream);
                std::mem::take(&mut self.is_lost).then_some(Signal::Back)
            }
            Err(error) => self.lose(error),
        }
    }

    /// Passes on what is new.
    fn accept(&mut self, event: RollbackEvent) -> Option<Signal> {
        // Progress lines have no place in the journal: seq 0.
        if event.seq != 0 {
            if event.seq <= self.after_seq {
                return None;
            }
            self.after_seq = event.seq;
        }
        self.backoff.reset();
        self.is_over = event.kind == i32::from(Kind::Ended);
        Some(Signal::Event(Box::new(event)))
    }

    /// Tells a loss once, a refusal always.
    fn lose(&mut self, error: CallError) -> Option<Signal> {
        if !error.lost {
            self.is_over = true;
            return Some(Signal::Refused(error));
        }
        let is_news = !std::mem::replace(&mut self.is_lost, true);
        is_news.then_some(Signal::Lost(error.problem))
    }
}
