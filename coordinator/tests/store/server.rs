//! A PostgreSQL server for this process alone, and a PgBouncer before it when asked for. Both end with the process, however
//! it ends, and leave nothing behind.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{CertificateParams, KeyPair};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _};

use crate::material::until;

/// Who owns the databases and has to give a password over TCP.
pub const USER: &str = "rollback";
pub const PASSWORD: &str = "not-to-be-shown";

pub struct Server {
    bin: PathBuf,
    dir: PathBuf,
    port: u16,
    ca: PathBuf,
    bouncer: bool,
    databases: AtomicU32,
    _keepers: Vec<std::process::Child>,
}

/// An empty one, for one case.
pub struct Database {
    /// For stores: through the pooler if there is one. Without a password, which sockets do not ask for.
    pub url: String,
    pub name: String,
    /// The socket that `url` leads to.
    pub socket: PathBuf,
    /// 127.0.0.1, with TLS and a password, past the pooler.
    pub port: u16,
    /// Of the server's certificate, which is for `localhost`.
    pub ca: PathBuf,
    direct: PgConnectOptions,
    bin: PathBuf,
}

/// A copy of the server that follows it, until this is dropped.
pub struct Standby {
    pub url: String,
    _keeper: std::process::Child,
}

/// Runs a program until its own standard input is closed (by the kernel at the latest), and ends it with that signal.
const KEEPER: &str = r#"
"$@" >"$LOG" 2>&1 </dev/null &
while read -r _; do :; done
kill "-$END" $!
wait $!
rm -rf "$DIR"
"#;

/// Number in the sockets' names; nobody listens on it.
const SOCKET: u16 = 5432;

impl Server {
    /// `None`: a pooler is asked for, and PgBouncer is not installed.
    pub async fn start(bouncer: bool) -> Option<Self> {
        let pooler = find_bouncer();
        if bouncer && pooler.is_none() {
            return None;
        }
        let bin = newest_bin();
        let dir = tempfile::Builder::new()
            .prefix("rbstore-")
            .tempdir()
            .expect("make a directory")
            .keep();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let port = TcpListener::bind(("127.0.0.1", 0))
            .and_then(|l| l.local_addr())
            .expect("find a free port")
            .port();
        let ca = certificate(&dir);
        for sub in ["server", "pooler"] {
            std::fs::create_dir(dir.join(sub)).expect("make a directory");
        }
        if rustix::process::geteuid().is_root() {
            run(Command::new("chown").args(["-R", "postgres:"]).arg(&dir));
        }
        let data = dir.join("data");
        run(as_postgres().arg(bin.join("initdb")).arg("-D").arg(&data).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        ]));
        let rules = "local all,replication all trust\nhostssl all rollback 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(data.join("pg_hba.conf"), rules).expect("write pg_hba.conf");
        let mut postgres = as_postgres();
        postgres.arg(bin.join("postgres")).arg("-D").arg(&data);
        for setting in [
            format!("port={port}"),
            format!("unix_socket_directories={}", dir.join("server").display()),
            format!("ssl_cert_file={}", dir.join("server.crt").display()),
            format!("ssl_key_file={}", dir.join("server.key").display()),
        ] {
            postgres.args(["-c", &setting]);
        }
        for setting in [
            "listen_addresses=127.0.0.1",
            "ssl=on",
            "max_connections=300",
            "shared_buffers=64MB",
        ] {
            postgres.args(["-c", setting]);
        }
        for setting in [
            "fsync=off",
            "full_page_writes=off",
            "synchronous_commit=off",
            "autovacuum=off",
        ] {
            postgres.args(["-c", setting]);
        }
        let mut keepers = vec![keep(&postgres, "QUIT", &dir, "postgres.log")];
        if let (true, Some(program)) = (bouncer, pooler) {
            keepers.push(start_bouncer(&program, &dir, port));
        }
        let server = Self {
            bin,
            dir,
            port,
            ca,
            bouncer,
            databases: AtomicU32::new(0),
            _keepers: keepers,
        };
        until("PostgreSQL answers", async || {
            server.options("postgres").connect().await.is_ok()
        })
        .await;
        let role = format!("CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'");
        server.sql(&role).await;
        Some(server)
    }

    fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new()
            .socket(self.dir.join("server"))
            .port(self.port)
            .username("postgres")
            .database(database)
    }

    async fn sql(&self, sql: &str) {
        let mut hand = self.options("postgres").connect().await.expect("connect");
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut hand)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    pub async fn database(&self) -> Database {
        let name = format!("store{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql(&format!("CREATE DATABASE {name} OWNER {USER}")).await;
        let (socket, port) = if self.bouncer {
            (self.dir.join("pooler"), SOCKET)
        } else {
            (self.dir.join("server"), self.port)
        };
        Database {
            url: format!("postgres://{USER}@localhost:{port}/{name}?host={}", socket.display()),
            socket: socket.join(format!(".s.PGSQL.{port}")),
            port: self.port,
            ca: self.ca.clone(),
            direct: self.options(&name),
            bin: self.bin.clone(),
            name,
        }
    }
}

