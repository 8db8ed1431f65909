//! The program itself, as an operator and systemd see it: exit statuses, what goes to stdout and what to stderr, the
//! ready file, and signals.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SanType,
};
use rollback_agent::pki::{self, NewKey};
use rollback_proto::problem::Problem;
use rollback_proto::tls::{Connect, Credentials, Expect, connect};
use rollback_proto::v1::accepted::How;
use rollback_proto::v1::agent_client::AgentClient;
use rollback_proto::v1::execute_event::Event;
use rollback_proto::v1::outcome::Status;
use rollback_proto::v1::recalled_step::State;
use rollback_proto::v1::{Action, ExecuteRequest, RecallRequest, Revision, StepKey};
use tempfile::TempDir;
use tonic::transport::Channel;

const PATIENCE: Duration = Duration::from_secs(20);

/// A host with one env file, enrolled, whose coordinator is not there.
struct Host {
    place: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self {
            place: tempfile::tempdir().expect("temporary directory"),
        };
        std::fs::write(host.path("app.env"), "A=1\nSECRET=hunter2\n").expect("write env file");
        host.configure("");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn configure(&self, more: &str) {
        let root = self.place.path().display();
        let text = format!(
            "name = \"app-1\"\nlisten = \"127.0.0.1:0\"\ncoordinators = [\"127.0.0.1:1\"]\nstate = \"{root}/state\"\n\
             pki = \"{root}/pki\"\n[[component]]\nname = \"env\"\nkind = \"env-file\"\npath = \"{root}/app.env\"\n{more}"
        );
        std::fs::write(self.path("agent.toml"), text).expect("write configuration");
    }

    fn enroll(&self) {
        self.enroll_with(&Ca::new());
    }

    fn enroll_with(&self, ca: &Ca) {
        ca.install(&self.path("pki"), "agent/app-1");
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollback-agent"));
        command
            .arg(verb)
            .arg("--config")
            .arg(self.path("agent.toml"))
            .env_remove("ROLLBACK_LOG");
        command
    }

    fn output(&self, verb: &str, more: &[&str]) -> Output {
        self.command(verb).args(more).output().expect("run")
    }

    /// Starts the daemon and returns when it says that it runs, which is after the ready file is there.
    fn run(&self) -> Daemon {
        self.run_with(&[])
    }

    fn run_with(&self, environment: &[(&str, &str)]) -> Daemon {
        let mut command = self.command("run");
        command
            .envs(environment.iter().copied())
            .arg("--ready-file")
            .arg(self.path("ready.json"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("start");
        let stderr = child.stderr.take().expect("a pipe");
        let (said, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // The test may be over.
                let _ = said.send(line);
            }
        });
        let daemon = Daemon { child, lines };
        while !daemon.line().expect("it ended before it ran").contains("agent runs") {}
        daemon
    }

    fn ready(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.path("ready.json")).expect("ready file")).expect("JSON")
    }
}

/// The fleet's.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("sign").pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    fn install(&self, pki: &Path, who: &str) {
        let key = NewKey::generate("peer").expect("key");
        let mut request = CertificateSigningRequestParams::from_pem(&key.csr_pem).expect("request");
        let uri = format!("spiffe://rollback.local/{who}");
        request.params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().expect("uri"))];
        request.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = request.signed_by(&self.issuer).expect("sign").pem();
        key.install(pki, &certificate, &self.pem).expect("install");
    }
}

/// Ends with the test, however that ends.
struct Daemon {
    child: Child,
    /// Its log. Disconnected when it has ended.
    lines: mpsc::Receiver<String>,
}

impl Daemon {
    /// The next line of the log; `None` when there will be none.
    fn line(&self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the daemon hangs"),
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).expect("signal");
    }

    fn status(&mut self) -> ExitStatus {
        while self.line().is_some() {}
        self.child.wait().expect("wait")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn runs_until_it_is_told_to_stop_and_starts_again_where_it_was() {
    let host = Host::new();
    host.enroll();
    let mut daemon = host.run();
    let ready = host.ready();
    let address = ready["grpc"].as_str().expect("an address");
    assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"), "{ready}");
    assert_eq!(ready["pid"], daemon.child.id());
    std::net::TcpStream::connect(address).expect("it listens");

    let second = host.output("run", &[]);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        text(&second.stderr).contains("in use by another rollback-agent"),
        "{}",
        text(&second.stderr)
    );

    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.status().code(), Some(0));

    let mut killed = host.run();
    killed.signal(rustix::process::Signal::KILL);
    assert_eq!(killed.status().signal(), Some(9));
    let mut last = host.run();
    last.signal(rustix::process::Signal::INT);
    assert_eq!(last.status().code(), Some(0));
}

