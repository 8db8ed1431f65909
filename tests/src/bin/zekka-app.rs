//! The sample application that the fleet runs: a small web service over PostgreSQL, the same program in every version.
//!
//! `launch` starts `serve` as a daemon and writes its PID file, `stop` ends it and waits until it is gone: what a
//! `command` process manager is given. A container and systemd run `serve` itself; `check` is a container's healthcheck. What the version *is* comes from `release.json` beside `bin/`: the schema that
//! it needs, and whether it has the bug for which v3.0.0 is rolled back.
//!
//! Every start and stop adds one line to `log/effects.log` of the installation: a recorder that none of the programs
//! under test writes to. `faults.json` there makes a version slow to start or never healthy, from outside, so that the
//! content of a release stays what was recorded.

#[path = "zekka-app/check.rs"]
mod check;
#[path = "zekka-app/daemon.rs"]
mod daemon;
#[path = "zekka-app/installation.rs"]
mod installation;
#[path = "zekka-app/service.rs"]
mod service;

use anyhow::{Result, bail};

use installation::Installation;

fn main() -> Result<()> {
    let installation = Installation::of_this_executable()?;
    match std::env::args().nth(1).as_deref() {
        Some("launch") => daemon::launch(&installation),
        Some("stop") => daemon::stop(&installation),
        Some("serve") => service::serve(installation),
        Some("check") => check::healthy(),
        Some(_) | None => bail!("usage: zekka-app launch|stop|serve|check"),
    }
}
