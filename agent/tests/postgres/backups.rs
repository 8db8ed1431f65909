//! Backups outside of rollbacks: made by hand, taken in from elsewhere, checked again, and what is asked of them.

mod adopt;
mod by_hand;
mod faults;
mod integrity;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use rollback_agent::driver::postgres::{Adopted, PostgresDriver};
use rollback_agent::step::NoProgress;
use rollback_proto::problem::{Code, Problem};

use crate::cluster::run;
use crate::fixture::Fixture;

const LIMIT: Duration = Duration::from_secs(60);

/// A dump of the fixture's database that somebody else makes.
fn dump(f: &Fixture, name: &str, args: &[&str]) -> PathBuf {
    dump_of(f, &f.database, name, args)
}

fn dump_of(f: &Fixture, database: &str, name: &str, args: &[&str]) -> PathBuf {
    let path = f.dir.path().join(name);
    let mut command = Command::new(f.cluster.bin.join("pg_dump"));
    command
        .arg("-h")
        .arg(&f.cluster.socket)
        .args(["-U", "postgres", "-d", database]);
    run(command.args(args).arg("-f").arg(&path));
    path
}

async fn adopt(f: &Fixture, path: &Path) -> Result<Adopted, Problem> {
    f.driver.adopt(path, LIMIT, Arc::new(NoProgress)).await
}

/// The driver with other settings.
fn driver(f: &Fixture, adjust: impl FnOnce(&mut rollback_agent::driver::postgres::PostgresConfig)) -> PostgresDriver {
    let mut config = f.config.clone();
    adjust(&mut config);
    PostgresDriver::new("db", config, f.vault.clone()).expect("driver")
}

fn refused<T: std::fmt::Debug>(result: Result<T, Problem>, code: Code, part: &str) {
    let problem = result.expect_err(part);
    assert_eq!(problem.code, code, "{problem}");
    assert!(problem.message.contains(part), "{part:?} is not in: {problem}");
}

/// `rollback-agent database …` with a configuration of the fixture's database.
fn command_line(f: &Fixture, args: &[&str]) -> Output {
    program(f, args).output().expect("run rollback-agent")
}

fn program(f: &Fixture, args: &[&str]) -> Command {
    let dir = f.dir.path();
    let config = dir.join("agent.toml");
    let text = format!(
        "name = 'app-1'\nlisten = '127.0.0.1:0'\ncoordinators = ['127.0.0.1:1']\nstate = '{0}/state'\npki = '{0}/pki'\n\
         [[component]]\nname = 'db'\nkind = 'postgres'\ndatabase = '{1}'\nhost = '{2}'\nmigrations = '{0}/migrations'\n\
         backups = '{0}/backups'\nbin_dir = '{3}'\n",
        dir.display(),
        f.database,
        f.cluster.socket.display(),
        f.cluster.bin.display()
    );
    std::fs::write(&config, text).expect("write the configuration");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollback-agent"));
    command.arg("database").args(args).arg("--config").arg(&config);
    command
}
