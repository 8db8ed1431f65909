//! An nginx of our own, in front of the application's hosts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::process::{self, Daemon, End, Launch, run};
use crate::wait;

const PROGRAM: &str = "/usr/sbin/nginx";

/// Time for new workers after a reload.
const RELOAD_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Nginx {
    dir: PathBuf,
    daemon: Option<Daemon>,
    log: PathBuf,
    keep: bool,
    port: u16,
}

impl Nginx {
    /// Lays the files out; [`Nginx::start`] wants a site to serve.
    pub fn lay_out(dir: &Path, log: &Path, keep: bool) -> Result<Self> {
        let nginx = Self {
            dir: dir.to_owned(),
            daemon: None,
            log: log.to_owned(),
            keep,
            port: process::free_port()?,
        };
        for sub in ["etc/sites-enabled", "etc/rollbackctl", "run", "log", "tmp"] {
            std::fs::create_dir_all(dir.join(sub)).with_context(|| format!("make {sub}"))?;
        }
        let d = dir.display();
        let conf = format!(
            "worker_processes 2;\n\
             pid {d}/run/nginx.pid;\n\
             error_log {d}/log/error.log notice;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n\
             \x20   access_log off;\n\
             \x20   client_body_temp_path {d}/tmp/body;\n\
             \x20   proxy_temp_path {d}/tmp/proxy;\n\
             \x20   fastcgi_temp_path {d}/tmp/fastcgi;\n\
             \x20   uwsgi_temp_path {d}/tmp/uwsgi;\n\
             \x20   scgi_temp_path {d}/tmp/scgi;\n\
             \x20   include sites-enabled/*.conf;\n\
             }}\n"
        );
        std::fs::write(nginx.config(), conf).context("write nginx.conf")?;
        std::fs::write(nginx.managed_include(), "").context("write the managed include")?;
        Ok(nginx)
    }

    pub async fn start(&mut self) -> Result<()> {
        let (prefix, conf) = (self.dir.display().to_string(), self.config().display().to_string());
        let launch = Launch {
            user: None,
            end: End::Term,
            outlives_us: self.keep,
        };
        let args = ["-p", &prefix, "-c", &conf, "-g", "daemon off;"];
        self.daemon = Some(Daemon::start("nginx", &launch, Path::new(PROGRAM), &args, &self.log)?);
        let serves =
            async || !self.workers().is_empty() && std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        wait::until_true("nginx serves", Duration::from_secs(10), serves).await
    }

    pub async fn stop(&mut self) -> Result<()> {
        match &mut self.daemon {
            Some(daemon) => daemon.stop(Signal::TERM, Duration::from_secs(10)).await.map(drop),
            None => Ok(()),
        }
    }

    pub fn let_go(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.let_go();
        }
    }

    /// The master process.
    pub fn pid(&self) -> Option<u32> {
        process::from_pid_file(&self.pid_file())
    }

    /// Living worker processes.
    pub fn workers(&self) -> Vec<u32> {
        self.pid().map(process::children).unwrap_or_default()
    }

    /// What `nginx -p` is given.
    pub fn prefix(&self) -> &Path {
        &self.dir
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("etc")
    }

    pub fn config(&self) -> PathBuf {
        self.root().join("nginx.conf")
    }

    pub fn site(&self) -> PathBuf {
        self.root().join("sites-enabled/zekka.conf")
    }

    pub fn managed_include(&self) -> PathBuf {
        self.root().join("rollbackctl/zekka.inc")
    }

    pub fn pid_file(&self) -> PathBuf {
        self.dir.join("run/nginx.pid")
    }

    pub fn error_log(&self) -> PathBuf {
        self.dir.join("log/error.log")
    }

    /// What users ask.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Tests and loads the configuration, and waits for workers that have it: what a deployment does by hand.
    pub async fn reload(&self) -> Result<()> {
        let command = || {
            let mut command = Command::new(PROGRAM);
            command.arg("-p").arg(&self.dir).arg("-c").arg(self.config());
            command
        };
        run(command().arg("-t"))?;
        let before = self.workers();
        run(command().args(["-s", "reload"]))?;
        wait::until_true("nginx has new workers only", RELOAD_WITHIN, async || {
            let now = self.workers();
            !now.is_empty() && now.iter().all(|pid| !before.contains(pid))
        })
        .await
    }
}
