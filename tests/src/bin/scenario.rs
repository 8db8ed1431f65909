//! Tells scenarios on a real fleet: `scenario list`, `scenario run NAME [--json] [--keep]
//! [--rounds N] [--size-mib N] [--seed N]`. The last line of stdout is
//! one JSON object; the exit status is 0 only if all expectations were met.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use fleet_tests::scenario::{Options, Scenario};
use serde_json::json;

#[derive(Parser)]
#[command(about = "Stories told on a real fleet")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Names all scenarios.
    List,
    /// Tells one.
    Run {
        name: String,
        /// Nothing but the JSON object.
        #[arg(long)]
        json: bool,
        /// Leave the fleet up and say how to use it.
        #[arg(long)]
        keep: bool,
        /// How often a scenario that repeats itself (kill-sweep) does so.
        #[arg(long)]
        rounds: Option<usize>,
        /// How large the database of a scenario that measures one (db-downtime) is.
        #[arg(long)]
        size_mib: Option<u64>,
        /// What a scenario that throws dice (db-corrupt-backups) said in the run that is to be repeated.
        #[arg(long)]
        seed: Option<u64>,
    },
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    match cli.verb {
        Verb::List => {
            let mut out = std::io::stdout().lock();
            for scenario in Scenario::all() {
                writeln!(out, "{:<20} {}", scenario.name, scenario.about)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Run {
            name,
            json,
            keep,
            rounds,
            size_mib,
            seed,
        } => {
            let scenario = Scenario::find(&name)
                .with_context(|| format!("there is no scenario {name}; `scenario list` names all of them"))?;
            let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
            let options = Options {
                keep,
                quiet: json,
                rounds,
                size_mib,
                seed,
            };
            runtime.block_on(run(scenario, options))
        }
    }
}

async fn run(scenario: &'static Scenario, options: Options) -> Result<ExitCode> {
    let begun = Instant::now();
    // Dropping the story ends the fleet.
    let (ok, json) = tokio::select! {
        report = scenario.run(options) => {
            if let Some(error) = &report.error {
                eprintln!("{error}");
            }
            (report.ok, report.json)
        }
        _ = tokio::signal::ctrl_c() => {
            let seconds = begun.elapsed().as_secs();
            (false, json!({ "scenario": scenario.name, "ok": false, "seconds": seconds, "error": "interrupted" }))
        }
    };
    writeln!(std::io::stdout().lock(), "{json}")?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
