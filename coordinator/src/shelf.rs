//! The runbooks that can be asked for: the built-in ones, and those that operators applied.
//!
//! What was applied is kept as it was written, each text as the next version of its name, and never changed: a plan that says
//! "web@3" can be read back years later. The same text again is the same version. Built-in names cannot be taken, so that
//! "default" is the same on every fleet.
//!
//! Leaves out what a runbook means: that is the engine's.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rollback_engine::runbook::{Reading, Runbook};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::convert;
use crate::store::{Document, DocumentKind, Fence, Store, StoreError};

/// How often an apply that meets others on its way looks for the next version.
const TRIES: usize = 8;

/// One version of a runbook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub name: String,
    pub version: u32,
    pub text: String,
    /// `None`: it is built in.
    pub applied: Option<Applied>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub by: String,
    pub at: Timestamp,
}

/// As it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Body {
    text: String,
    applied_by: String,
    applied_at: Timestamp,
}

impl Kept {
    fn builtin(name: &str) -> Option<Self> {
        let text = Runbook::builtin_text(name).ok()?;
        Some(Self {
            name: name.to_owned(),
            version: Runbook::BUILTIN_VERSION,
            text: text.to_owned(),
            applied: None,
        })
    }

    pub fn to_wire(&self) -> v1::RunbookInfo {
        v1::RunbookInfo {
            name: self.name.clone(),
            version: self.version,
            builtin: self.applied.is_none(),
            applied_by: self.applied.as_ref().map(|a| a.by.clone()).unwrap_or_default(),
            applied_at: self.applied.as_ref().map(|a| convert::timestamp(a.at)),
            about: about(&self.text),
            digest: hex::encode(Sha256::digest(&self.text)),
        }
    }

    /// One that was applied by an older version of this program may lack keys that are required by now.
    pub fn runbook(&self) -> Result<Runbook, Problem> {
        let (name, version) = (&self.name, self.version);
        let read = Runbook::parse(&self.text).map_err(|e| {
            Problem::from_error(Code::BadRunbook, format_args!("read runbook {name}@{version}"), &e)
                .remedy("mend what the message names and apply it again: rollbackctl runbook apply FILE")
        })?;
        Ok(read.at_version(version))
    }
}

/// The first sentence of the comment at the top.
pub fn about(text: &str) -> String {
    let lines = text.lines().map(str::trim).skip_while(|line| line.is_empty());
    let comment = lines.map_while(|line| line.strip_prefix('#')).map(str::trim);
    let paragraph: Vec<&str> = comment.take_while(|line| !line.is_empty()).collect();
    let paragraph = paragraph.join(" ");
    match paragraph.split_once(". ") {
        Some((sentence, _)) => format!("{sentence}."),
        None => paragraph,
    }
}

/// A runbook as it is asked for: "web", which is its newest version, or "web@2".
pub async fn called(store: &dyn Store, asked: &str) -> Result<Kept, Problem> {
    let (name, version) = match asked.split_once('@') {
        None => (asked, None),
        Some((name, version)) => {
            let number = version.parse::<u32>().ok().filter(|n| *n > 0);
            let number = number.ok_or_else(|| {
                Problem::new(Code::BadName, "the version of a runbook is a number from 1")
                    .remedy("write NAME or NAME@VERSION; rollbackctl runbook list NAME lists the versions")
            })?;
            (name, Some(number))
        }
    };
    check_name("runbook", name)?;
    let versions = versions(store, name).await?;
    let found = match version {
        None => versions.last(),
        Some(version) => versions.iter().find(|k| k.version == version),
    };
    if let Some(found) = found {
        return Ok(found.clone());
    }
    if versions.is_empty() {
        let known: Vec<String> = newest(store).await?.into_iter().map(|k| k.name).collect();
        let message = format!("there is no runbook {name}; there are: {}", known.join(", "));
        return Err(Problem::new(Code::UnknownRunbook, message));
    }
    let known: Vec<String> = versions.iter().map(|k| k.version.to_string()).collect();
    let message = format!("runbook {name} has no such version; there are: {}", known.join(", "));
    Err(Problem::new(Code::UnknownRunbook, message))
}

/// All versions of a name, oldest first. Of a built-in one there is only that of this program.
pub async fn versions(store: &dyn Store, name: &str) -> Result<Vec<Kept>, StoreError> {
    if let Some(builtin) = Kept::builtin(name) {
        return Ok(vec![builtin]);
    }
    Ok(applied(store).await?.remove(name).unwrap_or_default())
}

