//! An independent record of what took effect on the hosts of zekka's fleet: what can happen twice is counted, and none of
//! the programs under test is asked.
//!
//! | effect | counted by |
//! |---|---|
//! | `start`, `stop`, `refused` of a version | the application itself, a line each in its own `effects.log` |
//! | `env`, `current`: the env file and the link to the live release were replaced | the kernel (inotify on their directory) |
//! | `site`, `managed`, `upstream`: files of nginx were written | the kernel, the same way |
//! | `reload` | nginx, a line each in its own log |
//! | `migration up`, `migration down` by number | PostgreSQL: rows of `schema_migrations` that were added and deleted by transactions that *committed*, by logical decoding of its log |
//!
//! Left out: what can happen twice without an effect (a dump, a copy that is staged, a question), and the rehearsal of
//! migrations, which has a database of its own.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::nginx::Nginx;
use crate::postgres::{DATABASE, Postgres};
use crate::zekka::AppHost;

/// Of the server's log of changes, in the application's database.
const SLOT: &str = "harness_effects";

/// PostgreSQL's settings that this record needs.
pub const SETTINGS: [&str; 1] = ["wal_level=logical"];

/// How often each effect was there: `app-1: start v2.9.0`.
pub type Tally = BTreeMap<String, usize>;

/// A record that has begun.
#[derive(Debug)]
pub struct Effects {
    apps: Vec<(AppHost, usize)>,
    files: Vec<Watched>,
    nginx_log: PathBuf,
    nginx_reloads: usize,
}

/// Files of one directory.
#[derive(Debug)]
struct Watched {
    watcher: OwnedFd,
    host: String,
    /// Name of the file, and what its replacement is called.
    names: Vec<(&'static str, &'static str)>,
}

impl Effects {
    /// Begins. With a database: that of this server, which needs [`SETTINGS`].
    pub fn watch(apps: &[AppHost], nginx: &Nginx, postgres: Option<&Postgres>) -> Result<Self> {
        let mut files = Vec::new();
        for app in apps {
            let names = vec![(".env.production", "env"), ("current", "current")];
            files.push(Watched::watch(app.root.clone(), &app.name, names)?);
        }
        let of_nginx = [
            ("sites-enabled", vec![("zekka.conf", "site")]),
            (
                "rollbackctl",
                vec![("zekka.inc", "managed"), ("zekka-upstream.inc", "upstream")],
            ),
        ];
        for (dir, names) in of_nginx {
            files.push(Watched::watch(nginx.root().join(dir), "proxy-1", names)?);
        }
        if let Some(postgres) = postgres {
            let exists = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
            if postgres.psql(DATABASE, &exists)?.is_empty() {
                let create = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'test_decoding')");
                postgres.psql(DATABASE, &create)?;
            }
            // What was before is not ours.
            changes(postgres)?;
        }
        let marked = |app: &AppHost| Ok((app.clone(), app.effects()?.len()));
        Ok(Self {
            apps: apps.iter().map(marked).collect::<Result<_>>()?,
            files,
            nginx_reloads: reloads(&nginx.error_log())?,
            nginx_log: nginx.error_log(),
        })
    }

    /// What there was since, and no more: the next record begins with [`Effects::watch`].
    pub fn tally(self, postgres: Option<&Postgres>) -> Result<Tally> {
        let mut tally = Tally::new();
        let mut count = |effect: String, times: usize| {
            if times > 0 {
                *tally.entry(effect).or_default() += times;
            }
        };
        for (app, mark) in &self.apps {
            for (event, version) in app.effects()?.into_iter().skip(*mark) {
                count(format!("{}: {event} {version}", app.name), 1);
            }
        }
        for watched in &self.files {
            for effect in watched.replaced()? {
                count(format!("{}: {effect}", watched.host), 1);
            }
        }
        count(
            "proxy-1: reload".to_owned(),
            reloads(&self.nginx_log)? - self.nginx_reloads,
        );
        if let Some(postgres) = postgres {
            for change in changes(postgres)? {
                count(format!("db-1: {change}"), 1);
            }
        }
        Ok(tally)
    }
}

impl Watched {
    fn watch(dir: PathBuf, host: &str, names: Vec<(&'static str, &'static str)>) -> Result<Self> {
        let watcher = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).context("make a watcher of files")?;
        // A file is replaced by a rename, or written in place.
        let flags = WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
        inotify::add_watch(&watcher, &dir, flags).with_context(|| format!("watch {}", dir.display()))?;
        Ok(Self {
            watcher,
            host: host.to_owned(),
            names,
        })
    }

    /// The kernel has kept what happened since; it says so if that was too much to keep.
    fn replaced(&self) -> Result<Vec<&'static str>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.watcher, &mut buffer);
        let mut found = Vec::new();
        loop {
            let event = match reader.next() {
                Err(Errno::WOULDBLOCK) => return Ok(found),
                event => event.context("read what happened to files")?,
            };
            anyhow::ensure!(
                !event.events().contains(ReadFlags::QUEUE_OVERFLOW),
                "more happened to the files of {} than the kernel keeps",
                self.host
            );
            let name = event.file_name().and_then(|name| name.to_str().ok());
            let known = self.names.iter().find(|(file, _)| Some(*file) == name);
            found.extend(known.map(|(_, effect)| *effect));
        }
    }
}

/// nginx says so once for every signal that it takes.
fn reloads(log: &std::path::Path) -> Result<usize> {
    let text = std::fs::read_to_string(log).context("read nginx's log")?;
    Ok(text.lines().filter(|line| line.ends_with("reconfiguring")).count())
}

/// Migrations of the committed transactions since this was asked last: `migration up 2`.
fn changes(postgres: &Postgres) -> Result<Vec<String>> {
    let rows = postgres.psql(
        DATABASE,
        &format!("SELECT data FROM pg_logical_slot_get_changes('{SLOT}', NULL, NULL)"),
    )?;
    // table public.schema_migrations: DELETE: version[bigint]:2
    let change = |row: &str| {
        let (way, columns) = row.strip_prefix("table public.schema_migrations: ")?.split_once(": ")?;
        let (_, version) = columns.split_once("version[bigint]:")?;
        let number = version.split_ascii_whitespace().next()?;
        let way = match way {
            "INSERT" => "up",
            "DELETE" => "down",
            other => other,
        };
        Some(format!("migration {way} {number}"))
    };
    Ok(rows.lines().filter_map(change).collect())
}

/// What happened more often than in a rollback of the same kind in which nothing was disturbed.
pub fn duplicates(undisturbed: &Tally, seen: &Tally) -> Vec<String> {
    let expected = |effect: &String| undisturbed.get(effect).copied().unwrap_or_default();
    seen.iter()
        .filter(|(effect, times)| **times > expected(effect))
        .map(|(effect, times)| format!("{effect}: {times} times instead of {}", expected(effect)))
        .collect()
}

/// What happened less often than there.
pub fn missing(undisturbed: &Tally, seen: &Tally) -> Vec<String> {
    duplicates(seen, undisturbed)
}
