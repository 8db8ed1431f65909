//! Ctrl-C and SIGTERM: they end the watching, never the rollback.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals, caught from the moment this exists.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    pub fn catch() -> anyhow::Result<Self> {
        let interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
        Ok(Self { interrupt, terminate })
    }

    /// Cancellation-safe.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
