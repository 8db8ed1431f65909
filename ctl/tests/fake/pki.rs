//! A CA, a coordinator's certificate and an operator's, in files.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rollback_proto::tls::{CredentialFiles, write_private};

/// Writes `ca.pem`, `ana.{pem,key}` (operator) and `server.{pem,key}`; answers with the server's.
pub fn make(directory: &Path) -> CredentialFiles {
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("CA");
    std::fs::write(directory.join("ca.pem"), ca.pem()).expect("write ca.pem");
    issue(directory, &ca, "ana", "operator/ana");
    issue(directory, &ca, "server", "coordinator/coord-1")
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
