//! The agent is killed between two parts, and in the midst of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng as _;
use rollback_agent::driver::{Action, Driver as _, Probe, Revision};
use rollback_agent::step::ProgressSink;
use tokio::sync::Notify;

use super::{DOWN_MORE, DOWN_SCORES, PARTS, after_down, after_up, seen, two_releases};
use crate::fixture::{CONTENT, Fixture};

/// Tells when the n-th part begins.
#[derive(Debug)]
struct Nth {
    left: std::sync::atomic::AtomicUsize,
    now: Notify,
}

impl ProgressSink for Nth {
    fn progress(&self, message: &str, _fraction: Option<f64>) {
        use std::sync::atomic::Ordering::SeqCst;
        if message.starts_with("migrating: ") && self.left.fetch_sub(1, SeqCst) == 1 {
            self.now.notify_one();
        }
    }
}

/// Switches, and drops the switch just before its n-th part sends anything.
pub async fn at_part(f: &Fixture, from: &Revision, to: &Revision, nth: usize) {
    let sink = Arc::new(Nth {
        left: nth.into(),
        now: Notify::new(),
    });
    let step = f.watched_step(Action::Switch, from, to, Duration::from_secs(60), sink.clone());
    tokio::select! {
        biased;
        () = sink.now.notified() => {}
        done = f.driver.switch(&step) => panic!("came to its end: {done:?}"),
    }
}

async fn probed(f: &Fixture, from: &Revision, to: &Revision) -> String {
    match f.driver.probe(&f.step(Action::Switch, from, to)).await {
        Probe::Repeatable(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_each_waypoint_it_goes_on_and_it_goes_back() {
    let f = Fixture::empty().await;
    let (old, new) = two_releases(&f, DOWN_SCORES, DOWN_MORE).await;
    f.stage(&new, &old).await.expect("stage");
    let before = f.text(CONTENT).await;
    for done in 0..PARTS {
        // Cut off on the way down: back up from there.
        at_part(&f, &new, &old, done + 1).await;
        assert_eq!(seen(&f).await, after_down(done), "row and schema fit together");
        let said = probed(&f, &new, &old).await;
        if done > 0 {
            assert!(
                said.contains(&format!("after {done} of {PARTS} parts of the way down")),
                "{said}"
            );
            f.switch(&old, &new).await.expect("undo from half-way");
        }
        assert_eq!(
            (f.digest().await, f.text(CONTENT).await),
            (new.digest.clone(), before.clone()),
            "{done}"
        );
        // And once more, to the end.
        at_part(&f, &new, &old, done + 1).await;
        f.switch(&new, &old).await.expect("go on");
        assert_eq!(f.digest().await, old.digest, "{done}");

        at_part(&f, &old, &new, done + 1).await;
        assert_eq!(seen(&f).await, after_up(done));
        let said = probed(&f, &old, &new).await;
        if done > 0 {
            assert!(
                said.contains(&format!("after {done} of {PARTS} parts of the way up")),
                "{said}"
            );
            f.switch(&new, &old).await.expect("down again from half-way");
            assert_eq!(f.digest().await, old.digest, "{done}");
            at_part(&f, &old, &new, done + 1).await;
        }
        f.switch(&old, &new).await.expect("go on");
        assert_eq!(
            (f.digest().await, f.text(CONTENT).await),
            (new.digest.clone(), before.clone()),
            "{done}"
        );
    }
    f.finish(&new, &new).await;
    assert_eq!(f.kept_schemas().await, "0", "all of it was put back");
    f.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_any_moment() {
    let f = Fixture::empty().await;
    let (old, new) = two_releases(&f, DOWN_SCORES, DOWN_MORE).await;
    f.stage(&new, &old).await.expect("stage");
    let before = f.text(CONTENT).await;
    let measure = Instant::now();
    f.switch(&new, &old).await.expect("down");
    let whole = measure.elapsed();
    f.switch(&old, &new).await.expect("up");
    let (mut from, mut to) = (&new, &old);
    let mut half_way = 0;
    for _ in 0..24 {
        let limit = whole.mul_f64(rand::rng().random_range(0.0..1.0));
        let _ = tokio::time::timeout(limit, f.switch(from, to)).await;
        match f.driver.probe(&f.step(Action::Switch, from, to)).await {
            Probe::Applied(_) => {}
            Probe::Repeatable(why) => {
                half_way += u32::from(why.contains("half-way"));
                f.switch(from, to).await.expect("repeat");
            }
            Probe::Indeterminate(problem) => panic!("{problem}"),
        }
        assert_eq!(f.digest().await, to.digest);
        std::mem::swap(&mut from, &mut to);
    }
    assert!(half_way > 0, "never half-way: this proved nothing");
    assert_eq!((f.digest().await, f.text(CONTENT).await), (new.digest.clone(), before));
}
