//! What is live: images from the engine, the version from the vault or from the images' names.

use std::collections::BTreeMap;
use std::path::Path;

use bollard::models::HealthStatusEnum;
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};

use super::pin::{self, Image, Images, Pin, Source};
use super::running::{self, Container, Live};
use super::{ComposeDriver, normalized};
use crate::driver::{Health, Revision};
use crate::files::blocking;

/// A value that no release has. Where it comes out in the names of images is where the variable stands.
const PLACE: &str = "rollbackctl.place.of.the.version";

pub struct Seen {
    pub project: String,
    pub containers: Vec<Container>,
    pub live: Live,
    /// What runs; when all is at rest, what `.env` would start.
    pub revision: Revision,
    pub images: Images,
    pub source: Option<Source>,
    /// The variable in `.env`.
    pub declared: Option<String>,
    /// Is the version the variable's value, and not only a makeshift?
    named: bool,
}

/// How the files name a service's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub reference: String,
    pub builds: bool,
}

impl ComposeDriver {
    /// The project's name, as Compose derives it.
    pub fn project(&self) -> Result<String, Problem> {
        if let Some(project) = &self.compose.project {
            return Ok(project.clone());
        }
        let declared = self.compose.variable.other("COMPOSE_PROJECT_NAME")?;
        if let Some(name) = declared.filter(|name| !name.is_empty()) {
            return Ok(normalized(&name));
        }
        let first = self
            .compose
            .files
            .first()
            .and_then(|f| f.parent())
            .unwrap_or(Path::new(""));
        let dir = self.compose.dir.join(first);
        let name = normalized(&dir.file_name().unwrap_or_default().to_string_lossy());
        if name.is_empty() {
            return Err(Problem::new(
                Code::BadConfig,
                format!("{} gives no project name; set `project`", dir.display()),
            ));
        }
        Ok(name)
    }

    pub async fn see(&self) -> Result<Seen, Problem> {
        let project = self.project()?;
        let containers = running::containers(&self.engine, &project, &self.services).await?;
        let live = running::live(&self.engine, &containers).await?;
        let declared = self.compose.variable.value()?;
        let images = if live.at_rest {
            self.images_named(None).await?
        } else {
            live.images.clone()
        };
        let digest = pin::digest(&images, &live.mixed);
        let (revision, source, named) = match pin::of_digest(&self.vault, &self.component, &digest)? {
            Some(pin) => (pin.revision(), pin.source, true),
            None => {
                let value = if live.at_rest {
                    declared.clone().filter(|value| check_name("version", value).is_ok())
                } else {
                    self.value_in(&images).await?
                };
                let source = match &value {
                    Some(value) if live.mixed.is_empty() => self.source_of(value).await?,
                    Some(_) | None => None,
                };
                let named = value.is_some();
                let version = value.unwrap_or_else(|| format!("images-{}", running::short(&digest)));
                let digest = source.as_ref().map_or(digest, |s| format!("commit:{}", s.commit));
                (Revision { version, digest }, source, named)
            }
        };
        Ok(Seen {
            project,
            containers,
            live,
            revision,
            images,
            source,
            declared,
            named,
        })
    }

    /// The images as the files name them with this value; `None`: with the value in `.env`.
    pub async fn names(&self, value: Option<&str>) -> Result<BTreeMap<String, Named>, Problem> {
        let mut listed = self.compose.services(value, None).await?;
        let mut names = BTreeMap::new();
        for service in &self.services {
            let found = listed.remove(service).ok_or_else(|| {
                Problem::new(
                    Code::ComposeFailed,
                    format!("the files in {} have no service {service}", self.compose.dir.display()),
                )
            })?;
            let reference = match found.image {
                Some(image) => image,
                None => self.compose.default_image(&self.project()?, service).await?,
            };
            let named = Named {
                reference,
                builds: found.builds,
            };
            names.insert(service.clone(), named);
        }
        Ok(names)
    }

    /// Of the named images those that are there.
    pub async fn images_named(&self, value: Option<&str>) -> Result<Images, Problem> {
        let mut images = Images::new();
        for (service, named) in self.names(value).await? {
            // A file that says `app:${TAG}` without a value gives `app:`, which is no name.
            if named.reference.is_empty() || named.reference.ends_with(':') {
                continue;
            }
            if let Some(id) = running::image_id(&self.engine, &named.reference).await? {
                let reference = named.reference;
                images.insert(service, Image { reference, id });
            }
        }
        Ok(images)
    }

    /// The variable's value with which the files give these names to the images. `None`: no one value does.
    async fn value_in(&self, images: &Images) -> Result<Option<String>, Problem> {
        let mut values = Vec::new();
        for (service, named) in self.names(Some(PLACE)).await? {
            if let Some((before, after)) = named.reference.split_once(PLACE)
                && let Some(image) = images.get(&service)
                && let Some(value) = image.reference.strip_prefix(before).and_then(|r| r.strip_suffix(after))
                && check_name("version", value).is_ok()
            {
                values.push(value.to_owned());
            }
        }
        values.dedup();
        Ok(match values.as_slice() {
            [value] => Some(value.clone()),
            _ => None,
        })
    }

