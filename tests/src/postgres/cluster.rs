//! A PostgreSQL server that can be stopped, crashed and started again on the same data: initdb, the server, psql.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::process::{self, Daemon, End, Launch, free_port, run};
use crate::wait;

pub const SUPERUSER: &str = "postgres";

const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// What a server shall be like.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// fsync on, as figures of time want it. A server that crashes loses nothing without it, either: only a host does.
    pub durable: bool,
    /// It shall outlive the harness.
    pub keep: bool,
    pub max_connections: u32,
    /// More settings: `wal_level=logical`.
    pub settings: Vec<&'static str>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            durable: false,
            keep: false,
            max_connections: 60,
            settings: Vec::new(),
        }
    }
}

/// How a server is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Sessions are ended; what was committed is written out.
    Fast,
    /// At once, as after a power cut: the next start recovers from the log.
    Immediate,
}

#[derive(Debug)]
pub struct Cluster {
    daemon: Option<Daemon>,
    launch: Launch,
    args: Vec<String>,
    log: PathBuf,
    bin: PathBuf,
    socket: PathBuf,
    port: u16,
    password: String,
}

impl Cluster {
    /// Makes it below `dir` and starts it.
    pub async fn start(dir: &Path, log: &Path, options: &ClusterOptions) -> Result<Self> {
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
        let mut args = vec!["-D".to_owned(), data.display().to_string()];
        let settings = [
            format!("port={port}"),
            format!("unix_socket_directories={}", socket.display()),
            format!("fsync={}", if options.durable { "on" } else { "off" }),
            format!("max_connections={}", options.max_connections),
            "listen_addresses=127.0.0.1".to_owned(),
        ];
        let more = options.settings.iter().map(|s| (*s).to_owned());
        for setting in settings.into_iter().chain(more) {
            args.extend(["-c".to_owned(), setting]);
        }
        let mut cluster = Self {
            daemon: None,
            launch: Launch {
                user,
                end: End::Quit,
                outlives_us: options.keep,
                ..Launch::default()
            },
            args,
            log: log.to_owned(),
            bin,
            socket,
            port,
            password,
        };
        cluster.run().await?;
        Ok(cluster)
    }

    /// Starts the server on its data, and waits until it answers: also after [`Cluster::stop`] and [`Cluster::crash`].
    pub async fn run(&mut self) -> Result<()> {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let daemon = Daemon::start("postgres", &self.launch, &self.bin.join("postgres"), &args, &self.log)?;
        self.daemon = Some(daemon);
        let answers = async || self.psql("postgres", "SELECT 1").is_ok();
        wait::until_true("PostgreSQL answers", ANSWERS_WITHIN, answers).await
    }

    pub async fn stop(&mut self, how: Shutdown) -> Result<()> {
        let signal = match how {
            Shutdown::Fast => Signal::INT,
            Shutdown::Immediate => Signal::QUIT,
        };
        match &mut self.daemon {
            Some(daemon) => daemon.stop(signal, ENDS_WITHIN).await.map(drop),
            None => Ok(()),
        }
    }

    /// `kill -9` of the server and of every one of its processes, and waits until all are gone.
    pub async fn crash(&mut self) -> Result<()> {
        let daemon = self.daemon.as_mut().context("PostgreSQL runs")?;
        let processes = process::children(daemon.pid());
        daemon.kill()?;
        for pid in &processes {
            // They also end by themselves, once they notice that the first one is gone.
            let _ = process::kill(*pid, Signal::KILL);
        }
        let gone = async || processes.iter().all(|pid| !process::is_alive(*pid));
        wait::until_true("PostgreSQL's processes are gone", ENDS_WITHIN, gone).await
    }

    pub fn let_go(&self) {
        if let Some(daemon) = &self.daemon {
            daemon.let_go();
        }
    }

    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    /// Where `pg_dump` and its like are.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The superuser's.
    pub fn password(&self) -> &str {
        &self.password
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// A client program. All roles of a harness have one password.
    pub fn client(&self, program: &str, role: &str, database: &str) -> Command {
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
