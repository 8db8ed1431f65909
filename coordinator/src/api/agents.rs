//! Agents as operators see them, and the fleet's state.

use std::time::SystemTime;

use jiff::{Timestamp, ToSpan as _};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use rollback_proto::v1::get_server_info_response::Standing as Place;
use sha2::{Digest as _, Sha256};
use tonic::Request;

use super::Api;
use crate::authority::caller;
use crate::convert;
use crate::history;
use crate::projection::{Summary, SummaryState};
use crate::replica::Standing;
use crate::store::NewToken;
use crate::survey::{self, HostSurvey};

/// How long a join token can be redeemed.
const TOKEN_MINUTES: i64 = 15;

/// Prefix of join tokens: names the format, so that a token is recognised where it does not belong.
const TOKEN_FORMAT: &str = "rbt1";

/// SHA-256 of a token's secret: all that is stored of it.
pub fn token_hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret))
}

impl Api {
    pub async fn server_info<T>(&self, request: &Request<T>) -> Result<v1::GetServerInfoResponse, Problem> {
        let peer = caller(request)?;
        // A replica that has lost its store says so by its standing, not by failing to say anything.
        let agents = match self.inventory_of_now().await {
            Ok(inventory) => inventory.list(),
            Err(_) => self.inventory().list(),
        };
        let standing = self.replica.standing();
        let (leader_id, epoch, place, leader_endpoint) = match (&standing, standing.lease()) {
            (Standing::Leading(leader), _) => {
                let term = &leader.shared().term;
                (term.leader().to_owned(), term.epoch().0, Place::Leading, String::new())
            }
            (Standing::Following { .. } | Standing::Stopping, Some(lease)) => (
                lease.leader.clone(),
                lease.epoch.0,
                Place::Following,
                lease.endpoint.clone(),
            ),
            (Standing::Following { .. } | Standing::Stopping, None) => {
                (String::new(), 0, Place::Following, String::new())
            }
        };
        let expires = |t: SystemTime| Timestamp::try_from(t).ok().map(convert::timestamp);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let us = &self.credentials.load().us;
        Ok(v1::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            leader_id,
            epoch,
            now: Some(convert::timestamp(Timestamp::now())),
            agents: count(agents.len()),
            agents_connected: count(agents.iter().filter(|a| a.connected).count()),
            caller: peer.identity.to_string(),
            caller_certificate_expires: expires(peer.expires),
            server_certificate_expires: expires(us.expires),
            name: us.identity.name.clone(),
            standing: place.into(),
            leader_endpoint,
            note: standing.note(),
        })
    }

    pub async fn all_agents(&self) -> Result<v1::ListAgentsResponse, Problem> {
        let agents = self.inventory_of_now().await?.list();
        Ok(v1::ListAgentsResponse {
            agents: agents
                .iter()
                .map(|a| convert::agent_to_wire(&a.record, a.connected, a.last_seen))
                .collect(),
        })
    }

    pub async fn fleet_state(&self) -> Result<v1::GetFleetResponse, Problem> {
        let survey = survey::observe(self.inventory_of_now().await?).await;
        let releases = self.store().releases().await?;
        let matching = releases.iter().find(|release| matches(release, &survey));
        let newest = history::newest(self.store(), 20).await?;
        let active = newest
            .iter()
            .filter(|s| matches!(s.state, SummaryState::Running | SummaryState::Undoing));
        Ok(v1::GetFleetResponse {
            matches_release: matching.map(|r| r.name.0.clone()).unwrap_or_default(),
            active: active.map(Summary::to_wire).collect(),
            hosts: survey.into_iter().map(host_to_wire).collect(),
            drift: Vec::new(),
            holds: Vec::new(),
        })
    }

    pub async fn token(&self, request: Request<v1::CreateTokenRequest>) -> Result<v1::CreateTokenResponse, Problem> {
        let operator = caller(&request)?.identity;
        self.leader()?;
        let name = request.into_inner().name;
        check_name("agent", &name)?;
        let issuer = self.issuer.as_ref().ok_or_else(|| {
            Problem::new(
                Code::BadRequest,
                "this coordinator has no issuer: certificates come from your own PKI",
            )
        })?;
        // 256 bits from the operating system; a token is a password for 15 minutes.
        let secret = hex::encode(rand::random::<[u8; 32]>());
        let expires_at = Timestamp::now() + TOKEN_MINUTES.minutes();
        let token = NewToken {
            hash: token_hash(&secret),
            name: name.clone(),
            created_by: operator.to_string(),
            expires_at,
        };
        self.store().add_token(&token).await?;
        tracing::info!(agent = name, by = %operator, "join token made");
        let fingerprint = issuer.ca_fingerprint().to_owned();
        Ok(v1::CreateTokenResponse {
            // The fingerprint travels inside, so that a new host knows whom to trust without a second thing to copy.
            token: format!("{TOKEN_FORMAT}.{name}.{secret}.{fingerprint}"),
            ca_fingerprint: fingerprint,
            expires_at: Some(convert::timestamp(expires_at)),
        })
    }
}

fn host_to_wire(host: HostSurvey) -> v1::HostState {
    let agent = convert::agent_to_wire(&host.agent.record, host.agent.connected, host.agent.last_seen);
    let (states, problem) = match host.states {
        Ok(states) => (states, None),
        Err(problem) => (Vec::new(), Some(problem.into())),
    };
    v1::HostState {
        agent: Some(agent),
        states,
        problem,
    }
}

/// Is everything that the release names where the release has it?
pub fn matches(release: &rollback_engine::release::Release, survey: &[HostSurvey]) -> bool {
    !release.entries.is_empty()
        && release.entries.iter().all(|entry| {
            let host = survey.iter().find(|h| h.agent.record.name == entry.target.host.0);
            let states = host.and_then(|h| h.states.as_ref().ok());
            let state = states.and_then(|s| s.iter().find(|s| s.component == entry.target.component.0));
            let revision = state.and_then(|s| s.revision.as_ref());
            revision.is_some_and(|r| r.digest == entry.revision.digest.0)
        })
}
