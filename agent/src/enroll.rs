//! `rollback-agent enroll`: a join token into credentials.
//!
//! The token carries the fingerprint of the fleet's CA, so the first connection is as well authenticated as every later
//! one. The key is made here; the coordinator sees a signing request.

use std::fmt;
use std::time::Duration;

use rollback_proto::identity::{Peer, fingerprint};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::{Connect, connect};
use rollback_proto::v1::EnrollRequest;
use rollback_proto::v1::enrollment_client::EnrollmentClient;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::config::Settings;
use crate::pki::NewKey;

/// Time for the whole call, after the connection stands.
const DEADLINE: Duration = Duration::from_secs(20);
const FINGERPRINT: usize = 64;

/// `rbt1.<name>.<secret>.<fingerprint of the CA>`. Printing it does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    text: String,
    pub name: String,
    pub ca_fingerprint: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// A name may have dots, so the parts are taken from both ends.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let text = text.trim();
        let bad = |why: &str| {
            Problem::new(Code::BadToken, format!("this is not a join token: {why}"))
                .remedy("copy the whole line that `rollbackctl agent token NAME` prints")
        };
        let rest = text
            .strip_prefix("rbt1.")
            .ok_or_else(|| bad("it does not begin with rbt1."))?;
        let parts = rest
            .rsplit_once('.')
            .and_then(|(rest, ca)| rest.rsplit_once('.').map(|(name, secret)| (name, secret, ca)));
        let (name, secret, ca) = parts.ok_or_else(|| bad("it does not have four parts"))?;
        check_name("host", name).map_err(|problem| bad(&problem.message))?;
        let hex = |part: &str| !part.is_empty() && part.len() <= 256 && part.bytes().all(|b| b.is_ascii_hexdigit());
        if !hex(secret) {
            return Err(bad("its secret is damaged"));
        }
        if !hex(ca) || ca.len() != FINGERPRINT {
            return Err(bad("its fingerprint is damaged"));
        }
        Ok(Self {
            text: text.to_owned(),
            name: name.to_owned(),
            ca_fingerprint: ca.to_ascii_lowercase(),
        })
    }
}

/// Redeems the token at one of these coordinators, one after the other, and writes the credentials into the configured
/// directory. Once this returns, `run` can start. A token is spent by the coordinator before the files are written: after a
/// crash in between, a new one is needed.
pub async fn enroll(settings: &Settings, coordinators: &[String], token: &Token) -> Result<Peer, Problem> {
    if token.name != settings.name {
        return Err(Problem::new(
            Code::BadToken,
            format!(
                "the token is for host {}, this configuration is for {}",
                token.name, settings.name
            ),
        )
        .remedy(format!(
            "make one for this host: rollbackctl agent token {}",
            settings.name
        )));
    }
    let mut last = Problem::new(Code::BadRequest, "no coordinator is named");
    for coordinator in coordinators {
        match enroll_at(settings, coordinator, token).await {
            Ok(peer) => return Ok(peer),
            // They share their tokens: the next one would say the same.
            Err(problem) if problem.code == Code::BadToken => return Err(problem),
            Err(problem) => {
                tracing::warn!(coordinator, %problem, "cannot enroll there");
                last = problem;
            }
        }
    }
    Err(last)
}

async fn enroll_at(settings: &Settings, coordinator: &str, token: &Token) -> Result<Peer, Problem> {
    let key = NewKey::generate(&settings.name)?;
    let channel = connect(
        coordinator,
        Connect::Pinned {
            ca_fingerprint: token.ca_fingerprint.clone(),
        },
    )
    .await?;
    let request = EnrollRequest {
        token: token.text.clone(),
        csr_pem: key.csr_pem.clone(),
    };
    let answer = tokio::time::timeout(DEADLINE, EnrollmentClient::new(channel).enroll(request))
        .await
        .map_err(|_| {
            Problem::new(
                Code::HostUnreachable,
                format!("coordinator {coordinator} did not answer in time"),
            )
        })?
        .map_err(|status| Problem::from_status(&status))?
        .into_inner();
    let peer = key.check(&answer.certificate_pem, &settings.name)?;
    // The connection proved the CA; that its certificate came along unharmed is proved here.
    let pinned = CertificateDer::pem_slice_iter(answer.ca_pem.as_bytes())
        .filter_map(Result::ok)
        .any(|der| fingerprint(&der) == token.ca_fingerprint);
    if !pinned {
        return Err(Problem::new(
            Code::BadCredentials,
            "the CA that the coordinator sent is not the one of the token",
        ));
    }
    key.install(&settings.pki, &answer.certificate_pem, &answer.ca_pem)?;
    Ok(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CA: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789ABCDEF";

    #[test]
    fn reads_tokens_also_for_names_with_dots() {
        for name in ["app-1", "app-1.fra.zekka"] {
            let token = Token::parse(&format!(" rbt1.{name}.00ff.{CA}\n")).expect("a token");
            assert_eq!(
                (token.name.as_str(), token.ca_fingerprint.as_str()),
                (name, CA.to_ascii_lowercase().as_str())
            );
            assert!(!format!("{token:?}").contains("00ff"), "the secret is not shown");
        }
    }

    #[test]
    fn refuses_what_is_damaged_without_showing_it() {
        let flood = format!("rbt1.app-1.{}.{CA}", "f".repeat(64 * 1024));
        for bad in [
            "",
            "rbt1",
            "rbt1.app-1",
            "rbt2.app-1.00ff.00",
            &format!("rbt1.app-1.00ff.{}", &CA[1..]),
            &format!("rbt1.app-1.00fg.{CA}"),
            &format!("rbt1.app-1..{CA}"),
            &format!("rbt1...{CA}"),
            &format!("rbt1.--upload-pack=x.00ff.{CA}"),
            &format!("rbt1.../../etc.00ff.{CA}"),
            &flood,
        ] {
            let problem = Token::parse(bad).expect_err("damaged");
            assert_eq!(problem.code, Code::BadToken);
            assert!(
                !problem.message.contains("00ff") && problem.message.len() < 300,
                "{problem}"
            );
        }
    }
}
