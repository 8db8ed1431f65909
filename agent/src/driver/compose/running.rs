//! What the engine has of a project: its containers and its images. The engine is what is believed, Compose is not.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bollard::models::{ContainerSummaryStateEnum, HealthStatusEnum, RestartPolicyNameEnum};
use bollard::query_parameters::{ListContainersOptions, TagImageOptions};
use rollback_proto::problem::{Code, Problem};

use super::pin::{Image, Images};
use crate::engine::{Engine, check_reference, within};

const LIMIT: Duration = Duration::from_secs(30);
const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";
const NUMBER: &str = "com.docker.compose.container-number";
const ONE_OFF: &str = "com.docker.compose.oneoff";
const DIRECTORY: &str = "com.docker.compose.project.working_dir";
pub const HASH: &str = "com.docker.compose.config-hash";

/// The repository of the names under which images are kept: `rollbackctl/kept:<id>`. An image with a name is spared by
/// `docker image prune`; `docker image prune -a` takes every image that no container uses, whatever its names.
pub const KEPT: &str = "rollbackctl/kept";

/// One container of a service. Those of `compose run` are left out.
#[derive(Clone, Debug)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub service: String,
    /// Which of the service's containers. While Compose replaces one, two have the same number.
    pub number: String,
    pub image_id: String,
    /// Running, or being restarted by the engine: not at rest.
    pub active: bool,
    created: i64,
}

/// More about one container.
#[derive(Clone, Debug)]
pub struct Details {
    /// The image as it was named when the container was made.
    pub reference: String,
    pub running: bool,
    pub restarts: i64,
    pub policy: RestartPolicyNameEnum,
    pub exit_code: Option<i64>,
    pub health: HealthStatusEnum,
    pub hash: Option<String>,
    pub environment: BTreeMap<Vec<u8>, Vec<u8>>,
}

async fn list(engine: &Engine, labels: Vec<String>) -> Result<Vec<bollard::models::ContainerSummary>, Problem> {
    let client = engine.client().await?;
    let options = ListContainersOptions {
        all: true,
        filters: Some(HashMap::from([("label".to_owned(), labels)])),
        ..ListContainersOptions::default()
    };
    within(LIMIT, "list containers", client.list_containers(Some(options))).await
}

/// The containers of these services of the project, sorted by service and age.
pub async fn containers(engine: &Engine, project: &str, services: &[String]) -> Result<Vec<Container>, Problem> {
    use ContainerSummaryStateEnum as State;
    let mut found: Vec<Container> = list(engine, vec![format!("{PROJECT}={project}")])
        .await?
        .into_iter()
        .filter_map(|summary| {
            let labels = summary.labels.unwrap_or_default();
            let service = labels.get(SERVICE)?.clone();
            let one_off = labels
                .get(ONE_OFF)
                .is_some_and(|value| value.eq_ignore_ascii_case("true"));
            if one_off || !services.contains(&service) {
                return None;
            }
            let names = summary.names.unwrap_or_default();
            Some(Container {
                id: summary.id?,
                name: names.first().map_or("?", |n| n.trim_start_matches('/')).to_owned(),
                service,
                number: labels.get(NUMBER).cloned().unwrap_or_default(),
                image_id: summary.image_id.unwrap_or_default(),
                active: match summary.state {
                    Some(State::RUNNING | State::PAUSED | State::RESTARTING) => true,
                    Some(
                        State::EMPTY | State::CREATED | State::EXITED | State::REMOVING | State::DEAD | State::STOPPING,
                    )
                    | None => false,
                },
                created: summary.created.unwrap_or_default(),
            })
        })
        .collect();
    found.sort_by(|a, b| (&a.service, a.created, &a.id).cmp(&(&b.service, b.created, &b.id)));
    Ok(found)
}

/// Projects whose containers were made from this directory.
pub async fn projects_of(engine: &Engine, dir: &str) -> Result<BTreeSet<String>, Problem> {
    let found = list(engine, vec![format!("{DIRECTORY}={dir}")]).await?;
    Ok(found
        .into_iter()
        .filter_map(|summary| summary.labels?.remove(PROJECT))
        .collect())
}

/// `None` when the container is gone since it was listed.
pub async fn details(engine: &Engine, id: &str) -> Result<Option<Details>, Problem> {
    let Some(seen) = engine.container(id).await? else {
        return Ok(None);
    };
    let config = seen.config.unwrap_or_default();
    let state = seen.state.unwrap_or_default();
    let environment = config.env.unwrap_or_default();
    Ok(Some(Details {
        reference: config.image.unwrap_or_default(),
        running: state.running == Some(true) && state.restarting != Some(true),
        restarts: seen.restart_count.unwrap_or_default(),
        policy: seen
            .host_config
            .and_then(|host| host.restart_policy?.name)
            .unwrap_or(RestartPolicyNameEnum::NO),
        exit_code: state.exit_code,
        health: state.health.and_then(|h| h.status).unwrap_or(HealthStatusEnum::NONE),
        hash: config.labels.unwrap_or_default().remove(HASH),
        environment: environment
            .iter()
            .filter_map(|entry| entry.split_once('='))
            .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
            .collect(),
    }))
}

