//! Running git so that nothing but the repository's own content decides what happens.
//!
//! Every call has the agent's environment cleared, neither the system's nor anybody's personal configuration, no prompt, no
//! hook, no file system monitor, no `ext::` transport and no replaced objects (a `refs/replace/…` would put other content
//! under a recorded commit). What the repository's own configuration declares counts (`filter.*`, `remote.*`): its owner
//! could change the releases anyway. That is why git's check of who owns the repository stays on. A repository that
//! belongs to another user is worked on *as* that user, when the configuration names them, and not at all otherwise.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use rollback_proto::problem::{Code, Problem};
use tokio::sync::OnceCell;

use crate::program::{Output, Program, ProgramError};

/// Configuration that wins over the repository's.
const SETTINGS: [&str; 9] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    // A sparse clone would make incomplete releases.
    "core.sparseCheckout=false",
    "core.fsync=committed,reference,index",
    "protocol.ext.allow=never",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
];

const ENVIRONMENT: [(&str, &str); 8] = [
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_ATTR_NOSYSTEM", "1"),
    ("GIT_NO_REPLACE_OBJECTS", "1"),
    ("GIT_NO_LAZY_FETCH", "1"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("SSH_ASKPASS_REQUIRE", "never"),
    ("GIT_PAGER", "cat"),
];

/// Tells what makes a worktree, and all that it starts, which one: when the agent is killed, they live on, and would write
/// into the next worktree of that name.
pub const MAKES: &str = "ROLLBACKCTL_MAKES";

/// How git, and what is installed with it, is run.
#[derive(Debug)]
pub struct Git {
    /// The user that owns the repository and the releases, when that is not the agent's.
    owner: Option<String>,
    /// What to put before a program so that it runs as the owner.
    prefix: OnceCell<Vec<String>>,
}

impl Git {
    pub fn new(owner: Option<String>) -> Self {
        Self {
            owner,
            prefix: OnceCell::new(),
        }
    }

    /// A program of the host that runs as the owner.
    pub async fn as_owner<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Program, Problem> {
        let prefix = self.prefix.get_or_try_init(|| self.become_owner()).await?;
        let mut all = prefix.iter().map(|arg| OsStr::new(arg).to_owned()).collect::<Vec<_>>();
        all.extend(argv.into_iter().map(|arg| arg.as_ref().to_owned()));
        let mut all = all.into_iter();
        let first = all.next().unwrap_or_default();
        Ok(Program::new(first).args(all))
    }

    async fn become_owner(&self) -> Result<Vec<String>, Problem> {
        let Some(owner) = &self.owner else {
            return Ok(Vec::new());
        };
        let (user, group) = (id_of(owner, "-u").await?, id_of(owner, "-g").await?);
        if user == rustix::process::geteuid().as_raw() {
            return Ok(Vec::new());
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Problem::new(
                Code::GitUnfit,
                format!("the agent cannot work as {owner}: it is not root"),
            )
            .remedy(format!("run the agent as root or as {owner}")));
        }
        Ok(vec![
            // Whatever PATH the program gets.
            "/usr/bin/setpriv".into(),
            format!("--reuid={user}"),
            format!("--regid={group}"),
            "--init-groups".into(),
            "--".into(),
        ])
    }

    /// Runs `git -C at …`. The error of a git that fails says what git said.
    pub async fn run<S: AsRef<OsStr>>(&self, at: &Path, args: &[S], limit: Duration) -> Result<String, Problem> {
        succeeded(at, args, self.output(at, args, None, limit).await?)
    }

    /// The same, for what makes the worktree in `dir`.
    pub async fn make<S: AsRef<OsStr>>(
        &self,
        dir: &Path,
        at: &Path,
        args: &[S],
        limit: Duration,
    ) -> Result<(), Problem> {
        succeeded(at, args, self.output(at, args, Some(dir), limit).await?).map(drop)
    }

    /// Like [`run`](Self::run); `None` when git answers "no" with status 1, which some commands do for "there is none".
    pub async fn ask<S: AsRef<OsStr>>(
        &self,
        at: &Path,
        args: &[S],
        limit: Duration,
    ) -> Result<Option<String>, Problem> {
        let output = self.output(at, args, None, limit).await?;
        match output.code {
            Some(0) => Ok(Some(output.stdout)),
            Some(1) => Ok(None),
            Some(_) | None => Err(refused(at, args, output)),
        }
    }

    async fn output<S: AsRef<OsStr>>(
        &self,
        at: &Path,
        args: &[S],
        makes: Option<&Path>,
        limit: Duration,
    ) -> Result<Output, Problem> {
        let mut argv = vec![OsStr::new("git").to_owned(), "-C".into(), at.as_os_str().to_owned()];
        for setting in SETTINGS {
            argv.extend(["-c".into(), setting.into()]);
        }
        argv.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        let mut program = self.as_owner(argv).await?.cwd("/");
        for (name, value) in ENVIRONMENT {
            program = program.env(name, value);
        }
        if let Some(dir) = makes {
            program = program.env(MAKES, dir);
        }
        // Only a command that is meant to change something takes locks.
        program = program.env("GIT_OPTIONAL_LOCKS", "0");
        // A plain directory within somebody else's checkout must not be taken for that checkout.
        if let Some(above) = at.parent() {
            program = program.env("GIT_CEILING_DIRECTORIES", above);
        }
        program.output(limit).await.map_err(|e| match &e {
            ProgramError::Deadline { .. } => Problem::new(Code::StepTimeout, format!("{}: {e}", spoken(at, args))),
            ProgramError::Start { .. } => {
                Problem::from_error(Code::ProgramFailed, spoken(at, args), &e).remedy("install git on the host")
            }
            ProgramError::Failed { .. } => Problem::from_error(Code::GitUnfit, spoken(at, args), &e),
        })
    }
}

