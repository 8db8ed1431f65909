//! A CA certificate, our certificate and our key, from files.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use serde::{Deserialize, Serialize};

use crate::identity::{IdentityError, Peer, fingerprint};

/// Installs ring as the process's one crypto provider. Called first in every `main`; calling it again does nothing.
pub fn install_crypto() {
    // The only error is that a provider stands already, and only this function installs one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Where credentials are kept. All PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    /// 0600 or stricter; anything else is refused.
    pub key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not PEM of the expected kind", path.display())]
    NotPem { path: PathBuf },
    #[error("{} can be read by others than its owner (mode {mode:o}); run: chmod 600 {}", path.display(), path.display())]
    KeyReadable { path: PathBuf, mode: u32 },
    #[error("certificate {}", path.display())]
    Identity {
        path: PathBuf,
        #[source]
        source: IdentityError,
    },
    #[error("certificate and key do not make credentials")]
    Unusable(#[from] rustls::Error),
    #[error("nobody will accept our certificate; it has to be made again, by the CA of this fleet")]
    Refused(#[source] rustls::Error),
}

/// Credentials in memory, ready for handshakes.
#[derive(Debug)]
pub struct Credentials {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    /// Who we are.
    pub us: Peer,
    /// Of every CA that we trust, as [`fingerprint`] has it.
    pub ca_fingerprints: BTreeSet<String>,
}

/// The credentials in force; replaced as a whole.
pub type CredentialStore = Arc<ArcSwap<Credentials>>;

impl Credentials {
    pub fn load(files: &CredentialFiles) -> Result<Self, CredentialError> {
        let ca = read_certificates(&files.ca)?;
        let mut chain = read_certificates(&files.certificate)?;
        let mode = std::fs::metadata(&files.key)
            .map_err(|source| CredentialError::Read {
                path: files.key.clone(),
                source,
            })?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            return Err(CredentialError::KeyReadable {
                path: files.key.clone(),
                mode: mode & 0o777,
            });
        }
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|_| CredentialError::NotPem {
            path: files.key.clone(),
        })?;
        let us = Peer::from_der(&chain[0]).map_err(|source| CredentialError::Identity {
            path: files.certificate.clone(),
            source,
        })?;
        let mut roots = RootCertStore::empty();
        for cert in &ca {
            roots.add(cert.clone())?;
        }
        let ca_fingerprints = ca.iter().map(|cert| fingerprint(cert)).collect();
        // The CA goes along in the chain: a host that enrolls knows nothing but its fingerprint.
        chain.extend(ca);
        Ok(Self {
            roots: Arc::new(roots),
            chain,
            key,
            us,
            ca_fingerprints,
        })
    }

    /// Would a peer that trusts whom we trust accept our own certificate at this time? It may have expired, or be another
    /// CA's.
    pub fn check_own(&self, now: SystemTime) -> Result<(), CredentialError> {
        let check = || {
            let [leaf, others @ ..] = &self.chain[..] else {
                return Err(rustls::Error::NoCertificatesPresented);
            };
            let leaf = ParsedCertificate::try_from(leaf)?;
            let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
            let now = UnixTime::since_unix_epoch(since);
            verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, others, now, algorithms.all)
        };
        check().map_err(CredentialError::Refused)
    }

    pub fn load_store(files: &CredentialFiles) -> Result<CredentialStore, CredentialError> {
        Ok(Arc::new(ArcSwap::from_pointee(Self::load(files)?)))
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let bytes = std::fs::read(path).map_err(|source| CredentialError::Read {
        path: path.to_owned(),
        source,
    })?;
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certs {
        Ok(certs) if !certs.is_empty() => Ok(certs),
        Ok(_) | Err(_) => Err(CredentialError::NotPem { path: path.to_owned() }),
    }
}

/// Writes a secret file: 0600 from its first byte, synced, replaced as a whole.
pub fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temp = path.with_file_name(name);
    // A leftover of an earlier crash, possibly with a looser mode.
    match std::fs::remove_file(&temp) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temp)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temp, path)?;
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => std::fs::File::open(dir)?.sync_all(),
        Some(_) | None => Ok(()),
    }
}
