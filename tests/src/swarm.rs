//! Many agents in one process, `fleet-swarm`, as the harness uses it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::control::Control;

/// A thousand certificates and ports, by a program that was not built to be quick.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// Ends when it is dropped, and when we do.
#[derive(Debug)]
pub struct Swarm {
    _child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Swarm {
    /// Starts so many agents of the fleet of this coordinator. They register by themselves.
    pub async fn start(control: &Control, agents: usize) -> Result<Self> {
        let dir = control.dir().join("swarm");
        std::fs::create_dir(&dir).context("make the swarm's directory")?;
        let log = std::fs::File::create(log(control.dir())).context("make the swarm's log")?;
        let mut child = Command::new(control.binaries.path("fleet-swarm"))
            .args(["--coordinator", control.coordinator.endpoint()])
            .arg("--fleet")
            .arg(control.coordinator.dir())
            .args(["--agents", &agents.to_string()])
            .arg("--dir")
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("start fleet-swarm")?;
        let orders = child.stdin.take().context("stdin is ours")?;
        let answers = BufReader::new(child.stdout.take().context("stdout is ours")?).lines();
        let mut swarm = Self {
            _child: child,
            orders,
            answers,
        };
        swarm.expect(&format!("started {agents}")).await?;
        Ok(swarm)
    }

    /// Every host runs this from now on, and has what it ran before.
    pub async fn deploy(&mut self, version: &str) -> Result<()> {
        self.order(&format!("deploy {version}")).await?;
        self.expect(&format!("deployed {version}")).await
    }

    /// The first so many hosts lose this version.
    pub async fn prune(&mut self, version: &str, hosts: usize) -> Result<()> {
        self.order(&format!("prune {version} {hosts}")).await?;
        self.expect(&format!("pruned {version}")).await
    }

    async fn order(&mut self, order: &str) -> Result<()> {
        let line = format!("{order}\n");
        self.orders
            .write_all(line.as_bytes())
            .await
            .context("give the swarm an order")
    }

    async fn expect(&mut self, wanted: &str) -> Result<()> {
        let answer = tokio::time::timeout(ANSWERS_WITHIN, self.answers.next_line())
            .await
            .with_context(|| format!("the swarm does not say: {wanted}"))?
            .context("hear the swarm")?;
        let answer = answer.unwrap_or_else(|| "nothing: it has ended".to_owned());
        ensure!(answer == wanted, "the swarm says {answer}, not {wanted}");
        Ok(())
    }
}

fn log(dir: &Path) -> std::path::PathBuf {
    dir.join("log/swarm.log")
}
