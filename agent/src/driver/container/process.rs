//! Stopping and starting what has the component's name, and telling whether it is healthy.
//!
//! Invariants:
//! - A container that was stopped stays stopped: its restart policy is taken away first (with `always` and
//!   `unless-stopped` a restarted daemon starts it again), and given back when it is started.
//! - A start that does not end in health leaves nothing running.
//! - A container is never started with another environment than the env file's of now.

use std::time::{Duration, Instant};

use bollard::models::HealthStatusEnum;
use rollback_proto::problem::{Code, Problem};

use super::managed::{LOOK_EVERY, Managed, Names, Operation, Undone};
use super::seen::{LABEL_ROLLBACK, Seen, is_never, never};
use crate::driver::{Done, Failure, Health, Probe};
use crate::step::StepContext;

/// How long `verify` gives the health check: only a hiccup is waited out.
const VERIFY_WITHIN: Duration = Duration::from_secs(5);

/// A container that the engine had to restart so often since it was started does not start.
const RESTARTS: i64 = 3;

/// The exit status of a process that SIGKILL ended.
const KILLED: i64 = 137;

/// Kept of a start's time for stopping again what does not become healthy, besides the stop timeout.
const TO_CLEAN_UP: Duration = Duration::from_secs(5);

impl Managed {
    pub async fn stop(&self, step: &StepContext) -> Result<Done, Failure> {
        let live = step.operation("look", self.live()).await?;
        if live.running() && live.image() != step.from.digest && live.image() != step.to.digest {
            // Stopped, it would stay so: no move of this rollback starts what it does not know.
            return Err(Failure::Failed(self.wrong(&live, step)));
        }
        // The file still has the content with which the container was made: it changes while it is stopped.
        self.note_env_names(&live).await?;
        self.note_policy(&live).await?;
        let ran = live.running();
        if ran || !is_never(&live.policy()) {
            step.operation("stop_container", self.halted(&live, step.deadline))
                .await?;
        }
        let killed = ran && self.was_killed(&live).await;
        Ok(Done::new(match killed {
            true => format!(
                "{} did not stop by itself and was killed (a first process that ignores SIGTERM needs --init or STOPSIGNAL)",
                self.container
            ),
            false => format!("{} is stopped", self.container),
        }))
    }

    /// Did the engine have to kill it? Only said, so not to know is no failure.
    async fn was_killed(&self, container: &Seen) -> bool {
        let seen = self.look(container.id()).await.ok().flatten();
        seen.and_then(|seen| seen.state()?.exit_code) == Some(KILLED)
    }

    /// Takes the policy away and stops the container; ends well when that was seen. A refusal puts the policy back.
    async fn halted(&self, container: &Seen, deadline: Instant) -> Result<(), Failure> {
        self.insist(container, deadline, &[Operation::Policy(never())]).await?;
        let stopped = self.insist(container, deadline, &[Operation::Halt]).await;
        let seen = self
            .look(container.id())
            .await
            .map_err(Failure::Indeterminate)?
            .filter(Seen::running);
        match (seen, stopped) {
            (None, _) => Ok(()),
            (Some(_), Err(Undone::Lost(problem))) => Err(Failure::Indeterminate(problem)),
            (Some(seen), stopped) => {
                let policy = self.notes().await?.policy_of(&seen);
                self.set_policy(&seen, policy).await?;
                let why = stopped.err().map(|u| u.problem().message).unwrap_or_default();
                Err(Failure::Failed(Problem::new(
                    Code::StillRunning,
                    format!("container {} goes on running. {why}", self.container),
                )))
            }
        }
    }

