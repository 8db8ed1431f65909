//! Checks against real parts: a Redis server, log files that are rotated, containers, processes, programs, HTTP servers.

mod host;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use host::{Host, eventually, failed, free_port, script, write};
use rollback_agent::check::{Check, HealthCheck};
use rollback_agent::driver::checked::{Checked, NamedCheck};
use rollback_agent::driver::env_file::{EnvFileConfig, EnvFileDriver};
use rollback_agent::driver::{Action, Done, Driver, Failure, Revision};
use rollback_proto::problem::Code;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn asked(text: &str) -> HealthCheck {
    toml::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

async fn passes(text: &str) -> String {
    match asked(text).once(None).await {
        Ok(passed) => passed.detail,
        Err(problem) => panic!("{text}: {problem}"),
    }
}

async fn fails(text: &str, why: &str) -> String {
    let problem = asked(text)
        .once(None)
        .await
        .err()
        .unwrap_or_else(|| panic!("{text} passed"));
    assert_eq!(problem.code, Code::Unhealthy);
    assert!(problem.message.contains(why), "{why:?} is not in: {problem}");
    problem.message
}

/// Ended with the test, however that ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// ---- redis

const REDIS_PASSWORD: &str = "hunter2-redis";

#[tokio::test]
async fn redis_keeps_what_is_written_to_it() {
    let dir = tempfile::tempdir().expect("directory");
    let port = free_port();
    let server = Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--requirepass",
            REDIS_PASSWORD,
        ])
        .arg("--dir")
        .arg(dir.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server");
    let server = Ended(server);
    eventually("redis listens", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    })
    .await;
    let password = dir.path().join("password");
    write(&password, &format!("{REDIS_PASSWORD}\n"));
    let check = |more: &str| {
        format!(
            "redis = {{ address = '127.0.0.1:{port}', password_file = '{}', db = 3{more} }}",
            password.display()
        )
    };
    let detail = passes(&check("")).await;
    assert!(detail.contains("read back"), "{detail}");
    let client = redis::Client::open(format!("redis://:{REDIS_PASSWORD}@127.0.0.1:{port}/3")).expect("client");
    let mut connection = client.get_multiplexed_async_connection().await.expect("connect");
    let size: u64 = redis::cmd("DBSIZE").query_async(&mut connection).await.expect("DBSIZE");
    assert_eq!(size, 0, "the key is taken away");

    // It answers PING and takes nothing: as a master without its replicas, or a replica, does.
    let refuse: Result<String, _> = redis::cmd("CONFIG")
        .arg(&["SET", "min-replicas-to-write", "1"])
        .query_async(&mut connection)
        .await;
    refuse.expect("CONFIG SET");
    let said = fails(&check(""), "SET of a key of ours").await;
    assert!(said.contains("NOREPLICAS") && said.contains("read_only"), "{said}");
    assert_eq!(
        passes(&check(", read_only = true")).await.split(' ').next(),
        Some("PONG")
    );

    write(&password, "wrong-password");
    let said = fails(&check(""), "connect").await;
    assert!(!said.contains("wrong-password"), "{said}");
    let none = format!("redis = {{ address = '127.0.0.1:{port}' }}");
    fails(&none, "NOAUTH").await;
    write(&password, REDIS_PASSWORD);

    // It takes connections and does not answer.
    let pid = rustix::process::Pid::from_child(&server.0);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stop");
    fails(&format!("{}\ntimeout = '200ms'", check("")), "no answer within").await;
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("continue");
    drop(server);
    fails(&check(""), "connect").await;
}

// ---- logs

/// A component with a log: an env file, which is switched from one content to another.
struct Logged {
    host: Host,
    log: PathBuf,
    old: Revision,
    new: Revision,
}

impl Logged {
    async fn new() -> Self {
        let host = Host::new();
        let path = host.path().join("etc/app.env");
        write(&path, "PASSWORD=hunter2-old\n");
        let config = EnvFileConfig { path: path.clone() };
        let driver = EnvFileDriver::new("part", config, Arc::clone(&host.vault)).expect("driver");
        let old = driver.retain("v1").await.expect("retain").revision;
        write(&path, "PASSWORD=hunter2-new\n");
        let new = driver.retain("v2").await.expect("retain").revision;
        let log = host.path().join("log/app.log");
        write(&log, "ERROR long ago\n");
        Self { host, log, old, new }
    }

