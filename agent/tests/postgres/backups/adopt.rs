//! Dumps that somebody else made.

use rollback_agent::driver::Driver as _;

use super::*;

#[tokio::test]
async fn every_kind_of_dump_is_taken_in_and_shows_the_recorded_release() {
    let f = Fixture::empty().await;
    let (_, new) = f.two_releases().await;
    // Roles that this server does not have any more are none that a look at the content needs.
    f.sql("CREATE ROLE goes_away; ALTER TABLE scores OWNER TO goes_away; GRANT SELECT ON users TO goes_away")
        .await;
    f.sql("SELECT lo_from_bytea(0, '\\x00ff5c2e0a'); COMMENT ON TABLE users IS $$a 'comment'; with \\. in it\n\\connect x$$")
        .await;
    f.sql("INSERT INTO users (name) VALUES (E'back\\\\slash\\ttab\\nline\\n\\\\.\\nend'), ('\\.')")
        .await;
    let custom = dump(&f, "custom", &["-Fc"]);
    let plain = dump(&f, "plain.sql", &[]);
    let inserts = dump(&f, "inserts.sql", &["--inserts", "--rows-per-insert=100"]);
    let zipped = dump(&f, "zipped.sql", &[]);
    run(Command::new("gzip").arg(&zipped));
    let directory = dump(&f, "directory", &["-Fd"]);
    f.sql("ALTER TABLE scores OWNER TO postgres; DROP OWNED BY goes_away; DROP ROLE goes_away")
        .await;
    for (path, format) in [
        (custom, "custom"),
        (plain, "plain"),
        (inserts, "plain"),
        (PathBuf::from(format!("{}.gz", zipped.display())), "plain"),
        (directory, "directory"),
    ] {
        let adopted = adopt(&f, &path).await.unwrap_or_else(|e| panic!("{format}: {e}"));
        assert!(
            adopted.summary.contains("took in") && adopted.summary.contains("3 tables, 2004 rows"),
            "{}",
            adopted.summary
        );
        assert!(!adopted.summary.contains("warning"), "{}", adopted.summary);
        let backups = f.driver.backups().expect("list");
        let line = backups
            .iter()
            .find(|b| b.name == adopted.name)
            .expect("the adopted one");
        assert_eq!(line.path, path.display().to_string());
        assert!(
            line.format.starts_with(format) && line.adopted && line.unfit.is_none(),
            "{line:?}"
        );
        // A restore prints a check constraint of `users` otherwise; it is the recorded release all the same.
        assert_eq!(
            (line.revision.as_str(), line.version.as_str()),
            (new.digest.as_str(), "002_scores")
        );
        let manifest = f.backups().join(format!("{}.manifest.json", adopted.name));
        let manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(manifest).expect("manifest")).expect("JSON");
        assert_eq!(
            manifest["roles"],
            serde_json::json!(["goes_away", "postgres"]),
            "{format}"
        );
    }
    // Each of them once, however often.
    adopt(&f, &f.dir.path().join("plain.sql")).await.expect("again");
    assert_eq!(f.driver.backups().expect("list").len(), 5);
    f.assert_clean().await;
}

#[tokio::test]
async fn dumps_without_a_use_are_refused() {
    let f = Fixture::empty().await;
    f.two_releases().await;
    let write = |name: &str, content: &[u8]| {
        let path = f.dir.path().join(name);
        std::fs::write(&path, content).expect("write");
        path
    };
    let unproven = Code::BackupUnproven;
    refused(adopt(&f, &write("empty", b"")).await, unproven, "is empty");
    refused(
        adopt(&f, &f.dir.path().join("nowhere")).await,
        Code::FileFailed,
        "nowhere",
    );
    refused(adopt(&f, &f.migrations()).await, unproven, "toc.dat");
    refused(adopt(&f, &write("binary", &[7, 0, 1, 2])).await, unproven, "neither");
    refused(adopt(&f, &dump(&f, "tar", &["-Ft"])).await, unproven, "tar archive");
    let schema = dump(&f, "schema.dump", &["-Fc", "--schema-only"]);
    refused(adopt(&f, &schema).await, unproven, "not one row");
    refused(
        adopt(&f, &dump_of(&f, "postgres", "nothing.sql", &[])).await,
        unproven,
        "no table",
    );
    let created = dump(&f, "create.sql", &["--create"]);
    refused(adopt(&f, &created).await, unproven, "CREATE DATABASE");
    let own = f
        .driver
        .back_up(LIMIT, Arc::new(NoProgress))
        .await
        .expect("back up")
        .receipt
        .expect("receipt");
    refused(
        adopt(&f, Path::new(&own.path)).await,
        unproven,
        "is a backup of ours already",
    );
    assert_eq!(f.driver.backups().expect("list").len(), 1);
    f.assert_clean().await;
}

