//! A PostgreSQL server for this test program alone: its own data directory, reachable through a socket only, stopped and
//! removed when the program ends, however it ends.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::OnceCell;

pub struct Cluster {
    pub socket: PathBuf,
    pub bin: PathBuf,
    data: PathBuf,
    /// The keeper stops the server when this end of its pipe is closed: by the kernel at the latest.
    _keeper: std::process::Child,
}

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();

/// The server, started by whoever asks first.
pub async fn cluster() -> &'static Cluster {
    CLUSTER.get_or_init(|| start("")).await
}

/// A server for one test, with settings of its own, which that test may stop.
pub async fn own_cluster(settings: &str) -> &'static Cluster {
    Box::leak(Box::new(start(settings).await))
}

/// Runs until its standard input is closed, then stops the server and removes its directory.
const KEEPER: &str = r#"
"$@" >"$DIR/log" 2>&1 &
while read -r _; do :; done
server=$(head -n 1 "$DIR/data/postmaster.pid") && kill -QUIT "$server"
while kill -0 "$server" 2>/dev/null; do sleep 0.05; done
rm -rf "$DIR"
"#;

async fn start(settings: &str) -> Cluster {
    let bin = newest_bin();
    let dir = tempfile::Builder::new()
        .prefix("rbpg-")
        .tempdir()
        .expect("make a directory")
        .keep();
    let data = dir.join("data");
    let socket = dir.join("s");
    std::fs::create_dir(&data).expect("make the data directory");
    std::fs::create_dir(&socket).expect("make the socket directory");
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).expect("chmod");
    if rustix::process::geteuid().is_root() {
        run(Command::new("chown").arg("postgres:").args([&dir, &data, &socket]));
    }
    let as_postgres = as_postgres();
    let initdb = bin.join("initdb");
    run(Command::new(as_postgres[0])
        .args(&as_postgres[1..])
        .arg(initdb)
        .arg("-D")
        .arg(&data)
        .args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        ]));
    let hba = "local all with_password scram-sha-256\nlocal all all trust\n";
    std::fs::write(data.join("pg_hba.conf"), hba).expect("write pg_hba.conf");
    let mut conf = std::fs::OpenOptions::new()
        .append(true)
        .open(data.join("postgresql.conf"))
        .expect("open the conf");
    writeln!(
        conf,
        "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nfull_page_writes = off\nsynchronous_commit = off\n\
         max_connections = 80\nshared_buffers = 64MB\nautovacuum = off\n{settings}",
        socket.display()
    )
    .expect("write the conf");
    let keeper = Command::new("sh")
        .args(["-c", KEEPER, "keeper"])
        .args(as_postgres)
        .arg(bin.join("postgres"))
        .arg("-D")
        .arg(&data)
        .env("DIR", &dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start the server");
    let cluster = Cluster {
        socket,
        bin,
        data,
        _keeper: keeper,
    };
    let begun = Instant::now();
    while let Err(e) = cluster.try_connect("postgres").await {
        let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the server does not come up: {e}\n{}",
            log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster
}

impl Cluster {
    /// `pg_ctl`, from a thread that may wait.
    pub async fn control(&'static self, args: &'static [&'static str]) {
        let log = self.data.join("restarted.log");
        let work = move || {
            let mut command = Command::new(as_postgres()[0]);
            command
                .args(&as_postgres()[1..])
                .arg(self.bin.join("pg_ctl"))
                .args(args);
            // Without a file for its output the server would keep our pipes open.
            run(command.arg("-w").arg("-D").arg(&self.data).arg("-l").arg(&log));
        };
        tokio::task::spawn_blocking(work).await.expect("pg_ctl");
    }

    /// Stops the server and brings it up again as a standby that takes over: on another timeline.
    pub async fn promote(&'static self) {
        self.control(&["stop", "-m", "fast"]).await;
        let signal = self.data.join("standby.signal");
        std::fs::write(&signal, "").expect("write standby.signal");
        if rustix::process::geteuid().is_root() {
            run(Command::new("chown").arg("postgres:").arg(&signal));
        }
        self.control(&["start"]).await;
        self.control(&["promote"]).await;
    }

    pub async fn try_connect(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.socket)
            .port(5432)
            .username("postgres")
            .database(database)
            .application_name("the test")
            .disable_statement_logging()
            .connect()
            .await
    }

    pub async fn connect(&self, database: &str) -> PgConnection {
        self.try_connect(database).await.expect("connect to the test's server")
    }

    /// Runs statements in a session of their own.
    pub async fn sql(&self, database: &str, sql: &str) {
        let mut c = self.connect(database).await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&mut c)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
        c.close().await.expect("close");
    }

    /// The one text that a query answers with.
    pub async fn text(&self, database: &str, sql: &str) -> String {
        let mut c = self.connect(database).await;
        let text: Option<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_one(&mut c)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
        text.unwrap_or_default()
    }
}

/// PostgreSQL refuses to run as root.
fn as_postgres() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() {
        &["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"]
    } else {
        &["env", "--"]
    }
}

fn newest_bin() -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").is_file())
        .collect();
    found.sort();
    let Some((_, bin)) = found.pop() else {
        panic!("no PostgreSQL server under /usr/lib/postgresql: install the package `postgresql`")
    };
    bin
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// An executable file.
pub fn script(path: &Path, text: &str) {
    std::fs::write(path, text).expect("write a script");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}
