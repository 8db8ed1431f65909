//! A PostgreSQL cluster of our own: initdb, server, psql.

mod by_hand;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

pub use self::by_hand::ByHand;
use crate::control::{Control, Held};
use crate::process::{Daemon, End, Launch, free_port, run};
use crate::wait;

/// The database that is rolled back, and the role that owns it.
pub const DATABASE: &str = "zekka_production";
pub const ROLE: &str = "zekka";
const SUPERUSER: &str = "postgres";

#[derive(Debug)]
pub struct Postgres {
    daemon: Daemon,
    bin: PathBuf,
    socket: PathBuf,
    port: u16,
    password: String,
}

impl Postgres {
    /// Makes a cluster below `dir` and starts it. `durable` leaves fsync on, as figures of time want it.
    pub async fn start(dir: &Path, log: &Path, durable: bool, keep: bool) -> Result<Self> {
        let bin = bin_dir()?;
        // The server refuses root; initdb does, too.
        let user = rustix::process::geteuid().is_root().then_some(SUPERUSER);
        let (data, socket) = (dir.join("data"), dir.join("socket"));
        std::fs::create_dir_all(&socket).context("make the socket's directory")?;
        let password = format!("{:032x}", rand::random::<u128>());
        let password_file = dir.join("password");
        std::fs::write(&password_file, &password).context("write the password")?;
        if let Some(user) = user {
            run(Command::new("chown").arg("-R").arg(user).arg(dir))?;
        }
        let mut initdb = as_user(user, &bin.join("initdb"));
        initdb
            .arg("-D")
            .arg(&data)
            .args(["-U", SUPERUSER, "-E", "UTF8", "--locale=C.UTF-8", "-A", "scram-sha-256"]);
        run(initdb
            .arg("--no-sync")
            .arg(format!("--pwfile={}", password_file.display())))?;
        std::fs::remove_file(&password_file).context("remove the password")?;

        let port = free_port()?;
        let (port_arg, socket_arg) = (
            format!("port={port}"),
            format!("unix_socket_directories={}", socket.display()),
        );
        let data_arg = data.to_str().context("the directory's name is UTF-8")?;
        let fsync = if durable { "fsync=on" } else { "fsync=off" };
        let args = ["-D", data_arg, "-c", &port_arg, "-c", &socket_arg, "-c", fsync];
        let args = [
            &args[..],
            &["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=60"],
        ]
        .concat();
        let launch = Launch {
            user,
            end: End::Quit,
            outlives_us: keep,
            ..Launch::default()
        };
        let daemon = Daemon::start("postgres", &launch, &bin.join("postgres"), &args, log)?;
        let postgres = Self {
            daemon,
            bin,
            socket,
            port,
            password,
        };
        let answers = async || postgres.psql("postgres", "SELECT 1").is_ok();
        wait::until_true("PostgreSQL answers", Duration::from_secs(30), answers).await?;
        postgres.psql(
            "postgres",
            &format!("CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{}'", postgres.password),
        )?;
        postgres.psql("postgres", &format!("CREATE DATABASE {DATABASE} OWNER {ROLE}"))?;
        Ok(postgres)
    }

    /// That of a host in a story, in the host's directory. It ends after the agents.
    pub async fn of(control: &mut Control, host: &str) -> Result<Arc<Self>> {
        let dir = control.host_dir(host).join("postgres");
        let postgres = Self::start(&dir, &control.log("postgres"), false, control.is_kept()).await?;
        let postgres = Arc::new(postgres);
        control.hold(Arc::clone(&postgres));
        Ok(postgres)
    }

    /// The `[[component]]` of its agent, which is called `db`. Passwords and backups go into the host's directory.
    pub fn component(&self, host_dir: &Path, migrations: &Path, bin_dir: &Path) -> Result<String> {
        let password = host_dir.join("db.password");
        rollback_proto::tls::write_private(&password, self.password.as_bytes()).context("write the password's file")?;
        Ok(format!(
            "[[component]]\nname = \"db\"\nkind = \"postgres\"\ndatabase = \"{DATABASE}\"\nhost = \"{}\"\nport = {}\n\
             user = \"{ROLE}\"\npassword_file = \"{}\"\nmigrations = \"{}\"\nbackups = \"{}\"\nbin_dir = \"{}\"\n",
            self.socket.display(),
            self.port,
            password.display(),
            migrations.display(),
            host_dir.join("backups").display(),
            bin_dir.display(),
        ))
    }

    /// Ends the server in order, which ends the sessions of others.
    pub async fn stop(&mut self) -> Result<()> {
        self.daemon.stop(Signal::INT, Duration::from_secs(20)).await.map(drop)
    }

