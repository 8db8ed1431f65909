//! Beside the live container and into its place: `stage`, `switch`, `discard`, `finish`.
//!
//! ```text
//!                     app                app.staged-<id>    app.before-<id>
//! before              v3                 -                  -
//! staged              v3                 v2                 -
//! between the renames -                  v2                 v3
//! switched            v2                 -                  v3
//! undone              v3                 v2                 -
//! ```
//!
//! The switch looks at which images stand under the three names and does the one rename that is due, until none is. So a
//! switch that was killed, or whose daemon was restarted, goes on from wherever it stands. Nothing is started or stopped.

use std::collections::BTreeSet;
use std::time::Instant;

use rollback_proto::problem::{Code, Problem};

use super::managed::{ENGINE_ABSENCE, Managed, Names, Undone};
use super::seen::{Seen, is_never};
use crate::driver::{Done, Failure, Probe, Revision};
use crate::step::StepContext;

/// What stands under the three names.
#[derive(Debug)]
pub struct Stand {
    pub live: Option<Seen>,
    pub staged: Option<Seen>,
    pub before: Option<Seen>,
}

/// The rename that is due.
#[derive(Debug)]
enum Due<'a> {
    Nothing,
    /// The live one makes room under this name.
    Aside(&'a Seen, &'a str),
    /// This one becomes the live one.
    Enter(&'a Seen),
    Stuck(Problem),
}

impl Stand {
    /// The container that shall become live. The one that was live before goes first: it is the instant undo.
    pub fn wanted(&self, image: &str) -> Option<&Seen> {
        let is = |c: &&Seen| c.image() == image;
        self.before
            .as_ref()
            .filter(is)
            .or_else(|| self.staged.as_ref().filter(is))
    }

    fn due<'a>(&'a self, names: &'a Names, from: &Revision, to: &Revision) -> Due<'a> {
        let wanted = self.wanted(&to.digest);
        match (&self.live, wanted) {
            (Some(live), _) if live.image() == to.digest => Due::Nothing,
            (Some(live), Some(wanted)) if live.image() == from.digest => {
                let (aside, taken) = if wanted.name() == names.before {
                    (&names.staged, &self.staged)
                } else {
                    (&names.before, &self.before)
                };
                match taken {
                    None => Due::Aside(live, aside),
                    Some(_) => Due::Stuck(Problem::new(
                        Code::ContainerUnfit,
                        format!("container {aside} is in the way"),
                    )),
                }
            }
            (None, Some(wanted)) => Due::Enter(wanted),
            (Some(live), None) if live.image() == from.digest => Due::Stuck(Problem::new(
                Code::RevisionMissing,
                format!("no container with the image of {} is staged", to.version),
            )),
            (Some(live), _) => Due::Stuck(Problem::new(
                Code::WrongRevision,
                format!(
                    "container {} is at {}, neither at {} nor at {}",
                    live.name(),
                    live.image(),
                    from.version,
                    to.version
                ),
            )),
            (None, None) => Due::Stuck(Problem::new(
                Code::ContainerUnfit,
                format!("neither {} nor {} is there", names.staged, names.before),
            )),
        }
    }
}

impl Managed {
    pub async fn stand(&self, names: &Names) -> Result<Stand, Problem> {
        Ok(Stand {
            live: self.look(&self.container).await?,
            staged: self.look(&names.staged).await?,
            before: self.look(&names.before).await?,
        })
    }

    /// Removes a container of ours that does not run. Somebody else's is a problem.
    async fn clear(&self, container: &Seen) -> Result<(), Failure> {
        if !self.notes().await?.ours(container, &self.component) {
            return Err(Failure::Failed(Problem::new(
                Code::ContainerUnfit,
                format!("the name {} is taken by a container that is not ours", container.name()),
            )));
        }
        if container.running() {
            return Err(Failure::Failed(Problem::new(
                Code::StillRunning,
                format!("container {} is ours and should not run", container.name()),
            )));
        }
        Ok(self.remove(container).await?)
    }

    pub async fn stage(&self, step: &StepContext) -> Result<Done, Failure> {
        let names = self.names(&step.rollback_id)?;
        step.operation("image", self.fetch(step)).await?;
        let stand = step.operation("look", self.stand(&names)).await?;
        let live = match stand.live {
            Some(live) => live,
            None => self.live().await?,
        };
        if live.image() == step.to.digest {
            return Ok(Done::new(format!("{} is live already", step.to.version)));
        }
        if live.image() != step.from.digest {
            return Err(Failure::Failed(self.wrong(&live, step)));
        }
        self.note_env_names(&live).await?;
        // Made anew each time: the live one may have been changed since.
        if let Some(stale) = &stand.staged {
            step.operation("remove_stale", self.clear(stale)).await?;
        }
        let made = step
            .operation(
                "create_container",
                self.create(&live, &step.to.digest, &names, &step.rollback_id),
            )
            .await?;
        Ok(Done::new(format!("{} created from {}", made.name(), made.image_name())))
    }

