//! Agents as operators see them, and the fleet's state.

use std::time::SystemTime;

use jiff::{Timestamp, ToSpan as _};
use rollback_engine::release::{Release, ReleaseEntry};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use rollback_proto::v1::get_server_info_response::Standing as Place;
use sha2::{Digest as _, Sha256};
use tonic::Request;

use super::Api;
use crate::authority::caller;
use crate::projection::Summary;
use crate::replica::Standing;
use crate::store::NewToken;
use crate::survey::{self, HostSurvey, Seen, Sight};
use crate::{convert, history, hold, objective};

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
        let inventory = self.inventory_of_now().await?;
        let store = self.store();
        // While the hosts are asked, the store is: both take their time.
        let (survey, stored) = tokio::join!(survey::observe(inventory), async {
            let releases = store.releases().await?;
            let objectives = objective::all(store).await?;
            let holds = hold::all(store).await?;
            Ok::<_, Problem>((releases, objectives, holds, history::running(store).await?))
        });
        let (releases, mut objectives, holds, running) = stored?;
        if !running.is_empty() {
            // It is under way: nobody has to bring it anywhere. What became of it is said by the end.
            let held = store.scopes().await?;
            objectives.retain(|target, _| !held.contains_key(target));
        }
        let matching = releases.iter().find(|release| matches(release, &survey));
        Ok(v1::GetFleetResponse {
            matches_release: matching.map(|r| r.name.0.clone()).unwrap_or_default(),
            active: running
                .iter()
                .filter_map(|(_, s)| s.as_ref())
                .map(Summary::to_wire)
                .collect(),
            drift: objective::drift(&objectives, &survey),
            holds: holds.iter().map(|(release, hold)| hold.to_wire(release)).collect(),
            hosts: survey.into_iter().map(host_to_wire).collect(),
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
pub fn matches(release: &Release, survey: &[HostSurvey]) -> bool {
    let sight = Sight::of(survey);
    let is_there = |e: &ReleaseEntry| matches!(sight.seen(&e.target), Seen::At(revision) if revision == e.revision);
    !release.entries.is_empty() && release.entries.iter().all(is_there)
}