    pub async fn start(&self, step: &StepContext) -> Result<Done, Failure> {
        let names = self.names(&step.rollback_id)?;
        let live = step.operation("look", self.live_or_interrupted(step, &names)).await?;
        if live.image() != step.to.digest {
            let version = self.revision_of(&live).await?.version;
            return Err(Failure::Failed(Problem::new(
                Code::WrongRevision,
                format!("{version} is live, not {}: nothing was started", step.to.version),
            )));
        }
        let live = step
            .operation("environment", self.with_environment(live, step, &names))
            .await?;
        // The plan's word for it: nothing on this host needs to know the image by a name.
        let revision = step.to.clone();
        let policy = self.notes().await?.policy_of(&live);
        if !is_never(&live.policy()) {
            // It has it already, and loses it when this ends badly.
            self.note_policy(&live).await?;
        }
        let operations = [Operation::Policy(policy), Operation::Launch];
        let begun = step
            .operation("start_container", self.insist(&live, step.deadline, &operations))
            .await;
        let healthy = match begun {
            Ok(()) => {
                // A short step's time is shared between the two.
                let left = step.time_left();
                let until = Instant::now() + left.saturating_sub(self.stop_timeout + TO_CLEAN_UP).max(left / 2);
                step.operation("health_check", self.wait_healthy(&live, &step.to.version, until))
                    .await
            }
            Err(Undone::Refused(problem)) => Err(problem),
            Err(Undone::Lost(problem)) => return Err(Failure::Indeterminate(problem)),
        };
        match healthy {
            Ok(detail) => {
                // From here on the policy on the container is the one that counts.
                let noted = self
                    .note(|n| {
                        n.policies.remove(live.id());
                    })
                    .await;
                if let Err(problem) = noted {
                    // It runs and is healthy; `finish` drops the note.
                    tracing::warn!(%problem, "the note of a restart policy was left behind");
                }
                Ok(Done::at(revision, detail))
            }
            Err(problem) => {
                // Now: the undo may take the container away, and its log with it.
                let given = live.environment();
                let said = self.engine.last_words(live.id(), given.into_iter()).await;
                step.operation("stop_container", self.halted(&live, step.deadline))
                    .await?;
                Err(Failure::Failed(Problem {
                    message: format!("{}{said}; it was stopped again", problem.message),
                    ..problem
                }))
            }
        }
    }

    /// What has the name; or, when an exchange for the environment's sake was interrupted between its renames, what it
    /// would have put there.
    async fn live_or_interrupted(&self, step: &StepContext, names: &Names) -> Result<Seen, Failure> {
        let stand = self.stand(names).await?;
        if let Some(live) = stand.live {
            return Ok(live);
        }
        let wanted = |c: &&Seen| c.image() == step.to.digest;
        let either = stand.staged.iter().find(wanted).or(stand.before.iter().find(wanted));
        if let Some(container) = either {
            self.rename(container, &self.container).await?;
        }
        Ok(self.live().await?)
    }

    /// The live container if it has the env file's content of now. Otherwise one that has takes its place.
    async fn with_environment(&self, live: Seen, step: &StepContext, names: &Names) -> Result<Seen, Failure> {
        let notes = self.notes().await?;
        if self.environment_is_in(&live, &notes).await? {
            return Ok(live);
        }
        if live.running() {
            return Err(Failure::Failed(Problem::new(
                Code::StillRunning,
                format!(
                    "container {} runs with another environment than the env file's: it is stopped first",
                    self.container
                ),
            )));
        }
        let stand = self.stand(names).await?;
        if let Some(before) = stand.before.as_ref().filter(|b| b.image() == step.to.digest)
            && self.environment_is_in(before, &notes).await?
        {
            // The undo: exactly what ran before comes back.
            self.remove_if_ours(stand.staged.as_ref()).await?;
            self.exchange(&live, before, Some(&names.staged)).await?;
            return Ok(self.live().await?);
        }
        self.remove_if_ours(stand.staged.as_ref()).await?;
        let made = self.create(&live, &step.to.digest, names, &step.rollback_id).await?;
        // What this rollback made itself is not what was live before it.
        let passing = live.label(LABEL_ROLLBACK) == Some(step.rollback_id.as_str());
        let aside = (stand.before.is_none() && !passing).then_some(names.before.as_str());
        self.exchange(&live, &made, aside).await?;
        Ok(self.live().await?)
    }

