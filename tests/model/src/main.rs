//! Explores the protocol around the engine: `fleet-model list`, `fleet-model run NAME`, `fleet-model all`. The last line of
//! stdout is one JSON object; the exit status is 0 only when everything was explored, nothing is violated, and everything
//! was met that should be.

use std::io::Write;
use std::num::NonZero;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use fleet_model::{Configuration, Report, Safeguard, explore};
use serde_json::json;

#[derive(Parser)]
#[command(about = "The real engine under a model checker")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// One makes the shortest story of a violation; more are quicker. [default: as many as there are processors]
    #[arg(long, global = true)]
    threads: Option<NonZero<usize>>,
}

#[derive(Subcommand)]
enum Verb {
    /// Names all configurations.
    List,
    /// Explores these.
    Run {
        #[arg(required = true)]
        names: Vec<String>,
        /// Leave a safeguard out, and see what happens.
        #[arg(long)]
        without: Option<Safeguard>,
    },
    /// Explores all of them.
    All,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let chosen = match cli.verb {
        Verb::List => {
            let mut out = std::io::stdout().lock();
            for c in Configuration::all() {
                let size = if c.small { "small" } else { "large" };
                writeln!(
                    out,
                    "{:<18} {size}  {}\n{:<25}bounds: {:?}",
                    c.name, c.about, "", c.budget
                )?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Run { names, without } => names
            .iter()
            .map(|name| {
                let unknown = || format!("there is no configuration {name}; `fleet-model list` names all of them");
                let configuration = Configuration::find(name).with_context(unknown)?;
                Ok(match without {
                    Some(safeguard) => configuration.without(safeguard),
                    None => configuration,
                })
            })
            .collect::<Result<Vec<_>>>()?,
        Verb::All => Configuration::all(),
    };
    ensure!(!chosen.is_empty(), "nothing to explore");
    let processors = std::thread::available_parallelism();
    let threads = cli
        .threads
        .map_or_else(|| processors.map_or(1, NonZero::get), NonZero::get);
    let mut out = std::io::stdout().lock();
    let mut reports = Vec::new();
    for configuration in chosen {
        writeln!(out, "{}: {}", configuration.name, configuration.about)?;
        let report = explore(configuration, threads);
        tell(&mut out, &report)?;
        reports.push(report);
    }
    let sum = |of: fn(&Report) -> usize| reports.iter().map(of).sum::<usize>();
    let seconds: f64 = reports.iter().map(|r| r.took.as_secs_f64()).sum();
    let json = json!({
        "configurations": reports.len(),
        "states": sum(|r| r.states),
        "transitions": sum(|r| r.transitions),
        "violations": sum(|r| r.violations.len()),
        "missing": sum(|r| r.missing.len()),
        "seconds": (seconds * 10.0).round() / 10.0,
    });
    writeln!(out, "{json}")?;
    Ok(if reports.iter().all(Report::is_good) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn tell(out: &mut impl Write, report: &Report) -> Result<()> {
    writeln!(
        out,
        "  {} states, {} transitions, depth {}, {} states of the engine, {:.1} s",
        report.states,
        report.transitions,
        report.depth,
        report.engine_states,
        report.took.as_secs_f64()
    )?;
    let met = report.met.iter().filter(|(_, times)| *times > 0);
    let met: Vec<String> = met.map(|(met, times)| format!("{times} {}", met.words())).collect();
    writeln!(out, "  met: {}", met.join(", "))?;
    for violation in &report.violations {
        writeln!(out, "VIOLATED: {}\n{}", violation.property, violation.story)?;
    }
    for missing in &report.missing {
        writeln!(out, "NEVER MET: {missing}")?;
    }
    Ok(())
}
