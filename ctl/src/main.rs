//! `rollbackctl`: the operator's program.
//!
//! Reads like this: [`cli`] says what can be typed; one file per verb under its noun ([`fleet`], [`rollback`],
//! [`release`], [`agent`]) does it; [`client`] talks to the coordinators, [`follow`] watches a rollback; [`output`] turns
//! messages into text. Exit codes are in [`exit`].
//!
//! It holds no state and takes no locks: whatever is started goes on without it.

mod agent;
mod board;
mod cli;
mod client;
mod completions;
mod context;
mod doctor;
mod exit;
mod explain;
mod fleet;
mod follow;
mod man;
mod output;
mod release;
mod rollback;
mod runbook;
mod schema;
mod session;
mod version;

#[cfg(test)]
#[path = "../tests/strict/mod.rs"]
mod strict;

use anyhow::Context as _;
use clap::Parser as _;
use rollback_proto::telemetry::{self, Settings};

use crate::cli::{Cli, Format};
use crate::exit::ExitCode;
use crate::output::paint::Paint;

fn main() -> std::process::ExitCode {
    if let Some(exit) = completions::answer() {
        return exit.into();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            // clap would end with 2 here, which means "the plan has changes" to scripts.
            let _ = usage.print();
            return if usage.use_stderr() {
                ExitCode::Error.into()
            } else {
                ExitCode::Done.into()
            };
        }
    };
    rollback_proto::tls::install_crypto();
    let format = cli.command.format();
    let exit = run(cli).unwrap_or_else(|error| {
        let exit = output::problem::find(&error).map_or(ExitCode::Error, |p| ExitCode::of_problem(p.code));
        output::note(&output::problem::any_error(&error, Paint::stderr()));
        if format == Format::Json {
            // The error stands on stderr already; there is nowhere to report that stdout is broken too.
            let _ = output::data(&output::json::failure(&error, exit));
        }
        exit
    });
    exit.into()
}

/// Runs the verb. Returns only when its spans were sent: `main` must not end the process in any other way.
fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let otlp_endpoint = cli.command.otlp_endpoint(&cli.session)?;
    let settings = Settings {
        service: "rollbackctl",
        instance: String::new(),
        otlp_endpoint,
        log: "warn".to_owned(),
        json: false,
    };
    let telemetry = {
        // The exporter's connection lives on the runtime.
        let _entered = runtime.enter();
        telemetry::init(&settings)?
    };
    let result = runtime.block_on(cli::dispatch(cli));
    telemetry.shutdown();
    result
}
