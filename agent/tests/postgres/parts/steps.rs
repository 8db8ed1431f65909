//! Down and up in parts, and what must be as before.

use rollback_agent::driver::{Action, Driver as _};

use super::{DOWN_MORE, DOWN_SCORES, PARTS, after_down, after_up, seen, two_releases};
use crate::fixture::{CONTENT, Fixture, blockers};

#[tokio::test]
async fn concurrently_down_and_up_again() {
    let columns = "version text PRIMARY KEY, checksum text NOT NULL DEFAULT md5(random()::text)";
    let mut f = Fixture::with(columns, |_| {}).await;
    let (old, new) = two_releases(&f, DOWN_SCORES, DOWN_MORE).await;
    f.as_plain_role().await;
    let versions = "SELECT string_agg(concat(version, checksum), ' ' ORDER BY version) FROM schema_migrations";
    let before = (f.text(CONTENT).await, f.text(versions).await);
    let findings = f.prepare(&new, &old).await;
    assert!(blockers(&findings).is_empty(), "{findings:?}");
    let staged = f.stage(&new, &old).await.expect("stage").summary;
    assert!(
        staged.contains("table public.scores, score of public.users"),
        "{staged}"
    );
    assert_eq!(seen(&f).await, after_down(0), "the rehearsal touched a copy only");

    let down = f.switch(&new, &old).await.expect("down");
    assert_eq!(down.summary, "004_more, 003_scores, 002_index down");
    assert_eq!(seen(&f).await, after_down(PARTS));
    let up = f.switch(&old, &new).await.expect("undo");
    assert_eq!(seen(&f).await, after_up(PARTS));
    assert_eq!(
        up.summary,
        "002_index, 003_scores, 004_more up; put back: public.scores 600 rows, score of public.users 200 rows"
    );
    assert_eq!((f.text(CONTENT).await, f.text(versions).await), before);
    assert_eq!(f.digest().await, new.digest);

    // Down for good; a later rollback to the newer release finds what was kept.
    f.switch(&new, &old).await.expect("down again");
    f.finish(&new, &old).await;
    f.next_rollback("up");
    f.stage(&old, &new).await.expect("stage");
    let up = f.switch(&old, &new).await.expect("up").summary;
    assert!(
        up.contains("public.scores 600 rows, score of public.users 200 rows"),
        "{up}"
    );
    assert_eq!((f.text(CONTENT).await, f.text(versions).await), before);
    f.finish(&old, &new).await;
    assert_eq!(f.kept_schemas().await, "0");
    f.assert_clean().await;
}

#[tokio::test]
async fn rows_that_are_written_between_two_parts_are_kept() {
    let f = Fixture::empty().await;
    let (old, new) = two_releases(&f, DOWN_SCORES, DOWN_MORE).await;
    f.stage(&new, &old).await.expect("stage");
    super::cut_off::at_part(&f, &new, &old, 4).await;
    assert_eq!(seen(&f).await, after_down(3));
    f.sql("INSERT INTO scores (user_id, points) VALUES (1, 4711); UPDATE users SET score = -1 WHERE id = 2")
        .await;
    let before = f.text(CONTENT).await;
    f.switch(&new, &old).await.expect("on");
    let up = f.switch(&old, &new).await.expect("undo").summary;
    assert!(up.contains("public.scores 601 rows"), "{up}");
    assert_eq!(f.text(CONTENT).await, before);
}

#[tokio::test]
async fn a_statement_that_nobody_could_recognise_is_found_in_the_rehearsal() {
    let f = Fixture::empty().await;
    let down = "-- no-transaction\nDROP INDEX CONCURRENTLY users_score;\nUPDATE users SET status = status;
                DROP INDEX CONCURRENTLY scores_points;";
    let (old, new) = two_releases(&f, DOWN_SCORES, down).await;
    let problem = crate::fixture::failed(f.stage(&new, &old).await);
    assert!(problem.message.contains("004_more down, statement 2 of 3"), "{problem}");
    assert_eq!(f.digest().await, new.digest);
    // One that may be repeated at any time needs no trace.
    f.write("004_more", super::UP_MORE, Some(&format!("{DOWN_MORE}\nVACUUM users;")));
    let new = f.driver_retain("v2b").await.revision;
    f.stage(&new, &old).await.expect("stage");
    f.driver
        .switch(&f.step(Action::Switch, &new, &old))
        .await
        .expect("down");
    assert_eq!(seen(&f).await, after_down(PARTS));
}
