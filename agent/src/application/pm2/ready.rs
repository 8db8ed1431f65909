//! What `prepare` finds of pm2: is it the right one, and would it outlive the agent?

use std::os::unix::fs::MetadataExt;

use rollback_proto::problem::{Code, Problem};

use super::Pm2;
use super::cli::Account;
use crate::driver::Finding;
use crate::files::io_problem;

impl Pm2 {
    /// Reads only.
    pub async fn ready(&self) -> Vec<Finding> {
        let account = match self.account().await {
            Ok(account) => account,
            Err(problem) => return vec![Finding::blocker(problem)],
        };
        if let Err(problem) = self.expect_own_home(account.as_ref()) {
            return vec![Finding::blocker(problem)];
        }
        if !self.daemon_answers().await {
            return vec![Finding::warning(
                Problem::new(
                    Code::ManagerFailed,
                    format!(
                        "no pm2 daemon runs in {}: the start brings one up",
                        self.config.home.display()
                    ),
                )
                .remedy(UNIT),
            )];
        }
        match self.instances(&account).await {
            Err(problem) => vec![Finding::blocker(problem)],
            Ok(_) if self.daemon_is_in_our_unit() => vec![Finding::warning(
                Problem::new(
                    Code::ManagerFailed,
                    "pm2's daemon lives in the agent's own systemd unit: stopping the agent ends the application",
                )
                .remedy(UNIT),
            )],
            Ok(_) => Vec::new(),
        }
    }

    /// pm2 under another account than the one that `home` belongs to would start the application under that account
    /// (as root, for one), and leave files there that the owner's pm2 cannot read any more.
    fn expect_own_home(&self, account: Option<&Account>) -> Result<(), Problem> {
        let home = &self.config.home;
        let owner = std::fs::metadata(home)
            .map_err(|e| io_problem("look at", home, &e))?
            .uid();
        let uid = account.map_or_else(|| rustix::process::geteuid().as_raw(), |account| account.uid);
        if owner == uid {
            return Ok(());
        }
        Err(Problem::new(
            Code::ManagerFailed,
            format!(
                "{} belongs to uid {owner}, and pm2 would run as uid {uid}",
                home.display()
            ),
        )
        .remedy("set process.user to the account that pm2 runs under"))
    }

    fn daemon_is_in_our_unit(&self) -> bool {
        let unit = |pid: &str| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            let path = text.lines().find_map(|line| {
                line.split_once(":name=systemd:")
                    .map(|(_, path)| path)
                    .or_else(|| line.strip_prefix("0::"))
                    .filter(|path| path.contains(".service"))
            })?;
            Some(path.to_owned())
        };
        let Ok(pid) = std::fs::read_to_string(self.config.home.join("pm2.pid")) else {
            return false;
        };
        unit("self").is_some_and(|ours| unit(pid.trim()) == Some(ours))
    }
}

const UNIT: &str = "give pm2 a unit of its own (pm2 startup, pm2 save), or the agent's unit KillMode=process";
