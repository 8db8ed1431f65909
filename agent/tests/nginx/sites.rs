//! Switches, drains and refusals of a whole site.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rollback_agent::driver::{Action, Driver, Health, Probe};
use rollback_agent::processes;
use rollback_proto::problem::Code;

use crate::host::{eventually, failed, names, read, write};
use crate::proxy::{proxy, proxy_with_keys};

#[tokio::test]
async fn switches_with_new_workers_and_undoes_it() {
    let p = proxy().await;
    assert!(p.blockers(&p.old).await.is_empty());
    let step = |action| p.host.step(action, &p.new, &p.old);
    p.driver.stage(&step(Action::Stage)).await.expect("stage");
    assert!(
        read(&p.site()).contains("v3.0.0"),
        "staging must not change the live file"
    );
    let before = processes::children(p.master().pid);
    let done = p.switch().await.expect("switch");
    assert_eq!(done.observed, Some(p.old.clone()));
    assert_eq!(p.version().await, "v2.9.0");
    assert!(
        processes::children(p.master().pid)
            .iter()
            .any(|worker| !before.contains(worker)),
        "new workers"
    );
    assert!(matches!(p.driver.probe(&step(Action::Switch)).await, Probe::Applied(_)));
    let workers = processes::children(p.master().pid);
    p.switch().await.expect("again");
    assert_eq!(
        processes::children(p.master().pid),
        workers,
        "nothing is reloaded for nothing"
    );
    let verified = p.driver.verify(&step(Action::Verify)).await.expect("verify");
    assert_eq!(verified.observed.expect("observed").version, "v2.9.0");
    p.undo().await.expect("undo");
    assert_eq!(p.version().await, "v3.0.0");
    assert!(p.blockers(&p.old).await.is_empty());
    p.driver.finish(&step(Action::Finish)).await.expect("finish");
    assert_eq!(names(&p.conf), ["nginx.conf", "rb", "sites"]);
    assert_eq!(
        (names(&p.conf.join("sites")), names(&p.conf.join("rb"))),
        (vec!["zekka".into()], vec!["zekka.inc".into()])
    );
}

/// With a port in use, `nginx -t` and the reload both return 0 while old workers go on serving the old configuration.
#[tokio::test]
async fn trap_a_reload_that_nginx_does_not_take() {
    let p = proxy().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("address").port();
    let to = p.recorded(&format!("server {{ listen 127.0.0.1:{port}; }}\n")).await;
    p.driver
        .stage(&p.host.step(Action::Stage, &p.new, &to))
        .await
        .expect("nginx -t does not notice");
    let problem = failed(p.driver.switch(&p.host.step(Action::Switch, &p.new, &to)).await);
    assert_eq!(problem.code, Code::NginxNotServing);
    assert!(
        problem.message.contains("Address already in use"),
        "{}",
        problem.message
    );
    assert_eq!(p.version().await, "v3.0.0");
    let seen = p.driver.observe().await.expect("observe");
    assert_eq!(
        (seen.health, &seen.revision),
        (Health::Healthy, &p.new),
        "{}",
        seen.detail
    );
}

/// A worker that does not react goes on with the old configuration, beside new ones.
#[tokio::test]
async fn trap_a_stuck_old_worker() {
    let p = proxy_with_keys("worker_timeout = '700ms'").await;
    let stuck = processes::children(p.master().pid)[0];
    processes::signal(stuck, rustix::process::Signal::STOP).expect("signal");
    let result = p.switch().await;
    let (files, version) = (read(&p.site()), p.version().await);
    processes::signal(stuck, rustix::process::Signal::CONT).expect("signal");
    let problem = failed(result);
    assert_eq!(problem.code, Code::NginxNotServing);
    assert!(
        problem.message.contains("still take connections"),
        "{}",
        problem.message
    );
    assert!(files.contains("v3.0.0") && version == "v3.0.0", "{version}");
    eventually("it goes", || !processes::alive(stuck)).await;
    p.switch().await.expect("switch");
}

