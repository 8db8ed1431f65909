//! The agent's own credentials on disk: `ca.pem`, `agent.pem`, `agent.key` (0600) in one directory.
//!
//! Invariants:
//! - The key is made on this host and never leaves it; only a signing request does.
//! - A certificate is taken only if it is for our key and our name.
//! - Key and certificate are replaced together: a crash between the two leaves a pair that works, or one that
//!   [`repair`] completes at the next start.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use rollback_proto::identity::{Peer, PeerRole};
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::{CredentialFiles, Credentials, write_private};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

pub fn files(pki: &Path) -> CredentialFiles {
    CredentialFiles {
        ca: pki.join("ca.pem"),
        certificate: pki.join("agent.pem"),
        key: pki.join("agent.key"),
    }
}

/// A new key, and the request to certify it.
#[derive(Debug)]
pub struct NewKey {
    key: KeyPair,
    pub csr_pem: String,
}

impl NewKey {
    /// ECDSA P-256. The issuer takes the public key from the request, and nothing else.
    pub fn generate(name: &str) -> Result<Self, Problem> {
        let failed = |error: rcgen::Error| Problem::from_error(Code::Internal, "make a key", &error);
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let csr_pem = params
            .serialize_request(&key)
            .and_then(|csr| csr.pem())
            .map_err(failed)?;
        Ok(Self { key, csr_pem })
    }

    /// Checks that this certificate is for our key and our name.
    pub fn check(&self, certificate_pem: &str, name: &str) -> Result<Peer, Problem> {
        let refuse = |why: String| Problem::new(Code::BadCredentials, format!("the certificate that was issued {why}"));
        let der = first_certificate(certificate_pem.as_bytes()).ok_or_else(|| refuse("is not PEM".into()))?;
        let peer = Peer::from_der(&der).map_err(|e| refuse(format!("has no identity: {e}")))?;
        check_ours(&peer, name)?;
        if public_key(&der).as_deref() != Some(&*self.key.subject_public_key_info()) {
            return Err(refuse("is not for the key of this host".into()));
        }
        Ok(peer)
    }

    /// Puts key, certificate and CA in place. Durable when it returns.
    pub fn install(&self, pki: &Path, certificate_pem: &str, ca_pem: &str) -> Result<(), Problem> {
        let files = files(pki);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: std::io::Error| {
                Problem::from_error(Code::FileFailed, format_args!("write {}", path.display()), &error)
            }
        };
        std::fs::create_dir_all(pki).map_err(failed(pki))?;
        write_private(&files.ca, ca_pem.as_bytes()).map_err(failed(&files.ca))?;
        let (certificate, key) = (next(&files.certificate), next(&files.key));
        write_private(&certificate, certificate_pem.as_bytes()).map_err(failed(&certificate))?;
        write_private(&key, self.key.serialize_pem().as_bytes()).map_err(failed(&key))?;
        repair(pki)
    }
}

/// Is this certificate for the agent of this name?
pub fn check_ours(peer: &Peer, name: &str) -> Result<(), Problem> {
    if peer.identity.role == PeerRole::Agent && peer.identity.name == name {
        return Ok(());
    }
    Err(Problem::new(
        Code::BadCredentials,
        format!("the certificate is for {}, this is agent {name}", peer.identity),
    )
    .remedy(format!(
        "enroll this host under its own name: rollbackctl agent token {name}"
    )))
}

/// The credentials on disk, checked: readable by us alone, a pair, and for the agent of this name.
pub fn load(pki: &Path, name: &str) -> Result<Credentials, Problem> {
    repair(pki)?;
    let files = files(pki);
    if !files.certificate.exists() {
        return Err(Problem::new(
            Code::BadCredentials,
            format!(
                "{} does not exist: this host is not enrolled",
                files.certificate.display()
            ),
        )
        .remedy(format!(
            "run `rollbackctl agent token {name}` at your desk and `rollback-agent enroll --coordinator HOST:PORT \
             --token TOKEN` here"
        )));
    }
    let credentials = Credentials::load(&files)
        .map_err(|error| Problem::from_error(Code::BadCredentials, "read the agent's credentials", &error))?;
    check_ours(&credentials.us, name)?;
    if !belong_together(&files.certificate, &files.key) {
        return Err(Problem::new(
            Code::BadCredentials,
            format!(
                "{} is not for the key in {}",
                files.certificate.display(),
                files.key.display()
            ),
        ));
    }
    Ok(credentials)
}

/// Where a file waits for its other half.
fn next(path: &Path) -> PathBuf {
    path.with_extension(match path.extension().and_then(|e| e.to_str()) {
        Some(extension) => format!("{extension}.next"),
        None => "next".to_owned(),
    })
}

/// Completes a replacement that a crash cut off, or takes it back where its key is not there. Does nothing otherwise.
/// Called before credentials are read.
pub fn repair(pki: &Path) -> Result<(), Problem> {
    let files = files(pki);
    let (new_certificate, new_key) = (next(&files.certificate), next(&files.key));
    let failed = |error: std::io::Error| {
        Problem::from_error(
            Code::FileFailed,
            format_args!("replace files in {}", pki.display()),
            &error,
        )
    };
    // The order of writing is certificate, key; the order of renaming is key, certificate. So the new certificate is
    // there in every half-done state, and the key that it is for is either waiting or in place.
    if !new_certificate.exists() {
        return remove(&new_key).map_err(failed);
    }
    if belong_together(&new_certificate, &new_key) {
        std::fs::rename(&new_key, &files.key).map_err(failed)?;
    } else if !belong_together(&new_certificate, &files.key) {
        remove(&new_key)
            .and_then(|()| remove(&new_certificate))
            .map_err(failed)?;
        return Ok(());
    }
    std::fs::rename(&new_certificate, &files.certificate).map_err(failed)?;
    std::fs::File::open(pki).and_then(|dir| dir.sync_all()).map_err(failed)
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Is this certificate for this key? A file that is missing or damaged belongs to nothing.
fn belong_together(certificate: &Path, key: &Path) -> bool {
    let read = || {
        let der = first_certificate(&std::fs::read(certificate).ok()?)?;
        let key = KeyPair::from_pem(&std::fs::read_to_string(key).ok()?).ok()?;
        Some(public_key(&der)? == key.subject_public_key_info())
    };
    read().unwrap_or(false)
}

fn first_certificate(pem: &[u8]) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem).ok()
}

fn public_key(der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.public_key().raw.to_owned())
}

/// From when to when the certificate in force may be used.
pub fn validity(pki: &Path) -> Option<(SystemTime, SystemTime)> {
    let der = first_certificate(&std::fs::read(files(pki).certificate).ok()?)?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let instant = |time: x509_parser::time::ASN1Time| {
        u64::try_from(time.timestamp())
            .ok()
            .map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds))
    };
    Some((
        instant(certificate.validity().not_before)?,
        instant(certificate.validity().not_after)?,
    ))
}

#[cfg(test)]
pub(crate) mod tests;
