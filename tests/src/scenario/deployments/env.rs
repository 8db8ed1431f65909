//! An env file on each of two hosts: of a release directory whose process is started by a command, and of a container.
//! v2.9.1 differs from v2.9.0 in nothing else, so the applications are not switched, but stopped and started around the
//! rename of the file. What counts is what the running process has afterwards.
//!
//! The values are secrets. Whatever leaves a host is searched for them: the coordinator's files, all logs, every span, and
//! everything that rollbackctl prints.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::on_traced_control;
use crate::collector::Collector;
use crate::control::Control;
use crate::ctl::Answer;
use crate::deployed::container::ContainerApp;
use crate::deployed::release::ReleaseApp;
use crate::deployed::{Deployed, wait_served};
use crate::docker::{AppImages, Docker};
use crate::process::{self, run};
use crate::scenario::trace::steps_of;
use crate::scenario::{Found, Options, expect_nothing, found};
use crate::zekka::{Version, write_secret};

/// The content of both releases.
const CONTENT: Version = Version::V2_9_0;

/// A variable that v2.9.1 alone has.
const ADDED: &str = "REPORTS_KEY";

pub async fn tell(options: Options) -> Result<Found> {
    let collector = Collector::start().await?;
    on_traced_control(options, Some(collector.endpoint()), async |control| {
        story(control, &collector, options).await
    })
    .await
}

async fn story(control: &mut Control, collector: &Collector, options: Options) -> Result<Found> {
    options.say("Deploying one version with two env files, one after the other …");
    let secrets = Secrets::new();
    let docker = Docker::of(control).await?;
    let images = AppImages::build(&docker, &control.binaries)?;
    let direct = ReleaseApp::of(control, "app-1")?;
    direct.install(CONTENT)?;
    let mut boxed = ContainerApp::new(&docker, &images, "app-2")?;
    let file = control.host_dir("app-2").join("etc/zekka.env");
    std::fs::create_dir_all(file.parent().context("the file is in a directory")?).context("make its directory")?;
    boxed.run_args = vec!["--env-file".to_owned(), file.display().to_string()];
    let hosts = Hosts { direct, boxed, file };

    hosts.deploy(Version::V2_9_0, &secrets).await?;
    control.start_agent("app-1", "app", &hosts.direct.component()).await?;
    let component = format!(
        "[[component]]\nname = \"env\"\nkind = \"env-file\"\npath = \"{0}\"\n{1}reads = [\"env\"]\nenv_file = \"{0}\"\n",
        hosts.file.display(),
        hosts.boxed.component()
    );
    control.start_agent("app-2", "app", &component).await?;
    control.wait_connected(&["app-1", "app-2"]).await?;
    let mut said = vec![control.ctl.record("v2.9.0").await?.expect_code(0)?];
    hosts.deploy(Version::V2_9_1, &secrets).await?;
    said.push(control.ctl.record("v2.9.1").await?.expect_code(0)?);
    hosts.expect_effective(Version::V2_9_1, &secrets)?;

    // It ends with 2: there is something to do.
    for format in ["table", "json"] {
        let plan = control
            .ctl
            .run(&["fleet", "plan", "--to", "v2.9.0", "-o", format])
            .await?;
        said.push(plan.expect_code(2)?);
    }
    expect_names_only(&said[said.len() - 1])?;
    options.say("Rolling back …");
    let begun = Timestamp::now();
    let answer = control.ctl.roll_back("v2.9.0").await?.expect_code(0)?;
    let result = answer.json()?;
    hosts.expect_effective(Version::V2_9_0, &secrets)?;
    hosts.expect_staged_first(begun)?;

    let id = result["rollback_id"]
        .as_str()
        .context("the answer names the rollback")?;
    for args in [
        &["rollback", "show", id][..],
        &["release", "show", "v2.9.1", "-o", "json"],
        &["fleet", "status"],
    ] {
        said.push(control.ctl.run(args).await?.expect_code(0)?);
    }
    let report = control.ctl.show(id).await?;
    let trace_id = result["trace_id"].as_str().context("the answer names the trace")?;
    let trace = collector.whole_trace(trace_id, &steps_of(&report)?).await?;
    said.push(answer.clone());
    let mut texts: BTreeMap<String, String> = said.into_iter().map(|a| (a.command.clone(), a.text())).collect();
    texts.insert("rollback show -o json".to_owned(), report.to_string());
    for host in ["app-1", "app-2"] {
        let agent = control.agent(host)?;
        let mut observe = Command::new(agent.program());
        observe.args(["observe", "--config"]).arg(agent.spec.config());
        texts.insert(format!("rollback-agent observe on {host}"), run(&mut observe)?);
    }
    for span in collector.spans() {
        texts
            .entry("spans".to_owned())
            .or_default()
            .push_str(&format!("{span:?}\n"));
    }
    let files = secrets.expect_nowhere(control, &hosts, &texts)?;
    Ok(found(json!({
        "exit_code": answer.code,
        "state": result["state"],
        "spans": trace.spans,
        "searched_files": files,
        "searched_texts": texts.len(),
    })))
}

