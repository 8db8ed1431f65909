//! The `pm2` process manager, with the real pm2 and a real node server, in a `PM2_HOME` of its own.
//!
//! The server answers with the name of the directory that its script lies in as its version.

mod host;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use host::{Host, eventually, failed, read, write};
use rollback_agent::driver::release_dir::{ReleaseDirConfig, ReleaseDirDriver};
use rollback_agent::driver::{Action, Done, Driver, Failure, Health, Probe, Revision, Severity};
use rollback_agent::processes::{self, Identity};
use rollback_proto::problem::Code;

const SERVER: &str = "const version = require('path').basename(__dirname);\n\
    require('http').createServer((q, r) => r.end(version)).listen(PORT, '127.0.0.1');\n";

const ECOSYSTEM: &str = "module.exports = { apps: [{ name: 'zekka-app', script: 'server.js', restart_delay: 20 }] };\n";

const CLUSTER: &str = "module.exports = { apps: [{ name: 'zekka-app', script: 'server.js', instances: 2, exec_mode: \
    'cluster' }] };\n";

/// The real one: on the path, or where `make dependencies` puts it.
fn pm2_program() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("../target"), PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("pm2"))
        .chain([target.join("pm2/node_modules/.bin/pm2")])
        .find(|program| program.is_file())
        .expect("pm2 is missing: `make dependencies` installs it")
}

struct App {
    host: Host,
    root: PathBuf,
    home: PathBuf,
    port: u16,
    driver: ReleaseDirDriver,
    old: Revision,
    new: Revision,
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.pm2_in(&self.root, &["kill"]);
        // What a test took away from pm2.
        for process in self.pid_files() {
            host::end(process, rustix::process::Signal::KILL);
        }
    }
}

impl App {
    /// pm2, called by hand in a directory.
    fn pm2_in(&self, dir: &Path, args: &[&str]) -> Output {
        Command::new(pm2_program())
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PM2_HOME", &self.home)
            .env("MODE", "by-hand")
            .current_dir(dir)
            .output()
            .expect("run pm2")
    }

    fn by_hand(&self, args: &[&str]) {
        let output = self.pm2_in(&self.root.join("current"), args);
        assert!(output.status.success(), "pm2 {args:?}: {output:?}");
    }

    fn pid_files(&self) -> Vec<Identity> {
        let Ok(entries) = std::fs::read_dir(self.home.join("pids")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| processes::from_pid_file(&entry.path()).ok().flatten())
            .collect()
    }

    fn process(&self) -> Identity {
        *self.pid_files().first().expect("the application runs")
    }

    fn daemon(&self) -> Identity {
        processes::from_pid_file(&self.home.join("pm2.pid"))
            .expect("PID file")
            .expect("pm2's daemon runs")
    }

    fn release(&self, version: &str) -> PathBuf {
        self.root.join("releases").join(version)
    }

    fn in_both(&self, file: &str, text: &str) {
        for version in ["v2.9.0", "v3.0.0"] {
            let text = text.replace("PORT", &self.port.to_string());
            write(&self.release(version).join(file), &text);
        }
    }

    fn link_to(&self, version: &str) {
        let current = self.root.join("current");
        let _ = std::fs::remove_file(&current);
        std::os::unix::fs::symlink(format!("releases/{version}"), current).expect("link");
    }

    /// Both revisions, as they are on disk now. v2.9.0 is linked afterwards.
    async fn look(&mut self) {
        self.link_to("v3.0.0");
        self.new = self.driver.observe().await.expect("observe").revision;
        self.link_to("v2.9.0");
        self.old = self.driver.observe().await.expect("observe").revision;
    }

