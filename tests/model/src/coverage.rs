//! What the exploration met, counted by the transitions in which it happened: an exploration that never met a stale leader
//! proves nothing of stale leaders. Kept beside the states, so that it does not multiply them.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! met {
    ($($(#[$doc:meta])* $name:ident = $words:literal,)*) => {
        /// Something worth having met.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Met {
            $($(#[$doc])* $name,)*
        }

        impl Met {
            pub const ALL: &[Met] = &[$(Met::$name,)*];

            pub fn words(self) -> &'static str {
                match self {
                    $(Met::$name => $words,)*
                }
            }
        }
    };
}

met! {
    TakeoverInTheMiddle = "takeovers with steps in flight",
    Fenced = "appends refused by the lease",
    Conflict = "appends refused because the journal had gone on",
    StaleAtAgent = "stale requests refused by an agent",
    StaleAtItsTurn = "steps that waited and were refused when their turn came",
    Late = "requests of a term that was over",
    Duplicate = "requests that had arrived before",
    Joined = "requests that joined a running step",
    FromLedger = "requests answered from the ledger",
    FoundApplied = "probes that found the effect",
    FoundRepeatable = "probes that found no effect",
    FoundUnclear = "probes that could not tell",
    RanAgain = "steps that ran again after an interruption",
    GaveUp = "steps given up",
    LateEffect = "effects of steps that had been given up",
    LedgerLost = "requests refused for a lost ledger",
    Doubt = "takeovers that found a journal with less than a ledger",
    Silent = "takeovers with a ledger that was not heard",
    CommitsLost = "failovers of the store",
    EpochRepeated = "epochs that were given out again",
    Outdone = "leaders that took a higher epoch because an agent knew one",
    ScopeHeld = "requests refused for a held scope",
    RequestRepeated = "requests for a rollback that exists",
    Steered = "acts of operators",
    TriedAgain = "steps that were tried again after they had failed",
}

/// The set of what one transition met.
#[derive(Clone, Copy, Debug, Default)]
pub struct Notes(u32);

impl Notes {
    pub fn note(&mut self, met: Met) {
        self.0 |= 1 << met as u32;
    }

    fn has(self, met: Met) -> bool {
        self.0 & (1 << met as u32) != 0
    }
}

#[derive(Debug)]
pub struct Coverage(Vec<AtomicU64>);

impl Default for Coverage {
    fn default() -> Self {
        Self(Met::ALL.iter().map(|_| AtomicU64::new(0)).collect())
    }
}

impl Coverage {
    pub fn add(&self, notes: Notes) {
        if notes.0 == 0 {
            return;
        }
        for (met, count) in Met::ALL.iter().zip(&self.0) {
            if notes.has(*met) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub fn of(&self, met: Met) -> u64 {
        self.0[met as usize].load(Ordering::Relaxed)
    }
}
