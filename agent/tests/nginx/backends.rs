//! Drain and resume of single backends.

use std::collections::BTreeSet;
use std::time::Duration;

use rollback_agent::driver::{Action, Done, Driver, Failure, Finding, Health, Probe, Severity};
use rollback_agent::processes;
use rollback_agent::step::StepContext;
use rollback_proto::problem::Code;

use crate::host::{eventually, failed, read, write};
use crate::little::{Backend, Load, ask};
use crate::proxy::{Proxy, Setup, proxy_with};

const ONE: &str = "app-1/api";
const TWO: &str = "app-2/api";

/// A proxy in front of two backends; the include of the upstream was written by hand.
struct Fleet {
    proxy: Proxy,
    one: Backend,
    two: Backend,
}

/// A failed request is not tried again elsewhere: every mistake shows.
const LOCATION: &str = "location /api/ { proxy_pass http://zekka/; proxy_next_upstream off; }";

const INCLUDED: &str = "upstream zekka { include rb/upstream.inc; }\n";

async fn fleet_with(keys: &str, outside: &str) -> Fleet {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let keys = format!(
        "{keys}\n[upstream]\ninclude = 'rb/upstream.inc'\n[upstream.backends]\n'{ONE}' = '127.0.0.1:{}'\n'{TWO}' = {{ address \
         = '127.0.0.1:{}', options = 'weight=1' }}\n",
        one.port, two.port
    );
    let include = by_hand(one.port, two.port);
    let proxy = proxy_with(Setup {
        keys: &keys,
        locations: LOCATION,
        outside,
        files: &[("rb/upstream.inc", &include)],
    })
    .await;
    Fleet { proxy, one, two }
}

async fn fleet() -> Fleet {
    fleet_with("", INCLUDED).await
}

fn by_hand(one: u16, two: u16) -> String {
    format!("# ours\nserver 127.0.0.1:{one};\nserver 127.0.0.1:{two} weight=1;\n")
}

impl Fleet {
    fn step(&self, action: Action, backend: Option<&str>) -> StepContext {
        self.proxy
            .host
            .step(action, &self.proxy.new, &self.proxy.new)
            .for_backend(backend.map(str::to_owned))
    }

    async fn drain(&self, backend: &str) -> Result<Done, Failure> {
        self.proxy.driver.drain(&self.step(Action::Drain, Some(backend))).await
    }

    async fn resume(&self, backend: Option<&str>) -> Result<Done, Failure> {
        self.proxy.driver.resume(&self.step(Action::Resume, backend)).await
    }

    async fn probe(&self, action: Action, backend: Option<&str>) -> Probe {
        self.proxy.driver.probe(&self.step(action, backend)).await
    }

    fn include(&self) -> std::path::PathBuf {
        self.proxy.conf.join("rb/upstream.inc")
    }

    /// Who answers, of many requests.
    async fn answering(&self) -> Vec<String> {
        let mut names = Vec::new();
        for _ in 0..6 {
            names.push(ask(self.proxy.port, "/api/").await.expect("an answer"));
        }
        names.sort();
        names.dedup();
        names
    }

    /// With other requests between ours, who answers ours is chance.
    async fn until_both_answer(&self) {
        let both = async { while self.answering().await != ["one", "two"] {} };
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, both).await.expect("both get requests");
    }

    async fn findings(&self) -> Vec<Finding> {
        let (from, to) = (&self.proxy.new, &self.proxy.old);
        let step = self.proxy.host.step(Action::Prepare, from, to);
        self.proxy.driver.prepare(&step).await
    }

    fn workers(&self) -> Vec<processes::Identity> {
        processes::children(self.proxy.master().pid)
    }
}

