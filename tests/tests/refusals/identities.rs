//! Peers that are not who they must be, on both doors: the coordinator's and an agent's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use fleet_tests::agent::AgentSpec;
use fleet_tests::fleet::Fleet;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rollback_proto::problem::{Code, Problem};
use rollback_proto::tls::{Connect, CredentialFiles, Credentials, Expect, connect, install_crypto, write_private};
use rollback_proto::v1::agent_client::AgentClient;
use rollback_proto::v1::enrollment_client::EnrollmentClient;
use rollback_proto::v1::fleet_client::FleetClient;
use rollback_proto::v1::{DescribeRequest, GetFleetRequest, RegisterRequest};
use tonic::transport::Channel;

pub async fn wrong_ones(fleet: &mut Fleet) -> Result<()> {
    install_crypto();
    let (coordinator, agent) = (
        fleet.coordinator.endpoint().to_owned(),
        fleet.agent("app-1")?.address().to_owned(),
    );
    let operator = files(&fleet.coordinator.dir().join("operators/admin"), "cert.pem", "key.pem");
    let own = files(&fleet.agent("app-2")?.spec.pki(), "agent.pem", "agent.key");
    let foreign = foreign_agent(fleet.dir(), &operator.ca)?;

    without_certificate(fleet, &coordinator, &agent)
        .await
        .context("without a certificate")?;

    // Another CA's certificate with the right name: the handshake is refused. TLS 1.3 tells the client only when it
    // uses the connection.
    let refused = register(as_client(&coordinator, &foreign, Expect::Coordinator).await).await;
    expect_no_entry("another CA's agent registers", refused)?;
    let refused = describe(as_client(&agent, &foreign, Expect::Agent("app-1".to_owned())).await).await;
    expect_no_entry("another CA's peer asks an agent", refused)?;

    // An operator is no agent, and agents obey coordinators only.
    let refused = register(as_client(&coordinator, &operator, Expect::Coordinator).await).await;
    expect_code("an operator registers as an agent", refused, Code::Forbidden)?;
    let refused = describe(as_client(&agent, &operator, Expect::Agent("app-1".to_owned())).await).await;
    expect_code("an operator asks an agent", refused, Code::Forbidden)?;

    // An agent is no operator, and may not command another agent.
    let refused = match as_client(&coordinator, &own, Expect::Coordinator).await {
        Ok(channel) => FleetClient::new(channel)
            .get_fleet(GetFleetRequest {})
            .await
            .map(drop)
            .map_err(problem),
        Err(problem) => Err(problem),
    };
    expect_code("an agent asks as an operator", refused, Code::Forbidden)?;
    let refused = describe(as_client(&agent, &own, Expect::Agent("app-1".to_owned())).await).await;
    expect_code("an agent asks an agent", refused, Code::Forbidden)?;

    // Who dials finds out, too: app-2's certificate does not make app-2 of app-1's address.
    let refused = as_client(&agent, &operator, Expect::Agent("app-2".to_owned()))
        .await
        .map(drop);
    expect_code("app-1 is taken for app-2", refused, Code::WrongPeer)?;

    // Agents that are given such certificates do not get into the fleet.
    for (what, credentials) in [("another CA's", &foreign), ("an operator's", &operator)] {
        agent_with(fleet, credentials)
            .await
            .with_context(|| format!("an agent with {what} certificate"))?;
    }
    Ok(())
}

async fn without_certificate(fleet: &mut Fleet, coordinator: &str, agent: &str) -> Result<()> {
    // What a host that enrolls has: a token, whose last part is the CA's fingerprint.
    let token = fleet.ctl.token("stranger").await?;
    let ca_fingerprint = token
        .rsplit('.')
        .next()
        .context("the token ends with a fingerprint")?
        .to_owned();
    let pinned = Connect::Pinned { ca_fingerprint };
    let refused = register(connect(coordinator, pinned.clone()).await).await;
    expect_code("somebody registers", refused, Code::Unauthenticated)?;
    // An agent is not a coordinator, so a pinned client refuses it before it can refuse the client.
    let refused = connect(agent, pinned).await.map(drop);
    ensure!(refused.is_err(), "an agent lets somebody without a certificate in");
    let bare = Command::new("curl")
        .args([
            "--silent",
            "--insecure",
            "--http2-prior-knowledge",
            "--max-time",
            "5",
            &format!("https://{agent}/"),
        ])
        .output()
        .context("run curl")?;
    ensure!(
        !bare.status.success(),
        "an agent answers somebody without a certificate: {bare:?}"
    );

    // An agent that never enrolled does not start, and says what to do.
    let spec = stranger(fleet, fleet.dir().join("hosts/stranger"))?;
    let run = Command::new(fleet.agent("app-1")?.program())
        .arg("run")
        .arg("--config")
        .arg(spec.config())
        .output();
    let said = run.context("run the agent")?;
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(!said.status.success(), "an agent without a certificate runs");
    ensure!(
        text.contains("enroll"),
        "the agent does not say that it must enroll: {text}"
    );
    Ok(())
}

