//! The `systemd` process manager, with a real systemd: every test runs twice. Outside, it starts a container whose first
//! process is systemd, and in it this very program with the test's name. Inside, it drives the unit.
//!
//! The application is a shell that sleeps. Its health is answered by a server in the test that asks systemd for the
//! unit's main process, and answers with the name of the directory that it works in as its version.

mod host;
#[allow(dead_code, reason = "the harness of the fleet uses the rest of it")]
#[path = "../../tests/src/systemd_host.rs"]
mod systemd_host;

use std::future::Future;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use host::{Host, eventually, failed, read, script, write};
use rollback_agent::driver::release_dir::{ReleaseDirConfig, ReleaseDirDriver};
use rollback_agent::driver::{Action, Done, Driver, Failure, Finding, Health, Probe, Revision, Severity};
use rollback_agent::processes::{self, Identity};
use rollback_proto::problem::Code;
use systemd_host::SystemdHost;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const INSIDE: &str = "ROLLBACK_TEST_INSIDE_SYSTEMD";
const UNIT: &str = "zekka-app.service";

/// Outside: runs the test of this name in a container. Inside: runs its body.
fn inside(name: &str, body: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("runtime")
            .block_on(body);
        return;
    }
    let program = std::env::current_exe().expect("this program");
    let dir = tempfile::tempdir().expect("temporary directory");
    let programs = program.parent().expect("a directory");
    let host = SystemdHost::start(dir.path(), programs).expect("a host with systemd");
    let inside = format!("--env={INSIDE}=1");
    let temporary = format!("--env=TMPDIR={}", dir.path().display());
    let answer = host
        .exec_with(
            &[&inside, &temporary],
            &[&program.to_string_lossy(), "--exact", name, "--nocapture"],
        )
        .unwrap_or_else(|e| panic!("{e:#}"));
    assert!(answer.contains("1 passed"), "the test did not run inside: {answer}");
}

struct App {
    host: Host,
    root: PathBuf,
    driver: ReleaseDirDriver,
    old: Revision,
    new: Revision,
}

fn systemctl(args: &[&str]) -> String {
    let output = Command::new("systemctl").args(args).output().expect("systemctl");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn property(name: &str) -> String {
    systemctl(&["show", "--property", name, "--value", UNIT])
}

fn main_process() -> Option<Identity> {
    property("MainPID")
        .parse()
        .ok()
        .filter(|pid| *pid > 1)
        .and_then(processes::identity)
}

impl App {
    fn unit_with(&self, text: &str) {
        self.write_unit(text);
        systemctl(&["daemon-reload"]);
    }

    fn write_unit(&self, text: &str) {
        let text = text.replace("ROOT", &self.root.to_string_lossy());
        write(&PathBuf::from("/etc/systemd/system").join(UNIT), &text);
    }

    fn run_with(&self, text: &str) {
        for version in ["v2.9.0", "v3.0.0"] {
            script(
                &self.root.join("bin").join(version),
                &text.replace("ROOT", &self.root.to_string_lossy()),
            );
        }
    }

    fn link_to(&self, version: &str) {
        let current = self.root.join("current");
        let _ = std::fs::remove_file(&current);
        std::os::unix::fs::symlink(format!("releases/{version}"), current).expect("link");
    }

    async fn start(&self) -> Result<Done, Failure> {
        let limit = Duration::from_secs(15);
        self.driver
            .start(&self.host.step_within(Action::Start, &self.new, &self.old, limit))
            .await
    }

    async fn stop(&self) -> Result<Done, Failure> {
        self.driver
            .stop(&self.host.step(Action::Stop, &self.new, &self.old))
            .await
    }

    async fn verify(&self, revision: &Revision) -> Result<Done, Failure> {
        self.driver
            .verify(&self.host.step(Action::Verify, revision, revision))
            .await
    }

    async fn prepare(&self) -> Vec<Finding> {
        self.driver
            .prepare(&self.host.step(Action::Prepare, &self.old, &self.new))
            .await
    }

    async fn blocker(&self) -> String {
        let findings = self.prepare().await;
        let blocker = findings.iter().find(|f| f.severity == Severity::Blocker);
        let problem = &blocker.unwrap_or_else(|| panic!("no blocker: {findings:?}")).problem;
        assert_eq!(problem.code, Code::ManagerFailed, "{problem}");
        problem.message.clone()
    }
}

/// Works in the live release, and is brought back whatever happens to it.
const SERVICE: &str = "[Unit]\nStartLimitIntervalSec=0\n[Install]\nWantedBy=multi-user.target\n[Service]\nWorkingDirectory=ROOT/current\nExecStart=ROOT/bin/v2.9.0\nEnvironmentFile=ROOT/env\n\
                       Restart=always\nRestartSec=50ms\n";

/// Both releases are there, `current` points to v2.9.0, the unit is loaded and not started.
async fn app_with(process: &str, health: bool) -> App {
    let host = Host::new();
    let root = host.path().join("app");
    for version in ["v2.9.0", "v3.0.0"] {
        write(&root.join("releases").join(version).join("app"), version);
    }
    write(&root.join("env"), "MODE=old\nPASSWORD=hunter2\n");
    let health = match health {
        true => format!(
            "health = {{ http = 'http://{}/', version = '/', within = '6s', every = '10ms' }}",
            health_server().await
        ),
        false => String::new(),
    };
    let text = format!(
        "root = '{0}'\n{health}\n[process]\nmanager = 'systemd'\nunit = '{UNIT}'\nenv_file = '{0}/env'\n\
         kill_after = '500ms'\nstable_for = '700ms'\n{process}",
        root.display()
    );
    let config: ReleaseDirConfig = toml::from_str(&text).expect("config");
    let driver = ReleaseDirDriver::new("part", config, Arc::clone(&host.vault)).expect("driver");
    let mut app = App {
        host,
        root,
        driver,
        old: host::revision("", ""),
        new: host::revision("", ""),
    };
    app.run_with("exec sleep 600");
    app.unit_with(SERVICE);
    app.link_to("v3.0.0");
    app.new = app.driver.observe().await.expect("observe").revision;
    app.link_to("v2.9.0");
    app.old = app.driver.observe().await.expect("observe").revision;
    app
}

async fn app() -> App {
    app_with("", true).await
}

async fn health_server() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            let mut request = [0u8; 1024];
            let _ = peer.read(&mut request).await;
            let version = main_process()
                .and_then(|process| processes::cwd(process.pid))
                .and_then(|dir| Some(dir.file_name()?.to_string_lossy().into_owned()));
            let (status, body) = version.map_or(("503 Unavailable", String::new()), |version| ("200 OK", version));
            let reply = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = peer.write_all(reply.as_bytes()).await;
        }
    });
    address
}

