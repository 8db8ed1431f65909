//! `fleet-simulation run`: one seed in this process, or many in processes of their own, two at a time.

mod many;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Args, Parser, Subcommand};
use fleet_simulation::judge::{self, Verdict};
use fleet_simulation::seed::{Broken, Seed};
use fleet_simulation::world::{self, Scenery};

#[derive(Debug, Parser)]
#[command(about = "Runs the real coordinator and agents over a simulated network, by seed")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs seeds and judges them. The last line of the output is JSON.
    Run(Run),
}

#[derive(Clone, Debug, Args)]
struct Run {
    /// This one.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// So many.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Takes a safeguard away: then violations are what is expected.
    #[arg(long)]
    broken: Option<Broken>,
    /// Stops at the first seed with a violation.
    #[arg(long)]
    first: bool,
    /// Shows what coordinator and agents log, with simulated time.
    #[arg(long, requires = "seed")]
    log: bool,
    /// Shows everything that was recorded.
    #[arg(long, requires = "seed")]
    transcript: bool,
}

fn main() -> ExitCode {
    let Cli {
        command: Command::Run(run),
    } = Cli::parse();
    let done = match run.seed {
        Some(seed) => one(seed, &run),
        None => many::run(&run),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::from(2)
        }
    }
}

/// `true`: it kept the promises.
fn one(seed: u64, run: &Run) -> anyhow::Result<bool> {
    if run.log {
        logs();
    }
    let panics = catch_panics();
    let scenery = Scenery::make()?;
    let (broken, transcript) = (run.broken, run.transcript);
    // A thread of its own: what threads draw from begins at the same point in each, whatever was done before.
    let simulated = std::thread::Builder::new()
        .name("simulation".to_owned())
        .spawn(move || {
            let after = world::run(Seed::draw(seed), broken, &scenery)?;
            if transcript {
                judge::transcript(&after).iter().for_each(|line| say(line));
            }
            anyhow::Ok(judge::judge(&after))
        })?;
    let mut verdict = match simulated.join() {
        Ok(verdict) => verdict?,
        Err(_) => Verdict {
            seed,
            violations: vec!["the simulation itself panicked".to_owned()],
            ..Verdict::default()
        },
    };
    verdict
        .violations
        .extend(panics.lock().unwrap_or_else(PoisonError::into_inner).drain(..));
    for violation in &verdict.violations {
        say(&format!("seed {seed}: {violation}"));
    }
    say(&serde_json::to_string(&verdict)?);
    Ok(verdict.violations.is_empty())
}

/// A task that panics ends, and nobody else would notice.
fn catch_panics() -> Arc<Mutex<Vec<String>>> {
    let panics = Arc::new(Mutex::new(Vec::new()));
    let caught = Arc::clone(&panics);
    std::panic::set_hook(Box::new(move |info| {
        let mut caught = caught.lock().unwrap_or_else(PoisonError::into_inner);
        caught.push(format!("panic: {info}").replace('\n', " "));
    }));
    panics
}

struct SimulatedTime;

impl tracing_subscriber::fmt::time::FormatTime for SimulatedTime {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        write!(w, "{:10.3}", at.as_secs_f64())
    }
}

fn logs() {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| {
        "info,turmoil=off,rollback_coordinator=debug,rollback_agent=debug,fleet_simulation=debug".to_owned()
    });
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_timer(SimulatedTime)
        .with_ansi(false)
        .init();
}

#[expect(clippy::print_stdout, reason = "the output of the program")]
fn say(line: &str) {
    println!("{line}");
}