    async fn remove_if_ours(&self, container: Option<&Seen>) -> Result<(), Failure> {
        match container {
            Some(container) if self.notes().await?.ours(container, &self.component) && !container.running() => {
                Ok(self.remove(container).await?)
            }
            Some(container) => Err(Failure::Failed(Problem::new(
                Code::ContainerUnfit,
                format!("container {} is in the way", container.name()),
            ))),
            None => Ok(()),
        }
    }

    /// Puts one stopped container in the place of another, which goes aside, or away.
    async fn exchange(&self, live: &Seen, with: &Seen, aside: Option<&str>) -> Result<(), Failure> {
        match aside {
            Some(name) => {
                self.note_aside(live).await?;
                self.rename(live, name).await?;
            }
            None => self.remove_if_ours(Some(live)).await?,
        }
        match self.rename(with, &self.container).await {
            Ok(()) => Ok(()),
            Err(Undone::Lost(problem)) => Err(Failure::Indeterminate(problem)),
            Err(Undone::Refused(problem)) => {
                if aside.is_some() {
                    self.rename(live, &self.container)
                        .await
                        .map_err(|undone| Failure::Indeterminate(undone.problem()))?;
                }
                Err(Failure::Failed(problem))
            }
        }
    }

    /// Waits until a container that was started is healthy: by the configured check, by its own, or because it goes on
    /// running.
    async fn wait_healthy(&self, container: &Seen, version: &str, until: Instant) -> Result<String, Problem> {
        let Some(check) = &self.health else {
            return self.watch(container, until, true).await;
        };
        let passed = tokio::select! {
            passed = check.wait(Some(version), until) => passed?,
            problem = self.watch(container, until, false) => {
                return Err(problem.err().unwrap_or_else(|| self.unhealthy(container, "no answer")));
            }
        };
        // Somebody else may have answered at that address.
        match self.look(container.id()).await? {
            Some(seen) if seen.running() => Ok(format!("{}, {}", seen.short_id(), passed.detail)),
            Some(_) | None => Err(self.unhealthy(
                container,
                &format!(
                    "something answers the health check ({}), but the container does not run",
                    passed.detail
                ),
            )),
        }
    }

