//! Asking the whole fleet at once: what is where, can it reach a release, pin what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use rollback_engine::ids::{ComponentName, Target};
use rollback_engine::release::{ObservedComponent, ObservedFleet, ObservedHost, Revision, Serving};
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use v1::agent_client::AgentClient;

use crate::convert;
use crate::inventory::{AgentView, Inventory};

/// Hosts asked at once. Each costs a stream on a warm connection; the bound keeps a fleet of thousands from asking for
/// all its memory in one moment.
pub const AT_ONCE: usize = 512;

/// A host that has not said what it is by then is unreachable to the survey.
const OBSERVE_DEADLINE: Duration = Duration::from_secs(15);

/// One host's answer.
#[derive(Debug)]
pub struct HostSurvey {
    pub agent: AgentView,
    pub states: Result<Vec<v1::ComponentState>, Problem>,
}

/// Observes every component of every registered host. The answer has one entry per host, sorted by name.
pub async fn observe(inventory: &Arc<Inventory>) -> Vec<HostSurvey> {
    observe_by(inventory, AT_ONCE).await
}

/// The same, asking fewer hosts at once.
pub async fn observe_by(inventory: &Arc<Inventory>, at_once: usize) -> Vec<HostSurvey> {
    observe_these(inventory, inventory.list(), at_once).await
}

/// [`observe`], of these hosts alone. Those that are not registered have no entry.
pub async fn observe_some(inventory: &Arc<Inventory>, hosts: &BTreeSet<&str>) -> Vec<HostSurvey> {
    let mut agents = inventory.list();
    agents.retain(|agent| hosts.contains(agent.record.name.as_str()));
    observe_these(inventory, agents, AT_ONCE).await
}

async fn observe_these(inventory: &Arc<Inventory>, agents: Vec<AgentView>, at_once: usize) -> Vec<HostSurvey> {
    let ask = |agent: AgentView| async move {
        let states = observe_host(inventory, &agent.record.name).await;
        HostSurvey { agent, states }
    };
    futures::stream::iter(agents)
        .map(ask)
        .buffered(at_once.max(1))
        .collect()
        .await
}

async fn observe_host(inventory: &Inventory, host: &str) -> Result<Vec<v1::ComponentState>, Problem> {
    let ask = async {
        // An agent that is connected answers at once; the patience is for one that is just being dialled.
        let channel = inventory.channel(host, Duration::from_secs(3)).await?;
        let mut request = tonic::Request::new(v1::ObserveRequest { components: Vec::new() });
        rollback_proto::telemetry::inject_current(request.metadata_mut());
        let response = AgentClient::new(channel).observe(request).await;
        response.map(|r| r.into_inner().states).map_err(|status| {
            let problem = Problem::from_status(&status);
            Problem {
                message: format!("{host}: {}", problem.message),
                ..problem
            }
        })
    };
    tokio::time::timeout(OBSERVE_DEADLINE, ask).await.unwrap_or_else(|_| {
        Err(Problem::new(
            Code::HostUnreachable,
            format!("{host} did not answer within {OBSERVE_DEADLINE:?}"),
        ))
    })
}

/// What is known of a component by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    At(Revision),
    /// Its host does not answer, or its agent cannot tell.
    Unknown,
    /// No agent has such a component.
    Nowhere,
}

/// A survey, for looking up one component after the other.
#[derive(Debug)]
pub struct Sight<'a>(BTreeMap<&'a str, &'a HostSurvey>);

impl<'a> Sight<'a> {
    pub fn of(survey: &'a [HostSurvey]) -> Self {
        Self(survey.iter().map(|h| (h.agent.record.name.as_str(), h)).collect())
    }

    pub fn seen(&self, target: &Target) -> Seen {
        let Some(host) = self.0.get(target.host.as_str()) else {
            return Seen::Nowhere;
        };
        let name = target.component.as_str();
        if host.agent.record.components.iter().all(|c| c.name != name) {
            return Seen::Nowhere;
        }
        let states = host.states.as_deref().unwrap_or_default();
        let state = states.iter().find(|s| s.component == name);
        match state.and_then(|s| s.revision.clone()) {
            Some(revision) => Seen::At(convert::revision_from_wire(revision)),
            None => Seen::Unknown,
        }
    }
}

/// The survey as the planner wants it.
pub fn observed_fleet(survey: &[HostSurvey]) -> ObservedFleet {
    let mut fleet = ObservedFleet::new();
    for host in survey {
        let observed = match &host.states {
            Err(problem) => ObservedHost::Unreachable {
                reason: problem.message.clone(),
            },
            Ok(states) => ObservedHost::Reachable(components(&host.agent, states)),
        };
        fleet.insert(host.agent.record.name.as_str().into(), observed);
    }
    fleet
}

fn components(agent: &AgentView, states: &[v1::ComponentState]) -> BTreeMap<ComponentName, ObservedComponent> {
    let by_name: BTreeMap<&str, &v1::ComponentState> = states.iter().map(|s| (s.component.as_str(), s)).collect();
    let observe = |record: &crate::store::ComponentRecord| {
        let revision = match by_name.get(record.name.as_str()) {
            Some(v1::ComponentState {
                revision: Some(revision),
                ..
            }) => Ok(convert::revision_from_wire(revision.clone())),
            Some(v1::ComponentState {
                problem: Some(problem), ..
            }) => Err(problem.message.clone()),
            Some(_) | None => Err("the agent said nothing of it".to_owned()),
        };
        ObservedComponent {
            role: record.role,
            capabilities: record.capabilities.clone(),
            reads: record.reads.iter().map(|n| n.as_str().into()).collect(),
            backends: record.backends.clone(),
            restores: record.restores,
            out: by_name
                .get(record.name.as_str())
                .map_or_else(BTreeSet::new, |state| out(state)),
            revision,
            serving: by_name
                .get(record.name.as_str())
                .map_or(Serving::Yes, |state| serving(state.health())),
        }
    };
    agent
        .record
        .components
        .iter()
        .map(|c| (c.name.as_str().into(), observe(c)))
        .collect()
}

/// A name that is none is of no backend that anybody could have declared.
fn out(state: &v1::ComponentState) -> BTreeSet<Target> {
    let names = state.backends_out.iter();
    names.filter_map(|name| convert::target(name).ok()).collect()
}

/// Only what was taken down, by us or by anybody, can be brought up again; what is unhealthy runs.
fn serving(health: v1::Health) -> Serving {
    match health {
        v1::Health::Stopped => Serving::Stopped,
        v1::Health::Drained => Serving::Drained,
        v1::Health::Unspecified | v1::Health::Unknown | v1::Health::Healthy | v1::Health::Unhealthy => Serving::Yes,
    }
}
