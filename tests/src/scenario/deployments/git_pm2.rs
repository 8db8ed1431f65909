//! A Node.js service on two hosts behind nginx, each with a git repository, `npm ci` and pm2. v3.0.0 is live, with what
//! people leave behind in a live tree: a tracked file that was edited in place, and a local file that git ignores, at a
//! path where v2.9.0 has a file of its own. A checkout in place would overwrite that one and say nothing.
//!
//! First v2.9.0 never gets healthy on the first host: everything is undone. Then it does, and both go back. The second
//! host has lost v2.9.0's tree: the agent makes it anew and runs `npm ci` in it.
//!
//! pm2, `/proc`, git, the files and the service itself are asked, each for itself.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::on_control;
use crate::control::Control;
use crate::deployed::git::{GitApp, PROCESS, Repository};
use crate::deployed::{Deployed, HEALTHY_WITHIN, behind_nginx, deploy, wait_served};
use crate::facts::curl;
use crate::pm2::Pm2;
use crate::prober::Prober;
use crate::process;
use crate::scenario::{Found, Options, found};
use crate::zekka::Version;

/// The agents' patience with v2.9.0, which is spent in full once. A start takes about two seconds.
const PATIENCE: &str = "6s";

/// Answers that are seen before and after a rollback.
const ANSWERED: usize = 25;

/// What the way back may take beyond a start by hand: pm2 is a program of its own for everything that it is asked, and
/// each one takes a third of a second on a good day.
const ASKING: Duration = Duration::from_secs(4);

/// In v2.9.0 it is tracked, later it is ignored.
const LOCAL: &str = "config/.env";

const EDITED: &str = "server.js";

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    options.say("Deploying v2.9.0 and v3.0.0 from git, with npm and pm2 …");
    let (first, second) = (Host::lay_out(control, "app-1")?, Host::lay_out(control, "app-2")?);
    let hosts = [&first, &second];
    for host in hosts {
        deploy(host, Version::V2_9_0).await?;
    }
    let apps: [(&str, &dyn Deployed); 2] = [("app-1", &first), ("app-2", &second)];
    let nginx = behind_nginx(control, &apps, Version::V2_9_0).await?;
    control.ctl.record("v2.9.0").await?.expect_code(0)?;
    for host in hosts {
        deploy(host, Version::V3_0_0).await?;
    }
    control.ctl.record("v3.0.0").await?.expect_code(0)?;
    let by_hand = first.start_by_hand().await?;
    let lost = second.tree(Version::V2_9_0);
    let lost = lost.to_str().context("the directory's name is UTF-8")?;
    second.app.repository.git(&["worktree", "remove", "--force", lost])?;
    let left = [first.leave_things_behind()?, second.leave_things_behind()?];

    options.say("v2.9.0 will never be healthy on app-1. Rolling back …");
    let users = Prober::start(nginx.url("/api/version"))?;
    let at_first = Prober::start(first.url("/api/version"))?;
    users.until_served(ANSWERED).await?;
    first.set_unhealthy(true)?;
    let undone = control.ctl.roll_back("v2.9.0").await?.expect_code(5)?;
    at_first.until_served(ANSWERED).await?;
    let result = undone.json()?;
    ensure!(
        result["state"] == "undone" && result["blocked"] == false,
        "the state is {}: {undone}",
        result["state"]
    );
    ensure!(
        result["problem"]["code"] == "RB0500" && result["failed_hosts"] == json!(["app-1"]),
        "the problem is {}, and {} failed: {undone}",
        result["problem"],
        result["failed_hosts"]
    );
    let back = at_first.stop().await?.downtime().context("app-1 served")?.longest;
    ensure!(
        back <= by_hand + ASKING,
        "app-1 served nobody for {back:?}; a start by hand takes {by_hand:?}"
    );
    for (host, left) in hosts.into_iter().zip(&left) {
        host.expect_running(Version::V3_0_0)?;
        left.expect_untouched()?;
    }

    options.say("v2.9.0 is healthy again. Rolling back …");
    first.set_unhealthy(false)?;
    let answer = control.ctl.roll_back("v2.9.0").await?.expect_code(0)?;
    users.until_served(ANSWERED).await?;
    let samples = users.stop().await?;
    for (host, left) in hosts.into_iter().zip(&left) {
        host.expect_running(Version::V2_9_0)?;
        left.expect_untouched()?;
        let own = host.tree(Version::V2_9_0).join(LOCAL);
        let own = std::fs::read_to_string(&own).with_context(|| format!("read {}", own.display()))?;
        ensure!(own == TRACKED, "v2.9.0's {LOCAL} is {own:?}");
    }
    let mut all = found(json!({
        "exit_code": answer.code,
        "state": answer.json()?["state"],
        "undone_exit_code": undone.code,
        "undone_state": result["state"],
        "start_by_hand_ms": by_hand.as_millis(),
        "longest_gap_of_undone_host_ms": back.as_millis(),
    }));
    all.extend(found(samples.figures()));
    ensure!(samples.failed() == 0, "users noticed: {}", samples.figures());
    Ok(all)
}