async fn id_of(user: &str, which: &str) -> Result<u32, Problem> {
    let found = Program::new("id")
        .args([which, "--", user])
        .run(Duration::from_secs(5))
        .await;
    found
        .ok()
        .and_then(|output| output.stdout.trim().parse().ok())
        .ok_or_else(|| {
            Problem::new(
                Code::GitUnfit,
                format!("there is no user {user} on this host, who should own the repository"),
            )
        })
}

/// The command as a person would repeat it.
fn spoken<S: AsRef<OsStr>>(at: &Path, args: &[S]) -> String {
    let words: Vec<_> = args.iter().take(3).map(|arg| arg.as_ref().to_string_lossy()).collect();
    format!("git -C {} {}", at.display(), words.join(" "))
}

fn succeeded<S: AsRef<OsStr>>(at: &Path, args: &[S], output: Output) -> Result<String, Problem> {
    match output.code {
        Some(0) => Ok(output.stdout),
        Some(_) | None => Err(refused(at, args, output)),
    }
}

fn refused<S: AsRef<OsStr>>(at: &Path, args: &[S], output: Output) -> Problem {
    let said = output.stderr;
    if said.contains("dubious ownership") {
        return Problem::new(
            Code::GitUnfit,
            format!(
                "{} belongs to another user than git runs as, who could make git run programs",
                at.display()
            ),
        )
        .remedy(
            "name its owner in the component's configuration (owner = \"USER\"), or: chown -R to the agent's user",
        );
    }
    if said.contains("not a git repository") {
        return Problem::new(
            Code::GitUnfit,
            format!("{} is not a git repository or worktree", at.display()),
        );
    }
    let code = if said.contains("No space left on device") {
        Code::DiskFull
    } else {
        Code::GitUnfit
    };
    let status = output
        .code
        .map_or("a signal".to_owned(), |code| format!("status {code}"));
    Problem::new(
        code,
        format!("{} ended with {status}: {}", spoken(at, args), excerpt(&said)),
    )
}

/// What a program said, on one line that is short enough for a message. The cause is at the beginning with some programs
/// (git) and at the end with others (npm).
pub fn excerpt(said: &str) -> String {
    const EDGE: usize = 4;
    const LONGEST: usize = 300;
    let shortened = |line: &str| without_credentials(line).chars().take(LONGEST).collect::<String>();
    let lines: Vec<String> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(shortened)
        .collect();
    if lines.len() <= 2 * EDGE {
        return lines.join(" | ");
    }
    let (first, last) = (&lines[..EDGE], &lines[lines.len() - EDGE..]);
    format!("{} | … | {}", first.join(" | "), last.join(" | "))
}

/// Takes user names, passwords and tokens out of URLs.
fn without_credentials(line: &str) -> String {
    let mut parts = line.split("://");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part
            .find(|c: char| c == '/' || c.is_whitespace() || matches!(c, '\'' | '"'))
            .unwrap_or(part.len());
        let (host, rest) = part.split_at(end);
        shown.push_str("://");
        shown.push_str(host.rsplit_once('@').map_or(host, |(_, host)| host));
        shown.push_str(rest);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::excerpt;

    #[test]
    fn an_excerpt_has_both_ends_and_no_credentials() {
        let said = "fatal: unable to access 'https://ci:s3cret@example.org/a@b.git/': 403\n\n";
        assert_eq!(
            excerpt(said),
            "fatal: unable to access 'https://example.org/a@b.git/': 403"
        );
        let long: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        assert_eq!(excerpt(&long.join("\n")), "0 | 1 | 2 | 3 | … | 96 | 97 | 98 | 99");
    }
}
