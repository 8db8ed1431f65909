//! Faults while something is under way: locks, damaged files, a full disk, a migration that fails on the live database
//! only, and the agent killed at any point.

use std::path::Path;
use std::time::{Duration, Instant};

use rand::Rng as _;
use rollback_agent::driver::postgres::PostgresDriver;
use rollback_agent::driver::{Action, Driver as _, Probe, Revision};
use rollback_proto::problem::Code;
use sqlx::Connection as _;

use crate::cluster::{run, script};
use crate::fixture::{CONTENT, Fixture, UP_2, assert_failed, blockers, failed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_lock_is_named_and_readers_are_not_stalled() {
    let f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    f.stage(&new, &old).await.expect("stage");
    let mut holder = f.cluster.connect(&f.database).await;
    sqlx::raw_sql("SET application_name = 'a report'; BEGIN; SELECT count(*) FROM users")
        .execute(&mut holder)
        .await
        .expect("hold");

    let done = std::sync::atomic::AtomicBool::new(false);
    let reading = async {
        let mut reader = f.cluster.connect(&f.database).await;
        let mut longest = Duration::ZERO;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let begun = Instant::now();
            sqlx::raw_sql("SELECT id FROM users LIMIT 1")
                .execute(&mut reader)
                .await
                .expect("read");
            longest = longest.max(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        longest
    };
    let switching = async {
        let result = f.switch(&new, &old).await;
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        result
    };
    let (result, longest) = tokio::join!(switching, reading);
    let problem = failed(result);
    assert_eq!(problem.code, Code::DatabaseLocked, "{problem}");
    assert!(
        problem.message.contains("a report") && problem.message.contains("pid "),
        "{problem}"
    );
    assert!(
        longest < Duration::from_secs(1),
        "a SELECT waited {longest:?}; lock_timeout is 200 ms"
    );
    assert_eq!(f.digest().await, new.digest);
    assert_eq!(f.kept_schemas().await, "0");

    // The lock goes away while the migration tries again.
    let release = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        holder.close().await.expect("let go");
    };
    let (result, ()) = tokio::join!(f.switch(&new, &old), release);
    result.expect("switch after the lock is gone");
}

#[tokio::test]
async fn another_migration_tool_at_work_is_waited_for() {
    let f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    f.stage(&new, &old).await.expect("stage");
    let mut tool = f.cluster.connect(&f.database).await;
    // As sqlx takes it while it migrates.
    sqlx::migrate::Migrate::lock(&mut tool).await.expect("lock");
    assert_failed(
        f.switch(&new, &old).await,
        Code::DatabaseLocked,
        "the migration tools' lock",
    );
    sqlx::migrate::Migrate::unlock(&mut tool).await.expect("unlock");
    f.switch(&new, &old).await.expect("switch");
}

#[tokio::test]
async fn a_migration_that_fails_on_the_live_database_only() {
    let f = Fixture::empty().await;
    let (old, _) = f.two_releases().await;
    f.write(
        "003_late",
        "CREATE TABLE late (id int PRIMARY KEY)",
        Some("DROP TABLE late"),
    );
    f.apply("003").await;
    let only_live = "DROP TABLE scores; ALTER TABLE users DROP COLUMN score;
        DO $$ BEGIN IF current_database() NOT LIKE 'rollbackctl%' THEN RAISE 'not here'; END IF; END $$;";
    f.write("002_scores", UP_2, Some(only_live));
    let new = f.driver_retain("v3.1.0").await.revision;
    f.sql("INSERT INTO late VALUES (1)").await;
    let before = f.text(CONTENT).await;
    f.stage(&new, &old).await.expect("the rehearsal passes");
    assert_failed(
        f.switch(&new, &old).await,
        Code::MigrationFailed,
        "002_scores down: not here",
    );
    // 003 had gone down before it in the same transaction.
    assert_eq!(f.digest().await, new.digest);
    assert_eq!(
        (f.text(CONTENT).await, f.text("SELECT count(*)::text FROM late").await),
        (before, "1".to_owned())
    );
    assert_eq!(f.kept_schemas().await, "0");
    let probe = f.driver.probe(&f.step(Action::Switch, &new, &old)).await;
    assert!(matches!(probe, Probe::Repeatable(_)), "{probe:?}");
    f.sql("CREATE TABLE neither_here_nor_there ()").await;
    let probe = f.driver.probe(&f.step(Action::Switch, &new, &old)).await;
    assert!(
        matches!(&probe, Probe::Indeterminate(p) if p.code == Code::DatabaseUnclear),
        "{probe:?}"
    );
}

#[tokio::test]
async fn a_staged_backup_that_changed_is_not_sealed() {
    let f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    f.stage(&new, &old).await.expect("stage");
    let dump = std::fs::read_dir(f.backups())
        .expect("read")
        .flatten()
        .map(|e| e.path().join("dump"))
        .find(|p| p.is_file());
    let dump = dump.expect("the staged dump");
    let whole = std::fs::read(&dump).expect("read");
    for damaged in [&whole[..whole.len() - 1], &whole[..0]] {
        std::fs::write(&dump, damaged).expect("truncate");
        assert_failed(
            f.snapshot(&new, &old).await,
            Code::BackupUnproven,
            "has changed since it was proven",
        );
    }
    std::fs::write(&dump, &whole).expect("mend");
    f.snapshot(&new, &old).await.expect("snapshot of the mended file");
}

/// A `pg_dump` that works, and whose file is damaged afterwards.
fn damaging_dump(f: &Fixture, damage: &str) -> std::path::PathBuf {
    let bin = f.dir.path().join("bin");
    std::fs::create_dir_all(&bin).expect("make a directory");
    let real = f.cluster.bin.display();
    let text = format!(
        "#!/bin/sh\n{real}/pg_dump \"$@\" || exit\nfor a; do case \"$a\" in --file=*) F=\"${{a#--file=}}\";; esac; done\n\
         [ -z \"$F\" ] || {{ {damage}\n}}\n"
    );
    script(&bin.join("pg_dump"), &text);
    script(
        &bin.join("pg_restore"),
        &format!("#!/bin/sh\nexec {real}/pg_restore \"$@\"\n"),
    );
    bin
}

#[tokio::test]
async fn a_dump_that_is_damaged_is_never_taken_for_a_backup() {
    let f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    let flip = |at: &str| {
        format!(
            "N=$(stat -c %s \"$F\"); printf '\\377\\000\\252' | dd of=\"$F\" bs=1 seek=$(({at})) conv=notrunc 2>/dev/null"
        )
    };
    for damage in [
        "truncate -s -1 \"$F\"".to_owned(),
        "truncate -s 50% \"$F\"".to_owned(),
        "truncate -s 0 \"$F\"".to_owned(),
        flip("N - 2000"),
        flip("N / 2"),
        // Whole and readable, but not what the figures were taken of.
        format!("{}/pg_dump --schema-only -Fc --file=\"$F\"", f.cluster.bin.display()),
    ] {
        let mut config = f.config.clone();
        config.bin_dir = Some(damaging_dump(&f, &damage));
        let driver = PostgresDriver::new("db", config, f.vault.clone()).expect("driver");
        let staged = driver.stage(&f.step(Action::Stage, &new, &old)).await;
        assert_eq!(failed(staged).code, Code::BackupUnproven, "{damage}");
        driver
            .finish(&f.step(Action::Finish, &new, &old))
            .await
            .expect("finish");
        f.assert_clean().await;
    }
    let mut config = f.config.clone();
    config.bin_dir = Some(damaging_dump(&f, "truncate -s 50% \"$F\""));
    let driver = PostgresDriver::new("db", config, f.vault.clone()).expect("driver");
    let sealed = driver.snapshot(&f.step(Action::Snapshot, &new, &new)).await;
    assert_eq!(failed(sealed).code, Code::BackupUnproven);
    driver
        .finish(&f.step(Action::Finish, &new, &new))
        .await
        .expect("finish");
    f.assert_clean().await;
    let kept: Vec<_> = std::fs::read_dir(f.backups())
        .expect("read")
        .flatten()
        .map(|e| e.file_name())
        .filter(|name| !name.to_string_lossy().starts_with(".lock-"))
        .collect();
    assert!(kept.is_empty(), "nothing of it was kept: {kept:?}");
}

/// A file system of 2 MB for the time of a test.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir(at).expect("make the mount point");
        run(std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs"])
            .arg(at));
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_while_staging() {
    let f = Fixture::empty().await;
    assert!(
        rustix::process::geteuid().is_root(),
        "this test mounts a small tmpfs: run it as root"
    );
    let (old, new) = f.two_releases().await;
    f.sql("CREATE TABLE public.noise AS SELECT n, gen_random_uuid()::text AS t FROM generate_series(1, 150000) n")
        .await;
    let new = Revision {
        version: new.version,
        digest: f.driver_retain("with noise").await.revision.digest,
    };
    let disk = SmallDisk::mount(&f.backups());
    let findings = f.prepare(&new, &old).await;
    assert!(
        blockers(&findings).iter().any(|p| p.code == Code::DiskFull),
        "{findings:?}"
    );
    let problem = failed(f.stage(&new, &old).await);
    assert_eq!(problem.code, Code::DiskFull, "{problem}");
    assert_eq!(f.digest().await, new.digest);
    f.assert_clean().await;
    drop(disk);
}

/// Runs a move and drops it after `limit`, as a kill of the agent does. `None`: it was dropped.
async fn killed_after<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_point_and_repeated() {
    let f = Fixture::empty().await;
    let (old, new) = f.two_releases().await;
    let before = f.text(CONTENT).await;
    let measure = Instant::now();
    f.stage(&new, &old).await.expect("stage");
    let whole = measure.elapsed();
    let random = |longest: Duration| longest.mul_f64(rand::rng().random_range(0.0..1.0));
    for _ in 0..8 {
        let _ = killed_after(random(whole), f.stage(&new, &old)).await;
        let probe = f.driver.probe(&f.step(Action::Stage, &new, &old)).await;
        assert!(matches!(probe, Probe::Repeatable(_)), "{probe:?}");
        assert_eq!(f.digest().await, new.digest);
    }
    f.stage(&new, &old).await.expect("stage at last");
    for _ in 0..4 {
        let _ = killed_after(random(whole.mul_f64(0.1)), f.snapshot(&new, &old)).await;
    }
    let receipt = f
        .snapshot(&new, &old)
        .await
        .expect("snapshot at last")
        .receipt
        .expect("receipt");
    assert_eq!(receipt.verified, "restore");

    let measure = Instant::now();
    f.switch(&new, &old).await.expect("down");
    let whole = measure.elapsed();
    f.switch(&old, &new).await.expect("up");
    let (mut from, mut to) = (&new, &old);
    let (mut applied, mut repeated) = (0, 0);
    for _ in 0..30 {
        // As the executor does after a restart: probe, and run it again if that is what the answer means.
        let _ = killed_after(random(whole), f.switch(from, to)).await;
        match f.driver.probe(&f.step(Action::Switch, from, to)).await {
            Probe::Applied(done) => {
                assert_eq!(done.observed.as_ref(), Some(to));
                applied += 1;
            }
            Probe::Repeatable(_) => {
                repeated += 1;
                f.switch(from, to).await.expect("repeat");
            }
            Probe::Indeterminate(problem) => panic!("{problem}"),
        }
        assert_eq!(f.digest().await, to.digest);
        std::mem::swap(&mut from, &mut to);
    }
    assert!(repeated > 0, "no kill came before the end: {applied} applied");
    assert_eq!(from.digest, new.digest, "an even number of switches");
    assert_eq!(
        f.text(CONTENT).await,
        before,
        "after 32 switches and {repeated} repetitions"
    );
    f.finish(&new, &new).await;
    f.assert_clean().await;
}
