//! Revisions of a Compose project, and what the vault keeps for each.
//!
//! A revision is the set of images that its services run. Where images are rebuilt from a git tag, no two builds have
//! the same ids, so there the commit is the revision: the ids that were seen or built for a commit are noted, and an
//! image rebuilt from the recorded commit counts as that revision.

use std::collections::{BTreeMap, BTreeSet};

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::driver::Revision;
use crate::files::vault_problem;
use crate::vault::Vault;

/// A service's image: its name, and what the name meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub reference: String,
    pub id: String,
}

/// By service.
pub type Images = BTreeMap<String, Image>;

/// What a tag of the repository meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub tag: String,
    /// Full object name of the commit.
    pub commit: String,
}

/// What is needed to come back to a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Of the variable.
    pub value: String,
    /// Empty when none was built from the commit yet.
    pub images: Images,
    pub source: Option<Source>,
}

impl Pin {
    pub fn revision(&self) -> Revision {
        Revision {
            version: self.value.clone(),
            digest: match &self.source {
                Some(source) => format!("commit:{}", source.commit),
                None => digest(&self.images, &BTreeSet::new()),
            },
        }
    }
}

/// Identity of a set of images. Names do not count: one image may have several.
pub fn digest(images: &Images, mixed: &BTreeSet<String>) -> String {
    let mut hash = Sha256::new();
    for (service, image) in images {
        hash.update(format!("{service}\0{}\n", image.id));
    }
    for service in mixed {
        hash.update(format!("mixed\0{service}\n"));
    }
    format!("sha256:{}", hex::encode(hash.finalize()))
}

/// Keeps a pin under its revision, and under its images for when only those are seen. Durable when it returns.
pub fn keep(vault: &Vault, component: &str, pin: &Pin) -> Result<(), Problem> {
    let put = |digest: &str| vault.pin(component, digest, pin).map_err(|e| vault_problem(&e));
    if !pin.images.is_empty() {
        put(&digest(&pin.images, &BTreeSet::new()))?;
    }
    put(&pin.revision().digest)
}

/// Takes away what is kept under a revision, and under every set of images that was seen or built for it. Answers with the
/// ids of those images that no pin of any component names any more.
pub fn forget(vault: &Vault, component: &str, revision: &Revision) -> Result<BTreeSet<String>, Problem> {
    let pins: Vec<Pin> = vault.documents(component).map_err(|e| vault_problem(&e))?;
    let unpin = |digest: &str| vault.unpin(component, digest).map_err(|e| vault_problem(&e));
    let mut ids = BTreeSet::new();
    for pin in pins.into_iter().filter(|pin| pin.revision() == *revision) {
        if !pin.images.is_empty() {
            unpin(&digest(&pin.images, &BTreeSet::new()))?;
        }
        ids.extend(pin.images.into_values().map(|image| image.id));
    }
    unpin(&revision.digest)?;
    let mut free = BTreeSet::new();
    for id in ids {
        if !vault.mentions(&id).map_err(|e| vault_problem(&e))? {
            free.insert(id);
        }
    }
    Ok(free)
}

pub fn of_digest(vault: &Vault, component: &str, digest: &str) -> Result<Option<Pin>, Problem> {
    let pin: Option<Pin> = vault.pinned(component, digest).map_err(|e| vault_problem(&e))?;
    if let Some(pin) = &pin {
        // It goes into a file and into arguments.
        check_name("version", &pin.value)?;
    }
    Ok(pin)
}

/// The pin of a planned revision.
pub fn of(vault: &Vault, component: &str, revision: &Revision) -> Result<Pin, Problem> {
    of_digest(vault, component, &revision.digest)?.ok_or_else(|| {
        Problem::new(
            Code::RevisionMissing,
            format!(
                "{} of {component} was never recorded or imported on this host",
                revision.version
            ),
        )
        .remedy("import it: rollbackctl release import; or record it while it is live")
    })
}

/// Where the release's name goes into a value or a tag: `{release}`, or `{version}` for the release without its `v`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    before: String,
    after: String,
    bare: bool,
}

impl Template {
    pub fn new(text: &str) -> Result<Self, String> {
        let cut = ["{release}", "{version}"]
            .into_iter()
            .find_map(|place| Some((place, text.split_once(place)?)));
        let Some((place, (before, after))) = cut else {
            return Err(format!("{text:?} has neither {{release}} nor {{version}} in it"));
        };
        if before.contains(['{', '}']) || after.contains(['{', '}']) {
            return Err(format!("{text:?} has more than one place for a release"));
        }
        Ok(Self {
            before: before.to_owned(),
            after: after.to_owned(),
            bare: place == "{version}",
        })
    }

    pub fn of(&self, release: &str) -> Result<String, Problem> {
        check_name("release", release)?;
        let name = if self.bare {
            release.strip_prefix('v').unwrap_or(release)
        } else {
            release
        };
        let made = format!("{}{name}{}", self.before, self.after);
        check_name("version", &made)?;
        Ok(made)
    }

    /// The releases that this may have been made of, the likeliest first.
    pub fn releases(&self, made: &str) -> Vec<String> {
        let inner = made
            .strip_prefix(&self.before)
            .and_then(|rest| rest.strip_suffix(&self.after));
        match inner {
            Some(inner) if self.bare => vec![format!("v{inner}"), inner.to_owned()],
            Some(inner) => vec![inner.to_owned()],
            None => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_make_values_and_find_their_releases_again() {
        let release = Template::new("{release}").expect("template");
        assert_eq!(release.of("v2.9.0").expect("value"), "v2.9.0");
        assert_eq!(release.releases("v2.9.0"), ["v2.9.0"]);
        let version = Template::new("r-{version}-x").expect("template");
        assert_eq!(version.of("v2.9.0").expect("value"), "r-2.9.0-x");
        assert_eq!(version.releases("r-2.9.0-x"), ["v2.9.0", "2.9.0"]);
        assert!(version.releases("2.9.0").is_empty());
        for bad in ["", "latest", "{release}{version}", "{releas}"] {
            assert!(Template::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["$(id)", "a\nB=1", "-x", "a b", "a/b"] {
            assert_eq!(release.of(bad).expect_err(bad).code, Code::BadName);
        }
    }

    #[test]
    fn a_revision_is_ids_by_service_or_the_commit() {
        let image = |reference: &str, id: &str| Image {
            reference: reference.into(),
            id: id.into(),
        };
        let images = |list: &[(&str, &str)]| -> Images {
            list.iter().map(|(s, id)| ((*s).to_owned(), image("a:1", id))).collect()
        };
        let none = BTreeSet::new();
        let one = digest(&images(&[("app", "x"), ("worker", "y")]), &none);
        assert_eq!(one, digest(&images(&[("worker", "y"), ("app", "x")]), &none));
        assert_ne!(one, digest(&images(&[("worker", "x"), ("app", "y")]), &none));
        assert_ne!(
            one,
            digest(
                &images(&[("app", "x"), ("worker", "y")]),
                &BTreeSet::from(["app".to_owned()])
            )
        );
        let pin = |images, commit: Option<&str>| Pin {
            value: "v1".into(),
            images,
            source: commit.map(|c| Source {
                tag: "v1".into(),
                commit: c.into(),
            }),
        };
        let built = pin(images(&[("app", "x")]), Some("c0ffee")).revision();
        assert_eq!(built, pin(images(&[("app", "rebuilt")]), Some("c0ffee")).revision());
        assert_ne!(built, pin(images(&[("app", "x")]), None).revision());
    }
}
