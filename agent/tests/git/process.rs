//! A process that runs in a worktree.

use rollback_agent::driver::{Action, Driver, Health, Probe};
use rollback_agent::processes;
use rustix::process::Signal;

use crate::fixture::{Fleet, fleet_with};
use crate::host::{self, script};

struct Running(Fleet);

impl Running {
    fn process(&self) -> Option<processes::Identity> {
        processes::from_pid_file(&self.0.host.path().join("pid")).ok().flatten()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(process) = self.process() {
            host::end(process, Signal::KILL);
        }
    }
}

#[tokio::test]
async fn stops_switches_and_starts_in_the_other_worktree() {
    // The PID file's place is known only when the host is there: the start script finds it from where it runs.
    let f = fleet_with("", |repository| {
        script(
            &repository.join("bin/launch"),
            "home=$(cd ../../.. && pwd)\nsh -c \"echo \\$\\$ > $home/pid; exec sleep 600\" &\nwhile [ ! -s $home/pid ]; do :; done",
        );
    })
    .await;
    let pid_file = f.host.path().join("pid");
    let process = format!(
        "[process]\nstart = ['bin/launch']\npid_file = '{}'\nkill_after = '300ms'",
        pid_file.display()
    );
    let driver = crate::fixture::driver(&f.host, &process).expect("driver");
    let a = Running(f);
    let f = &a.0;
    assert_eq!(driver.observe().await.expect("observe").health, Health::Stopped);
    assert!(driver.prepare(&f.step(Action::Prepare)).await.is_empty());
    driver
        .start(&f.host.step(Action::Start, &f.old, &f.new))
        .await
        .expect("start");
    let before = a.process().expect("it runs");
    driver.stage(&f.step(Action::Stage)).await.expect("stage");
    driver.stop(&f.step(Action::Stop)).await.expect("stop");
    assert!(!processes::alive(before));
    driver.switch(&f.step(Action::Switch)).await.expect("switch");
    assert_eq!(a.process(), None, "a switch does not start anything");
    let start = f.step(Action::Start);
    assert!(matches!(driver.probe(&start).await, Probe::Repeatable(_)));
    let done = driver.start(&start).await.expect("start");
    assert_eq!(done.observed, Some(f.old.clone()));
    assert!(matches!(driver.probe(&start).await, Probe::Applied(_)));
    driver.verify(&f.step(Action::Verify)).await.expect("verify");
    let cwd = processes::cwd(a.process().expect("it runs").pid).expect("cwd");
    assert!(cwd.ends_with("releases/v2.9.0"), "{}", cwd.display());
    driver.stop(&f.back(Action::Stop)).await.expect("stop");
}
