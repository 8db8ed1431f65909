//! One unit through `systemctl`: what systemd knows of it, and what it is asked to do.
//!
//! `systemctl show` prints `Property=value` lines for programs to read; nothing that is written for people is parsed.
//! Jobs are queued (`--no-block`) and watched by their unit's state: a call that waits for a job says less, later.

use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};

use crate::application::evidence::last_lines;
use crate::program::Program;

pub const SYSTEMCTL: &str = "systemctl";

/// systemd answers within milliseconds; one that hangs must not hang a step.
const ANSWER: Duration = Duration::from_secs(10);

/// Quoting a log is not worth waiting for.
const JOURNAL: Duration = Duration::from_secs(2);

/// How often a unit that is on its way is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What is read of a unit, in one call, so that it is one instant's.
const PROPERTIES: &str = "Id,LoadState,ActiveState,SubState,Type,Result,MainPID,NRestarts,NeedDaemonReload,ControlGroup,\
                          Job,WorkingDirectory,ExecStart,EnvironmentFiles,TriggeredBy";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Also while it is reloaded.
    Active,
    Activating,
    Deactivating,
    Inactive,
    Failed,
}

/// A unit, as systemd sees it at one instant.
#[derive(Clone, Debug)]
pub struct UnitState {
    pub name: String,
    /// `loaded`, `not-found`, `masked`, `bad-setting`, `error`.
    pub load: String,
    pub active: Activity,
    pub sub: String,
    /// `Type=`: `simple`, `notify`, `oneshot`, …
    pub kind: String,
    /// `success`, or how it ended: `exit-code`, `signal`, `start-limit-hit`, …
    pub result: String,
    pub main: Option<i32>,
    /// Restarts by `Restart=` since the last `reset-failed` or start by hand.
    pub restarts: u64,
    /// Its files changed on disk since systemd read them.
    pub needs_reload: bool,
    pub control_group: String,
    /// A job for it is queued or runs.
    pub job: bool,
    pub working_directory: String,
    /// The program of the first `ExecStart=`.
    pub program: String,
    pub environment_files: Vec<String>,
    pub triggered_by: String,
}

impl UnitState {
    fn parse(name: &str, text: &str) -> Result<Self, Problem> {
        let all = |key: &str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .filter(|(name, _)| *name == key)
                .map(|(_, value)| value.to_owned())
                .collect::<Vec<_>>()
        };
        let one = |key: &str| all(key).into_iter().next().unwrap_or_default();
        let active = match one("ActiveState").as_str() {
            "active" | "reloading" | "refreshing" => Activity::Active,
            "activating" => Activity::Activating,
            "deactivating" => Activity::Deactivating,
            "inactive" => Activity::Inactive,
            "failed" => Activity::Failed,
            other => {
                return Err(Problem::new(
                    Code::ManagerFailed,
                    format!("systemd says that {name} is {other:?}, which means nothing to this version"),
                ));
            }
        };
        let path_of = |exec: &str| {
            let rest = exec.split_once("path=")?.1;
            Some(rest.split(" ;").next()?.trim().to_owned())
        };
        Ok(Self {
            name: name.to_owned(),
            load: one("LoadState"),
            active,
            sub: one("SubState"),
            kind: one("Type"),
            result: one("Result"),
            main: one("MainPID").parse().ok().filter(|pid| *pid > 1),
            restarts: one("NRestarts").parse().unwrap_or(0),
            needs_reload: one("NeedDaemonReload") == "yes",
            control_group: one("ControlGroup"),
            job: !matches!(one("Job").as_str(), "" | "0"),
            working_directory: one("WorkingDirectory"),
            program: path_of(&one("ExecStart")).unwrap_or_default(),
            environment_files: all("EnvironmentFiles")
                .iter()
                .filter_map(|file| Some(file.split(" (").next()?.to_owned()))
                .collect(),
            triggered_by: one("TriggeredBy"),
        })
    }

    /// systemd has nothing to do for it: neither a job nor a restart that is due.
    pub fn at_rest(&self) -> bool {
        !self.job && matches!(self.active, Activity::Inactive | Activity::Failed)
    }

    /// "failed (exit-code)", "activating (auto-restart)".
    pub fn phrase(&self) -> String {
        let (state, detail) = match self.active {
            Activity::Active => ("active", &self.sub),
            Activity::Activating => ("activating", &self.sub),
            Activity::Deactivating => ("deactivating", &self.sub),
            Activity::Inactive => ("inactive", &self.sub),
            Activity::Failed => ("failed", &self.result),
        };
        format!("{state} ({detail})")
    }

    pub fn expect_loaded(&self) -> Result<(), Problem> {
        let (why, remedy) = match self.load.as_str() {
            "loaded" => return Ok(()),
            "not-found" => (
                "systemd does not know it",
                "install the unit and run systemctl daemon-reload; or correct process.unit",
            ),
            "masked" => ("it is masked: systemd would refuse to start it", "systemctl unmask it"),
            _ => (
                "systemd cannot read it",
                "systemd-analyze verify says what is wrong with it",
            ),
        };
        Err(Problem::new(Code::ManagerFailed, format!("{}: {why} ({})", self.name, self.load)).remedy(remedy))
    }
}