    /// Does the variable stand in the name of any image?
    pub async fn variable_counts(&self) -> Result<bool, Problem> {
        Ok(self
            .names(Some(PLACE))
            .await?
            .values()
            .any(|n| n.reference.contains(PLACE)))
    }

    /// The commit that a version was built from, by convention.
    async fn source_of(&self, value: &str) -> Result<Option<Source>, Problem> {
        let Some(rebuild) = &self.rebuild else {
            return Ok(None);
        };
        for release in self.version.releases(value) {
            if let Ok(tag) = rebuild.tag.of(&release)
                && let Some(source) = rebuild.repository.tag(&tag).await?
            {
                return Ok(Some(source));
            }
        }
        Ok(None)
    }

    /// What is needed to come back to what is live.
    pub fn pin_of_live(&self, seen: &Seen) -> Result<Pin, Problem> {
        if let Some(service) = seen.live.mixed.first() {
            return Err(Problem::new(
                Code::ComposeFailed,
                format!("{service} runs containers of different images: no one revision is live"),
            ));
        }
        if !seen.named {
            return Err(Problem::new(
                Code::ComposeFailed,
                format!(
                    "the images of {} do not carry {} in their names: the version that runs cannot be told",
                    self.services.join(", "),
                    self.compose.variable.name
                ),
            )
            .remedy("write the variable into the compose file: image: NAME:${VARIABLE}"));
        }
        Ok(Pin {
            value: seen.revision.version.clone(),
            images: seen.images.clone(),
            source: seen.source.clone(),
        })
    }

    /// Pins, after the images have a name that keeps them.
    pub async fn keep(&self, pin: &Pin) -> Result<(), Problem> {
        running::keep(&self.engine, &pin.images).await?;
        pin::keep(&self.vault, &self.component, pin)
    }

    /// Takes our names from images that nobody comes back to. The engine removes those that have no other name and no
    /// container.
    pub async fn forget_images(&self, revision: &Revision) -> Result<String, Problem> {
        let (vault, component, gone) = (self.vault.clone(), self.component.clone(), revision.clone());
        let free = blocking(move || pin::forget(&vault, &component, &gone)).await?;
        let (mut removed, mut used) = (0, Vec::new());
        for id in &free {
            if self.engine.remove_name(&running::kept_name(id)).await? {
                removed += 1;
            } else {
                used.push(running::short(id));
            }
        }
        Ok(match (removed, used.is_empty()) {
            (0, true) => "no image was kept for it alone".to_owned(),
            (count, true) => format!("our names of {count} images are gone"),
            (count, false) => format!(
                "our names of {count} images are gone; a container was made of {}",
                used.join(", ")
            ),
        })
    }

    pub fn summary(&self, pin: &Pin) -> String {
        let images = pin
            .images
            .iter()
            .map(|(service, image)| format!("{service} {}", running::short(&image.id)))
            .collect::<Vec<_>>()
            .join(", ");
        match &pin.source {
            None => format!("images {images}"),
            Some(source) if images.is_empty() => format!(
                "tag {} at {}; its images will be built when the rollback is staged",
                source.tag,
                running::short(&source.commit)
            ),
            Some(source) => format!(
                "tag {} at {}, images {images}; images rebuilt from that commit count as this revision",
                source.tag,
                running::short(&source.commit)
            ),
        }
    }

    /// Health, and one line for people.
    pub async fn health_of(&self, seen: &Seen) -> Result<(Health, String), Problem> {
        if seen.live.at_rest {
            return Ok((
                Health::Stopped,
                format!("no container of project {} runs", seen.project),
            ));
        }
        let mut notes = Vec::new();
        if seen.declared.as_ref() != Some(&seen.revision.version) {
            notes.push(format!(
                "{} has {}, the containers run {}",
                self.compose.variable.path.display(),
                seen.declared.as_deref().unwrap_or("nothing"),
                seen.revision.version
            ));
        }
        let mut sick = Vec::new();
        for service in &self.services {
            if !seen.containers.iter().any(|c| c.active && c.service == *service) {
                sick.push(format!("{service} does not run"));
            }
        }
        for container in seen.containers.iter().filter(|c| c.active) {
            match running::details(&self.engine, &container.id).await? {
                Some(details) if !details.running => sick.push(format!("{} is restarting", container.name)),
                Some(details) if details.health == HealthStatusEnum::UNHEALTHY => {
                    sick.push(format!("the engine calls {} unhealthy", container.name));
                }
                Some(_) | None => {}
            }
        }
        if !sick.is_empty() {
            sick.extend(notes);
            return Ok((Health::Unhealthy, sick.join("; ")));
        }
        let count = seen.containers.iter().filter(|c| c.active).count();
        let (health, detail) = match &self.health {
            None => (Health::Healthy, "no health check".to_owned()),
            Some(check) => match check.once(Some(&seen.revision.version)).await {
                Ok(passed) => (Health::Healthy, passed.detail),
                Err(problem) => (Health::Unhealthy, problem.message),
            },
        };
        notes.insert(0, format!("{count} containers, {detail}"));
        Ok((health, notes.join("; ")))
    }
}
