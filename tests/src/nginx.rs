//! An nginx of our own, in front of the application's hosts.

mod requests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use self::requests::LOG_FORMAT;
pub use self::requests::Request;
use crate::control::Control;
use crate::process::{self, Daemon, End, Launch, run};
use crate::wait;

const PROGRAM: &str = "/usr/sbin/nginx";

/// Below the root of nginx's files.
pub const MANAGED_INCLUDE: &str = "rollbackctl/zekka.inc";
pub const UPSTREAM_INCLUDE: &str = "rollbackctl/zekka-upstream.inc";

/// Time for new workers after a reload.
const RELOAD_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Nginx {
    dir: PathBuf,
    daemon: Option<Daemon>,
    log: PathBuf,
    keep: bool,
    port: u16,
    /// What follows the address of every server in the managed upstream.
    server_options: String,
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
            server_options: String::new(),
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
             \x20   {LOG_FORMAT}\x20   access_log off;\n\
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

    /// Lays out and starts one on a host, in front of these servers (`127.0.0.1:3001`), with a site of that version.
    /// `server_options` follow each address: `max_fails=0`. It ends after the agents.
    pub async fn in_front_of(
        control: &mut Control,
        host: &str,
        addresses: &[String],
        server_options: &str,
        site: &str,
    ) -> Result<Self> {
        let dir = control.host_dir(host).join("nginx");
        let mut nginx = Self::lay_out(&dir, &control.log("nginx"), control.is_kept())?;
        nginx.server_options = server_options.to_owned();
        nginx.write_upstream(addresses)?;
        nginx.write_site(site)?;
        nginx.start().await?;
        if let Some(daemon) = nginx.daemon.take() {
            control.hold(daemon);
        }
        Ok(nginx)
    }

    pub async fn start(&mut self) -> Result<()> {
        let (prefix, conf) = (self.dir.display().to_string(), self.config().display().to_string());
        let launch = Launch {
            user: None,
            end: End::Term,
            outlives_us: self.keep,
            ..Launch::default()
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

    /// Lays the site out as Debian and the runbook have it: the file is [`Nginx::available`], and what is enabled is a
    /// link to it. Writing the site goes through the link from then on.
    pub fn link_site(&self) -> Result<()> {
        let available = self.available();
        let dir = available.parent().context("a file is in a directory")?;
        std::fs::create_dir_all(dir).context("make sites-available")?;
        std::fs::rename(self.site(), &available).context("move the site")?;
        std::os::unix::fs::symlink("../sites-available/zekka", self.site()).context("enable the site")
    }

    /// The file behind a [linked](Nginx::link_site) site.
    pub fn available(&self) -> PathBuf {
        self.root().join("sites-available/zekka")
    }

    pub fn managed_include(&self) -> PathBuf {
        self.root().join(MANAGED_INCLUDE)
    }

    /// The servers of the upstream: written by hand once, then by the agent.
    pub fn upstream_include(&self) -> PathBuf {
        self.root().join(UPSTREAM_INCLUDE)
    }

    /// Lists the upstream's servers as somebody would by hand.
    pub fn write_upstream(&self, addresses: &[String]) -> Result<()> {
        let lines = addresses.iter().map(|address| match self.server_options.as_str() {
            "" => format!("server {address};\n"),
            options => format!("server {address} {options};\n"),
        });
        std::fs::write(self.upstream_include(), lines.collect::<String>()).context("write the managed upstream")
    }

    /// Addresses of the servers that the managed upstream says get no requests.
    pub fn drained(&self) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(self.upstream_include()).context("read the managed upstream")?;
        let lines = text
            .lines()
            .filter_map(|line| line.split_once(';')?.0.strip_prefix("server "));
        let down = lines.filter(|line| line.split_ascii_whitespace().any(|word| word == "down"));
        Ok(down
            .filter_map(|line| line.split_ascii_whitespace().next())
            .map(str::to_owned)
            .collect())
    }

    /// Writes a site that passes everything on to the servers in [`Nginx::upstream_include`] and answers with `version`
    /// in the header `X-Zekka-Site`. For stories without zekka's own sites.
    pub fn write_site(&self, version: &str) -> Result<()> {
        let text = format!(
            "# zekka {version}\n\
             upstream zekka {{\n\
             \x20   include {UPSTREAM_INCLUDE};\n\
             }}\n\n\
             server {{\n\
             \x20   listen 127.0.0.1:{port};\n\
             \x20   server_name localhost;\n\
             \x20   access_log {log} requests;\n\
             \x20   include {MANAGED_INCLUDE};\n\n\
             \x20   location / {{\n\
             \x20       proxy_pass http://zekka;\n\
             \x20       proxy_connect_timeout 1s;\n\
             \x20       proxy_set_header Host $host;\n\
             \x20       add_header X-Zekka-Site {version} always;\n\
             \x20   }}\n\
             }}\n",
            port = self.port,
            log = self.requests_log().display(),
        );
        std::fs::write(self.site(), text).context("write the site")
    }

    /// `[[component]]` of the proxy's agent. `backends`: which server of the upstream belongs to which component, like
    /// `app-1/api` to `127.0.0.1:3001`; with any, hosts are taken out of nginx before they stop.
    pub fn component(&self, backends: &BTreeMap<String, String>) -> String {
        let mut text = format!(
            "[[component]]\nname = \"proxy\"\nkind = \"nginx\"\nprefix = \"{}\"\nconfig = \"{}\"\nroot = \"{}\"\n\
             pid_file = \"{}\"\nerror_log = \"{}\"\nfiles = [\"sites-enabled/zekka.conf\"]\n\
             managed_include = \"{MANAGED_INCLUDE}\"\nmarker_url = \"{}\"\n",
            self.prefix().display(),
            self.config().display(),
            self.root().display(),
            self.pid_file().display(),
            self.error_log().display(),
            self.url("/-/rollbackctl"),
        );
        if !backends.is_empty() {
            text.push_str(&format!("[component.upstream]\ninclude = \"{UPSTREAM_INCLUDE}\"\n"));
            text.push_str(&format!("options = \"{}\"\n", self.server_options));
            text.push_str("[component.upstream.backends]\n");
            let lines = backends
                .iter()
                .map(|(name, address)| format!("\"{name}\" = \"{address}\"\n"));
            text.extend(lines);
        }
        text
    }

    pub fn pid_file(&self) -> PathBuf {
        self.dir.join("run/nginx.pid")
    }

    pub fn error_log(&self) -> PathBuf {
        self.dir.join("log/error.log")
    }

    fn requests_log(&self) -> PathBuf {
        self.dir.join("log/requests.log")
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
