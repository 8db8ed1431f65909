//! Who a peer is: the SPIFFE id in the URI SAN of its certificate.
//!
//! `spiffe://<trust domain>/agent/<name>`, `…/operator/<name>`, `…/coordinator/<name>`. A certificate with no such URI,
//! with several, or with a name outside the allow-list has no identity and is refused at the handshake.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::names::check_name;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerRole {
    Coordinator,
    Agent,
    Operator,
}

impl PeerRole {
    pub fn as_str(self) -> &'static str {
        match self {
            PeerRole::Coordinator => "coordinator",
            PeerRole::Agent => "agent",
            PeerRole::Operator => "operator",
        }
    }
}

/// A SPIFFE id of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    pub trust_domain: String,
    pub role: PeerRole,
    pub name: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}/{}", self.trust_domain, self.role.as_str(), self.name)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate cannot be parsed")]
    Malformed,
    #[error("the certificate has {0} SPIFFE ids instead of one")]
    NotOne(usize),
    #[error("{0:?} is not spiffe://<trust domain>/<coordinator|agent|operator>/<name>")]
    NotOurs(String),
}

impl Identity {
    pub fn new(trust_domain: &str, role: PeerRole, name: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            role,
            name: name.to_owned(),
        }
    }

    pub fn parse(uri: &str) -> Result<Self, IdentityError> {
        let not_ours = || IdentityError::NotOurs(uri.chars().take(200).collect());
        let rest = uri.strip_prefix("spiffe://").ok_or_else(not_ours)?;
        let mut parts = rest.split('/');
        let (Some(domain), Some(role), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(not_ours());
        };
        let role = match role {
            "coordinator" => PeerRole::Coordinator,
            "agent" => PeerRole::Agent,
            "operator" => PeerRole::Operator,
            _ => return Err(not_ours()),
        };
        check_name("trust domain", domain).map_err(|_| not_ours())?;
        check_name("peer", name).map_err(|_| not_ours())?;
        Ok(Self::new(domain, role, name))
    }
}

/// A peer whose certificate chain was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub identity: Identity,
    /// Lower-case hex, as revocation lists name it.
    pub serial: String,
    /// A connection may outlive the certificate it was opened with, so this is checked on every call.
    pub expires: SystemTime,
}

impl Peer {
    /// Reads the identity from a certificate in DER. Verifying the chain is the TLS layer's part.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, cert) = X509Certificate::from_der(der).map_err(|_| IdentityError::Malformed)?;
        let san = cert.subject_alternative_name().map_err(|_| IdentityError::Malformed)?;
        let uris: Vec<&str> = san
            .iter()
            .flat_map(|ext| &ext.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        let [uri] = uris[..] else {
            return Err(IdentityError::NotOne(uris.len()));
        };
        let expires = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self {
            identity: Identity::parse(uri)?,
            serial: hex::encode(cert.raw_serial()),
            expires: UNIX_EPOCH + Duration::from_secs(expires),
        })
    }
}

/// SHA-256 of a certificate in DER, lower-case hex: what an operator carries to a new host to pin the CA.
pub fn fingerprint(der: &[u8]) -> String {
    hex::encode(Sha256::digest(der))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let id = Identity::new("zekka.example", PeerRole::Agent, "app-1");
        assert_eq!(Identity::parse(&id.to_string()).expect("ours"), id);
    }

    #[test]
    fn refuses_what_is_not_ours() {
        for bad in [
            "",
            "https://zekka/agent/app-1",
            "spiffe://zekka/agent",
            "spiffe://zekka/agent/app-1/extra",
            "spiffe://zekka/root/app-1",
            "spiffe://zekka/agent/..",
            "spiffe:///agent/app-1",
            "spiffe://zekka/agent/--x",
        ] {
            assert!(Identity::parse(bad).is_err(), "{bad}");
        }
    }
}
