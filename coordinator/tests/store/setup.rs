//! `init`, `replica`, `operator` and `check-config`, as somebody who sets a fleet up meets them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rollback_coordinator::config::Config;
use rollback_coordinator::store::postgres::PostgresStore;
use rollback_proto::tls::{Credentials, install_crypto};
use tempfile::TempDir;

use crate::server;

const URL: &str = "postgres://rollback@db-1.example:5432/rollback?sslmode=verify-full&sslrootcert=/etc/ssl/db.pem";
const SECRET: &str = "correct horse battery staple";

/// A directory with a first coordinator on PostgreSQL in `coord-1/`.
struct Setup {
    dir: TempDir,
}

impl Setup {
    fn on_postgres() -> Self {
        let setup = Self::empty();
        let password = setup.path("password");
        std::fs::write(&password, format!("{SECRET}\n")).expect("write");
        let password = password.to_str().expect("UTF-8");
        let store = ["--store-url", URL, "--store-password-file", password];
        let made = setup.init(
            &[
                &["--endpoint", "coord-1.example:7443", "--listen", "0.0.0.0:7443"][..],
                &store,
            ]
            .concat(),
        );
        assert!(made.contains("rollback-coordinator replica coord-2"), "{made}");
        let line = |wanted: &str| made.lines().position(|l| l.contains(wanted)).expect(wanted);
        assert!(line("check-config --config") < line("run --config"), "{made}");
        // So that nothing depends on it any more.
        std::fs::remove_file(setup.path("password")).expect("remove");
        setup
    }

    fn on_sqlite() -> Self {
        let setup = Self::empty();
        setup.init(&[]);
        setup
    }