/// What a project runs.
#[derive(Clone, Debug)]
pub struct Live {
    pub images: Images,
    /// Services of which not all active containers have the same image.
    pub mixed: BTreeSet<String>,
    /// No container of any of the services is active.
    pub at_rest: bool,
}

/// For each service the image of its active containers, or of the newest one when none is active.
pub async fn live(engine: &Engine, containers: &[Container]) -> Result<Live, Problem> {
    let mut live = Live {
        images: Images::new(),
        mixed: BTreeSet::new(),
        at_rest: containers.iter().all(|c| !c.active),
    };
    // Newest last, so that it is the one that stays; active ones over those at rest.
    let mut chosen: BTreeMap<&str, &Container> = BTreeMap::new();
    for container in containers {
        match chosen.get(container.service.as_str()) {
            Some(other) if other.active && !container.active => {}
            Some(other) if other.active && other.image_id != container.image_id => {
                live.mixed.insert(container.service.clone());
            }
            Some(_) | None => {
                chosen.insert(&container.service, container);
            }
        }
    }
    for (service, container) in chosen {
        let reference = details(engine, &container.id).await?.map(|d| d.reference);
        let image = Image {
            reference: reference.unwrap_or_default(),
            id: container.image_id.clone(),
        };
        live.images.insert(service.to_owned(), image);
    }
    Ok(live)
}

/// Id of the image of this name.
pub async fn image_id(engine: &Engine, reference: &str) -> Result<Option<String>, Problem> {
    Ok(engine.image(reference).await?.and_then(|image| image.id))
}

/// How a recorded image is found on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Under its name.
    Named,
    /// It is there, but nothing has its name.
    NameAbsent,
    /// Another image has its name.
    NameMoved {
        present: bool,
    },
    Absent,
}

pub async fn presence(engine: &Engine, image: &Image) -> Result<Presence, Problem> {
    if named_by_id(image) {
        return Ok(match image_id(engine, &image.id).await? {
            Some(_) => Presence::Named,
            None => Presence::Absent,
        });
    }
    let named = image_id(engine, &image.reference).await?;
    if named.as_deref() == Some(&image.id) {
        return Ok(Presence::Named);
    }
    let present = image_id(engine, &image.id).await?.is_some();
    Ok(match (named, present) {
        (Some(_), present) => Presence::NameMoved { present },
        (None, true) => Presence::NameAbsent,
        (None, false) => Presence::Absent,
    })
}

/// A container that was made by digest or id cannot lose its image's name.
fn named_by_id(image: &Image) -> bool {
    image.reference.contains("sha256:")
}

/// Gives images a name of ours.
pub async fn keep(engine: &Engine, images: &Images) -> Result<(), Problem> {
    for image in images.values() {
        let tag = image.id.trim_start_matches("sha256:").to_owned();
        tag_image(engine, &image.id, KEPT, &tag).await?;
    }
    Ok(())
}

/// The name that [`keep`] gives to the image with this id.
pub fn kept_name(id: &str) -> String {
    format!("{KEPT}:{}", id.trim_start_matches("sha256:"))
}

/// Gives an image back the name that it had.
pub async fn restore_name(engine: &Engine, image: &Image) -> Result<(), Problem> {
    let (repository, tag) = split(&image.reference);
    tag_image(engine, &image.id, repository, tag).await
}

async fn tag_image(engine: &Engine, id: &str, repository: &str, tag: &str) -> Result<(), Problem> {
    check_reference(id)?;
    let client = engine.client().await?;
    let options = TagImageOptions {
        repo: Some(repository.to_owned()),
        tag: Some(tag.to_owned()),
    };
    let what = format!("name image {repository}:{tag}");
    within(LIMIT, &what, client.tag_image(id, Some(options))).await
}

/// `reg:5000/a/b:tag`: the colon of a port is followed by a slash.
fn split(reference: &str) -> (&str, &str) {
    match reference.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        Some(_) | None => (reference, "latest"),
    }
}

pub fn moved(service: &str, image: &Image) -> Problem {
    Problem::new(
        Code::NameMoved,
        format!(
            "{service}: {} is another image now, not {}",
            image.reference,
            short(&image.id)
        ),
    )
}

/// The beginning of an id, as `docker images` shows it.
pub fn short(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_no_tag() {
        assert_eq!(split("app:v1"), ("app", "v1"));
        assert_eq!(split("reg.local:5000/a/b"), ("reg.local:5000/a/b", "latest"));
        assert_eq!(split("reg.local:5000/a/b:v1"), ("reg.local:5000/a/b", "v1"));
    }
}
