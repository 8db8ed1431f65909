//! What running processes show of themselves: whose they are, which release they run in, which environment they have, and
//! what their log ends with. Process managers are asked who runs; this is asked whether it is true.
//!
//! Values of an environment never leave this module: what differs is named.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use rollback_proto::problem::{Code, Problem};

use crate::driver::env_file::variables::{Variables, listed};
use crate::files::io_problem;
use crate::processes::{self, Identity};

/// Does this process belong to the application whose directory is `root`? Asks where it works, which program it is and
/// with which arguments. Nobody else is ever signalled.
pub fn belongs(process: Identity, root: &Path) -> bool {
    let real = std::fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let beneath = |path: &Path| path.starts_with(&real) || path.starts_with(root);
    processes::cwd(process.pid).is_some_and(|dir| beneath(&dir))
        || processes::exe(process.pid).is_some_and(|exe| beneath(&exe))
        || processes::arguments(process.pid)
            .iter()
            .any(|argument| beneath(Path::new(argument)))
}

/// Does it run in this release? Asks where it works and which program it is. Arguments prove nothing: a path through the
/// `current` link reads the same before and after the link is switched.
pub fn runs_in(process: Identity, release: &Path) -> bool {
    let release = std::fs::canonicalize(release).unwrap_or_else(|_| release.to_owned());
    processes::cwd(process.pid).is_some_and(|dir| dir.starts_with(&release))
        || processes::exe(process.pid).is_some_and(|exe| exe.starts_with(&release))
}

pub fn expect_release(process: Identity, release: &Path) -> Result<(), Problem> {
    if runs_in(process, release) {
        return Ok(());
    }
    let cwd = processes::cwd(process.pid).map_or("an unknown directory".into(), |d| d.display().to_string());
    Err(Problem::new(
        Code::WrongRevision,
        format!("process {} runs in {cwd}, not in {}", process.pid, release.display()),
    ))
}

/// The content of an env file, as it is now.
pub fn variables(path: Option<&Path>) -> Result<Variables, Problem> {
    let Some(path) = path else {
        return Ok(Variables::default());
    };
    let content = std::fs::read(path).map_err(|e| io_problem("read", path, &e))?;
    Ok(Variables::parse(&String::from_utf8_lossy(&content)))
}

/// Adds the end of a log to a problem. The application may have written down what it was given in its env file, and the
/// message leaves this host: without knowing what must not leave, nothing is quoted.
pub fn quoting(mut problem: Problem, what: &str, tail: Option<String>, env_file: Option<&Path>) -> Problem {
    if let Some(tail) = tail
        && let Ok(given) = variables(env_file)
    {
        let tail = crate::check::redact::hide(tail, given.iter());
        problem.message = format!("{}; {what}: {tail}", problem.message);
    }
    problem
}

/// Was the process started with every one of these?
pub fn expect_environment(process: Identity, wanted: &Variables) -> Result<(), Problem> {
    let Some(mut environment) = processes::environment(process.pid) else {
        return Err(Problem::new(
            Code::Unhealthy,
            format!("the environment of process {} cannot be read", process.pid),
        )
        .remedy("let the agent run as root or as the application's user, or set verify_env = false"));
    };
    // A worker of pm2's cluster mode is handed its variables as one JSON document, and takes them over when it begins.
    if let Some(handed) = environment.remove(&b"pm2_env"[..]) {
        environment.extend(handed_over(&handed));
    }
    let missing = wanted.names_missing_in(&environment);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Problem::new(
        Code::WrongRevision,
        format!(
            "process {} runs without the env file's present value of: {}",
            process.pid,
            listed(&missing)
        ),
    ))
}

fn handed_over(document: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(document) else {
        return Vec::new();
    };
    let variables = document.get("env").and_then(serde_json::Value::as_object);
    variables
        .into_iter()
        .flatten()
        .map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (name.clone().into_bytes(), value.into_bytes())
        })
        .collect()
}

/// The end of a log, on one line.
pub fn log_tail(path: &Path) -> Option<String> {
    const TAIL: u64 = 8192;
    let mut file = std::fs::File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    last_lines(&String::from_utf8_lossy(&tail))
}

/// The last lines of some text that say something, on one line that is short enough for a message.
pub fn last_lines(text: &str) -> Option<String> {
    const LINE: usize = 300;
    // The frames of a JavaScript stack follow the error, and are many.
    let says = |line: &&str| !line.is_empty() && !line.starts_with("at ");
    let lines: Vec<&str> = text.lines().map(str::trim).filter(says).collect();
    let last: Vec<String> = lines[lines.len().saturating_sub(3)..]
        .iter()
        .map(|line| line.chars().take(LINE).collect())
        .collect();
    (!last.is_empty()).then(|| last.join(" | "))
}

pub fn executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Can a bare name or a path be run, when names are looked up in `path`?
pub fn found_in(program: &str, path: &str) -> bool {
    if program.contains('/') {
        return executable(Path::new(program));
    }
    path.split(':').any(|dir| executable(&Path::new(dir).join(program)))
}