    /// Made anew each time, as after a restart of the agent.
    fn driver(&self, log: &str) -> Checked {
        let path = self.host.path().join("etc/app.env");
        let config = EnvFileConfig { path: path.clone() };
        let inner = EnvFileDriver::new("part", config, Arc::clone(&self.host.vault)).expect("driver");
        let check: Check = toml::from_str(&format!("log = {{ {log} }}")).expect("check");
        let check = NamedCheck {
            name: "log".into(),
            component: "part".into(),
            check,
        };
        Checked::new(Arc::new(inner), vec![check]).hiding(vec![path])
    }

    fn file(&self, more: &str) -> Checked {
        self.driver(&format!("file = '{}'{more}", self.log.display()))
    }

    async fn switch(&self, driver: &Checked) {
        let step = self.host.step(Action::Switch, &self.new, &self.old);
        driver.switch(&step).await.expect("switch");
    }

    async fn verify(&self, driver: &Checked) -> Result<Done, Failure> {
        driver
            .verify(&self.host.step(Action::Verify, &self.new, &self.old))
            .await
    }

    fn append(&self, text: &str) {
        let mut file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(&self.log)
            .expect("open");
        file.write_all(text.as_bytes()).expect("write");
    }

    fn beside(&self, end: &str) -> PathBuf {
        PathBuf::from(format!("{}{end}", self.log.display()))
    }
}

#[tokio::test]
async fn only_lines_since_the_switch_count() {
    let l = Logged::new().await;
    let problem = failed(l.verify(&l.file("")).await);
    assert!(problem.message.contains("nobody noted"), "{problem}");
    l.switch(&l.file("")).await;
    l.append("INFO fine\nERROR 404 for /favicon.ico\n");
    // The agent was killed after the switch, and repeats it.
    l.switch(&l.file("")).await;
    l.verify(&l.file(", ignore = ['ERROR 404']"))
        .await
        .expect("nothing bad");
    l.verify(&l.file(", max = 1")).await.expect("one is allowed");
    l.append("FATAL cannot connect with hunter2-old\u{7}\n");
    let problem = failed(l.verify(&l.file(", ignore = ['ERROR 404']")).await);
    assert_eq!(problem.code, Code::CheckFailed);
    assert!(problem.message.contains("1 of 3 lines"), "{problem}");
    assert!(
        problem.message.contains("cannot connect with [PASSWORD]"),
        "values leave no host: {problem}"
    );
    l.verify(&l.file(", error = ['^panic']")).await.expect("other patterns");

    // The way back is another move: it counts from its own beginning.
    let back = l.host.step(Action::Switch, &l.old, &l.new);
    l.file("").switch(&back).await.expect("undo");
    let step = l.host.step(Action::Verify, &l.old, &l.new);
    l.file("").verify(&step).await.expect("nothing since");
}

#[tokio::test]
async fn an_unreadable_log_does_not_hold_the_switch_up_and_does_not_pass() {
    let l = Logged::new().await;
    let secret = l.host.path().join("secret");
    write(&secret, "ERROR the content of somebody else's file\n");
    std::fs::remove_file(&l.log).expect("remove");
    std::os::unix::fs::symlink(&secret, &l.log).expect("link");
    l.switch(&l.file("")).await;
    let problem = failed(l.verify(&l.file("")).await);
    assert!(problem.message.contains("symbolic link"), "{problem}");
    assert!(!problem.message.contains("somebody else"), "{problem}");
    // A component that stays where it is has no switch to count from.
    let stays = l.host.step(Action::Verify, &l.old, &l.old);
    let mut other = l.host.step(Action::Verify, &l.old, &l.old);
    other.rollback_id = "rb-2".into();
    failed(l.file("").verify(&stays).await);
    let done = l.file("").verify(&other).await.expect("nothing to judge");
    assert!(done.summary.contains("not judged: log"), "{}", done.summary);
}

