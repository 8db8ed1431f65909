//! The release-dir driver's `command` process manager, with real processes.
//!
//! The application is a shell that writes its PID file and sleeps. Its health is answered by a server in the test that
//! looks at that very process: 503 when it is not alive, else the name of the directory it works in as its version.

mod host;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use host::{Host, eventually, failed, names, read, script, write};
use rollback_agent::driver::release_dir::{ReleaseDirConfig, ReleaseDirDriver};
use rollback_agent::driver::{Action, Driver, Health, Probe, Revision};
use rollback_agent::processes;
use rollback_proto::problem::Code;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Starts a daemon that works in the present directory, and returns.
const START: &str = r#"echo started >> ROOT/starts
sh -c 'echo $$ > ROOT/pid; echo "listening" > ROOT/log; exec sleep 600' &"#;

struct App {
    host: Host,
    root: PathBuf,
    driver: ReleaseDirDriver,
    old: Revision,
    new: Revision,
}

impl Drop for App {
    fn drop(&mut self) {
        if let Some(process) = self.process() {
            host::end(process, rustix::process::Signal::KILL);
        }
    }
}

impl App {
    fn process(&self) -> Option<processes::Identity> {
        processes::from_pid_file(&self.root.join("pid")).ok().flatten()
    }

    fn alive(&self) -> processes::Identity {
        self.process().expect("the application runs")
    }

    fn start_with(&self, text: &str) {
        script(
            &self.root.join("start"),
            &text.replace("ROOT", &self.root.to_string_lossy()),
        );
    }

    fn link_to(&self, version: &str) {
        let current = self.root.join("current");
        let _ = std::fs::remove_file(&current);
        std::os::unix::fs::symlink(format!("releases/{version}"), current).expect("link");
    }

    async fn start(&self) -> Result<rollback_agent::driver::Done, rollback_agent::driver::Failure> {
        self.driver
            .start(
                &self
                    .host
                    .step_within(Action::Start, &self.new, &self.old, Duration::from_secs(9)),
            )
            .await
    }

    async fn stop(&self) -> Result<rollback_agent::driver::Done, rollback_agent::driver::Failure> {
        self.driver
            .stop(&self.host.step(Action::Stop, &self.new, &self.old))
            .await
    }
}

