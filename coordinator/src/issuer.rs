//! The built-in CA, for fleets that have no PKI of their own.
//!
//! Every certificate carries one SPIFFE id and nothing else that identifies. Agents and coordinators may both serve and
//! dial, operators may only dial. Names come from tokens and from verified peers, never from a CSR: of a CSR only the
//! public key is taken.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rollback_proto::identity::{Identity, PeerRole, fingerprint};
use rollback_proto::problem::{Code, Problem};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Clocks of hosts differ; certificates are valid this long before they are made. One of today is good on a host whose clock is a day behind, or in the wrong time zone: what is made during an
/// outage must not be refused for that.
const BACKDATE: Duration = Duration::from_secs(25 * 3600);
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Coordinators and operators have no renewal of their own yet; `init` and `operator` make new ones.
pub const LONG_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// The CA: its certificate and its key.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    ca_fingerprint: String,
    trust_domain: String,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

/// A key that we made, and its certificate.
#[derive(Debug)]
pub struct Issued {
    pub certificate_pem: String,
    pub key_pem: String,
}

fn issuing(what: &str) -> impl FnOnce(rcgen::Error) -> Problem {
    move |e| Problem::new(Code::Internal, format!("{what}: {e}"))
}

impl CertificateAuthority {
    /// A new CA. Its key leaves this function only as the PEM that is returned with it.
    pub fn create(trust_domain: &str) -> Result<(Self, String), Problem> {
        let key = KeyPair::generate().map_err(issuing("make the CA key"))?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, format!("rollbackctl CA of {trust_domain}"));
        set_validity(&mut params, CA_LIFETIME);
        let certificate = params.self_signed(&key).map_err(issuing("sign the CA certificate"))?;
        let (ca_pem, key_pem) = (certificate.pem(), key.serialize_pem());
        let ca_fingerprint = fingerprint(certificate.der());
        let issuer = Issuer::new(params, key);
        Ok((
            Self {
                issuer,
                ca_pem,
                ca_fingerprint,
                trust_domain: trust_domain.to_owned(),
            },
            key_pem,
        ))
    }

    pub fn load(ca: &Path, key: &Path, trust_domain: &str) -> Result<Self, Problem> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|e| Problem::new(Code::BadCredentials, format!("read {}: {e}", path.display())))
        };
        let bad = |path: &Path, e: String| Problem::new(Code::BadCredentials, format!("{}: {e}", path.display()));
        let (ca_pem, key_pem) = (read(ca)?, read(key)?);
        let der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| bad(ca, e.to_string()))?;
        let key_pair = KeyPair::from_pem(&key_pem).map_err(|e| bad(key, e.to_string()))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key_pair).map_err(|e| bad(ca, e.to_string()))?;
        Ok(Self {
            issuer,
            ca_fingerprint: fingerprint(&der),
            ca_pem,
            trust_domain: trust_domain.to_owned(),
        })
    }

    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// SHA-256 of the CA certificate: what a join token pins.
    pub fn ca_fingerprint(&self) -> &str {
        &self.ca_fingerprint
    }

    /// A new key and its certificate.
    pub fn issue(&self, role: PeerRole, name: &str, lifetime: Duration) -> Result<Issued, Problem> {
        let key = KeyPair::generate().map_err(issuing("make a key"))?;
        let params = self.params(role, name, lifetime)?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(issuing("sign a certificate"))?;
        Ok(Issued {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// A certificate for the public key of a CSR, which proves possession of the private one by its signature.
    pub fn sign(&self, csr_pem: &str, role: PeerRole, name: &str, lifetime: Duration) -> Result<String, Problem> {
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|e| Problem::new(Code::BadRequest, format!("certificate signing request: {e}")))?;
        csr.params = self.params(role, name, lifetime)?;
        Ok(csr
            .signed_by(&self.issuer)
            .map_err(issuing("sign a certificate"))?
            .pem())
    }

    fn params(&self, role: PeerRole, name: &str, lifetime: Duration) -> Result<CertificateParams, Problem> {
        let id = Identity::new(&self.trust_domain, role, name);
        // Refuses a name or trust domain that could not be read back.
        Identity::parse(&id.to_string()).map_err(|e| Problem::new(Code::BadName, e.to_string()))?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("{}/{name}", role.as_str()));
        let uri = id.to_string().try_into().map_err(issuing("write the SPIFFE id"))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            PeerRole::Coordinator | PeerRole::Agent => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            PeerRole::Operator => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, lifetime);
        Ok(params)
    }
}

fn set_validity(params: &mut CertificateParams, lifetime: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_csr_does_not_choose_its_name() {
        let (ca, _) = CertificateAuthority::create("test").expect("ca");
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        let forged = "spiffe://test/operator/root".to_owned().try_into().expect("uri");
        params.subject_alt_names = vec![SanType::URI(forged)];
        let csr = params.serialize_request(&key).expect("csr").pem().expect("pem");
        let pem = ca
            .sign(&csr, PeerRole::Agent, "app-1", Duration::from_secs(3600))
            .expect("sign");
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("pem");
        let peer = rollback_proto::identity::Peer::from_der(&der).expect("peer");
        assert_eq!(peer.identity.to_string(), "spiffe://test/agent/app-1");
    }

    #[test]
    fn refuses_a_name_that_would_not_read_back() {
        let (ca, _) = CertificateAuthority::create("test").expect("ca");
        assert!(ca.issue(PeerRole::Agent, "../operator/root", LONG_LIFETIME).is_err());
    }
}
