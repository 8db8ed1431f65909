//! The cutover, and what a killed move left behind.

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};

use super::GitDriver;
use super::repository::Commit;
use super::trees::{Ready, Trees};
use crate::driver::link::is_real_directory;
use crate::driver::{Action, Done, Probe, Revision};
use crate::step::StepContext;

/// Points `current` to a complete worktree of `step.to`. Repeatable after a kill at any point; the link is either old or
/// new at any time. Nothing is touched when neither of the two is live.
pub async fn switch(trees: &Trees, step: &StepContext) -> Result<Revision, Problem> {
    let id = &step.rollback_id;
    check_name("rollback", id)?;
    let (from, to) = (
        Commit::from_digest(&step.from.digest)?,
        Commit::from_digest(&step.to.digest)?,
    );
    let live = trees.live().await?;
    if live.commit == to {
        return Ok(step.to.clone());
    }
    if live.commit != from {
        return Err(neither(&live.revision, step));
    }
    let name = destination(trees, id, &to, &step.to).await?;
    let dir = trees.dir(&name)?;
    trees.note_departure(id, &live)?;
    let link = trees.link();
    link.point_to(&dir, id)?;
    let seen = match link.expect_leads_to(&dir) {
        Ok(()) => trees.repository.head_of(&dir).await,
        Err(problem) => Err(problem),
    };
    match seen {
        Ok(head) if head == to => Ok(step.to.clone()),
        Ok(head) => {
            link.point_to(&live.dir, id)?;
            let what = format!("{} was checked out in {} meanwhile", head.short(), dir.display());
            Err(Problem::new(Code::WrongRevision, what))
        }
        Err(problem) => {
            link.point_to(&live.dir, id)?;
            Err(problem)
        }
    }
}

/// The way back leads to the very directory that was left, the way there to one that is complete.
async fn destination(trees: &Trees, id: &str, to: &Commit, revision: &Revision) -> Result<String, Problem> {
    if let Some(left) = trees.departure(id)?
        && left.commit == *to
    {
        let dir = trees.dir(&left.name)?;
        if is_real_directory(&dir)? && trees.repository.head_of(&dir).await? == *to {
            return Ok(left.name);
        }
    }
    match trees.ready(to).await? {
        Ready::Yes(note) => Ok(note.name),
        Ready::No(why) => {
            let why = if why.is_empty() {
                "there is none".to_owned()
            } else {
                why.join("; ")
            };
            Err(Problem::new(
                Code::RevisionMissing,
                format!(
                    "no complete worktree of {} in {}: {why}",
                    revision.version,
                    trees.releases.display()
                ),
            )
            .remedy("stage it again"))
        }
    }
}

pub fn neither(live: &Revision, step: &StepContext) -> Problem {
    Problem::new(
        Code::WrongRevision,
        format!(
            "{} is live, which is neither {} nor {}",
            live.version, step.from.version, step.to.version
        ),
    )
}

/// What became of a move whose agent was killed. Every move converges when it is repeated, so the only state that asks
/// for a person is one that none of them makes.
pub async fn probe(driver: &GitDriver, step: &StepContext) -> Probe {
    let live = driver.trees.live().await;
    match step.action {
        Action::Switch => match live {
            Ok(seen) if seen.revision == step.to => Probe::Applied(Done::at(seen.revision, "the link is switched")),
            Ok(seen) if seen.revision == step.from => Probe::Repeatable("the link is not switched".into()),
            Ok(seen) => Probe::Indeterminate(neither(&seen.revision, step)),
            Err(problem) => Probe::Indeterminate(problem),
        },
        Action::Stop => driver.application.probe_stop().await,
        Action::Start => match live {
            Ok(seen) => driver.application.probe_start(step, seen.revision, &seen.dir).await,
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
