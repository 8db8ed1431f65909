//! Finding releases that were never recorded: directories, archives and env files, by the conventions of the runbooks.
//! What archives may contain is in `archive.rs`.

mod host;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;

use host::{Host, names, read, write};
use rollback_agent::driver::env_file::{EnvFileConfig, EnvFileDriver};
use rollback_agent::driver::release_dir::{ReleaseDirConfig, ReleaseDirDriver};
use rollback_agent::driver::{Action, Driver};
use rollback_agent::files::sha256_hex;
use rollback_proto::problem::Code;

struct App {
    host: Host,
    root: PathBuf,
    driver: ReleaseDirDriver,
}

/// v3.0.0 is live, in the layout of the runbook.
fn app(extra: &str) -> App {
    let host = Host::new();
    let root = host.path().join("zekka");
    write(&root.join("releases/v3.0.0/app.js"), "// v3.0.0");
    symlink("releases/v3.0.0", root.join("current")).expect("link");
    let text = format!("root = '{}'\n{extra}", root.display());
    let config: ReleaseDirConfig = toml::from_str(&text).expect("config");
    let driver = ReleaseDirDriver::new("part", config, Arc::clone(&host.vault)).expect("driver");
    App { host, root, driver }
}

fn tar(content: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "app.js", content.as_bytes())
        .expect("append");
    builder.into_inner().expect("tar")
}

/// `cp -r /opt/zekka/backups/v2.9.0 current`, without the copying.
#[tokio::test]
async fn a_backup_directory_becomes_a_release_that_can_be_switched_to() {
    let a = app("");
    write(&a.root.join("backups/v2.9.0/app.js"), "// v2.9.0");
    host::script(&a.root.join("backups/v2.9.0/bin/run"), "exit 0");
    let found = a.driver.resolve("v2.9.0").await.expect("resolve");
    assert_eq!(found.revision.version, "v2.9.0");
    assert!(
        found.summary.starts_with("backups/v2.9.0: 2 files"),
        "{}",
        found.summary
    );
    assert_eq!(
        names(&a.root),
        ["backups", "current", "releases"],
        "nothing is written beneath root"
    );
    assert_eq!(names(&a.root.join("releases")), ["v3.0.0"]);

    // The backup may go: the vault has it.
    std::fs::remove_dir_all(a.root.join("backups")).expect("remove");
    let live = a.driver.observe().await.expect("observe").revision;
    let step = |action| a.host.step(action, &live, &found.revision);
    assert!(
        a.driver
            .prepare(&step(Action::Prepare))
            .await
            .iter()
            .all(|f| f.severity != rollback_agent::driver::Severity::Blocker)
    );
    a.driver.stage(&step(Action::Stage)).await.expect("stage");
    let done = a.driver.switch(&step(Action::Switch)).await.expect("switch");
    assert_eq!(done.observed, Some(found.revision));
    assert_eq!(read(&a.root.join("current/app.js")), "// v2.9.0");
}

#[tokio::test]
async fn the_first_place_counts_and_the_others_are_named() {
    let a = app("");
    write(
        &a.root.join("artifacts/v2.9.0.tar"),
        "not an archive, and not looked into",
    );
    write(&a.root.join("backups/v2.9.0/app.js"), "from backups");
    write(&a.root.join("releases/v2.9.0/app.js"), "from releases");
    let found = a.driver.resolve("v2.9.0").await.expect("resolve");
    assert!(a.host.vault.has(&sha256_hex(b"from releases")));
    assert!(!a.host.vault.has(&sha256_hex(b"from backups")));
    for part in [
        "releases/v2.9.0: 1 files",
        "not compared with: backups/v2.9.0, artifacts/v2.9.0.tar",
    ] {
        assert!(found.summary.contains(part), "{part} is not in: {}", found.summary);
    }
    let again = a.driver.resolve("v2.9.0").await.expect("again");
    assert_eq!(again.revision, found.revision);
}

