//! The image of a systemd host: made once per machine by debootstrap, from the mirror that the machine itself uses, and
//! kept by docker. Takes half a minute the first time, and what is downloaded is about 50 MB.

use std::io::BufRead;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Counts up when what is in the image changes: a stale one has another name.
const RECIPE: u32 = 1;

const REPOSITORY: &str = "rollback-systemd";

/// Would meddle with the machine (its network is the container's), or find no hardware and fail.
const MASKED: [&str; 26] = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-logind.service",
    "systemd-modules-load.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-resolved.service",
    "systemd-sysctl.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd.service",
];

/// The name of the image, which exists when this returns.
pub fn ready() -> Result<String> {
    let codename = os_release("VERSION_CODENAME").context("this machine's /etc/os-release has no VERSION_CODENAME")?;
    let image = format!("{REPOSITORY}:{codename}-{RECIPE}");
    if exists(&image)? {
        return Ok(image);
    }
    // Tests are processes: one of them makes it, the others wait here.
    let path = std::env::temp_dir().join(format!("{REPOSITORY}.lock"));
    let lock = std::fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    lock.lock().context("wait for whoever makes the image")?;
    if !exists(&image)? {
        make(&image, &codename)?;
    }
    Ok(image)
}

fn exists(image: &str) -> Result<bool> {
    let output = Command::new("docker")
        .args(["images", "--quiet", image])
        .output()
        .context("docker is missing: apt-get install docker.io")?;
    ensure!(
        output.status.success(),
        "docker does not answer: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(!output.stdout.is_empty())
}

fn make(image: &str, codename: &str) -> Result<()> {
    let dir = tempfile::tempdir().context("temporary directory")?;
    let root = dir.path().join("root");
    let mut debootstrap = Command::new("debootstrap");
    debootstrap
        .args(["--variant=minbase", "--include=systemd,systemd-sysv,dbus", codename])
        .arg(&root)
        .arg(mirror(codename)?);
    if let Some(proxy) = apt_proxy() {
        debootstrap.env("http_proxy", proxy);
    }
    let output = debootstrap
        .stdin(Stdio::null())
        .output()
        .context("debootstrap is missing: apt-get install debootstrap")?;
    if !output.status.success() {
        bail!(
            "debootstrap ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    trim(&root)?;
    let mut tar = Command::new("tar")
        .arg("-C")
        .arg(&root)
        .args(["-c", "."])
        .stdout(Stdio::piped())
        .spawn()
        .context("start tar")?;
    let import = Command::new("docker")
        .args(["import", "-", image])
        .stdin(tar.stdout.take().context("a pipe was asked for")?)
        .output()
        .context("start docker")?;
    ensure!(tar.wait().context("wait for tar")?.success(), "tar failed");
    ensure!(
        import.status.success(),
        "docker import: {}",
        String::from_utf8_lossy(&import.stderr)
    );
    Ok(())
}

/// Masks units and removes what only takes space.
fn trim(root: &Path) -> Result<()> {
    for unit in MASKED {
        let path = root.join("etc/systemd/system").join(unit);
        std::os::unix::fs::symlink("/dev/null", &path).with_context(|| format!("mask {unit}"))?;
    }
    // At boot systemd empties /tmp, in which the directory of the test is mounted.
    std::os::unix::fs::symlink("/dev/null", root.join("etc/tmpfiles.d/tmp.conf")).context("spare /tmp")?;
    for dir in [
        "var/cache/apt",
        "var/lib/apt/lists",
        "usr/share/doc",
        "usr/share/locale",
        "usr/share/man",
    ] {
        match std::fs::remove_dir_all(root.join(dir)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("remove {dir}"));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// The first repository that apt is configured with here and that has this release, in whatever format its sources are.
fn mirror(codename: &str) -> Result<String> {
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(CODENAME) $(COMPONENT) $(REPO_URI)",
            "Created-By: Packages",
        ])
        .output()
        .context("start apt-get")?;
    output
        .stdout
        .lines()
        .map_while(|line| line.ok())
        .find_map(|line| Some(line.strip_prefix(&format!("{codename} main "))?.to_owned()))
        .with_context(|| format!("apt's sources have no repository of {codename} main"))
}

fn apt_proxy() -> Option<String> {
    let output = Command::new("apt-config")
        .args(["dump", "--format=%v%n", "Acquire::http::Proxy"])
        .output()
        .ok()?;
    let proxy = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!proxy.is_empty()).then_some(proxy)
}

fn os_release(key: &str) -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    text.lines()
        .find_map(|line| Some(line.strip_prefix(key)?.strip_prefix('=')?.trim_matches('"').to_owned()))
}
