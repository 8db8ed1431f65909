//! What can stand in the place of an argument, asked of the coordinator under a hard deadline.
//!
//! Arguments are known by their names, so that a verb needs no line for it: whoever writes `--host HOST` gets hosts. What a
//! verb makes up anew (the name of a release that is recorded, of an agent that is enrolled) is not completed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use clap::{Arg, Command};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use rollback_proto::v1;
use tokio::time::timeout;

use crate::client::{Fleet, dial_any};
use crate::context::Context;
use crate::output::text::{clean, stamp, timestamp};
use crate::output::words;

/// From the key to the list: context, connection, answer. Longer than this, nobody waits while typing.
const DEADLINE: Duration = Duration::from_millis(400);

/// As many rollbacks as anybody looks through.
const ROLLBACKS: u32 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Release,
    /// With `previous`, which the coordinator knows.
    Target,
    Host,
    /// Names of components.
    Service,
    /// "host/component"
    Component,
    Label,
    /// With `latest`, which the coordinator knows.
    Rollback,
    Runbook,
}

/// `verb`: "release show". `None`: its values are no names of the fleet, or new ones.
fn place(verb: &str, arg: &Arg) -> Option<Place> {
    let id = arg.get_id().as_str();
    let value = arg
        .get_value_names()
        .and_then(|names| names.first())
        .map(|name| name.as_str());
    let (noun, verb) = verb.split_once(' ').unwrap_or((verb, ""));
    match (noun, verb, value) {
        ("release", "record" | "import", Some("NAME")) | ("agent", "token", _) => None,
        ("release", _, Some("NAME" | "NAMES" | "A" | "B" | "RELEASE")) => Some(Place::Release),
        ("agent", _, Some("NAME" | "HOST")) => Some(Place::Host),
        ("runbook", _, Some("NAME")) => Some(Place::Runbook),
        ("rollback", _, Some("ID")) => Some(Place::Rollback),
        (_, _, Some("RELEASE")) if id == "to" => Some(Place::Target),
        (_, _, Some("RELEASE")) => Some(Place::Release),
        (_, _, Some("HOST")) => Some(Place::Host),
        (_, _, Some("COMPONENT")) => Some(Place::Service),
        (_, _, Some("HOST/COMPONENT")) => Some(Place::Component),
        (_, _, Some("KEY=VALUE")) => Some(Place::Label),
        (_, _, Some("NAME")) if id == "runbook" => Some(Place::Runbook),
        (_, _, Some(_) | None) => None,
    }
}

/// Every argument of the whole command line with its candidates. They are fetched only for the one that is completed.
pub fn attach(command: Command, context: Option<OsString>) -> Command {
    within(command, "", context.as_ref())
}

fn within(command: Command, path: &str, context: Option<&OsString>) -> Command {
    let known: Vec<(clap::Id, Place)> = command
        .get_arguments()
        .filter_map(|arg| Some((arg.get_id().clone(), place(path, arg)?)))
        .collect();
    let command = known.into_iter().fold(command, |command, (id, place)| {
        let context = context.cloned();
        let candidates = ArgValueCandidates::new(move || ask(place, context.as_ref()));
        command.mut_arg(id, |arg| arg.add(candidates))
    });
    let verbs: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    verbs.into_iter().fold(command, |command, verb| {
        let path = format!("{path} {verb}");
        command.mut_subcommand(verb, |sub| within(sub, path.trim(), context))
    })
}

/// Nothing, whenever anything is not as it should be.
fn ask(place: Place, context: Option<&OsString>) -> Vec<CompletionCandidate> {
    rollback_proto::tls::install_crypto();
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let answer = runtime.block_on(async { timeout(DEADLINE, fetch(place, context)).await });
    // A name that is still being looked up must not be waited for.
    runtime.shutdown_background();
    answer.ok().flatten().unwrap_or_default()
}

