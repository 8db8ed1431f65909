//! What goes wrong with sites of several files, certificates and masters.

use rollback_agent::driver::{Action, Driver, Health};
use rollback_agent::processes;
use rollback_proto::problem::Code;
use rustix::process::Signal;

use crate::host::{eventually, failed, read, write};
use crate::proxy::{Proxy, Setup, proxy, proxy_with};

/// Pins what is on disk now.
async fn pinned(p: &Proxy) -> rollback_agent::driver::Revision {
    p.driver
        .snapshot(&p.host.step(Action::Snapshot, &p.new, &p.new))
        .await
        .expect("pin");
    p.driver.observe().await.expect("observe").revision
}

#[tokio::test]
async fn trap_one_of_several_files_is_broken_and_all_are_put_back() {
    let p = proxy_with(Setup {
        files: &[("sites/admin", "# admin 1\n"), ("sites/zz", "# last 1\n")],
        ..Setup::default()
    })
    .await;
    let (admin, last) = (p.conf.join("sites/admin"), p.conf.join("sites/zz"));
    let live = read(&p.site());
    // The first and the last of the names are good, the one between is not; one is gone altogether.
    write(&admin, "# admin 2\n");
    p.set_site("other", "server { this_is_no_directive on; }\n");
    std::fs::remove_file(&last).expect("remove");
    let to = pinned(&p).await;
    write(&admin, "# admin 1\n");
    write(&p.site(), &live);
    write(&last, "# last 1\n");
    let workers = processes::children(p.master().pid);
    // Straight to the switch: staging would have said so.
    let problem = failed(p.driver.switch(&p.host.step(Action::Switch, &p.new, &to)).await);
    assert_eq!(problem.code, Code::NginxConfig);
    assert_eq!(
        [read(&admin), read(&p.site()), read(&last)],
        ["# admin 1\n", &live, "# last 1\n"]
    );
    assert_eq!(processes::children(p.master().pid), workers, "never reloaded");
    assert_eq!(p.driver.observe().await.expect("observe").revision, p.new);
}

#[tokio::test]
async fn trap_a_certificate_that_is_missing() {
    let p = proxy().await;
    let port = crate::host::free_port();
    let to = p
        .recorded(&format!(
            "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate tls/gone.pem; ssl_certificate_key tls/gone.key; }}\n"
        ))
        .await;
    let (live, workers) = (read(&p.site()), processes::children(p.master().pid));
    for action in [Action::Stage, Action::Switch] {
        let step = p.host.step(action, &p.new, &to);
        let problem = failed(match action {
            Action::Stage => p.driver.stage(&step).await,
            _ => p.driver.switch(&step).await,
        });
        assert_eq!(problem.code, Code::NginxConfig);
        let path = p.conf.join("tls/gone.pem");
        assert!(
            problem.message.contains(&*path.to_string_lossy()),
            "the live path is named: {}",
            problem.message
        );
    }
    assert_eq!((read(&p.site()), processes::children(p.master().pid)), (live, workers));
    assert_eq!(p.version().await, "v3.0.0");
}

#[tokio::test]
async fn trap_a_dead_master_and_its_pid_file() {
    let p = proxy().await;
    let (master, pid_file) = (p.master(), p.host.path().join("nginx.pid"));
    let pid = read(&pid_file);
    processes::signal(master, Signal::TERM).expect("signal");
    eventually("nginx ends", || !processes::alive(master)).await;
    // Absent, as after an orderly end, and stale, as a crash leaves it.
    for stale in [None, Some(pid)] {
        if let Some(pid) = &stale {
            write(&pid_file, pid);
        }
        assert_eq!(p.blockers(&p.old).await, [Code::NginxDown]);
        assert_eq!(failed(p.switch().await).code, Code::NginxDown);
        let drain = p.driver.drain(&p.host.step(Action::Drain, &p.new, &p.new)).await;
        assert_eq!(failed(drain).code, Code::NginxDown);
        assert_eq!(p.driver.observe().await.expect("observe").health, Health::Stopped);
        assert!(read(&p.site()).contains("v3.0.0"));
        assert_eq!(read(&p.conf.join("rb/zekka.inc")), "");
        assert_eq!(
            pid_file.exists(),
            stale.is_some(),
            "nginx -t would have made an empty one"
        );
    }
    std::fs::remove_file(&pid_file).expect("remove");
}