#[test]
fn stops_switches_and_starts_and_every_move_may_be_repeated() {
    inside("stops_switches_and_starts_and_every_move_may_be_repeated", async {
        let a = app().await;
        assert_eq!(a.driver.observe().await.expect("observe").health, Health::Stopped);
        let findings = a.prepare().await;
        assert!(findings.is_empty(), "{findings:?}");
        let (start, stop) = (
            a.host.step(Action::Start, &a.new, &a.old),
            a.host.step(Action::Stop, &a.new, &a.old),
        );
        assert!(matches!(a.driver.probe(&start).await, Probe::Repeatable(_)));
        let done = a.start().await.expect("start");
        assert_eq!(done.observed, Some(a.old.clone()));
        let process = main_process().expect("runs");
        a.start().await.expect("again");
        assert_eq!(
            main_process(),
            Some(process),
            "a second start must not make a second process"
        );
        assert!(matches!(a.driver.probe(&start).await, Probe::Applied(_)));
        assert!(matches!(a.driver.probe(&stop).await, Probe::Repeatable(_)));
        let seen = a.driver.observe().await.expect("observe");
        assert_eq!(seen.health, Health::Healthy, "{}", seen.detail);
        a.verify(&a.old).await.expect("verify");
        a.stop().await.expect("stop");
        assert!(!processes::alive(process));
        a.stop().await.expect("again");
        assert!(matches!(a.driver.probe(&stop).await, Probe::Applied(_)));
        a.driver
            .switch(&a.host.step(Action::Switch, &a.old, &a.new))
            .await
            .expect("switch");
        a.driver
            .start(&a.host.step(Action::Start, &a.old, &a.new))
            .await
            .expect("start of the other release");
        let cwd = processes::cwd(main_process().expect("runs").pid).expect("cwd");
        assert!(cwd.ends_with("releases/v3.0.0"), "{}", cwd.display());
    });
}

/// `systemctl start` of a simple unit answers 0 before the program has done anything.
#[test]
fn trap_type_simple_start_success_proves_nothing() {
    inside("trap_type_simple_start_success_proves_nothing", async {
        // No health check: what is known of the process must do.
        let a = app_with("", false).await;
        a.unit_with(&SERVICE.replace("Restart=always", "Restart=no"));
        for (how, program) in [
            ("ends at once", "echo boom; exit 3"),
            ("ends well", "echo boom"),
            ("ends a little later", "echo boom; exec sleep 0.3"),
        ] {
            a.run_with(program);
            let control = Command::new("systemctl")
                .args(["start", UNIT])
                .status()
                .expect("systemctl");
            assert!(control.success(), "{how}: if this fails, systemd has become better");
            eventually("it has ended", || main_process().is_none()).await;
            let problem = failed(a.start().await);
            assert_eq!(problem.code, Code::Unhealthy, "{how}: {problem}");
            assert!(problem.message.contains("boom"), "{how}: {problem}");
        }
        // Neither is a program that is not there.
        a.unit_with("[Service]\nWorkingDirectory=ROOT/current\nExecStart=ROOT/bin/nothing\n");
        let problem = failed(a.start().await);
        assert!(problem.message.contains("exit-code"), "{problem}");
    });
}

