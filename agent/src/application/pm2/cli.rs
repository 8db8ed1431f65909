//! pm2's own program, under the account and with the environment that it needs.

use std::time::{Duration, Instant};

use rollback_proto::problem::{Code, Problem};

use super::Pm2;
use crate::program::{Program, SAFE_PATH};

/// Limit for looking an account up; it may be in a directory service.
const LOOKUP: Duration = Duration::from_secs(5);

/// Tools that change the account or look it up are the system's, never those of `path`.
const SETPRIV: &str = "/usr/bin/setpriv";
const GETENT: &str = "/usr/bin/getent";

/// An account of the host.
#[derive(Clone, Debug)]
pub struct Account {
    pub uid: u32,
    gid: u32,
    home: String,
}

impl Account {
    pub async fn find(user: &str) -> Result<Self, Problem> {
        let unknown = |why: String| {
            Problem::new(Code::ManagerFailed, format!("account {user}: {why}"))
                .remedy("correct process.user, or create the account")
        };
        let output = Program::new(GETENT)
            .args(["passwd", user])
            .output(LOOKUP)
            .await
            .map_err(|e| Problem::from_error(Code::ManagerFailed, format!("look account {user} up"), &e))?;
        let fields: Vec<&str> = output.stdout.trim_end().split(':').collect();
        let [_, _, uid, gid, _, home, _] = fields[..] else {
            return Err(unknown("there is no such account".into()));
        };
        match (uid.parse(), gid.parse()) {
            (Ok(uid), Ok(gid)) => Ok(Self {
                uid,
                gid,
                home: home.to_owned(),
            }),
            (Err(_), _) | (_, Err(_)) => Err(unknown("its entry has no numbers".into())),
        }
    }
}

impl Pm2 {
    pub(super) fn search_path(&self) -> String {
        match &self.config.path {
            Some(first) => format!("{first}:{SAFE_PATH}"),
            None => SAFE_PATH.to_owned(),
        }
    }

    /// pm2 with these arguments, in `PM2_HOME`. A daemon that this call brings up stays in the directory of the call for
    /// as long as it lives: that must not be a release, which may be removed.
    pub(super) fn program(&self, account: Option<&Account>, args: &[&str]) -> Program {
        let other = account.filter(|account| account.uid != rustix::process::geteuid().as_raw());
        let program = match other {
            Some(account) => Program::new(SETPRIV)
                .args(["--reuid", &account.uid.to_string(), "--regid", &account.gid.to_string()])
                .args(["--init-groups", "--", &self.config.binary]),
            None => Program::new(&self.config.binary),
        };
        let program = match account {
            Some(account) => program.env("HOME", &account.home),
            None => program,
        };
        program
            .args(args)
            .env("PATH", self.search_path())
            .env("PM2_HOME", &self.config.home)
            .cwd(&self.config.home)
    }

    /// Runs pm2 to its end. Its exit status says whether it understood, not what became of the application.
    pub(super) async fn run(&self, program: Program, what: &str, until: Instant) -> Result<String, Problem> {
        let limit = until
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(100));
        program
            .run(limit)
            .await
            .map(|output| output.stdout)
            .map_err(|e| Problem::from_error(Code::ManagerFailed, format!("pm2: {what} {}", self.config.name), &e))
    }
}
