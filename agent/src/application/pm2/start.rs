//! Starting: forgotten by pm2, then started from the release as if for the first time, then looked at.

use std::path::Path;
use std::time::Instant;

use rollback_proto::problem::{Code, Problem};

use super::Pm2;
use super::cli::Account;
use super::list::Instance;
use crate::application::evidence::{log_tail, quoting, variables};
use crate::application::staying::{CLEAN_UP, healthy_and_stable, settles};
use crate::driver::Failure;
use crate::processes::Identity;
use crate::step::StepContext;

impl Pm2 {
    /// Starts the application in `release` and waits until it is healthy at `version`; succeeds when it runs so already.
    pub async fn start(&self, step: &StepContext, release: &Path, version: &str) -> Result<String, Failure> {
        // A third of the time is enough for what went wrong even in a short step.
        let deadline = step.deadline - CLEAN_UP.min(step.time_left() / 3);
        let account = self.account().await?;
        let instances = self.instances(&account).await?;
        if self.expect_right(&instances, release).is_ok() {
            // A start that was killed had done its work.
            step.progress(format!("{} runs this release already", self.config.name));
        } else {
            // Before anything is stopped or forgotten.
            let ecosystem = release.join(&self.config.ecosystem);
            if !ecosystem.is_file() {
                return Err(missing_ecosystem(&ecosystem).into());
            }
            let instances = self.cleared(step, &account, instances, deadline).await?;
            let brought = self.bring_up(step, &account, &instances, release, deadline).await;
            if let Err(problem) = brought {
                return Err(self.clean_up(step, &account, problem).await);
            }
        }
        match self.prove(step, &account, release, version, deadline).await {
            Ok(detail) => Ok(match self.keep_for_boot(step, &account, deadline).await {
                Ok(None) => detail,
                Ok(Some(note)) | Err(note) => format!("{detail}; {note}"),
            }),
            Err(problem) => Err(self.clean_up(step, &account, problem).await),
        }
    }

    /// Nothing of the application runs when this returns. What pm2 has in its list then is returned.
    async fn cleared(
        &self,
        step: &StepContext,
        account: &Option<Account>,
        instances: Vec<Instance>,
        deadline: Instant,
    ) -> Result<Vec<Instance>, Failure> {
        let rests = |i: &Instance| i.process.is_none() && i.status.at_rest();
        if instances.iter().all(rests) && self.orphans(&instances)?.is_empty() {
            return Ok(instances);
        }
        // An application that came up with the host, for one.
        step.progress(format!("{} runs, and not right: it is stopped first", self.config.name));
        self.stop(step, deadline).await?;
        Ok(self.instances(account).await?)
    }

    /// `restart`, `reload` and `startOrReload` would keep the directory, the script and the environment of the release
    /// before; an entry that pm2 still has is taken for a reason to restart it.
    async fn bring_up(
        &self,
        step: &StepContext,
        account: &Option<Account>,
        instances: &[Instance],
        release: &Path,
        deadline: Instant,
    ) -> Result<(), Problem> {
        if !instances.is_empty() {
            self.ask(step, account, "delete", instances, deadline).await?;
        }
        if !self.daemon_answers().await {
            // Brings the daemon up, in its home and not in the release.
            let ping = self.program(account.as_ref(), &["ping"]);
            step.operation("pm2_ping", self.run(ping, "wake up for", deadline))
                .await?;
        }
        let ecosystem = release.join(&self.config.ecosystem);
        let ecosystem = ecosystem.to_string_lossy();
        let args = ["start", &ecosystem, "--only", &self.config.name];
        // pm2 looks for the script where it is called, not where the ecosystem file is.
        let mut program = self.program(account.as_ref(), &args).cwd(release);
        for (name, value) in &self.config.env {
            program = program.env(name, value);
        }
        for (name, value) in variables(self.config.env_file.as_deref())?.iter() {
            program = program.env(name, value);
        }
        // Whatever the application's variables say: this pm2, not another.
        let program = program.env("PM2_HOME", &self.config.home);
        step.operation("process_start", self.run(program, "start", deadline))
            .await
            .map(drop)
    }