/// With `Restart=always` there is always a process to be seen, and for an instant it is healthy.
#[test]
fn trap_a_crash_loop_looks_like_a_start() {
    inside("trap_a_crash_loop_looks_like_a_start", async {
        let a = app().await;
        for (how, program, rest) in [
            ("quick", "sleep 0.2; echo boom; exit 1", "50ms"),
            ("waiting", "echo boom; exit 1", "30s"),
        ] {
            a.run_with(program);
            a.unit_with(&SERVICE.replace("RestartSec=50ms", &format!("RestartSec={rest}")));
            let begun = Instant::now();
            let problem = failed(a.start().await);
            assert!(
                begun.elapsed() < Duration::from_secs(5),
                "{how}: noticed late: {problem}"
            );
            assert!(problem.message.contains("boom"), "{how}: {problem}");
            assert_eq!(property("ActiveState"), "inactive", "{how}: it would come back");
        }
    });
}

#[test]
fn trap_a_unit_that_restarts_always_stays_stopped() {
    inside("trap_a_unit_that_restarts_always_stays_stopped", async {
        let a = app().await;
        a.start().await.expect("start");
        // Killing the process is what a manager of processes would do, and systemd brings another one.
        let first = main_process().expect("runs");
        processes::signal(first, rustix::process::Signal::KILL).expect("kill");
        eventually("systemd brings it back", || main_process().is_some_and(|p| p != first)).await;
        a.stop().await.expect("stop");
        // Between two tries, nothing runs, and it is not stopped.
        a.run_with("exit 1");
        a.unit_with(&SERVICE.replace("RestartSec=50ms", "RestartSec=2s"));
        systemctl(&["start", "--no-block", UNIT]);
        eventually("it waits for its restart", || property("SubState") == "auto-restart").await;
        assert!(main_process().is_none());
        let stop = a.host.step(Action::Stop, &a.new, &a.old);
        assert!(
            matches!(a.driver.probe(&stop).await, Probe::Repeatable(_)),
            "it will come back"
        );
        a.stop().await.expect("stop");
        assert_eq!(
            (property("ActiveState").as_str(), property("Job").as_str()),
            ("inactive", "")
        );
    });
}

/// `KillMode=process` leaves workers behind, and a unit that ignores SIGTERM takes 90 s by default.
#[test]
fn nothing_of_the_unit_survives_a_stop() {
    inside("nothing_of_the_unit_survives_a_stop", async {
        let a = app().await;
        a.run_with("setsid sleep 600 & echo $! > ROOT/child; trap '' TERM; while :; do sleep 600; done");
        a.unit_with(&format!("{SERVICE}KillMode=process\n"));
        a.start().await.expect("start");
        let main = main_process().expect("runs");
        let child = processes::identity(read(&a.root.join("child")).trim().parse().expect("a PID")).expect("child");
        a.stop().await.expect("stop");
        assert!(!processes::alive(main) && !processes::alive(child));
        // The main process is gone already, by hand; the worker is not.
        a.run_with("setsid sleep 600 & echo $! > ROOT/child; exec sleep 600");
        a.start().await.expect("start");
        let child = processes::identity(read(&a.root.join("child")).trim().parse().expect("a PID")).expect("child");
        systemctl(&["stop", UNIT]);
        assert!(processes::alive(child), "if this fails, systemd has become better");
        a.stop().await.expect("stop");
        assert!(!processes::alive(child));
    });
}

/// A unit that crashed too often is refused, also for whoever has mended it.
#[test]
fn trap_start_limit_hit() {
    inside("trap_start_limit_hit", async {
        let a = app().await;
        a.run_with("exit 1");
        a.unit_with(&SERVICE.replace(
            "StartLimitIntervalSec=0",
            "StartLimitIntervalSec=600\nStartLimitBurst=2",
        ));
        systemctl(&["start", UNIT]);
        eventually("systemd gives up", || property("ActiveState") == "failed").await;
        a.run_with("exec sleep 600");
        let control = Command::new("systemctl")
            .args(["start", UNIT])
            .status()
            .expect("systemctl");
        assert!(!control.success(), "if this fails, the trap is gone");
        assert!(matches!(
            a.driver.probe(&a.host.step(Action::Stop, &a.new, &a.old)).await,
            Probe::Applied(_)
        ));
        a.stop().await.expect("stop");
        a.start().await.expect("start");
    });
}