/// With nginx's defaults (`max_fails=1 fail_timeout=10s`), a refused connection takes a backend out for ten seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_both_backends_under_load_loses_no_request() {
    let mut f = fleet().await;
    assert!(f.findings().await.is_empty(), "{:?}", f.findings().await);
    let mut load = Load::start(f.proxy.port, "/api/");
    for round in 0..2 {
        let backend = [ONE, TWO][round];
        f.drain(backend).await.expect("drain");
        let stopped = if round == 0 { &mut f.one } else { &mut f.two };
        stopped.stop().await;
        load.more(100).await;
        let started = if round == 0 { &mut f.one } else { &mut f.two };
        started.start_again().await;
        f.resume(Some(backend)).await.expect("resume");
        f.until_both_answer().await;
    }
    let (asked, lost) = load.stop().await;
    assert!(asked > 200, "{asked}");
    assert_eq!(lost, 0, "of {asked}");
    // That this load would have noticed: the same without a drain.
    let mut load = Load::start(f.proxy.port, "/api/");
    f.one.stop().await;
    load.more(20).await;
    assert!(load.stop().await.1 > 0, "a stop without a drain loses requests");
}

fn upstreams(names: &[&[&str]]) -> BTreeSet<BTreeSet<String>> {
    let upstream = |names: &&[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    names.iter().map(upstream).collect()
}

#[tokio::test]
async fn a_drained_backend_is_remembered_by_a_new_agent_and_by_a_switch() {
    let mut f = fleet().await;
    assert_eq!(f.proxy.driver.info().backends, upstreams(&[&[ONE, TWO]]));
    f.resume(Some(ONE)).await.expect("nothing is drained");
    let (one, two) = (f.one.port, f.two.port);
    assert_eq!(read(&f.include()), by_hand(one, two), "nothing is written for nothing");
    f.drain(ONE).await.expect("drain");
    let workers = f.workers();
    f.drain(ONE).await.expect("again");
    assert_eq!(f.workers(), workers, "nothing is reloaded for nothing");
    f.proxy.restart_agent();
    let seen = f.proxy.driver.observe().await.expect("observe");
    assert_eq!((seen.health, seen.out), (Health::Drained, [ONE.to_owned()].into()));
    assert!(
        seen.detail.ends_with("1 of 2 backends gets no requests: app-1/api"),
        "{}",
        seen.detail
    );
    assert_eq!(seen.revision, f.proxy.new, "who gets requests is not what the site is");
    f.proxy.switch().await.expect("switch");
    assert_eq!(f.proxy.version().await, "v2.9.0");
    assert_eq!(f.answering().await, ["two"]);
    assert!(matches!(f.probe(Action::Drain, Some(ONE)).await, Probe::Applied(_)));
    assert!(matches!(f.probe(Action::Resume, Some(TWO)).await, Probe::Applied(_)));
    for (action, backend) in [
        (Action::Drain, Some(TWO)),
        (Action::Resume, Some(ONE)),
        (Action::Resume, None),
    ] {
        assert!(
            matches!(f.probe(action, backend).await, Probe::Repeatable(_)),
            "{action:?} {backend:?}"
        );
    }
    // The maintenance answer does not change who is down; resuming everything does.
    f.proxy
        .driver
        .drain(&f.step(Action::Drain, None))
        .await
        .expect("maintenance");
    assert_eq!(f.proxy.get("/api/").await.status().as_u16(), 503);
    assert!(read(&f.include()).contains("down;"));
    f.resume(None).await.expect("resume");
    assert_eq!(f.answering().await, ["one", "two"]);
    assert!(matches!(f.probe(Action::Resume, None).await, Probe::Applied(_)));
    assert_eq!(f.proxy.driver.observe().await.expect("observe").health, Health::Healthy);
    f.proxy.undo().await.expect("undo");
}

#[tokio::test]
async fn trap_the_last_backend_is_refused() {
    let f = fleet().await;
    f.drain(ONE).await.expect("drain");
    let (text, marker, workers) = (
        read(&f.include()),
        read(&f.proxy.conf.join("rb/zekka.inc")),
        f.workers(),
    );
    let problem = failed(f.drain(TWO).await);
    assert_eq!(problem.code, Code::LastBackend);
    assert!(problem.message.contains(TWO), "{}", problem.message);
    assert_eq!(
        (
            read(&f.include()),
            read(&f.proxy.conf.join("rb/zekka.inc")),
            f.workers()
        ),
        (text, marker, workers),
        "nothing was changed"
    );
    assert_eq!(f.answering().await, ["two"]);
}

#[tokio::test]
async fn trap_an_unknown_backend_is_refused() {
    let f = fleet().await;
    for backend in ["app-3/api", "api", ""] {
        assert_eq!(failed(f.drain(backend).await).code, Code::UnknownComponent);
        assert_eq!(failed(f.resume(Some(backend)).await).code, Code::UnknownComponent);
    }
    assert_eq!(read(&f.include()), by_hand(f.one.port, f.two.port));
}

#[tokio::test]
async fn trap_a_foreign_upstream_include_is_not_overwritten() {
    let f = fleet().await;
    let good = by_hand(f.one.port, f.two.port);
    let foreign = [
        good.replace("weight=1", "weight=7"),
        format!("{good}server 127.0.0.1:1;\n"),
        format!("{good}keepalive 4;\n"),
        String::new(),
    ];
    for text in foreign {
        write(&f.include(), &text);
        let problem = failed(f.drain(ONE).await);
        assert_eq!(problem.code, Code::NginxInclude, "{text}");
        let exact = format!(
            "server 127.0.0.1:{}; server 127.0.0.1:{} weight=1;",
            f.one.port, f.two.port
        );
        assert!(problem.remedy.contains(&exact), "{}", problem.remedy);
        assert_eq!(failed(f.resume(Some(ONE)).await).code, Code::NginxInclude);
        assert_eq!(f.proxy.blockers(&f.proxy.old).await, [Code::NginxInclude], "{text}");
        f.resume(None).await.expect("there is nothing of ours to resume");
        assert_eq!(read(&f.include()), text);
    }
    std::fs::remove_file(f.include()).expect("remove");
    assert_eq!(failed(f.drain(ONE).await).code, Code::NginxInclude);
    let seen = f.proxy.driver.observe().await.expect("observe");
    assert_eq!(seen.health, Health::Healthy, "users are served");
    assert!(seen.detail.contains("does not exist"), "{}", seen.detail);
    assert!(!f.include().exists());
}

/// The include is as it should be, but nginx does not read it, or has the servers a second time: a drain would seem to
/// work and change nothing.
#[tokio::test]
async fn trap_an_upstream_include_that_a_drain_would_not_reach() {
    let f = fleet().await;
    let site = read(&f.proxy.site());
    let beside = format!(
        "upstream zekka {{ server 127.0.0.1:{}; include rb/upstream.inc;",
        f.one.port
    );
    let instead = format!(
        "upstream zekka {{ server 127.0.0.1:{}; # include rb/upstream.inc;\n",
        f.one.port
    );
    for (with, said) in [(beside, "beside"), (instead, "no upstream block")] {
        write(
            &f.proxy.site(),
            &site.replace("upstream zekka { include rb/upstream.inc;", &with),
        );
        let problem = failed(f.drain(ONE).await);
        assert_eq!(problem.code, Code::NginxInclude);
        assert!(problem.message.contains(said), "{}", problem.message);
        let problem = f.proxy.driver.retain("v3.0.1").await.expect_err("could not be drained");
        assert_eq!(problem.code, Code::NginxInclude);
        // A release that was recorded so can be gone to: a warning.
        let step = f.proxy.host.step(Action::Snapshot, &f.proxy.new, &f.proxy.new);
        f.proxy.driver.snapshot(&step).await.expect("pin");
        let to = f.proxy.driver.observe().await.expect("observe").revision;
        write(&f.proxy.site(), &site);
        let found = f
            .proxy
            .driver
            .prepare(&f.proxy.host.step(Action::Prepare, &f.proxy.new, &to))
            .await;
        let found: Vec<_> = found.iter().map(|f| (f.severity, f.problem.code)).collect();
        assert_eq!(found, [(Severity::Warning, Code::NginxInclude)]);
        let stage = f.proxy.host.step(Action::Stage, &f.proxy.new, &to);
        f.proxy.driver.stage(&stage).await.expect("stage");
    }
    assert_eq!(read(&f.include()), by_hand(f.one.port, f.two.port));
}

#[tokio::test]
async fn a_drain_ends_after_the_requests_that_the_backend_had() {
    let f = fleet_with("drain_grace = '20s'", INCLUDED).await;
    let port = f.proxy.port;
    // By whichever of the two: the workers from before have it.
    let slow = tokio::spawn(async move { ask(port, "/api/hang").await });
    tokio::select! {
        () = f.one.has_hanging(1) => {}
        () = f.two.has_hanging(1) => {}
    }
    let drain = f.drain(ONE);
    tokio::pin!(drain);
    // New workers serve, and the drain still waits.
    tokio::select! {
        done = &mut drain => panic!("the request is still under way: {done:?}"),
        () = eventually("the include is written", || read(&f.include()).contains("down;")) => {}
    }
    tokio::select! {
        done = &mut drain => panic!("the request is still under way: {done:?}"),
        () = async { while f.answering().await != ["two"] {} } => {}
    }
    // An agent that is killed here has not waited to the end.
    assert!(matches!(f.probe(Action::Drain, Some(ONE)).await, Probe::Repeatable(_)));
    f.one.release();
    f.two.release();
    let done = drain.await.expect("drain");
    assert_eq!(done.summary, "app-1/api gets no requests");
    assert!(slow.await.expect("task").is_some(), "it was answered");
}

/// A request that hangs (or a websocket) does not hold a drain for ever, and a switch does not wait for it at all.
#[tokio::test]
async fn trap_a_request_that_never_ends() {
    let f = fleet_with("drain_grace = '300ms'", INCLUDED).await;
    let port = f.proxy.port;
    let stuck = tokio::spawn(async move { ask(port, "/api/hang").await });
    tokio::select! {
        () = f.one.has_hanging(1) => {}
        () = f.two.has_hanging(1) => {}
    }
    let begun = std::time::Instant::now();
    let done = f.drain(ONE).await.expect("drain");
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(10),
        "{took:?}"
    );
    assert!(
        done.summary.contains("1 workers still finish requests from before"),
        "{}",
        done.summary
    );
    f.proxy.switch().await.expect("switch");
    assert_eq!(f.proxy.version().await, "v2.9.0");
    assert!(!stuck.is_finished(), "nobody cut it off");
    f.one.release();
    f.two.release();
    assert!(stuck.await.expect("task").is_some());
}