/// The plan changes the env files and nothing else, and says which variables, by name.
fn expect_names_only(plan: &Answer) -> Result<()> {
    let json = plan.json()?;
    let changes = json["plan"]["changes"].as_array().context("the plan lists changes")?;
    let what: Vec<String> = changes
        .iter()
        .filter(|c| c["from"] != c["to"])
        .map(|c| format!("{}/{}", text(&c["host"]), text(&c["component"])))
        .collect();
    ensure!(what == ["app-1/env", "app-2/env"], "the plan changes {what:?}: {plan}");
    let named = |name: &str| plan.stdout.contains(name);
    ensure!(
        ["GREETING", "SESSION_SECRET", ADDED].into_iter().all(named),
        "the variables that change are not named: {plan}"
    );
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// One value for each version that nobody else could have come by.
#[derive(Debug)]
struct Secrets(BTreeMap<Version, String>);

impl Secrets {
    fn new() -> Self {
        let secret = || format!("{:032x}", rand::random::<u128>());
        Self([Version::V2_9_0, Version::V2_9_1].map(|v| (v, secret())).into())
    }

    fn of(&self, version: Version) -> &str {
        &self.0[&version]
    }

    /// What the process of a version has; `None` for what it must not have.
    fn expected(&self, version: Version) -> [(&'static str, Option<&str>); 3] {
        let added = (version == Version::V2_9_1).then(|| self.of(version));
        [
            ("GREETING", Some(version.greeting())),
            ("SESSION_SECRET", Some(self.of(version))),
            (ADDED, added),
        ]
    }

    /// The env file of a version; `own` are further lines.
    fn file(&self, version: Version, own: &str) -> String {
        let variables = self.expected(version);
        let lines = variables
            .iter()
            .filter_map(|(name, value)| Some(format!("{name}={}\n", (*value)?)));
        format!("# zekka {}\n{own}{}", version.name(), lines.collect::<String>())
    }

    fn are_in(&self, bytes: &[u8]) -> bool {
        let holds = |secret: &String| bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
        self.0.values().any(holds)
    }

    /// They are in no file of the fleet's directory that is not a host's own, nor in any of these texts. Of a host's own
    /// files, an agent's ledger is searched, too: what it holds is sent to the coordinator. How many files were searched.
    fn expect_nowhere(&self, control: &Control, hosts: &Hosts, texts: &BTreeMap<String, String>) -> Result<usize> {
        let mut leaks: Vec<String> = texts
            .iter()
            .filter(|(_, text)| self.are_in(text.as_bytes()))
            .map(|(what, _)| what.clone())
            .collect();
        let files = files(control.dir())?;
        let (mut searched, mut own) = (Vec::new(), 0);
        for path in &files {
            let beneath = path.strip_prefix(control.dir()).unwrap_or(path);
            let found = self.are_in(&std::fs::read(path).with_context(|| format!("read {}", path.display()))?);
            let keeps = |part: &str| beneath.components().any(|c| c.as_os_str() == part);
            // Theirs by right: the env files and what the agents keep of them.
            if beneath.starts_with("hosts") && (!keeps("agent") || keeps("vault")) {
                own += usize::from(found);
                continue;
            }
            searched.push(beneath.display().to_string());
            if found {
                leaks.push(beneath.display().to_string());
            }
        }
        // Where they must be they are found: the search can find them. Two live files, and both versions in two vaults.
        ensure!(own >= 2 + 4, "the secrets are in {own} of the hosts' own files alone");
        for expected in [
            "coordinator/state/",
            "log/coordinator.log",
            "log/agent-app-1.log",
            "hosts/app-2/agent/state/",
        ] {
            ensure!(
                searched.iter().any(|name| name.starts_with(expected)),
                "nothing of {expected} was searched: {searched:?}"
            );
        }
        ensure!(hosts.file.starts_with(control.dir()), "the env file is elsewhere");
        expect_nothing("a secret was found in", &leaks)?;
        Ok(searched.len())
    }
}

#[derive(Debug)]
struct Hosts {
    direct: ReleaseApp,
    boxed: ContainerApp,
    /// Of the container.
    file: PathBuf,
}

impl Hosts {
    fn direct_file(&self, version: Version, secrets: &Secrets) -> String {
        secrets.file(version, &format!("PORT={}\n", self.direct.port()))
    }

    /// Writes the env files of a version and lets the applications read them.
    async fn deploy(&self, version: Version, secrets: &Secrets) -> Result<()> {
        let host = &self.direct.host;
        host.replace(CONTENT, || {
            write_secret(&host.env_file(), &self.direct_file(version, secrets))
        })?;
        write_secret(&self.file, &secrets.file(version, ""))?;
        self.boxed.install(CONTENT)?;
        wait_served(&self.direct, CONTENT).await?;
        wait_served(&self.boxed, CONTENT).await
    }

    /// The files have this version's content, and so have the processes that run now.
    fn expect_effective(&self, version: Version, secrets: &Secrets) -> Result<()> {
        let host = &self.direct.host;
        let contents = [
            (host.env_file(), self.direct_file(version, secrets)),
            (self.file.clone(), secrets.file(version, "")),
        ];
        for (path, content) in contents {
            let shown = path.display();
            let found = std::fs::read(&path).with_context(|| format!("read {shown}"))?;
            ensure!(found == content.as_bytes(), "{shown} is not that of {}", version.name());
            let metadata = std::fs::metadata(&path).with_context(|| format!("look at {shown}"))?;
            let mode = metadata.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "{shown} has mode {mode:o}");
        }
        let pid = host.pid().context("the application of app-1 runs")?;
        let container = self.boxed.facts()?;
        ensure!(container.running, "{} does not run", container.name);
        let seen = [
            ("/proc of the process of app-1", process::environ(pid)?),
            ("/proc of the container's process", process::environ(container.pid)?),
            ("docker inspect of the container", container.env),
        ];
        for (whose, env) in &seen {
            for (name, expected) in secrets.expected(version) {
                let found = env.get(name).map(String::as_str);
                // Without the values: this is a log, too.
                ensure!(
                    found == expected,
                    "{whose}: {name} is not that of {} (there: {}, wanted: {})",
                    version.name(),
                    found.is_some(),
                    expected.is_some()
                );
            }
        }
        for app in [&self.direct as &dyn Deployed, &self.boxed] {
            let served = app.served()?;
            ensure!(
                served.version == CONTENT.name() && served.greeting == version.greeting(),
                "{} serves {served:?}",
                app.address()
            );
        }
        Ok(())
    }

    /// The new content was written while the application still ran: a rename keeps the time of the file's content.
    fn expect_staged_first(&self, begun: Timestamp) -> Result<()> {
        let host = &self.direct.host;
        let written = std::fs::metadata(host.env_file())
            .and_then(|m| m.modified())
            .context("look at the env file")?;
        let written = Timestamp::try_from(written).context("the time of the env file")?;
        let effects = host.timed_effects()?;
        let of_rollback: Vec<_> = effects.iter().filter(|(at, _, _)| *at >= begun).collect();
        let [(stopped, stop, _), (_, start, _)] = of_rollback.as_slice() else {
            anyhow::bail!("the application noted {of_rollback:?}");
        };
        ensure!(
            stop == "stop" && start == "start" && begun <= written && written < *stopped,
            "the rollback began at {begun}, the env file was written at {written}, the application noted {of_rollback:?}"
        );
        Ok(())
    }
}

/// All files beneath a directory. Links are not followed.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut pending) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry.context("list a directory")?;
            let kind = entry.file_type().context("look at a file")?;
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}
