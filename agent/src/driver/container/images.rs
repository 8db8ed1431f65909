//! Images as revisions: what an image id is called, and keeping it.
//!
//! A kept image has a tag of ours. That spares it from `docker image prune` (untagged images) and from somebody who
//! removes or moves the application's tag. It does **not** spare it from `docker image prune -a` or `docker system
//! prune -a`, which remove every image that no container uses; nothing but a container does. `prepare` finds that out
//! before anything is touched.

use bollard::models::ImageInspect;
use bollard::query_parameters::{CreateImageOptions, TagImageOptions};
use futures::StreamExt;
use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};

use super::managed::Managed;
use super::seen::Seen;
use crate::driver::env_file::short;
use crate::driver::{Retained, Revision};
use crate::engine::{self, REQUEST_LIMIT};
use crate::files::{blocking, vault_problem};
use crate::step::StepContext;

/// Repository of our tags. The name cannot be a registry's: nothing is ever pushed or pulled there.
const OUR_REPOSITORY: &str = "rollbackctl.local";

/// A tag that says nothing about what it is on.
const MEANINGLESS: &str = "latest";

/// What the vault keeps for one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pin {
    pub version: String,
    /// `repository:tag` under which it was known.
    pub reference: Option<String>,
    /// `repository@sha256:…`, by which a registry gives it again.
    #[serde(default)]
    pub from_registry: Vec<String>,
    /// Our own tag.
    pub kept_as: String,
}

impl Managed {
    pub async fn pin_of(&self, digest: &str) -> Result<Option<Pin>, Problem> {
        let (vault, component, digest) = (self.vault.clone(), self.component.clone(), digest.to_owned());
        blocking(move || vault.pinned(&component, &digest).map_err(|e| vault_problem(&e))).await
    }

