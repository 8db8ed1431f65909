//! What operators can ask for at the wrong moment, twice, or without knowing where the fleet is.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fleet_tests::fleet::Fleet;
use fleet_tests::scenario::expect_running;
use fleet_tests::zekka::Version;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::{Connect, CredentialFiles, Credentials, Expect, connect, install_crypto};
use rollback_proto::v1;
use rollback_proto::v1::fleet_client::FleetClient;
use tonic::transport::Channel;

/// Keeps the rollback busy while it is asked about.
const SLOW_START: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn asked_twice_too_early_or_for_the_one_before() {
    if let Err(error) = story().await {
        panic!("{error:#}");
    }
}

async fn story() -> Result<()> {
    install_crypto();
    let mut fleet = Fleet::builder().start().await?;
    match ask(&mut fleet).await {
        Ok(()) => fleet.stop().await,
        Err(error) => Err(anyhow::anyhow!("{error:#}\nthe logs end so:\n{}", fleet.tails())),
    }
}

async fn ask(fleet: &mut Fleet) -> Result<()> {
    fleet.deploy_both().await?;
    let mut client = client(fleet).await?;
    let previous = plan(&mut client, "previous").await?;
    ensure!(
        previous.release == "v2.9.0",
        "the release before v3.0.0 is not {}",
        previous.release
    );

    let refused = start(&mut client, "request-0", "sha256:0000")
        .await
        .err()
        .context("another plan was agreed to")?;
    ensure!(refused.code == Code::PlanStale, "not RB0206: {refused}");
    let none = client
        .list_rollbacks(v1::ListRollbacksRequest::default())
        .await?
        .into_inner()
        .rollbacks;
    ensure!(none.is_empty(), "it started all the same: {none:?}");

    for host in &fleet.zekka.hosts {
        host.set_fault(Version::V2_9_0, false, SLOW_START)?;
    }
    let id = start(&mut client, "request-1", &previous.digest).await?;
    // The answer got lost, and by now a host is gone: the question is answered all the same.
    fleet.agent("app-2")?.kill()?;
    let again = start(&mut client, "request-1", &previous.digest).await?;
    ensure!(again == id, "asked twice, started {id} and {again}");
    let other = start(&mut client, "request-2", "")
        .await
        .err()
        .context("two rollbacks at once")?;
    ensure!(
        other.code == Code::ScopeHeld,
        "who is second is told who is first: {other}"
    );
    let record = fleet.ctl.record("mid-air").await?.expect_code(6)?;
    ensure!(record.text().contains(&id), "who records is told why not: {record}");
    fleet.agent("app-2")?.run().await?;
    fleet.ctl.run(&["rollback", "watch", &id]).await?.expect_code(0)?;
    expect_running(fleet, Version::V2_9_0)?;

    let releases = client
        .list_releases(v1::ListReleasesRequest {})
        .await?
        .into_inner()
        .releases;
    let stable = releases.iter().map(|r| (r.name.as_str(), r.stable)).collect::<Vec<_>>();
    ensure!(
        stable == [("v3.0.0", false), ("v2.9.0", true)],
        "what was rolled away from does not count as stable: {stable:?}"
    );
    let nothing = plan(&mut client, "previous")
        .await
        .err()
        .context("there is nothing before v2.9.0")?;
    ensure!(nothing.code == Code::UnknownRelease, "not RB0200: {nothing}");
    Ok(())
}

async fn client(fleet: &Fleet) -> Result<FleetClient<Channel>> {
    let context = fleet.coordinator.context();
    let dir = context.parent().context("the context's directory")?;
    let credentials = Credentials::load_store(&CredentialFiles {
        ca: dir.join("ca.pem"),
        certificate: dir.join("cert.pem"),
        key: dir.join("key.pem"),
    })?;
    let how = Connect::Mutual {
        credentials: Arc::clone(&credentials),
        expect: Expect::Coordinator,
    };
    Ok(FleetClient::new(connect(fleet.coordinator.endpoint(), how).await?))
}

fn target(release: &str) -> Option<v1::RollbackTarget> {
    Some(v1::RollbackTarget {
        database: v1::DatabaseChoice::Unspecified.into(),
        release: release.to_owned(),
        runbook: String::new(),
        ..v1::RollbackTarget::default()
    })
}

async fn plan(client: &mut FleetClient<Channel>, release: &str) -> Result<v1::Plan, Problem> {
    let request = v1::PlanRollbackRequest {
        target: target(release),
        ..v1::PlanRollbackRequest::default()
    };
    let answer = client
        .plan_rollback(request)
        .await
        .map_err(|s| Problem::from_status(&s))?;
    Ok(answer.into_inner().plan.unwrap_or_default())
}

async fn start(client: &mut FleetClient<Channel>, request_id: &str, plan_digest: &str) -> Result<String, Problem> {
    let request = v1::StartRollbackRequest {
        target: target("v2.9.0"),
        request_id: request_id.to_owned(),
        plan_digest: plan_digest.to_owned(),
        ..v1::StartRollbackRequest::default()
    };
    let answer = client
        .start_rollback(request)
        .await
        .map_err(|s| Problem::from_status(&s))?;
    Ok(answer.into_inner().rollback_id)
}