#[tokio::test]
async fn trap_rotated_logs() {
    type Rotate = fn(&Logged);
    // Moved away rather than removed: its inode must not be given to the next file, which is another case.
    fn gone(path: &Path) {
        let above = path.parent().and_then(Path::parent).expect("a directory");
        std::fs::rename(path, above.join("elsewhere")).expect("rename");
    }
    let rename: Rotate = |l| std::fs::rename(&l.log, l.beside(".1")).expect("rename");
    let rename_twice: Rotate = |l| {
        std::fs::rename(&l.log, l.beside(".2")).expect("rename");
        write(&l.beside(".1"), "INFO between\n");
    };
    let dated: Rotate = |l| std::fs::rename(&l.log, l.log.with_file_name("app-20260101.log")).expect("rename");
    let copied: Rotate = |l| {
        std::fs::copy(&l.log, l.beside(".1")).expect("copy");
        std::fs::File::create(&l.log).expect("truncate");
    };
    let emptied: Rotate = |l| drop(std::fs::File::create(&l.log).expect("truncate"));
    let removed: Rotate = |l| gone(&l.log);
    let compressed: Rotate = |l| {
        gone(&l.log);
        write(&l.beside(".1.gz"), "\u{1f}");
    };
    // What became of the log, and whether all of it can still be judged.
    let cases: [(&str, Rotate, bool); 7] = [
        ("renamed", rename, true),
        ("renamed twice", rename_twice, true),
        ("renamed with a date", dated, true),
        ("copied and emptied", copied, true),
        ("emptied", emptied, true),
        ("removed", removed, false),
        ("compressed", compressed, false),
    ];
    for (what, rotate, judged) in cases {
        // Nothing bad at all; an error before the rotation; one after it.
        for (before, after) in [
            ("INFO a\n", "INFO b\n"),
            ("ERROR a\n", "INFO b\n"),
            ("INFO a\n", "ERROR b\n"),
        ] {
            let l = Logged::new().await;
            // Rotated before the switch: old errors, which do not count.
            write(&l.beside(".3"), "ERROR last week\n");
            let older = std::fs::File::options().write(true).open(l.beside(".3")).expect("open");
            let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
            older.set_modified(hour_ago).expect("set time");
            l.switch(&l.file("")).await;
            l.append(before);
            rotate(&l);
            l.append(after);
            // What an emptied log held is gone with whoever emptied it.
            let lost = what == "emptied" && before.contains("ERROR");
            let good = judged && (lost || !format!("{before}{after}").contains("ERROR"));
            let result = l.verify(&l.file("")).await;
            match (good, result) {
                (true, Ok(_)) => {}
                (false, Err(Failure::Failed(problem))) => {
                    let why = if after.contains("ERROR") || judged {
                        "ERROR"
                    } else {
                        "cannot be judged"
                    };
                    assert!(problem.message.contains(why), "{what}: {problem}");
                    assert!(!problem.message.contains("last week"), "{what}: {problem}");
                }
                (good, other) => panic!("{what}, {before:?} {after:?}, good: {good}: {other:?}"),
            }
        }
    }
}

/// An application that writes several logs, of which one was rotated.
#[tokio::test]
async fn trap_another_log_beside_one_that_was_rotated() {
    let l = Logged::new().await;
    l.switch(&l.file("")).await;
    for other in [
        "app-error.log",
        "app.audit.log",
        "app-2.log",
        "app.log.errors",
        "app.log-old-errors",
    ] {
        write(&l.log.with_file_name(other), "ERROR of last year, in another log\n");
    }
    std::fs::rename(&l.log, l.beside(".1")).expect("rotate");
    l.append("INFO fine\n");
    l.verify(&l.file("")).await.expect("no error of this log");
    std::fs::rename(l.beside(".1"), l.log.with_file_name("app.2026-01-01T00.log")).expect("another scheme");
    l.verify(&l.file("")).await.expect("still to be found");
}

/// Just rotated when the switch came: nothing stands before the mark, by which the file could be known again.
#[tokio::test]
async fn trap_an_empty_log_that_is_copied_and_emptied() {
    let l = Logged::new().await;
    write(&l.log, "");
    l.switch(&l.file("")).await;
    l.append("ERROR before the rotation\n");
    std::fs::copy(&l.log, l.beside(".1")).expect("copy");
    std::fs::File::create(&l.log).expect("truncate");
    l.append("INFO after it\n");
    let problem = failed(l.verify(&l.file("")).await);
    assert!(problem.message.contains("1 of 2 lines"), "{problem}");
}