    fn empty() -> Self {
        install_crypto();
        Self {
            dir: tempfile::tempdir().expect("temporary directory"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_rollback-coordinator"))
            .args(args)
            .current_dir(self.dir.path())
            .output()
            .expect("run rollback-coordinator")
    }

    /// stdout of a run that succeeds.
    fn good(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// stderr of a run that fails.
    fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(!output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    fn init(&self, more: &[&str]) -> String {
        self.good(&[&["init", "--dir", "coord-1"][..], more].concat())
    }

    fn config(&self, of: &str) -> Config {
        Config::load(&self.path(of).join("coordinator.toml")).expect("a configuration")
    }
}

const REPLICA: [&str; 7] = [
    "replica",
    "coord-2",
    "--config",
    "coord-1/coordinator.toml",
    "--out",
    "coord-2",
    "--endpoint=coord-2.example:7443",
];

/// Every file and directory below, with mode and content.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let mode = std::fs::metadata(&path).expect("metadata").permissions().mode() & 0o7777;
        if path.is_dir() {
            left.extend(
                std::fs::read_dir(&path)
                    .expect("list")
                    .map(|e| e.expect("entry").path()),
            );
            found.insert(path, (mode, Vec::new()));
        } else {
            let content = std::fs::read(&path).expect("read");
            found.insert(path, (mode, content));
        }
    }
    found
}

#[test]
fn a_replica_shares_what_must_be_shared_and_is_somebody_else() {
    let setup = Setup::on_postgres();
    // Other values than the defaults, so that they can only come from there.
    let path = setup.path("coord-1/coordinator.toml");
    let mut of = setup.config("coord-1");
    of.leadership.ttl = std::time::Duration::from_secs(9);
    of.agents.heartbeat = std::time::Duration::from_secs(7);
    of.telemetry.otlp = Some("http://127.0.0.1:4317".to_owned());
    std::fs::write(&path, toml::to_string(&of).expect("a table")).expect("write");
    let before = tree(&setup.path("coord-1"));

    let told = setup.good(&REPLICA);
    assert!(told.contains("spiffe://rollback.local/coordinator/coord-2"), "{told}");
    assert!(told.contains("add \"coord-2.example:7443\" to `endpoints`"), "{told}");
    assert!(told.contains("certificate files that store.url names"), "{told}");
    assert!(told.contains("use the name \"coord-2\" for no other replica"), "{told}");
    assert!(!told.contains("carry "), "it stays where it is: {told}");

    let made = setup.config("coord-2");
    assert_eq!(
        (made.name.as_str(), made.endpoint.as_deref()),
        ("coord-2", Some("coord-2.example:7443"))
    );
    assert_eq!(made.listen.to_string(), "0.0.0.0:7443", "other hosts reach it");
    assert_eq!(made.store.url.as_deref(), Some(URL));
    assert_eq!(made.leadership, of.leadership);
    assert_eq!(made.agents.heartbeat, of.agents.heartbeat);
    assert_eq!(made.telemetry.otlp, of.telemetry.otlp);
    let identity = Credentials::load(&made.tls).expect("usable credentials").us.identity;
    assert_eq!(identity.to_string(), "spiffe://rollback.local/coordinator/coord-2");

    let read = |path: &Path| std::fs::read_to_string(path).expect("read");
    assert_eq!(
        read(made.store.password_file.as_deref().expect("a password")).trim(),
        SECRET
    );
    assert_eq!(read(&made.tls.ca), read(&of.tls.ca), "one fleet");
    assert_ne!(read(&made.tls.key), read(&of.tls.key));
    let key = |config: &Config| read(&config.issuer.as_ref().expect("an issuer").key);
    assert_eq!(key(&made), key(&of));

    for (path, (mode, _)) in tree(&setup.path("coord-2")) {
        let wanted = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, wanted, "{}", path.display());
    }
    assert_eq!(tree(&setup.path("coord-1")), before, "nothing changes there");

    let third = [
        "replica",
        "coord-3",
        "--out",
        "coord-3",
        "--endpoint=coord-3.example:9443",
    ];
    setup.good(&[&third[..], &REPLICA[2..4]].concat());
    assert_eq!(setup.config("coord-3").listen.port(), 9443, "the endpoint's");

    let again = setup.refused(&REPLICA);
    assert!(
        again.contains("exists; a coordinator was set up here before"),
        "{again}"
    );
}

#[test]
fn a_replica_that_is_carried_away_has_the_paths_of_its_host_and_no_key_that_it_should_not_have() {
    let setup = Setup::on_postgres();
    let told = setup.good(
        &[
            &REPLICA[..],
            &["--without-issuer", "--installed-at", "/etc/rollback-coordinator"],
        ]
        .concat(),
    );
    assert!(
        told.contains("coord-2/ to its host as /etc/rollback-coordinator/"),
        "{told}"
    );
    assert!(
        told.contains("run --config /etc/rollback-coordinator/coordinator.toml"),
        "{told}"
    );
    assert!(told.contains("CA key           left out"), "{told}");
    let made = setup.config("coord-2");
    assert!(made.issuer.is_none());
    assert_eq!(made.tls.key, Path::new("/etc/rollback-coordinator/pki/server.key"));
    assert_eq!(
        made.store.password_file.as_deref(),
        Some(Path::new("/etc/rollback-coordinator/store.password"))
    );
    let ca_key = std::fs::read(setup.path("coord-1/pki/ca.key")).expect("read");
    assert!(
        tree(&setup.path("coord-2"))
            .values()
            .all(|(_, content)| *content != ca_key)
    );
}

#[test]
fn what_would_make_no_replica_is_refused_and_leaves_nothing() {
    let sqlite = Setup::on_sqlite();
    let refused = sqlite.refused(&REPLICA);
    assert!(
        refused.contains("SQLite file, which is for one coordinator alone"),
        "{refused}"
    );
    assert!(refused.contains("docs/high-availability.md"), "{refused}");
    assert!(!sqlite.path("coord-2").exists());

    let setup = Setup::on_postgres();
    let with = |more: &[&'static str]| [&REPLICA[..4], &["--out", "coord-2"], more].concat();
    let mut another_name = REPLICA.to_vec();
    another_name[1] = "coord-1";
    let mut bad_name = REPLICA.to_vec();
    bad_name[1] = "../coord-2";
    for (args, wanted) in [
        (another_name, "coord-1 is the name of the coordinator"),
        (bad_name, "RB0001"),
        (
            with(&["--endpoint", "coord-1.example:7443"]),
            "every replica needs an endpoint of its own",
        ),
        (with(&["--endpoint", "https://coord-2.example"]), "is not host:port"),
        (with(&["--listen", "0.0.0.0:7443"]), "--endpoint"),
        (with(&[]), "--endpoint"),
        (
            with(&["--endpoint", "coord-2.example:7443", "--installed-at", "etc"]),
            "is not an absolute path",
        ),
    ] {
        let refused = setup.refused(&args);
        assert!(refused.contains(wanted), "{args:?}: {refused}");
        assert!(!setup.path("coord-2").exists(), "{args:?}");
    }
    // Into the directory that it is made from, whose configuration goes by another name.
    std::fs::rename(setup.path("coord-1/coordinator.toml"), setup.path("coord-1/main.toml")).expect("rename");
    let before = tree(&setup.path("coord-1"));
    let refused = setup.refused(&[
        "replica",
        "coord-2",
        "--config",
        "coord-1/main.toml",
        "--out",
        "coord-1",
        "--endpoint=coord-2.example:7443",
    ]);
    assert!(refused.contains("choose another --out"), "{refused}");
    assert_eq!(tree(&setup.path("coord-1")), before);
}

#[test]
fn a_first_coordinator_says_where_it_is_reached_and_never_takes_a_password_as_an_argument() {
    let setup = Setup::empty();
    for (args, wanted) in [
        (&["--listen", "0.0.0.0:7443"][..], "nobody can connect to that"),
        (&["--store-url", "mysql://db-1/x"], "postgres://USER@HOST"),
        (&["--store-url", "postgres://u:hunter2@db-1/x"], "has a password"),
        (
            &["--store-url", "postgres://u@db-1/x?sslmode=require&password=hunter2"],
            "has a password",
        ),
        (
            &["--store-url", "postgres://u@db-1/x", "--store-password-file", "missing"],
            "password's file missing",
        ),
        (&["--store-password-file", "missing"], "--store-url"),
    ] {
        let refused = setup.refused(&[&["init", "--dir", "coord-1"][..], args].concat());
        assert!(refused.contains(wanted), "{args:?}: {refused}");
        assert!(!refused.contains("hunter2"), "{refused}");
        assert!(!setup.path("coord-1").exists(), "{args:?}");
    }
}

#[test]
fn an_operator_gets_every_endpoint() {
    let setup = Setup::on_postgres();
    let endpoints = |out: &str, more: &[&str]| {
        let args = ["operator", "ana", "--config", "coord-1/coordinator.toml", "--out", out];
        setup.good(&[&args[..], more].concat());
        let context = std::fs::read_to_string(setup.path(out).join("context.toml")).expect("read");
        let context: toml::Table = context.parse().expect("TOML");
        context["endpoints"].to_string()
    };
    let two = [
        "--endpoint",
        "coord-1.example:7443",
        "--endpoint",
        "coord-2.example:7443",
    ];
    assert_eq!(
        endpoints("two", &two),
        r#"["coord-1.example:7443", "coord-2.example:7443"]"#
    );
    // The address that it listens on is none that an operator could use.
    assert_eq!(endpoints("default", &[]), r#"["coord-1.example:7443"]"#);
}

#[test]
fn check_config_says_what_the_store_is() {
    let setup = Setup::on_sqlite();
    let check = ["check-config", "--config", "coord-1/coordinator.toml"];
    let told = setup.good(&check);
    assert!(
        told.contains("is good: spiffe://rollback.local/coordinator/coord-1"),
        "{told}"
    );
    assert!(
        told.contains("store: SQLite in ") && told.contains("made at the first start"),
        "{told}"
    );
    let before = tree(&setup.path("coord-1"));
    setup.good(&check);
    assert_eq!(tree(&setup.path("coord-1")), before, "it only looks");

    // Nobody listens there.
    let path = setup.path("coord-1/coordinator.toml");
    let mut config = setup.config("coord-1");
    config.store.url = Some("postgres://rollback:hunter2@127.0.0.1:1/rollback".to_owned());
    std::fs::write(&path, toml::to_string(&config).expect("a table")).expect("write");
    let refused = setup.refused(&check);
    assert!(
        refused.contains("PostgreSQL at 127.0.0.1:1 cannot be reached"),
        "{refused}"
    );
    assert!(!refused.contains("hunter2"), "{refused}");
}

/// Over TCP, with TLS and a password, as a real one is reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_config_asks_postgresql_and_changes_nothing() {
    let postgres = server::Server::start(false).await.expect("needs no pooler");
    let database = postgres.database().await;
    let url = format!(
        "postgres://{}@localhost:{}/{}?sslmode=verify-full&sslrootcert={}",
        server::USER,
        database.port,
        database.name,
        database.ca.display()
    );
    let setup = Setup::empty();
    std::fs::write(setup.path("password"), server::PASSWORD).expect("write");
    setup.init(&["--store-url", &url, "--store-password-file", "password"]);
    let check = |of: &str| setup.run(&["check-config", "--config", &format!("{of}/coordinator.toml")]);
    let told = |of: &str| {
        let output = check(of);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let place = format!(
        "PostgreSQL database {} at localhost:{} answers",
        database.name, database.port
    );
    let empty = format!("{place}, and is empty");
    assert!(told("coord-1").contains(&empty), "{}", told("coord-1"));
    assert!(told("coord-1").contains(&empty), "to look is to change nothing");

    PostgresStore::open(&url, Some(server::PASSWORD)).await.expect("open");

    setup.good(&REPLICA);
    assert!(
        told("coord-2").contains(&format!("{place}, with schema ")),
        "{}",
        told("coord-2")
    );

    let mut hand = database.connect().await;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9000, 'of tomorrow', true, '', 0)";
    sqlx::raw_sql(newer).execute(&mut hand).await.expect("insert");
    std::fs::write(setup.path("coord-1/store.password"), "wrong").expect("write");
    for (of, wanted) in [
        ("coord-2", "a newer coordinator has upgraded it"),
        ("coord-1", "does not let rollback into"),
    ] {
        let output = check(of);
        assert!(!output.status.success(), "{output:?}");
        let refused = String::from_utf8_lossy(&output.stderr);
        assert!(refused.contains(wanted), "{refused}");
        assert!(!refused.contains(server::PASSWORD), "{refused}");
    }
}