/// The newest version of each: built-in ones first, then the others by name.
pub async fn newest(store: &dyn Store) -> Result<Vec<Kept>, StoreError> {
    let builtin = Runbook::builtin_names().filter_map(Kept::builtin);
    let applied = applied(store).await?.into_values();
    Ok(builtin
        .chain(applied.filter_map(|mut versions| versions.pop()))
        .collect())
}

async fn applied(store: &dyn Store) -> Result<BTreeMap<String, Vec<Kept>>, StoreError> {
    let mut by_name: BTreeMap<String, Vec<Kept>> = BTreeMap::new();
    for document in store.documents(DocumentKind::Runbook).await? {
        let kept = read(&document)?;
        by_name.entry(kept.name.clone()).or_default().push(kept);
    }
    for versions in by_name.values_mut() {
        versions.sort_by_key(|k| k.version);
    }
    Ok(by_name)
}

fn read(document: &Document) -> Result<Kept, StoreError> {
    let damaged = |why: String| StoreError::Damaged {
        what: "a runbook",
        why: format!("{}: {why}", document.key),
    };
    let key = document.key.split_once('@');
    let (name, version) = key
        .and_then(|(name, version)| Some((name, version.parse().ok()?)))
        .ok_or_else(|| damaged("its key is not NAME@VERSION".to_owned()))?;
    let body = document.body.as_deref().unwrap_or_default();
    let body: Body = serde_json::from_str(body).map_err(|e| damaged(e.to_string()))?;
    Ok(Kept {
        name: name.to_owned(),
        version,
        text: body.text,
        applied: Some(Applied {
            by: body.applied_by,
            at: body.applied_at,
        }),
    })
}

/// With this name and text, would it be a new version, and which? `None`: it is the newest already.
fn next_version(versions: &[Kept], text: &str) -> Option<u32> {
    match versions.last() {
        Some(newest) if newest.text == text => None,
        Some(newest) => Some(newest.version.saturating_add(1)),
        None => Some(1),
    }
}

/// How a text would be kept; `false`: it is kept so already.
pub async fn would_be(store: &dyn Store, name: &str, text: &str) -> Result<(Kept, bool), StoreError> {
    let mut versions = versions(store, name).await?;
    match (next_version(&versions, text), versions.pop()) {
        (None, Some(same)) => Ok((same, false)),
        (next, _) => Ok((
            Kept {
                name: name.to_owned(),
                version: next.unwrap_or(1),
                text: text.to_owned(),
                applied: None,
            },
            true,
        )),
    }
}

/// Keeps a text that reads well. Two who apply at the same moment get two versions; `false`: it is kept already.
pub async fn keep(store: &dyn Store, fence: &Fence, name: &str, text: &str, by: &str) -> Result<(Kept, bool), Problem> {
    for _ in 0..TRIES {
        let (kept, new) = would_be(store, name, text).await?;
        if !new {
            return Ok((kept, false));
        }
        let applied = Applied {
            by: by.to_owned(),
            at: Timestamp::now(),
        };
        let body = Body {
            text: text.to_owned(),
            applied_by: applied.by.clone(),
            applied_at: applied.at,
        };
        let document = Document {
            kind: DocumentKind::Runbook,
            // So that the store's order is that of the versions.
            key: format!("{name}@{:04}", kept.version),
            body: Some(serde_json::to_string(&body).expect("texts and a time can always be written")),
        };
        if store.add_document(fence, &document).await? {
            tracing::info!(runbook = name, version = kept.version, by, "runbook applied");
            let applied = Some(applied);
            return Ok((Kept { applied, ..kept }, true));
        }
    }
    Err(
        Problem::new(Code::StoreUnavailable, format!("others apply {name} at the same time"))
            .remedy("look at theirs first: rollbackctl runbook list NAME"),
    )
}

/// Reads a text that somebody wants to keep: as [`Runbook::lint`], and the name has to be free.
pub fn lint(text: &str) -> Reading {
    use rollback_engine::event::Severity;
    use rollback_engine::runbook::RunbookFinding;
    let mut reading = Runbook::lint(text);
    let builtin = |r: &Runbook| Runbook::builtin_names().any(|name| name == r.name);
    if reading.runbook.as_ref().is_some_and(builtin) {
        let (line, column) = reading.name_at;
        reading.runbook = None;
        let taken = RunbookFinding {
            severity: Severity::Blocker,
            line,
            column,
            key: "name".to_owned(),
            message: "is that of a built-in runbook, which is the same on every fleet".to_owned(),
            hint: "give your copy another name".to_owned(),
        };
        reading.findings.insert(0, taken);
    }
    reading
}

#[cfg(test)]
mod tests;
