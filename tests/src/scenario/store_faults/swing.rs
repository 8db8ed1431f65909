//! A rollback from one release to the other, in the middle of which something happens.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::ctl::{Running, rollback_to};
use crate::fleet::Fleet;
use crate::scenario::coordinator_killed::Marks;
use crate::scenario::{Found, expect_running, found};
use crate::wait;
use crate::zekka::Version;

/// Long enough for most faults to begin before the application has started.
const SLOW_START: Duration = Duration::from_secs(2);

const MIDDLE_WITHIN: Duration = Duration::from_secs(60);

/// Faults last, and what they interrupted is waited for.
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// What came of all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub rollbacks: usize,
    pub verified: usize,
    pub duplicate_effects: usize,
}

impl Tally {
    /// Adds what else was found to it, for the result.
    pub fn with(self, more: Value) -> Found {
        let mut all = found(json!({
            "rollbacks": self.rollbacks, "verified": self.verified, "duplicate_effects": self.duplicate_effects,
        }));
        all.extend(found(more));
        all
    }
}

/// One that is under way.
#[derive(Debug)]
pub struct Swing {
    from: Version,
    to: Version,
    marks: Marks,
    /// Effects on app-1 before it began.
    before: usize,
    running: Running,
}

fn other(live: Version) -> Version {
    match live {
        Version::V3_0_0 => Version::V2_9_0,
        Version::V2_9_0 | Version::V2_9_1 | Version::V3_1_0 => Version::V3_0_0,
    }
}

impl Swing {
    /// The operator's command, and an application that takes its time to start.
    pub fn begin(fleet: &Fleet, from: Version) -> Result<Self> {
        let to = other(from);
        for host in &fleet.zekka.hosts {
            host.set_fault(to, false, SLOW_START)?;
        }
        Ok(Self {
            from,
            to,
            marks: Marks::set(fleet)?,
            before: fleet.app("app-1")?.effects()?.len(),
            running: fleet.ctl.start(&rollback_to(to.name()), false)?,
        })
    }

    /// Waits until an application begins to start: its step's intent is in the journal, its outcome is not.
    pub async fn middle(&self, fleet: &Fleet) -> Result<()> {
        let app = fleet.app("app-1")?;
        let started = ("start".to_owned(), self.to.name().to_owned());
        let what = format!("{} begins to start on app-1", self.to.name());
        wait::until_true(&what, MIDDLE_WITHIN, async || {
            app.effects().is_ok_and(|all| all[self.before..].contains(&started))
        })
        .await
    }

    /// Waits until the operator is told of a step that begins: `phase`, `host/component`, `action`.
    pub async fn until(&mut self, phase: &str, target: &str, action: &str) -> Result<()> {
        let what = format!("{action} of {target} begins in {phase}");
        let begins = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().skip(1).take(4).collect();
            words == [phase, target, action, "…"]
        };
        self.running.until_line(&what, MIDDLE_WITHIN, begins).await.map(drop)
    }

    /// Waits until the operator is told something.
    pub async fn until_said(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.running.until_line(what, MIDDLE_WITHIN, wanted).await
    }

    /// Waits for the end, which must be the target everywhere, reached once.
    pub async fn verified(self, fleet: &Fleet, tally: &mut Tally) -> Result<Version> {
        let Self {
            from,
            to,
            marks,
            running,
            ..
        } = self;
        tally.rollbacks += 1;
        let answer = running.answer_within(ENDS_WITHIN).await?.expect_code(0)?;
        let state = answer.json()?["state"].clone();
        ensure!(state == "verified", "the rollback is not verified: {answer}");
        tally.verified += 1;
        tally.duplicate_effects += marks.duplicates(fleet)?;
        marks
            .expect_switched(fleet, from, to)
            .with_context(|| format!("the operator was told: {answer}"))?;
        expect_running(fleet, to)?;
        Ok(to)
    }

    /// Hands out what runs, for a story that ends otherwise.
    pub fn into_running(self) -> Running {
        self.running
    }
}
