//! There and back: content, schema, and everything that belongs to a database by its OID.

use rollback_agent::driver::{Action, Driver as _, Probe, Severity};
use rollback_proto::problem::Code;

use super::{ANY, Restored, WRITTEN, at_most, table, written};
use crate::fixture::{CONTENT, assert_failed, blockers};

/// What does not follow a name.
const CARRIED: &str =
    "SELECT concat_ws(E'\\n', pg_get_userbyid(d.datdba), d.datconnlimit, shobj_description(d.oid, 'pg_database'),
      (SELECT string_agg(concat_ws(' ', a.grantee::regrole, a.privilege_type), ',' ORDER BY 1)
       FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a),
      (SELECT string_agg(concat_ws(' ', s.setrole::regrole, s.setconfig::text), ';' ORDER BY s.setrole)
       FROM pg_db_role_setting s WHERE s.setdatabase = d.oid))
    FROM pg_database d WHERE datname = current_database()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_and_its_undo_by_a_plain_role() {
    let r = Restored::new(true).await;
    let f = &r.f;
    f.cluster
        .sql(
            "postgres",
            &format!(
                "DO $$ BEGIN CREATE ROLE reporter; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
                 REVOKE ALL ON DATABASE {0} FROM PUBLIC; GRANT CONNECT ON DATABASE {0} TO reporter;
                 GRANT CREATE ON DATABASE {0} TO plain WITH GRANT OPTION;
                 ALTER DATABASE {0} CONNECTION LIMIT 40; COMMENT ON DATABASE {0} IS 'the ''shop''';
                 ALTER DATABASE {0} SET search_path TO \"$user\", public, \"a, b\"; ALTER DATABASE {0} SET work_mem = '5MB';
                 ALTER ROLE plain IN DATABASE {0} SET statement_timeout = '33s'",
                f.database
            ),
        )
        .await;
    let carried = f.text(CARRIED).await;
    assert!(
        carried.contains("\"$user\", public, \\\"a, b\\\"") || carried.contains("a, b"),
        "{carried}"
    );

    let findings = r.prepare().await;
    assert!(blockers(&findings).is_empty(), "{findings:?}");
    let priced = findings.iter().find(|f| f.loss.is_some()).expect("what it would cost");
    assert_eq!(priced.severity, Severity::Warning);
    let loss = priced.loss.clone().expect("a loss");
    assert_eq!((written(&loss), loss.unknown.as_str()), (WRITTEN, ""), "{loss:?}");
    // 500 users in the backup: one was changed and two deleted.
    let users = table(&loss, "public.users");
    assert_eq!((users.written, users.replaced), (31, 3));

    let staged = r.stage().await.expect("stage");
    r.assert_untouched().await;
    let receipt = f
        .driver
        .snapshot(&r.step(Action::Snapshot, None))
        .await
        .expect("receipt")
        .receipt;
    assert_eq!(
        receipt.map(|r| (r.verified, r.rows)),
        Some(("restore".to_owned(), 501)),
        "{staged:?}"
    );
    // Written after it was staged: counted at the cutover.
    f.sql("INSERT INTO scores (user_id, points) VALUES (2, 2)").await;
    let before = f.text(CONTENT).await;
    let done = r.switch(Some(at_most(WRITTEN + 1))).await.expect("switch");
    assert_eq!(
        written(done.loss.as_ref().expect("a loss")),
        WRITTEN + 1,
        "{}",
        done.summary
    );
    assert_eq!(done.observed.as_ref(), Some(&r.old));
    r.assert_restored().await;
    assert_eq!(f.text(CARRIED).await, carried);
    let owners = "SELECT string_agg(DISTINCT tableowner, ',') FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(f.text(owners).await, "plain");
    f.driver.verify(&r.step(Action::Verify, None)).await.expect("verify");
    // A repetition finds it done, and knows what it cost.
    let again = r.switch(Some(at_most(0))).await.expect("again");
    assert_eq!(again.loss, done.loss);
    let Probe::Applied(probed) = r.probe().await else {
        panic!("it is applied")
    };
    assert_eq!(probed.loss, done.loss);
    let aside = r.databases("_before_").await;
    assert_eq!(aside.len(), 1);
    let problem = f.driver.collect(&aside[0]).await.expect_err("the undo needs it");
    assert_eq!(problem.code, Code::DatabaseLocked, "{problem}");

    let undone = r.undo().await.expect("undo");
    assert_eq!(undone.observed.as_ref(), Some(&r.new), "{}", undone.summary);
    assert_eq!(f.text(CONTENT).await, before);
    assert_eq!(f.text(CARRIED).await, carried);
    assert!(matches!(
        f.driver.probe(&r.undo_step(Action::Switch)).await,
        Probe::Applied(_)
    ));
    r.undo().await.expect("undo again");

    // Nothing was written to the restored one: it can go live once more, and an undo that finds rows in it keeps them.
    r.switch(Some(ANY)).await.expect("switch again");
    f.sql("INSERT INTO users (name) VALUES ('in between'); DELETE FROM users WHERE name = 'user 1'")
        .await;
    let undone = r.undo().await.expect("undo");
    let kept = r.databases("_undone_").await;
    assert!(
        kept.len() == 1 && undone.summary.contains(&kept[0]) && undone.summary.contains("1 row "),
        "{}",
        undone.summary
    );
    assert_eq!(f.text(CONTENT).await, before);
    assert_failed(r.switch(Some(ANY)).await, Code::RestoreFailed, "is now called");
    r.assert_restored_is_closed(&kept[0]).await;
    let cleared = r.discard().await;
    assert!(cleared.summary.contains(&kept[0]), "{}", cleared.summary);
    f.assert_clean().await;
    assert!(f.driver.collect(&kept[0]).await.expect("collect").contains(&kept[0]));
    assert!(r.databases("_").await.is_empty());
}

