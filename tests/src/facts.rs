//! What a fleet is in fact, without asking the programs under test: files by hash, links, processes through `/proc`,
//! the schema through psql and pg_dump, the data by checksums and row by row, answers through curl.

mod data;
mod rows;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub use self::data::{Data, StageData, Table};
pub use self::rows::Rows;
use crate::fleet::Fleet;
use crate::postgres::DATABASE;
use crate::process::{self, run};
use crate::zekka::{AppHost, Version};

/// One host of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppFacts {
    /// Where `current` points.
    pub link: String,
    /// SHA-256 of the live release's content.
    pub release_sha256: String,
    pub env_sha256: String,
    /// Everything in `releases`: what is left behind shows here.
    pub releases: Vec<String>,
    /// Everything beside the env file, and every note in the agent's own directory there.
    pub root_entries: Vec<String>,
    pub pid: Option<u32>,
    /// GREETING and SESSION_SECRET in the environment of the process.
    pub process_greeting: String,
    pub process_secret: String,
    /// What the process itself answers; who it is left out.
    pub served: String,
    pub healthy: bool,
}

/// A whole fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub apps: BTreeMap<String, AppFacts>,
    /// Rows of schema_migrations.
    pub migrations: String,
    pub schema_sha256: String,
    /// Schemas that hold what down migrations dropped.
    pub kept_schemas: Vec<String>,
    pub data: Data,
    /// All databases of the cluster: scratch copies that are left behind show here.
    pub databases: Vec<String>,
    pub site_sha256: String,
    pub nginx_files: Vec<String>,
    /// Servers that nginx is told to leave alone.
    pub drained: Vec<String>,
    pub workers: Vec<u32>,
    /// Body of `/api/version` through nginx, and the header that the site adds.
    pub served: String,
    pub served_site: String,
}

impl Facts {
    pub fn gather(fleet: &Fleet) -> Result<Self> {
        let mut apps = BTreeMap::new();
        for host in &fleet.zekka.hosts {
            apps.insert(
                host.name.clone(),
                AppFacts::gather(host).with_context(|| format!("look at {}", host.name))?,
            );
        }
        let answer = curl(&fleet.nginx.url("/api/version"))?;
        let migrations = "SELECT string_agg(version::text, ',' ORDER BY version) FROM schema_migrations";
        Ok(Self {
            apps,
            migrations: fleet.postgres.psql(DATABASE, migrations)?,
            schema_sha256: sha256(fleet.postgres.schema()?.as_bytes()),
            kept_schemas: fleet.postgres.kept_schemas()?,
            data: Data::gather(&fleet.postgres)?,
            databases: fleet.postgres.databases()?,
            site_sha256: sha256_of(&fleet.nginx.site())?,
            nginx_files: tree(&fleet.nginx.root())?,
            drained: fleet.nginx.drained()?,
            workers: fleet.nginx.workers(),
            served_site: answer.header("x-zekka-site"),
            served: without_process(&answer.body),
        })
    }

    /// What is not as it must be when this version, and nothing else, runs everywhere. Empty: all is well.
    pub fn misfits(&self, version: Version) -> Vec<String> {
        let mut found = Vec::new();
        let mut expect = |what: String, right: bool, seen: &dyn std::fmt::Debug| {
            if !right {
                found.push(format!("{what} is {seen:?}"));
            }
        };
        let (name, greeting) = (version.name(), version.greeting());
        let migrations = (1..=version.schema())
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
            .join(",");
        expect(
            "schema_migrations".to_owned(),
            self.migrations == migrations,
            &self.migrations,
        );
        let both = |text: &str| text.contains(&format!("\"{name}\"")) && text.contains(&format!("\"{greeting}\""));
        expect("the answer through nginx".to_owned(), both(&self.served), &self.served);
        expect(
            "the site that nginx serves".to_owned(),
            self.served_site == version.site().name(),
            &self.served_site,
        );
        expect(
            "the list of servers that are taken out of nginx".to_owned(),
            self.drained.is_empty(),
            &self.drained,
        );
        expect(
            "the number of nginx's workers".to_owned(),
            !self.workers.is_empty(),
            &self.workers,
        );
        found.extend(self.apps.iter().flat_map(|(host, app)| app.misfits(host, version)));
        found
    }

