//! The Enrollment service: how an agent joins and stays.

use jiff::Timestamp;
use rollback_proto::identity::{Peer, PeerRole};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1;
use rollback_proto::v1::enrollment_server::Enrollment;
use tonic::{Request, Response, Status};

use super::Api;
use super::agents::token_hash;
use crate::authority::caller;
use crate::issuer::CertificateAuthority;
use crate::store::AgentRecord;
use crate::{convert, objective};

/// More components on one host than this is a mistake or an attack.
const MAX_COMPONENTS: usize = 256;

impl Api {
    fn issuer(&self) -> Result<&CertificateAuthority, Problem> {
        self.issuer.as_deref().ok_or_else(|| {
            Problem::new(
                Code::BadRequest,
                "this coordinator has no issuer: certificates come from your own PKI",
            )
        })
    }

    async fn redeem(&self, request: v1::EnrollRequest) -> Result<v1::EnrollResponse, Problem> {
        let issuer = self.issuer()?;
        let bad = || Problem::new(Code::BadToken, "the join token is unknown, used or expired");
        // rbt1.NAME.SECRET.FINGERPRINT; names may hold dots, so the secret is found from the end.
        let mut parts = request.token.rsplit('.');
        let (Some(_fingerprint), Some(secret)) = (parts.next(), parts.next()) else {
            return Err(bad());
        };
        let store = self.store();
        let name = store
            .redeem_token(&token_hash(secret), Timestamp::now())
            .await?
            .ok_or_else(bad)?;
        let certificate_pem = issuer.sign(
            &request.csr_pem,
            PeerRole::Agent,
            &name,
            self.agent_certificate_lifetime,
        )?;
        tracing::info!(agent = name, "enrolled");
        Ok(v1::EnrollResponse {
            name,
            certificate_pem,
            ca_pem: issuer.ca_pem().to_owned(),
        })
    }

    /// What the host was to become while it was away. It is taken in all the same when that cannot be read: nothing depends
    /// on what it knows of it.
    async fn awaited(&self, host: &str) -> Vec<v1::Awaited> {
        match objective::of_host(self.store(), host).await {
            Ok(objectives) => objective::awaited(&objectives),
            Err(error) => {
                tracing::warn!(agent = host, %error, "read where the host shall be");
                Vec::new()
            }
        }
    }

    async fn take_in(&self, peer: Peer, request: v1::RegisterRequest) -> Result<v1::RegisterResponse, Problem> {
        self.leader()?;
        let name = peer.identity.name;
        if request.components.len() > MAX_COMPONENTS {
            let message = format!(
                "{name} registers {} components; {MAX_COMPONENTS} are allowed",
                request.components.len()
            );
            return Err(Problem::new(Code::BadRequest, message));
        }
        if request.address.len() > 300 || !request.address.contains(':') {
            return Err(Problem::new(
                Code::BadRequest,
                format!("{name}: the address is not host:port"),
            ));
        }
        let mut components = Vec::with_capacity(request.components.len());
        for component in request.components {
            check_name("component", &component.name)?;
            components.push(convert::component_from_wire(component)?);
        }
        let now = Timestamp::now();
        let before = self.inventory().record(&name);
        let replaced = before
            .as_ref()
            .is_some_and(|b| b.ledger_generation != request.ledger_generation);
        if replaced {
            tracing::warn!(
                agent = name,
                "the agent's ledger is a new one: what it did before is known here alone"
            );
        }
        let record = AgentRecord {
            address: request.address,
            version: request.version,
            ledger_generation: request.ledger_generation,
            components,
            labels: request.labels.into_iter().collect(),
            registered_at: now,
            certificate_expires: Timestamp::try_from(peer.expires).unwrap_or(now),
            name,
        };
        self.store().save_agent(&record).await?;
        tracing::info!(
            agent = record.name,
            address = record.address,
            components = record.components.len(),
            "registered"
        );
        let awaited = self.awaited(&record.name).await;
        self.inventory().registered(record);
        Ok(v1::RegisterResponse {
            heartbeat_interval: Some(convert::duration(self.inventory().heartbeat_interval())),
            awaited,
        })
    }
}

#[tonic::async_trait]
impl Enrollment for Api {
    async fn enroll(&self, request: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollResponse>, Status> {
        Ok(Response::new(self.redeem(request.into_inner()).await?))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let name = caller(&request)?.identity.name;
        let issuer = self.issuer()?;
        let csr = request.into_inner().csr_pem;
        let certificate_pem = issuer.sign(&csr, PeerRole::Agent, &name, self.agent_certificate_lifetime)?;
        Ok(Response::new(v1::RenewResponse {
            certificate_pem,
            ca_pem: issuer.ca_pem().to_owned(),
        }))
    }

    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterResponse>, Status> {
        let peer = caller(&request)?;
        Ok(Response::new(self.take_in(peer, request.into_inner()).await?))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        self.leader()?;
        let known = self.inventory().heartbeat(&caller(&request)?.identity.name);
        Ok(Response::new(v1::HeartbeatResponse { register_again: !known }))
    }
}
