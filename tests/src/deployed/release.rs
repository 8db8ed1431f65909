//! A release directory, without a database unless one is named, and the archives of releases that a build server would have left behind.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Deployed, HEALTHY_WITHIN, key};
use crate::binaries::Binaries;
use crate::control::{Control, Held};
use crate::facts::sha256;
use crate::process::run;
use crate::zekka::{AppHost, Version, write_secret};

/// The application in `<root>/releases/<version>`, started by its own `launch`.
#[derive(Clone, Debug)]
pub struct ReleaseApp {
    pub host: AppHost,
    /// Further lines of its env file: DATABASE_URL.
    pub more_env: String,
    /// How long its agent shall wait for it.
    pub healthy_within: &'static str,
    binaries: Binaries,
}

impl ReleaseApp {
    /// In the directory of a host: `opt/zekka`. Its process ends after the agents.
    pub fn of(control: &mut Control, host: &str) -> Result<Self> {
        let app = AppHost::lay_out(host, &control.host_dir(host).join("opt/zekka"))?;
        control.hold(Process {
            host: app.clone(),
            let_go: false,
        });
        Ok(Self {
            host: app,
            more_env: String::new(),
            healthy_within: HEALTHY_WITHIN,
            binaries: control.binaries.clone(),
        })
    }

    /// `backups/<version>.tar.gz` beneath the root, and beside it `<version>.tar.gz.sha256`, as sha256sum writes it.
    pub fn archive(&self, version: Version) -> Result<PathBuf> {
        let backups = self.host.root.join("backups");
        archive(&self.binaries, version, &backups)
    }
}

/// Packs a release into `<dir>/<version>.tar.gz`, with one directory at the top that is named after the version, and
/// writes its checksum beside it. Returns the archive.
pub fn archive(binaries: &Binaries, version: Version, dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).context("make the directory of archives")?;
    let temp = tempfile::tempdir().context("make a directory to pack")?;
    version.unpack(binaries, &temp.path().join(version.name()))?;
    let name = format!("{}.tar.gz", version.name());
    let path = dir.join(&name);
    run(Command::new("tar")
        .arg("--create")
        .arg("--gzip")
        .arg("--file")
        .arg(&path)
        .arg("--directory")
        .arg(temp.path())
        .args(["--owner=0", "--group=0", version.name()]))?;
    let sum = sha256(&std::fs::read(&path).context("read the archive")?);
    std::fs::write(dir.join(format!("{name}.sha256")), format!("{sum}  {name}\n")).context("write the checksum")?;
    Ok(path)
}

impl Deployed for ReleaseApp {
    fn port(&self) -> u16 {
        self.host.port
    }

    fn healthy_within(&self) -> &'static str {
        self.healthy_within
    }

    fn install(&self, version: Version) -> Result<()> {
        version.unpack(&self.binaries, &self.host.release_dir(version))?;
        let (port, greeting) = (self.host.port, version.greeting());
        let env = format!("PORT={port}\nGREETING={greeting}\n{}", self.more_env);
        self.host.replace(version, || write_secret(&self.host.env_file(), &env))
    }

    fn component(&self) -> String {
        [
            "[[component]]\nname = \"env\"\nkind = \"env-file\"\n".to_owned(),
            key("path", self.host.env_file().display()),
            "[[component]]\nname = \"api\"\nkind = \"release-dir\"\nreads = [\"env\"]\n".to_owned(),
            key("root", self.host.root.display()),
            self.host.process_key(),
            self.health(),
        ]
        .concat()
    }
}

/// Whatever process the application has in the end.
#[derive(Debug)]
struct Process {
    host: AppHost,
    let_go: bool,
}

impl Held for Process {
    fn let_go(&mut self) -> String {
        self.let_go = true;
        // The script that ends a kept fleet finds it by itself.
        String::new()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.let_go {
            self.host.end();
        }
    }
}
