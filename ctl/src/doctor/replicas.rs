//! The coordinators, one by one: who answers, who leads, and whether they agree about that.
//!
//! Every endpoint of the context is asked, at the same time. When none of them leads, those that they name as the leader's are
//! asked, too: that is where every other verb would go.

mod names;

use futures::future::join_all;
use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::CredentialStore;
use rollback_proto::v1::get_server_info_response::Standing;
use rollback_proto::v1::{GetServerInfoRequest, GetServerInfoResponse};

use serde_json::{Value, json};

use crate::client::{self, QUICK};
use crate::context::Context;
use crate::output::checks::Check;
use crate::output::json as documents;
use crate::output::text::{clean, count, leader_name};

/// What was found at one endpoint.
#[derive(Clone, Debug)]
pub struct Replica {
    pub endpoint: String,
    /// The context has it. Otherwise another replica named it as the leader's.
    pub listed: bool,
    pub answer: Result<Answer, Problem>,
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub info: GetServerInfoResponse,
    /// By our clock. Silent replicas are waited for, and must not make the clocks of the others look wrong.
    pub at: Timestamp,
}

impl Answer {
    fn leads(&self) -> bool {
        match self.info.standing() {
            Standing::Leading => true,
            Standing::Following => false,
            // A version from before there were several: it leads whenever it answers.
            Standing::Unspecified => !self.info.leader_id.is_empty(),
        }
    }

    /// What people call it.
    pub fn name(&self) -> String {
        match self.info.name.as_str() {
            "" => leader_name(&self.info.leader_id),
            name => clean(name),
        }
    }

    /// Of one that does not lead: "follows coord-1, epoch 7".
    fn follows(&self) -> String {
        match leader_name(&self.info.leader_id) {
            none if none.is_empty() => "knows of no leader".to_owned(),
            // It was started again, and its own lease from before has not run out yet.
            us if us == self.name() => format!("follows an earlier start of itself, epoch {}", self.info.epoch),
            leader => format!("follows {leader}, epoch {}", self.info.epoch),
        }
    }
}

impl Replica {
    /// For programs: `server` or `problem` is there.
    pub fn document(&self) -> Value {
        let answer = self.answer.as_ref();
        json!({
            "endpoint": self.endpoint,
            "listed": self.listed,
            "server": answer.ok().map(|a| documents::server(&a.info)),
            "problem": answer.err().map(|p| json!({"code": p.code.id(), "message": p.message, "remedy": p.remedy})),
        })
    }
}

pub async fn ask_all(context: &Context, credentials: &CredentialStore) -> Vec<Replica> {
    let ask_each = |endpoints: Vec<String>, listed: bool| {
        join_all(endpoints.into_iter().map(move |endpoint| async move {
            let answer = ask(&endpoint, credentials).await;
            Replica {
                endpoint,
                listed,
                answer,
            }
        }))
    };
    let mut replicas = ask_each(context.endpoints.clone(), true).await;
    if leading(&replicas).is_empty() {
        let mut named: Vec<String> = answers(&replicas)
            .map(|(_, a)| a.info.leader_endpoint.clone())
            .filter(|e| !e.is_empty() && !context.endpoints.contains(e))
            .collect();
        named.sort();
        named.dedup();
        replicas.extend(ask_each(named, false).await);
    }
    replicas
}

async fn ask(endpoint: &str, credentials: &CredentialStore) -> Result<Answer, Problem> {
    let mut fleet = client::dial(endpoint, credentials).await?;
    match tokio::time::timeout(QUICK, fleet.get_server_info(GetServerInfoRequest {})).await {
        Ok(Ok(response)) => Ok(Answer {
            info: response.into_inner(),
            at: Timestamp::now(),
        }),
        Ok(Err(status)) => Err(Problem::from_status(&status)),
        Err(_) => Err(Problem::new(
            Code::HostUnreachable,
            format!("connected to {endpoint}, but there was no answer"),
        )),
    }
}

fn answers(replicas: &[Replica]) -> impl Iterator<Item = (&Replica, &Answer)> {
    replicas.iter().filter_map(|r| r.answer.as_ref().ok().map(|a| (r, a)))
}

