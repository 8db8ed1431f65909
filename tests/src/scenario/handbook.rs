//! `docs/operating.md`, carried out: every command in it is typed on the demo fleet, in order, as it stands there. A command
//! that ends with another exit code than the page says, or that does not say what the page quotes, is a failure. With
//! `UPDATE_DOCS=1` the outputs in the page are replaced by what was seen.
//!
//! What a reader cannot type (somebody deploys, a host goes away) stands in the page as a comment, which is done by the
//! harness: see [`page`].

mod page;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::process::Command;

use self::page::{Console, Deed, Page, Part};
use super::{Found, Options, found, on_fleet};
use crate::fleet::Fleet;
use crate::wait;
use crate::zekka::Version;

/// Of an output that is too long for the page.
const FIRST_LINES: usize = 8;
const LAST_LINES: usize = 34;

/// The second operator of the page.
const SECOND: &str = "ben";

const CHECKED_WITHIN: Duration = Duration::from_secs(30);

/// No command of the page takes longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

pub async fn tell(options: Options) -> Result<Found> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let page = Page::parse(&text)?;
    let builder = Fleet::builder().readiness("1s");
    on_fleet(builder, options, async |fleet| {
        fleet.deploy_both().await?;
        let desk = Desk::set_up(fleet)?;
        // The page begins on a day on which the leader has long looked.
        wait::until_true("the background check is through", CHECKED_WITHIN, async || {
            let asked = fleet.ctl.run(&["fleet", "readiness"]).await;
            asked.is_ok_and(|answer| answer.code == 0)
        })
        .await?;
        let mut typed = 0;
        let mut seen = Page::default();
        for part in page.parts {
            seen.parts.push(match part {
                Part::Prose(lines) => Part::Prose(lines),
                Part::Deed(deed) => {
                    options.say(format!("[{deed}]"));
                    carry_out(fleet, &deed).await?;
                    Part::Deed(deed)
                }
                Part::Console(console) => {
                    typed += console.commands.len();
                    Part::Console(desk.type_in(console, options).await?)
                }
            });
        }
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, seen.to_string()).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(found(json!({ "commands": typed })))
    })
    .await
}

async fn carry_out(fleet: &mut Fleet, deed: &Deed) -> Result<()> {
    match deed {
        Deed::Deploy(release) => {
            let version = [Version::V2_9_0, Version::V3_0_0]
                .into_iter()
                .find(|version| version.name() == release)
                .with_context(|| format!("{release} is no release of the demo"))?;
            fleet.deploy(version).await
        }
        Deed::HostGoes(host) => fleet.agent(host)?.kill(),
        Deed::Backup { host, component } => {
            fleet.agent(host)?.tool(&["database", "backup", component])?;
            Ok(())
        }
        Deed::HostComesBack(host) => {
            fleet.agent(host)?.run().await?;
            fleet.wait_connected(&[host]).await
        }
    }
}

/// Where the operators of the page sit: a directory for their files, and a shell for each.
#[derive(Debug)]
struct Desk {
    dir: PathBuf,
    programs: PathBuf,
    contexts: [(&'static str, PathBuf); 2],
}

impl Desk {
    fn set_up(fleet: &Fleet) -> Result<Self> {
        let dir = fleet.dir().join("desk");
        std::fs::create_dir(&dir).context("make the operators' directory")?;
        let second = fleet.coordinator.add_operator(SECOND)?;
        let programs = fleet.ctl.program().parent().context("rollbackctl is in a directory")?;
        Ok(Self {
            dir,
            programs: programs.to_owned(),
            contexts: [("", fleet.ctl.context().to_owned()), (SECOND, second)],
        })
    }

    async fn type_in(&self, mut console: Console, options: Options) -> Result<Console> {
        for command in &mut console.commands {
            options.say(format!("{}$ {}", command.who, command.line));
            let (code, output) = self.run(&command.who, &command.line).await?;
            let wanted = console.exit.unwrap_or(0);
            ensure!(
                code == wanted,
                "`{}` ends with {code} and not with {wanted}; it said\n{output}",
                command.line
            );
            command.output = self.as_printed(&output, console.whole);
        }
        Ok(console)
    }

    /// The fleet's directory has another name every time, and nobody reads a hundred lines of steps.
    fn as_printed(&self, output: &str, whole: bool) -> Vec<String> {
        let fleet = self.dir.parent().unwrap_or(&self.dir).display().to_string();
        let lines = output.lines().map(|line| line.trim_end().replace(&fleet, "…"));
        let mut lines: Vec<String> = lines.collect();
        let left_out = lines.len().saturating_sub(FIRST_LINES + LAST_LINES);
        if !whole && left_out > 1 {
            lines.splice(
                FIRST_LINES..FIRST_LINES + left_out,
                [format!("[{left_out} lines left out]")],
            );
        }
        lines
    }

    async fn run(&self, who: &str, line: &str) -> Result<(i32, String)> {
        let Some((_, context)) = self.contexts.iter().find(|(name, _)| *name == who) else {
            bail!("the page has an operator called {who}, and the fleet has none");
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(self.programs.clone()).chain(std::env::split_paths(&path));
        let child = Command::new("sh")
            // As on a terminal: in the order in which it was said.
            .args(["-c", &format!("exec 2>&1; {line}")])
            .env(
                "PATH",
                std::env::join_paths(path).context("name the programs' directory")?,
            )
            .env("ROLLBACKCTL_CONTEXT", context)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start a shell")?;
        let output = tokio::time::timeout(ANSWER_WITHIN, child.wait_with_output())
            .await
            .with_context(|| format!("`{line}` does not end"))?
            .with_context(|| format!("run `{line}`"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok((output.status.code().unwrap_or(-1), said))
    }
}
