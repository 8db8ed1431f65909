//! Importing a release that nobody recorded while it was live: every host looks for its revisions by convention.
//!
//! All or nothing: a release that names half of what belongs to it would take half of the fleet back. What could not be
//! found is answered component by component, and nothing is stored.
//!
//! An imported release is never `stable`: nobody has seen it work since it was named, so `previous` does not choose it
//! before a rollback to it was verified. And it ranks before what runs now, however late it was imported: it is what the
//! fleet goes back to from there.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use jiff::{Timestamp, ToSpan as _};
use rollback_engine::ids::Target;
use rollback_engine::release::{Release, ReleaseEntry};
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use tonic::Request;

use super::Api;
use super::releases::{Pin, check_new};
use crate::authority::caller;
use crate::convert;
use crate::inventory::AgentView;
use crate::store::ComponentRecord;
use crate::survey;

/// What becomes of one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    LeaveOut,
    Take(Pin),
}

/// One component of the fleet, with what is wanted of it.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    target: Target,
    component: ComponentRecord,
    wish: Wish,
}

impl Api {
    pub async fn import(
        &self,
        request: Request<v1::ImportReleaseRequest>,
    ) -> Result<v1::ImportReleaseResponse, Problem> {
        let recorded_by = caller(&request)?.identity.name;
        let request = request.into_inner();
        check_new(&request.name, &request.commit, &request.notes)?;
        let leader = self.leader()?;
        // Nothing is forgotten while something is taken in: it might be the same.
        let _importing = self.upkeep.read().await;
        let wanted = wanted(&self.inventory().list(), &request)?;
        let targets: Vec<Target> = wanted.iter().map(|w| w.target.clone()).collect();
        leader.check_free(&targets).await?;

        let name = request.name.as_str();
        let looked = futures::stream::iter(wanted).map(|w| async move {
            let found = match w.wish {
                Wish::LeaveOut => None,
                Wish::Take(pin) => Some(self.pin(&w.target, &w.component, name, pin).await),
            };
            (w, found)
        });
        let looked: Vec<_> = looked.buffered(survey::AT_ONCE).collect().await;
        let findings = looked.iter().map(|(w, found)| finding(w, found.as_ref())).collect();
        let complete = looked.iter().all(|(_, found)| !matches!(found, Some(Err(_))));
        if request.dry_run || !complete {
            return Ok(v1::ImportReleaseResponse {
                release: None,
                findings,
            });
        }

        let taken = looked.into_iter().filter_map(|(w, found)| Some((w.wish, found?.ok()?)));
        let entries = taken.map(|(wish, entry)| ReleaseEntry {
            summary: match wish {
                Wish::Take(Pin::Live) => format!("imported as it is: {}", entry.summary),
                Wish::Take(Pin::Named) | Wish::LeaveOut => format!("imported: {}", entry.summary),
            },
            ..entry
        });
        let mut entries: Vec<ReleaseEntry> = entries.collect();
        entries.sort_by(|a, b| a.target.cmp(&b.target));
        let store = self.store();
        let now = Timestamp::now();
        let survey = survey::observe(self.inventory()).await;
        let known = store.releases().await?;
        let running = known.iter().find(|r| super::agents::matches(r, &survey));
        let release = Release {
            name: name.into(),
            commit: request.commit,
            notes: request.notes,
            recorded_at: now,
            recorded_by,
            entries,
            stable: false,
            ranks_at: rank_before(running.or(known.first())),
            mark: None,
        };
        leader.check_free(&targets).await?;
        let release = if store.add_release(&release).await? {
            tracing::info!(release = %release.name, "release imported");
            release
        } else {
            self.same_as_recorded(release).await?
        };
        Ok(v1::ImportReleaseResponse {
            release: Some(convert::release_to_wire(&release)),
            findings,
        })
    }
}

/// Just before what the fleet goes back from: what runs, or else the newest that is known. `None`: there is none.
fn rank_before(newer: Option<&Release>) -> Option<Timestamp> {
    let at = newer?.rank();
    Some(at.checked_sub(1.millisecond()).unwrap_or(at))
}

