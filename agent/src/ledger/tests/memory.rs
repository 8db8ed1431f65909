//! What only the ledger of a simulation can: fail as it is told, and outlive a crash.

use futures::FutureExt;

use super::*;

/// Begins a step under this fault. `None`: nobody answered.
async fn begin_under(memory: &Memory, fault: Fault) -> Option<Result<Begin, LedgerError>> {
    let ledger = memory.open();
    memory.decide(move |writes| {
        assert_eq!(writes, [Write::Epoch(fence(1, "a")), Write::Begin(key("1"))]);
        fault
    });
    let begun = ledger.begin(fence(1, "a"), key("1"), DIGEST, ExecuteRequest::default());
    let mut begun = Box::pin(begun);
    // Without a latency a request is over after a few turns of the others.
    (0..10).find_map(|_| (&mut begun).now_or_never())
}

#[tokio::test]
async fn a_fault_decides_what_is_written_and_what_is_answered() {
    for (fault, answers, written) in [
        (Fault::Refused, true, false),
        (Fault::Unknown, true, true),
        (Fault::CrashBefore, false, false),
        (Fault::CrashAfter, false, true),
    ] {
        let memory = Memory::new("app-1");
        match begin_under(&memory, fault).await {
            Some(answer) => assert!(
                answers && matches!(answer, Err(LedgerError::Disk(_))),
                "{fault:?}: {answer:?}"
            ),
            None => assert!(!answers, "{fault:?}"),
        }
        assert_eq!(memory.crashed(), !answers, "{fault:?}");
        memory.decide(|_| Fault::None);
        let found = memory.open().unfinished().await.expect("unfinished");
        assert_eq!(found.len(), usize::from(written), "{fault:?}");
        assert_eq!(memory.fence().is_some(), written, "{fault:?}: one transaction");
        assert_eq!(memory.records().len(), usize::from(written), "{fault:?}");
        assert!(!memory.crashed(), "it was opened again");
    }
}

#[tokio::test]
async fn who_opens_it_takes_it_over() {
    let memory = Memory::new("app-1");
    let (before, now) = (memory.open(), memory.open());
    let late = before
        .begin(fence(1, "a"), key("1"), DIGEST, ExecuteRequest::default())
        .await;
    assert!(matches!(late, Err(LedgerError::Stopping)), "{late:?}");
    assert_eq!(begin(&now, "1", DIGEST).await, Begin::New);
}
