//! Backups that belong to no rollback.

use rollback_agent::driver::postgres::BackupLine;

use super::*;
use crate::restore::{ANY, Restored};

/// Exit status, standard output, standard error.
fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn the_command_line_makes_lists_and_checks_backups() {
    let f = Fixture::empty().await;
    f.two_releases().await;
    let digest = f.digest().await;
    let made = said(&command_line(&f, &["backup", "db"]));
    assert_eq!(made.0, Some(0), "{}", made.2);
    assert!(
        made.2.contains("verified by restore") && made.2.contains("figures of public.scores"),
        "{}",
        made.2
    );
    let path = made.1.trim();
    assert!(std::fs::metadata(path).expect("the dump").len() > 0);
    f.assert_clean().await;

    let listed = said(&command_line(&f, &["list", "db", "-o", "json"]));
    assert_eq!(listed.0, Some(0), "{}", listed.2);
    let listing: serde_json::Value = serde_json::from_str(&listed.1).expect("JSON");
    let backup = &listing["backups"][0];
    assert_eq!(backup["path"], path);
    assert_eq!(backup["revision"], digest.as_str());
    assert_eq!(backup["version"], "002_scores");
    assert_eq!(backup["rows"], 2002);
    assert_eq!(backup["unfit"], serde_json::Value::Null);
    let table = said(&command_line(&f, &["list", "db"])).1;
    assert!(table.contains("002_scores") && table.contains(" yes\n"), "{table}");

    assert_eq!(said(&command_line(&f, &["check", "db"])).0, Some(0));
    let mut bytes = std::fs::read(path).expect("read the dump");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(path, &bytes).expect("flip a bit");
    let checked = said(&command_line(&f, &["check", "db"]));
    assert_eq!(checked.0, Some(1));
    assert!(checked.1.contains("has changed since it was proven"), "{}", checked.1);
    let manifest = path.replace(".dump", ".manifest.json");
    let advice = format!(
        "  what to do: move {path} and {manifest} away; make another backup: rollback-agent database backup db\n"
    );
    assert!(checked.2.contains(&advice), "{}", checked.2);
    std::fs::remove_file(path).expect("remove the dump");
    let table = said(&command_line(&f, &["list", "db"])).1;
    assert!(table.contains("no: the dump is gone"), "{table}");

    let unknown = said(&command_line(&f, &["list", "web"]));
    assert_eq!(unknown.0, Some(1));
    assert!(
        unknown.2.contains("RB0304") && unknown.2.contains("give one of: db"),
        "{}",
        unknown.2
    );
}

#[tokio::test]
async fn a_quiet_backup_says_nothing_but_warnings() {
    let f = Fixture::empty().await;
    f.two_releases().await;
    let quiet = said(&command_line(&f, &["backup", "db", "--quiet"]));
    assert_eq!(quiet, (Some(0), String::new(), String::new()));
    assert_eq!(f.driver.backups().expect("list").len(), 1);
    let mut warned = program(&f, &["backup", "db", "-q"]);
    let config = f.dir.path().join("agent.toml");
    let text = std::fs::read_to_string(&config).expect("read the configuration");
    std::fs::write(&config, format!("{text}integrity = ['SELECT false']\n")).expect("write the configuration");
    let warned = said(&warned.output().expect("run rollback-agent"));
    assert_eq!((warned.0, warned.1.as_str()), (Some(0), ""), "{}", warned.2);
    assert!(warned.2.contains("warning: "), "{}", warned.2);
}

/// Its manifest was moved away: that is no reason to delete it.
#[tokio::test]
async fn a_dump_of_ours_without_its_manifest_can_be_taken_in_and_stays() {
    let f = Fixture::empty().await;
    f.two_releases().await;
    let made = said(&command_line(&f, &["backup", "db"]));
    let dump = PathBuf::from(made.1.trim());
    let content = std::fs::read(&dump).expect("read the dump");
    std::fs::remove_file(dump.with_extension("manifest.json")).expect("remove the manifest");
    command_line(&f, &["backup", "db"]);
    assert_eq!(
        std::fs::read(&dump).ok().as_ref(),
        Some(&content),
        "a backup removed it"
    );
    let adopted = said(&command_line(&f, &["adopt", "db", made.1.trim()]));
    assert_eq!(adopted.0, Some(0), "{}", adopted.2);
    assert!(
        adopted.2.contains("took in") && adopted.2.contains("2002 rows"),
        "{}",
        adopted.2
    );
    command_line(&f, &["backup", "db"]);
    assert_eq!(std::fs::read(&dump).ok(), Some(content));
    let listed = f.driver.backups().expect("list");
    assert_eq!(listed.len(), 3);
    assert!(listed.iter().all(|b| b.unfit.is_none()), "{listed:?}");
    f.assert_clean().await;
}