#[test]
fn observing_shows_the_revision_and_no_value() {
    let host = Host::new();
    let table = host.output("observe", &[]);
    let shown = text(&table.stdout);
    assert_eq!(table.status.code(), Some(0), "{}", text(&table.stderr));
    assert!(shown.starts_with("COMPONENT  KIND      VERSION"), "{shown}");
    let json = host.output("observe", &["-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(
        (&report["schema"], &report["host"]),
        (&"rollback-agent/v1".into(), &"app-1".into())
    );
    assert!(
        report["components"][0]["digest"]
            .as_str()
            .is_some_and(|d| d.starts_with("sha256:")),
        "{report}"
    );
    assert!(!format!("{shown}{report}").contains("hunter2"));

    std::fs::remove_file(host.path("app.env")).expect("remove");
    let broken = host.output("observe", &["-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&broken.stdout).expect("JSON");
    assert_eq!(broken.status.code(), Some(1));
    assert!(
        report["components"][0]["problem"]["code"]
            .as_str()
            .is_some_and(|c| c.starts_with("RB")),
        "{report}"
    );
}

#[test]
fn a_configuration_is_checked_without_touching_the_host() {
    let host = Host::new();
    let good = host.output("check-config", &[]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good.stderr));
    assert!(
        text(&good.stdout).contains("stage discard snapshot switch"),
        "{}",
        text(&good.stdout)
    );
    assert!(text(&good.stderr).contains("not enrolled"), "{}", text(&good.stderr));
    assert!(!host.path("state").exists(), "nothing was made");

    host.configure("pth = 1\n");
    let file = host.path("agent.toml");
    for verb in ["check-config", "observe", "run"] {
        let bad = host.output(verb, &[]);
        assert_eq!(bad.status.code(), Some(1));
        let expected = format!(
            "error RB0902: {}:10: component env: unknown key `pth`, did you mean `path`?",
            file.display()
        );
        assert!(text(&bad.stderr).starts_with(&expected), "{}", text(&bad.stderr));
    }
}

#[test]
fn a_configuration_that_is_missing_is_asked_for() {
    let host = Host::new();
    std::fs::remove_file(host.path("agent.toml")).expect("remove");
    let bad = host.output("check-config", &[]);
    assert_eq!(bad.status.code(), Some(1));
    let said = text(&bad.stderr);
    for part in [
        "RB0902",
        "No such file",
        "\n  what to do: say where it is: --config FILE",
        "ROLLBACK_AGENT_CONFIG",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[test]
fn a_host_that_is_not_enrolled_is_told_what_to_do() {
    let host = Host::new();
    let run = host.output("run", &[]);
    assert_eq!(run.status.code(), Some(1));
    let said = text(&run.stderr);
    assert!(
        said.contains("RB0103") && said.contains("rollbackctl agent token app-1"),
        "{said}"
    );

    let other = ["--coordinator", "127.0.0.1:1", "--token"];
    let fingerprint = "0".repeat(64);
    let token = format!("rbt1.app-2.00ff.{fingerprint}");
    let enroll = host.output("enroll", &[other.as_slice(), &[token.as_str()]].concat());
    assert_eq!(enroll.status.code(), Some(1));
    assert!(text(&enroll.stderr).contains("RB0102"), "{}", text(&enroll.stderr));
    assert!(!host.path("pki").exists(), "nothing was made");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new();
    host.enroll();
    let key = host.path("pki").join("agent.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let run = host.output("run", &[]);
    assert_eq!(run.status.code(), Some(1));
    let said = text(&run.stderr);
    assert!(said.contains("RB0103") && said.contains("chmod 600"), "{said}");
}

/// A coordinator as far as these tests need one.
struct Leader {
    runtime: tokio::runtime::Runtime,
    agent: AgentClient<Channel>,
}

impl Leader {
    /// Of an agent that runs.
    fn of(host: &Host, ca: &Ca) -> Self {
        let place = host.path("coordinator");
        ca.install(&place, "coordinator/coord-1");
        let credentials = Credentials::load_store(&pki::files(&place)).expect("credentials");
        let expect = Expect::Agent("app-1".into());
        let address = host.ready()["grpc"].as_str().expect("an address").to_owned();
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let channel = runtime.block_on(connect(&address, Connect::Mutual { credentials, expect }));
        let agent = AgentClient::new(channel.expect("connect"));
        Self { runtime, agent }
    }

    /// A step that changes something, and finds nothing to change. `None`: the agent is gone.
    fn execute(&mut self) -> Option<(How, Status)> {
        let revision = |digest: &str| {
            Some(Revision {
                version: "v1".into(),
                digest: digest.into(),
            })
        };
        let step = ExecuteRequest {
            key: Some(StepKey {
                rollback_id: "r1".into(),
                step_id: "1".into(),
                attempt: 1,
            }),
            epoch: 1,
            leader_id: "coord-1".into(),
            component: "env".into(),
            action: Action::Discard.into(),
            from: revision("sha256:1"),
            to: revision("sha256:2"),
            timeout: prost_types::Duration::try_from(PATIENCE).ok(),
            ..ExecuteRequest::default()
        };
        self.runtime.block_on(async {
            let mut stream = self.agent.execute(step).await.ok()?.into_inner();
            let mut how = How::Unspecified;
            while let Some(event) = stream.message().await.ok()? {
                match event.event.expect("an event") {
                    Event::Accepted(accepted) => how = accepted.how(),
                    Event::Progress(_) => {}
                    Event::Outcome(outcome) => return Some((how, outcome.status())),
                }
            }
            None
        })
    }

    /// The states of the rollback's steps.
    fn recall(&mut self) -> Vec<State> {
        let question = RecallRequest {
            epoch: 1,
            leader_id: "coord-1".into(),
            rollback_ids: vec!["r1".into()],
        };
        let recalled = self.runtime.block_on(self.agent.recall(question));
        let recalled = recalled
            .map_err(|status| Problem::from_status(&status))
            .expect("recalled");
        recalled.into_inner().steps.iter().map(|step| step.state()).collect()
    }
}

#[test]
fn what_is_durable_is_passed_in_its_order() {
    let (host, ca) = (Host::new(), Ca::new());
    host.enroll_with(&ca);
    let log = host.path("points.log");
    let _daemon = host.run_with(&[("ROLLBACK_KILL_LOG", log.to_str().expect("a path"))]);
    let mut leader = Leader::of(&host, &ca);
    assert_eq!(leader.execute(), Some((How::Started, Status::Succeeded)));
    assert_eq!(leader.recall(), [State::Ended]);
    let passed = std::fs::read_to_string(&log).expect("a log");
    // The step runs beside the call that is told of its acceptance.
    let (beside, passed): (Vec<&str>, Vec<&str>) = passed.lines().partition(|&point| point == "rpc.execute.accepted");
    assert_eq!(beside.len(), 1);
    assert_eq!(
        passed,
        [
            "rpc.execute.received",
            "ledger.epoch.before",
            "ledger.epoch.after",
            "ledger.begin.before",
            "ledger.begin.after",
            "ACTION_DISCARD.remove_staged.before",
            "ACTION_DISCARD.remove_staged.after",
            "ledger.finish.before",
            "ledger.finish.after",
            "rpc.execute.answering",
            "rpc.recall.received",
            "rpc.recall.answering",
        ]
    );
}

#[test]
fn killed_around_any_write_it_answers_the_same_question_afterwards() {
    for (point, known) in [
        ("ledger.epoch.before", Some(vec![])),
        ("ledger.epoch.after", Some(vec![])),
        ("ledger.begin.before", Some(vec![])),
        // Whether it is resolved already depends on how fast that is.
        ("ledger.begin.after", None),
        ("ledger.finish.before", None),
        ("ledger.finish.after", Some(vec![State::Ended])),
        ("rpc.execute.answering", Some(vec![State::Ended])),
    ] {
        let (host, ca) = (Host::new(), Ca::new());
        host.enroll_with(&ca);
        let mut killed = host.run_with(&[("ROLLBACK_KILL_AT", point)]);
        assert_eq!(Leader::of(&host, &ca).execute(), None, "{point}");
        assert_eq!(killed.status().signal(), Some(9), "{point}");
        let _daemon = host.run();
        let mut leader = Leader::of(&host, &ca);
        let recalled = leader.recall();
        match known {
            Some(known) => assert_eq!(recalled, known, "{point}"),
            None => assert_eq!(recalled.len(), 1, "{point}"),
        }
        let (how, status) = leader.execute().expect("an outcome");
        let ended = recalled == [State::Ended];
        assert!(!ended || how == How::FromLedger, "{point}: {how:?}");
        assert_eq!(status, Status::Succeeded, "{point}");
    }
}
