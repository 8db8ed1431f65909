//! Everything slow: finding a release by its name, giving images their names back, and building what is gone.

use std::path::{Path, PathBuf};

use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};

use super::command::Place;
use super::pin::{self, Image, Images, Pin, Source};
use super::running::{self, Presence};
use super::{ComposeDriver, Rebuild, readiness};
use crate::driver::{Done, Retained};
use crate::files::{self, blocking, io_problem, vault_problem};
use crate::step::StepContext;

/// Written before a build gives names to images, and taken back when they are pinned: names that are there although the
/// revision's images are not were given by a build of ours that was killed.
#[derive(Serialize, Deserialize)]
struct Building {
    active: bool,
}

/// By the conventions of the runbooks: the image with the release's tag, or the git tag that it is built from.
pub async fn resolve(driver: &ComposeDriver, release: &str) -> Result<Retained, Problem> {
    let value = driver.version.of(release)?;
    if !driver.variable_counts().await? {
        return Err(Problem::new(
            Code::Unresolved,
            format!(
                "no image of {} has {} in its name: every release would be the same",
                driver.services.join(", "),
                driver.compose.variable.name
            ),
        ));
    }
    let images = driver.images_named(Some(&value)).await?;
    let absent: Vec<String> = driver
        .names(Some(&value))
        .await?
        .into_iter()
        .filter(|(service, _)| !images.contains_key(service))
        .map(|(service, named)| format!("image {} for {service}", named.reference))
        .collect();
    let source = match &driver.rebuild {
        Some(rebuild) => rebuild.repository.tag(&rebuild.tag.of(release)?).await?,
        None => None,
    };
    if source.is_none() && !absent.is_empty() {
        let mut looked = absent;
        if let Some(rebuild) = &driver.rebuild {
            let repository = rebuild.repository.path.display();
            looked.push(format!("tag {} in {repository}", rebuild.tag.of(release)?));
        }
        return Err(Problem::new(
            Code::Unresolved,
            format!("{release} is not on this host; looked for {}", looked.join(", ")),
        ));
    }
    let images = if absent.is_empty() { images } else { Images::new() };
    let pin = Pin { value, images, source };
    driver.keep(&pin).await?;
    Ok(Retained {
        revision: pin.revision(),
        summary: driver.summary(&pin),
    })
}

pub async fn stage(driver: &ComposeDriver, step: &StepContext) -> Result<Done, Problem> {
    // The way back must exist before the way forward is built.
    let seen = step.operation("observe", driver.see()).await?;
    if seen.revision == step.from && seen.revision != step.to {
        step.operation("keep_images", driver.keep(&driver.pin_of_live(&seen)?))
            .await?;
    }
    let mut wanted = pin::of(&driver.vault, &driver.component, &step.to)?;
    let (mut renamed, mut missing) = (0, Vec::new());
    for service in &driver.services {
        let Some(image) = wanted.images.get(service) else {
            missing.push(service.clone());
            continue;
        };
        match running::presence(&driver.engine, image).await? {
            Presence::Named => {}
            Presence::NameAbsent => {
                running::restore_name(&driver.engine, image).await?;
                renamed += 1;
            }
            // Of a build that was killed before it was pinned, the name is ours to give again.
            Presence::NameMoved { present: false } if building(driver, &wanted)? => missing.push(service.clone()),
            Presence::NameMoved { .. } => return Err(running::moved(service, image)),
            Presence::Absent => missing.push(service.clone()),
        }
    }
    if !missing.is_empty() {
        build(driver, step, &mut wanted, &missing).await?;
        return Ok(Done::new(format!(
            "{} built from {}",
            missing.join(", "),
            driver.summary(&wanted)
        )));
    }
    step.operation("keep_images", driver.keep(&wanted)).await?;
    Ok(Done::new(match renamed {
        0 => format!("{} is here: {}", step.to.version, driver.summary(&wanted)),
        count => format!("{count} images of {} got their names back", step.to.version),
    }))
}

fn marker(source: &Source) -> String {
    format!("building:{}", source.commit)
}

/// Did a build of ours give names that are not pinned yet?
pub fn building(driver: &ComposeDriver, wanted: &Pin) -> Result<bool, Problem> {
    let Some(source) = &wanted.source else {
        return Ok(false);
    };
    let note: Option<Building> = driver
        .vault
        .pinned(&driver.component, &marker(source))
        .map_err(|e| vault_problem(&e))?;
    Ok(note.is_some_and(|note| note.active))
}

