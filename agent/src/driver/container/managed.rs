//! One container component: its configuration, and the raw operations on the engine that the moves are made of.
//!
//! Every operation may be repeated. An operation ends in one of three ways: done, refused (the engine answered, nothing
//! changed), or lost (no answer: it may have been done).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::models::{
    ContainerSummary, ContainerUpdateBody, NetworkConnectRequest, NetworkDisconnectRequest, RestartPolicy,
};
use bollard::query_parameters::{
    CreateContainerOptions, ListContainersOptions, RemoveContainerOptions, RenameContainerOptions,
    StartContainerOptions, StopContainerOptions,
};
use rollback_proto::problem::{Code, Problem};

use super::carry::{self, Successor};
use super::environment::{self, Environment};
use super::networks;
use super::notes::Notes;
use super::seen::{LABEL_COMPONENT, LABEL_ENV, LABEL_POLICY, LABEL_ROLLBACK, Seen};
use crate::check::HealthCheck;
use crate::driver::Failure;
use crate::engine::{self, Engine, REQUEST_LIMIT};
use crate::files::blocking;
use crate::vault::Vault;

/// How long a move waits for a daemon that went away in the middle of it.
pub const ENGINE_ABSENCE: Duration = Duration::from_secs(20);

/// What the engine gets to kill a container that does not stop by itself.
const TO_KILL: Duration = Duration::from_secs(2);

/// Between two looks at a state that is waited for.
pub const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
pub struct Managed {
    pub component: String,
    pub container: String,
    /// Repository, without a tag.
    pub image: String,
    /// `{release}` or `{version}` stands in it.
    pub tag: String,
    pub engine: Engine,
    pub vault: Arc<Vault>,
    pub env_file: Option<PathBuf>,
    pub stop_timeout: Duration,
    pub steady: Duration,
    pub health: Option<HealthCheck>,
    pub keep: bool,
    pub pull: bool,
}

/// What may be repeated until the engine has answered.
#[derive(Debug)]
pub enum Operation {
    Policy(RestartPolicy),
    Launch,
    Halt,
}

/// An operation that was not done, as far as is known.
#[derive(Debug)]
pub enum Undone {
    /// The engine answered: nothing was changed.
    Refused(Problem),
    /// No answer. It may have been done.
    Lost(Problem),
}

impl Undone {
    pub fn problem(self) -> Problem {
        match self {
            Undone::Refused(problem) | Undone::Lost(problem) => problem,
        }
    }
}

impl From<Undone> for Failure {
    fn from(undone: Undone) -> Self {
        match undone {
            Undone::Refused(problem) => Failure::Failed(problem),
            Undone::Lost(problem) => Failure::Indeterminate(problem),
        }
    }
}

/// The names that one rollback gives to containers that are not live.
#[derive(Clone, Debug)]
pub struct Names {
    /// What takes the place of the live one, or was taken out of it again.
    pub staged: String,
    /// What was live before.
    pub before: String,
}

impl Managed {
    pub fn names(&self, rollback: &str) -> Result<Names, Problem> {
        let names = Names {
            staged: format!("{}{rollback}", self.staged_prefix()),
            before: format!("{}{rollback}", self.before_prefix()),
        };
        engine::check_container(&names.staged)?;
        engine::check_container(&names.before)?;
        Ok(names)
    }

    pub fn staged_prefix(&self) -> String {
        format!("{}.staged-", self.container)
    }

    pub fn before_prefix(&self) -> String {
        format!("{}.before-", self.container)
    }

    pub async fn look(&self, name: &str) -> Result<Option<Seen>, Problem> {
        Ok(self.engine.container(name).await?.map(Seen))
    }

    /// The container that has the component's name.
    pub async fn live(&self) -> Result<Seen, Problem> {
        if let Some(live) = self.look(&self.container).await? {
            return Ok(live);
        }
        let missing = format!("there is no container named {}", self.container);
        let prefixes = [self.staged_prefix(), self.before_prefix()];
        let listed = self.list().await?.into_iter().flat_map(|c| c.names.unwrap_or_default());
        let mut others: Vec<String> = listed
            .map(|name| name.trim_start_matches('/').to_owned())
            .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
            .collect();
        if others.is_empty() {
            return Err(Problem::new(Code::ContainerUnfit, missing)
                .remedy("start it by hand once; a rollback replaces a container, it does not invent one"));
        }
        others.sort();
        Err(Problem::new(
            Code::ContainerUnfit,
            format!("{missing}; there are {}", others.join(", ")),
        )
        .remedy(format!(
            "make no new one: resume the rollback or undo it, which gives one of these the name {} again",
            self.container
        )))
    }

