//! What the end of a rollback says of releases: which one was seen to work, and which ones the fleet was taken back from.
//!
//! `previous` goes by this, so nothing is said that nobody has seen. A rollback that left part of the fleet somewhere else
//! on purpose has not seen its release as a whole; one that only exchanged data has not gone anywhere.

use rollback_engine::plan::{Change, PlanBody};
use rollback_engine::release::{Release, ReleaseEntry};

use crate::store::Closing;

/// Of a rollback that was verified; every other end says nothing of releases. `releases`: all that are recorded.
pub fn of_verified(plan: &PlanBody, releases: &[Release]) -> Closing {
    let moved = plan.changes.iter().any(Change::moves);
    if !moved {
        return Closing::default();
    }
    let whole = plan.changes.iter().all(|change| change.left.is_none());
    let was = |entry: &ReleaseEntry| {
        plan.changes
            .iter()
            .any(|change| change.target == entry.target && change.from == entry.revision)
    };
    let target = releases.iter().find(|r| r.name == plan.release).map(Release::rank);
    // Only what is newer than the target: going forward says nothing against what was left behind.
    let abandoned = releases
        .iter()
        .filter(|r| target.is_some_and(|target| r.rank() > target) && r.entries.iter().all(was));
    Closing {
        works: whole.then(|| plan.release.clone()),
        abandoned: abandoned.map(|r| r.name.clone()).collect(),
        documents: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::Timestamp;
    use rollback_engine::ids::Target;
    use rollback_engine::plan::{DatabaseChoice, FORMAT};
    use rollback_engine::release::{Revision, Role};

    use super::*;

    fn revision(digest: &str) -> Revision {
        Revision {
            version: digest.to_owned(),
            digest: digest.into(),
        }
    }

    fn release(name: &str, second: i64) -> Release {
        let entry = |component: &str, role: Role| ReleaseEntry {
            target: Target::new("host-1", component),
            role,
            revision: revision(&format!("{component} of {name}")),
            summary: String::new(),
        };
        Release {
            name: name.into(),
            commit: String::new(),
            notes: String::new(),
            recorded_at: Timestamp::from_second(second).expect("a small number"),
            recorded_by: "ana".to_owned(),
            entries: vec![entry("api", Role::App), entry("db", Role::Database)],
            stable: true,
            ranks_at: None,
        }
    }

    /// From v3 to v2, or from v2 to v2; the database as `database` says.
    fn plan(from: &str, database: DatabaseChoice) -> PlanBody {
        let change = |component: &str, role: Role| {
            let (live, wanted) = (
                revision(&format!("{component} of {from}")),
                revision(&format!("{component} of v2")),
            );
            let kept = role == Role::Database && database == DatabaseChoice::Keep;
            Change {
                target: Target::new("host-1", component),
                role,
                from: live.clone(),
                to: if kept { live.clone() } else { wanted.clone() },
                restore: false,
                backends: BTreeSet::new(),
                out: BTreeSet::new(),
                from_backup: role == Role::Database && database == DatabaseChoice::Restore,
                left: (kept && live != wanted).then_some(wanted),
            }
        };
        PlanBody {
            format: FORMAT,
            release: "v2".into(),
            runbook: "default@2".to_owned(),
            database,
            schema_changes: true,
            changes: vec![change("api", Role::App), change("db", Role::Database)],
            excused: Vec::new(),
            phases: Vec::new(),
        }
    }

    fn told(from: &str, database: DatabaseChoice) -> (Option<String>, Vec<String>) {
        let releases = [release("v3", 3), release("v2", 2)];
        let closing = of_verified(&plan(from, database), &releases);
        let abandoned = closing.abandoned.into_iter().map(|name| name.0).collect();
        (closing.works.map(|name| name.0), abandoned)
    }

    #[test]
    fn release_that_was_reached_as_a_whole_works() {
        let all = (Some("v2".to_owned()), vec!["v3".to_owned()]);
        assert_eq!(told("v3", DatabaseChoice::Auto), all);
        assert_eq!(told("v3", DatabaseChoice::Restore), all);
    }

    /// The fleet was taken back from v3 all the same: `previous` must not choose it.
    #[test]
    fn release_that_was_reached_in_part_is_not_said_to_work() {
        assert_eq!(told("v3", DatabaseChoice::Keep), (None, vec!["v3".to_owned()]));
    }

    #[test]
    fn data_that_were_restored_say_nothing_of_releases() {
        assert_eq!(told("v2", DatabaseChoice::Restore), (None, Vec::new()));
    }

    /// Nothing was left: the kept database is where the release has it.
    #[test]
    fn keeping_what_is_in_place_leaves_nothing() {
        let mut body = plan("v3", DatabaseChoice::Keep);
        if let Some(database) = body.changes.get_mut(1) {
            database.from = revision("db of v2");
            database.to = revision("db of v2");
            database.left = None;
        }
        let closing = of_verified(&body, &[release("v2", 2)]);
        assert_eq!(closing.works, Some("v2".into()));
    }
}