/// Any replica answers what is asked here, so that nobody has to be told where the leader is.
async fn fetch(place: Place, context: Option<&OsString>) -> Option<Vec<CompletionCandidate>> {
    let context = Context::load(context.map(Path::new)).ok()?;
    let credentials = context.credentials().ok()?;
    let connected = dial_any(context.endpoints.clone(), &credentials, &mut Vec::new()).await?;
    let mut fleet = connected.fleet;
    match place {
        Place::Release => releases(&mut fleet).await,
        Place::Target => {
            let previous = one(
                "previous",
                "the newest stable release that is not what runs now".to_owned(),
            );
            Some(std::iter::once(previous).chain(releases(&mut fleet).await?).collect())
        }
        Place::Host | Place::Service | Place::Component | Place::Label => {
            let agents = fleet
                .list_agents(v1::ListAgentsRequest {})
                .await
                .ok()?
                .into_inner()
                .agents;
            Some(of_agents(place, &agents))
        }
        Place::Rollback => {
            let request = v1::ListRollbacksRequest { limit: ROLLBACKS };
            let rollbacks = fleet.list_rollbacks(request).await.ok()?.into_inner().rollbacks;
            let latest = one("latest", "the rollback that was started last".to_owned());
            Some(std::iter::once(latest).chain(rollbacks.iter().map(rollback)).collect())
        }
        Place::Runbook => {
            let request = v1::ListRunbooksRequest::default();
            let runbooks = fleet.list_runbooks(request).await.ok()?.into_inner().runbooks;
            Some(runbooks.iter().map(|r| one(&r.name, clean(&r.about))).collect())
        }
    }
}

async fn releases(fleet: &mut Fleet) -> Option<Vec<CompletionCandidate>> {
    let releases = fleet
        .list_releases(v1::ListReleasesRequest {})
        .await
        .ok()?
        .into_inner()
        .releases;
    let told = |r: &v1::Release| {
        let stable = if r.stable { "stable, " } else { "" };
        let held = if r.hold.is_some() { "HELD, " } else { "" };
        one(
            &r.name,
            format!("{held}{stable}recorded {}", stamp(timestamp(r.recorded_at.as_ref()))),
        )
    };
    Some(releases.iter().map(told).collect())
}

fn rollback(r: &v1::RollbackSummary) -> CompletionCandidate {
    let (state, _) = words::standing(r);
    one(
        &r.id,
        format!(
            "to {}, {state}, {}",
            clean(&r.release),
            stamp(timestamp(r.started_at.as_ref()))
        ),
    )
}

fn of_agents(place: Place, agents: &[v1::AgentInfo]) -> Vec<CompletionCandidate> {
    let components = || agents.iter().flat_map(|a| a.components.iter().map(move |c| (a, c)));
    let names: BTreeSet<String> = match place {
        Place::Host => agents.iter().map(|a| a.name.clone()).collect(),
        Place::Service => components().map(|(_, c)| c.name.clone()).collect(),
        Place::Component => components().map(|(a, c)| format!("{}/{}", a.name, c.name)).collect(),
        Place::Label => {
            let labels = agents.iter().flat_map(|a| &a.labels);
            labels.map(|(key, value)| format!("{key}={value}")).collect()
        }
        Place::Release | Place::Target | Place::Rollback | Place::Runbook => BTreeSet::new(),
    };
    names.iter().map(|name| one(name, String::new())).collect()
}

/// A candidate is typed into somebody's shell: nothing but a name may be one.
fn one(name: &str, help: String) -> CompletionCandidate {
    let help = (!help.is_empty()).then(|| help.into());
    CompletionCandidate::new(clean(name)).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached(command: &Command, path: &str, found: &mut Vec<String>) {
        for arg in command.get_arguments() {
            if let Some(place) = place(path, arg) {
                found.push(format!("{path} {}: {place:?}", arg.get_id()));
            }
        }
        for sub in command.get_subcommands() {
            attached(sub, format!("{path} {}", sub.get_name()).trim(), found);
        }
    }

    #[test]
    fn arguments_are_known_by_their_names() {
        let mut found = Vec::new();
        attached(&super::super::clap_command(), "", &mut found);
        for wanted in [
            "fleet plan to: Target",
            "fleet rollback host: Host",
            "fleet rollback exclude_service: Service",
            "fleet rollback label: Label",
            "fleet plan runbook: Runbook",
            "rollback list release: Release",
            "rollback show id: Rollback",
            "release show name: Release",
            "fleet status gate: Release",
            "fleet hold release: Release",
            "rollback skip host: Host",
            "rollback abort id: Rollback",
            "runbook show runbook: Runbook",
            "release import as_is: Component",
        ] {
            assert!(found.iter().any(|f| f == wanted), "{wanted} is not in {found:#?}");
        }
        // Made up by whoever types them.
        for new in [
            "release record name",
            "release import name",
            "agent token name",
            "fleet rollback incident",
        ] {
            assert!(!found.iter().any(|f| f.starts_with(new)), "{new} is in {found:#?}");
        }
    }
}
