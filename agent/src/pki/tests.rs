//! Credentials on disk: what is taken, and what a crash leaves.

use rcgen::{BasicConstraints, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, SanType};
use rollback_proto::tls::CredentialStore;

use super::*;

/// Certifies as a coordinator does.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub ca_pem: String,
}

impl Authority {
    pub fn new() -> Self {
        rollback_proto::tls::install_crypto();
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&key).expect("sign").pem();
        Self {
            issuer: Issuer::new(params, key),
            ca_pem,
        }
    }

    /// Credentials of a peer, in a directory of its own.
    pub fn credentials(&self, dir: &Path, uri: &str) -> CredentialStore {
        let key = NewKey::generate("peer").expect("key");
        key.install(dir, &self.certify(&key.csr_pem, uri), &self.ca_pem)
            .expect("install");
        Credentials::load_store(&files(dir)).expect("credentials")
    }

    pub fn certify(&self, csr_pem: &str, uri: &str) -> String {
        self.certify_between(csr_pem, uri, -1, 72)
    }

    /// Valid from and until, in hours from now.
    pub fn certify_between(&self, csr_pem: &str, uri: &str, from: i64, until: i64) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).expect("csr");
        request.params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("uri"))];
        request.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let instant = |hours: i64| {
            let now = jiff::Timestamp::now().as_second();
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs((now + hours * 3600).cast_unsigned())
        };
        request.params.not_before = instant(from);
        request.params.not_after = instant(until);
        request.signed_by(&self.issuer).expect("sign").pem()
    }
}

const URI: &str = "spiffe://rollback.local/agent/app-1";

#[test]
fn a_certificate_is_taken_only_for_our_key_and_our_name() {
    let authority = Authority::new();
    let ours = NewKey::generate("app-1").expect("key");
    let theirs = NewKey::generate("app-1").expect("key");
    let good = authority.certify(&ours.csr_pem, URI);
    assert_eq!(ours.check(&good, "app-1").expect("ours").identity.to_string(), URI);
    for (certificate, name) in [
        (good.clone(), "app-2"),
        (authority.certify(&theirs.csr_pem, URI), "app-1"),
        (
            authority.certify(&ours.csr_pem, "spiffe://rollback.local/operator/app-1"),
            "app-1",
        ),
        (authority.certify(&ours.csr_pem, "https://rollback.local/"), "app-1"),
        ("not PEM".to_owned(), "app-1"),
    ] {
        assert_eq!(
            ours.check(&certificate, name).expect_err("refused").code,
            Code::BadCredentials
        );
    }
}

/// Every state that a crash inside a replacement can leave, made by hand, and then the credentials that are read.
#[test]
fn a_replacement_that_was_cut_off_leaves_a_pair_that_works() {
    let authority = Authority::new();
    let (old, new) = (
        NewKey::generate("app-1").expect("key"),
        NewKey::generate("app-1").expect("key"),
    );
    let old_certificate = authority.certify(&old.csr_pem, URI);
    let new_certificate = authority.certify(&new.csr_pem, URI);
    let serial = |pem: &str| {
        Peer::from_der(&first_certificate(pem.as_bytes()).expect("PEM"))
            .expect("peer")
            .serial
    };
    let crashes: [(&str, &[&str], &str); 5] = [
        ("before anything", &[], &old_certificate),
        (
            "after writing the certificate",
            &["write certificate"],
            &old_certificate,
        ),
        (
            "after writing the key",
            &["write certificate", "write key"],
            &new_certificate,
        ),
        (
            "after renaming the key",
            &["write certificate", "write key", "rename key"],
            &new_certificate,
        ),
        (
            "after renaming the certificate",
            &["write certificate", "write key", "rename key", "rename certificate"],
            &new_certificate,
        ),
    ];
    for (crash, done, expected) in crashes {
        let place = tempfile::tempdir().expect("temporary directory");
        let pki = place.path();
        old.install(pki, &old_certificate, &authority.ca_pem).expect("install");
        let files = files(pki);
        for action in done {
            match *action {
                "write certificate" => write_private(&next(&files.certificate), new_certificate.as_bytes()),
                "write key" => write_private(&next(&files.key), new.key.serialize_pem().as_bytes()),
                "rename key" => std::fs::rename(next(&files.key), &files.key),
                "rename certificate" => std::fs::rename(next(&files.certificate), &files.certificate),
                other => panic!("no action {other}"),
            }
            .expect(action);
        }
        repair(pki).expect("repair");
        let credentials = Credentials::load(&files).expect("credentials");
        assert_eq!(credentials.us.serial, serial(expected), "{crash}");
        assert!(belong_together(&files.certificate, &files.key), "{crash}");
        assert_eq!(
            std::fs::read_dir(pki).expect("list").count(),
            3,
            "{crash}: nothing is left behind"
        );
    }
}
