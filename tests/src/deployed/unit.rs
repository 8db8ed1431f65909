//! A release directory on a host with a real systemd, whose application is a unit with `Restart=always`: whoever stops the
//! process in another way than through systemd gets it back within 100 ms.
//!
//! The agent is a unit of that systemd, too, as on any host. The coordinator and the harness are outside; the fleet's
//! directory and loopback are the same on both sides, PIDs are not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::{Deployed, HEALTHY_WITHIN, key};
use crate::agent::AgentSpec;
use crate::binaries::Binaries;
use crate::control::{Control, Held};
use crate::process::run;
use crate::systemd_host::SystemdHost;
use crate::zekka::{AppHost, Version, write_secret};

/// The application's unit.
pub const UNIT: &str = "zekka.service";

const AGENT: &str = "rollback-agent.service";

#[derive(Clone, Debug)]
pub struct UnitApp {
    pub host: AppHost,
    pub systemd: Arc<SystemdHost>,
    /// How long an agent waits for it.
    pub healthy_within: &'static str,
    /// `[[check]]` tables for the agent of its host.
    pub checks: String,
    binaries: Binaries,
}

impl UnitApp {
    /// In the directory of a host: `opt/zekka`. The unit is there, and enabled by nobody. Its systemd ends after the agents
    /// outside, with everything in it.
    pub fn lay_out(control: &mut Control, name: &str) -> Result<Self> {
        let host = AppHost::lay_out(name, &control.host_dir(name).join("opt/zekka"))?;
        let programs = control.binaries.path("rollback-agent");
        let programs = programs.parent().context("a program is in a directory")?;
        let systemd = Arc::new(SystemdHost::start(control.dir(), programs)?);
        control.hold(Machine(Arc::clone(&systemd)));
        let (root, current) = (host.root.display(), host.current());
        let unit = format!(
            "[Unit]\nDescription=zekka\nStartLimitIntervalSec=0\n\
             [Service]\nWorkingDirectory={current}\nExecStart={current}/bin/zekka-app serve\n\
             EnvironmentFile={root}/.env.production\nRestart=always\nRestartSec=100ms\n",
            current = current.display(),
        );
        systemd.install_unit(UNIT, &unit)?;
        Ok(Self {
            host,
            systemd,
            healthy_within: HEALTHY_WITHIN,
            checks: String::new(),
            binaries: control.binaries.clone(),
        })
    }

    /// Enrolls an agent and runs it inside, as a unit. Waits until the coordinator is in touch with it.
    pub async fn add_agent(&self, control: &Control) -> Result<()> {
        let name = &self.host.name;
        let spec = AgentSpec {
            name: name.clone(),
            host_dir: control.host_dir(name),
            coordinators: control.endpoints(),
            otlp: None,
            components: self.component(),
            tier: "app",
        };
        spec.write_config()?;
        let program = self.binaries.path("rollback-agent");
        run(&mut spec.enroll_command(&program, &control.ctl.token(name).await?))?;
        let unit = format!(
            "[Service]\nExecStart={program} run --config {config}\n\
             StandardOutput=append:{log}\nStandardError=append:{log}\n",
            program = program.display(),
            config = spec.config().display(),
            log = control.log(&format!("agent-{name}")).display(),
        );
        self.systemd.install_unit(AGENT, &unit)?;
        self.systemd.exec(&["systemctl", "start", AGENT])?;
        control.wait_connected(&[name]).await
    }

    /// The env file of a version.
    pub fn env(&self, version: Version) -> String {
        format!("PORT={}\nGREETING={}\n", self.host.port, version.greeting())
    }

    /// What systemd says of the unit.
    pub fn facts(&self) -> Result<UnitFacts> {
        let names = "ActiveState,SubState,MainPID,NRestarts,Restart";
        let text = self
            .systemd
            .exec(&["systemctl", "show", &format!("--property={names}"), UNIT])?;
        let value = |name: &str| -> Result<String> {
            let mut pairs = text.lines().filter_map(|line| line.split_once('='));
            let found = pairs.find(|(key, _)| *key == name);
            Ok(found
                .with_context(|| format!("systemd says nothing of {name}"))?
                .1
                .to_owned())
        };
        Ok(UnitFacts {
            state: format!("{} ({})", value("ActiveState")?, value("SubState")?),
            pid: value("MainPID")?.parse().context("read MainPID")?,
            automatic_restarts: value("NRestarts")?.parse().context("read NRestarts")?,
            policy: value("Restart")?,
        })
    }

    /// The directory in which a process works, by its PID inside.
    pub fn cwd(&self, pid: u32) -> Result<PathBuf> {
        let out = self.systemd.exec(&["readlink", &format!("/proc/{pid}/cwd")])?;
        Ok(PathBuf::from(out.trim_end()))
    }

    /// A variable of a process, by its PID inside.
    pub fn variable(&self, pid: u32, name: &str) -> Result<Option<String>> {
        let out = self.systemd.exec(&["cat", &format!("/proc/{pid}/environ")])?;
        let mut pairs = out.split('\0').filter_map(|pair| pair.split_once('='));
        Ok(pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()))
    }
}

/// A unit as systemd sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitFacts {
    /// "active (running)"
    pub state: String,
    /// Inside; 0 when it does not run.
    pub pid: u32,
    /// Since somebody started it.
    pub automatic_restarts: u64,
    /// `Restart=`
    pub policy: String,
}

impl Deployed for UnitApp {
    fn port(&self) -> u16 {
        self.host.port
    }

    fn install(&self, version: Version) -> Result<()> {
        version.unpack(&self.binaries, &self.host.release_dir(version))?;
        write_secret(&self.host.env_file(), &self.env(version))?;
        let temp = self.host.root.join("current.new");
        std::os::unix::fs::symlink(Path::new("releases").join(version.name()), &temp).context("make the link")?;
        std::fs::rename(&temp, self.host.current()).context("swap the link")?;
        self.systemd.exec(&["systemctl", "restart", UNIT]).map(drop)
    }

    fn component(&self) -> String {
        let env = self.host.env_file().display().to_string();
        [
            "[[component]]\nname = \"env\"\nkind = \"env-file\"\n".to_owned(),
            key("path", &env),
            "[[component]]\nname = \"api\"\nkind = \"release-dir\"\nreads = [\"env\"]\n".to_owned(),
            key("root", self.host.root.display()),
            format!("process = {{ manager = \"systemd\", unit = \"{UNIT}\", env_file = \"{env}\" }}\n"),
            self.health().replace(HEALTHY_WITHIN, self.healthy_within),
            self.checks.clone(),
        ]
        .concat()
    }
}

/// Ends with the story.
#[derive(Debug)]
struct Machine(Arc<SystemdHost>);

impl Held for Machine {
    fn let_go(&mut self) -> String {
        self.0.let_go();
        format!("docker rm --force {} >/dev/null\n", self.0.id())
    }
}