#[tokio::test]
async fn trap_killed_between_the_includes() {
    let f = fleet().await;
    let marker = f.proxy.conf.join("rb/zekka.inc");
    f.drain(ONE).await.expect("drain");
    let drained = read(&f.include());
    f.resume(Some(ONE)).await.expect("resume");
    // The upstream is written, the marker says that not all was, nothing was loaded.
    write(&f.include(), &drained);
    write(&marker, &read(&marker).replacen("settled=yes", "settled=no", 1));
    assert!(matches!(f.probe(Action::Drain, Some(ONE)).await, Probe::Repeatable(_)));
    assert_eq!(f.answering().await, ["one", "two"]);
    f.drain(ONE).await.expect("again");
    assert!(matches!(f.probe(Action::Drain, Some(ONE)).await, Probe::Applied(_)));
    assert_eq!(f.answering().await, ["two"]);
    // All is written, nothing was loaded.
    let other = read(&marker).replacen("nonce=", "nonce=0", 1);
    write(&marker, &other);
    assert!(matches!(f.probe(Action::Drain, Some(ONE)).await, Probe::Repeatable(_)));
    f.resume(Some(ONE)).await.expect("resume");
    assert_eq!(f.answering().await, ["one", "two"]);
}

/// nginx refuses what is written: everything is what it was, and a drain that an earlier kill has left half done is
/// taken back, too.
#[tokio::test]
async fn a_drain_that_nginx_refuses_is_put_back() {
    let one = crate::host::free_port();
    let keys = format!(
        "[upstream]\ninclude = 'rb/upstream.inc'\noptions = 'bogus'\nbackends = {{ '{ONE}' = '127.0.0.1:{one}', '{TWO}' = \
         '127.0.0.1:1' }}\n"
    );
    let text = "# Written by rollback-agent. Changes are lost.\n# down:\nserver 127.0.0.1:1;\n";
    let p = proxy_with(Setup {
        keys: &keys,
        locations: LOCATION,
        outside: INCLUDED,
        files: &[("rb/upstream.inc", text)],
    })
    .await;
    let found = p.driver.prepare(&p.host.step(Action::Prepare, &p.new, &p.old)).await;
    let found: Vec<_> = found.iter().map(|f| (f.severity, f.problem.code)).collect();
    assert_eq!(
        found,
        [(Severity::Warning, Code::NginxInclude)],
        "not what is configured"
    );
    let workers = processes::children(p.master().pid);
    let step = p.host.step(Action::Drain, &p.new, &p.new).for_backend(Some(ONE.into()));
    let problem = failed(p.driver.drain(&step).await);
    assert_eq!(problem.code, Code::NginxConfig);
    assert!(problem.message.contains("bogus"), "{}", problem.message);
    let include = p.conf.join("rb/upstream.inc");
    assert_eq!(
        (read(&include).as_str(), processes::children(p.master().pid)),
        (text, workers)
    );
}

