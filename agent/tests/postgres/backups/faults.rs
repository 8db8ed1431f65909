//! What may go wrong around a backup that belongs to no rollback.

use std::os::unix::fs::PermissionsExt as _;

use rollback_agent::driver::postgres::PostgresDriver;

use super::*;
use crate::cluster::{own_cluster, script};

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_disk_that_is_full_while_the_proof_restores() {
    let cluster = own_cluster("").await;
    let f = Fixture::on(cluster, "version text PRIMARY KEY", |_| {}).await;
    f.two_releases().await;
    f.sql("CREATE TABLE noise AS SELECT n, repeat(md5(n::text), 8) AS t FROM generate_series(1, 60000) n")
        .await;
    let custom = dump(&f, "custom", &["-Fc"]);
    let plain = dump(&f, "plain.sql", &[]);
    // New databases are made where their template is.
    let disk = f.dir.path().join("disk");
    std::fs::create_dir(&disk).expect("make the mount point");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=18m,mode=0777", "tmpfs"])
        .arg(&disk));
    let mounted = Mounted(disk.clone());
    let place = disk.join("space");
    std::fs::create_dir(&place).expect("make a directory");
    std::fs::set_permissions(f.dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    run(Command::new("chown").arg("postgres:").arg(&place));
    cluster
        .sql(
            "postgres",
            &format!("CREATE TABLESPACE small LOCATION '{}'", place.display()),
        )
        .await;
    cluster
        .sql("postgres", "ALTER DATABASE template0 SET TABLESPACE small")
        .await;
    let full = Code::DiskFull;
    refused(
        f.driver.back_up(LIMIT, Arc::new(NoProgress)).await,
        full,
        "No space left on device",
    );
    refused(adopt(&f, &custom).await, full, "No space left on device");
    refused(adopt(&f, &plain).await, full, "No space left on device");
    assert_eq!(f.driver.backups().expect("list").len(), 0);
    f.assert_clean().await;
    cluster
        .sql("postgres", "ALTER DATABASE template0 SET TABLESPACE pg_default")
        .await;
    adopt(&f, &plain).await.expect("with room it works");
    cluster.control(&["stop", "-m", "immediate"]).await;
    drop(mounted);
}

#[tokio::test]
async fn a_server_that_restarts_in_the_middle_of_the_dump() {
    let cluster = own_cluster("").await;
    let f = Fixture::on(cluster, "version text PRIMARY KEY", |_| {}).await;
    f.two_releases().await;
    // Begins with the snapshot, and ends after the server has.
    let bin = f.dir.path().join("bin");
    std::fs::create_dir(&bin).expect("make a directory");
    let real = f.cluster.bin.display();
    let flag = f.dir.path().join("begun");
    script(
        &bin.join("pg_dump"),
        &format!(
            "#!/bin/sh\n[ \"$1\" = --version ] || {{ touch {0}; while [ -e {0} ]; do sleep 0.05; done; }}\nexec {real}/pg_dump \"$@\"\n",
            flag.display()
        ),
    );
    script(
        &bin.join("pg_restore"),
        &format!("#!/bin/sh\nexec {real}/pg_restore \"$@\"\n"),
    );
    let slow = driver(&f, |c| c.bin_dir = Some(bin));
    let restart = async {
        while !flag.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        cluster.control(&["restart", "-m", "immediate"]).await;
        std::fs::remove_file(&flag).expect("let it go on");
    };
    let (backup, ()) = tokio::join!(slow.back_up(LIMIT, Arc::new(NoProgress)), restart);
    let problem = backup.expect_err("the snapshot is gone");
    assert_eq!(problem.code, Code::BackupUnproven, "{problem}");
    assert_eq!(f.driver.backups().expect("list").len(), 0);
    f.driver
        .back_up(LIMIT, Arc::new(NoProgress))
        .await
        .expect("the next one");
    f.assert_clean().await;
}

#[tokio::test]
async fn programs_that_are_older_than_the_server_and_a_wrong_password() {
    let f = Fixture::empty().await;
    f.two_releases().await;
    let bin = f.dir.path().join("bin");
    std::fs::create_dir(&bin).expect("make a directory");
    for name in ["pg_dump", "pg_restore"] {
        script(
            &bin.join(name),
            &format!("#!/bin/sh\necho '{name} (PostgreSQL) 9.6.1'\n"),
        );
    }
    let old = driver(&f, |c| c.bin_dir = Some(bin));
    let problem = old.back_up(LIMIT, Arc::new(NoProgress)).await.expect_err("too old");
    assert!(
        problem.message.contains("is version 9, the server is version"),
        "{problem}"
    );

    f.cluster
        .sql(
            "postgres",
            "DO $$ BEGIN CREATE ROLE with_password LOGIN SUPERUSER PASSWORD 'pa:ss\\word'; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        )
        .await;
    let file = f.dir.path().join("password");
    std::fs::write(&file, "wrong-one").expect("write");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    let locked_out = driver(&f, |c| {
        (c.user, c.password_file) = ("with_password".to_owned(), Some(file))
    });
    let problem = locked_out
        .back_up(LIMIT, Arc::new(NoProgress))
        .await
        .expect_err("wrong password");
    assert!(
        problem.message.contains("28P01") && !problem.message.contains("wrong-one"),
        "{problem}"
    );
    let mut config = f.config.clone();
    config.database = "host=evil".to_owned();
    let refusal = PostgresDriver::new("db", config, f.vault.clone()).expect_err("a connection string");
    assert_eq!(refusal.code, Code::BadConfig);
}
