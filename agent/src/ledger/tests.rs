//! What the ledger promises, each promise across a reopening where it is one: on disk, and in a simulation's memory.

mod memory;

use rollback_proto::v1::outcome::Status;
use sqlx::{ConnectOptions, Connection, Executor};
use tempfile::TempDir;

use super::memory::{Fault, Memory, Write};
use super::*;

const DIGEST: ArgsDigest = [7; 32];
const HOUR: Duration = Duration::from_secs(3600);

/// Where a ledger is kept. Outlives it.
enum Kept {
    Disk(TempDir),
    Memory(Memory),
}

impl Kept {
    fn on_disk() -> Self {
        Self::Disk(tempfile::tempdir().expect("temporary directory"))
    }

    fn both() -> [Self; 2] {
        [Self::on_disk(), Self::Memory(Memory::new("app-1"))]
    }

    fn state(place: &TempDir) -> std::path::PathBuf {
        place.path().join("state")
    }

    /// Opens the ledger, works with it, and closes it completely.
    async fn with<T>(&self, work: impl AsyncFnOnce(&Ledger) -> T) -> T {
        match self {
            Self::Disk(place) => {
                let tasks = TaskTracker::new();
                let ledger = Ledger::open(&Self::state(place), &tasks).await.expect("open");
                let result = work(&ledger).await;
                drop(ledger);
                tasks.close();
                tasks.wait().await;
                result
            }
            Self::Memory(memory) => work(&memory.open()).await,
        }
    }