    /// Looks until the container ends or the time is over, which are errors; or, when its word is enough, until it is
    /// well.
    async fn watch(&self, container: &Seen, until: Instant, its_word: bool) -> Result<String, Problem> {
        let mut last_start: Option<(String, Instant)> = None;
        loop {
            // A daemon that is being restarted is waited for like an application that is.
            let seen = match self.look(container.id()).await {
                Ok(Some(seen)) => Some(seen),
                Ok(None) => return Err(self.unhealthy(container, "it is gone")),
                Err(problem) if Instant::now() >= until => return Err(problem),
                Err(_) => None,
            };
            if let Some(seen) = &seen {
                if !seen.running() {
                    let code = seen.state().and_then(|s| s.exit_code).unwrap_or_default();
                    return Err(self.unhealthy(container, &format!("it ended with status {code}")));
                }
                if seen.restarting() && seen.restarts() >= RESTARTS {
                    let code = seen.state().and_then(|s| s.exit_code).unwrap_or_default();
                    return Err(self.unhealthy(container, &format!("it ends with status {code} again and again")));
                }
                match (&last_start, seen.started_at()) {
                    (Some((start, _)), now) if start == now => {}
                    (_, now) => last_start = Some((now.to_owned(), Instant::now())),
                }
                let steady = last_start.as_ref().is_some_and(|(_, at)| at.elapsed() >= self.steady);
                match seen.health().filter(|_| its_word) {
                    Some(HealthStatusEnum::HEALTHY) => return Ok(format!("{}, its own check passes", seen.short_id())),
                    Some(HealthStatusEnum::UNHEALTHY) => {
                        return Err(self.unhealthy(container, "its own health check says unhealthy"));
                    }
                    Some(HealthStatusEnum::STARTING | HealthStatusEnum::NONE | HealthStatusEnum::EMPTY) => {}
                    // While the engine waits before it starts it once more, nothing about it changes.
                    None if its_word && steady && !seen.restarting() => {
                        return Ok(format!("{}, runs since {}", seen.short_id(), seen.started_at()));
                    }
                    None => {}
                }
            }
            if Instant::now() >= until {
                return Err(self.unhealthy(container, "it did not become healthy in time"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn unhealthy(&self, container: &Seen, why: &str) -> Problem {
        Problem::new(
            Code::Unhealthy,
            format!("container {} ({}): {why}", self.container, container.short_id()),
        )
        .remedy("look at what the image was built from, and at what the container's log said")
    }

    /// Health of what is live, for `observe`: one look.
    pub async fn health_now(&self, live: &Seen, version: &str) -> (Health, String) {
        let id = live.short_id();
        if !live.running() {
            return (Health::Stopped, format!("{id} does not run"));
        }
        if let Some(check) = &self.health {
            return match check.once(Some(version)).await {
                Ok(passed) => (Health::Healthy, format!("{id}, {}", passed.detail)),
                Err(problem) => (Health::Unhealthy, format!("{id}, {}", problem.message)),
            };
        }
        match live.health() {
            Some(HealthStatusEnum::HEALTHY) => (Health::Healthy, format!("{id}, its own check passes")),
            Some(HealthStatusEnum::STARTING) => (Health::Unhealthy, format!("{id}, its own check has not passed yet")),
            Some(_) => (Health::Unhealthy, format!("{id}, its own check does not pass")),
            None if live.restarting() => (Health::Unhealthy, format!("{id} ends and is restarted again and again")),
            None => (Health::Healthy, format!("{id}, runs since {}", live.started_at())),
        }
    }

    pub async fn verify(&self, step: &StepContext) -> Result<Done, Failure> {
        let live = step.operation("look", self.live()).await?;
        let mut revision = self.revision_of(&live).await?;
        if revision == step.to {
            // The plan's word for it: nothing on this host needs to know the image by a name.
            revision.version.clone_from(&step.to.version);
        }
        let until = step.deadline.min(Instant::now() + VERIFY_WITHIN);
        let look = async {
            loop {
                let live = self.live().await?;
                match self.health_now(&live, &revision.version).await {
                    (Health::Healthy, detail) => return Ok((live, detail)),
                    (_, detail) if Instant::now() >= until => return Err(self.unhealthy(&live, &detail)),
                    _ => tokio::time::sleep(LOOK_EVERY).await,
                }
            }
        };
        let (live, detail) = step.operation("health_check", look).await?;
        let notes = self.notes().await?;
        if !self.environment_is_in(&live, &notes).await? {
            return Err(Failure::Failed(
                self.unhealthy(&live, "it runs with another environment than the env file's"),
            ));
        }
        Ok(Done::at(revision, detail))
    }

    /// The agent was killed inside a stop.
    pub async fn probe_stop(&self) -> Result<Probe, Problem> {
        let live = self.live().await?;
        Ok(if live.running() || !is_never(&live.policy()) {
            Probe::Repeatable("not stopped yet".into())
        } else {
            Probe::Applied(Done::new("the container does not run"))
        })
    }

    /// The agent was killed inside a start.
    pub async fn probe_start(&self, step: &StepContext) -> Result<Probe, Problem> {
        let Some(live) = self.look(&self.container).await? else {
            return Ok(Probe::Repeatable("nothing has the name".into()));
        };
        let notes = self.notes().await?;
        let policy = notes.policy_of(&live);
        let ready =
            live.image() == step.to.digest && live.policy() == policy && self.environment_is_in(&live, &notes).await?;
        if !ready {
            return Ok(Probe::Repeatable("not started".into()));
        }
        Ok(match self.health_now(&live, &step.to.version).await {
            (Health::Healthy, detail) => Probe::Applied(Done::at(step.to.clone(), detail)),
            (_, detail) => Probe::Repeatable(format!("not healthy yet: {detail}")),
        })
    }
}