    pub fn wrong(&self, live: &Seen, step: &StepContext) -> Problem {
        Problem::new(
            Code::WrongRevision,
            format!(
                "container {} is at {}, neither at {} nor at {}",
                self.container,
                live.image(),
                step.from.version,
                step.to.version
            ),
        )
    }

    pub async fn switch(&self, step: &StepContext) -> Result<Done, Failure> {
        let names = self.names(&step.rollback_id)?;
        step.operation("ready_successor", self.ready_successor(step, &names))
            .await?;
        let seen = step.operation("rename_containers", self.renames(step, &names)).await?;
        let revision = self.revision_of(&seen).await?;
        let summary = format!("{} is {} ({})", self.container, seen.short_id(), revision.version);
        Ok(Done::at(revision, summary))
    }

    /// Everything that may go wrong before the first rename. Afterwards a container with the wanted image stands ready
    /// beside the live one, and the name that the live one gets is free.
    async fn ready_successor(&self, step: &StepContext, names: &Names) -> Result<(), Failure> {
        let mut stand = self.stand(names).await?;
        if stand.live.is_none() && stand.wanted(&step.to.digest).is_none() {
            // Killed between the renames, and what was to come in is gone: the old one goes back first.
            if let Some(old) = stand.wanted(&step.from.digest) {
                self.rename(old, &self.container).await?;
                stand = self.stand(names).await?;
            }
        }
        let Some(live) = &stand.live else {
            return match stand.wanted(&step.to.digest) {
                Some(_) => Ok(()),
                None => Err(Failure::Failed(self.live().await.err().unwrap_or_else(|| {
                    Problem::new(Code::ContainerUnfit, format!("{} came and went", self.container))
                }))),
            };
        };
        if live.image() == step.to.digest {
            return Ok(());
        }
        if live.image() != step.from.digest {
            return Err(Failure::Failed(self.wrong(live, step)));
        }
        if live.running() {
            return Err(Failure::Failed(
                Problem::new(
                    Code::StillRunning,
                    format!("container {} runs: it is stopped before it is switched", self.container),
                )
                .remedy("somebody started it again; find out who, then repeat the rollback"),
            ));
        }
        if stand.before.as_ref().is_some_and(|b| b.image() == step.to.digest) {
            // The undo: exactly what was live comes back. What was made in the meantime makes room.
            if let Some(stale) = &stand.staged {
                self.clear(stale).await?;
            }
            return Ok(());
        }
        if let Some(stale) = &stand.before {
            self.clear(stale).await?;
        }
        let notes = self.notes().await?;
        if let Some(staged) = &stand.staged {
            let good = staged.image() == step.to.digest
                && notes.ours(staged, &self.component)
                && self.environment_is_in(staged, &notes).await?;
            if good {
                return Ok(self.match_networks(live, staged).await?);
            }
            self.clear(staged).await?;
        }
        self.create(live, &step.to.digest, names, &step.rollback_id).await?;
        Ok(())
    }

    async fn renames(&self, step: &StepContext, names: &Names) -> Result<Seen, Failure> {
        let until = step.deadline.min(Instant::now() + ENGINE_ABSENCE);
        loop {
            let problem = match self.next_rename(step, names).await {
                Ok(Some(live)) => return Ok(live),
                Ok(None) => continue,
                Err(Undone::Lost(problem)) => {
                    if self.engine_returns(until).await && Instant::now() < until {
                        continue;
                    }
                    return Err(Failure::Indeterminate(Problem {
                        message: format!(
                            "{}; it is not known under which of {}, {} and {} the containers stand",
                            problem.message, self.container, names.staged, names.before
                        ),
                        ..problem
                    }));
                }
                Err(Undone::Refused(problem)) => problem,
            };
            return Err(self.put_back(step, names, problem).await);
        }
    }