/// Those that say that they lead. One that answers at two endpoints is one.
fn leading(replicas: &[Replica]) -> Vec<(&Replica, &Answer)> {
    let mut leading: Vec<(&Replica, &Answer)> = Vec::new();
    for (replica, answer) in answers(replicas).filter(|(_, a)| a.leads()) {
        if !leading
            .iter()
            .any(|(_, other)| other.info.leader_id == answer.info.leader_id)
        {
            leading.push((replica, answer));
        }
    }
    leading
}

/// Those that answered, the leader first: what it says of the fleet is the newest.
pub fn leader_first(replicas: &[Replica]) -> Vec<&Answer> {
    let mut found: Vec<&Answer> = answers(replicas).map(|(_, a)| a).collect();
    found.sort_by_key(|a| !a.leads());
    found
}

/// What there is to say about the endpoints and about who leads.
pub fn checks(replicas: &[Replica], context: &Context) -> Vec<Check> {
    let led = !leading(replicas).is_empty();
    let mut found: Vec<Check> = replicas.iter().map(|r| endpoint(r, led)).collect();
    found.extend(answers(replicas).filter_map(|(_, a)| note(a)));
    if answers(replicas).next().is_some() {
        found.extend(leadership(replicas, context));
    }
    found.extend(names::doubled(replicas));
    found.extend(names::elsewhere(replicas));
    found
}

/// `led`: one that leads answers, which is enough to work with.
fn endpoint(replica: &Replica, led: bool) -> Check {
    const NAME: &str = "endpoint";
    let endpoint = clean(&replica.endpoint);
    match &replica.answer {
        Ok(answer) => {
            let info = &answer.info;
            let name = answer.name();
            let stands = if answer.leads() {
                format!("leads with epoch {}", info.epoch)
            } else {
                answer.follows()
            };
            let version = clean(&info.version);
            Check::ok(NAME, format!("{endpoint}: {name} {stands} (version {version})"))
        }
        Err(problem) => {
            let text = format!("{endpoint}: {}: {}", problem.code, problem.message);
            let remedy = remedy(problem);
            if led {
                Check::warn(NAME, text, remedy)
            } else {
                Check::fail(NAME, text, remedy)
            }
        }
    }
}

/// A code's own remedy is written for agents, too: here it is known that a coordinator was wanted.
fn remedy(problem: &Problem) -> String {
    // rustls' word for bytes that are no TLS at all.
    let is_no_tls = problem.message.contains("InvalidContentType");
    if problem.code == Code::HostUnreachable {
        "is rollback-coordinator running there, and is the port open from here?".to_owned()
    } else if problem.code == Code::WrongPeer && is_no_tls {
        "what answers there speaks no TLS; this may be the http port: list the port of its `listen`, 7443 by default"
            .to_owned()
    } else if problem.code == Code::WrongPeer {
        "its certificate is of another CA or has expired: make its credentials again with rollback-coordinator replica"
            .to_owned()
    } else {
        problem.remedy.clone()
    }
}

/// A replica's own words on what is wrong with it.
fn note(answer: &Answer) -> Option<Check> {
    let text = clean(&answer.info.note);
    (!text.is_empty()).then(|| {
        let name = answer.name();
        Check::warn(
            "replica",
            format!("{name}: {text}"),
            format!("look at {name}'s log, and at its way to the store"),
        )
    })
}

fn leadership(replicas: &[Replica], context: &Context) -> Vec<Check> {
    const NAME: &str = "leader";
    match leading(replicas)[..] {
        [] => vec![nobody_leads(NAME, replicas)],
        [(replica, leader)] => {
            let mut followers: Vec<&Answer> = answers(replicas).map(|(_, a)| a).filter(|a| !a.leads()).collect();
            // One that answers at two endpoints is one.
            followers.sort_by_key(|a| a.name());
            followers.dedup_by_key(|a| a.name());
            let mut found = vec![one_leads(NAME, replica, leader, followers.len(), context)];
            found.extend(followers.into_iter().filter_map(|f| disagrees(NAME, f, leader)));
            found
        }
        ref several => vec![several_lead(NAME, several)],
    }
}

fn one_leads(name: &str, replica: &Replica, leader: &Answer, followers: usize, context: &Context) -> Check {
    let (who, endpoint) = (leader.name(), clean(&replica.endpoint));
    if !replica.listed {
        return Check::warn(
            name,
            format!("{who} leads at {endpoint}, which the context does not list"),
            format!(
                "add {endpoint:?} to endpoints in {}: without it, nothing can be done while the listed ones are away",
                context.path.display()
            ),
        );
    }
    Check::ok(
        name,
        match followers {
            0 => format!("{who} leads"),
            n => format!("{who} leads, {} in reserve", count(n, "replica", "replicas")),
        },
    )
}