    pub fn let_go(&self) {
        self.daemon.let_go();
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Of the superuser and of [`ROLE`].
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Where `pg_dump` and its like are.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// What the application is given.
    pub fn url(&self) -> String {
        format!("postgres://{ROLE}:{}@127.0.0.1:{}/{DATABASE}", self.password, self.port)
    }

    fn client(&self, program: &str, role: &str, database: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command
            .env("PGPASSWORD", &self.password)
            .env("PGCONNECT_TIMEOUT", "5")
            .arg("-h")
            .arg(&self.socket);
        command.args(["-p", &self.port.to_string(), "-U", role, "-d", database]);
        command
    }

    /// Runs SQL as the superuser; rows come back as lines, columns separated by `|`.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut psql = self.client("psql", SUPERUSER, database);
        run(psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql])).map(|out| out.trim_end().to_owned())
    }

    /// Runs a file as the owner of the database, in one transaction, as a migration tool would.
    pub fn migrate(&self, sql: &str) -> Result<()> {
        let mut psql = self.client("psql", ROLE, DATABASE);
        run(psql.args(["-Xq", "-v", "ON_ERROR_STOP=1", "--single-transaction", "-c", sql])).map(drop)
    }

    /// Runs one statement as the owner of the database, in no transaction of others.
    pub fn migrate_alone(&self, sql: &str) -> Result<()> {
        let mut psql = self.client("psql", ROLE, DATABASE);
        run(psql.args(["-Xq", "-v", "ON_ERROR_STOP=1", "-c", sql])).map(drop)
    }

    /// Looks at a database that takes no connections: it takes them for that long. Others are looked at as they are.
    pub fn while_open<T>(&self, database: &str, look: impl FnOnce() -> Result<T>) -> Result<T> {
        let allow = |yes: bool| {
            let sql = format!("ALTER DATABASE \"{database}\" ALLOW_CONNECTIONS {yes}");
            self.psql("postgres", &sql).map(drop)
        };
        let closed = format!("SELECT 1 FROM pg_database WHERE datname = '{database}' AND NOT datallowconn");
        if self.psql("postgres", &closed)?.is_empty() {
            return look();
        }
        allow(true)?;
        let seen = look();
        allow(false)?;
        seen
    }

    /// The application's schema as SQL, without what differs from run to run, and without what a rollback keeps of the
    /// data that a down migration drops (see [`Postgres::kept_schemas`]).
    pub fn schema(&self) -> Result<String> {
        let dump = run(self
            .client("pg_dump", SUPERUSER, DATABASE)
            .args(["--schema-only", "--exclude-schema=rollbackctl_kept_*"]))?;
        let lasting = |l: &&str| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict") && !l.starts_with("--");
        Ok(dump.lines().filter(lasting).collect::<Vec<_>>().join("\n"))
    }

    /// Names of the schemas in which the database's agent keeps what a down migration drops. They outlive a rollback that
    /// reached its target, and nothing else.
    pub fn kept_schemas(&self) -> Result<Vec<String>> {
        let sql = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'rollbackctl%' ORDER BY 1";
        Ok(self.psql(DATABASE, sql)?.lines().map(str::to_owned).collect())
    }

    pub fn databases(&self) -> Result<Vec<String>> {
        let names = self.psql(
            "postgres",
            "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1",
        )?;
        Ok(names.lines().map(str::to_owned).collect())
    }
}

impl Held for Arc<Postgres> {
    fn let_go(&mut self) -> String {
        Postgres::let_go(self);
        // The script that ends a kept fleet finds the server by itself.
        String::new()
    }
}

fn as_user(user: Option<&str>, program: &Path) -> Command {
    match user {
        None => Command::new(program),
        Some(user) => {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid", user, "--regid", user, "--clear-groups", "--"])
                .arg(program);
            // Inherited otherwise: a directory that this account may not enter.
            command.current_dir("/");
            command
        }
    }
}

/// The newest server that Debian's packages installed, or the one on the path.
fn bin_dir() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
        .max();
    let dir = match newest {
        Some(version) => PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")),
        None => PathBuf::from(
            run(Command::new("pg_config").arg("--bindir"))
                .context("find PostgreSQL")?
                .trim(),
        ),
    };
    let mode = std::fs::metadata(dir.join("initdb")).with_context(|| format!("find initdb in {}", dir.display()))?;
    ensure!(mode.permissions().mode() & 0o111 != 0, "initdb cannot be executed");
    Ok(dir)
}