    /// Another program at the same file, as an operator's shell.
    async fn sql(place: &TempDir, statement: String) {
        let path = Self::state(place).join("ledger.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        let mut other = options.connect().await.expect("connect");
        let statement = sqlx::AssertSqlSafe(statement);
        other.execute(statement).await.expect("execute");
        other.close().await.expect("close");
    }

    /// Makes everything in it older.
    async fn pass(&self, hours: u32) {
        let time = HOUR * hours;
        match self {
            Self::Disk(place) => {
                let ms = time.as_millis();
                let older = format!(
                    "UPDATE steps SET intent_at = intent_at - {ms}, ended_at = ended_at - {ms},
                                      interrupted_at = interrupted_at - {ms}"
                );
                Self::sql(place, older).await;
            }
            Self::Memory(memory) => memory.pass(time),
        }
    }

    /// From here on, intents cannot be written.
    async fn fill(&self) {
        match self {
            // A trigger is the shortest way to a write that SQLite refuses, as it does on a full disk.
            Self::Disk(place) => {
                let refuse =
                    "CREATE TRIGGER refuse BEFORE INSERT ON steps BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
                Self::sql(place, refuse.to_owned()).await;
            }
            Self::Memory(memory) => memory.decide(|writes| match writes {
                [.., Write::Begin(_)] => Fault::Refused,
                _ => Fault::None,
            }),
        }
    }

    async fn free(&self) {
        match self {
            Self::Disk(place) => Self::sql(place, "DROP TRIGGER refuse".to_owned()).await,
            Self::Memory(memory) => memory.decide(|_| Fault::None),
        }
    }

    fn lose(&self) {
        match self {
            Self::Disk(place) => std::fs::remove_dir_all(Self::state(place)).expect("wipe"),
            Self::Memory(memory) => memory.lose(),
        }
    }
}

fn fence(epoch: u64, leader: &str) -> Fence {
    Fence {
        epoch,
        leader: leader.to_owned(),
    }
}

fn key(step: &str) -> StepKey {
    StepKey {
        rollback_id: "r1".into(),
        step_id: step.into(),
        attempt: 1,
    }
}

fn outcome(summary: &str) -> Outcome {
    Outcome {
        status: Status::Succeeded.into(),
        summary: summary.into(),
        ..Outcome::default()
    }
}

async fn begin(ledger: &Ledger, step: &str, digest: ArgsDigest) -> Begin {
    let request = ExecuteRequest {
        component: step.into(),
        ..ExecuteRequest::default()
    };
    ledger
        .begin(fence(1, "a"), key(step), digest, request)
        .await
        .expect("begin")
}

#[tokio::test]
async fn a_key_gets_one_outcome_for_one_set_of_arguments() {
    for kept in Kept::both() {
        kept.with(async |ledger| {
            assert_eq!(begin(ledger, "1", DIGEST).await, Begin::New);
            assert_eq!(begin(ledger, "1", DIGEST).await, Begin::Unfinished);
            ledger.finish(key("1"), outcome("first")).await.expect("finish");
            ledger.finish(key("1"), outcome("second")).await.expect("finish again");
        })
        .await;
        kept.with(async |ledger| {
            assert_eq!(
                begin(ledger, "1", DIGEST).await,
                Begin::Known(Box::new(outcome("first")))
            );
            assert_eq!(begin(ledger, "1", [8; 32]).await, Begin::ArgsDiffer);
            assert_eq!(
                begin(ledger, "2", DIGEST).await,
                Begin::New,
                "another step is another key"
            );
        })
        .await;
    }
}

#[tokio::test]
async fn an_intent_without_a_result_is_found_after_a_restart() {
    for kept in Kept::both() {
        kept.with(async |ledger| {
            begin(ledger, "1", DIGEST).await;
            begin(ledger, "2", DIGEST).await;
            ledger.finish(key("2"), outcome("done")).await.expect("finish");
        })
        .await;
        kept.with(async |ledger| {
            let unfinished = ledger.unfinished().await.expect("unfinished");
            assert_eq!(unfinished.len(), 1);
            assert_eq!(
                (&unfinished[0].key, unfinished[0].request.component.as_str()),
                (&key("1"), "1")
            );
            ledger.interrupt(key("1")).await.expect("interrupt");
            assert!(ledger.unfinished().await.expect("unfinished").is_empty());
        })
        .await;
        kept.with(async |ledger| {
            assert_eq!(
                begin(ledger, "1", [8; 32]).await,
                Begin::ArgsDiffer,
                "an interrupted key keeps its arguments"
            );
            assert_eq!(
                begin(ledger, "1", DIGEST).await,
                Begin::New,
                "an interrupted step runs again"
            );
            assert_eq!(ledger.unfinished().await.expect("unfinished").len(), 1);
        })
        .await;
    }
}

#[tokio::test]
async fn the_epoch_never_goes_back_and_belongs_to_one_leader() {
    for kept in Kept::both() {
        let stale = async |ledger: &Ledger, fence: Fence| {
            matches!(ledger.observe_epoch(fence).await, Err(LedgerError::Stale { .. }))
        };
        kept.with(async |ledger| {
            ledger.observe_epoch(fence(3, "a")).await.expect("the first leader");
            ledger.observe_epoch(fence(3, "a")).await.expect("the same leader");
            assert!(stale(ledger, fence(2, "a")).await, "a lower epoch");
            assert!(stale(ledger, fence(3, "b")).await, "the same epoch of another leader");
            ledger.observe_epoch(fence(5, "b")).await.expect("a higher epoch");
        })
        .await;
        kept.with(async |ledger| {
            assert!(stale(ledger, fence(4, "a")).await, "a lower epoch, after a restart");
            assert!(
                stale(ledger, fence(5, "a")).await,
                "the same epoch of another leader, after a restart"
            );
            let begun = ledger
                .begin(fence(4, "a"), key("1"), DIGEST, ExecuteRequest::default())
                .await;
            assert!(matches!(begun, Err(LedgerError::Stale { .. })));
            ledger.observe_epoch(fence(5, "b")).await.expect("the leader");
            assert!(
                ledger.unfinished().await.expect("unfinished").is_empty(),
                "a refused intent was not recorded"
            );
        })
        .await;
    }
}

#[tokio::test]
async fn the_generation_lives_as_long_as_what_was_written() {
    for kept in Kept::both() {
        let first = kept.with(async |ledger| ledger.generation().to_owned()).await;
        let reopened = kept.with(async |ledger| ledger.generation().to_owned()).await;
        assert_eq!(first, reopened);
        kept.lose();
        let wiped = kept.with(async |ledger| ledger.generation().to_owned()).await;
        assert_ne!(first, wiped);
    }
}

#[tokio::test]
async fn many_at_once_are_all_answered_and_all_durable() {
    for kept in Kept::both() {
        kept.with(async |ledger| {
            let steps: Vec<String> = (0..200).map(|n| n.to_string()).collect();
            let begun = futures::future::join_all(steps.iter().map(|step| begin(ledger, step, DIGEST))).await;
            assert!(begun.iter().all(|b| *b == Begin::New));
            let twice = futures::future::join_all([begin(ledger, "x", DIGEST), begin(ledger, "x", DIGEST)]).await;
            assert_eq!(twice, [Begin::New, Begin::Unfinished], "of two at once, one begins");
        })
        .await;
        let unfinished = kept
            .with(async |ledger| ledger.unfinished().await.expect("unfinished"))
            .await;
        assert_eq!(unfinished.len(), 201);
    }
}

#[tokio::test]
async fn a_second_agent_on_the_same_state_is_refused() {
    let kept = Kept::on_disk();
    let Kept::Disk(place) = &kept else { panic!("on disk") };
    kept.with(async |_| {
        let second = Ledger::open(&Kept::state(place), &TaskTracker::new()).await;
        assert!(matches!(second, Err(OpenError::InUse { .. })));
    })
    .await;
}

#[tokio::test]
async fn nobody_else_can_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let kept = Kept::on_disk();
    let Kept::Disk(place) = &kept else { panic!("on disk") };
    kept.with(async |ledger| {
        begin(ledger, "1", DIGEST).await;
        let state = Kept::state(place);
        let mode = |path: &Path| std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode(&state), 0o700);
        for file in std::fs::read_dir(&state).expect("list") {
            let path = file.expect("entry").path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    })
    .await;
}

