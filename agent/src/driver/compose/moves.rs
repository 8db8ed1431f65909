//! The moves that touch the project, and what a killed one left behind.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bollard::models::HealthStatusEnum;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};

use super::ComposeDriver;
use super::pin::{self, Image, Pin};
use super::running::{self, Container, Presence};
use crate::driver::env_file::variables::{Variables, listed};
use crate::driver::{Action, Done, Health, Probe};
use crate::files::{self, blocking};
use crate::step::StepContext;

/// How long containers get to become healthy when no check says so.
const HEALTHY_WITHIN: Duration = Duration::from_secs(60);
/// How long `verify` gives the health check: the services run since `start`, only a hiccup is waited out.
const VERIFY_WITHIN: Duration = Duration::from_secs(5);
/// How long Compose lets containers take to stop when nobody says so.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// Kept of a start's time for stopping again what does not become healthy, besides what containers may take.
const TO_CLEAN_UP: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A container that the engine had to restart so often since it was made does not start.
const RESTARTS: i64 = 3;

impl ComposeDriver {
    async fn containers(&self) -> Result<Vec<Container>, Problem> {
        running::containers(&self.engine, &self.project()?, &self.services).await
    }

    /// Do the containers have the present values of the declared files? Compose's own account decides where a value
    /// differs: `environment` in a compose file has precedence, and not every service reads every file.
    async fn environment(&self) -> Result<(), Problem> {
        for file in &self.env_files {
            let path = file.clone();
            let Some(state) = blocking(move || files::read(&path)).await? else {
                continue;
            };
            let wanted = Variables::parse(&String::from_utf8_lossy(&state.content));
            for container in self.containers().await?.iter().filter(|c| c.active) {
                let Some(details) = running::details(&self.engine, &container.id).await? else {
                    continue;
                };
                let names = wanted.names_missing_in(&details.environment);
                if names.is_empty() {
                    continue;
                }
                let hash = self.compose.config_hash(&container.service).await?;
                if hash.is_none() || hash != details.hash {
                    return Err(Problem::new(
                        Code::WrongRevision,
                        format!(
                            "{} does not have the values that {} gives for {}",
                            container.name,
                            file.display(),
                            listed(&names)
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Does every service run so many containers, all of the planned image and healthy in the engine's eyes?
    async fn running_as(&self, wanted: &Pin, counts: &[(String, usize)]) -> Result<State, Problem> {
        let containers = self.containers().await?;
        let (mut restarts, mut checked) = (0, true);
        let mut not_yet = None;
        for (service, count) in counts {
            let planned = wanted.images.get(service).map(|image| image.id.as_str());
            let of_service = || containers.iter().filter(|c| c.service == *service);
            if let Some(wrong) = of_service().find(|c| c.active && Some(c.image_id.as_str()) != planned) {
                return Ok(State::Wrong {
                    container: Some(wrong.clone()),
                    why: format!("{} runs image {}", wrong.name, running::short(&wrong.image_id)),
                });
            }
            let active: Vec<_> = of_service().filter(|c| c.active).collect();
            if active.len() < *count {
                let ended = of_service().rfind(|c| !c.active && Some(c.image_id.as_str()) == planned);
                return Ok(State::Wrong {
                    why: ended.map_or(format!("{service} has no container"), |c| format!("{} ended", c.name)),
                    container: ended.cloned(),
                });
            }
            for container in active {
                let wrong = |why: String| State::Wrong {
                    container: Some(container.clone()),
                    why,
                };
                let Some(details) = running::details(&self.engine, &container.id).await? else {
                    not_yet = Some(format!("{} is gone", container.name));
                    continue;
                };
                if !details.running && details.restarts >= RESTARTS {
                    let code = details.exit_code.unwrap_or_default();
                    return Ok(wrong(format!(
                        "{} ends with status {code} again and again",
                        container.name
                    )));
                }
                restarts += details.restarts;
                checked &= !matches!(details.health, HealthStatusEnum::NONE | HealthStatusEnum::EMPTY);
                match details.health {
                    HealthStatusEnum::UNHEALTHY => {
                        return Ok(wrong(format!("the engine calls {} unhealthy", container.name)));
                    }
                    HealthStatusEnum::STARTING => not_yet = Some(format!("{} is starting", container.name)),
                    HealthStatusEnum::EMPTY | HealthStatusEnum::NONE | HealthStatusEnum::HEALTHY
                        if !details.running =>
                    {
                        not_yet = Some(format!("{} is restarting", container.name));
                    }
                    HealthStatusEnum::EMPTY | HealthStatusEnum::NONE | HealthStatusEnum::HEALTHY => {}
                }
            }
        }
        Ok(match not_yet {
            Some(why) => State::NotYet(why),
            None => State::Right { restarts, checked },
        })
    }

    /// Waits until the containers are right, the files of variables are in effect, and the health check passes. The
    /// containers are looked at all the while: one that ends again and again is seen running now and then. Where nothing
    /// checks them, they are right when they have run for so long.
    async fn wait_healthy(
        &self,
        wanted: &Pin,
        counts: &[(String, usize)],
        until: Instant,
        steady: Duration,
    ) -> Result<String, Problem> {
        let mut effective = false;
        // Since when they run without a restart, and how many there had been.
        let mut runs: Option<(i64, Instant)> = None;
        loop {
            let last = match self.running_as(wanted, counts).await? {
                State::Wrong { why, container } => {
                    let said = self.last_words(container).await;
                    return Err(Problem::new(Code::Unhealthy, format!("{why}{said}")));
                }
                State::NotYet(why) => {
                    runs = None;
                    why
                }
                State::Right { restarts, checked } => {
                    let since = match runs {
                        Some((before, since)) if before == restarts => since,
                        Some(_) | None => Instant::now(),
                    };
                    runs = Some((restarts, since));
                    if !effective {
                        self.environment().await?;
                        effective = true;
                    }
                    match self.serves(wanted).await {
                        Ok(_) if self.health.is_none() && !checked && since.elapsed() < steady => {
                            format!(
                                "{} run, not for {} ms yet",
                                self.services.join(", "),
                                steady.as_millis()
                            )
                        }
                        // Something else may have answered while the container ended.
                        Ok(detail) => match self.running_as(wanted, counts).await? {
                            State::Right { .. } => return Ok(detail),
                            State::Wrong { why, .. } | State::NotYet(why) => why,
                        },
                        Err(problem) => problem.message,
                    }
                }
            };
            if Instant::now() >= until {
                let any = self.containers().await?.into_iter().find(|c| c.active);
                let said = self.last_words(any).await;
                return Err(Problem::new(
                    Code::Unhealthy,
                    format!("not healthy in time: {last}{said}"),
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn serves(&self, wanted: &Pin) -> Result<String, Problem> {
        Ok(match &self.health {
            None => "no health check".to_owned(),
            Some(check) => check.once(Some(&wanted.value)).await?.detail,
        })
    }

    async fn last_words(&self, container: Option<Container>) -> String {
        let Some(container) = container else {
            return String::new();
        };
        // It may have written down what it was given, and the message leaves this host.
        let mut given = Vec::new();
        for file in self.env_files.iter().chain([&self.compose.variable.path]) {
            match tokio::fs::read(file).await {
                Ok(content) => given.push(Variables::parse(&String::from_utf8_lossy(&content))),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(_) => return String::new(),
            }
        }
        let given = given.iter().flat_map(Variables::iter);
        self.engine.last_words(&container.id, given).await
    }

    /// How many containers each service has: a number that was given by hand is kept.
    async fn counts(&self) -> Result<Vec<(String, usize)>, Problem> {
        let containers = self.containers().await?;
        let count = |service: &String| {
            let of_service = containers.iter().filter(|c| c.service == *service);
            of_service.map(|c| &c.number).collect::<BTreeSet<_>>().len().max(1)
        };
        Ok(self.services.iter().map(|s| (s.clone(), count(s))).collect())
    }
}

enum State {
    Right {
        /// How often the engine had to restart any of them.
        restarts: i64,
        /// Has each a health check of its own?
        checked: bool,
    },
    NotYet(String),
    /// It will not become right by waiting.
    Wrong {
        container: Option<Container>,
        why: String,
    },
}

pub async fn switch(driver: &ComposeDriver, step: &StepContext) -> Result<Done, Problem> {
    check_name("rollback", &step.rollback_id)?;
    let wanted = pin::of(&driver.vault, &driver.component, &step.to)?;
    // Two commits may have the same images: from here on they mean this one.
    pin::keep(&driver.vault, &driver.component, &wanted)?;
    let (variable, value, id) = (
        driver.compose.variable.clone(),
        wanted.value.clone(),
        step.rollback_id.clone(),
    );
    step.operation("set_variable", blocking(move || variable.set(&value, &id)))
        .await?;
    Ok(Done::at(
        step.to.clone(),
        format!(
            "{} has {}={}",
            driver.compose.variable.path.display(),
            driver.compose.variable.name,
            wanted.value
        ),
    ))
}

pub async fn stop(driver: &ComposeDriver, step: &StepContext) -> Result<Done, Problem> {
    let containers = step.operation("observe", driver.containers()).await?;
    step.operation("hold_back", driver.hold_back(&containers)).await?;
    if containers.iter().all(|c| !c.active) {
        return Ok(Done::new("no container runs"));
    }
    let work = driver.compose.stop(&driver.services, step.time_left());
    step.operation("compose_stop", work).await?;
    let left = step.operation("observe", driver.containers()).await?;
    let left: Vec<&str> = left.iter().filter(|c| c.active).map(|c| c.name.as_str()).collect();
    if left.is_empty() {
        Ok(Done::new(format!("{} stopped", driver.services.join(", "))))
    } else {
        Err(Problem::new(
            Code::StillRunning,
            format!("compose stop ended well, and {} still run", left.join(", ")),
        ))
    }
}

pub async fn start(driver: &ComposeDriver, step: &StepContext) -> Result<Done, Problem> {
    let wanted = pin::of(&driver.vault, &driver.component, &step.to)?;
    let declared = driver.compose.variable.value()?;
    if declared.as_ref() != Some(&wanted.value) {
        return Err(Problem::new(
            Code::WrongRevision,
            format!(
                "{} has {} for {}, not {}: nothing was started",
                driver.compose.variable.path.display(),
                declared.as_deref().unwrap_or("nothing"),
                driver.compose.variable.name,
                wanted.value
            ),
        ));
    }
    step.operation("look_at_images", images_ready(driver, &wanted)).await?;
    let counts = driver.counts().await?;
    // A short step's time is shared with stopping again what does not become healthy.
    let left = step.time_left();
    let to_stop = driver.compose.stop_timeout.unwrap_or(STOPS_WITHIN) + TO_CLEAN_UP;
    let working = left.saturating_sub(to_stop).max(left / 2);
    let latest = Instant::now() + working;
    let up = driver.compose.up(&counts, working);
    let started = match step.operation("compose_up", up).await {
        Ok(()) => {
            let within = driver.health.as_ref().map_or(HEALTHY_WITHIN, |check| check.within());
            let until = latest.min(Instant::now() + within);
            let wait = driver.wait_healthy(&wanted, &counts, until, driver.steady);
            step.operation("wait_healthy", wait).await
        }
        Err(problem) => Err(problem),
    };
    let ended = match started {
        Ok(detail) => driver.let_go(&driver.containers().await?).await.map(|()| detail),
        Err(problem) => Err(problem),
    };
    match ended {
        Ok(detail) => Ok(Done::at(
            step.to.clone(),
            format!("{}, {detail}", driver.services.join(", ")),
        )),
        Err(problem) => Err(put_to_rest(driver, step, problem).await),
    }
}

/// Nothing half-started is left running.
async fn put_to_rest(driver: &ComposeDriver, step: &StepContext, problem: Problem) -> Problem {
    match stop(driver, step).await {
        Ok(_) => problem,
        Err(left) => Problem {
            message: format!("{}; and could not be stopped again: {}", problem.message, left.message),
            ..problem
        },
    }
}

/// `up` must find each image under its name: it would pull what is missing, and take what another image is.
async fn images_ready(driver: &ComposeDriver, wanted: &Pin) -> Result<(), Problem> {
    for service in &driver.services {
        let image: Option<&Image> = wanted.images.get(service);
        let presence = match image {
            Some(image) => running::presence(&driver.engine, image).await?,
            None => Presence::Absent,
        };
        match (presence, image) {
            (Presence::Named, _) => {}
            (Presence::NameAbsent, Some(image)) => running::restore_name(&driver.engine, image).await?,
            (Presence::NameMoved { .. }, Some(image)) => return Err(running::moved(service, image)),
            (Presence::Absent | Presence::NameAbsent | Presence::NameMoved { .. }, image) => {
                return Err(super::readiness::gone(service, image));
            }
        }
    }
    Ok(())
}

pub async fn verify(driver: &ComposeDriver, step: &StepContext) -> Result<Done, Problem> {
    let seen = step.operation("observe", driver.see()).await?;
    let look = async {
        if seen.live.at_rest {
            return Err(Problem::new(Code::Unhealthy, "no container runs"));
        }
        if seen.revision != step.to {
            return Ok("not at the wanted revision".to_owned());
        }
        let wanted = Pin {
            value: seen.revision.version.clone(),
            images: seen.images.clone(),
            source: None,
        };
        let until = step.deadline.min(Instant::now() + VERIFY_WITHIN);
        let counts = driver.counts().await?;
        driver.wait_healthy(&wanted, &counts, until, Duration::ZERO).await
    };
    let detail = step.operation("health_check", look).await?;
    Ok(Done::at(seen.revision.clone(), detail))
}

/// Every move converges when it is repeated, so the only state that asks for a person is one that cannot be looked at.
pub async fn probe(driver: &ComposeDriver, step: &StepContext) -> Probe {
    match step.action {
        Action::Switch => {
            let wanted = pin::of(&driver.vault, &driver.component, &step.to).map(|pin| pin.value);
            match (driver.compose.variable.value(), wanted) {
                (Ok(Some(value)), Ok(wanted)) if value == wanted => {
                    Probe::Applied(Done::at(step.to.clone(), "the variable is set"))
                }
                (Ok(_), Ok(_)) => Probe::Repeatable("the variable is not set".into()),
                (Err(problem), _) | (Ok(_), Err(problem)) => Probe::Indeterminate(problem),
            }
        }
        Action::Stop => match driver.containers().await {
            Ok(found) => match driver.reviving(&found).await {
                Ok(reviving) if reviving.is_empty() && found.iter().all(|c| !c.active) => {
                    Probe::Applied(Done::new("no container runs"))
                }
                Ok(_) => Probe::Repeatable("stopping may be repeated".into()),
                Err(problem) => Probe::Indeterminate(problem),
            },
            Err(problem) => Probe::Indeterminate(problem),
        },
        Action::Start => match driver.see().await {
            Ok(seen) if !seen.live.at_rest && seen.revision == step.to => match driver.health_of(&seen).await {
                Ok((Health::Healthy, detail)) => Probe::Applied(Done::at(seen.revision, detail)),
                Ok((_, detail)) => Probe::Repeatable(format!("started, not healthy yet: {detail}")),
                Err(problem) => Probe::Indeterminate(problem),
            },
            Ok(_) => Probe::Repeatable("not started".into()),
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
        | Action::Unspecified => Probe::Repeatable("no container is touched by this move".into()),
    }
}
