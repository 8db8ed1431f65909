//! The loop in front of the screen: events, the operator's Ctrl-C, `--timeout`, and a picture that stays fresh.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::RollbackState;
use rollback_proto::v1::rollback_event::Kind;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{Interrupts, Screen, Signal, follow};
use crate::client::{CallError, Client};
use crate::output::text::clean;

/// How often elapsed times on the screen move.
const REDRAW: Duration = Duration::from_millis(100);

/// Why we stopped watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attended {
    Ended {
        state: RollbackState,
        blocked: bool,
    },
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// `--timeout`.
    TimedOut,
}

/// Watches a rollback until it ends, the operator leaves or `until` passes. The rollback itself goes on in any case.
pub async fn attend(
    client: &mut Client,
    id: &str,
    screen: &mut Screen,
    until: Option<Instant>,
    interrupts: &mut Interrupts,
) -> Result<Attended, CallError> {
    let mut signals = pin!(follow(client, id.to_owned()));
    let mut redraw = interval(REDRAW);
    redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let passed = async {
        match until {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    let mut passed = pin!(passed);
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Some(Signal::Event(event)) => {
                    screen.event(&event);
                    if event.kind == i32::from(Kind::Ended) {
                        let state = RollbackState::try_from(event.state).unwrap_or(RollbackState::Unspecified);
                        return Ok(Attended::Ended { state, blocked: event.blocked });
                    }
                }
                Some(Signal::Lost(problem)) => {
                    let why = clean(&problem.message);
                    screen.notice(&format!("coordinator connection lost, reconnecting … ({why})"));
                }
                Some(Signal::StillLost(problem)) => {
                    screen.notice(&format!("still reconnecting … ({})", clean(&problem.message)));
                }
                Some(Signal::Back) => screen.notice("coordinator connection is back"),
                Some(Signal::Refused(error)) => return Err(error),
                None => return Err(Problem::new(Code::Internal, "the watch ended without an end").into()),
            },
            () = interrupts.next() => {
                screen.keep();
                return Ok(Attended::Interrupted);
            }
            () = &mut passed => return Ok(Attended::TimedOut),
            _ = redraw.tick() => screen.redraw(),
        }
    }
}
