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
    for name in ["custom", "plain.sql", "inserts.sql", "zipped.sql.gz", "directory"] {
        let again = adopt_without_tools(&f, &f.dir.path().join(name)).await;
        let again = again.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(
            again.summary.contains("known already:") && again.summary.contains("3 tables, 2004 rows"),
            "{}",
            again.summary
        );
    }
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
    let script = String::from_utf8(std::fs::read(dump(&f, "plain.sql", &[])).expect("read")).expect("UTF-8");
    let shell = write("shell.sql", format!("\\! touch /tmp/x\n{script}").as_bytes());
    let cut = write("cut.sql", &script.as_bytes()[..script.len() / 2]);
    let other = write(
        "lacking.sql",
        script
            .replace("CREATE TABLE", "CREATE EXTENSION nobody_has_it;\nCREATE TABLE")
            .as_bytes(),
    );
    for (path, part, remedy) in [
        (shell, "has the psql command \\!", "find out who put it there"),
        (cut, "it was cut off", "give the whole dump"),
        (other, "nobody_has_it", "install that"),
    ] {
        let problem = adopt(&f, &path).await.expect_err(part);
        assert_eq!(problem.code, unproven, "{problem}");
        assert!(
            problem.message.contains(part) && problem.remedy.contains(remedy),
            "{problem}: {}",
            problem.remedy
        );
    }
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

/// A driver without `pg_dump` and `pg_restore`: it can restore nothing, nor make a copy of anything.
fn toolless(f: &Fixture, adjust: impl FnOnce(&mut rollback_agent::driver::postgres::PostgresConfig)) -> PostgresDriver {
    let empty = f.dir.path().join("no-tools");
    std::fs::create_dir_all(&empty).expect("make a directory");
    driver(f, |c| {
        c.bin_dir = Some(empty);
        adjust(c);
    })
}

async fn adopt_without_tools(f: &Fixture, path: &Path) -> Result<Adopted, Problem> {
    toolless(f, |_| {}).adopt(path, LIMIT, Arc::new(NoProgress)).await
}

#[tokio::test]
async fn an_import_of_a_dump_that_was_taken_in_does_not_restore_it_again() {
    let f = Fixture::empty().await;
    f.write("001_users", crate::fixture::UP_1, Some(crate::fixture::DOWN_1));
    f.apply("001").await;
    f.sql("INSERT INTO users (name) VALUES ('one')").await;
    let never_recorded = dump(&f, "v2.9.0.dump", &["-Fc"]);
    f.write("002_scores", crate::fixture::UP_2, Some(crate::fixture::DOWN_2));
    f.apply("002").await;
    let new = f.driver_retain("v3.0.0").await.revision;
    let recorded = dump(&f, "v3.0.0.dump", &["-Fc"]);
    let dumps = f.dir.path().join("{release}.dump").display().to_string();
    let importing = toolless(&f, |c| c.dumps = vec![dumps]);
    importing.resolve("v2.9.0").await.expect_err("nothing is known yet");
    let adopted = adopt(&f, &never_recorded).await.expect("adopt");
    assert!(
        adopted.summary.contains("none that was recorded"),
        "{}",
        adopted.summary
    );
    adopt(&f, &recorded).await.expect("adopt");

    let found = importing.resolve("v2.9.0").await.expect("import what was not recorded");
    assert!(found.summary.contains("known already:"), "{}", found.summary);
    assert_eq!(found.revision.version, "001_users");
    // It is as good as one that was recorded: the migration goes down to it.
    let again = adopt_without_tools(&f, &never_recorded).await.expect("again");
    assert_eq!(again.name, adopted.name);
    assert!(!again.summary.contains("warning"), "{}", again.summary);
    let found_new = importing.resolve("v3.0.0").await.expect("import what was recorded");
    assert_eq!(found_new.revision, new);
    f.roll(&new, &found.revision).await;
}

#[tokio::test]
async fn a_dump_that_has_changed_is_restored_again() {
    let f = Fixture::empty().await;
    f.two_releases().await;
    let path = dump(&f, "shop.sql", &[]);
    let first = adopt(&f, &path).await.expect("adopt");
    adopt_without_tools(&f, &path).await.expect("known");
    f.sql("INSERT INTO users (name) VALUES ('late')").await;
    dump(&f, "shop.sql", &[]);
    adopt_without_tools(&f, &path).await.expect_err("it has to be restored");
    let second = adopt(&f, &path).await.expect("adopt");
    assert!(
        first.summary.contains("2002 rows") && second.summary.contains("2003 rows"),
        "{}",
        second.summary
    );
    assert!(second.summary.starts_with("took in"), "{}", second.summary);
    // The same length is not the same dump.
    let changed = std::fs::read_to_string(&path).expect("read").replace("late", "LATE");
    std::fs::write(&path, changed).expect("write");
    adopt_without_tools(&f, &path).await.expect_err("it has to be restored");
    adopt(&f, &path).await.expect("adopt");
    assert_eq!(f.driver.backups().expect("list").len(), 1);

    // Nor is it known when its manifest was moved away, as the summary says.
    let known = adopt_without_tools(&f, &path).await.expect("known");
    let manifest = f.backups().join(format!("{}.manifest.json", known.name));
    let advice = format!("move {} away", manifest.display());
    assert!(known.summary.contains(&advice), "{}", known.summary);
    std::fs::remove_file(&manifest).expect("remove the manifest");
    adopt_without_tools(&f, &path).await.expect_err("it has to be restored");
    adopt(&f, &path).await.expect("adopt");

    // An earlier version did not note what the copy showed.
    let name = f.driver.backups().expect("list").remove(0).name;
    let manifest = f.backups().join(format!("{name}.manifest.json"));
    let mut content: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&manifest).expect("read")).expect("JSON");
    content
        .as_object_mut()
        .expect("an object")
        .remove("shown")
        .expect("what the copy showed");
    std::fs::write(&manifest, content.to_string()).expect("write");
    adopt_without_tools(&f, &path).await.expect_err("it has to be restored");
    adopt(&f, &path).await.expect("adopt");
    adopt_without_tools(&f, &path).await.expect("known");
    f.assert_clean().await;
}

/// A restored copy prints the check of `users` otherwise than it was recorded; that is learned from a live database that
/// has it, which was not so when the dump was taken in.
#[tokio::test]
async fn a_known_dump_is_told_anew_when_its_release_was_recorded_since() {
    let f = Fixture::empty().await;
    f.write("001_users", crate::fixture::UP_1, Some(crate::fixture::DOWN_1));
    f.apply("001").await;
    f.sql("INSERT INTO users (name) VALUES ('one')").await;
    let path = dump(&f, "early.dump", &["-Fc"]);
    f.sql("DROP VIEW recent; DROP TABLE users; DELETE FROM schema_migrations")
        .await;
    let early = adopt(&f, &path).await.expect("adopt");
    assert!(early.summary.contains("none that was recorded"), "{}", early.summary);
    f.apply("001").await;
    let recorded = f.driver_retain("v2.9.0").await.revision;
    let again = adopt(&f, &path).await.expect("again");
    assert!(
        again.summary.starts_with("known already:") && !again.summary.contains("warning"),
        "{}",
        again.summary
    );
    let line = f.driver.backups().expect("list").remove(0);
    assert_eq!((line.name, line.revision), (again.name, recorded.digest));
    f.assert_clean().await;
}
