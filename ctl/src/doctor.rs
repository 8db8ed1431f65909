//! `rollbackctl doctor`: this machine's way to the coordinators, checked from near to far. Every check that cannot be
//! made because an earlier one failed is left out.

use std::time::SystemTime;

use clap::Args;
use jiff::Timestamp;
use rollback_proto::identity::PeerRole;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::CredentialStore;
use rollback_proto::v1::{
    GetFleetRequest, GetFleetResponse, GetServerInfoRequest, GetServerInfoResponse, ListRollbacksRequest,
    RollbackState, RollbackSummary,
};
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::{self, ALL_HOSTS, QUICK};
use crate::context::Context;
use crate::exit::ExitCode;
use crate::output::checks::{self, Check, Level};
use crate::output::paint::Paint;
use crate::output::text::{clean, count, duration, name_some, stamp, target, timestamp};
use crate::output::{self, json as documents, status, words};
use crate::session::Session;
use crate::version;

/// A certificate that ends within this time deserves a warning.
const EXPIRES_SOON_MS: i64 = 14 * 24 * 3600 * 1000;
/// Components and hosts that a check names before it only counts.
const NAMED: usize = 6;
/// Clocks that differ by more make logs of an incident hard to read, and certificates fail.
const CLOCK_SKEW_MS: i64 = 5_000;

/// Check this machine's way to the coordinators, and say what to mend
///
/// Checks the context file, the key's mode, the certificate, every endpoint, the
/// role that the coordinator sees, the clocks, whether all agents are connected,
/// whether anything does not serve and how the last rollback ended. Changes
/// nothing.
///
/// Exit codes: 0 usable (warnings included), 1 something failed.
///
/// Example:
///   rollbackctl doctor --context ./operators/ana/context.toml
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let found = examine(session).await;
    let failed = found.iter().any(|c| c.level == Level::Fail);
    let exit = if failed { ExitCode::Error } else { ExitCode::Done };
    output::data(&match args.output.output {
        Format::Table => checks::render(&found, Paint::stdout()),
        Format::Json => {
            let found: Vec<_> = found.iter().map(documents::check).collect();
            documents::document(
                "doctor",
                json!({"checks": found, "ok": !failed, "exit_code": exit.number()}),
            )
        }
    })?;
    Ok(exit)
}

async fn examine(session: &Session) -> Vec<Check> {
    let mut found = Vec::new();
    let context = match session.context() {
        Ok(context) => context,
        Err(problem) => return vec![failed("context", &problem)],
    };
    found.push(Check::ok(
        "context",
        format!("{} (fleet {})", context.path.display(), context.name),
    ));
    let credentials = match context.credentials() {
        Ok(credentials) => credentials,
        Err(problem) => {
            found.push(failed("credentials", &problem));
            return found;
        }
    };
    found.push(Check::ok(
        "credentials",
        format!("{} is private to you", context.files.key.display()),
    ));
    found.push(identity(&credentials));
    found.push(certificate(
        "certificate",
        system_time(credentials.load().us.expires),
        Timestamp::now(),
    ));
    let answer = endpoints(&context, &credentials, &mut found).await;
    if let Some(server) = answer {
        found.extend(server_checks(&server, Timestamp::now()));
        found.extend(fleet_checks(session).await);
    }
    found
}

/// What an operator who does not look for trouble should still be told.
async fn fleet_checks(session: &Session) -> Vec<Check> {
    let mut client = match session.client() {
        Ok(client) => client,
        Err(error) => {
            return vec![Check::warn("fleet", format!("{error:#}"), "mend what stands above")];
        }
    };
    let unasked = |name: &str, error: &client::CallError| {
        let problem = &error.problem;
        Check::warn(
            name,
            format!("{}: {}", problem.code, problem.message),
            problem.remedy.clone(),
        )
    };
    let fleet = client.call(ALL_HOSTS, GetFleetRequest {}, |mut fleet, request| async move {
        fleet.get_fleet(request).await
    });
    let serving = match fleet.await {
        Ok(fleet) => serving(&fleet),
        Err(error) => unasked("components", &error),
    };
    let newest = ListRollbacksRequest { limit: 1 };
    let newest = client.call(QUICK, newest, |mut fleet, request| async move {
        fleet.list_rollbacks(request).await
    });
    let last = match newest.await {
        Ok(newest) => last_rollback(newest.rollbacks.first()),
        Err(error) => unasked("last rollback", &error),
    };
    vec![serving, last]
}