#[tokio::test]
async fn a_backend_of_several_upstreams_is_drained_in_all() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let upstream = |include: &str, more: &str| {
        format!(
            "[[upstream]]\ninclude = 'rb/{include}'\n[upstream.backends]\n'{ONE}' = '127.0.0.1:{}'\n{more}\n",
            one.port
        )
    };
    let keys = upstream("u1.inc", &format!("'{TWO}' = '127.0.0.1:{}'", two.port))
        + &upstream("u2.inc", &format!("'app-3/api' = '127.0.0.1:{}'", two.port))
        + "[[upstream]]\ninclude = 'rb/u3.inc'\nbackends = { 'app-3/api' = '127.0.0.1:1' }\n";
    let both = format!("server 127.0.0.1:{};server 127.0.0.1:{};", one.port, two.port);
    let p = proxy_with(Setup {
        keys: &keys,
        locations: "location /a/ { proxy_pass http://a/; } location /b/ { proxy_pass http://b/; }",
        outside: "upstream a { include rb/u1.inc; }\nupstream b { include rb/u2.inc; }\nupstream c { include rb/u3.inc; }\n",
        files: &[
            ("rb/u1.inc", &both),
            ("rb/u2.inc", &both),
            ("rb/u3.inc", "server 127.0.0.1:1;"),
        ],
    })
    .await;
    let told = upstreams(&[&[ONE, TWO], &[ONE, "app-3/api"], &["app-3/api"]]);
    assert_eq!(p.driver.info().backends, told);
    let step = |backend: &str| {
        p.host
            .step(Action::Drain, &p.new, &p.new)
            .for_backend(Some(backend.into()))
    };
    assert_eq!(failed(p.driver.drain(&step("app-3/api")).await).code, Code::LastBackend);
    p.driver.drain(&step(ONE)).await.expect("drain");
    for path in ["/a/", "/b/"] {
        for _ in 0..4 {
            assert_eq!(ask(p.port, path).await.as_deref(), Some("two"));
        }
    }
    assert_eq!(failed(p.driver.drain(&step(TWO)).await).code, Code::LastBackend);
}