/// Nobody knows what must not leave this host.
#[tokio::test]
async fn nothing_is_quoted_while_an_env_file_cannot_be_read() {
    let l = Logged::new().await;
    l.switch(&l.file("")).await;
    l.append("ERROR cannot connect with hunter2-old\n");
    let check = |env_file: &Path| {
        let path = l.host.path().join("etc/app.env");
        let inner = EnvFileDriver::new("part", EnvFileConfig { path }, Arc::clone(&l.host.vault)).expect("driver");
        let check = toml::from_str(&format!("log = {{ file = '{}' }}", l.log.display())).expect("check");
        let (name, component) = ("log".into(), "part".into());
        Checked::new(Arc::new(inner), vec![NamedCheck { name, component, check }]).hiding(vec![env_file.to_owned()])
    };
    // An application may be started with a link to the file.
    let link = l.host.path().join("etc/link.env");
    std::os::unix::fs::symlink("app.env", &link).expect("link");
    let problem = failed(l.verify(&check(&link)).await);
    assert!(problem.message.contains("cannot connect with [PASSWORD]"), "{problem}");
    // Even root cannot read a directory.
    let problem = failed(l.verify(&check(l.host.path())).await);
    assert!(
        problem.message.contains("not quoted") && !problem.message.contains("hunter2"),
        "{problem}"
    );
}

/// Inodes are given out again: the new file of that number, already longer than the old one was.
#[tokio::test]
async fn trap_another_file_in_the_place_of_the_log() {
    let l = Logged::new().await;
    l.switch(&l.file("")).await;
    // The same inode with other content, as a new file may have it.
    std::fs::write(&l.log, format!("ERROR at the beginning\n{}", "INFO more\n".repeat(10))).expect("write");
    let problem = failed(l.verify(&l.file("")).await);
    assert!(problem.message.contains("ERROR at the beginning"), "{problem}");
}

#[tokio::test]
async fn a_journal_that_says_nothing_is_no_pass() {
    let l = Logged::new().await;
    let journal = || l.driver(&format!("journald = 'rollbackctl-none-{}.service'", std::process::id()));
    l.switch(&journal()).await;
    let problem = failed(l.verify(&journal()).await);
    assert!(problem.message.contains("journal of rollbackctl-none"), "{problem}");
}

// ---- containers

/// A container of a static busybox, and its image. Both are removed at the end.
struct Container {
    name: String,
}