    /// The tags that a release goes by, the most likely first.
    pub fn tags_of(&self, release: &str) -> Vec<String> {
        let bare = match release.strip_prefix('v') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_digit()) => rest,
            Some(_) | None => release,
        };
        let mut tags = vec![self.tag.replace("{release}", release).replace("{version}", bare)];
        let other = self.tag.replace("{release}", bare).replace("{version}", bare);
        if !tags.contains(&other) {
            tags.push(other);
        }
        tags
    }

    /// What an image is called: as it was recorded, by the tag that its container was made with, or by its id.
    pub async fn revision_of(&self, container: &Seen) -> Result<Revision, Problem> {
        let digest = container.image().to_owned();
        let version = match self.pin_of(&digest).await? {
            Some(pin) => pin.version,
            None => match self.own_tag(container.image_name()) {
                Some(tag) => tag.to_owned(),
                None => self.tag_on(&digest).await?.unwrap_or_else(|| short(&digest)),
            },
        };
        Ok(Revision { version, digest })
    }

    /// A tag that the image has in the component's repository: its container may have been made by the image's id.
    async fn tag_on(&self, digest: &str) -> Result<Option<String>, Problem> {
        let tags = self.engine.image(digest).await?.and_then(|i| i.repo_tags);
        Ok(tags.iter().flatten().find_map(|t| self.own_tag(t)).map(str::to_owned))
    }

    /// The tag in a reference to the component's repository.
    fn own_tag<'a>(&self, reference: &'a str) -> Option<&'a str> {
        let tag = reference.strip_prefix(&self.image)?.strip_prefix(':')?;
        (tag != MEANINGLESS && !tag.is_empty()).then_some(tag)
    }

    /// Pins the image of the live container.
    pub async fn retain_live(&self, release: &str) -> Result<Retained, Problem> {
        let live = self.live().await?;
        let image = self.engine.image(live.image()).await?.ok_or_else(|| {
            Problem::new(
                Code::RevisionMissing,
                format!("the image {} of container {} is gone", live.image(), live.name()),
            )
        })?;
        let tagged = |tag: &str| {
            let reference = format!("{}:{tag}", self.image);
            image.repo_tags.iter().flatten().any(|t| *t == reference)
        };
        let version = self
            .tags_of(release)
            .into_iter()
            .find(|tag| tagged(tag))
            .or_else(|| self.own_tag(live.image_name()).map(str::to_owned))
            .unwrap_or_else(|| release.to_owned());
        self.keep(&image, version).await
    }

    /// Finds the image of a release by its tag.
    pub async fn resolve_tag(&self, release: &str) -> Result<Retained, Problem> {
        let mut looked = Vec::new();
        for tag in self.tags_of(release) {
            let reference = format!("{}:{tag}", self.image);
            engine::check_reference(&reference)?;
            if let Some(image) = self.engine.image(&reference).await? {
                return self.keep(&image, tag).await;
            }
            looked.push(reference);
        }
        Err(Problem::new(
            Code::Unresolved,
            format!("there is no image {} on this host", looked.join(" nor ")),
        ))
    }

    /// Tags an image as ours and writes it down. A name that was given before stays.
    async fn keep(&self, image: &ImageInspect, version: String) -> Result<Retained, Problem> {
        let digest = image.id.clone().unwrap_or_default();
        let repository = format!("{OUR_REPOSITORY}/{}", repository_name(&self.component));
        let tag = short(&digest);
        let kept_as = format!("{repository}:{tag}");
        let known = self.pin_of(&digest).await?;
        let client = self.engine.client().await?;
        let options = TagImageOptions {
            repo: Some(repository),
            tag: Some(tag),
        };
        let tagging = client.tag_image(&digest, Some(options));
        engine::within(REQUEST_LIMIT, &format!("tag image {digest} as {kept_as}"), tagging).await?;
        let seen = self.engine.image(&kept_as).await?.and_then(|i| i.id);
        if seen.as_ref() != Some(&digest) {
            return Err(Problem::new(
                Code::NameMoved,
                format!("{kept_as} is another image than the one that was just given that name"),
            ));
        }
        let tags = image.repo_tags.clone().unwrap_or_default();
        let wanted = format!("{}:{version}", self.image);
        let own = |t: &&String| self.own_tag(t).is_some();
        let pin = Pin {
            version: known.as_ref().map_or(version, |pin| pin.version.clone()),
            reference: tags
                .iter()
                .find(|t| **t == wanted)
                .or_else(|| tags.iter().find(own))
                .cloned()
                .or_else(|| known.as_ref().and_then(|pin| pin.reference.clone())),
            from_registry: image.repo_digests.clone().unwrap_or_default(),
            kept_as,
        };
        if known.as_ref() != Some(&pin) {
            let (vault, component, document, key) =
                (self.vault.clone(), self.component.clone(), pin.clone(), digest.clone());
            blocking(move || vault.pin(&component, &key, &document).map_err(|e| vault_problem(&e))).await?;
        }
        Ok(Retained {
            revision: Revision {
                version: pin.version,
                digest,
            },
            summary: format!("kept as {}, safe from pruning unless with -a", pin.kept_as),
        })
    }

    /// Takes our tag from an image that nobody comes back to. The engine removes the image when that was its last name and
    /// no container was made of it.
    pub async fn forget(&self, revision: &Revision) -> Result<String, Problem> {
        let Some(pin) = self.pin_of(&revision.digest).await? else {
            return Ok("nothing was kept for it".to_owned());
        };
        let (vault, component, digest) = (self.vault.clone(), self.component.clone(), revision.digest.clone());
        let kept_as = pin.kept_as.clone();
        // Names of components that differ in case alone have one repository for their tags. The pin goes first: a tag
        // without one costs room, a pin without its image would be a promise that nobody keeps.
        let others = blocking(move || {
            vault.unpin(&component, &digest).map_err(|e| vault_problem(&e))?;
            vault.mentions(&kept_as).map_err(|e| vault_problem(&e))
        })
        .await?;
        if others {
            return Ok(format!("{} is another component's, too", pin.kept_as));
        }
        if self.engine.image(&pin.kept_as).await?.and_then(|image| image.id) != Some(revision.digest.clone()) {
            return Ok(format!("{} was gone, or is another image", pin.kept_as));
        }
        Ok(match self.engine.remove_name(&pin.kept_as).await? {
            true => format!("the tag {} is gone", pin.kept_as),
            false => format!("{} stays: a container was made of it", pin.kept_as),
        })
    }

    /// The name to make a container with: the one that people know while it means this image, else the id.
    pub async fn name_of_image(&self, digest: &str) -> Result<String, Problem> {
        if let Some(reference) = self.pin_of(digest).await?.and_then(|pin| pin.reference) {
            let means = self.engine.image(&reference).await?.and_then(|i| i.id);
            if means.as_deref() == Some(digest) {
                return Ok(reference);
            }
        }
        Ok(digest.to_owned())
    }

    pub fn missing(&self, to: &Revision) -> Problem {
        Problem::new(
            Code::RevisionMissing,
            format!("the image of {} ({}) is not on this host", to.version, to.digest),
        )
        .remedy(format!(
            "pull or load {}:{} again; it must have this very id",
            self.image, to.version
        ))
    }

    /// Makes the image present. Pulls only when the configuration says so, and only by digest.
    pub async fn fetch(&self, step: &StepContext) -> Result<(), Problem> {
        let to = &step.to;
        if self.engine.image(&to.digest).await?.is_some() {
            return Ok(());
        }
        let known = self.pin_of(&to.digest).await?.map(|pin| pin.from_registry);
        for reference in known.filter(|_| self.pull).into_iter().flatten() {
            engine::check_reference(&reference)?;
            step.progress(format!("pulling {reference}"));
            let options = CreateImageOptions {
                from_image: Some(reference.clone()),
                ..CreateImageOptions::default()
            };
            let client = self.engine.client().await?.with_timeout(step.time_left());
            let pulling = async {
                let mut steps = client.create_image(Some(options), None, None);
                while let Some(one) = steps.next().await {
                    one?;
                }
                Ok(())
            };
            engine::within(step.time_left(), &format!("pull {reference}"), pulling).await?;
            if self.engine.image(&to.digest).await?.is_some() {
                return Ok(());
            }
        }
        Err(self.missing(to))
    }
}

/// A component's name as a part of a repository's: lower case, single separators.
fn repository_name(component: &str) -> String {
    let mut name = String::new();
    for c in component.chars().map(|c| c.to_ascii_lowercase()) {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            _ if name.ends_with('-') || name.is_empty() => {}
            _ => name.push('-'),
        }
    }
    let name = name.trim_end_matches('-');
    if name.is_empty() {
        "component".into()
    } else {
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn component_names_become_repository_names() {
        for (component, name) in [
            ("api", "api"),
            ("Api_v2.x", "api-v2-x"),
            ("a..b+", "a-b"),
            ("+", "component"),
        ] {
            assert_eq!(repository_name(component), name);
        }
    }
}