#[tokio::test]
async fn a_dump_of_another_database_is_taken_in_with_a_warning() {
    let f = Fixture::empty().await;
    f.two_releases().await;
    let other = Fixture::empty().await;
    other
        .sql("CREATE TABLE elsewhere (id int); INSERT INTO elsewhere VALUES (1)")
        .await;
    let adopted = adopt(&f, &dump(&other, "other.dump", &["-Fc"])).await.expect("adopt");
    assert!(
        adopted
            .summary
            .contains("warning: its schema is none that was recorded on this host"),
        "{}",
        adopted.summary
    );
}

#[tokio::test]
async fn a_dump_that_was_cut_off_or_damaged_is_noticed() {
    let f = Fixture::empty().await;
    f.two_releases().await;
    let damaged = f.dir.path().join("damaged");
    for args in [&["-Fc", "-Z0"][..], &["-Fc"], &[], &["--inserts"]] {
        let whole = std::fs::read(dump(&f, "whole", args)).expect("read");
        for part in [whole.len() - 200, whole.len() / 2, whole.len() / 10, 3] {
            std::fs::write(&damaged, &whole[..part]).expect("truncate");
            let problem = adopt(&f, &damaged).await.expect_err("cut off");
            assert_eq!(problem.code, Code::BackupUnproven, "{args:?} {part}: {problem}");
        }
    }
    // A bit that flips in a row is noticed by nobody who does not know the row; but by us once the dump was taken in.
    let whole = std::fs::read(dump(&f, "whole", &["-Fc", "-Z0"])).expect("read");
    std::fs::write(&damaged, &whole).expect("write");
    let name = adopt(&f, &damaged).await.expect("adopt").name;
    for nth in 0..60 {
        let mut bytes = whole.clone();
        bytes[nth * whole.len() / 60] ^= 1 << (nth % 8);
        std::fs::write(&damaged, &bytes).expect("flip a bit");
        let checked = f.driver.check_backups(Some(&name)).await.expect("check");
        let answer = checked.into_iter().next().expect("one").1;
        refused(answer, Code::BackupUnproven, "has changed since it was proven");
    }
    std::fs::write(&damaged, &whole).expect("mend");
    f.driver.check_backups(Some(&name)).await.expect("check")[0]
        .1
        .as_ref()
        .expect("whole again");
    refused(
        f.driver.check_backups(Some("x")).await,
        Code::NoBackup,
        "no backup \"x\"",
    );
}

#[tokio::test]
async fn a_release_that_was_never_recorded_is_found_by_its_dump() {
    let f = Fixture::empty().await;
    f.write("001_users", crate::fixture::UP_1, Some(crate::fixture::DOWN_1));
    f.apply("001").await;
    f.sql("INSERT INTO users (name) VALUES ('one')").await;
    let conventional = f.backups().join("v2.9.0.sql");
    std::fs::create_dir(f.backups()).expect("make the directory");
    std::fs::set_permissions(f.backups(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
    std::fs::rename(dump(&f, "old.sql", &[]), &conventional).expect("move");
    f.write("002_scores", crate::fixture::UP_2, Some(crate::fixture::DOWN_2));
    f.apply("002").await;
    let found = f.driver.resolve("v2.9.0").await.expect("resolve");
    assert_eq!(found.revision.version, "001_users");
    assert!(found.summary.contains("v2.9.0.sql"), "{}", found.summary);
    let backups = f.driver.backups().expect("list");
    assert_eq!(backups[0].revision, found.revision.digest);

    refused(f.driver.resolve("v1.0.0").await, Code::Unresolved, "v1.0.0.dump");
    let elsewhere = f.dir.path().join("x/{release}.custom").display().to_string();
    let configured = driver(&f, |c| c.dumps = vec![elsewhere]);
    refused(configured.resolve("v3").await, Code::Unresolved, "/x/v3.custom, ");
    std::fs::create_dir(f.dir.path().join("x")).expect("make a directory");
    std::fs::rename(dump(&f, "new", &["-Fc"]), f.dir.path().join("x/v3.custom")).expect("move");
    let found = configured.resolve("v3").await.expect("resolve");
    assert_eq!(found.revision, f.observe().await);
    refused(f.driver.resolve("../v3").await, Code::BadName, "v3");
}
