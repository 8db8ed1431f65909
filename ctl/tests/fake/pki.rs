//! A CA, coordinators' certificates and an operator's, in files.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rollback_proto::tls::{CredentialFiles, write_private};

/// A CA whose files are in one directory.
pub struct Authority {
    ca: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    /// Writes `ca.pem` and `ana.{pem,key}` (operator).
    pub fn create(directory: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("CA");
        std::fs::write(directory.join("ca.pem"), ca.pem()).expect("write ca.pem");
        issue(directory, &ca, "ana", "operator/ana");
        Self {
            ca,
            directory: directory.to_owned(),
        }
    }

    /// Writes `NAME.{pem,key}`.
    pub fn coordinator(&self, name: &str) -> CredentialFiles {
        issue(&self.directory, &self.ca, name, &format!("coordinator/{name}"))
    }
}

fn issue(directory: &Path, ca: &CertifiedIssuer<'_, KeyPair>, file: &str, identity: &str) -> CredentialFiles {
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
    let uri = format!("spiffe://rollback.local/{identity}");
    params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().expect("key");
    let certificate = params.signed_by(&key, ca).expect("certificate");
    let files = CredentialFiles {
        ca: directory.join("ca.pem"),
        certificate: directory.join(format!("{file}.pem")),
        key: directory.join(format!("{file}.key")),
    };
    std::fs::write(&files.certificate, certificate.pem()).expect("write certificate");
    write_private(&files.key, key.serialize_pem().as_bytes()).expect("write key");
    files
}