fn serving(fleet: &GetFleetResponse) -> Check {
    let down: Vec<String> = status::not_serving(fleet)
        .map(|(host, state)| {
            let host = host.agent.as_ref().map_or("", |a| a.name.as_str());
            let (word, _) = words::health(state.health);
            format!("{} {}", target(host, &state.component), word.to_lowercase())
        })
        .collect();
    if down.is_empty() {
        return Check::ok("components", "none that was observed is stopped, drained or unhealthy");
    }
    let text = format!(
        "{} not serving: {}",
        count(down.len(), "component", "components"),
        name_some(down.iter().map(String::as_str), NAMED)
    );
    Check::warn(
        "components",
        text,
        "look: rollbackctl fleet status. What is stopped or drained is brought up by: rollbackctl fleet rollback --to RELEASE",
    )
}

/// The newest one's ending stands until another one has gone better.
fn last_rollback(last: Option<&RollbackSummary>) -> Check {
    const NAME: &str = "last rollback";
    let Some(last) = last else {
        return Check::ok(NAME, "there has been none");
    };
    let state = RollbackState::try_from(last.state).unwrap_or(RollbackState::Unspecified);
    let (word, _) = words::state_told(state, last.blocked);
    let (id, release) = (clean(&last.id), clean(&last.release));
    let text = format!("{id} to {release}: {word}");
    match state {
        RollbackState::Held => Check::warn(
            NAME,
            text,
            format!(
                "look: rollbackctl rollback show {id}. Mend its cause, then go on: rollbackctl fleet rollback --to {release}"
            ),
        ),
        RollbackState::Partial => Check::warn(
            NAME,
            format!(
                "{text}, not reached on {}",
                name_some(last.failed_hosts.iter().map(String::as_str), NAMED)
            ),
            format!("mend these hosts, then: rollbackctl fleet rollback --to {release}"),
        ),
        RollbackState::Unspecified
        | RollbackState::Running
        | RollbackState::Undoing
        | RollbackState::Verified
        | RollbackState::Undone => Check::ok(NAME, text),
    }
}

fn failed(name: &str, problem: &Problem) -> Check {
    Check::fail(
        name,
        format!("{}: {}", problem.code, problem.message),
        problem.remedy.clone(),
    )
}

fn system_time(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}

/// Only operators' certificates may ask the coordinator anything.
fn identity(credentials: &CredentialStore) -> Check {
    let us = credentials.load().us.identity.clone();
    match us.role {
        PeerRole::Operator => Check::ok("identity", us.to_string()),
        PeerRole::Agent | PeerRole::Coordinator => Check::fail(
            "identity",
            format!("{us} is no operator's certificate"),
            "have one made: rollback-coordinator operator NAME --role … on the coordinator",
        ),
    }
}

fn certificate(name: &str, expires: Option<Timestamp>, now: Timestamp) -> Check {
    let Some(expires) = expires else {
        return Check::warn(
            name,
            "its end is not known",
            "look at it: openssl x509 -enddate -in FILE",
        );
    };
    let left = expires.duration_since(now).as_millis();
    let until = stamp(Some(expires));
    match i64::try_from(left).unwrap_or(i64::MAX) {
        ..=0 => Check::fail(
            name,
            format!("expired at {until}"),
            "have a new one made by the coordinator's operator",
        ),
        left if left < EXPIRES_SOON_MS => {
            let text = format!("expires in {} ({until})", duration(left.unsigned_abs()));
            Check::warn(name, text, "have a new one made before it ends")
        }
        _ => Check::ok(name, format!("valid until {until}")),
    }
}

/// Tries every endpoint, not only the first that works; answers with what the first working one said.
async fn endpoints(
    context: &Context,
    credentials: &CredentialStore,
    found: &mut Vec<Check>,
) -> Option<GetServerInfoResponse> {
    let mut answer = None;
    let mut silent = Vec::new();
    for endpoint in &context.endpoints {
        match ask(endpoint, credentials).await {
            Ok(server) => {
                let leader = if server.leader_id.is_empty() {
                    "unknown"
                } else {
                    &server.leader_id
                };
                let text = format!(
                    "{endpoint} answers over mutual TLS (version {}, leader {})",
                    clean(&server.version),
                    clean(leader)
                );
                found.push(Check::ok("endpoint", text));
                answer.get_or_insert(server);
            }
            Err(problem) => silent.push((endpoint, problem)),
        }
    }
    for (endpoint, problem) in silent {
        let text = format!("{endpoint}: {}: {}", problem.code, problem.message);
        let remedy = if problem.code == Code::HostUnreachable {
            "is rollback-coordinator running there, and is the port open from here?".to_owned()
        } else {
            problem.remedy
        };
        // One that answers is enough to work with.
        found.push(if answer.is_some() {
            Check::warn("endpoint", text, remedy)
        } else {
            Check::fail("endpoint", text, remedy)
        });
    }
    answer
}