    /// What a request gave that has a time limit of its own.
    async fn ask<T>(
        &self,
        what: String,
        limit: Duration,
        request: impl AsyncFnOnce(bollard::Docker) -> Result<T, bollard::errors::Error>,
    ) -> Result<T, Undone> {
        let client = self.engine.client().await.map_err(Undone::Lost)?.with_timeout(limit);
        match tokio::time::timeout(limit, request(client)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(match engine::status(&error) {
                Some(_) => Undone::Refused(engine::problem(what, &error)),
                None => Undone::Lost(engine::problem(what, &error)),
            }),
            Err(_) => Err(Undone::Lost(Problem::new(
                Code::EngineFailed,
                format!("{what}: no answer within {} s", limit.as_secs()),
            ))),
        }
    }

    pub async fn list(&self) -> Result<Vec<ContainerSummary>, Problem> {
        let options = ListContainersOptions {
            all: true,
            ..ListContainersOptions::default()
        };
        self.ask("list containers".into(), REQUEST_LIMIT, async |c| {
            c.list_containers(Some(options)).await
        })
        .await
        .map_err(Undone::problem)
    }

    pub async fn rename(&self, container: &Seen, to: &str) -> Result<(), Undone> {
        let options = RenameContainerOptions { name: to.to_owned() };
        let what = format!("rename container {} to {to}", container.name());
        self.ask(what, REQUEST_LIMIT, async |c| {
            c.rename_container(container.id(), options).await
        })
        .await
    }

    pub async fn set_policy(&self, container: &Seen, policy: RestartPolicy) -> Result<(), Undone> {
        let change = ContainerUpdateBody {
            restart_policy: Some(policy),
            ..ContainerUpdateBody::default()
        };
        let what = format!("set the restart policy of container {}", container.name());
        self.ask(what, REQUEST_LIMIT, async |c| {
            c.update_container(container.id(), change).await
        })
        .await
    }

    /// Ends well when it ran already.
    pub async fn launch(&self, container: &Seen) -> Result<(), Undone> {
        let what = format!("start container {}", container.name());
        self.ask(what, REQUEST_LIMIT, async |c| {
            c.start_container(container.id(), None::<StartContainerOptions>).await
        })
        .await
    }

    /// Ends well when it did not run. The engine kills what does not stop by itself: before the deadline in any case, for
    /// it goes on with a stop that nobody waits for any more, and would kill what was started again in the meantime.
    pub async fn halt(&self, container: &Seen, deadline: Instant) -> Result<(), Undone> {
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = self.stop_timeout.min(left.saturating_sub(TO_KILL));
        let options = StopContainerOptions {
            t: Some(i32::try_from(patience.as_secs()).unwrap_or(i32::MAX)),
            ..StopContainerOptions::default()
        };
        let limit = patience + REQUEST_LIMIT;
        let what = format!("stop container {}", container.name());
        if container.paused() {
            let what = format!("unpause container {}", container.name());
            self.ask(what, REQUEST_LIMIT, async |c| c.unpause_container(container.id()).await)
                .await?;
        }
        self.ask(what, limit, async |c| {
            c.stop_container(container.id(), Some(options)).await
        })
        .await
    }

    /// Removes a container, never a volume: the successor has its nameless volumes by name.
    pub async fn remove(&self, container: &Seen) -> Result<(), Undone> {
        let options = RemoveContainerOptions {
            v: false,
            force: false,
            link: false,
        };
        let what = format!("remove container {}", container.name());
        self.ask(what, REQUEST_LIMIT, async |c| {
            match c.remove_container(container.id(), Some(options)).await {
                Err(error) if engine::status(&error) == Some(404) => Ok(()),
                other => other,
            }
        })
        .await
    }

    /// The content of the env file now; `None` when none is configured.
    pub async fn environment(&self) -> Result<Option<Environment>, Problem> {
        match self.env_file.clone() {
            Some(path) => blocking(move || Environment::read(&path)).await.map(Some),
            None => Ok(None),
        }
    }

    /// Does the container have the env file's content of now? Without an env file, always.
    pub async fn environment_is_in(&self, container: &Seen, notes: &Notes) -> Result<bool, Problem> {
        let Some(file) = self.environment().await? else {
            return Ok(true);
        };
        Ok(file.is_in(container, &self.env_names(container, notes)))
    }

    pub fn env_names(&self, container: &Seen, notes: &Notes) -> std::collections::BTreeSet<String> {
        environment::names_on(container)
            .or_else(|| notes.env_names.get(container.id()).cloned())
            .unwrap_or_default()
    }

    /// Remembers which variables of a container that somebody else made came from the env file, while the file still has
    /// the content that it was made with.
    pub async fn note_env_names(&self, container: &Seen) -> Result<(), Problem> {
        if environment::names_on(container).is_some() {
            return Ok(());
        }
        if let Some(file) = self.environment().await? {
            let names = file.names_shared_with(container);
            self.note(|n| {
                n.env_names.entry(container.id().to_owned()).or_default().extend(names);
            })
            .await?;
        }
        Ok(())
    }