#[tokio::test]
async fn a_write_that_fails_refuses_the_step_and_the_ledger_recovers() {
    for kept in Kept::both() {
        kept.with(async |ledger| {
            begin(ledger, "1", DIGEST).await;
            kept.fill().await;
            let refused = ledger
                .begin(fence(2, "b"), key("2"), DIGEST, ExecuteRequest::default())
                .await;
            assert!(matches!(refused, Err(LedgerError::Disk(_))), "{refused:?}");
            let problem = Problem::from(refused.expect_err("refused"));
            assert_eq!(problem.code, Code::StoreUnavailable);
            assert!(problem.message.contains("the disk is full"), "{problem}");
            kept.free().await;
            assert_eq!(
                begin(ledger, "2", DIGEST).await,
                Begin::New,
                "the epoch of the refused batch was not kept"
            );
        })
        .await;
    }
}

/// A disk that is full makes SQLite take the whole transaction back by itself, another failure does not. What both leave behind
/// must not make a later write look durable that is not.
#[tokio::test]
async fn what_is_written_after_failures_of_all_kinds_is_on_the_disk() {
    let kept = Kept::on_disk();
    let Kept::Disk(place) = &kept else {
        panic!("it is on the disk");
    };
    kept.with(async |ledger| {
        for (step, how) in [("2", "ROLLBACK"), ("3", "ABORT")] {
            let refuse = format!(
                "CREATE TRIGGER refuse_{step} BEFORE INSERT ON steps WHEN NEW.step_id = '{step}'
                 BEGIN SELECT RAISE({how}, 'full'); END"
            );
            Kept::sql(place, refuse).await;
        }
        for step in ["2", "3"] {
            let refused = ledger
                .begin(fence(1, "a"), key(step), DIGEST, ExecuteRequest::default())
                .await;
            assert!(matches!(refused, Err(LedgerError::Disk(_))), "{refused:?}");
        }
        assert_eq!(begin(ledger, "4", DIGEST).await, Begin::New);
        let mut copy = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(Kept::state(place).join("ledger.db"))
            .connect()
            .await
            .expect("connect");
        let others: Vec<String> = sqlx::query_scalar("SELECT step_id FROM steps")
            .fetch_all(&mut copy)
            .await
            .expect("read");
        assert_eq!(others, ["4"], "others see it");
    })
    .await;
}

