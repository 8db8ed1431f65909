//! What only a second way down finds out: the first one and the way up went well, schema and data are as they were.

use rollback_proto::problem::Code;

use crate::fixture::{DOWN_1, DOWN_2, Fixture, UP_1, UP_2, failed};

/// Comments belong to no fingerprint: this way down knows by one that it was here before.
const NOTE: &str = "COMMENT ON TABLE users IS 'was down'";
const NOTED: &str = "obj_description('users'::regclass) = 'was down'";

#[tokio::test]
async fn a_way_down_that_works_only_once_fails_in_the_rehearsal() {
    let elsewhere =
        format!("{DOWN_2} DO $$ BEGIN IF {NOTED} THEN CREATE INDEX again ON users (created); END IF; {NOTE}; END $$");
    // Each of its statements has an end of its own, and the last is the recorded one both times.
    let by_another_way = format!(
        "-- no-transaction\nDROP INDEX CONCURRENTLY a;
         DO $$ BEGIN DROP INDEX b; IF {NOTED} THEN CREATE INDEX again ON users (created); END IF; {NOTE}; END $$;
         DROP INDEX IF EXISTS again, c;"
    );
    let three_indexes =
        "CREATE INDEX a ON users (created); CREATE INDEX b ON users (created); CREATE INDEX c ON users (created)";
    for (up, down, part) in [
        // Made by hand: the way up does not bring it back, and nothing that is compared shows it.
        (UP_2, format!("{DOWN_2} DROP COLLATION german"), "\"german\""),
        (
            three_indexes,
            "-- no-transaction\nDROP INDEX CONCURRENTLY a; DROP INDEX b; DO $$ BEGIN DROP INDEX c; DROP COLLATION german; END $$"
                .to_owned(),
            "\"german\"",
        ),
        (
            UP_2,
            elsewhere,
            "is not the recorded one: not expected: index public.again",
        ),
        (
            three_indexes,
            by_another_way,
            "statement 2 of 3 the schema is not the rehearsed one: not expected: index public.again",
        ),
    ] {
        let f = Fixture::empty().await;
        f.write("001_users", UP_1, Some(DOWN_1));
        f.apply("001").await;
        f.sql("CREATE COLLATION german (LOCALE = 'C')").await;
        let old = f.driver_retain("v1").await.revision;
        f.write("002_x", up, Some(&down));
        f.apply("002").await;
        f.sql("INSERT INTO users (name) SELECT 'user ' || n FROM generate_series(1, 20) n")
            .await;
        let new = f.driver_retain("v2").await.revision;
        let problem = failed(f.stage(&new, &old).await);
        assert_eq!(problem.code, Code::RehearsalFailed, "{problem}");
        for part in ["going down a second time fails", part] {
            assert!(problem.message.contains(part), "{part:?} is not in: {problem}");
        }
        assert_eq!(f.digest().await, new.digest);
        assert_eq!(f.text("SELECT count(*)::text FROM users").await, "20");
        assert_eq!(
            f.text("SELECT count(*)::text FROM pg_collation WHERE collname = 'german'")
                .await,
            "1"
        );
        assert_eq!(f.kept_schemas().await, "0");
        f.assert_clean().await;
    }
}