#[tokio::test]
async fn a_configuration_that_nginx_refuses_touches_nothing() {
    let p = proxy().await;
    let to = p.recorded("server { this_is_no_directive on; }\n").await;
    let (live, workers) = (read(&p.site()), processes::children(p.master().pid));
    let step = p.host.step(Action::Stage, &p.new, &to);
    let problem = failed(p.driver.stage(&step).await);
    assert_eq!(problem.code, Code::NginxConfig);
    assert!(problem.message.contains("this_is_no_directive"), "{}", problem.message);
    assert!(
        problem.message.contains(&*p.site().to_string_lossy()),
        "the live path is named: {}",
        problem.message
    );
    // Even a switch without stage, and with an include that was never written, leaves the old state.
    let problem = failed(p.driver.switch(&step).await);
    assert_eq!(problem.code, Code::NginxConfig);
    assert_eq!((read(&p.site()), processes::children(p.master().pid)), (live, workers));
    assert_eq!(read(&p.conf.join("rb/zekka.inc")), "");
    assert_eq!(p.version().await, "v3.0.0");
}

#[tokio::test]
async fn drains_with_503_while_the_marker_answers_and_survives_a_switch() {
    let p = proxy().await;
    let step = |action| p.host.step(action, &p.new, &p.old);
    p.driver
        .resume(&step(Action::Resume))
        .await
        .expect("nothing is drained");
    for _ in 0..2 {
        p.driver.drain(&step(Action::Drain)).await.expect("drain");
    }
    for path in ["/", "/version", "/proxied", "/-/rollbackctl/maintenance"] {
        let answer = p.get(path).await;
        assert_eq!(answer.status().as_u16(), 503, "{path}");
        assert_eq!(answer.headers()["retry-after"], "17", "{path}");
        assert!(answer.text().await.expect("body").contains("maintained"), "{path}");
    }
    assert_eq!(p.get("/-/rollbackctl").await.status().as_u16(), 200);
    assert!(matches!(p.driver.probe(&step(Action::Drain)).await, Probe::Applied(_)));
    assert_eq!(
        failed(p.driver.verify(&step(Action::Verify)).await).code,
        Code::Unhealthy
    );
    p.switch().await.expect("switch");
    assert_eq!(p.get("/version").await.status().as_u16(), 503, "still drained");
    assert_eq!(p.driver.observe().await.expect("observe").health, Health::Drained);
    // An agent that was restarted reads from the include that the site is drained.
    assert!(matches!(
        p.driver.probe(&step(Action::Resume)).await,
        Probe::Repeatable(_)
    ));
    for _ in 0..2 {
        p.driver.resume(&step(Action::Resume)).await.expect("resume");
    }
    assert_eq!(p.version().await, "v2.9.0");
    assert_eq!(p.get("/-/rollbackctl/maintenance").await.status().as_u16(), 404);
}