    /// What differs from `before`. With `same_processes`, PIDs count, too: nothing was even restarted.
    pub fn changes_since(&self, before: &Self, same_processes: bool) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: &str, was: &dyn std::fmt::Debug, is: &dyn std::fmt::Debug| {
            let (was, is) = (format!("{was:?}"), format!("{is:?}"));
            if was != is {
                found.push(format!("{what} was {was} and is {is}"));
            }
        };
        for (host, is) in &self.apps {
            let Some(was) = before.apps.get(host) else { continue };
            let without_pid = |app: &AppFacts| AppFacts {
                pid: None,
                ..app.clone()
            };
            compare(host, &without_pid(was), &without_pid(is));
            if same_processes {
                compare(&format!("the process on {host}"), &was.pid, &is.pid);
            }
        }
        compare("schema_migrations", &before.migrations, &self.migrations);
        compare("the schema", &before.schema_sha256, &self.schema_sha256);
        compare("the list of kept schemas", &before.kept_schemas, &self.kept_schemas);
        compare("what tables hold", &before.data.tables, &self.data.tables);
        compare("where sequences are", &before.data.sequences, &self.data.sequences);
        compare("the list of databases", &before.databases, &self.databases);
        compare("the site file", &before.site_sha256, &self.site_sha256);
        compare("nginx's files", &before.nginx_files, &self.nginx_files);
        compare("the list of drained servers", &before.drained, &self.drained);
        compare("what nginx serves", &before.served_site, &self.served_site);
        compare("the version that is served", &before.served, &self.served);
        if same_processes {
            compare("nginx's workers", &before.workers, &self.workers);
        }
        found
    }
}

impl AppFacts {
    /// What is not as it must be when this version runs here. Empty: all is well.
    pub fn misfits(&self, host: &str, version: Version) -> Vec<String> {
        let name = version.name();
        let what = [
            (
                "current",
                self.link == format!("releases/{name}"),
                &self.link as &dyn std::fmt::Debug,
            ),
            (
                "GREETING of the process",
                self.process_greeting == version.greeting(),
                &self.process_greeting,
            ),
            ("the answer", self.served.contains(&format!("\"{name}\"")), &self.served),
            ("health", self.healthy, &self.healthy),
        ];
        let wrong = what.iter().filter(|(_, right, _)| !right);
        wrong
            .map(|(what, _, seen)| format!("{what} of {host} is {seen:?}"))
            .collect()
    }

    pub fn gather(host: &AppHost) -> Result<Self> {
        let pid = host.pid();
        let environ = pid.map(process::environ).transpose()?.unwrap_or_default();
        let value = |name: &str| environ.get(name).cloned().unwrap_or_default();
        let link = std::fs::read_link(host.current()).context("read current")?;
        let releases = host.root.join("releases");
        Ok(Self {
            release_sha256: sha256_of_tree(&std::fs::canonicalize(host.current()).context("follow current")?)?,
            link: link.to_string_lossy().into_owned(),
            env_sha256: sha256_of(&host.env_file())?,
            releases: entries(&releases)?,
            root_entries: root_entries(&host.root)?,
            pid,
            process_greeting: value("GREETING"),
            process_secret: value("SESSION_SECRET"),
            served: curl(&host.url("/api/version"))
                .map(|a| without_process(&a.body))
                .unwrap_or_default(),
            healthy: curl(&host.url("/api/health")).is_ok_and(|a| a.status == 200),
        })
    }
}

/// An answer to an HTTP request.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl HttpAnswer {
    /// A header's value; empty when there is none.
    pub fn header(&self, name: &str) -> String {
        let fields = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut values = fields
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim());
        values.next().unwrap_or_default().to_owned()
    }
}

/// An answer without what differs from process to process of the same version.
fn without_process(body: &str) -> String {
    let Ok(mut answer) = serde_json::from_str::<Value>(body) else {
        return body.to_owned();
    };
    if let Value::Object(fields) = &mut answer {
        fields.retain(|name, _| !matches!(name.as_str(), "pid" | "host"));
    }
    answer.to_string()
}

/// Asks with curl.
pub fn curl(url: &str) -> Result<HttpAnswer> {
    let out = run(Command::new("curl").args(["--silent", "--show-error", "--include", "--max-time", "5", url]))?;
    let (head, body) = out.split_once("\r\n\r\n").context("an answer has a head and a body")?;
    let status = head
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|s| s.parse().ok())
        .context("an answer has a status")?;
    Ok(HttpAnswer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn sha256_of(path: &Path) -> Result<String> {
    Ok(sha256(
        &std::fs::read(path).with_context(|| format!("read {}", path.display()))?,
    ))
}

/// The agent's own directory may stay when it is empty. What a story tells the application is no trace of anybody.
fn root_entries(root: &Path) -> Result<Vec<String>> {
    const OURS: &str = ".rollbackctl";
    let mut found = entries(root)?;
    found.retain(|name| name != "faults.json");
    if let Some(at) = found.iter().position(|name| name == OURS) {
        found.remove(at);
        found.extend(tree(&root.join(OURS))?.into_iter().map(|note| format!("{OURS}/{note}")));
    }
    Ok(found)
}

/// Names in a directory, sorted.
fn entries(dir: &Path) -> Result<Vec<String>> {
    let read = std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let mut names: Vec<String> = read
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// Paths of all files below a directory, sorted.
fn tree(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(&next)
            .with_context(|| format!("list {}", next.display()))?
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                pending.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn sha256_of_tree(dir: &Path) -> Result<String> {
    let files = tree(dir)?;
    ensure!(!files.is_empty(), "{} is empty", dir.display());
    let mut all = Sha256::new();
    for file in files {
        all.update(file.as_bytes());
        all.update(sha256_of(&dir.join(&file))?);
    }
    Ok(hex::encode(all.finalize()))
}