async fn ask(endpoint: &str, credentials: &CredentialStore) -> Result<GetServerInfoResponse, Problem> {
    let mut fleet = client::dial(endpoint, credentials).await?;
    match tokio::time::timeout(QUICK, fleet.get_server_info(GetServerInfoRequest {})).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Problem::from_status(&status)),
        Err(_) => Err(Problem::new(
            Code::HostUnreachable,
            "connected, but there was no answer",
        )),
    }
}

fn server_checks(server: &GetServerInfoResponse, now: Timestamp) -> Vec<Check> {
    let mut found = Vec::new();
    found.push(if server.caller.is_empty() {
        Check::warn(
            "role",
            "the coordinator does not say who it sees",
            "update the coordinator",
        )
    } else {
        Check::ok("role", format!("the coordinator sees {}", server.caller))
    });
    if server.version != version::CLIENT {
        let text = format!(
            "this program is {}, the coordinator {}",
            version::CLIENT,
            server.version
        );
        found.push(Check::warn("version", text, "use the same version on both sides"));
    }
    if let Some(there) = timestamp(server.now.as_ref()) {
        found.push(clock(there, now));
    }
    found.push(certificate(
        "server cert",
        timestamp(server.server_certificate_expires.as_ref()),
        now,
    ));
    let (connected, all) = (server.agents_connected, server.agents);
    let text = format!("{connected} of {all} agents connected");
    found.push(match (connected, all) {
        (_, 0) => Check::warn(
            "agents",
            "no agent is enrolled",
            "make a token for a host: rollbackctl agent token NAME",
        ),
        (connected, all) if connected < all => Check::warn("agents", text, "see which: rollbackctl agent list"),
        (_, _) => Check::ok("agents", text),
    });
    found
}

fn clock(there: Timestamp, here: Timestamp) -> Check {
    let ahead = i64::try_from(there.duration_since(here).as_millis()).unwrap_or(i64::MAX);
    if ahead.abs() <= CLOCK_SKEW_MS {
        return Check::ok("clock", "agrees with the coordinator's");
    }
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    let text = format!("the coordinator's is {} {side} ours", duration(ahead.unsigned_abs()));
    Check::warn("clock", text, "synchronize both clocks (chrony, systemd-timesyncd)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::{self, at, proto_at};

    #[test]
    fn levels_follow_from_the_numbers() {
        let now = at(0);
        assert_eq!(certificate("c", Some(at(-1)), now).level, Level::Fail);
        assert_eq!(certificate("c", Some(at(EXPIRES_SOON_MS - 1)), now).level, Level::Warn);
        assert_eq!(certificate("c", Some(at(EXPIRES_SOON_MS + 1)), now).level, Level::Ok);
        assert_eq!(clock(at(5_000), now).level, Level::Ok);
        assert_eq!(clock(at(-5_001), now).level, Level::Warn);
    }

    #[test]
    fn what_a_held_rollback_left_is_a_warning() {
        let down = serving(&samples::fleet_in_maintenance());
        assert_eq!(down.level, Level::Warn);
        assert_eq!(
            down.message,
            "2 components not serving: app-1/api stopped, proxy-1/proxy drained"
        );
        let of = |state| last_rollback(samples::details(state, false).summary.as_ref());
        for state in [RollbackState::Held, RollbackState::Partial] {
            let check = of(state);
            assert_eq!(check.level, Level::Warn, "{check:?}");
            assert!(
                check.remedy.contains("rollbackctl fleet rollback --to v2.9.0"),
                "{check:?}"
            );
        }
        assert_eq!(of(RollbackState::Verified).level, Level::Ok);
        assert_eq!(last_rollback(None).level, Level::Ok);
    }

    #[test]
    fn a_missing_agent_is_a_warning() {
        let server = GetServerInfoResponse {
            version: version::CLIENT.to_owned(),
            caller: "spiffe://rollback.local/operator/ana (admin)".to_owned(),
            now: Some(proto_at(0)),
            agents: 4,
            agents_connected: 3,
            server_certificate_expires: Some(proto_at(EXPIRES_SOON_MS * 2)),
            ..GetServerInfoResponse::default()
        };
        let warned: Vec<String> = server_checks(&server, at(0))
            .into_iter()
            .filter(|c| c.level != Level::Ok)
            .map(|c| c.message)
            .collect();
        assert_eq!(warned, ["3 of 4 agents connected"]);
    }
}