/// What v2.9.0 has at [`LOCAL`].
const TRACKED: &str = "# of v2.9.0\n";

/// A host whose agent is less patient than others.
#[derive(Debug)]
struct Host {
    app: GitApp,
}

impl Deployed for Host {
    fn port(&self) -> u16 {
        self.app.port()
    }

    fn install(&self, version: Version) -> Result<()> {
        self.app.install(version)
    }

    fn component(&self) -> String {
        self.app.component().replace(HEALTHY_WITHIN, PATIENCE)
    }
}

impl Host {
    fn lay_out(control: &mut Control, host: &str) -> Result<Self> {
        let pm2 = Pm2::of(control, host)?;
        let app = GitApp::lay_out(&pm2, &control.host_dir(host).join("opt/zekka"))?;
        // Before anybody knows the tag: nothing of this story moves one.
        let repository = &app.repository;
        repository.git(&["checkout", "--quiet", "--detach", Version::V2_9_0.name()])?;
        let file = repository.dir.join(LOCAL);
        std::fs::create_dir_all(file.parent().context("the file is in a directory")?).context("make its directory")?;
        std::fs::write(&file, TRACKED).with_context(|| format!("write {LOCAL}"))?;
        repository.git(&["add", "--force", LOCAL])?;
        repository.git(&["commit", "--quiet", "--message", "a file that is local from v2.9.1 on"])?;
        repository.git(&["tag", "--force", Version::V2_9_0.name()])?;
        repository.git(&["checkout", "--quiet", "main"])?;
        Ok(Self { app })
    }

    fn tree(&self, version: Version) -> PathBuf {
        self.app.root.join("releases").join(version.name())
    }

    fn set_unhealthy(&self, unhealthy: bool) -> Result<()> {
        let faults = json!({ Version::V2_9_0.name(): { "unhealthy": unhealthy } });
        std::fs::write(self.app.root.join("faults.json"), faults.to_string()).context("write faults.json")
    }

    /// How long pm2 takes to bring back what runs, until it serves.
    async fn start_by_hand(&self) -> Result<Duration> {
        let begun = Instant::now();
        self.app.pm2.run(&["delete", PROCESS], &self.app.root)?;
        self.app
            .pm2
            .run(&["start", "ecosystem.config.cjs"], &self.app.current())?;
        wait_served(self, Version::V3_0_0).await?;
        Ok(begun.elapsed())
    }

