//! Over real TLS connections: who is let in, and that a broken stream stops nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use prost::Message;
use rollback_proto::identity::{Identity as Spiffe, Peer, PeerRole};
use rollback_proto::problem::{Code, Hint};
use rollback_proto::tls::{Connect, Expect, PeerInfo, connect};
use rollback_proto::v1::agent_client::AgentClient;
use rollback_proto::v1::execute_event::Event;
use rollback_proto::v1::outcome::Status as Ended;
use rollback_proto::v1::recalled_step::State;
use rollback_proto::v1::{Action, Revision, StepKey};
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

use super::*;
use crate::executor::tests::fake::{Fake, Script};
use crate::executor::{Limits, Parts};
use crate::ledger::Ledger;
use crate::pki::tests::Authority as Ca;
use crate::vault::Vault;

const COORDINATOR: &str = "spiffe://rollback.local/coordinator/coord-1";
const OTHERS: [&str; 4] = [
    "spiffe://rollback.local/operator/admin",
    "spiffe://rollback.local/agent/app-2",
    "spiffe://rollback.local/agent/app-1",
    "spiffe://elsewhere.local/coordinator/coord-1",
];

/// An agent named app-1 with one component, on a port of its own.
struct Agent {
    ca: Ca,
    address: String,
    driver: Arc<Fake>,
    place: tempfile::TempDir,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Agent {
    async fn start() -> Self {
        let place = tempfile::tempdir().expect("temporary directory");
        let ca = Ca::new();
        let credentials = ca.credentials(&place.path().join("pki"), "spiffe://rollback.local/agent/app-1");
        let driver = Arc::new(Fake::default());
        let state = place.path().join("state");
        let ledger = Ledger::open(&state, &TaskTracker::new()).await.expect("ledger");
        let identity = Identity {
            name: "app-1".into(),
            ledger_generation: ledger.generation().to_owned(),
            labels: [("tier".to_owned(), "app".to_owned())].into(),
        };
        let executor = Executor::start(Parts {
            host: "app-1".into(),
            components: vec![("api".into(), Arc::clone(&driver) as _)],
            vault: Arc::new(Vault::open(state.join("vault")).expect("vault")),
            ledger,
            limits: Limits::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, credentials, identity, executor, stop.clone()));
        Self {
            ca,
            address,
            driver,
            place,
            stop,
            task,
        }
    }

    async fn dial(&self, ca: &Ca, uri: &str) -> Result<AgentClient<Channel>, Problem> {
        let dir = self.place.path().join(uri.replace(['/', ':'], "-"));
        let credentials = ca.credentials(&dir, uri);
        // The caller's own opinion of trust domains is not what is tested here.
        let credentials = trusting(&credentials, &dir, ca, &self.ca);
        let expect = Expect::Agent("app-1".into());
        connect(&self.address, Connect::Mutual { credentials, expect })
            .await
            .map(AgentClient::new)
    }
}

/// A caller that trusts the agent's CA, whatever signed its own certificate.
fn trusting(credentials: &CredentialStore, dir: &Path, theirs: &Ca, ours: &Ca) -> CredentialStore {
    if theirs.ca_pem == ours.ca_pem {
        return Arc::clone(credentials);
    }
    let files = crate::pki::files(dir);
    std::fs::write(&files.ca, &ours.ca_pem).expect("write CA");
    rollback_proto::tls::Credentials::load_store(&files).expect("credentials")
}

fn execute(step: &str) -> ExecuteRequest {
    let revision = |version: &str| {
        Some(Revision {
            version: version.into(),
            digest: "sha256:0".into(),
        })
    };
    ExecuteRequest {
        key: Some(StepKey {
            rollback_id: "r1".into(),
            step_id: step.into(),
            attempt: 1,
        }),
        epoch: 1,
        leader_id: "coord-1".into(),
        component: "api".into(),
        action: Action::Switch.into(),
        from: revision("v3.0.0"),
        to: revision("v2.9.0"),
        timeout: prost_types::Duration::try_from(Duration::from_secs(20)).ok(),
        ledger_generation: String::new(),
        backend: String::new(),
        ..ExecuteRequest::default()
    }
}

fn recall(epoch: u64, leader: &str, rollbacks: &[&str]) -> RecallRequest {
    RecallRequest {
        epoch,
        leader_id: leader.to_owned(),
        rollback_ids: rollbacks.iter().map(|&id| id.to_owned()).collect(),
    }
}

/// Calls one RPC by its name. A new one must be added here, and with it the question who may call it.
async fn call(client: &mut AgentClient<Channel>, rpc: &str) -> Result<(), Status> {
    match rpc {
        "Describe" => client.describe(DescribeRequest {}).await.map(drop),
        "Observe" => client.observe(ObserveRequest::default()).await.map(drop),
        "Retain" => client
            .retain(RetainRequest {
                component: "api".into(),
                release: "v3.0.0".into(),
            })
            .await
            .map(drop),
        "Resolve" => client
            .resolve(ResolveRequest {
                component: "api".into(),
                release: "v2.9.0".into(),
            })
            .await
            .map(drop),
        "Forget" => client
            .forget(ForgetRequest {
                component: "api".into(),
                release: "v2.9.0".into(),
                revision: Some(Revision {
                    version: "v2.9.0".into(),
                    digest: "sha256:29".into(),
                }),
                kept: Vec::new(),
            })
            .await
            .map(drop),
        "Execute" => client.execute(execute("by-name")).await.map(drop),
        "Recall" => client.recall(recall(1, "coord-1", &["r1"])).await.map(drop),
        other => panic!("the RPC {other} is new: say here how it is called"),
    }
}

fn rpcs() -> BTreeSet<String> {
    let files = prost_types::FileDescriptorSet::decode(rollback_proto::DESCRIPTORS).expect("descriptors");
    let service = files
        .file
        .iter()
        .flat_map(|file| &file.service)
        .find(|service| service.name() == "Agent");
    service
        .expect("service Agent")
        .method
        .iter()
        .map(|method| method.name().to_owned())
        .collect()
}

#[tokio::test]
async fn every_rpc_is_for_coordinators_of_our_trust_domain_alone() {
    let agent = Agent::start().await;
    assert!(rpcs().len() >= 4);
    for rpc in rpcs() {
        for uri in OTHERS {
            let mut client = match agent.dial(&agent.ca, uri).await {
                Ok(client) => client,
                // A caller of another trust domain does not take us for its agent in the first place.
                Err(problem) => {
                    assert_eq!((problem.code, uri), (Code::WrongPeer, OTHERS[3]));
                    continue;
                }
            };
            let status = call(&mut client, &rpc).await.expect_err("refused");
            assert_eq!(
                Problem::from_status(&status).code,
                Code::Forbidden,
                "{rpc} by {uri}: {status}"
            );
        }
    }
    assert_eq!(agent.driver.entered(), 0);
    let mut coordinator = agent.dial(&agent.ca, COORDINATOR).await.expect("let in");
    for rpc in rpcs() {
        call(&mut coordinator, &rpc).await.expect(&rpc);
    }
}

#[tokio::test]
async fn a_coordinator_of_another_ca_does_not_get_in() {
    let agent = Agent::start().await;
    let stranger = Ca::new();
    // In TLS 1.3 a client learns of the refusal with the first answer, so either of the two may fail.
    let refused = match agent.dial(&stranger, COORDINATOR).await {
        Ok(mut client) => call(&mut client, "Execute").await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    assert_eq!(agent.driver.entered(), 0);
}

#[test]
fn a_certificate_that_expired_inside_a_connection_is_refused() {
    let place = tempfile::tempdir().expect("temporary directory");
    let credentials = Ca::new().credentials(place.path(), "spiffe://rollback.local/agent/app-1");
    let mut authority = Authority::new(credentials);
    let mut ask = |peer: Option<Peer>| {
        let mut request = Request::new(());
        request.extensions_mut().insert(PeerInfo {
            peer,
            address: ([127, 0, 0, 1], 1).into(),
        });
        tonic::service::Interceptor::call(&mut authority, request).map(drop)
    };
    let peer = |domain: &str, role, expires| Peer {
        identity: Spiffe::new(domain, role, "coord-1"),
        serial: "01".into(),
        expires,
    };
    let (past, future) = (SystemTime::now(), SystemTime::now() + Duration::from_secs(60));
    let code = |result: Result<(), Status>| result.err().map(|status| Problem::from_status(&status).code);
    assert_eq!(
        code(ask(Some(peer("rollback.local", PeerRole::Coordinator, future)))),
        None
    );
    assert_eq!(
        code(ask(Some(peer("rollback.local", PeerRole::Coordinator, past)))),
        Some(Code::Unauthenticated)
    );
    assert_eq!(
        code(ask(Some(peer("elsewhere.local", PeerRole::Coordinator, future)))),
        Some(Code::Forbidden)
    );
    assert_eq!(
        code(ask(Some(peer("rollback.local", PeerRole::Operator, future)))),
        Some(Code::Forbidden)
    );
    assert_eq!(code(ask(None)), Some(Code::Unauthenticated));
}

#[tokio::test]
async fn a_connection_that_breaks_inside_a_step_stops_nothing() {
    let agent = Agent::start().await;
    agent.driver.will(Script::Wait);
    let mut client = agent.dial(&agent.ca, COORDINATOR).await.expect("let in");
    let mut stream = client.execute(execute("1")).await.expect("accepted").into_inner();
    let first = stream.message().await.expect("a message").and_then(|event| event.event);
    assert!(matches!(first, Some(Event::Accepted(_))), "{first:?}");
    agent.driver.wait_entered(1).await;
    drop((stream, client));
    agent.driver.release(1);

    let mut client = agent.dial(&agent.ca, COORDINATOR).await.expect("let in again");
    let mut stream = client.execute(execute("1")).await.expect("accepted").into_inner();
    let mut outcome = None;
    while let Some(event) = stream.message().await.expect("no error") {
        if let Some(Event::Outcome(last)) = event.event {
            outcome = Some(last);
        }
    }
    assert_eq!(outcome.expect("an outcome").status(), Ended::Succeeded);
    assert_eq!(agent.driver.entered(), 1);

    let described = client
        .describe(DescribeRequest {})
        .await
        .expect("described")
        .into_inner();
    assert_eq!((described.name.as_str(), described.components.len()), ("app-1", 1));
    assert_eq!(described.labels["tier"], "app");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused() {
    let agent = Agent::start().await;
    let mut client = agent.dial(&agent.ca, COORDINATOR).await.expect("let in");
    let flood = ObserveRequest {
        components: vec!["x".repeat(MAX_MESSAGE + 1)],
    };
    assert!(client.observe(flood).await.is_err());
    assert_eq!(
        client
            .describe(DescribeRequest {})
            .await
            .expect("described")
            .into_inner()
            .name,
        "app-1"
    );
}

#[tokio::test]
async fn stopping_lets_the_open_streams_end() {
    let agent = Agent::start().await;
    agent.driver.will(Script::Wait);
    let mut client = agent.dial(&agent.ca, COORDINATOR).await.expect("let in");
    let mut stream = client.execute(execute("1")).await.expect("accepted").into_inner();
    agent.driver.wait_entered(1).await;
    agent.stop.cancel();
    agent.driver.release(1);
    let mut last = None;
    while let Some(event) = stream.message().await.expect("no error") {
        last = event.event;
    }
    assert!(matches!(last, Some(Event::Outcome(_))), "{last:?}");
    agent.task.await.expect("no panic").expect("served");
}

#[tokio::test]
async fn a_new_leader_is_told_what_was_done_here_and_the_old_one_is_refused() {
    let agent = Agent::start().await;
    let mut old = agent.dial(&agent.ca, COORDINATOR).await.expect("let in");
    let mut stream = old.execute(execute("1")).await.expect("accepted").into_inner();
    while stream.message().await.expect("no error").is_some() {}
    agent.driver.will(Script::Wait);
    let running = old.execute(execute("2")).await.expect("accepted");
    agent.driver.wait_entered(2).await;

    let mut new = agent.dial(&agent.ca, COORDINATOR).await.expect("let in");
    let told = new.recall(recall(2, "coord-2/4f1a", &["r1", "r2"])).await;
    let told = told.expect("recalled").into_inner();
    let steps: Vec<(String, State)> = told
        .steps
        .iter()
        .map(|step| (step.key.clone().expect("a key").step_id, step.state()))
        .collect();
    assert_eq!(
        steps,
        [("1".to_owned(), State::Ended), ("2".to_owned(), State::Unfinished)]
    );
    assert!(told.other_rollbacks.is_empty() && !told.ledger_generation.is_empty());
    let elsewhere = new.recall(recall(2, "coord-2/4f1a", &[])).await.expect("recalled");
    assert_eq!(elsewhere.into_inner().other_rollbacks, ["r1"]);

    // A step that is joined, a new one, one that only reads, and the old leader's own question.
    let reads = ExecuteRequest {
        action: Action::Verify.into(),
        ..execute("3")
    };
    for step in [execute("2"), execute("3"), reads] {
        let refused = Problem::from_status(&old.execute(step).await.expect_err("refused"));
        assert_eq!((refused.code, refused.hint), (Code::StaleLeader, Some(Hint::Epoch(2))));
    }
    for stale in [recall(1, "coord-1", &["r1"]), recall(2, "coord-2/77aa", &["r1"])] {
        let refused = Problem::from_status(&new.recall(stale).await.expect_err("refused"));
        assert_eq!((refused.code, refused.hint), (Code::StaleLeader, Some(Hint::Epoch(2))));
    }
    assert_eq!(agent.driver.entered(), 2, "nothing was done for the old leader");
    agent.driver.release(1);
    let mut stream = running.into_inner();
    let mut last = None;
    while let Some(event) = stream.message().await.expect("what runs is not stopped") {
        last = event.event;
    }
    assert!(matches!(last, Some(Event::Outcome(_))), "{last:?}");
}

#[tokio::test]
async fn a_question_about_the_past_is_bounded_and_its_names_are_checked() {
    let agent = Agent::start().await;
    let mut client = agent.dial(&agent.ca, COORDINATOR).await.expect("let in");
    let many = vec!["r1"; 65];
    for (question, code) in [
        (recall(9, "coord-9", &["../../etc"]), Code::BadName),
        (recall(9, "coord-9/a/b", &["r1"]), Code::BadName),
        (recall(9, "/a", &["r1"]), Code::BadName),
        (recall(9, "", &["r1"]), Code::BadName),
        (recall(u64::MAX, "coord-9", &["r1"]), Code::BadRequest),
        (recall(9, "coord-9", &many), Code::BadRequest),
    ] {
        let refused = client.recall(question.clone()).await.expect_err("refused");
        assert_eq!(Problem::from_status(&refused).code, code, "{question:?}");
    }
    client
        .recall(recall(1, "coord-1", &many[..64]))
        .await
        .expect("none of them moved the fence");
}
