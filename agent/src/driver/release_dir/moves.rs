//! The cutover, and what a killed move left behind.

use std::time::Instant;

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};

use super::layout::{Layout, candidate_names};
use super::{ReleaseDirDriver, neither};
use crate::driver::link::Current;
use crate::driver::{Action, Done, Probe, Revision};
use crate::step::StepContext;

impl Layout {
    /// Points `current` from one release to the other. Repeatable after a kill at any point; the link is either old or
    /// new at any time. Nothing is touched when `current` is at neither of the two.
    pub fn switch(&self, from: &Revision, to: &Revision, id: &str, deadline: Instant) -> Result<Revision, Problem> {
        check_name("rollback", id)?;
        let found = self.current()?;
        let before = match &found {
            Current::Release(name) => Some(name.clone()),
            Current::Directory if self.adopt => None,
            // Nothing would be lost by making the link, but who removed it, and why?
            Current::Directory | Current::Missing | Current::Elsewhere(_) => return Err(self.bad_layout(&found)),
        };
        if let Some(name) = &before {
            self.expect_known(name, from, to)?;
        }
        // Complete already when `stage` ran. An undo finds its release where it was left, or in the vault.
        let staged = self.make_complete(to, id, deadline)?;
        let dir = staged.dir();
        match &before {
            Some(name) if self.releases.join(name) == dir => {}
            Some(_) => self.link().point_to(dir, id)?,
            None => {}
        }
        if self.adopt {
            let [name, _] = candidate_names(from)?;
            self.adopt_directory(dir, &name, id)?;
        }
        if let Err(problem) = self.link().expect_leads_to(dir) {
            if let Some(name) = before {
                self.link().point_to(&self.releases.join(name), id)?;
            }
            return Err(problem);
        }
        Ok(to.clone())
    }

    /// The link's release must be one of the two, by name or by content: the application may have written a file into
    /// its directory since the plan was made, and must come away from there all the same.
    fn expect_known(&self, name: &str, from: &Revision, to: &Revision) -> Result<(), Problem> {
        let named = |revision: &Revision| Ok::<_, Problem>(candidate_names(revision)?.iter().any(|c| c == name));
        if named(from)? || named(to)? {
            return Ok(());
        }
        let dir = self.releases.join(name);
        if dir.is_dir() {
            let digest = self.manifest(&dir)?.digest();
            if digest == from.digest || digest == to.digest {
                return Ok(());
            }
        }
        Err(Problem::new(
            Code::WrongRevision,
            format!(
                "{} points to {name}, which is {}",
                self.current.display(),
                neither(from, to)
            ),
        ))
    }
}

/// What became of a move whose agent was killed. Every move converges when it is repeated, so the only state that asks
/// for a person is one that none of them makes.
pub async fn probe(driver: &ReleaseDirDriver, step: &StepContext) -> Probe {
    let live = driver.live().await;
    match step.action {
        Action::Switch => match live {
            Ok((seen, _)) if seen == step.to => Probe::Applied(Done::at(seen, "the link is switched")),
            Ok((seen, _)) if seen == step.from || seen.version == step.from.version => {
                Probe::Repeatable("the link is not switched".into())
            }
            Ok((seen, _)) => Probe::Indeterminate(Problem::new(
                Code::WrongRevision,
                format!("{} is live, {}", seen.version, neither(&step.from, &step.to)),
            )),
            Err(problem) => Probe::Indeterminate(problem),
        },
        Action::Stop => driver.application.probe_stop().await,
        Action::Start => match live {
            Ok((seen, dir)) => driver.application.probe_start(step, seen, &dir).await,
            Err(problem) => Probe::Indeterminate(problem),
        },
        Action::Stage
        | Action::Discard
        | Action::Finish
        | Action::Prepare
        | Action::Verify
        | Action::Snapshot
        | Action::Drain
        | Action::Resume
        | Action::Unspecified => Probe::Repeatable("the live release is not touched by this move".into()),
    }
}
