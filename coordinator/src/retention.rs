//! Which releases are needed, and by what. Releases are cheap in the store and dear on hosts: images, directories, worktrees.
//!
//! Two kinds of reasons. What is *needed* is never forgotten: where the fleet shall be, where a running rollback goes, what
//! `previous` chooses. What is *kept* is only the rule for those that nobody names: the newest ones, and the stable ones that
//! are checked in the background. An operator who names such a release may have it removed.
//!
//! A hold is no reason: a release that must not be deployed again may be forgotten, and stays held.

use std::collections::BTreeMap;

use rollback_engine::ids::{ReleaseName, RollbackId, Target};
use rollback_engine::plan::PlanBody;
use rollback_engine::release::{Release, Revision};
use serde::{Deserialize, Serialize};

use crate::hold::Holds;
use crate::objective::Objectives;

/// How many releases are kept that nothing needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReleasesConfig {
    /// The newest ones, stable or not. At least 1.
    pub keep: usize,
}

impl Default for ReleasesConfig {
    fn default() -> Self {
        Self { keep: 10 }
    }
}

impl ReleasesConfig {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a release stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Not even by name may it be removed.
    pub needed: bool,
    /// For people: "the newest 10", "rollback 0198… goes there".
    pub why: String,
}

/// What the reasons are found in.
#[derive(Debug)]
pub struct Grounds<'a> {
    /// All, newest first.
    pub releases: &'a [Release],
    pub objectives: &'a Objectives,
    /// Rollbacks that have not ended, and where they go.
    pub running: &'a [(RollbackId, ReleaseName)],
    pub holds: &'a Holds,
    pub keep: usize,
    /// So many stable ones are checked in the background.
    pub checked: usize,
}

impl Grounds<'_> {
    /// The reasons of every release that has one, what is needed first.
    pub fn reasons(&self) -> BTreeMap<ReleaseName, Vec<Reason>> {
        let mut reasons: BTreeMap<ReleaseName, Vec<Reason>> = BTreeMap::new();
        let mut add = |name: &ReleaseName, needed: bool, why: String| {
            reasons.entry(name.clone()).or_default().push(Reason { needed, why });
        };
        for (id, release) in self.running {
            add(release, true, format!("rollback {id} goes there"));
        }
        let mut shall: BTreeMap<&ReleaseName, usize> = BTreeMap::new();
        for objective in self.objectives.values() {
            *shall.entry(&objective.release).or_default() += 1;
        }
        for (release, components) in &shall {
            let what = if *components == 1 { "component" } else { "components" };
            add(release, true, format!("{components} {what} shall be there"));
        }
        // Those from which the fleet goes back, if that is known: the newest of what it shall be at.
        let now = self.releases.iter().position(|r| shall.contains_key(&r.name));
        let before = self.releases.iter().skip(now.map_or(0, |at| at + 1));
        let stable: Vec<&Release> = before
            .filter(|r| r.stable && !self.holds.contains_key(&r.name))
            .take(self.checked.max(1))
            .collect();
        if let Some(previous) = stable.first() {
            add(&previous.name, true, "it is what `previous` means".to_owned());
        }
        for release in stable.iter().take(self.checked) {
            let why = match self.checked {
                1 => "the last stable one".to_owned(),
                count => format!("the last {count} stable ones"),
            };
            add(&release.name, false, why);
        }
        for release in self.releases.iter().take(self.keep) {
            let why = match self.keep {
                1 => "the newest".to_owned(),
                count => format!("the newest {count}"),
            };
            add(&release.name, false, why);
        }
        reasons
    }
}

