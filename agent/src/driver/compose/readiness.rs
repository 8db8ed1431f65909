//! What `prepare` finds: can this host go to the wanted revision right now, and come back?

use std::path::{Path, PathBuf};

use rollback_proto::problem::{Code, Problem};

use super::pin::{self, Image, Pin, Source};
use super::running::{self, Presence};
use super::seen::Seen;
use super::{ComposeDriver, Rebuild, staging};
use crate::driver::{Finding, Revision};
use crate::files;

/// The files that Compose looks for when none is named, and their overrides.
const FOUND_BY_ITSELF: [&str; 8] = [
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
    "compose.override.yaml",
    "compose.override.yml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];

/// Reads only.
pub async fn findings(driver: &ComposeDriver, from: &Revision, to: &Revision) -> Result<Vec<Finding>, Problem> {
    driver.compose.tool().await?;
    let seen = driver.see().await?;
    let mut findings = Vec::new();
    findings.extend(project_findings(driver, &seen).await?);
    findings.extend(live_findings(driver, &seen, from, to));
    findings.extend(file_findings(driver)?);
    let wanted = match pin::of(&driver.vault, &driver.component, to) {
        Ok(pin) => pin,
        Err(problem) => {
            findings.push(Finding::blocker(problem));
            return Ok(findings);
        }
    };
    findings.extend(name_findings(driver, &wanted).await?);
    let missing = image_findings(driver, &wanted, &mut findings).await?;
    if !missing.is_empty() {
        findings.extend(rebuild_findings(driver, &wanted, &missing, &seen.revision.version).await?);
    }
    // The way back: what is live must be found again under its name.
    if seen.revision == *from {
        for (service, image) in &seen.images {
            if let Presence::NameMoved { .. } = running::presence(&driver.engine, image).await? {
                let problem = running::moved(service, image);
                findings.push(Finding::blocker(Problem {
                    message: format!("{}: undoing could not bring it back", problem.message),
                    ..problem
                }));
            }
        }
    }
    Ok(findings)
}

async fn project_findings(driver: &ComposeDriver, seen: &Seen) -> Result<Vec<Finding>, Problem> {
    if !seen.containers.is_empty() {
        return Ok(Vec::new());
    }
    let dir = driver.compose.dir.to_string_lossy();
    let others = running::projects_of(&driver.engine, &dir).await?;
    let others: Vec<String> = others.into_iter().filter(|p| *p != seen.project).collect();
    let message = format!(
        "project {} has no container of {}",
        seen.project,
        driver.services.join(", ")
    );
    Ok(vec![if others.is_empty() {
        Finding::warning(Problem::new(Code::ComposeFailed, message))
    } else {
        let problem = Problem::new(
            Code::ComposeFailed,
            format!("{message}, but {dir} has those of project {}", others.join(", ")),
        );
        Finding::blocker(problem.remedy("set `project` to the project's name"))
    }])
}

/// Is what is live what the plan was made from?
fn live_findings(driver: &ComposeDriver, seen: &Seen, from: &Revision, to: &Revision) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !seen.live.mixed.is_empty()
        && let Err(problem) = driver.pin_of_live(seen)
    {
        findings.push(Finding::blocker(problem));
    } else if seen.revision != *from && seen.revision != *to {
        findings.push(Finding::blocker(Problem::new(
            Code::WrongRevision,
            format!(
                "{} is live ({}), neither {} nor {}",
                seen.revision.version, seen.revision.digest, from.version, to.version
            ),
        )));
    } else if seen.revision == *from
        && let Err(problem) = driver.pin_of_live(seen)
    {
        findings.push(Finding::blocker(problem));
    }
    if !seen.live.at_rest && seen.declared.as_ref() != Some(&seen.revision.version) {
        findings.push(Finding::warning(
            Problem::new(
                Code::WrongRevision,
                format!(
                    "{} has {} for {}, the containers run {}",
                    driver.compose.variable.path.display(),
                    seen.declared.as_deref().unwrap_or("nothing"),
                    driver.compose.variable.name,
                    seen.revision.version
                ),
            )
            .remedy("nothing: the rollback writes the version into the file"),
        ));
    }
    findings
}

fn file_findings(driver: &ComposeDriver) -> Result<Vec<Finding>, Problem> {
    let mut findings = Vec::new();
    let path = &driver.compose.variable.path;
    let dir = path.parent().unwrap_or(Path::new("/"));
    if files::writable_by_others(dir)? {
        findings.push(Finding::blocker(Problem::new(
            Code::BadLayout,
            format!("{} is writable by everybody; nothing is replaced there", dir.display()),
        )));
    }
    if !files::writable_by_us(dir) {
        findings.push(Finding::blocker(Problem::new(
            Code::FileFailed,
            format!("{} is not writable by the agent", dir.display()),
        )));
    }
    for file in &driver.env_files {
        if files::read(file)?.is_none() {
            findings.push(Finding::blocker(Problem::new(
                Code::FileFailed,
                format!("{} does not exist: no container would start", file.display()),
            )));
        }
    }
    Ok(findings)
}

/// Do the files still lead from the value to the recorded images?
async fn name_findings(driver: &ComposeDriver, wanted: &Pin) -> Result<Vec<Finding>, Problem> {
    let names = driver.names(Some(&wanted.value)).await?;
    let mut findings = Vec::new();
    for (service, image) in &wanted.images {
        let now = names.get(service).map(|named| named.reference.as_str());
        if now != Some(image.reference.as_str()) {
            findings.push(Finding::blocker(Problem::new(
                Code::ComposeFailed,
                format!(
                    "with {}={} the files name {} for {service}, recorded was {}",
                    driver.compose.variable.name,
                    wanted.value,
                    now.unwrap_or("no image"),
                    image.reference
                ),
            )));
        }
    }
    Ok(findings)
}