/// Starts an agent on these certificates and looks at what the coordinator makes of it.
async fn agent_with(fleet: &mut Fleet, credentials: &CredentialFiles) -> Result<()> {
    let spec = stranger(fleet, fleet.dir().join("hosts/impostor"))?;
    std::fs::create_dir_all(spec.pki()).context("make the directory of certificates")?;
    let copy = |from: &Path, to: &str| -> Result<()> {
        let content = std::fs::read(from).with_context(|| format!("read {}", from.display()))?;
        write_private(&spec.pki().join(to), &content).with_context(|| format!("write {to}"))
    };
    copy(&credentials.ca, "ca.pem")?;
    copy(&credentials.certificate, "agent.pem")?;
    copy(&credentials.key, "agent.key")?;
    let program = fleet.agent("app-1")?.program().to_owned();
    // It may end by itself or go on trying; either way it must not get in.
    let mut child = tokio::process::Command::new(program)
        .arg("run")
        .arg("--config")
        .arg(spec.config())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("run the agent")?;
    let stderr = child.stderr.take().context("the agent's stderr")?;
    let told = first_refusal(stderr).await;
    let agents = fleet.ctl.run(&["agent", "list", "-o", "json"]).await?.expect_code(0)?;
    ensure!(
        !agents.stdout.contains("stranger"),
        "the coordinator knows it: {agents}"
    );
    child.kill().await.context("end the agent")?;
    std::fs::remove_dir_all(fleet.dir().join("hosts/impostor")).context("remove the impostor")?;
    told.map(drop)
}

/// Waits until the agent says that it was refused; its end without a word is an error.
async fn first_refusal(stderr: tokio::process::ChildStderr) -> Result<String> {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let mut lines = BufReader::new(stderr).lines();
    let mut all = String::new();
    let read = async {
        while let Some(line) = lines.next_line().await.context("read the agent's log")? {
            all.push_str(&line);
            all.push('\n');
            if ["RB0100", "RB0101", "RB0103", "RB0300", "RB0301"]
                .iter()
                .any(|code| line.contains(code))
            {
                return Ok(line);
            }
        }
        anyhow::bail!("the agent ended and named no reason:\n{all}")
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), read)
        .await
        .context("the agent does not say that it was refused")?
}

fn stranger(fleet: &Fleet, host_dir: PathBuf) -> Result<AgentSpec> {
    let spec = AgentSpec {
        name: "stranger".to_owned(),
        coordinators: fleet.endpoints(),
        otlp: None,
        components: format!(
            "[[component]]\nname = \"env\"\nkind = \"env-file\"\npath = \"{}\"\n",
            host_dir.join("env").display()
        ),
        tier: "app",
        host_dir,
    };
    std::fs::create_dir_all(&spec.host_dir).context("make the host's directory")?;
    std::fs::write(spec.host_dir.join("env"), "A=1\n").context("write the env file")?;
    spec.write_config()?;
    Ok(spec)
}

/// A certificate for `agent/app-1` of the same trust domain, from a CA that nobody here knows. The CA that it *trusts*
/// is the fleet's: what is refused is its own certificate.
fn foreign_agent(dir: &Path, trusted: &Path) -> Result<CredentialFiles> {
    let ca_key = KeyPair::generate().context("make a CA's key")?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().context("make a key")?;
    let mut params = CertificateParams::default();
    let id = "spiffe://rollback.local/agent/app-1"
        .try_into()
        .context("a SPIFFE id")?;
    params.subject_alt_names = vec![SanType::URI(id)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, &issuer).context("sign the certificate")?;
    let out = dir.join("foreign");
    std::fs::create_dir_all(&out).context("make a directory")?;
    write_private(&out.join("cert.pem"), certificate.pem().as_bytes()).context("write the certificate")?;
    write_private(&out.join("key.pem"), key.serialize_pem().as_bytes()).context("write the key")?;
    Ok(CredentialFiles {
        ca: trusted.to_owned(),
        certificate: out.join("cert.pem"),
        key: out.join("key.pem"),
    })
}

fn files(dir: &Path, certificate: &str, key: &str) -> CredentialFiles {
    CredentialFiles {
        ca: dir.join("ca.pem"),
        certificate: dir.join(certificate),
        key: dir.join(key),
    }
}

async fn as_client(address: &str, files: &CredentialFiles, expect: Expect) -> Result<Channel, Problem> {
    let credentials =
        Credentials::load_store(files).map_err(|e| Problem::from_error(Code::BadCredentials, "load", &e))?;
    connect(address, Connect::Mutual { credentials, expect }).await
}

fn problem(status: tonic::Status) -> Problem {
    Problem::from_status(&status)
}

async fn register(channel: Result<Channel, Problem>) -> Result<(), Problem> {
    let request = RegisterRequest {
        address: "127.0.0.1:1".to_owned(),
        ..RegisterRequest::default()
    };
    EnrollmentClient::new(channel?)
        .register(request)
        .await
        .map(drop)
        .map_err(problem)
}

async fn describe(channel: Result<Channel, Problem>) -> Result<(), Problem> {
    AgentClient::new(channel?)
        .describe(DescribeRequest {})
        .await
        .map(drop)
        .map_err(problem)
}

fn expect_code(what: &str, result: Result<(), Problem>, code: Code) -> Result<()> {
    match result {
        Err(problem) if problem.code == code => Ok(()),
        other => anyhow::bail!("{what}: expected was {code}, there was {other:?}"),
    }
}

/// Refused in the handshake: there is no call, and so no code of ours that says why.
fn expect_no_entry(what: &str, result: Result<(), Problem>) -> Result<()> {
    match result {
        Err(problem) if matches!(problem.code, Code::HostUnreachable | Code::WrongPeer | Code::Internal) => Ok(()),
        other => anyhow::bail!("{what}: {other:?}"),
    }
}