/// The link is followed when the unit starts: a process that was not restarted runs the release before.
#[test]
fn trap_the_link_is_followed_at_the_start() {
    inside("trap_the_link_is_followed_at_the_start", async {
        let a = app_with("", false).await;
        a.start().await.expect("start");
        let before = main_process().expect("runs");
        a.link_to("v3.0.0");
        let problem = failed(a.verify(&a.new).await);
        assert_eq!(problem.code, Code::WrongRevision);
        assert!(problem.message.contains("v2.9.0"), "{problem}");
        // `systemctl start` would do nothing for a unit that runs.
        let start = a.host.step(Action::Start, &a.old, &a.new);
        a.driver.start(&start).await.expect("start");
        assert!(!processes::alive(before));
        a.verify(&a.new).await.expect("verify");
        // A unit that names one release does not follow the link at all.
        a.unit_with(&SERVICE.replace("ROOT/current", "ROOT/releases/v3.0.0"));
        assert!(a.blocker().await.contains("does not follow"));
        a.stop().await.expect("stop");
        a.link_to("v2.9.0");
        let problem = failed(a.start().await);
        assert_eq!(problem.code, Code::WrongRevision);
        assert!(main_process().is_none(), "nothing is left running");
    });
}

#[test]
fn the_running_process_has_the_present_environment() {
    inside("the_running_process_has_the_present_environment", async {
        let a = app().await;
        a.start().await.expect("start");
        write(&a.root.join("env"), "MODE=new\nPASSWORD=hunter2\n");
        let problem = failed(a.verify(&a.old).await);
        assert_eq!(problem.code, Code::WrongRevision);
        assert!(problem.message.ends_with(": MODE"), "{problem}");
        a.start().await.expect("start");
        a.verify(&a.old).await.expect("verify");
        a.unit_with(&SERVICE.replace("EnvironmentFile=ROOT/env\n", ""));
        let findings = a.prepare().await;
        assert!(findings[0].problem.message.contains("EnvironmentFile"), "{findings:?}");
    });
}

/// systemd goes on with what it read, whatever is on disk.
#[test]
fn trap_a_unit_that_changed_on_disk() {
    inside("trap_a_unit_that_changed_on_disk", async {
        let a = app().await;
        // One that nobody wants is dropped from memory when it is stopped, and read anew.
        systemctl(&["enable", UNIT]);
        a.start().await.expect("start");
        a.stop().await.expect("stop");
        a.write_unit(&format!("{SERVICE}Environment=COLOUR=green\n"));
        eventually("systemd notices", || property("NeedDaemonReload") == "yes").await;
        let findings = a.prepare().await;
        assert_eq!(
            (findings.len(), findings[0].severity),
            (1, Severity::Warning),
            "{findings:?}"
        );
        assert!(findings[0].problem.message.contains("changed on disk"), "{findings:?}");
        a.start().await.expect("start");
        let environment = processes::environment(main_process().expect("runs").pid).expect("environment");
        assert!(environment.contains_key(&b"COLOUR"[..]), "the old unit was started");
    });
}

#[test]
fn a_unit_that_cannot_be_started_blocks() {
    inside("a_unit_that_cannot_be_started_blocks", async {
        let a = app().await;
        let path = PathBuf::from("/etc/systemd/system").join(UNIT);
        std::fs::remove_file(&path).expect("remove");
        std::os::unix::fs::symlink("/dev/null", &path).expect("mask");
        systemctl(&["daemon-reload"]);
        assert!(a.blocker().await.contains("masked"));
        assert_eq!(failed(a.start().await).code, Code::ManagerFailed);
        std::fs::remove_file(&path).expect("remove");
        systemctl(&["daemon-reload"]);
        assert!(a.blocker().await.contains("does not know"));
        assert_eq!(failed(a.stop().await).code, Code::ManagerFailed);
        assert_eq!(failed(a.start().await).code, Code::ManagerFailed);
        a.unit_with("[Service]\nType=oneshot\nWorkingDirectory=ROOT/current\nExecStart=/bin/true\n");
        assert!(a.blocker().await.contains("oneshot"));
        // A socket would start it again with the first request, the health check's for one.
        a.unit_with(SERVICE);
        let path = PathBuf::from("/etc/systemd/system/zekka-app.socket");
        write(&path, "[Socket]\nListenStream=/run/zekka.sock\n");
        systemctl(&["daemon-reload"]);
        systemctl(&["start", "zekka-app.socket"]);
        let findings = a.prepare().await;
        assert!(
            findings
                .iter()
                .any(|f| f.severity == Severity::Warning && f.problem.message.contains("zekka-app.socket")),
            "{findings:?}"
        );
    });
}