    /// Makes the successor of a container: stopped, under a temporary name, with all networks. Nothing is left behind
    /// when that fails.
    pub async fn create(&self, live: &Seen, image: &str, names: &Names, rollback: &str) -> Result<Seen, Failure> {
        let old_image = self.engine.image(live.image()).await?.ok_or_else(|| {
            Problem::new(
                Code::RevisionMissing,
                format!(
                    "the image {} of container {} is gone: what came from it cannot be told from what was asked for",
                    live.image(),
                    live.name()
                ),
            )
        })?;
        let notes = self.notes().await?;
        let environment = self.environment().await?;
        let policy = serde_json::to_string(&notes.policy_of(live))
            .map_err(|e| Problem::from_error(Code::Internal, "write restart policy", &e))?;
        let mut labels = HashMap::from([
            (LABEL_COMPONENT.to_owned(), self.component.clone()),
            (LABEL_ROLLBACK.to_owned(), rollback.to_owned()),
            (LABEL_POLICY.to_owned(), policy),
        ]);
        if let Some(file) = &environment {
            labels.insert(
                LABEL_ENV.to_owned(),
                file.names().into_iter().collect::<Vec<_>>().join(","),
            );
        }
        let successor = Successor {
            image: &self.name_of_image(image).await?,
            labels,
            environment: environment.as_ref(),
            env_names: &self.env_names(live, &notes),
        };
        let body = carry::body(live, &old_image.config.unwrap_or_default(), successor);
        let options = CreateContainerOptions {
            name: Some(names.staged.clone()),
            ..CreateContainerOptions::default()
        };
        let what = format!("create container {}", names.staged);
        self.ask(what, REQUEST_LIMIT, async |c| {
            c.create_container(Some(options), body).await
        })
        .await?;
        match self.complete(live, image, &names.staged).await {
            Ok(made) => Ok(made),
            Err(failure) => {
                if let Ok(Some(made)) = self.look(&names.staged).await {
                    self.remove(&made).await?;
                }
                Err(failure)
            }
        }
    }

    /// Looks at a container that was just made, and gives it the networks that it lacks.
    async fn complete(&self, live: &Seen, image: &str, name: &str) -> Result<Seen, Failure> {
        let gone = || {
            Problem::new(
                Code::EngineFailed,
                format!("container {name} vanished after it was created"),
            )
        };
        let made = self.look(name).await?.ok_or_else(gone)?;
        if made.image() != image {
            return Err(Failure::Failed(Problem::new(
                Code::NameMoved,
                format!("{} does not mean {image} any more", made.image_name()),
            )));
        }
        self.match_networks(live, &made).await?;
        let made = self.look(name).await?.ok_or_else(gone)?;
        let (want, have) = (networks::endpoints(live), networks::endpoints(&made));
        if want != have {
            return Err(Failure::Failed(Problem::new(
                Code::ContainerUnfit,
                format!(
                    "container {name} was not given the networks of {}: it has {:?} instead of {:?}",
                    live.name(),
                    have.keys(),
                    want.keys()
                ),
            )));
        }
        Ok(made)
    }

    /// Gives a stopped container exactly the networks of another. No request when it has them.
    pub async fn match_networks(&self, of: &Seen, container: &Seen) -> Result<(), Undone> {
        let (want, have) = (networks::endpoints(of), networks::endpoints(container));
        for (network, endpoint) in &have {
            if want.get(network) != Some(endpoint) {
                let request = NetworkDisconnectRequest {
                    container: container.id().to_owned(),
                    force: Some(false),
                };
                let what = format!("disconnect container {} from network {network}", container.name());
                self.ask(what, REQUEST_LIMIT, async |c| {
                    c.disconnect_network(network, request).await
                })
                .await?;
            }
        }
        for (network, endpoint) in &want {
            if have.get(network) != Some(endpoint) {
                let request = NetworkConnectRequest {
                    container: container.id().to_owned(),
                    endpoint_config: Some(endpoint.clone()),
                };
                let what = format!("connect container {} to network {network}", container.name());
                self.ask(what, REQUEST_LIMIT, async |c| c.connect_network(network, request).await)
                    .await?;
            }
        }
        Ok(())
    }

    /// Waits for a daemon that went away. `false` when it did not come back.
    pub async fn engine_returns(&self, until: Instant) -> bool {
        while self.look(&self.container).await.is_err() {
            if Instant::now() + LOOK_EVERY >= until {
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        true
    }

    /// Does these one after the other. One that was lost is repeated when the daemon is back.
    pub async fn insist(&self, container: &Seen, deadline: Instant, operations: &[Operation]) -> Result<(), Undone> {
        let until = deadline.min(Instant::now() + ENGINE_ABSENCE);
        for operation in operations {
            loop {
                let done = match operation {
                    Operation::Policy(policy) => self.set_policy(container, policy.clone()).await,
                    Operation::Launch => self.launch(container).await,
                    Operation::Halt => self.halt(container, deadline).await,
                };
                match done {
                    Ok(()) => break,
                    Err(Undone::Lost(_)) if self.engine_returns(until).await && Instant::now() < until => {}
                    Err(undone) => return Err(undone),
                }
            }
        }
        Ok(())
    }
}