    fn leave_things_behind(&self) -> Result<LeftBehind> {
        let dir = self.tree(Version::V3_0_0);
        let local = dir.join(LOCAL);
        std::fs::create_dir_all(local.parent().context("the file is in a directory")?).context("make its directory")?;
        std::fs::write(&local, "# of this host alone\n").with_context(|| format!("write {}", local.display()))?;
        let edited = dir.join(EDITED);
        let text = std::fs::read_to_string(&edited).with_context(|| format!("read {}", edited.display()))?;
        std::fs::write(&edited, format!("{text}\n// a fix in place\n")).context("edit a tracked file")?;
        let left = LeftBehind {
            status: status(&dir)?,
            files: LeftBehind::read(&dir)?,
            dir,
        };
        let expected = [
            format!(" M {EDITED}"),
            "!! config/".to_owned(),
            "!! node_modules/".to_owned(),
        ];
        ensure!(left.status == expected, "git sees {:?}, not {expected:?}", left.status);
        Ok(left)
    }

    /// This version is what everybody sees, whomever one asks.
    fn expect_running(&self, version: Version) -> Result<()> {
        self.judge(version)
            .with_context(|| format!("{} at {}", version.name(), self.app.root.display()))
    }

    fn judge(&self, version: Version) -> Result<()> {
        let dir = std::fs::canonicalize(self.tree(version)).context("there is no tree")?;
        let listed = self.app.pm2.list()?;
        let [process] = listed.as_slice() else {
            anyhow::bail!("pm2 has {listed:?}");
        };
        ensure!(
            process.name == PROCESS && process.status == "online" && process.restarts == 0 && process.cwd == dir,
            "pm2 says {process:?}"
        );
        let listed_greeting = process.env.get("GREETING").map(String::as_str);
        ensure!(
            listed_greeting == Some(version.greeting()),
            "pm2 started it with GREETING {listed_greeting:?}"
        );
        let cwd = std::fs::read_link(format!("/proc/{}/cwd", process.pid)).context("read the process's directory")?;
        ensure!(cwd == dir, "process {} works in {}", process.pid, cwd.display());
        let environ = process::environ(process.pid)?;
        ensure!(
            environ.get("GREETING").map(String::as_str) == Some(version.greeting()),
            "process {} has GREETING {:?}",
            process.pid,
            environ.get("GREETING")
        );
        let served = self.served()?;
        served.expect(version)?;
        ensure!(
            served.pid == u64::from(process.pid),
            "process {} answers, pm2's is {}",
            served.pid,
            process.pid
        );
        let health = curl(&self.url("/api/health"))?;
        ensure!(
            health.status == 200,
            "health answers {}: {}",
            health.status,
            health.body
        );
        let (live, tagged) = (self.app.live_commit()?, self.app.repository.resolve(version.name())?);
        ensure!(live == tagged, "{live} is checked out, and the tag is {tagged}");
        let modules = dir.join("node_modules");
        ensure!(
            modules.join("greeter").exists() && !modules.join("linter").exists(),
            "{} is not what npm ci --omit=dev makes",
            modules.display()
        );
        Ok(())
    }
}

/// A live tree as people left it.
#[derive(Debug)]
struct LeftBehind {
    dir: PathBuf,
    /// Of git.
    status: Vec<String>,
    files: [String; 2],
}

impl LeftBehind {
    fn read(dir: &Path) -> Result<[String; 2]> {
        let read = |name| std::fs::read_to_string(dir.join(name)).with_context(|| format!("read {name}"));
        Ok([read(LOCAL)?, read(EDITED)?])
    }

    fn expect_untouched(&self) -> Result<()> {
        let (files, status) = (Self::read(&self.dir)?, status(&self.dir)?);
        ensure!(
            files == self.files && status == self.status,
            "{} was {:?} and is {status:?}; {LOCAL} and {EDITED} were {:?} and are {files:?}",
            self.dir.display(),
            self.status,
            self.files
        );
        Ok(())
    }
}

/// Changed and ignored files of a worktree, as git lists them.
fn status(dir: &Path) -> Result<Vec<String>> {
    let worktree = Repository { dir: dir.to_owned() };
    let args = ["-c", "core.quotePath=false", "status", "--porcelain", "--ignored"];
    let mut lines: Vec<String> = worktree.git(&args)?.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}