fn of(rollback: &str, step: &str) -> StepKey {
    StepKey {
        rollback_id: rollback.into(),
        ..key(step)
    }
}

#[tokio::test]
async fn a_new_leader_is_told_every_intent_and_the_old_one_begins_nothing_more() {
    for kept in Kept::both() {
        let begun = async |rollback: &str, step: &str| {
            kept.pass(1).await;
            kept.with(async |ledger| {
                let request = ExecuteRequest::default();
                let begun = ledger.begin(fence(1, "a"), of(rollback, step), DIGEST, request).await;
                assert_eq!(begun.expect("begin"), Begin::New);
            })
            .await;
        };
        kept.with(async |_| ()).await;
        begun("forgotten", "1").await;
        kept.pass(24).await;
        // The keys are in another order than the times.
        for (rollback, step) in [
            ("r2", "9"),
            ("other", "1"),
            ("r1", "2"),
            ("another", "1"),
            ("r1", "1"),
            ("other", "2"),
        ] {
            begun(rollback, step).await;
        }
        let asked = || vec!["r1".to_owned(), "r2".to_owned(), "r3".to_owned(), "r1".to_owned()];
        kept.with(async |ledger| {
            ledger.finish(of("r2", "9"), outcome("done")).await.expect("finish");
            ledger.interrupt(of("r1", "1")).await.expect("interrupt");
            let recalled = ledger.recall(fence(2, "b"), asked()).await.expect("recall");
            let steps = vec![
                (of("r2", "9"), StepState::Ended),
                (of("r1", "2"), StepState::Unfinished),
                (of("r1", "1"), StepState::Interrupted),
            ];
            let others = vec!["other".to_owned(), "another".to_owned()];
            assert_eq!(recalled, Recalled { steps, others });
        })
        .await;
        kept.with(async |ledger| {
            let old = ledger.recall(fence(1, "a"), asked()).await;
            assert!(matches!(old, Err(LedgerError::Stale { .. })), "{old:?}");
            let late = ledger.begin(fence(1, "a"), key("3"), DIGEST, ExecuteRequest::default());
            let late = Problem::from(late.await.expect_err("refused"));
            assert_eq!((late.code, late.hint), (Code::StaleLeader, Some(Hint::Epoch(2))));
            let own = ledger
                .recall(fence(2, "b"), vec!["forgotten".into()])
                .await
                .expect("recall");
            assert_eq!(own.steps.len(), 1, "what is asked for is answered, however old it is");
            assert_eq!(own.others, ["other", "r1", "another", "r2"]);
        })
        .await;
    }
}

#[tokio::test]
async fn no_more_rollbacks_than_the_answer_holds_are_named() {
    for kept in Kept::both() {
        kept.with(async |ledger| {
            for n in 0..OTHERS + 1 {
                let begun = ledger.begin(
                    fence(1, "a"),
                    of(&format!("r{n:03}"), "1"),
                    DIGEST,
                    ExecuteRequest::default(),
                );
                begun.await.expect("begin");
            }
            let recalled = ledger.recall(fence(1, "a"), vec![]).await.expect("recall");
            assert_eq!(recalled.others.len(), OTHERS as usize);
        })
        .await;
    }
}

#[tokio::test]
async fn what_ended_a_month_ago_is_forgotten_and_what_did_not_end_never_is() {
    for kept in Kept::both() {
        kept.with(async |ledger| {
            for step in ["ended", "interrupted", "running"] {
                begin(ledger, step, DIGEST).await;
            }
            ledger.finish(key("ended"), outcome("done")).await.expect("finish");
            ledger.interrupt(key("interrupted")).await.expect("interrupt");
        })
        .await;
        kept.pass(30 * 24 + 1).await;
        kept.with(async |ledger| {
            let recalled = ledger.recall(fence(1, "a"), vec!["r1".into()]).await.expect("recall");
            assert_eq!(recalled.steps, [(key("running"), StepState::Unfinished)]);
        })
        .await;
    }
}