fn docker(args: &[&str]) -> Option<String> {
    let output = Command::new("docker").args(args).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Container {
    /// `None` when there is no engine.
    fn run(dir: &Path, more: &[&str], script: &str) -> Option<Self> {
        docker(&["info", "--format", "{{.ID}}"])?;
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("rbchecks-{}-{n}", std::process::id());
        std::fs::create_dir_all(dir.join("bin")).expect("directory");
        std::fs::copy("/bin/busybox", dir.join("bin/busybox")).expect("busybox-static");
        let archive = dir.join("image.tar");
        let mut builder = tar::Builder::new(std::fs::File::create(&archive).expect("create"));
        builder
            .append_path_with_name(dir.join("bin/busybox"), "bin/busybox")
            .expect("append");
        builder.finish().expect("finish");
        docker(&["import", archive.to_str().expect("path"), &name]).expect("import");
        let container = Self { name };
        let mut args = vec!["run", "-d", "--network=none", "--name", &container.name];
        args.extend(more);
        args.extend([container.name.as_str(), "/bin/busybox", "sh", "-c", script]);
        docker(&args).expect("run");
        Some(container)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        docker(&["rm", "-f", "-v", &self.name]);
        docker(&["rmi", "-f", &self.name]);
    }
}

#[tokio::test]
async fn containers_are_asked_for_their_log_and_their_restarts() {
    let l = Logged::new().await;
    let image = l.host.path().join("image");
    let go = "echo ERROR long ago; trap 'echo ERROR now' USR1; while :; do /bin/busybox sleep 0.05; done";
    let container =
        Container::run(&image, &[], go).expect("a container engine answers: tests/with-docker.sh starts one");
    let name = &container.name;
    let said = |text: &str| docker(&["logs", name]).is_some_and(|log| log.contains(text));
    eventually("the container writes", || said("long ago")).await;
    let driver = || l.driver(&format!("container = '{name}'"));
    l.switch(&driver()).await;
    l.verify(&driver()).await.expect("nothing since");
    docker(&["kill", "-s", "USR1", name]).expect("signal");
    eventually("the container writes again", || said("ERROR now")).await;
    let problem = failed(l.verify(&driver()).await);
    assert!(problem.message.contains("the first: ERROR now"), "{problem}");

    let process = |more: &str| format!("process = {{ container = '{name}'{more} }}");
    let detail = passes(&process(", max_restarts = 0, max_memory = '64MB'")).await;
    assert!(detail.contains("0 restarts"), "{detail}");
    fails(&process(", max_memory = '1KB'"), "are allowed").await;
    docker(&["stop", "-t", "0", name]).expect("stop");
    fails(&process(""), "does not run: exited").await;
    fails("process = { container = 'rbchecks-none' }", "does not exist").await;
    let none = l.driver("container = 'rbchecks-none'");
    let problem = failed(l.verify(&none).await);
    assert!(problem.message.contains("does not exist"), "{problem}");

    let again = Container::run(&image, &["--restart=on-failure:3"], "exit 1").expect("the engine answered before");
    eventually("it was restarted", || {
        let count = docker(&["inspect", "-f", "{{.RestartCount}} {{.State.Status}}", &again.name]);
        count.is_some_and(|count| count == "3 exited")
    })
    .await;
    fails(
        &format!("process = {{ container = '{}', max_restarts = 0 }}", again.name),
        "does not run",
    )
    .await;
}

// ---- processes and programs

#[tokio::test]
async fn a_process_must_be_the_same_for_a_while_and_small() {
    let dir = tempfile::tempdir().expect("directory");
    let pid_file = dir.path().join("pid");
    let check = |more: &str| format!("process = {{ pid_file = '{}'{more} }}", pid_file.display());
    fails(&check(""), "does not run").await;
    let child = Ended(Command::new("sleep").arg("600").spawn().expect("sleep"));
    write(&pid_file, &format!("{}\n", child.0.id()));
    passes(&check(", max_memory = '64MB'")).await;
    fails(&check(", max_memory = '1KB'"), "1.0 KB are allowed").await;
    fails(&check(", steady = '1h'"), "3600 s are wanted").await;
    let steady = asked(&format!("{}\nwithin = '15s'", check(", steady = '1s'")));
    let passed = steady
        .wait(None, Instant::now() + Duration::from_secs(15))
        .await
        .expect("old enough");
    assert!(passed.detail.contains("for "), "{}", passed.detail);
}

#[tokio::test]
async fn a_program_passes_with_status_zero_in_time() {
    let dir = tempfile::tempdir().expect("directory");
    let program = dir.path().join("check");
    let check = |more: &str| format!("command = {{ run = ['{}', 'a b', '$(id)']{more} }}", program.display());
    script(&program, "echo first; echo \"$# $2 $CARGO_MANIFEST_DIR.\"");
    let detail = passes(&check("")).await;
    assert!(
        detail.starts_with("2 $(id) . in"),
        "no shell and no environment of ours: {detail}"
    );
    script(&program, "echo out; echo \"no route to $TOKEN\" >&2; exit 3");
    let said = fails(
        &check(", env = { TOKEN = 'hunter2-token' }"),
        "status 3: no route to [TOKEN]",
    )
    .await;
    assert!(!said.contains("hunter2"), "{said}");
    script(&program, "kill -9 $$");
    fails(&check(""), "ended by a signal").await;
    script(
        &program,
        &format!("echo $$ > {}; exec sleep 600", dir.path().join("pid").display()),
    );
    let begun = Instant::now();
    fails(&format!("{}\ntimeout = '500ms'", check("")), "500 ms").await;
    assert!(begun.elapsed() < Duration::from_secs(20));
    let pid: i32 = host::read(&dir.path().join("pid")).trim().parse().expect("pid");
    eventually("it is killed", || rollback_agent::processes::identity(pid).is_none()).await;
    std::fs::remove_file(&program).expect("remove");
    fails(&check(""), "start").await;
}

// ---- http

#[tokio::test]
async fn http_answers_are_looked_into() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let at = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            let mut request = [0u8; 1024];
            let n = peer.read(&mut request).await.unwrap_or(0);
            let slow = request[..n].starts_with(b"GET /slow");
            let body = match &request[..n] {
                r if r.starts_with(b"GET /long") => format!("{{\"status\":\"ok\",\"x\":\"{}\"}}", "x".repeat(100_000)),
                r if r.starts_with(b"GET /text") => "all is well, token=hunter2".to_owned(),
                _ => r#"{"status":"ok","db":{"lag":2,"up":true},"token":"hunter2"}"#.to_owned(),
            };
            if slow {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = peer.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    let check = |path: &str, more: &str| format!("http = 'http://{at}{path}'\n{more}");
    for good in [
        "field = '/status'\nequals = 'ok'",
        "field = '/db/lag'\nequals = 2.0",
        "field = '/db/up'\nequals = true",
    ] {
        passes(&check("/", good)).await;
    }
    passes(&check("/text", "body = 'is\\s+well'")).await;
    passes(&check("/", "max_latency = '10s'")).await;
    let mut said = String::new();
    for (path, more, why) in [
        (
            "/",
            "field = '/status'\nequals = 'down'",
            "/status is \"ok\", expected \"down\"",
        ),
        ("/", "field = '/db/up'\nequals = 'true'", "expected \"true\""),
        ("/", "field = '/none'\nequals = 1", "there is no /none"),
        ("/text", "field = '/status'\nequals = 'ok'", "is not JSON"),
        ("/long", "field = '/status'\nequals = 'ok'", "too long"),
        ("/text", "body = '^well'", "does not match"),
        ("/slow", "max_latency = '100ms'", "100 are allowed"),
    ] {
        said += &fails(&check(path, more), why).await;
    }
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn refuses_checks_that_could_never_be_judged() {
    for bad in [
        "log = { file = 'relative' }",
        "log = { file = '/x', container = 'yy' }",
        "log = { file = '/x', error = [] }",
        "log = { file = '/x', error = [''] }",
        "log = { file = '/x', error = ['('] }",
        "log = { journald = '--file=/etc/shadow' }",
        "log = { container = '../x' }",
        "log = { file = '/x' }\nwithin = '1s'",
        "log = { file = '/x' }\ntcp = 'a:1'",
        "process = { }",
        "process = { unit = '-x' }",
        "process = { pid_file = '/x', max_restarts = 1 }",
        "process = { pid_file = '/x', max_memory = 'much' }",
        "command = { run = [] }",
        "command = { run = ['bare-name'] }",
        "redis = { address = 'nowhere' }",
        "tcp = 'a:1'\nfield = '/x'\nequals = 1",
        "http = 'http://x/'\nfield = '/x'",
        "http = 'http://x/'\nfield = 'x'\nequals = 1",
        "http = 'http://x/'\nbody = '('",
    ] {
        assert!(toml::from_str::<Check>(bad).is_err(), "{bad:?} was accepted");
    }
    let log = "log = { file = '/x' }";
    assert!(toml::from_str::<Check>(log).is_ok());
    assert!(
        toml::from_str::<HealthCheck>(log).is_err(),
        "a health check has no switch to count from"
    );
}

#[tokio::test]
async fn observe_prints_every_check_and_its_status_says_whether_one_failed() {
    let host = Host::new();
    let root = host.path().display().to_string();
    write(&host.path().join("app.env"), "TOKEN=hunter2-token\n");
    script(&host.path().join("check"), "echo refused hunter2-token; exit 1");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let at = listener.local_addr().expect("address");
    let configure = |more: &str| {
        let text = format!(
            "name = 'app-1'\ncoordinators = ['127.0.0.1:1']\nstate = '{root}/state'\npki = '{root}/pki'\n\
             [[component]]\nname = 'env'\nkind = 'env-file'\npath = '{root}/app.env'\n\
             [[check]]\nname = 'port'\ncomponent = 'env'\ntcp = '{at}'\n\
             [[check]]\nname = 'lines'\ncomponent = 'env'\nlog = {{ file = '{root}/app.log' }}\n{more}"
        );
        write(&host.path().join("agent.toml"), &text);
    };
    let observe = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollback-agent"));
        command
            .args(["observe", "--config"])
            .arg(host.path().join("agent.toml"))
            .args(more);
        let output = command.output().expect("run");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    configure("");
    let (status, json) = observe(&["-o", "json"]);
    assert_eq!(status, Some(0), "a log that is not asked is no failure: {json}");
    let report: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let results: Vec<_> = (0..2)
        .map(|n| report["checks"][n]["result"].as_str().expect("result"))
        .collect();
    assert_eq!(results, ["passed", "not asked"]);
    configure(&format!(
        "[[check]]\nname = 'own'\ncomponent = 'env'\ncommand = {{ run = ['{root}/check'] }}\n"
    ));
    let (status, table) = observe(&[]);
    assert_eq!(status, Some(1), "{table}");
    let line = table
        .lines()
        .find(|line| line.starts_with("own "))
        .expect("a line for the check");
    assert!(line.contains("failed") && line.contains("refused [TOKEN]"), "{line}");
}