/// Both releases are there, `current` points to v2.9.0, nothing runs.
async fn app_with(extra: &str) -> App {
    let host = Host::new();
    let root = host.path().join("app");
    for version in ["v2.9.0", "v3.0.0"] {
        write(&root.join("releases").join(version).join("app"), version);
    }
    write(&root.join("env"), "MODE=old\nPASSWORD=hunter2\n");
    let health = health_server(root.join("pid")).await;
    let text = format!(
        "root = '{0}'\nhealth = {{ http = 'http://{health}/', version = '/', within = '4s', every = '5ms' }}\n[process]\n\
         start = ['{0}/start']\npid_file = '{0}/pid'\nlog = '{0}/log'\nenv_file = '{0}/env'\nkill_after = '300ms'\n{extra}",
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
    app.start_with(START);
    app.link_to("v3.0.0");
    app.new = app.driver.observe().await.expect("observe").revision;
    app.link_to("v2.9.0");
    app.old = app.driver.observe().await.expect("observe").revision;
    app
}

async fn app() -> App {
    app_with("").await
}

async fn health_server(pid_file: PathBuf) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            let mut request = [0u8; 1024];
            let _ = peer.read(&mut request).await;
            let version = processes::from_pid_file(&pid_file)
                .ok()
                .flatten()
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

fn starts(root: &Path) -> usize {
    read(&root.join("starts")).lines().count()
}

#[tokio::test]
async fn stops_switches_and_starts_and_every_move_may_be_repeated() {
    let a = app().await;
    assert_eq!(a.driver.observe().await.expect("observe").health, Health::Stopped);
    let start = a.host.step(Action::Start, &a.new, &a.old);
    assert!(matches!(a.driver.probe(&start).await, Probe::Repeatable(_)));
    let done = a.start().await.expect("start");
    assert_eq!(done.observed, Some(a.old.clone()));
    a.start().await.expect("again");
    assert_eq!(starts(&a.root), 1, "a second start must not make a second process");
    assert!(matches!(a.driver.probe(&start).await, Probe::Applied(_)));
    let seen = a.driver.observe().await.expect("observe");
    assert_eq!(seen.health, Health::Healthy, "{}", seen.detail);
    a.driver.verify(&start).await.expect("verify");
    let environment = processes::environment(a.alive().pid).expect("environment");
    assert_eq!(environment.get(&b"MODE"[..]).map(Vec::as_slice), Some(&b"old"[..]));
    assert!(
        !environment.contains_key(&b"CARGO_MANIFEST_DIR"[..]),
        "the agent's own environment must not leak"
    );

    let process = a.alive();
    assert!(matches!(
        a.driver.probe(&a.host.step(Action::Stop, &a.new, &a.old)).await,
        Probe::Repeatable(_)
    ));
    a.stop().await.expect("stop");
    assert!(!processes::alive(process));
    a.stop().await.expect("again");
    assert!(matches!(
        a.driver.probe(&a.host.step(Action::Stop, &a.new, &a.old)).await,
        Probe::Applied(_)
    ));
    a.driver
        .switch(&a.host.step(Action::Switch, &a.old, &a.new))
        .await
        .expect("switch");
    a.driver
        .start(&a.host.step(Action::Start, &a.old, &a.new))
        .await
        .expect("start of the other release");
    assert!(processes::cwd(a.alive().pid).expect("cwd").ends_with("releases/v3.0.0"));
}

#[tokio::test]
async fn what_does_not_become_healthy_is_not_left_running() {
    let a = app().await;
    for (how, text) in [
        ("ends at once", "echo boom > ROOT/log; echo 999999 > ROOT/pid"),
        ("fails", "echo boom > ROOT/log; exit 3"),
        (
            "ends while it starts",
            "sh -c 'cd /; echo boom > ROOT/log; echo $$ > ROOT/pid; sleep 0.1' &",
        ),
    ] {
        let _ = std::fs::remove_file(a.root.join("pid"));
        a.start_with(text);
        let begun = Instant::now();
        let problem = failed(a.start().await);
        assert!(problem.message.contains("boom"), "{how}: {}", problem.message);
        assert!(begun.elapsed() < Duration::from_secs(7), "{how}");
        assert!(a.process().is_none(), "{how}");
    }
}

/// pm2 restarts in the directory that it knew before: the process answers, but it is the old release.
#[tokio::test]
async fn trap_a_process_that_stays_in_the_old_directory() {
    let a = app().await;
    a.start_with(
        "cd ROOT/releases/v3.0.0; sh -c 'echo $$ > ROOT/pid; exec sleep 600' & \nwhile [ ! -s ROOT/pid ]; do sleep 0.01; done",
    );
    let problem = failed(a.start().await);
    assert!(problem.message.contains("v3.0.0"), "{}", problem.message);
    assert!(a.process().is_none(), "nothing is left running");
    // The same without a health check that knows versions: /proc alone must tell.
    let text = format!(
        "root = '{0}'\n[process]\nstart = ['{0}/start']\npid_file = '{0}/pid'\nkill_after = '300ms'",
        a.root.display()
    );
    let config: ReleaseDirConfig = toml::from_str(&text).expect("config");
    let bare = ReleaseDirDriver::new("part", config, Arc::clone(&a.host.vault)).expect("driver");
    let problem = failed(bare.start(&a.host.step(Action::Start, &a.new, &a.old)).await);
    assert_eq!(problem.code, Code::WrongRevision);
    assert!(a.process().is_none(), "nothing is left running");
}

/// pm2 may also keep the environment that it knew before.
#[tokio::test]
async fn trap_a_process_that_keeps_the_old_environment() {
    let a = app().await;
    a.start_with("export MODE=stale\nsh -c 'echo $$ > ROOT/pid; exec sleep 600' &");
    let problem = failed(a.start().await);
    assert_eq!(problem.code, Code::WrongRevision);
    assert!(
        problem.message.contains("MODE") && !problem.message.contains("PASSWORD"),
        "{}",
        problem.message
    );
    assert!(
        !problem.message.contains("stale") && !problem.message.contains("hunter2"),
        "{}",
        problem.message
    );
    assert!(a.process().is_none(), "nothing is left running");
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_and_its_children_are_ended() {
    let a = app().await;
    a.start_with(
        "setsid sh -c 'trap \"\" TERM; echo $$ > ROOT/pid; setsid sleep 600 & echo $! > ROOT/child; while :; do sleep 600; done' &",
    );
    a.start().await.expect("start");
    eventually("the child is there", || {
        a.root.join("child").exists() && !read(&a.root.join("child")).is_empty()
    })
    .await;
    let child = processes::identity(read(&a.root.join("child")).trim().parse().expect("a PID")).expect("child");
    let main = a.alive();
    a.stop().await.expect("stop");
    assert!(!processes::alive(main) && !processes::alive(child));
}

#[tokio::test]
async fn a_stop_program_that_does_nothing_is_not_believed() {
    let a = app_with("stop = ['true']").await;
    a.start().await.expect("start");
    let main = a.alive();
    a.stop().await.expect("stop");
    assert!(!processes::alive(main));
}

/// A PID file that names somebody else's process: it is neither killed nor taken for the application.
#[tokio::test]
async fn trap_a_pid_file_that_names_a_stranger() {
    let a = app_with("stop = ['true']").await;
    let mut stranger = std::process::Command::new("sleep")
        .arg("600")
        .current_dir("/")
        .spawn()
        .expect("sleep");
    write(&a.root.join("pid"), &stranger.id().to_string());
    let stopped = a.stop().await;
    let started = a.start().await;
    let lives = stranger.try_wait().expect("wait").is_none();
    stranger.kill().expect("kill");
    stranger.wait().expect("wait");
    assert!(lives, "a stranger was killed");
    assert_eq!(failed(stopped).code, Code::StillRunning);
    assert_eq!(failed(started).code, Code::StillRunning);
}

#[tokio::test]
async fn starting_another_release_than_the_live_one_is_refused() {
    let a = app().await;
    let problem = failed(a.driver.start(&a.host.step(Action::Start, &a.old, &a.new)).await);
    assert_eq!(problem.code, Code::WrongRevision);
    assert!(!names(&a.root).contains(&"starts".to_owned()));
}

#[tokio::test]
async fn programs_that_are_missing_are_found_before_anything_is_stopped() {
    let a = app_with("stop = ['/nowhere/stop']").await;
    std::fs::remove_file(a.root.join("start")).expect("remove");
    std::fs::remove_file(a.root.join("env")).expect("remove");
    let findings = a.driver.prepare(&a.host.step(Action::Prepare, &a.old, &a.new)).await;
    let codes: Vec<Code> = findings.iter().map(|f| f.problem.code).collect();
    assert_eq!(codes, [Code::ProgramFailed, Code::ProgramFailed, Code::FileFailed]);
}

/// Zombies stay for ever where the first process of a container does not reap: they are not running.
#[tokio::test]
async fn trap_a_zombie_counts_as_stopped() {
    let a = app().await;
    let mut child = std::process::Command::new("sh")
        .args(["-c", "exec sleep 600"])
        .current_dir(a.root.join("releases/v2.9.0"))
        .spawn()
        .expect("spawn");
    write(&a.root.join("pid"), &child.id().to_string());
    // Its parent, this test, does not reap it until the end.
    let stopped = a.stop().await;
    child.wait().expect("reap");
    stopped.expect("stop");
}
