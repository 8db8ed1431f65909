//! Where the application is installed, what its release says, and what it notes down.
//!
//! ```text
//! <root>/releases/<version>/bin/zekka-app, release.json
//! <root>/run/app.pid   <root>/log/{app,effects}.log   <root>/faults.json
//! ```
//!
//! A release that is not in a directory `releases` (in a container image, say) is its own root. Without a directory for
//! logs, what would be noted goes to stderr.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;

/// `release.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Release {
    pub version: String,
    /// The highest migration that this version was written for.
    pub schema: i64,
    /// The highest one that it can live with. Without it: no other.
    #[serde(default)]
    pub schema_at_most: Option<i64>,
    /// Every second query for deals fails.
    #[serde(default)]
    pub faulty: bool,
}

/// What an experiment asks of one version, in `faults.json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    #[serde(default)]
    pub unhealthy: bool,
    #[serde(default)]
    pub start_delay_ms: u64,
    /// It does not begin to serve for as long as this is set.
    #[serde(default)]
    pub start_held: bool,
}

impl Fault {
    pub fn start_delay(&self) -> Duration {
        Duration::from_millis(self.start_delay_ms)
    }
}

#[derive(Clone, Debug)]
pub struct Installation {
    root: PathBuf,
    pub release_dir: PathBuf,
    pub release: Release,
}

impl Installation {
    pub fn of_this_executable() -> Result<Self> {
        let exe = std::env::current_exe().context("find this executable")?;
        let release_dir = exe
            .ancestors()
            .nth(2)
            .context("the executable is not in <release>/bin")?;
        let root = match release_dir.parent() {
            Some(releases) if releases.ends_with("releases") => releases.parent().unwrap_or(releases),
            Some(_) | None => release_dir,
        };
        let text = std::fs::read_to_string(release_dir.join("release.json"))
            .with_context(|| format!("read release.json of {}", release_dir.display()))?;
        let release = serde_json::from_str(&text).context("parse release.json")?;
        Ok(Self {
            root: root.to_owned(),
            release_dir: release_dir.to_owned(),
            release,
        })
    }

    pub fn pid_file(&self) -> PathBuf {
        self.root.join("run/app.pid")
    }

    pub fn log(&self) -> PathBuf {
        self.root.join("log/app.log")
    }

    /// Does this path belong to one of our releases?
    pub fn holds(&self, path: &Path) -> bool {
        path.starts_with(self.root.join("releases"))
    }

    /// The fault that is set for this version now.
    pub fn fault(&self) -> Fault {
        let faults = std::fs::read_to_string(self.root.join("faults.json")).ok();
        let faults: Option<BTreeMap<String, Fault>> = faults.and_then(|text| serde_json::from_str(&text).ok());
        faults
            .and_then(|mut all| all.remove(&self.release.version))
            .unwrap_or_default()
    }

    /// Notes what this process did. One write in append mode: lines of several processes never mix.
    pub fn note(&self, event: &str) -> Result<()> {
        let line = json!({
            "at": jiff::Timestamp::now().to_string(),
            "event": event,
            "version": self.release.version,
            "pid": std::process::id(),
        });
        let logs = self.root.join("log");
        if !logs.is_dir() {
            eprintln!("{line}");
            return Ok(());
        }
        let path = logs.join("effects.log");
        let mut file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .context("open effects.log")?;
        file.write_all(format!("{line}\n").as_bytes())
            .context("write effects.log")
    }
}
