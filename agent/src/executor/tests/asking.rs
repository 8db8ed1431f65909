//! Who is refused, and that nothing was done for them.

use super::fake::Script;
use super::*;

async fn refused(host: &Host, request: ExecuteRequest) -> Problem {
    let problem = host.execute(request).await.expect_err("refused");
    assert_eq!(
        (host.api.entered(), host.db.entered()),
        (0, 0),
        "nothing was done: {problem}"
    );
    problem
}

fn with_key(change: impl FnOnce(&mut WireKey)) -> ExecuteRequest {
    let mut request = switch("api", "1");
    request.key.as_mut().map(change).expect("a key");
    request
}

#[tokio::test]
async fn hostile_names_reach_nobody() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    let flood = "x".repeat(64 * 1024);
    for name in [
        "",
        "--upload-pack=x",
        "../../etc",
        "a/b",
        "a b",
        "a\0b",
        "$(id)",
        ".",
        "v1;rm",
        "ä",
        &flood,
    ] {
        let name = name.to_owned();
        let version = |version: &String| {
            Some(v1::Revision {
                version: version.clone(),
                digest: "sha256:0".into(),
            })
        };
        let asked = [
            with_key(|key| key.rollback_id.clone_from(&name)),
            with_key(|key| key.step_id.clone_from(&name)),
            ExecuteRequest {
                component: name.clone(),
                ..switch("api", "1")
            },
            // A leader's name may be followed by the name of its process.
            ExecuteRequest {
                leader_id: format!("{name}/0a1b"),
                ..switch("api", "1")
            },
            ExecuteRequest {
                from: version(&name),
                ..switch("api", "1")
            },
            ExecuteRequest {
                to: version(&name),
                ..switch("api", "1")
            },
        ];
        for request in asked {
            let problem = refused(&host, request).await;
            assert_eq!(problem.code, Code::BadName, "{problem}");
            assert!(problem.message.len() < 300, "the message echoes a flood");
        }
        assert_eq!(
            host.executor
                .observe(vec![name.clone()])
                .await
                .expect_err("refused")
                .code,
            Code::BadName
        );
        let retain = host.executor.retain("api".into(), name.clone()).await;
        assert_eq!(retain.expect_err("refused").code, Code::BadName);
    }
    for digest in ["", "SHA256:00", "sha256:../..", "sha256 0", &flood] {
        let to = v1::Revision {
            version: "v2.9.0".into(),
            digest: digest.into(),
        };
        let problem = refused(
            &host,
            ExecuteRequest {
                to: Some(to),
                ..switch("api", "1")
            },
        )
        .await;
        assert_eq!(problem.code, Code::BadName, "{problem}");
    }
    assert_eq!(
        host.run(switch("api", "1")).await.how,
        How::Started,
        "none of them left a trace in the ledger"
    );
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_its_own_code() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    host.executor.recovered().await;
    let negative = prost_types::Duration { seconds: -5, nanos: 0 };
    let cases = [
        (switch("web", "1"), Code::UnknownComponent),
        (request("api", "1", Action::Snapshot), Code::UnsupportedAction),
        (request("api", "1", Action::Unspecified), Code::BadRequest),
        (
            ExecuteRequest {
                action: 99,
                ..switch("api", "1")
            },
            Code::BadRequest,
        ),
        (
            ExecuteRequest {
                key: None,
                ..switch("api", "1")
            },
            Code::BadRequest,
        ),
        (
            ExecuteRequest {
                from: None,
                ..switch("api", "1")
            },
            Code::BadRequest,
        ),
        (
            ExecuteRequest {
                to: None,
                ..switch("api", "1")
            },
            Code::BadRequest,
        ),
        (
            ExecuteRequest {
                epoch: u64::MAX,
                ..switch("api", "1")
            },
            Code::BadRequest,
        ),
        (
            ExecuteRequest {
                timeout: None,
                ..switch("api", "1")
            },
            Code::StepTimeout,
        ),
        (
            ExecuteRequest {
                timeout: Some(negative),
                ..switch("api", "1")
            },
            Code::StepTimeout,
        ),
        (within(switch("api", "1"), Duration::ZERO), Code::StepTimeout),
    ];
    for (request, code) in cases {
        let problem = refused(&host, request.clone()).await;
        assert_eq!(problem.code, code, "{problem} for {request:?}");
    }
}

#[tokio::test]
async fn a_step_that_ended_is_answered_for_however_late_the_question_comes() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    let first = host.run(switch("api", "1")).await;
    let late = host.run(within(switch("api", "1"), Duration::ZERO)).await;
    assert_eq!((late.how, late.outcome), (How::FromLedger, first.outcome));
    assert_eq!(host.api.entered(), 1, "it was not done again");
}