async fn build(
    driver: &ComposeDriver,
    step: &StepContext,
    wanted: &mut Pin,
    missing: &[String],
) -> Result<(), Problem> {
    let (Some(rebuild), Some(source)) = (&driver.rebuild, wanted.source.clone()) else {
        let service = missing.first().map_or("?", String::as_str);
        return Err(readiness::gone(service, wanted.images.get(service)));
    };
    let names = driver.names(Some(&wanted.value)).await?;
    for service in missing {
        let Some(named) = names.get(service).filter(|named| named.builds) else {
            return Err(readiness::gone(service, wanted.images.get(service)));
        };
        if !building(driver, wanted)?
            && let Some(id) = running::image_id(&driver.engine, &named.reference).await?
        {
            let reference = named.reference.clone();
            return Err(running::moved(service, &Image { reference, id }).remedy(
                "that image was not built by the agent; remove its name, or import the release again to take it as it is",
            ));
        }
    }
    let note = |active| {
        driver
            .vault
            .pin(&driver.component, &marker(&source), &Building { active })
            .map_err(|e| vault_problem(&e))
    };
    note(true)?;
    step.progress(format!("building {} from tag {}", missing.join(", "), source.tag));
    let tree = rebuild
        .repository
        .worktree(&driver.component, &source.commit, step.time_left());
    let tree = step.operation("git_worktree", tree).await?;
    let result = build_in(driver, step, rebuild, &tree, wanted, missing).await;
    rebuild.repository.remove_worktree(&driver.component).await?;
    result?;
    for service in &driver.services {
        let Some(named) = names.get(service) else { continue };
        let id = running::image_id(&driver.engine, &named.reference).await?;
        let id = id.ok_or_else(|| {
            Problem::new(
                Code::ComposeFailed,
                format!("the build ended well, and there is no image {}", named.reference),
            )
        })?;
        let reference = named.reference.clone();
        wanted.images.insert(service.clone(), Image { reference, id });
    }
    step.operation("keep_images", driver.keep(wanted)).await?;
    note(false)
}

async fn build_in(
    driver: &ComposeDriver,
    step: &StepContext,
    rebuild: &Rebuild,
    tree: &Path,
    wanted: &Pin,
    missing: &[String],
) -> Result<(), Problem> {
    let dir = tree.join(&rebuild.within);
    fill_env_files(driver, &dir).await?;
    let there = |file: &&PathBuf| dir.join(file).exists();
    let files: Vec<PathBuf> = driver.compose.files.iter().filter(there).cloned().collect();
    let project = driver.project()?;
    let place = Place {
        dir: &dir,
        files: &files,
        project: Some(&project),
    };
    // What is built must be what `up` will look for, and no other name may move.
    let theirs = driver.compose.services(Some(&wanted.value), Some(&place)).await?;
    let ours = driver.names(Some(&wanted.value)).await?;
    for service in missing {
        let built = theirs.get(service).and_then(|s| s.image.as_deref());
        let used = ours.get(service).map(|named| named.reference.as_str());
        if built.is_none() || built != used {
            return Err(Problem::new(
                Code::ComposeFailed,
                format!(
                    "the tag's compose file builds {service} as {}, the project's file uses {}",
                    built.unwrap_or("an image without a name"),
                    used.unwrap_or("none")
                ),
            )
            .remedy("put the tag's compose file into the project directory by hand, or build the image by hand"));
        }
    }
    let work = driver.compose.build(&place, &wanted.value, missing, step.time_left());
    step.operation("compose_build", work).await
}

/// Compose refuses to build when a file named under `env_file` is missing, which files with secrets are in a fresh
/// worktree. A build does not read them.
async fn fill_env_files(driver: &ComposeDriver, dir: &Path) -> Result<(), Problem> {
    let inside = driver
        .env_files
        .iter()
        .filter_map(|file| file.strip_prefix(&driver.compose.dir).ok());
    let files: Vec<PathBuf> = inside
        .filter(|f| files::stays_beneath(f))
        .map(|f| dir.join(f))
        .collect();
    blocking(move || {
        for file in files.iter().filter(|file| !file.exists()) {
            let parent = file.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(parent).map_err(|e| io_problem("create", parent, &e))?;
            files::write_new(file, b"", files::own_attributes(0o600))?;
        }
        Ok(())
    })
    .await
}

impl ComposeDriver {
    /// Removes what a killed move left beside the project.
    pub async fn tidy(&self) -> Result<(), Problem> {
        let variable = self.compose.variable.clone();
        blocking(move || variable.tidy()).await?;
        match &self.rebuild {
            Some(rebuild) => rebuild.repository.remove_worktree(&self.component).await,
            None => Ok(()),
        }
    }
}
