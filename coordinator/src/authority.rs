//! Who may call what. Deny by default: an RPC that the table does not name is refused to everybody.
//!
//! The check stands in front of every service, as a layer that sees the path and the peer, so that no handler can forget
//! it. A test below walks every RPC of the descriptors and fails on one that the table does not name.

use std::task::{Context, Poll};
use std::time::SystemTime;

use rollback_proto::identity::{Peer, PeerRole};
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::PeerInfo;
use tonic::body::Body;
use tower::{Layer, Service};

/// Who may call an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Nobody needs a certificate; the call carries its own proof.
    Anybody,
    Agents,
    Operators,
}

/// The table.
pub fn allowed(path: &str) -> Option<Allowed> {
    Some(match path {
        "/rollback.v1.Enrollment/Enroll" => Allowed::Anybody,
        "/rollback.v1.Enrollment/Renew" | "/rollback.v1.Enrollment/Register" | "/rollback.v1.Enrollment/Heartbeat" => {
            Allowed::Agents
        }
        "/rollback.v1.Fleet/GetServerInfo"
        | "/rollback.v1.Fleet/GetFleet"
        | "/rollback.v1.Fleet/PlanRollback"
        | "/rollback.v1.Fleet/StartRollback"
        | "/rollback.v1.Fleet/ListRollbacks"
        | "/rollback.v1.Fleet/GetRollback"
        | "/rollback.v1.Fleet/WatchRollback"
        | "/rollback.v1.Fleet/RecordRelease"
        | "/rollback.v1.Fleet/ImportRelease"
        | "/rollback.v1.Fleet/ListReleases"
        | "/rollback.v1.Fleet/GetRelease"
        | "/rollback.v1.Fleet/ListAgents"
        | "/rollback.v1.Fleet/SteerRollback"
        | "/rollback.v1.Fleet/UpdateRelease"
        | "/rollback.v1.Fleet/RemoveReleases"
        | "/rollback.v1.Fleet/PreflightRelease"
        | "/rollback.v1.Fleet/HoldRelease"
        | "/rollback.v1.Fleet/UnholdRelease"
        | "/rollback.v1.Fleet/CheckGate"
        | "/rollback.v1.Fleet/GetReadiness"
        | "/rollback.v1.Fleet/LintRunbook"
        | "/rollback.v1.Fleet/ApplyRunbook"
        | "/rollback.v1.Fleet/ListRunbooks"
        | "/rollback.v1.Fleet/GetRunbook"
        | "/rollback.v1.Fleet/CreateToken" => Allowed::Operators,
        _ => return None,
    })
}

/// Checks a call. `now` is compared with the certificate's end: a connection may outlive it.
pub fn check(path: &str, peer: Option<&Peer>, trust_domain: &str, now: SystemTime) -> Result<(), Problem> {
    let Some(allowed) = allowed(path) else {
        return Err(Problem::new(Code::Forbidden, format!("nobody may call {path}")));
    };
    let needed = match allowed {
        Allowed::Anybody => return Ok(()),
        Allowed::Agents => PeerRole::Agent,
        Allowed::Operators => PeerRole::Operator,
    };
    let Some(peer) = peer else {
        return Err(Problem::new(
            Code::Unauthenticated,
            format!("{path} needs a certificate"),
        ));
    };
    if peer.expires <= now {
        return Err(Problem::new(
            Code::Unauthenticated,
            format!("the certificate of {} has expired", peer.identity),
        ));
    }
    if peer.identity.trust_domain != trust_domain || peer.identity.role != needed {
        let needed = needed.as_str();
        return Err(Problem::new(
            Code::Forbidden,
            format!("{} may not call {path}: it is for {needed}s", peer.identity),
        ));
    }
    Ok(())
}

/// The peer of a call whose role the layer has checked.
pub fn caller<T>(request: &tonic::Request<T>) -> Result<Peer, Problem> {
    request
        .extensions()
        .get::<PeerInfo>()
        .and_then(|info| info.peer.clone())
        .ok_or_else(|| Problem::new(Code::Unauthenticated, "the call has no certificate"))
}

#[derive(Clone, Debug)]
pub struct AuthorityLayer {
    pub trust_domain: String,
}

impl<S> Layer<S> for AuthorityLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            inner,
            trust_domain: self.trust_domain.clone(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    trust_domain: String,
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = futures::future::Either<std::future::Ready<Result<S::Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let peer = request
            .extensions()
            .get::<PeerInfo>()
            .and_then(|info| info.peer.as_ref());
        match check(request.uri().path(), peer, &self.trust_domain, SystemTime::now()) {
            Ok(()) => futures::future::Either::Right(self.inner.call(request)),
            Err(problem) => {
                tracing::info!(%problem, "refused a call");
                let refusal = tonic::Status::from(problem).into_http();
                futures::future::Either::Left(std::future::ready(Ok(refusal)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost::Message as _;
    use rollback_proto::identity::Identity;

    use super::*;

    fn peer(role: PeerRole, domain: &str) -> Peer {
        Peer {
            identity: Identity::new(domain, role, "x"),
            serial: "01".to_owned(),
            expires: SystemTime::now() + Duration::from_secs(60),
        }
    }

    fn served_paths() -> Vec<String> {
        let set = prost_types::FileDescriptorSet::decode(rollback_proto::DESCRIPTORS).expect("descriptors");
        let mut paths = Vec::new();
        for file in &set.file {
            for service in file.service.iter().filter(|s| s.name() != "Agent") {
                let methods = service.method.iter();
                paths.extend(methods.map(|m| format!("/{}.{}/{}", file.package(), service.name(), m.name())));
            }
        }
        paths
    }

    #[test]
    fn every_rpc_stands_in_the_table() {
        let paths = served_paths();
        assert!(paths.len() > 10, "the descriptors hold the services");
        for path in paths {
            assert!(allowed(&path).is_some(), "{path} is missing in the table");
        }
    }

    #[test]
    fn each_role_gets_its_own_and_nothing_else() {
        let now = SystemTime::now();
        for path in served_paths() {
            let may = |peer: Option<&Peer>| check(&path, peer, "zekka", now).is_ok();
            let allowed = allowed(&path).expect("in the table");
            assert_eq!(may(None), allowed == Allowed::Anybody, "{path} without a certificate");
            for (role, its) in [
                (PeerRole::Agent, Allowed::Agents),
                (PeerRole::Operator, Allowed::Operators),
            ] {
                let right = allowed == its || allowed == Allowed::Anybody;
                assert_eq!(may(Some(&peer(role, "zekka"))), right, "{path} as {role:?}");
                assert!(
                    allowed == Allowed::Anybody || !may(Some(&peer(role, "elsewhere"))),
                    "{path} from elsewhere"
                );
            }
        }
    }

    #[test]
    fn an_expired_certificate_is_refused_on_an_open_connection() {
        let mut operator = peer(PeerRole::Operator, "zekka");
        operator.expires = SystemTime::now();
        let refused = check(
            "/rollback.v1.Fleet/GetFleet",
            Some(&operator),
            "zekka",
            SystemTime::now(),
        );
        assert_eq!(refused.expect_err("expired").code, Code::Unauthenticated);
    }

    #[test]
    fn an_unknown_path_is_refused() {
        let operator = peer(PeerRole::Operator, "zekka");
        assert!(check("/rollback.v1.Fleet/Format", Some(&operator), "zekka", SystemTime::now()).is_err());
    }
}
