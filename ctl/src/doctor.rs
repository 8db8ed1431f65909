//! `rollbackctl doctor`: this machine's way to the coordinators, checked from near to far. Every check that cannot be
//! made because an earlier one failed is left out.

mod replicas;

use std::time::SystemTime;

use clap::Args;
use jiff::Timestamp;
use rollback_proto::identity::PeerRole;
use rollback_proto::problem::Problem;
use rollback_proto::tls::CredentialStore;
use rollback_proto::v1::{
    GetFleetRequest, GetFleetResponse, GetServerInfoResponse, ListRollbacksRequest, RollbackState, RollbackSummary,
};
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::{self, ALL_HOSTS, QUICK};
use crate::exit::ExitCode;
use crate::output::checks::{self, Check, Level};
use crate::output::paint::Paint;
use crate::output::text::{clean, count, duration, name_some, stamp, target, timestamp};
use crate::output::{self, json as documents, status, words};
use crate::session::Session;
use crate::version;

use replicas::{Answer, Replica};

/// A certificate that ends within this time deserves a warning.
const EXPIRES_SOON_MS: i64 = 14 * 24 * 3600 * 1000;
/// Components and hosts that a check names before it only counts.
const NAMED: usize = 6;
/// Clocks that differ by more make logs of an incident hard to read, and certificates fail.
const CLOCK_SKEW_MS: i64 = 5_000;

/// Check this machine's way to the coordinators, and say what to mend
///
/// Checks the context file, the key's mode, the certificate, every endpoint and
/// what stands there (who leads, who follows, whether they agree), the role that
/// the coordinator sees, the clocks, whether all agents are connected, whether
/// anything does not serve and how the last rollback ended. Changes nothing.
///
/// A replica that does not answer is a warning as long as another one leads.
///
/// Exit codes: 0 usable (warnings included), 1 something failed.
///
/// Examples:
///   rollbackctl doctor --context ./operators/ana/context.toml
///   rollbackctl doctor -o json | jq -r '.replicas[] | "\(.endpoint) \(.server.standing // .problem.message)"'
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut replicas = Vec::new();
    let found = examine(session, &mut replicas).await;
    let failed = found.iter().any(|c| c.level == Level::Fail);
    let exit = if failed { ExitCode::Error } else { ExitCode::Done };
    output::data(&match args.output.output {
        Format::Table => checks::render(&found, Paint::stdout()),
        Format::Json => {
            let found: Vec<_> = found.iter().map(documents::check).collect();
            let replicas: Vec<_> = replicas.iter().map(Replica::document).collect();
            documents::document(
                "doctor",
                json!({"checks": found, "replicas": replicas, "ok": !failed, "exit_code": exit.number()}),
            )
        }
    })?;
    Ok(exit)
}

async fn examine(session: &Session, replicas: &mut Vec<Replica>) -> Vec<Check> {
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
    *replicas = replicas::ask_all(&context, &credentials).await;
    found.extend(replicas::checks(replicas, &context));
    let answers = replicas::leader_first(replicas);
    if let Some(first) = answers.first() {
        found.push(role(&first.info));
        found.extend(of_each(&answers, |a| version(&a.info)));
        found.extend(of_each(&answers, clock));
        found.extend(of_each(&answers, |a| {
            certificate(
                "server cert",
                timestamp(a.info.server_certificate_expires.as_ref()),
                a.at,
            )
        }));
        found.push(agents(&first.info));
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
            "have one made: rollback-coordinator operator NAME --out DIR, where the coordinator's issuer is",
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

/// One check of every replica. What is well everywhere is said once, as the first one's.
fn of_each(answers: &[&Answer], check: impl Fn(&Answer) -> Check) -> Vec<Check> {
    let checked: Vec<(String, Check)> = answers.iter().map(|a| (a.name(), check(a))).collect();
    let mut found: Vec<Check> = checked
        .iter()
        .filter(|(_, check)| check.level != Level::Ok)
        .map(|(name, check)| match answers.len() {
            1 => check.clone(),
            _ => Check {
                message: format!("{name}: {}", check.message),
                ..check.clone()
            },
        })
        .collect();
    if found.is_empty() {
        found.extend(checked.into_iter().next().map(|(_, check)| check));
    }
    found
}

fn role(server: &GetServerInfoResponse) -> Check {
    if server.caller.is_empty() {
        return Check::warn(
            "role",
            "the coordinator does not say who it sees",
            "update the coordinator",
        );
    }
    Check::ok("role", format!("the coordinator sees {}", server.caller))
}

fn version(server: &GetServerInfoResponse) -> Check {
    if server.version == version::CLIENT {
        return Check::ok("version", format!("{} on both sides", version::CLIENT));
    }
    let text = format!(
        "this program is {}, the coordinator {}",
        version::CLIENT,
        clean(&server.version)
    );
    Check::warn("version", text, "use the same version on both sides")
}

fn clock(answer: &Answer) -> Check {
    let Some(there) = timestamp(answer.info.now.as_ref()) else {
        return Check::warn(
            "clock",
            "the coordinator does not say what time it is",
            "update the coordinator",
        );
    };
    let ahead = i64::try_from(there.duration_since(answer.at).as_millis()).unwrap_or(i64::MAX);
    if ahead.abs() <= CLOCK_SKEW_MS {
        return Check::ok("clock", "agrees with the coordinator's");
    }
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    let text = format!("the coordinator's is {} {side} ours", duration(ahead.unsigned_abs()));
    Check::warn("clock", text, "synchronize both clocks (chrony, systemd-timesyncd)")
}

fn agents(server: &GetServerInfoResponse) -> Check {
    let (connected, all) = (server.agents_connected, server.agents);
    let text = format!("{connected} of {all} agents connected");
    match (connected, all) {
        (_, 0) => Check::warn(
            "agents",
            "no agent is enrolled",
            "make a token for a host: rollbackctl agent token NAME",
        ),
        (connected, all) if connected < all => Check::warn("agents", text, "see which: rollbackctl agent list"),
        (_, _) => Check::ok("agents", text),
    }
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
        assert_eq!(clock(&answer("coord-1", 5_000)).level, Level::Ok);
        assert_eq!(clock(&answer("coord-1", -5_001)).level, Level::Warn);
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

    /// A replica whose clock is so many milliseconds ahead of ours.
    fn answer(name: &str, ahead: i64) -> Answer {
        let info = GetServerInfoResponse {
            name: name.to_owned(),
            now: Some(proto_at(ahead)),
            ..GetServerInfoResponse::default()
        };
        Answer { info, at: at(0) }
    }

    #[test]
    fn what_is_wrong_with_one_of_several_is_said_with_its_name() {
        let (right, wrong) = (answer("coord-1", 0), answer("coord-2", 60_000));
        let told =
            |answers: &[&Answer]| -> Vec<String> { of_each(answers, clock).into_iter().map(|c| c.message).collect() };
        assert_eq!(told(&[&right, &right]), ["agrees with the coordinator's"]);
        let ahead = "the coordinator's is 1 min 00 s ahead of ours";
        assert_eq!(told(&[&right, &wrong]), [format!("coord-2: {ahead}")]);
        assert_eq!(told(&[&wrong]), [ahead]);
    }

    #[test]
    fn a_missing_agent_is_a_warning() {
        for (all, connected, level) in [(0, 0, Level::Warn), (4, 3, Level::Warn), (4, 4, Level::Ok)] {
            let server = GetServerInfoResponse {
                agents: all,
                agents_connected: connected,
                ..GetServerInfoResponse::default()
            };
            assert_eq!(agents(&server).level, level, "{connected} of {all}");
        }
    }
}