    async fn prove(
        &self,
        step: &StepContext,
        account: &Option<Account>,
        release: &Path,
        version: &str,
        deadline: Instant,
    ) -> Result<String, Problem> {
        let before = step.operation("process_appears", self.instances(account)).await?;
        if before.is_empty() {
            return Err(Problem::new(
                Code::ManagerFailed,
                format!(
                    "{} has no application {}: pm2 started nothing, and did not say so",
                    release.join(&self.config.ecosystem).display(),
                    self.config.name
                ),
            ));
        }
        let family: Vec<Identity> = before.iter().filter_map(|i| i.process).collect();
        if family.len() < before.len() {
            // It names the instance that does not live.
            self.expect_right(&before, release)?;
        }
        let right = || family.iter().try_for_each(|p| self.expect_process_right(*p, release));
        step.operation("look_at_process", settles(right, deadline)).await?;
        let proof = healthy_and_stable(&family, self.health.as_ref(), version, self.config.stable_for, deadline);
        let detail = step.operation("health_check", proof).await?;
        let after = step.operation("look_at_process", self.instances(account)).await?;
        let seen = self.expect_right(&after, release)?;
        // It restarts whatever ends: a crash loop looks like an application that has just been started.
        if restarts(&after) != restarts(&before) || seen != family {
            return Err(Problem::new(
                Code::Unhealthy,
                format!("pm2 had to restart {} while it came up", self.config.name),
            ));
        }
        let pids: Vec<String> = family.iter().map(|p| p.pid.to_string()).collect();
        Ok(format!("{}, pid {}, {detail}", self.config.name, pids.join(", ")))
    }

    /// `pm2 save`, where a boot brings back what was saved. `Err` is what could not be done: the application runs, so
    /// that is told, and fails nothing.
    async fn keep_for_boot(
        &self,
        step: &StepContext,
        account: &Option<Account>,
        deadline: Instant,
    ) -> Result<Option<String>, String> {
        if !self.config.save.unwrap_or_else(|| self.is_in_dump()) {
            return Ok(None);
        }
        let program = self.program(account.as_ref(), &["save"]);
        match step.operation("pm2_save", self.run(program, "save", deadline)).await {
            Ok(_) if self.is_in_dump() => Ok(Some("saved for the next boot".into())),
            Ok(_) => Err(format!(
                "NOT saved for the next boot: pm2 save left {} out of its dump",
                self.config.name
            )),
            Err(problem) => Err(format!("NOT saved for the next boot: {}", problem.message)),
        }
    }

    /// Does a boot (`pm2 resurrect`) bring the application up, in whatever release it was when somebody saved?
    fn is_in_dump(&self) -> bool {
        #[derive(serde::Deserialize)]
        struct Saved {
            name: String,
        }
        std::fs::read(self.config.home.join("dump.pm2"))
            .ok()
            .and_then(|dump| serde_json::from_slice::<Vec<Saved>>(&dump).ok())
            .is_some_and(|saved| saved.iter().any(|app| app.name == self.config.name))
    }

    /// Leaves nothing half-started behind, and says why it had to.
    async fn clean_up(&self, step: &StepContext, account: &Option<Account>, mut problem: Problem) -> Failure {
        let instances = self.instances(account).await.unwrap_or_default();
        let again = instances.iter().map(|i| i.restarts).max().unwrap_or(0);
        if again > 0 {
            problem.message = format!("{}; pm2 restarted it {again} times", problem.message);
        }
        let log = instances.into_iter().find_map(|i| i.error_log);
        let tail = log.as_deref().and_then(log_tail);
        let mut problem = quoting(problem, "its log ends", tail, self.config.env_file.as_deref());
        match self.stop(step, step.deadline).await {
            Ok(_) => Failure::Failed(problem),
            Err(Failure::Failed(stop) | Failure::Indeterminate(stop)) => {
                problem.message = format!("{}; and it could not be stopped: {}", problem.message, stop.message);
                Failure::Indeterminate(problem)
            }
        }
    }
}

fn restarts(instances: &[Instance]) -> Vec<(u64, u64)> {
    instances.iter().map(|i| (i.id, i.restarts)).collect()
}

fn missing_ecosystem(path: &Path) -> Problem {
    Problem::new(
        Code::ManagerFailed,
        format!("there is no ecosystem file {}", path.display()),
    )
    .remedy("name the file that the release has in process.ecosystem")
}