/// The name of a unit that is safe as an argument.
#[derive(Clone, Debug)]
pub struct Unit(String);

impl Unit {
    pub fn new(name: &str) -> Result<Self, String> {
        let good = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if !name.ends_with(".service") || name.starts_with(['-', '.', '@']) || !name.chars().all(good) {
            return Err(format!(
                "unit {name:?} must be the whole name of a service: zekka.service"
            ));
        }
        Ok(Self(name.to_owned()))
    }

    fn systemctl(&self, verb: &[&str]) -> Program {
        Program::new(SYSTEMCTL)
            .args(["--system", "--no-pager", "--no-ask-password"])
            .args(verb)
    }

    async fn ask(&self, program: Program, what: &str) -> Result<String, Problem> {
        program
            .run(ANSWER)
            .await
            .map(|output| output.stdout)
            .map_err(|e| Problem::from_error(Code::ManagerFailed, format!("{what} {}", self.0), &e))
    }

    pub async fn state(&self) -> Result<UnitState, Problem> {
        let program = self.systemctl(&["show", "--property", PROPERTIES, "--", &self.0]);
        let text = self.ask(program, "ask systemd about").await?;
        UnitState::parse(&self.0, &text)
    }

    /// Looks at the unit until `settled` has an answer; `None` when the time is over first.
    pub async fn watch<T>(
        &self,
        until: Instant,
        settled: impl Fn(&UnitState) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        loop {
            let state = self.state().await?;
            if let Some(answer) = settled(&state) {
                return Ok(Some(answer));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub async fn start(&self) -> Result<(), Problem> {
        let program = self.systemctl(&["start", "--no-block", "--", &self.0]);
        self.ask(program, "start").await.map(drop)
    }

    pub async fn stop(&self) -> Result<(), Problem> {
        let program = self.systemctl(&["stop", "--no-block", "--", &self.0]);
        self.ask(program, "stop").await.map(drop)
    }

    /// SIGKILL for everybody in the unit.
    pub async fn kill(&self) -> Result<(), Problem> {
        let program = self.systemctl(&["kill", "--kill-who=all", "--signal=KILL", "--", &self.0]);
        self.ask(program, "kill").await.map(drop)
    }

    /// Forgets failures and the counters of starts and restarts.
    pub async fn reset(&self) -> Result<(), Problem> {
        let program = self.systemctl(&["reset-failed", "--", &self.0]);
        self.ask(program, "reset the failures of").await.map(drop)
    }

    /// systemd reads all unit files again. There is no such thing for one unit.
    pub async fn reload_files(&self) -> Result<(), Problem> {
        let program = self.systemctl(&["daemon-reload"]);
        self.ask(program, "read unit files again for").await.map(drop)
    }

    /// The last lines that the unit, or systemd about it, has logged in the last minute; on one line.
    pub async fn journal(&self) -> Option<String> {
        let program = Program::new("journalctl").args([
            "--unit",
            &self.0,
            "--lines=40",
            "--since=-60s",
            "--output=cat",
            "--no-pager",
            "--quiet",
        ]);
        let output = program.run(JOURNAL).await.ok()?;
        last_lines(&output.stdout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_options_or_globs_are_refused() {
        for good in ["zekka.service", "zekka@1.service", "a-b_c:d\\x2d.service"] {
            assert!(Unit::new(good).is_ok(), "{good}");
        }
        for bad in [
            "zekka",
            "--force.service",
            "zekka.timer",
            "zekka*.service",
            "a b.service",
            "../a.service",
        ] {
            assert!(Unit::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_unit_between_two_restarts_is_not_at_rest() {
        let read = |text: &str| UnitState::parse("a.service", text).expect("state");
        let waiting = read("ActiveState=activating\nSubState=auto-restart\nMainPID=0\nNRestarts=4\nJob=");
        assert!(!waiting.at_rest());
        assert_eq!((waiting.main, waiting.restarts), (None, 4));
        assert!(!read("ActiveState=inactive\nJob=812").at_rest(), "a job is queued");
        assert!(read("ActiveState=failed\nResult=start-limit-hit\nJob=").at_rest());
        assert!(UnitState::parse("a.service", "ActiveState=sideways").is_err());
    }

    #[test]
    fn the_program_and_the_environment_files_are_read() {
        let text = "ActiveState=inactive\nExecStart={ path=/opt/a b/current/run ; argv[]=/opt/a b/current/run x ; \
                    ignore_errors=no ; pid=0 }\nEnvironmentFiles=/etc/a/env (ignore_errors=no)\nEnvironmentFiles=/etc/b (ignore_errors=yes)\n";
        let state = UnitState::parse("a.service", text).expect("state");
        assert_eq!(state.program, "/opt/a b/current/run");
        assert_eq!(state.environment_files, ["/etc/a/env", "/etc/b"]);
    }
}
