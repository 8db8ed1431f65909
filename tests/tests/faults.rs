//! Faults on the way to v2.9.0, one after the other on one fleet. Each ends with the exit code and the error code that
//! it must, and leaves v3.0.0 as it was, with nothing lying around. In the end, with all faults mended, the same fleet
//! does go back.
//!
//! v3.0.0 is not recorded here: what is live is enough to come back to it.

#[path = "faults/pages.rs"]
mod pages;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use fleet_tests::facts::Facts;
use fleet_tests::fleet::{Fleet, SMALL_DISK_FILES};
use fleet_tests::process;
use fleet_tests::scenario::{expect_nothing, expect_running};
use fleet_tests::zekka::Version;

/// Room for two releases in full and hardly more.
const SMALL_DISK_MIB: u32 = 64;

/// How a fault must end.
struct Expected {
    exit: i32,
    code: &'static str,
    /// Nothing was even restarted or reloaded.
    untouched: bool,
}

const BLOCKED: fn(&'static str) -> Expected = |code| Expected {
    exit: 3,
    code,
    untouched: true,
};
const HARMLESS: fn(&'static str) -> Expected = |code| Expected {
    exit: 5,
    code,
    untouched: true,
};
const UNDONE: fn(&'static str) -> Expected = |code| Expected {
    exit: 5,
    code,
    untouched: false,
};

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_leaves_the_fleet_as_it_was() {
    if let Err(error) = story().await {
        panic!("{error:#}");
    }
}

async fn story() -> Result<()> {
    let temp = tempfile::tempdir().context("make a directory")?;
    let tools = ShortDumps::install(temp.path())?;
    let status_port = process::free_port()?;
    let site = format!("include snippets/limits.conf;\n    listen 127.0.0.1:{status_port};");
    let builder = Fleet::builder()
        .small_disk("app-1", SMALL_DISK_MIB)
        .pg_bin_dir(&tools.dir)
        .site_extra(Version::V2_9_0, &site);
    let mut fleet = builder.start().await?;
    let told = faults(&mut fleet, &tools, status_port).await;
    match told {
        Ok(()) => fleet.stop().await,
        Err(error) => Err(anyhow::anyhow!("{error:#}\nthe logs end so:\n{}", fleet.tails())),
    }
}

async fn faults(fleet: &mut Fleet, tools: &ShortDumps, status_port: u16) -> Result<()> {
    let snippet = fleet.nginx.root().join("snippets/limits.conf");
    std::fs::create_dir_all(snippet.parent().context("a parent")?).context("make snippets")?;
    std::fs::write(&snippet, "client_max_body_size 1m;\n").context("write the snippet")?;
    fleet.deploy(Version::V2_9_0).await?;
    fleet.ctl.record("v2.9.0").await?.expect_code(0)?;
    fleet.deploy(Version::V3_0_0).await?;

    let down = fleet.zekka.down_file(Version::V3_0_0);
    let hidden = Hidden::hide(&down)?;
    attempt(fleet, "a migration without its down file", BLOCKED("RB0702")).await?;
    hidden.put_back()?;

    let hidden = Hidden::hide(&snippet)?;
    attempt(fleet, "a site that nginx -t refuses", HARMLESS("RB0600")).await?;
    hidden.put_back()?;

    tools.set_short(true)?;
    attempt(fleet, "a truncated backup", HARMLESS("RB0701")).await?;
    tools.set_short(false)?;

    full_disk(fleet).await?;

    let taken = std::net::TcpListener::bind(("127.0.0.1", status_port)).context("take the port")?;
    attempt(fleet, "a port that is taken at reload", UNDONE("RB0601")).await?;
    drop(taken);

    fleet.ctl.roll_back("v2.9.0").await?.expect_code(0)?;
    expect_running(fleet, Version::V2_9_0)?;
    pages::say_what_happened(fleet).context("the coordinator's pages")
}