    /// The live container when no rename is due any more.
    async fn next_rename(&self, step: &StepContext, names: &Names) -> Result<Option<Seen>, Undone> {
        let stand = self.stand(names).await.map_err(Undone::Lost)?;
        match stand.due(names, &step.from, &step.to) {
            Due::Nothing => return Ok(stand.live),
            Due::Stuck(problem) => return Err(Undone::Refused(problem)),
            Due::Aside(live, name) => {
                self.note_aside(live).await.map_err(Undone::Refused)?;
                self.rename(live, name).await?;
            }
            Due::Enter(wanted) => self.rename(wanted, &self.container).await?,
        }
        Ok(None)
    }

    /// A rename was refused: whatever was live before gets its name back.
    async fn put_back(&self, step: &StepContext, names: &Names, problem: Problem) -> Failure {
        let back = async {
            let stand = self.stand(names).await.map_err(Undone::Lost)?;
            match (&stand.live, stand.wanted(&step.from.digest)) {
                (None, Some(old)) => self.rename(old, &self.container).await,
                (Some(_), _) | (None, None) => Ok(()),
            }
        };
        match back.await {
            Ok(()) => Failure::Failed(problem),
            Err(undone) => Failure::Indeterminate(Problem {
                message: format!(
                    "{}; and putting the old container back failed: {}",
                    problem.message,
                    undone.problem().message
                ),
                ..problem
            }),
        }
    }

    /// Removes what was staged, for this rollback or an earlier one.
    pub async fn discard(&self) -> Result<usize, Failure> {
        let prefix = self.staged_prefix();
        let mut removed = 0;
        for container in self.ours_named(&[&prefix]).await? {
            self.clear(&container).await?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Containers of ours under temporary names, in no particular order.
    async fn ours_named(&self, prefixes: &[&str]) -> Result<Vec<Seen>, Problem> {
        let notes = self.notes().await?;
        let mut found = Vec::new();
        for summary in self.list().await? {
            let names = summary.names.unwrap_or_default();
            let named = names
                .iter()
                .any(|n| prefixes.iter().any(|p| n.trim_start_matches('/').starts_with(p)));
            if let Some(id) = summary.id.filter(|_| named)
                && let Some(container) = self.look(&id).await?
                && notes.ours(&container, &self.component)
            {
                found.push(container);
            }
        }
        Ok(found)
    }

    /// Keeps the container that was live before this rollback, or before the last one that changed something; removes the
    /// other ones that are ours. Returns the name of what is kept.
    pub async fn tidy(&self, step: &StepContext) -> Result<Option<String>, Failure> {
        let names = self.names(&step.rollback_id)?;
        let live = self.live().await?;
        let (staged, before) = (self.staged_prefix(), self.before_prefix());
        let mut ours = self.ours_named(&[&staged, &before]).await?;
        ours.retain(|c| c.id() != live.id());
        // Ids of rollbacks grow with time, and so do the moments at which containers were made.
        ours.sort_by_key(|c| (c.name() == names.before, c.started_at().to_owned()));
        let kept = ours
            .iter()
            .rposition(|c| self.keep && c.name().starts_with(&before))
            .map(|at| ours.remove(at));
        for container in &ours {
            self.clear(container).await?;
        }
        let here: BTreeSet<String> = self.list().await?.into_iter().filter_map(|c| c.id).collect();
        self.note(|n| {
            n.keep_only(&here);
            if !is_never(&live.policy()) {
                // The policy on the container is the one that counts.
                n.policies.remove(live.id());
            }
        })
        .await?;
        Ok(kept.map(|c| c.name().to_owned()))
    }

    /// The agent was killed inside a switch.
    pub async fn probe_switch(&self, step: &StepContext) -> Result<Probe, Problem> {
        let names = self.names(&step.rollback_id)?;
        let stand = self.stand(&names).await?;
        Ok(match &stand.live {
            Some(live) if live.image() == step.to.digest => {
                let revision = self.revision_of(live).await?;
                Probe::Applied(Done::at(revision, "the containers are exchanged"))
            }
            Some(live) if live.image() == step.from.digest => Probe::Repeatable("nothing was exchanged".into()),
            Some(live) => Probe::Indeterminate(self.wrong(live, step)),
            None => {
                let known = stand
                    .wanted(&step.to.digest)
                    .or_else(|| stand.wanted(&step.from.digest));
                match known {
                    Some(container) => {
                        Probe::Repeatable(format!("between the renames: {} has no name yet", container.name()))
                    }
                    None => Probe::Indeterminate(Problem::new(
                        Code::ContainerUnfit,
                        format!(
                            "there is no container {}, {} or {}",
                            self.container, names.staged, names.before
                        ),
                    )),
                }
            }
        })
    }
}
