//! The certificate's life: renewed by the coordinator at half of it, and read again when somebody else replaced the
//! files. A person is told when a quarter is left and nothing has helped.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use rollback_proto::kill_point;
use rollback_proto::problem::{Code, Hint, Problem};
use rollback_proto::tls::Credentials;
use rollback_proto::v1::{RenewRequest, RenewResponse};
use tokio_util::sync::CancellationToken;

use super::{Backoff, Membership, bounded};
use crate::pki::{self, NewKey};

/// How often the clock and the files are looked at. The wall clock may jump, so no sleep is longer.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Coordinators outside of the configured list that one attempt asks.
const HINTS: usize = 4;

/// Runs until `stop` is cancelled.
pub async fn renew_in_time(member: &Membership, stop: CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
    loop {
        let pause = match step(member).await {
            Ok(pause) => {
                backoff.reset();
                pause
            }
            Err(problem) => {
                if nearly_over(member) {
                    tracing::error!(%problem, "the certificate ends soon and cannot be renewed");
                } else {
                    tracing::warn!(%problem, "renew the certificate; trying again");
                }
                backoff.pause()
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Does what is due now. How long nothing will be.
async fn step(member: &Membership) -> Result<Duration, Problem> {
    take_replaced_files(member)?;
    let (from, until) = validity(member)?;
    let half = from + until.duration_since(from).unwrap_or_default() / 2;
    match half.duration_since(SystemTime::now()) {
        Ok(left) if !left.is_zero() => Ok(left.min(LOOK_EVERY)),
        Ok(_) | Err(_) => {
            renew(member).await?;
            Ok(LOOK_EVERY)
        }
    }
}

fn validity(member: &Membership) -> Result<(SystemTime, SystemTime), Problem> {
    pki::validity(&member.pki).ok_or_else(|| {
        Problem::new(
            Code::BadCredentials,
            format!("no certificate can be read in {}", member.pki.display()),
        )
    })
}

fn nearly_over(member: &Membership) -> bool {
    let Ok((from, until)) = validity(member) else {
        return true;
    };
    let quarter = until.duration_since(from).unwrap_or_default() / 4;
    until.duration_since(SystemTime::now()).unwrap_or_default() < quarter
}

/// Another PKI may have put new files there.
fn take_replaced_files(member: &Membership) -> Result<(), Problem> {
    let found = pki::load(&member.pki, &member.name)?;
    if found.us.serial == member.credentials.load().us.serial {
        return Ok(());
    }
    tracing::info!(serial = found.us.serial, "took new credentials from the files");
    put_in_force(member, found);
    Ok(())
}

/// The next handshake uses them; connections of ours that were made with the old ones are given up.
fn put_in_force(member: &Membership, credentials: Credentials) {
    member.credentials.store(std::sync::Arc::new(credentials));
    member.replaced.send_modify(|count| *count += 1);
}

/// Asks the coordinators, one after the other, until one has issued a certificate: any that can will do. One that sends us
/// to the leader is followed. Once this returns, the new certificate is on the disk and in force.
async fn renew(member: &Membership) -> Result<(), Problem> {
    let key = NewKey::generate(&member.name)?;
    let mut last = Problem::new(Code::HostUnreachable, "no coordinator is configured");
    let mut left: VecDeque<String> = member.coordinators.iter().cloned().collect();
    let mut asked: Vec<String> = Vec::new();
    while let Some(coordinator) = left.pop_front() {
        if asked.contains(&coordinator) || asked.len() >= member.coordinators.len() + HINTS {
            continue;
        }
        match ask(member, &key, &coordinator).await {
            Ok(answer) => {
                kill_point::pass(|| "registration.renew.before".to_owned());
                key.install(&member.pki, &answer.certificate_pem, &answer.ca_pem)?;
                kill_point::pass(|| "registration.renew.after".to_owned());
                let credentials = pki::load(&member.pki, &member.name)?;
                tracing::info!(coordinator, serial = credentials.us.serial, "renewed the certificate");
                put_in_force(member, credentials);
                return Ok(());
            }
            Err(problem) => {
                tracing::debug!(coordinator, %problem, "did not renew the certificate");
                if let Some(Hint::Leader(leader)) = &problem.hint {
                    left.push_front(leader.clone());
                }
                last = problem;
            }
        }
        asked.push(coordinator);
    }
    Err(last)
}

/// A certificate that is for this key and for us.
async fn ask(member: &Membership, key: &NewKey, coordinator: &str) -> Result<RenewResponse, Problem> {
    let mut client = member.dial(coordinator).await?;
    let csr_pem = key.csr_pem.clone();
    let answer = bounded(client.renew(RenewRequest { csr_pem })).await?;
    let peer = key.check(&answer.certificate_pem, &member.name)?;
    let ours = &member.credentials.load().us.identity;
    if &peer.identity != ours {
        return Err(Problem::new(
            Code::BadCredentials,
            format!(
                "the certificate that {coordinator} renewed is for {}, we are {ours}",
                peer.identity
            ),
        ));
    }
    Ok(answer)
}