#[tokio::test]
async fn what_is_not_there_is_said_with_the_places() {
    let a = app("sources = ['backups', '/nowhere/at/all']");
    // In no source; a name that only begins like it; a link, which could lead anywhere; nothing in it.
    write(&a.root.join("releases/v2.9.0/app.js"), "x");
    write(&a.root.join("backups/v2.9.0.1/app.js"), "x");
    write(&a.root.join("backups/v2.9.0.tar.bz2"), "x");
    symlink("/etc", a.root.join("backups/v2.9.0")).expect("link");
    let problem = a.driver.resolve("v2.9.0").await.expect_err("not there");
    assert_eq!(problem.code, Code::Unresolved);
    for part in ["zekka/backups", "/nowhere/at/all", ".tar.zst"] {
        assert!(problem.message.contains(part), "{part} is not in: {problem}");
    }
    std::fs::remove_file(a.root.join("backups/v2.9.0")).expect("remove");
    std::fs::create_dir(a.root.join("backups/v2.9.0")).expect("directory");
    let problem = a.driver.resolve("v2.9.0").await.expect_err("empty");
    assert_eq!(problem.code, Code::Unresolved);
    assert!(problem.message.contains("no file in it"), "{problem}");
    for bad in ["../../etc", "-x", "a/b", ""] {
        assert_eq!(
            a.driver.resolve(bad).await.expect_err("a bad name").code,
            Code::BadName,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn an_archive_behind_a_link_or_that_is_a_pipe_is_not_opened() {
    let a = app("");
    let at = a.root.join("backups/v2.9.0.tar");
    write(&a.root.join("elsewhere.tar"), "x");
    std::fs::create_dir(a.root.join("backups")).expect("directory");
    symlink("../elsewhere.tar", &at).expect("link");
    assert_eq!(
        a.driver.resolve("v2.9.0").await.expect_err("a link").code,
        Code::BadLayout
    );
    std::fs::remove_file(&at).expect("remove");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &at,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("pipe");
    assert_eq!(
        a.driver.resolve("v2.9.0").await.expect_err("a pipe").code,
        Code::BadLayout
    );
    std::fs::remove_file(&at).expect("remove");
    std::fs::write(&at, tar("x")).expect("write");
    a.driver.resolve("v2.9.0").await.expect("a file");
}

#[tokio::test]
async fn a_damaged_backup_directory_is_refused() {
    let a = app("");
    let dir = a.root.join("backups/v2.9.0");
    write(&dir.join("app.js"), "// v2.9.0");
    write(
        &dir.join("SHA256SUMS"),
        &format!("{}  app.js\n", sha256_hex(b"// v2.9.0")),
    );
    let found = a.driver.resolve("v2.9.0").await.expect("whole");
    assert!(
        found.summary.contains("1 files checked against SHA256SUMS"),
        "{}",
        found.summary
    );
    write(&dir.join("app.js"), "// v2.9");
    let problem = a.driver.resolve("v2.9.0").await.expect_err("damaged");
    assert_eq!(problem.code, Code::RevisionDamaged);
    assert!(problem.message.contains("app.js differs"), "{problem}");
}

#[test]
fn sources_that_leave_the_root_are_refused() {
    let host = Host::new();
    let text = format!("root = '{}'\nsources = ['../elsewhere']", host.path().display());
    let config: ReleaseDirConfig = toml::from_str(&text).expect("config");
    let problem = ReleaseDirDriver::new("part", config, Arc::clone(&host.vault)).expect_err("refused");
    assert_eq!(problem.code, Code::BadConfig);
}

/// `cp .env.production.backup .env.production`, and names that say more.
#[tokio::test]
async fn env_files_are_found_beside_the_live_one() {
    let host = Host::new();
    let path = host.path().join("etc/.env.production");
    write(&path, "PASSWORD=correct-horse\n");
    let config = EnvFileConfig { path: path.clone() };
    let driver = EnvFileDriver::new("part", config, Arc::clone(&host.vault)).expect("driver");
    let beside = |end: &str| host.path().join(format!("etc/.env.production{end}"));

    let problem = driver.resolve("v2.9.0").await.expect_err("none is there");
    assert_eq!(problem.code, Code::Unresolved);
    for end in [".v2.9.0", "-v2.9.0", ".backup"] {
        assert!(problem.message.contains(&format!(".env.production{end}")), "{problem}");
    }
    // A file that names no release gives its name to none: the next release may find the same one.
    write(&beside(".backup"), "PASSWORD=correct-horse\n");
    for release in ["v2.8.0", "v2.9.0"] {
        assert_eq!(driver.resolve(release).await.expect("found").revision.version, release);
    }
    let live = driver.observe().await.expect("observe").revision;
    assert!(!live.version.starts_with('v'), "{}", live.version);
    // It has one once it went live as that release.
    write(&path, "PASSWORD=of-the-bad-release\n");
    let bad = driver.retain("v3.0.0").await.expect("retain").revision;
    let good = driver.resolve("v2.9.0").await.expect("found").revision;
    let switch = host.step(Action::Switch, &bad, &good);
    let seen = driver
        .switch(&switch)
        .await
        .expect("switch")
        .observed
        .expect("observed");
    assert_eq!(seen.version, "v2.9.0");
    assert_eq!(driver.observe().await.expect("observe").revision.version, "v2.9.0");

    // The worst first: each better one is preferred to it.
    let mut said = String::new();
    for (end, password) in [
        (".backup", "from-backup"),
        ("-v2.9.0", "from-dash"),
        (".v2.9.0", "from-dot"),
    ] {
        write(&beside(end), &format!("PASSWORD={password}\n"));
        let found = driver.resolve("v2.9.0").await.expect(end);
        assert_eq!(found.revision.version, "v2.9.0");
        assert!(
            host.vault.has(&sha256_hex(format!("PASSWORD={password}\n").as_bytes())),
            "{end}"
        );
        assert_eq!(
            found.summary.contains("names no release"),
            end == ".backup",
            "{}",
            found.summary
        );
        said += &found.summary;
    }
    write(&beside(".v2.8.0"), "PASSWORD=correct-horse\n");
    let same = driver.resolve("v2.8.0").await.expect("resolve");
    assert!(same.summary.contains("the live file is the same"), "{}", same.summary);
    said += &same.summary;
    for secret in ["from-backup", "from-dash", "from-dot", "correct-horse"] {
        assert!(!said.contains(secret), "{secret} in {said}");
    }
    assert_eq!(read(&path), "PASSWORD=correct-horse\n", "the live file is not touched");

    std::fs::set_permissions(path.parent().expect("parent"), std::fs::Permissions::from_mode(0o777)).expect("mode");
    assert_eq!(driver.resolve("v2.9.0").await.expect_err("open").code, Code::BadLayout);
}