impl Restored {
    async fn assert_restored_is_closed(&self, name: &str) {
        let sql = format!("SELECT datallowconn::text FROM pg_database WHERE datname = '{name}'");
        assert_eq!(self.f.cluster.text("postgres", &sql).await, "false");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_live_before_stays_until_it_is_collected() {
    let r = Restored::new(false).await;
    r.stage().await.expect("stage");
    r.switch(Some(ANY)).await.expect("switch");
    let finished = r.finish().await;
    let aside = r.databases("_before_").await;
    assert!(
        finished.summary.contains(&format!("collect db {}", aside[0])),
        "{}",
        finished.summary
    );
    assert!(r.databases("rollbackctl_side").await.is_empty());
    r.f.assert_clean().await;
    r.assert_restored().await;
    // The next rollback says what lies around; only what has our mark can be collected.
    let findings = r.f.prepare(&r.old, &r.old).await;
    assert!(
        findings.iter().any(|f| f.problem.message.contains(&aside[0])),
        "{findings:?}"
    );
    for name in [r.f.database.as_str(), "postgres", "no_such"] {
        assert_eq!(r.f.driver.collect(name).await.expect_err(name).code, Code::NoBackup);
    }
    r.f.driver.collect(&aside[0]).await.expect("collect");
    assert!(r.databases("_before_").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_schema_with_other_data() {
    let mut r = Restored::new(false).await;
    r.f.snapshot(&r.new, &r.new).await.expect("a backup of v3.0.0");
    r.f.next_rollback("equal");
    let kept = r.f.text(CONTENT).await;
    r.f.sql("DELETE FROM scores; INSERT INTO users (name) VALUES ('after')")
        .await;
    let spoilt = r.f.text(CONTENT).await;
    r.old = r.new.clone();
    r.stage().await.expect("stage");
    assert!(matches!(r.probe().await, Probe::Repeatable(_)));
    let done = r.switch(Some(at_most(1))).await.expect("switch");
    let loss = done.loss.expect("a loss");
    assert_eq!(
        (written(&loss), table(&loss, "public.scores").replaced),
        (1, 40),
        "{loss:?}"
    );
    assert_eq!(r.f.text(CONTENT).await, kept);
    assert!(matches!(r.probe().await, Probe::Applied(_)));
    r.undo().await.expect("undo");
    assert_eq!(r.f.text(CONTENT).await, spoilt);
    assert!(matches!(r.probe().await, Probe::Repeatable(_)));
    r.discard().await;
    r.f.assert_clean().await;
}