/// A follower that has another leader in mind than the one that leads.
fn disagrees(name: &str, follower: &Answer, leader: &Answer) -> Option<Check> {
    let (theirs, real) = (&follower.info, &leader.info);
    if (&theirs.leader_id, theirs.epoch) == (&real.leader_id, real.epoch) {
        return None;
    }
    let (who, leads) = (follower.name(), leader.name());
    Some(Check::warn(
        name,
        format!(
            "{who} {}, but {leads} leads with epoch {}",
            follower.follows(),
            real.epoch
        ),
        format!(
            "after a change of the leader this passes in seconds: ask again. If it stays so, look at {who}'s way to the store, and \
             whether it has the same [store] as {leads}"
        ),
    ))
}

fn nobody_leads(name: &str, replicas: &[Replica]) -> Check {
    let named = answers(replicas).find(|(_, a)| !a.info.leader_id.is_empty());
    match named {
        Some((_, follower)) => {
            let (who, leader) = (follower.name(), leader_name(&follower.info.leader_id));
            let at = match clean(&follower.info.leader_endpoint).as_str() {
                "" => String::new(),
                endpoint => format!(" at {endpoint}"),
            };
            Check::fail(
                name,
                format!("{who} follows {leader}{at}, which does not answer here as a leader"),
                "if it is down, another one leads in some seconds: ask again. If not, is that endpoint reachable from here?",
            )
        }
        None => Check::fail(
            name,
            "no coordinator leads: nothing can be started, and what runs stands still",
            "an election takes some seconds: ask again. If it stays so, look at the store: a coordinator leads only while it can \
             write there",
        ),
    }
}

