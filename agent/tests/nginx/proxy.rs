//! An nginx with its own prefix and a free port, stopped at the end.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rollback_agent::driver::nginx::{NginxConfig, NginxDriver};
use rollback_agent::driver::{Action, Done, Driver, Failure, Revision, Severity};
use rollback_agent::processes;
use rollback_proto::problem::Code;

use crate::host::{self, Host, eventually, free_port, read, write};

const NGINX: &str = "/usr/sbin/nginx";

pub struct Proxy {
    pub host: Host,
    pub conf: PathBuf,
    pub port: u16,
    pub driver: NginxDriver,
    pub old: Revision,
    pub new: Revision,
    config: String,
}

/// What differs from the plain proxy.
#[derive(Default)]
pub struct Setup<'a> {
    /// More keys of the component.
    pub keys: &'a str,
    /// More in the server block, and outside of it.
    pub locations: &'a str,
    pub outside: &'a str,
    /// More files beneath `conf`; they are managed when their name begins with `sites/`.
    pub files: &'a [(&'a str, &'a str)],
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The master may have been ended by the test itself.
        if let Ok(Some(master)) = processes::from_pid_file(&self.host.path().join("nginx.pid")) {
            host::end(master, rustix::process::Signal::TERM);
        }
    }
}

impl Proxy {
    /// The agent is started anew.
    pub fn restart_agent(&mut self) {
        let config: NginxConfig = toml::from_str(&self.config).expect("config");
        self.driver = NginxDriver::new("part", config, Arc::clone(&self.host.vault)).expect("driver");
    }

    pub fn site(&self) -> PathBuf {
        self.conf.join("sites/zekka")
    }

    pub fn set_site(&self, version: &str, extra: &str) {
        write(&self.site(), &site(&self.conf, self.port, version, extra));
    }

    pub fn master(&self) -> processes::Identity {
        processes::from_pid_file(&self.host.path().join("nginx.pid"))
            .expect("read")
            .expect("nginx runs")
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .build()
            .expect("client")
            .get(url)
            .send()
            .await
            .expect("an answer")
    }

    pub async fn version(&self) -> String {
        self.get("/version").await.text().await.expect("body")
    }

    pub async fn switch(&self) -> Result<Done, Failure> {
        self.driver
            .switch(&self.host.step(Action::Switch, &self.new, &self.old))
            .await
    }

    pub async fn undo(&self) -> Result<Done, Failure> {
        self.driver
            .switch(&self.host.step(Action::Switch, &self.old, &self.new))
            .await
    }

    /// Makes the site what a release with this text was, as recorded, and v3.0.0 live again.
    pub async fn recorded(&self, extra: &str) -> Revision {
        let live = read(&self.site());
        self.set_site("other", extra);
        self.driver
            .snapshot(&self.host.step(Action::Snapshot, &self.new, &self.new))
            .await
            .expect("pin");
        let revision = self.driver.observe().await.expect("observe").revision;
        write(&self.site(), &live);
        revision
    }

    pub async fn blockers(&self, to: &Revision) -> Vec<Code> {
        let found = self
            .driver
            .prepare(&self.host.step(Action::Prepare, &self.new, to))
            .await;
        found
            .iter()
            .filter(|f| f.severity == Severity::Blocker)
            .map(|f| f.problem.code)
            .collect()
    }
}

fn site(conf: &std::path::Path, port: u16, version: &str, extra: &str) -> String {
    format!(
        "server {{\n    listen 127.0.0.1:{port};\n    include {}/rb/zekka.inc;\n    location = /version {{ return 200 \
         \"{version}\"; }}\n    location /proxied {{ proxy_pass http://127.0.0.1:{port}/version; }}\n}}\n{extra}",
        conf.display()
    )
}

/// v2.9.0 was recorded, v3.0.0 is live and served.
pub async fn proxy_with(setup: Setup<'_>) -> Proxy {
    let host = Host::new();
    let dir = host.path().to_owned();
    let conf = dir.join("conf");
    let port = free_port();
    let user = if rustix::process::geteuid().is_root() {
        "user root;\n"
    } else {
        ""
    };
    write(
        &conf.join("nginx.conf"),
        &format!(
            "{user}worker_processes 2;\npid {0}/nginx.pid;\nerror_log {0}/error.log notice;\nevents {{ \
             worker_connections 256; }}\nhttp {{\n  access_log off;\n  client_body_temp_path {0}/t1;\n  proxy_temp_path \
             {0}/t2;\n  fastcgi_temp_path {0}/t3;\n  uwsgi_temp_path {0}/t4;\n  scgi_temp_path {0}/t5;\n  include \
             sites/*;\n}}\n",
            dir.display()
        ),
    );
    write(&conf.join("rb/zekka.inc"), "");
    let site_of = |version| {
        let text = site(&conf, port, version, setup.outside);
        text.replacen(
            "    location = /version",
            &format!("{}    location = /version", setup.locations),
            1,
        )
    };
    write(&conf.join("sites/zekka"), &site_of("v2.9.0"));
    let mut managed = vec!["'sites/zekka'".to_owned()];
    for (name, content) in setup.files {
        write(&conf.join(name), content);
        if name.starts_with("sites/") {
            managed.push(format!("'{name}'"));
        }
    }
    let nginx = |args: &[&str]| {
        let status = Command::new(NGINX)
            .args([
                "-p",
                &dir.to_string_lossy(),
                "-c",
                &conf.join("nginx.conf").to_string_lossy(),
            ])
            .args(args)
            .stderr(Stdio::null())
            .status()
            .expect("nginx is installed");
        assert!(status.success());
    };
    nginx(&[]);
    let text = format!(
        "config = '{0}/conf/nginx.conf'\nprefix = '{0}'\npid_file = '{0}/nginx.pid'\nerror_log = '{0}/error.log'\nfiles = \
         [{1}]\nmanaged_include = 'rb/zekka.inc'\nmarker_url = 'http://127.0.0.1:{port}/-/rollbackctl'\n\
         retry_after = '17s'\n{2}",
        dir.display(),
        managed.join(", "),
        setup.keys
    );
    let config: NginxConfig = toml::from_str(&text).expect("config");
    let driver = NginxDriver::new("part", config, Arc::clone(&host.vault)).expect("driver");
    // The workers are started last: a reload that the master got before would be left lying until its next signal.
    let pid_file = dir.join("nginx.pid");
    let workers = || match processes::from_pid_file(&pid_file) {
        Ok(Some(master)) => processes::children(master.pid),
        Ok(None) | Err(_) => Vec::new(),
    };
    eventually("nginx has workers", || workers().len() == 2).await;
    let first = workers();
    let old = driver.retain("v2.9.0").await.expect("retain").revision;
    write(&conf.join("sites/zekka"), &site_of("v3.0.0"));
    let new = driver.observe().await.expect("observe").revision;
    let proxy = Proxy {
        host,
        conf: conf.clone(),
        port,
        driver,
        old,
        new,
        config: text,
    };
    nginx(&["-s", "reload"]);
    eventually("the first workers are gone", || {
        workers().len() == 2 && first.iter().all(|w| !processes::alive(*w))
    })
    .await;
    assert_eq!(proxy.version().await, "v3.0.0");
    proxy
}

pub async fn proxy() -> Proxy {
    proxy_with(Setup::default()).await
}

pub async fn proxy_with_keys(keys: &str) -> Proxy {
    proxy_with(Setup {
        keys,
        ..Setup::default()
    })
    .await
}
