//! The gRPC services, one file per subject. Handlers translate and delegate; what must not be dropped with a call runs
//! in tasks of its own (see [`crate::leader`]).

mod agents;
mod checklist;
mod enrollment;
mod expected;
mod fleet;
mod holds;
mod imports;
mod planning;
mod readiness;
mod releases;
mod rollbacks;
mod runbooks;
mod steering;
mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use rollback_proto::problem::Problem;
use rollback_proto::tls::{ClientCertificate, CredentialStore, incoming};
use rollback_proto::v1::enrollment_server::EnrollmentServer;
use rollback_proto::v1::fleet_server::FleetServer;
use tokio::net::TcpListener;
use tonic::transport::Server;

pub(crate) use self::agents::matches;
pub(crate) use self::planning::plan_for;
use crate::authority::AuthorityLayer;
use crate::config::ReadinessConfig;
use crate::inventory::Inventory;
use crate::issuer::CertificateAuthority;
use crate::leader::Leader;
use crate::replica::Replica;
use crate::retention::ReleasesConfig;
use crate::store::Store;

/// Nothing that agents send is larger: a registration with some hundred components is a few KiB.
const MAX_REQUEST: usize = 1024 * 1024;
/// What operators may send: a saved plan is some KiB for each host, and a fleet may have thousands.
const MAX_OPERATOR_REQUEST: usize = 64 * 1024 * 1024;
/// Streams on one connection at once.
const MAX_STREAMS: u32 = 256;

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct Api {
    replica: Replica,
    credentials: CredentialStore,
    issuer: Option<Arc<CertificateAuthority>>,
    agent_certificate_lifetime: Duration,
    /// The newest so many releases, and so many stable ones, stay when nobody names them.
    keep: usize,
    checked: usize,
    /// Whoever records or imports releases has a part of it, whoever forgets some has it alone.
    upkeep: Arc<tokio::sync::RwLock<()>>,
}

impl Api {
    pub fn new(
        replica: Replica,
        credentials: CredentialStore,
        issuer: Option<Arc<CertificateAuthority>>,
        agent_certificate_lifetime: Duration,
    ) -> Self {
        Self {
            replica,
            credentials,
            issuer,
            agent_certificate_lifetime,
            keep: ReleasesConfig::default().keep,
            checked: ReadinessConfig::default().releases,
            upkeep: Arc::default(),
        }
    }

    /// How many releases stay although nothing needs them.
    #[must_use]
    pub fn retaining(mut self, releases: ReleasesConfig, readiness: &ReadinessConfig) -> Self {
        (self.keep, self.checked) = (releases.keep, readiness.releases);
        self
    }

    fn store(&self) -> &dyn Store {
        self.replica.parts().store.as_ref()
    }

    fn inventory(&self) -> &Arc<Inventory> {
        &self.replica.parts().inventory
    }

    /// What the store has of agents by now: those that registered with the leader a moment ago are not known to a follower.
    async fn inventory_of_now(&self) -> Result<&Arc<Inventory>, Problem> {
        let inventory = self.inventory();
        if self.leader().is_err() {
            inventory.refresh(self.store()).await?;
        }
        Ok(inventory)
    }

    /// What writes, and what sends steps to agents, is the leader's: others refuse it and say where the leader is.
    fn leader(&self) -> Result<Leader, Problem> {
        self.replica.leader()
    }

    /// Serves until the process stops.
    pub async fn serve(self, listener: TcpListener) -> Result<(), tonic::transport::Error> {
        let stop = self.replica.parts().stop.clone();
        let connections = incoming(
            listener,
            Arc::clone(&self.credentials),
            ClientCertificate::Optional,
            stop.clone(),
        );
        let trust_domain = self.credentials.load().us.identity.trust_domain.clone();
        Server::builder()
            .layer(AuthorityLayer { trust_domain })
            .max_concurrent_streams(MAX_STREAMS)
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .add_service(FleetServer::new(self.clone()).max_decoding_message_size(MAX_OPERATOR_REQUEST))
            .add_service(EnrollmentServer::new(self).max_decoding_message_size(MAX_REQUEST))
            .serve_with_incoming_shutdown(connections, async move { stop.cancelled().await })
            .await
    }
}