#[tokio::test]
async fn a_ledger_that_the_leader_does_not_know_vouches_for_nothing() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    let of = |action, ledger: &str| ExecuteRequest {
        ledger_generation: ledger.to_owned(),
        ..request("api", "1", action)
    };
    let problem = refused(&host, of(Action::Switch, "the one before")).await;
    assert_eq!(problem.code, Code::LedgerLost, "{problem}");
    let ours = host.executor.0.ledger.generation().to_owned();
    assert_eq!(host.run(of(Action::Switch, &ours)).await.how, How::Started);
    assert_eq!(
        host.run(of(Action::Verify, "the one before")).await.how,
        How::Started,
        "what only reads depends on no ledger"
    );
}

#[tokio::test]
async fn a_leader_that_was_replaced_is_refused_also_where_it_would_only_join() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    let of = |epoch, leader: &str| ExecuteRequest {
        epoch,
        leader_id: leader.into(),
        ..switch("api", "1")
    };
    host.api.will(Script::Wait);
    let first = host.execute(of(4, "a")).await.expect("the leader");
    let successor = host.execute(of(5, "b")).await.expect("the next leader joins");
    for stale in [of(4, "a"), of(5, "a")] {
        assert_eq!(host.execute(stale).await.expect_err("refused").code, Code::StaleLeader);
    }
    host.api.release(1);
    assert_eq!(told(successor).await.how, How::Joined);
    assert_eq!(told(first).await.outcome.status(), Status::Succeeded);
    assert_eq!(
        host.execute(of(4, "a")).await.expect_err("refused").code,
        Code::StaleLeader
    );
    assert_eq!(host.run(of(5, "b")).await.how, How::FromLedger);
    assert_eq!(host.api.entered(), 1);
}

#[tokio::test]
async fn observing_bounds_each_component_by_itself() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    for (script, code) in [
        (Script::Hang, Code::StepTimeout),
        (Script::Panic, Code::Internal),
        (Script::Fail, Code::DatabaseDown),
    ] {
        host.api.will(script);
        let states = host.executor.observe(Vec::new()).await.expect("states");
        let [api, db] = &states[..] else {
            panic!("two components: {states:?}")
        };
        assert_eq!(api.problem.clone().map(|p| Problem::from(p).code), Some(code));
        assert!(api.revision.is_none());
        assert_eq!(db.revision.as_ref().map(|r| r.version.as_str()), Some("v3.0.0"));
    }
    let unknown = host.executor.observe(vec!["web".into()]).await.expect("states");
    assert_eq!(
        unknown[0].problem.clone().map(|p| Problem::from(p).code),
        Some(Code::UnknownComponent)
    );
    let flood = host.executor.observe(vec!["api".into(); 1000]).await;
    assert_eq!(flood.expect_err("refused").code, Code::BadRequest);
}

#[tokio::test]
async fn retaining_waits_for_the_components_turn_but_not_for_ever() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    host.api.will(Script::Wait);
    let step = host.execute(switch("api", "1")).await.expect("accepted");
    host.api.wait_entered(1).await;
    let busy = host.executor.retain("api".into(), "v3.0.0".into()).await;
    assert_eq!(busy.expect_err("busy").code, Code::ComponentBusy);
    host.api.release(1);
    told(step).await;
    let retained = host
        .executor
        .retain("api".into(), "v3.0.0".into())
        .await
        .expect("retained");
    assert_eq!(retained.revision.map(|r| r.version).as_deref(), Some("v3.0.0"));
}

#[tokio::test]
async fn neither_what_is_live_nor_what_another_release_needs_is_forgotten() {
    let place = tempfile::tempdir().expect("temporary directory");
    let host = Host::start(place.path()).await;
    let revision = |digest: &str| rollback_proto::v1::Revision {
        version: "v2.9.0".into(),
        digest: digest.into(),
    };
    let ask = |digest: &str, kept: &[&str]| {
        let request = rollback_proto::v1::ForgetRequest {
            component: "api".into(),
            release: "v2.9.0".into(),
            revision: Some(revision(digest)),
            kept: kept.iter().map(|digest| revision(digest)).collect(),
        };
        let executor = host.executor.clone();
        async move { executor.forget(request).await.map(|forgotten| forgotten.summary) }
    };
    assert_eq!(ask("sha256:300", &[]).await.as_deref(), Ok("it is what runs now"));
    assert_eq!(
        ask("sha256:290", &["sha256:290"]).await.as_deref(),
        Ok("another release needs it")
    );
    assert_eq!(
        ask("sha256:290", &["sha256:300"]).await.as_deref(),
        Ok("fake forgot sha256:290")
    );
    // Notes that drivers have beside their pins are no revisions.
    for note in ["containers", "migrations", "log:api", "sha256:"] {
        let refused = ask(note, &[]).await.expect_err(note);
        assert_eq!(refused.code, Code::BadRequest, "{note}");
    }
    // What cannot be seen might be live.
    host.api.will(Script::Fail);
    assert_eq!(
        ask("sha256:290", &[]).await.expect_err("unseen").code,
        Code::DatabaseDown
    );
    host.api.will(Script::Wait);
    let step = host.execute(switch("api", "1")).await.expect("accepted");
    host.api.wait_entered(1).await;
    assert_eq!(
        ask("sha256:290", &[]).await.expect_err("busy").code,
        Code::ComponentBusy
    );
    host.api.release(1);
    told(step).await;
}