/// What hosts must be able to come back to, component by component: of the releases that stay, of where the fleet shall be,
/// and of both ends of these plans.
pub fn revisions_needed<'a>(
    releases: impl Iterator<Item = &'a Release>,
    objectives: &Objectives,
    plans: &[PlanBody],
) -> BTreeMap<Target, Vec<Revision>> {
    let mut needed: BTreeMap<Target, Vec<Revision>> = BTreeMap::new();
    let mut add = |target: &Target, revision: &Revision| {
        let known = needed.entry(target.clone()).or_default();
        if !known.contains(revision) {
            known.push(revision.clone());
        }
    };
    for entry in releases.flat_map(|release| &release.entries) {
        add(&entry.target, &entry.revision);
    }
    for (target, objective) in objectives {
        add(target, &objective.revision);
    }
    for change in plans.iter().flat_map(|plan| &plan.changes) {
        add(&change.target, &change.from);
        add(&change.target, &change.to);
    }
    needed
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rollback_engine::release::{ReleaseEntry, Role};

    use super::*;
    use crate::objective::Objective;

    fn release(second: i64, stable: bool) -> Release {
        let name = format!("v{second}");
        Release {
            name: name.as_str().into(),
            commit: String::new(),
            notes: String::new(),
            recorded_at: Timestamp::from_second(second).expect("a small number"),
            recorded_by: "ana".to_owned(),
            entries: vec![ReleaseEntry {
                target: Target::new("app-1", "api"),
                role: Role::App,
                revision: revision(&name),
                summary: String::new(),
            }],
            stable,
            ranks_at: None,
            mark: None,
        }
    }

    fn revision(version: &str) -> Revision {
        Revision {
            version: version.to_owned(),
            digest: format!("sha256:{version}").as_str().into(),
        }
    }

    fn shall_be_at(name: &str) -> Objectives {
        let objective = Objective {
            role: Role::App,
            revision: revision(name),
            release: name.into(),
            rollback_id: None,
            since: Timestamp::UNIX_EPOCH,
            missed: false,
            automatic: false,
        };
        Objectives::from([(Target::new("app-1", "api"), objective)])
    }

    /// Names of those that stay, and of those among them that are needed.
    fn stay(grounds: &Grounds<'_>) -> (Vec<String>, Vec<String>) {
        let reasons = grounds.reasons();
        let all = reasons.keys().map(ToString::to_string).collect();
        let needed = reasons.iter().filter(|(_, why)| why.iter().any(|r| r.needed));
        (all, needed.map(|(name, _)| name.to_string()).collect())
    }

    #[test]
    fn what_is_needed_stays_however_old_and_the_rest_by_the_rule() {
        // v9 is live; of those before it, v6, v4, v3 and v1 were stable; a rollback goes to v2.
        let releases: Vec<Release> = (1..=9)
            .rev()
            .map(|n| release(n, matches!(n, 9 | 6 | 4 | 3 | 1)))
            .collect();
        let running = [("0198".into(), "v2".into())];
        let objectives = shall_be_at("v9");
        let grounds = Grounds {
            releases: &releases,
            objectives: &objectives,
            running: &running,
            holds: &Holds::new(),
            keep: 2,
            checked: 3,
        };
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            stay(&grounds),
            (names(&["v2", "v3", "v4", "v6", "v8", "v9"]), names(&["v2", "v6", "v9"]))
        );
        // Taken back to v4: what is before it counts, and what it was taken back from is only new.
        let objectives = shall_be_at("v4");
        let back = Grounds {
            objectives: &objectives,
            running: &[],
            checked: 1,
            ..grounds
        };
        assert_eq!(stay(&back), (names(&["v3", "v4", "v8", "v9"]), names(&["v3", "v4"])));
        // Nobody has ever recorded where it shall be, and nothing is checked.
        let nothing = Objectives::new();
        let unknown = Grounds {
            objectives: &nothing,
            checked: 0,
            ..back
        };
        assert_eq!(stay(&unknown), (names(&["v8", "v9"]), names(&["v9"])));
    }

    #[test]
    fn hosts_keep_what_anything_that_stays_goes_to() {
        let stays = [release(2, true), release(3, true)];
        let needed = revisions_needed(stays.iter(), &shall_be_at("v3"), &[]);
        let versions: Vec<&str> = needed[&Target::new("app-1", "api")]
            .iter()
            .map(|r| r.version.as_str())
            .collect();
        assert_eq!(versions, ["v2", "v3"]);
    }
}