fn several_lead(name: &str, leading: &[(&Replica, &Answer)]) -> Check {
    let each: Vec<String> = leading
        .iter()
        .map(|(replica, a)| format!("{} ({}, epoch {})", a.name(), clean(&replica.endpoint), a.info.epoch))
        .collect();
    Check::fail(
        name,
        format!("{} say that they lead: {}", leading.len(), each.join(", ")),
        "ask again: one that was just replaced notices within seconds, and neither store nor agents obey it. If it stays so, they do \
         not share one store: compare [store] in their configurations, and stop the one that is wrong",
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rollback_proto::tls::CredentialFiles;

    use super::*;
    use crate::output::checks::render;
    use crate::output::paint::Paint;
    use crate::output::samples::{at, golden, proto_at};

    fn replica(name: &str, standing: Standing, leader: &str, epoch: u64) -> Replica {
        let endpoint = |name: &str| format!("{}:7443", leader_name(name));
        let info = GetServerInfoResponse {
            version: "0.1.0".to_owned(),
            name: name.to_owned(),
            standing: standing.into(),
            leader_id: leader.to_owned(),
            leader_endpoint: if standing == Standing::Following && !leader.is_empty() {
                endpoint(leader)
            } else {
                String::new()
            },
            epoch,
            ..GetServerInfoResponse::default()
        };
        Replica {
            endpoint: endpoint(name),
            listed: true,
            answer: Ok(Answer { info, at: at(0) }),
        }
    }

    fn silent(name: &str) -> Replica {
        Replica {
            endpoint: format!("{name}:7443"),
            listed: true,
            answer: Err(Problem::new(
                Code::HostUnreachable,
                format!("connect to {name}:7443: connection refused"),
            )),
        }
    }

    fn refusing(name: &str, refusal: &str) -> Replica {
        Replica {
            answer: Err(Problem::new(
                Code::WrongPeer,
                format!("connect to {name}:7443: {refusal}"),
            )),
            ..silent(name)
        }
    }

    fn at_endpoint(endpoint: &str, replica: Replica) -> Replica {
        Replica {
            endpoint: endpoint.to_owned(),
            ..replica
        }
    }

    /// With a certificate that ends so many seconds after the start.
    fn certified(seconds: i64, mut replica: Replica) -> Replica {
        if let Ok(answer) = &mut replica.answer {
            answer.info.server_certificate_expires = Some(proto_at(seconds * 1_000));
        }
        replica
    }

    fn noting(mut replica: Replica, note: &str) -> Replica {
        if let Ok(answer) = &mut replica.answer {
            note.clone_into(&mut answer.info.note);
        }
        replica
    }

    #[test]
    fn every_picture_has_its_words() {
        use Standing::{Following, Leading, Unspecified};
        let (one, two) = ("coord-1/3f2a", "coord-2/91bc");
        let unlisted = Replica {
            listed: false,
            ..replica("coord-1", Leading, one, 7)
        };
        let pictures = [
            (
                "all is well",
                vec![
                    replica("coord-1", Leading, one, 7),
                    replica("coord-2", Following, one, 7),
                    replica("coord-3", Following, one, 7),
                ],
            ),
            ("one that is alone", vec![replica("coord-1", Leading, one, 7)]),
            ("a version from before", vec![replica("", Unspecified, "coord-1", 7)]),
            (
                "one at two endpoints, and one away",
                vec![
                    replica("coord-1", Leading, one, 7),
                    replica("coord-1", Leading, one, 7),
                    silent("coord-3"),
                ],
            ),
            (
                "a leader that the context does not list",
                vec![replica("coord-2", Following, one, 7), unlisted],
            ),
            (
                "two lead",
                vec![replica("coord-1", Leading, one, 7), replica("coord-2", Leading, two, 8)],
            ),
            (
                "an election, and one away",
                vec![replica("coord-2", Following, "", 0), silent("coord-3")],
            ),
            (
                "the leader is gone",
                vec![silent("coord-1"), replica("coord-2", Following, one, 7)],
            ),
            (
                "they disagree",
                vec![
                    replica("coord-2", Leading, two, 8),
                    replica("coord-1", Following, one, 7),
                    noting(
                        replica("coord-3", Following, "", 0),
                        "the store cannot be reached: timeout",
                    ),
                ],
            ),
            ("none answers", vec![silent("coord-1"), silent("coord-2")]),
            (
                "one name for two, by their certificates",
                vec![
                    replica("coord-1", Leading, one, 7),
                    certified(1, replica("coord-3", Following, one, 7)),
                    certified(2, at_endpoint("db-1:7443", replica("coord-3", Following, one, 7))),
                ],
            ),
            (
                "one name for two, one of which leads",
                vec![
                    replica("coord-1", Leading, one, 7),
                    at_endpoint("db-1:7443", replica("coord-1", Following, one, 7)),
                ],
            ),
            (
                "one name at two endpoints, for one or two",
                vec![
                    replica("coord-1", Leading, one, 7),
                    certified(1, replica("coord-3", Following, one, 7)),
                    certified(1, at_endpoint("db-1:7443", replica("coord-3", Following, one, 7))),
                    // The same endpoint, listed twice.
                    certified(1, at_endpoint("db-1:7443", replica("coord-3", Following, one, 7))),
                ],
            ),
            (
                "the leader is reached elsewhere by its own word",
                vec![
                    at_endpoint("10.0.0.1:7443", replica("coord-1", Leading, one, 7)),
                    replica("coord-2", Following, one, 7),
                    replica("coord-3", Following, one, 7),
                ],
            ),
            (
                "the leader is listed by its own word, and by another one",
                vec![
                    at_endpoint("10.0.0.1:7443", replica("coord-1", Leading, one, 7)),
                    replica("coord-1", Leading, one, 7),
                    replica("coord-2", Following, one, 7),
                ],
            ),
            (
                "no coordinator's certificate, and no TLS",
                vec![
                    replica("coord-1", Leading, one, 7),
                    refusing("coord-2", "invalid peer certificate: UnknownIssuer"),
                    refusing("coord-3", "received corrupt message of type InvalidContentType"),
                ],
            ),
        ];
        let context = Context {
            path: PathBuf::from("/home/ana/.config/rollbackctl/context.toml"),
            name: "prod".to_owned(),
            endpoints: Vec::new(),
            files: CredentialFiles {
                ca: PathBuf::new(),
                certificate: PathBuf::new(),
                key: PathBuf::new(),
            },
            otlp: None,
        };
        let text: Vec<String> = pictures
            .iter()
            .map(|(title, replicas)| format!("# {title}\n{}", render(&checks(replicas, &context), Paint::PLAIN)))
            .collect();
        golden!("doctor_replicas", text.join("\n"));
    }
}