impl Database {
    /// As a superuser, past the pooler.
    pub async fn connect(&self) -> PgConnection {
        self.direct.connect().await.expect("connect by hand")
    }

    /// Runs a file as `psql` does, as the owner of the database.
    pub fn load(&self, file: &Path) {
        let mut psql = Command::new(self.bin.join("psql"));
        psql.args(["-XqU", USER, "-v", "ON_ERROR_STOP=1", "-d", &self.name])
            .args(["-p", &self.port.to_string(), "-h"])
            .arg(self.direct.get_socket().expect("a socket"))
            .arg("-f")
            .arg(file);
        run(&mut psql);
    }
}

impl Database {
    pub fn standby(&self) -> Standby {
        let server = self.direct.get_socket().expect("a socket");
        let dir = server.with_file_name(format!("standby-{}", self.name));
        run(as_postgres()
            .arg(self.bin.join("pg_basebackup"))
            .args([
                "-U",
                "postgres",
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--no-sync",
                "-D",
            ])
            .arg(&dir)
            .args(["-p", &self.port.to_string(), "-h"])
            .arg(server));
        let mut postgres = as_postgres();
        postgres.arg(self.bin.join("postgres")).arg("-D").arg(&dir);
        for setting in [
            format!("port={SOCKET}"),
            format!("unix_socket_directories={}", dir.display()),
            "listen_addresses=".to_owned(),
            "max_connections=300".to_owned(),
        ] {
            postgres.args(["-c", &setting]);
        }
        Standby {
            url: format!(
                "postgres://{USER}@localhost:{SOCKET}/{}?host={}",
                self.name,
                dir.display()
            ),
            _keeper: keep(&postgres, "QUIT", &dir, "standby.log"),
        }
    }
}

fn start_bouncer(program: &Path, dir: &Path, port: u16) -> std::process::Child {
    // Few connections to the server, so that transactions of one client do come to different ones.
    let config = format!(
        "[databases]\n* = host={server} port={port}\n[pgbouncer]\nlisten_port = {SOCKET}\nunix_socket_dir = {pooler}\n\
         auth_type = trust\nauth_file = {users}\npool_mode = transaction\ndefault_pool_size = 6\nmax_client_conn = 500\n\
         logfile = {log}\n",
        server = dir.join("server").display(),
        pooler = dir.join("pooler").display(),
        users = dir.join("users.txt").display(),
        log = dir.join("pooler.log").display(),
    );
    std::fs::write(dir.join("pooler.ini"), config).expect("write the pooler's configuration");
    std::fs::write(dir.join("users.txt"), format!("\"{USER}\" \"\"\n")).expect("write the pooler's users");
    let mut pgbouncer = as_postgres();
    pgbouncer.arg(program).arg("-q").arg(dir.join("pooler.ini"));
    keep(&pgbouncer, "INT", dir, "pooler.out")
}

fn keep(command: &Command, end: &str, dir: &Path, log: &str) -> std::process::Child {
    Command::new("sh")
        .args(["-c", KEEPER, "keeper"])
        .arg(command.get_program())
        .args(command.get_args())
        .env("END", end)
        .env("DIR", dir)
        .env("LOG", dir.join(log))
        // Whoever ends the test by its process group leaves the keeper to do its work.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start a server")
}

/// Of the server, for `localhost`, signed by a CA that is made for it. The CA's file.
fn certificate(dir: &Path) -> PathBuf {
    let ca_key = KeyPair::generate().expect("make a key");
    let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).expect("sign");
    let key = KeyPair::generate().expect("make a key");
    let server = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let certificate = server.signed_by(&key, &issuer).expect("sign");
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).expect("write a certificate");
        path
    };
    write("server.crt", certificate.pem());
    let key = write("server.key", key.serialize_pem());
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    write("ca.crt", ca_certificate.pem())
}

/// Neither program runs as root.
fn as_postgres() -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new("env");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]);
    command
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

fn find_bouncer() -> Option<PathBuf> {
    ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
        .map(PathBuf::from)
        .into_iter()
        .find(|p| p.is_file())
}

fn run(command: &mut Command) {
    let output = command
        .current_dir("/")
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}