/// app-1 has lost v2.9.0 and gets it back from its vault: once there is too little room, which preflight sees, once the
/// disk takes no more files, which shows only while staging.
async fn full_disk(fleet: &mut Fleet) -> Result<()> {
    let app = fleet.app("app-1")?.clone();
    std::fs::remove_dir_all(app.release_dir(Version::V2_9_0)).context("remove the release")?;
    let filler = app.root.join("releases/.filler");
    std::fs::create_dir(&filler).context("make the filler's directory")?;

    let big = filler.join("big");
    std::fs::write(
        &big,
        vec![0; 1024 * 1024 * usize::try_from(SMALL_DISK_MIB / 2).context("a size")?],
    )
    .context("fill the disk")?;
    attempt(fleet, "too little room for the release", BLOCKED("RB0503")).await?;
    std::fs::remove_file(&big).context("free the disk")?;

    let mut made = 0;
    while std::fs::write(filler.join(made.to_string()), "").is_ok() {
        made += 1;
        ensure!(made <= SMALL_DISK_FILES, "the disk never gets full of files");
    }
    // Room for the beginning of a release.
    for number in 0..3 {
        std::fs::remove_file(filler.join(number.to_string())).context("free a few files")?;
    }
    attempt(fleet, "a disk that gets full while staging", HARMLESS("RB0503")).await?;
    std::fs::remove_dir_all(&filler).context("free the disk")
}

async fn attempt(fleet: &Fleet, fault: &str, expected: Expected) -> Result<()> {
    let before = expect_running(fleet, Version::V3_0_0).with_context(|| format!("before {fault}"))?;
    let answer = fleet.ctl.roll_back("v2.9.0").await?;
    let answer = answer.expect_code(expected.exit).with_context(|| fault.to_owned())?;
    ensure!(
        answer.text().contains(expected.code),
        "{fault}: the code is not {}: {answer}",
        expected.code
    );
    let after = Facts::gather(fleet)?;
    expect_nothing(
        &format!("after {fault}"),
        &after.changes_since(&before, expected.untouched),
    )?;
    expect_nothing(&format!("after {fault}"), &after.misfits(Version::V3_0_0))
}

/// A file that is away for a while.
struct Hidden {
    path: PathBuf,
    away: PathBuf,
}

impl Hidden {
    fn hide(path: &Path) -> Result<Self> {
        let away = std::env::temp_dir().join(format!("hidden-{:032x}", rand::random::<u128>()));
        std::fs::copy(path, &away).context("copy the file away")?;
        std::fs::remove_file(path).context("hide the file")?;
        Ok(Self {
            path: path.to_owned(),
            away,
        })
    }

    fn put_back(self) -> Result<()> {
        std::fs::copy(&self.away, &self.path).context("put the file back")?;
        std::fs::remove_file(&self.away).context("remove the copy")
    }
}

/// `pg_dump` and `pg_restore` of which the first loses the end of what it writes, when told to, and still ends with 0.
struct ShortDumps {
    dir: PathBuf,
}

impl ShortDumps {
    fn install(temp: &Path) -> Result<Self> {
        let dir = temp.join("bin");
        std::fs::create_dir(&dir).context("make a directory")?;
        let flag = dir.join("short");
        for name in ["pg_dump", "pg_restore"] {
            let real = format!("/usr/lib/postgresql/$(ls /usr/lib/postgresql | sort -n | tail -1)/bin/{name}");
            let script = format!(
                "#!/bin/sh\n\"{real}\" \"$@\" || exit\n[ {name} = pg_dump ] && [ -e {} ] || exit 0\n\
                 out=\nfor arg in \"$@\"; do\n\
                 \x20 case \"$prev\" in -f|--file) out=$arg;; esac\n\
                 \x20 case \"$arg\" in --file=*) out=${{arg#--file=}};; -f?*) out=${{arg#-f}};; esac\n\
                 \x20 prev=$arg\ndone\n[ -z \"$out\" ] || truncate -s -300 \"$out\"\n",
                flag.display()
            );
            let path = dir.join(name);
            std::fs::write(&path, script).context("write the program")?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).context("make it executable")?;
        }
        Ok(Self { dir })
    }

    fn set_short(&self, short: bool) -> Result<()> {
        let flag = self.dir.join("short");
        if short {
            std::fs::write(flag, "")
        } else {
            std::fs::remove_file(flag)
        }
        .context("set the flag")
    }
}