/// Every component of every registered agent, sorted by target. Names that do not exist are refused: a misspelt
/// exception would otherwise be none.
fn wanted(agents: &[AgentView], request: &v1::ImportReleaseRequest) -> Result<Vec<Wanted>, Problem> {
    let named = |names: &[String]| {
        names
            .iter()
            .map(|n| convert::target(n))
            .collect::<Result<BTreeSet<_>, _>>()
    };
    let (as_is, without) = (named(&request.as_is)?, named(&request.without)?);
    if let Some(both) = as_is.intersection(&without).next() {
        let message = format!("{both} cannot belong to the release as it is and be left out of it");
        return Err(Problem::new(Code::BadRequest, message).remedy("decide for one of --as-is and --without"));
    }
    let mut wanted = Vec::new();
    for agent in agents {
        for component in &agent.record.components {
            let target = Target::new(agent.record.name.as_str(), component.name.as_str());
            let wish = if without.contains(&target) {
                Wish::LeaveOut
            } else if as_is.contains(&target) {
                Wish::Take(Pin::Live)
            } else {
                Wish::Take(Pin::Named)
            };
            wanted.push(Wanted {
                target,
                component: component.clone(),
                wish,
            });
        }
    }
    wanted.sort_by(|a, b| a.target.cmp(&b.target));
    let known: BTreeSet<&Target> = wanted.iter().map(|w| &w.target).collect();
    if let Some(unknown) = as_is.union(&without).find(|t| !known.contains(t)) {
        let message = format!("no agent has registered a component {unknown}");
        return Err(Problem::new(Code::UnknownComponent, message).remedy("see what there is: rollbackctl fleet status"));
    }
    if wanted.iter().all(|w| w.wish == Wish::LeaveOut) {
        return Err(Problem::new(
            Code::ImportIncomplete,
            "there is no component that the release could name",
        )
        .remedy("enroll the hosts first: rollbackctl agent token NAME"));
    }
    Ok(wanted)
}

fn finding(wanted: &Wanted, found: Option<&Result<ReleaseEntry, Problem>>) -> v1::ImportFinding {
    let empty = v1::ImportFinding {
        host: wanted.target.host.0.clone(),
        component: wanted.target.component.0.clone(),
        kind: wanted.component.kind.clone(),
        role: convert::role_to_wire(wanted.component.role).into(),
        ..v1::ImportFinding::default()
    };
    match found {
        None => v1::ImportFinding {
            summary: "left out, as asked".to_owned(),
            ..empty
        },
        Some(Ok(entry)) => v1::ImportFinding {
            revision: Some(convert::revision_to_wire(&entry.revision)),
            summary: match wanted.wish {
                Wish::Take(Pin::Live) => format!("as it is: {}", entry.summary),
                Wish::Take(Pin::Named) | Wish::LeaveOut => entry.summary.clone(),
            },
            ..empty
        },
        Some(Err(problem)) => v1::ImportFinding {
            problem: Some(problem.clone().into()),
            ..empty
        },
    }
}

#[cfg(test)]
mod tests {
    use rollback_engine::release::Role;

    use super::*;
    use crate::store::AgentRecord;

    fn agent(name: &str, components: &[&str]) -> AgentView {
        let component = |name: &&str| ComponentRecord {
            name: (*name).to_owned(),
            kind: "container".to_owned(),
            role: Role::App,
            capabilities: BTreeSet::new(),
            reads: BTreeSet::new(),
            backends: BTreeSet::new(),
            restores: false,
        };
        AgentView {
            record: AgentRecord {
                name: name.to_owned(),
                address: "127.0.0.1:1".to_owned(),
                version: String::new(),
                ledger_generation: String::new(),
                components: components.iter().map(component).collect(),
                labels: std::collections::BTreeMap::new(),
                registered_at: Timestamp::UNIX_EPOCH,
                certificate_expires: Timestamp::UNIX_EPOCH,
            },
            last_seen: None,
            connected: false,
        }
    }

    fn wishes(as_is: &[&str], without: &[&str]) -> Result<Vec<(String, Wish)>, Code> {
        let fleet = [agent("db-1", &["db"]), agent("app-1", &["env", "api"])];
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let request = v1::ImportReleaseRequest {
            as_is: names(as_is),
            without: names(without),
            ..v1::ImportReleaseRequest::default()
        };
        let wanted = wanted(&fleet, &request).map_err(|p| p.code)?;
        Ok(wanted.into_iter().map(|w| (w.target.to_string(), w.wish)).collect())
    }

    #[test]
    fn everything_is_looked_for_but_what_is_excepted() {
        let named = |target: &str, wish| (target.to_owned(), wish);
        assert_eq!(
            wishes(&["db-1/db"], &["app-1/env"]),
            Ok(vec![
                named("app-1/api", Wish::Take(Pin::Named)),
                named("app-1/env", Wish::LeaveOut),
                named("db-1/db", Wish::Take(Pin::Live)),
            ])
        );
    }

    #[test]
    fn exceptions_that_mean_nothing_are_refused() {
        assert_eq!(wishes(&["db-1/dp"], &[]), Err(Code::UnknownComponent));
        assert_eq!(wishes(&[], &["app-9/api"]), Err(Code::UnknownComponent));
        assert_eq!(wishes(&["app-1"], &[]), Err(Code::BadName));
        assert_eq!(wishes(&["app-1/../x"], &[]), Err(Code::BadName));
        assert_eq!(wishes(&["db-1/db"], &["db-1/db"]), Err(Code::BadRequest));
        assert_eq!(
            wishes(&[], &["db-1/db", "app-1/api", "app-1/env"]),
            Err(Code::ImportIncomplete)
        );
    }
}
