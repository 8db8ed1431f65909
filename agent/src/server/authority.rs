//! Who may call: coordinators, for everything. There is no other caller and no call without one, so the table that says
//! which role may do what has a single line.

use std::time::SystemTime;

use rollback_proto::identity::PeerRole;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::{CredentialStore, PeerInfo};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Runs before every call. The certificate chain was verified in the handshake.
#[derive(Clone)]
pub(super) struct Authority {
    /// Ours; says which trust domain is ours.
    credentials: CredentialStore,
}

impl Authority {
    pub fn new(credentials: CredentialStore) -> Self {
        Self { credentials }
    }

    fn check(&self, info: Option<&PeerInfo>) -> Result<(), Problem> {
        let Some(peer) = info.and_then(|info| info.peer.as_ref()) else {
            return Err(Problem::new(
                Code::Unauthenticated,
                "the call came without a certificate",
            ));
        };
        // A connection may outlive the certificate that it was opened with.
        if peer.expires <= SystemTime::now() {
            return Err(Problem::new(
                Code::Unauthenticated,
                format!("the certificate of {} has expired", peer.identity),
            ));
        }
        let ours = &self.credentials.load().us.identity.trust_domain;
        if peer.identity.role != PeerRole::Coordinator || &peer.identity.trust_domain != ours {
            return Err(Problem::new(
                Code::Forbidden,
                format!("agents obey coordinators of {ours}; the caller is {}", peer.identity),
            )
            .remedy("ask the coordinator: rollbackctl does nothing on agents directly"));
        }
        Ok(())
    }
}

impl Interceptor for Authority {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let info = request.extensions().get::<PeerInfo>();
        match self.check(info) {
            Ok(()) => Ok(request),
            Err(problem) => {
                let address = info.map(|info| info.address);
                tracing::warn!(?address, %problem, "refused a call");
                Err(problem.into())
            }
        }
    }
}