#[tokio::test]
async fn a_dead_master_blocks_and_nothing_is_written() {
    let p = proxy().await;
    let master = p.master();
    // As a crash leaves it: the PID file is still there.
    let pid = read(&p.host.path().join("nginx.pid"));
    processes::signal(master, rustix::process::Signal::TERM).expect("signal");
    eventually("nginx ends", || !processes::alive(master)).await;
    write(&p.host.path().join("nginx.pid"), &pid);
    assert_eq!(p.blockers(&p.old).await, [Code::NginxDown]);
    assert_eq!(failed(p.switch().await).code, Code::NginxDown);
    assert!(read(&p.site()).contains("v3.0.0"));
    assert_eq!(p.driver.observe().await.expect("observe").health, Health::Stopped);
    // The PID now belongs to something that is not nginx.
    write(&p.host.path().join("nginx.pid"), &std::process::id().to_string());
    assert_eq!(
        failed(p.switch().await).code,
        Code::NginxDown,
        "we would have signalled ourselves"
    );
    std::fs::remove_file(p.host.path().join("nginx.pid")).expect("remove");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_under_load_loses_no_request() {
    let p = proxy().await;
    let (stop, asked, lost) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    let url = format!("http://127.0.0.1:{}/proxied", p.port);
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (stop, asked, lost, url) = (Arc::clone(&stop), Arc::clone(&asked), Arc::clone(&lost), url.clone());
            tokio::spawn(async move {
                let client = reqwest::Client::builder()
                    .no_proxy()
                    .pool_max_idle_per_host(0)
                    .build()
                    .expect("client");
                while !stop.load(Ordering::SeqCst) {
                    let good = client
                        .get(&url)
                        .send()
                        .await
                        .is_ok_and(|answer| answer.status().is_success());
                    asked.fetch_add(1, Ordering::SeqCst);
                    if !good {
                        lost.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        })
        .collect();
    for _ in 0..3 {
        p.switch().await.expect("switch");
        p.undo().await.expect("undo");
    }
    stop.store(true, Ordering::SeqCst);
    for task in load {
        task.await.expect("load");
    }
    assert!(asked.load(Ordering::SeqCst) > 50, "there was load");
    assert_eq!(lost.load(Ordering::SeqCst), 0, "of {}", asked.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_switch_that_was_killed_half_way_converges() {
    let p = proxy().await;
    p.driver
        .stage(&p.host.step(Action::Stage, &p.new, &p.old))
        .await
        .expect("stage");
    // The files are written, the reload never happened.
    p.set_site("v2.9.0", "");
    let step = p.host.step(Action::Switch, &p.new, &p.old);
    assert!(
        matches!(p.driver.probe(&step).await, Probe::Repeatable(_)),
        "files alone prove nothing"
    );
    p.switch().await.expect("switch");
    assert_eq!(p.version().await, "v2.9.0");
    // The include was written, the files were not, nothing was loaded.
    let include = p.conf.join("rb/zekka.inc");
    write(&include, &read(&include).replacen("nonce=", "nonce=0", 1));
    assert!(
        matches!(p.driver.probe(&step).await, Probe::Repeatable(_)),
        "another nonce is served"
    );
    p.undo().await.expect("undo");
    assert_eq!(p.version().await, "v3.0.0");
    // Killed between two files, and somebody reloaded just then: the nonce is served, with who knows what.
    p.switch().await.expect("switch");
    write(&include, &read(&include).replacen("settled=yes", "settled=no", 1));
    assert!(
        matches!(p.driver.probe(&step).await, Probe::Repeatable(_)),
        "not settled"
    );
    p.switch().await.expect("switch");
    assert!(matches!(p.driver.probe(&step).await, Probe::Applied(_)));
}

#[tokio::test]
async fn what_somebody_else_wrote_is_not_overwritten() {
    let p = proxy().await;
    p.driver
        .stage(&p.host.step(Action::Stage, &p.new, &p.old))
        .await
        .expect("stage");
    p.set_site("mine", "");
    assert_eq!(failed(p.switch().await).code, Code::WrongRevision);
    assert!(read(&p.site()).contains("mine"));
    p.set_site("v3.0.0", "");
    write(&p.conf.join("rb/zekka.inc"), "location /mine { return 200; }\n");
    assert_eq!(failed(p.switch().await).code, Code::NginxInclude);
    assert!(read(&p.conf.join("rb/zekka.inc")).contains("/mine"));
    assert_eq!(p.blockers(&p.old).await, [Code::NginxInclude]);
}

#[tokio::test]
async fn a_missing_include_is_found_early() {
    let p = proxy().await;
    std::fs::remove_file(p.conf.join("rb/zekka.inc")).expect("remove");
    assert_eq!(p.blockers(&p.old).await, [Code::NginxInclude]);
    assert!(
        p.driver.observe().await.is_ok(),
        "a missing include is no error of observing"
    );
    write(&p.conf.join("rb/zekka.inc"), "");
    // A release whose site lacks the line could never be left again.
    let with = read(&p.site());
    write(&p.site(), &with.replace("    include ", "    # include "));
    let problem = p.driver.retain("v3.0.0").await.expect_err("cannot be switched to");
    assert_eq!(problem.code, Code::NginxInclude);
    assert!(problem.remedy.contains("include "), "{}", problem.remedy);
    p.driver
        .snapshot(&p.host.step(Action::Snapshot, &p.new, &p.new))
        .await
        .expect("pin");
    let without = p.driver.observe().await.expect("observe").revision;
    write(&p.site(), &with);
    assert_eq!(p.blockers(&without).await, [Code::NginxInclude]);
    assert_eq!(
        failed(p.driver.stage(&p.host.step(Action::Stage, &p.new, &without)).await).code,
        Code::NginxInclude
    );
}
