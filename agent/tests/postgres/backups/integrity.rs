//! Questions about the data, of the live database and of copies.

use rollback_agent::driver::postgres::IntegrityCheck;
use rollback_agent::driver::{Action, Driver as _};

use super::*;
use crate::fixture::assert_failed;

fn checks(toml: &str) -> Vec<IntegrityCheck> {
    #[derive(serde::Deserialize)]
    struct Keys {
        integrity: Vec<IntegrityCheck>,
    }
    toml::from_str::<Keys>(toml).expect("checks").integrity
}

#[tokio::test]
async fn a_question_that_is_not_answered_with_true() {
    let f = Fixture::empty().await;
    let (_, new) = f.two_releases().await;
    f.sql(
        "CREATE FUNCTION nosy() RETURNS boolean LANGUAGE sql AS $$ DELETE FROM scores RETURNING true $$;
         CREATE SCHEMA app; CREATE TABLE app.here (id int); INSERT INTO app.here VALUES (1)",
    )
    .await;
    f.sql(&format!("ALTER DATABASE {} SET search_path = public, app", f.database))
        .await;
    let step = f.step(Action::Verify, &new, &new);
    for (sql, part) in [
        ("SELECT count(*) = 500 FROM users", None),
        // By the search path of the application, also in a copy, which has none of its own.
        ("SELECT count(*) = 1 FROM here", None),
        ("SELECT count(*) > 500 FROM users", Some("does not hold")),
        ("SELECT count(*) FROM users", Some("int8")),
        ("SELECT name FROM users WHERE id = 7", Some("true or false")),
        ("SELECT true FROM users WHERE false", Some("no row")),
        ("SELECT true FROM users", Some("several rows")),
        ("SELECT NULL::boolean", Some("NULL")),
        ("SELECT name::int > 0 FROM users LIMIT 1", Some("22P02")),
        ("SELECT nosy()", Some("read-only")),
        ("SELECT true FROM gone", Some("gone")),
    ] {
        let asking = driver(&f, |c| {
            c.integrity = checks(&format!("integrity = [{{ name = 'mine', sql = '{sql}' }}]"))
        });
        let verified = asking.verify(&step).await;
        let backup = asking
            .back_up(LIMIT, Arc::new(NoProgress))
            .await
            .expect("a backup is made all the same");
        let newest = asking.backups().expect("list").into_iter().next().expect("the backup");
        match part {
            None => {
                verified.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
                assert_eq!(newest.broken.len(), 0, "{newest:?}");
            }
            Some(part) => {
                assert!(
                    backup.summary.contains("warning: integrity check \"mine\""),
                    "{}",
                    backup.summary
                );
                assert!(newest.broken[0].contains(part), "{newest:?}");
                let text = format!("{verified:?} {newest:?}");
                assert!(!text.contains("user "), "no data: {text}");
                assert_failed(verified, Code::IntegrityFailed, part);
            }
        }
    }
    assert_eq!(f.text("SELECT count(*)::text FROM scores").await, "1500");
}
