//! `rollback-coordinator check-config`: is everything there that a start needs? Looks, and changes nothing.

use std::path::Path;
use std::time::SystemTime;

use anyhow::Context as _;
use rollback_proto::tls::Credentials;

use crate::config::Config;
use crate::issuer::CertificateAuthority;
use crate::store::postgres::look::look;

/// What was found, for people. The first thing that is wrong is the error.
pub async fn check(path: &Path) -> anyhow::Result<String> {
    let settings = Config::load(path)?;
    let credentials = Credentials::load(&settings.tls).context("credentials")?;
    credentials.check_own(SystemTime::now()).context("credentials")?;
    let identity = &credentials.us.identity;
    if let Some(issuer) = &settings.issuer {
        CertificateAuthority::load(&settings.tls.ca, &issuer.key, &identity.trust_domain)?;
    }
    anyhow::ensure!(
        identity.name == settings.name,
        "name is {:?}, and the certificate is {identity}: agents remember a leader by its name, so these are to be the same",
        settings.name
    );
    let store = match &settings.store.url {
        Some(_) => {
            let found = look(&settings.store).await.context("the store")?;
            match found.schema {
                Some(version) if version == found.newest => format!("{} answers, with schema {version}", found.place),
                Some(version) => format!(
                    "{} answers, with schema {version}; the first coordinator of this version that starts brings it to {}",
                    found.place, found.newest
                ),
                None => format!(
                    "{} answers, and is empty; the first coordinator that starts makes the tables",
                    found.place
                ),
            }
        }
        None => {
            let (state, database) = (settings.state.display(), settings.database());
            anyhow::ensure!(settings.state.is_dir(), "state directory {state} is not there");
            let so_far = if database.exists() {
                ""
            } else {
                ", made at the first start"
            };
            format!("SQLite in {}{so_far}", database.display())
        }
    };
    Ok(format!("{} is good: {identity}\nstore: {store}\n", path.display()))
}