    async fn start(&self) -> Result<Done, Failure> {
        self.driver
            .start(&self.host.step(Action::Start, &self.new, &self.old))
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

    fn answers(&self) -> bool {
        std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }
}

/// Both releases are there, `current` points to v2.9.0, nothing runs, not even pm2.
async fn app_with(extra: &str) -> App {
    let host = Host::new();
    let (root, home, port) = (host.path().join("app"), host.path().join("pm2"), host::free_port());
    std::fs::create_dir_all(&home).expect("PM2_HOME");
    write(&root.join("env"), "MODE=old\nPASSWORD=hunter2\n");
    let path = std::env::var("PATH").expect("PATH");
    let text = format!(
        "root = '{0}'\nhealth = {{ http = 'http://127.0.0.1:{port}/', version = '/', within = '8s', every = '10ms' }}\n\
         [process]\nmanager = 'pm2'\nname = 'zekka-app'\nhome = '{1}'\nbinary = '{2}'\npath = '{path}'\n\
         env_file = '{0}/env'\n{extra}",
        root.display(),
        home.display(),
        pm2_program().display(),
    );
    let config: ReleaseDirConfig = toml::from_str(&text).expect("config");
    let driver = ReleaseDirDriver::new("part", config, Arc::clone(&host.vault)).expect("driver");
    let mut app = App {
        host,
        root,
        home,
        port,
        driver,
        old: host::revision("", ""),
        new: host::revision("", ""),
    };
    app.in_both("server.js", SERVER);
    app.in_both("ecosystem.config.cjs", ECOSYSTEM);
    for version in ["v2.9.0", "v3.0.0"] {
        write(&app.release(version).join("version"), version);
    }
    app.look().await;
    app
}

async fn app() -> App {
    app_with("").await
}

fn works_in(process: Identity, version: &str) -> bool {
    processes::cwd(process.pid).is_some_and(|dir| dir.ends_with(format!("releases/{version}")))
}

#[tokio::test]
async fn stops_switches_and_starts_and_every_move_may_be_repeated() {
    let a = app().await;
    assert_eq!(a.driver.observe().await.expect("observe").health, Health::Stopped);
    let (start, stop) = (
        a.host.step(Action::Start, &a.new, &a.old),
        a.host.step(Action::Stop, &a.new, &a.old),
    );
    assert!(matches!(a.driver.probe(&start).await, Probe::Repeatable(_)));
    assert!(!a.home.join("rpc.sock").exists(), "looking must not start pm2's daemon");
    let done = a.start().await.expect("start");
    assert_eq!(done.observed, Some(a.old.clone()));
    let process = a.process();
    assert!(works_in(process, "v2.9.0"));
    a.start().await.expect("again");
    assert_eq!(a.process(), process, "a second start must not make a second process");
    assert!(matches!(a.driver.probe(&start).await, Probe::Applied(_)));
    assert!(matches!(a.driver.probe(&stop).await, Probe::Repeatable(_)));
    let seen = a.driver.observe().await.expect("observe");
    assert_eq!(seen.health, Health::Healthy, "{}", seen.detail);
    a.verify(&a.old).await.expect("verify");
    let environment = processes::environment(process.pid).expect("environment");
    assert_eq!(environment.get(&b"MODE"[..]).map(Vec::as_slice), Some(&b"old"[..]));
    assert!(
        !environment.contains_key(&b"CARGO_MANIFEST_DIR"[..]),
        "ours must not leak"
    );
    // A daemon that lived in a release would keep it busy, and fail when it is removed.
    assert_eq!(processes::cwd(a.daemon().pid), std::fs::canonicalize(&a.home).ok());
    assert!(!a.home.join("dump.pm2").exists(), "nobody asked for pm2 save");

    a.stop().await.expect("stop");
    assert!(!processes::alive(process) && !a.answers());
    a.stop().await.expect("again");
    assert!(matches!(a.driver.probe(&stop).await, Probe::Applied(_)));
    a.driver
        .switch(&a.host.step(Action::Switch, &a.old, &a.new))
        .await
        .expect("switch");
    write(&a.root.join("env"), "MODE=new\n");
    a.driver
        .start(&a.host.step(Action::Start, &a.old, &a.new))
        .await
        .expect("start of the other release");
    assert!(works_in(a.process(), "v3.0.0"));
}

/// `pm2 restart` and `pm2 startOrReload` of another release exit 0 and run the one before.
#[tokio::test]
async fn trap_pm2_keeps_the_old_cwd() {
    let a = app_with("verify_env = false").await;
    a.start().await.expect("start");
    a.link_to("v3.0.0");
    for by_hand in [
        &["restart", "zekka-app"][..],
        &["startOrReload", "ecosystem.config.cjs", "--only", "zekka-app"],
    ] {
        let before = a.process();
        a.by_hand(by_hand);
        eventually("pm2 started another process", || {
            a.pid_files().first().is_some_and(|p| *p != before)
        })
        .await;
        assert!(works_in(a.process(), "v2.9.0"), "if this fails, pm2 has become better");
        let problem = failed(a.verify(&a.new).await);
        assert_eq!(problem.code, Code::WrongRevision);
        assert!(problem.message.contains("v2.9.0"), "{}", problem.message);
    }
    a.driver
        .start(&a.host.step(Action::Start, &a.old, &a.new))
        .await
        .expect("start");
    assert!(works_in(a.process(), "v3.0.0"));
}

#[tokio::test]
async fn trap_pm2_keeps_the_old_env() {
    let a = app().await;
    a.start().await.expect("start");
    write(&a.root.join("env"), "MODE=new\nPASSWORD=hunter3\n");
    a.by_hand(&["restart", "zekka-app"]);
    let problem = failed(a.verify(&a.old).await);
    assert_eq!(problem.code, Code::WrongRevision);
    assert!(problem.message.contains("MODE, PASSWORD"), "{}", problem.message);
    assert!(!problem.message.contains("hunter"), "{}", problem.message);
    a.start().await.expect("start");
    a.verify(&a.old).await.expect("verify");
    // The ecosystem file has precedence: then the file's value is not what is effective, and that is said.
    let own = ECOSYSTEM.replace("script:", "env: { MODE: 'its own' }, script:");
    write(&a.release("v3.0.0").join("ecosystem.config.cjs"), &own);
    a.link_to("v3.0.0");
    let new = a.driver.observe().await.expect("observe").revision;
    let problem = failed(a.driver.start(&a.host.step(Action::Start, &a.old, &new)).await);
    assert!(problem.message.contains("MODE"), "{}", problem.message);
    assert!(!a.answers(), "nothing is left running");
}

/// Workers of the cluster are forks of pm2's daemon: their environment is the daemon's, and their own is in one variable.
#[tokio::test]
async fn all_instances_of_a_cluster_run_the_right_release() {
    let mut a = app().await;
    a.in_both("ecosystem.config.cjs", CLUSTER);
    a.look().await;
    a.start().await.expect("start");
    let before = a.pid_files();
    assert_eq!(before.len(), 2);
    assert!(before.iter().all(|p| works_in(*p, "v2.9.0")));
    write(&a.root.join("env"), "MODE=new\nPASSWORD=hunter2\n");
    let problem = failed(a.verify(&a.old).await);
    assert!(problem.message.ends_with(": MODE"), "{}", problem.message);
    a.stop().await.expect("stop");
    assert!(before.iter().all(|p| !processes::alive(*p)));
    a.link_to("v3.0.0");
    a.driver
        .start(&a.host.step(Action::Start, &a.old, &a.new))
        .await
        .expect("start");
    let after = a.pid_files();
    assert!(after.len() == 2 && after.iter().all(|p| works_in(*p, "v3.0.0")));
    // One that is down is one too few.
    a.by_hand(&["stop", "1"]);
    let problem = failed(a.verify(&a.new).await);
    assert!(problem.message.contains("stopped"), "{}", problem.message);
}

#[tokio::test]
async fn trap_pm2_starts_nothing_and_exits_0() {
    let mut a = app().await;
    let other = ECOSYSTEM.replace("zekka-app", "zekka-api");
    a.in_both("ecosystem.config.cjs", &other);
    a.look().await;
    let problem = failed(a.start().await);
    assert_eq!(problem.code, Code::ManagerFailed);
    assert!(
        problem.message.contains("no application zekka-app"),
        "{}",
        problem.message
    );
}

/// pm2 restarts whatever ends, so there is always a process to be seen.
#[tokio::test]
async fn trap_a_crash_loop_looks_like_a_start() {
    let mut a = app_with("verify_env = false").await;
    for (how, server) in [
        ("at once", "throw new Error('boom');".to_owned()),
        (
            "after it was healthy",
            format!("{SERVER}setTimeout(() => {{ throw new Error('boom') }}, 800);"),
        ),
    ] {
        a.in_both("server.js", &server);
        a.look().await;
        let problem = failed(a.start().await);
        assert!(problem.message.contains("boom"), "{how}: {}", problem.message);
        assert!(
            !a.answers() && a.pid_files().is_empty(),
            "{how}: nothing is left running"
        );
    }
}

/// A killed daemon leaves its applications running, and the next daemon does not know them.
#[tokio::test]
async fn trap_a_killed_daemon_leaves_its_applications_running() {
    let a = app().await;
    a.start().await.expect("start");
    let orphan = a.process();
    host::end(a.daemon(), rustix::process::Signal::KILL);
    assert!(processes::alive(orphan) && a.answers());
    assert_ne!(a.driver.observe().await.expect("observe").health, Health::Stopped);
    let problem = failed(a.verify(&a.old).await);
    assert!(problem.message.contains("left it behind"), "{}", problem.message);
    assert!(matches!(
        a.driver.probe(&a.host.step(Action::Stop, &a.new, &a.old)).await,
        Probe::Repeatable(_)
    ));
    a.stop().await.expect("stop");
    assert!(!processes::alive(orphan) && !a.answers());
    a.start().await.expect("start with a new daemon");
}

/// pm2's list holds every application's environment: it is longer than what is kept of other programs' output. Only
/// ours is acted on, whatever namespace the others are in.
#[tokio::test]
async fn trap_a_long_list_is_cut() {
    let a = app().await;
    write(&a.root.join("neighbour/wait.js"), "setInterval(() => {}, 1000);");
    write(
        &a.root.join("neighbour/other.config.cjs"),
        "module.exports = { apps: [{ name: 'neighbour', namespace: 'zekka-app', script: 'wait.js', env: { LONG: \
         'x'.repeat(90000) } }] };",
    );
    let dir = a.root.join("neighbour");
    assert!(a.pm2_in(&dir, &["start", "other.config.cjs"]).status.success());
    let neighbour = a.process();
    a.start().await.expect("start");
    a.stop().await.expect("stop");
    a.start().await.expect("start again");
    assert!(processes::alive(neighbour), "somebody else's application was stopped");
}

/// What was saved while the bad release ran would come back with the next boot.
#[tokio::test]
async fn trap_a_reboot_brings_the_saved_release_back() {
    let a = app().await;
    a.link_to("v3.0.0");
    a.driver
        .start(&a.host.step(Action::Start, &a.old, &a.new))
        .await
        .expect("start");
    a.by_hand(&["save"]);
    let saved = || read(&a.home.join("dump.pm2"));
    assert!(saved().contains("releases/v3.0.0"));
    a.stop().await.expect("stop");
    a.link_to("v2.9.0");
    let done = a.start().await.expect("start");
    assert!(done.summary.contains("saved for the next boot"), "{}", done.summary);
    assert!(saved().contains("releases/v2.9.0") && !saved().contains("releases/v3.0.0"));
}

#[tokio::test]
async fn what_would_fail_is_found_before_anything_is_stopped() {
    let mut a = app().await;
    std::fs::rename(
        a.release("v2.9.0").join("ecosystem.config.cjs"),
        a.release("v2.9.0").join("ecosystem.config.js"),
    )
    .expect("rename");
    a.look().await;
    a.link_to("v3.0.0");
    let prepare = a.host.step(Action::Prepare, &a.new, &a.old);
    let findings = a.driver.prepare(&prepare).await;
    let seen: Vec<_> = findings.iter().map(|f| (f.severity, f.problem.code)).collect();
    assert_eq!(
        seen,
        [
            (Severity::Blocker, Code::ManagerFailed),
            (Severity::Warning, Code::ManagerFailed)
        ],
        "no ecosystem file; no daemon: {findings:?}"
    );
    assert!(!a.home.join("rpc.sock").exists(), "looking must not start pm2's daemon");
    for bad in [
        "name = 'all'",
        "name = '0'",
        "name = '--force'",
        "ecosystem = '../x.cjs'",
        "home = 'pm2'",
    ] {
        let (key, _) = bad.split_once(" =").expect("key");
        let mut keys: toml::Table = toml::from_str("manager = 'pm2'\nname = 'x'\nhome = '/x'").expect("keys");
        keys.remove(key);
        keys.extend(toml::from_str::<toml::Table>(bad).expect("key"));
        let table = toml::Table::from_iter([
            ("root".to_owned(), toml::Value::from("/x")),
            ("process".to_owned(), keys.into()),
        ]);
        let config: ReleaseDirConfig = table.try_into().expect("config");
        assert!(
            ReleaseDirDriver::new("part", config, Arc::clone(&a.host.vault)).is_err(),
            "{bad}"
        );
    }
}

/// Only root can act for another account. As root in somebody else's `PM2_HOME`, pm2 would run the application as root.
#[tokio::test]
async fn runs_under_the_account_that_pm2_belongs_to() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let nobody = 65534;
    let account = |a: &App| {
        use std::os::unix::fs::PermissionsExt;
        std::os::unix::fs::chown(&a.home, Some(nobody), Some(nobody)).expect("chown");
        std::fs::set_permissions(a.host.path(), std::fs::Permissions::from_mode(0o755)).expect("mode");
    };
    let wrong = app().await;
    account(&wrong);
    let findings = wrong
        .driver
        .prepare(&wrong.host.step(Action::Prepare, &wrong.old, &wrong.new))
        .await;
    assert!(
        findings
            .iter()
            .any(|f| f.severity == Severity::Blocker && f.problem.message.contains("65534")),
        "{findings:?}"
    );
    let a = app_with("user = 'nobody'").await;
    account(&a);
    a.start().await.expect("start");
    for process in [a.daemon(), a.process()] {
        let status = read(Path::new(&format!("/proc/{}/status", process.pid)));
        assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
    }
    a.stop().await.expect("stop");
    eventually("it does not answer", || !a.answers()).await;
    let limit = Duration::from_secs(5);
    let done = a
        .driver
        .stop(&a.host.step_within(Action::Stop, &a.new, &a.old, limit))
        .await;
    assert_eq!(done.expect("again").summary, "not running");
}