#[tokio::test]
async fn what_a_killed_backup_leaves_is_removed_or_finished_by_the_next_one() {
    let f = Fixture::empty().await;
    f.two_releases().await;
    let killed_at = |point: &str| {
        let ended = program(&f, &["backup", "db"]).env("ROLLBACK_KILL_AT", point).output();
        assert_eq!(ended.expect("run rollback-agent").status.code(), None, "{point}");
    };
    let files = |ending: &str| {
        let names = std::fs::read_dir(f.backups()).expect("read").flatten();
        let names = names.filter_map(|e| e.file_name().into_string().ok());
        names.filter(|name| name.ends_with(ending)).count()
    };
    for point in ["ACTION_SNAPSHOT.verify_figures.before", "ACTION_SNAPSHOT.seal.before"] {
        killed_at(point);
        let left = std::fs::read_dir(f.backups()).expect("read").flatten();
        let left = left.filter(|e| e.file_name().to_string_lossy().starts_with(".incoming-"));
        assert_eq!((left.count(), files(".dump")), (1, 0), "{point}");
    }
    command_line(&f, &["backup", "db"]);
    assert_eq!((files(".dump"), files(".manifest.json")), (1, 1));
    f.assert_clean().await;
    // It was proven, and noted: all that is left to do is to give the dump its name.
    for (point, dumps) in [("backup.manifest_written", 1), ("backup.renamed", 3)] {
        killed_at(point);
        assert_eq!(files(".dump"), dumps, "{point}");
    }
    command_line(&f, &["backup", "db"]);
    assert_eq!((files(".dump"), files(".manifest.json")), (4, 4));
    let listed = f.driver.backups().expect("list");
    assert!(listed.iter().all(|b| b.unfit.is_none()), "{listed:?}");
    let checked = f.driver.check_backups(None).await.expect("check");
    assert!(checked.iter().all(|(_, answer)| answer.is_ok()), "{checked:?}");
    f.assert_clean().await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_waited_for_in_one_line() {
    let f = Fixture::empty().await;
    let mut backup = program(&f, &["backup", "db", "--timeout", "6s"]);
    let config = f.dir.path().join("agent.toml");
    let text = std::fs::read_to_string(&config).expect("read the configuration");
    let nowhere = f.dir.path().display().to_string();
    let text = text.replace(&f.cluster.socket.display().to_string(), &nowhere);
    std::fs::write(&config, text).expect("write the configuration");
    let down = said(&backup.output().expect("run rollback-agent"));
    assert_eq!(down.0, Some(1), "{}", down.2);
    let waiting: Vec<&str> = down.2.lines().filter(|l| l.contains("does not accept")).collect();
    assert_eq!(waiting.len(), 1, "{}", down.2);
    assert_eq!(waiting[0].matches("No such file").count(), 1, "{}", down.2);
    assert!(
        down.2.contains("\n  what to do: look at the database server"),
        "{}",
        down.2
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_lists_what_was_put_aside_and_drops_one() {
    let r = Restored::new(false).await;
    let none = said(&command_line(&r.f, &["collect", "db"]));
    assert_eq!((none.0, none.1.as_str()), (Some(0), ""));
    assert!(
        none.2.contains("there is no database that a restore of db put aside"),
        "{}",
        none.2
    );
    r.stage().await.expect("stage");
    let none = said(&command_line(&r.f, &["collect", "db"]));
    assert_eq!(none.1, "", "the restored one was never live");
    r.switch(Some(ANY)).await.expect("switch");
    r.finish().await;
    let aside = r.databases("_before_").await.remove(0);

    let listed = said(&command_line(&r.f, &["collect", "db"]));
    assert_eq!(listed.0, Some(0), "{}", listed.2);
    let lines: Vec<&str> = listed.1.lines().collect();
    assert_eq!(lines.len(), 2, "{}", listed.1);
    for part in [aside.as_str(), r.f.rollback.as_str(), " kB", "live before the restore"] {
        assert!(lines[1].contains(part), "{part:?} is not in: {}", lines[1]);
    }
    assert!(
        listed.2.contains("rollback-agent database collect db NAME"),
        "{}",
        listed.2
    );

    let unknown = said(&command_line(&r.f, &["collect", "db", "postgres"]));
    assert_eq!(unknown.0, Some(1));
    assert!(unknown.2.contains(&aside), "{}", unknown.2);
    let dropped = said(&command_line(&r.f, &["collect", "db", &aside]));
    assert_eq!(dropped.0, Some(0), "{}", dropped.2);
    assert!(r.databases("_before_").await.is_empty());
    assert_eq!(said(&command_line(&r.f, &["collect", "db"])).1, "");
}

#[tokio::test]
async fn another_components_databases_are_neither_listed_nor_dropped() {
    let f = Fixture::empty().await;
    let mark = serde_json::json!({
        "rollbackctl": 1, "what": "before", "component": "other", "database": f.database,
        "rollback": "rb-1", "backup": "b", "at": "2026-11-22T05:15:00Z",
    });
    let name = format!("{}_before_0123456789abcdef", f.database);
    for sql in [
        format!("CREATE DATABASE {name}"),
        format!("COMMENT ON DATABASE {name} IS '{mark}'"),
    ] {
        f.cluster.sql("postgres", &sql).await;
    }
    assert!(f.driver.collectable().await.expect("list").is_empty());
    let problem = f.driver.collect(&name).await.expect_err("another component's");
    assert_eq!(problem.code, Code::NoBackup);
    assert!(problem.message.ends_with("there is none"), "{problem}");
    assert_eq!(problem.remedy, "nothing: there is nothing to drop");
}

#[tokio::test]
async fn a_backup_knows_what_a_restore_will_need() {
    let f = Fixture::empty().await;
    f.two_releases().await;
    f.cluster
        .sql(
            "postgres",
            "DO $$ BEGIN CREATE ROLE owner_of_it; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
             DO $$ BEGIN CREATE ROLE \"Reader of it\"; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        )
        .await;
    f.sql(
        "CREATE SCHEMA ext; CREATE EXTENSION pg_trgm WITH SCHEMA ext; ALTER TABLE scores OWNER TO owner_of_it;
         GRANT SELECT ON users TO \"Reader of it\"",
    )
    .await;
    let receipt = f.driver.back_up(LIMIT, Arc::new(NoProgress)).await.expect("back up");
    let path = PathBuf::from(receipt.receipt.expect("receipt").path).with_extension("manifest.json");
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).expect("read the manifest")).expect("JSON");
    assert_eq!(manifest["roles"], serde_json::json!(["Reader of it", "owner_of_it"]));
    assert!(manifest["extensions"]["pg_trgm"].is_string(), "{manifest}");
    assert!(manifest["database_bytes"].as_u64() > Some(1_000_000));
    assert!(manifest["horizon"].is_object());
    assert!(manifest["restored_revision"].is_string());
}

#[tokio::test]
async fn one_at_a_time_and_steps_wait() {
    let f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    f.driver.back_up(LIMIT, Arc::new(NoProgress)).await.expect("back up");
    let lock = std::fs::read_dir(f.backups())
        .expect("read")
        .flatten()
        .map(|e| e.path())
        .find(|p| p.display().to_string().contains(".lock-"))
        .expect("the lock");
    let held = std::fs::File::open(lock).expect("open the lock");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("lock");
    let again = f.driver.back_up(LIMIT, Arc::new(NoProgress)).await;
    refused(again, Code::DatabaseLocked, "a backup by hand (pid ");
    // A rollback goes on as soon as the other one is done.
    let let_go = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(held);
    };
    let (staged, ()) = tokio::join!(f.stage(&new, &old), let_go);
    staged.expect("stage");
    // A backup from cron between two steps takes nothing away from the rollback; what a killed one left, it removes.
    let left = ".incoming-hand-".to_owned() + &leftover_of(&f);
    std::fs::create_dir(f.backups().join(&left)).expect("make a leftover");
    f.driver.back_up(LIMIT, Arc::new(NoProgress)).await.expect("back up");
    assert!(!f.backups().join(&left).exists());
    f.switch(&new, &old).await.expect("switch");
    f.finish(&new, &old).await;
    f.assert_clean().await;
}

/// The short name of the component, as the lock has it.
fn leftover_of(f: &Fixture) -> String {
    let names = std::fs::read_dir(f.backups()).expect("read").flatten();
    let lock = names
        .filter_map(|e| e.file_name().into_string().ok())
        .find_map(|name| name.strip_prefix(".lock-").map(str::to_owned));
    lock.expect("the lock")
}

#[tokio::test]
async fn the_newest_backup_of_a_recorded_revision_is_spared() {
    let f = Fixture::empty().await;
    f.write("001_users", crate::fixture::UP_1, Some(crate::fixture::DOWN_1));
    f.apply("001").await;
    f.sql("INSERT INTO users (name) VALUES ('one')").await;
    let recording = driver(&f, |c| (c.backup_on_record, c.retain_backups) = (true, 2));
    let retained = rollback_agent::driver::Driver::retain(&recording, "v1")
        .await
        .expect("record");
    assert!(retained.summary.contains("verified by restore"), "{}", retained.summary);
    f.write("002_scores", crate::fixture::UP_2, Some(crate::fixture::DOWN_2));
    f.apply("002").await;
    let adopted = adopt(&f, &dump(&f, "foreign.dump", &["-Fc"]))
        .await
        .expect("adopt")
        .name;
    for _ in 0..4 {
        recording.back_up(LIMIT, Arc::new(NoProgress)).await.expect("back up");
    }
    let left = f.driver.backups().expect("list");
    let of = |revision: &str| left.iter().filter(|b| !b.adopted && b.revision == revision).count();
    assert_eq!(of(&retained.revision.digest), 1, "the only one of v1");
    assert_eq!(of(&f.digest().await), 2, "retain_backups of what was not recorded");
    assert!(left.iter().any(|b| b.name == adopted), "adopted ones stay");
    // As instants: what was taken in has no fractions of a second, and as texts "53Z" comes after "53.02Z".
    let at = |b: &BackupLine| b.taken_at.parse::<jiff::Timestamp>().expect("a time");
    let newest_first: Vec<jiff::Timestamp> = left.iter().map(at).collect();
    assert!(newest_first.is_sorted_by(|a, b| a >= b), "{newest_first:?}");
}

/// A restore would take the older one, so that is the one to keep.
#[tokio::test]
async fn a_backup_of_damaged_data_does_not_drive_out_the_good_one() {
    let f = Fixture::empty().await;
    f.write("001_users", crate::fixture::UP_1, Some(crate::fixture::DOWN_1));
    f.apply("001").await;
    f.sql("INSERT INTO users (name) VALUES ('one')").await;
    f.driver_retain("v1").await;
    let asking = driver(&f, |c| {
        c.retain_backups = 1;
        c.integrity = toml::from_str::<std::collections::BTreeMap<String, Vec<_>>>(
            "integrity = ['SELECT count(*) > 0 FROM users']",
        )
        .expect("a check")
        .remove("integrity")
        .expect("the key");
    });
    asking.back_up(LIMIT, Arc::new(NoProgress)).await.expect("back up");
    let good = f.driver.backups().expect("list")[0].name.clone();
    f.sql("DELETE FROM users").await;
    for _ in 0..2 {
        asking.back_up(LIMIT, Arc::new(NoProgress)).await.expect("back up");
    }
    let left = f.driver.backups().expect("list");
    let names: Vec<&str> = left.iter().map(|b| b.name.as_str()).collect();
    assert!(names.len() == 2 && names.contains(&good.as_str()), "{names:?}, {good}");
}