/// Returns the services whose images are gone.
async fn image_findings(
    driver: &ComposeDriver,
    wanted: &Pin,
    findings: &mut Vec<Finding>,
) -> Result<Vec<String>, Problem> {
    let mut missing = Vec::new();
    for service in &driver.services {
        let Some(image) = wanted.images.get(service) else {
            missing.push(service.clone());
            continue;
        };
        match running::presence(&driver.engine, image).await? {
            Presence::Named => {}
            Presence::NameAbsent => findings.push(Finding::warning(
                Problem::new(
                    Code::RevisionMissing,
                    format!("{service}: nothing is named {} any more", image.reference),
                )
                .remedy("nothing: the image is still there, and will get its name back"),
            )),
            // By a build of ours that was killed.
            Presence::NameMoved { present: false } if staging::building(driver, wanted)? => {
                missing.push(service.clone());
            }
            Presence::NameMoved { .. } => findings.push(Finding::blocker(running::moved(service, image))),
            Presence::Absent => missing.push(service.clone()),
        }
    }
    Ok(missing)
}

pub fn gone(service: &str, image: Option<&Image>) -> Problem {
    let what = image.map_or("its image".to_owned(), |image| {
        format!("image {} ({})", image.reference, running::short(&image.id))
    });
    Problem::new(Code::RevisionMissing, format!("{service}: {what} is not on this host"))
        .remedy("load or pull that image, or set `rebuild` if it can be built from a git tag")
}

async fn rebuild_findings(
    driver: &ComposeDriver,
    wanted: &Pin,
    missing: &[String],
    live: &str,
) -> Result<Vec<Finding>, Problem> {
    let mut findings = Vec::new();
    let (Some(rebuild), Some(source)) = (&driver.rebuild, &wanted.source) else {
        let gone = missing.iter().map(|service| gone(service, wanted.images.get(service)));
        return Ok(gone.map(Finding::blocker).collect());
    };
    let (now, before) = (
        driver.names(Some(&wanted.value)).await?,
        driver.names(Some(live)).await?,
    );
    for service in missing {
        let Some(named) = now.get(service).filter(|named| named.builds) else {
            findings.push(Finding::blocker(gone(service, wanted.images.get(service))));
            continue;
        };
        if before.get(service) == Some(named) && live != wanted.value {
            findings.push(Finding::blocker(Problem::new(
                Code::ComposeFailed,
                format!(
                    "{service}: building {} would take the name from the image that is live; write ${{{}}} into it",
                    named.reference, driver.compose.variable.name
                ),
            )));
        }
    }
    findings.extend(source_findings(driver, rebuild, source).await?);
    if findings.is_empty() {
        findings.push(Finding::warning(
            Problem::new(
                Code::RevisionMissing,
                format!("the images of {} are not on this host", missing.join(", ")),
            )
            .remedy(format!("nothing: they will be built from tag {}", source.tag)),
        ));
    }
    Ok(findings)
}

async fn source_findings(driver: &ComposeDriver, rebuild: &Rebuild, source: &Source) -> Result<Vec<Finding>, Problem> {
    let mut findings = Vec::new();
    let repository = &rebuild.repository;
    match repository.tag(&source.tag).await? {
        Some(now) if now.commit == source.commit => {}
        Some(now) => findings.push(Finding::blocker(Problem::new(
            Code::NameMoved,
            format!(
                "tag {} of {} is at {} now, recorded was {}",
                source.tag,
                repository.path.display(),
                running::short(&now.commit),
                running::short(&source.commit)
            ),
        ))),
        None => findings.push(Finding::warning(Problem::new(
            Code::GitUnfit,
            format!(
                "tag {} is gone from {}; its commit {} is built",
                source.tag,
                repository.path.display(),
                running::short(&source.commit)
            ),
        ))),
    }
    if !repository.has(&source.commit).await? {
        findings.push(Finding::blocker(
            Problem::new(
                Code::GitUnfit,
                format!(
                    "{} does not have commit {}",
                    repository.path.display(),
                    running::short(&source.commit)
                ),
            )
            .remedy("fetch it: git fetch --tags"),
        ));
        return Ok(findings);
    }
    let files = compose_files(driver);
    for (at, file) in files.iter().enumerate() {
        let name = rebuild.within.join(file);
        match repository.same_as_on_disk(&source.commit, &name).await? {
            Some(true) => {}
            Some(false) => findings.push(Finding::warning(
                Problem::new(
                    Code::ComposeFailed,
                    format!("{} differs from that of tag {}", name.display(), source.tag),
                )
                .remedy("containers will run the tag's images with the present file's settings; if the file must go back too, put it back by hand before"),
            )),
            None if at == 0 => findings.push(Finding::blocker(Problem::new(
                Code::GitUnfit,
                format!("tag {} has no {}", source.tag, name.display()),
            ))),
            // An override of this host.
            None => {}
        }
    }
    Ok(findings)
}

/// The project's compose files, relative to its directory.
fn compose_files(driver: &ComposeDriver) -> Vec<PathBuf> {
    if !driver.compose.files.is_empty() {
        return driver.compose.files.clone();
    }
    let found = FOUND_BY_ITSELF.iter().map(PathBuf::from);
    found.filter(|file| driver.compose.dir.join(file).exists()).collect()
}
