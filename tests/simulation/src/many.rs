//! Many seeds, each in a process of its own, as many at a time as there are processors.

use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Context as _;
use clap::ValueEnum as _;
use fleet_simulation::judge::Verdict;
use serde::Serialize;

use crate::{Run, say};

#[derive(Debug, Default, Serialize)]
struct Sum {
    seeds: u64,
    verified: u64,
    undone: u64,
    partial: u64,
    held: u64,
    violations: u64,
    crashes: u64,
    partitions: u64,
    freezes: u64,
    takeovers: u64,
    lost_commits: u64,
    acts: u64,
    effects: u64,
    stale_requests: u64,
    simulated_seconds: u64,
}

/// `true`: all kept the promises.
pub fn run(run: &Run) -> anyhow::Result<bool> {
    let program = std::env::current_exe().context("find this program")?;
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicU64::new(run.from);
    let enough = AtomicBool::new(false);
    let sum = Mutex::new(Sum::default());
    let work = || -> anyhow::Result<()> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= run.from + run.seeds || enough.load(Ordering::Relaxed) {
                return Ok(());
            }
            let verdict = child(&program, seed, run)?;
            if !verdict.violations.is_empty() {
                for violation in &verdict.violations {
                    say(&format!("seed {seed}: {violation}"));
                }
                say(&format!("  again: {}", again(seed, run)));
                enough.fetch_or(run.first, Ordering::Relaxed);
            }
            sum.lock().unwrap_or_else(PoisonError::into_inner).add(&verdict);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(done) => done,
            Err(_) => Err(anyhow::anyhow!("a worker panicked")),
        })
    })?;
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    say(&serde_json::to_string(&sum)?);
    Ok(sum.violations == 0)
}

fn child(program: &std::path::Path, seed: u64, run: &Run) -> anyhow::Result<Verdict> {
    let output = Command::new(program)
        .args(arguments(seed, run))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run seed {seed}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let verdict = text.lines().last().map(serde_json::from_str::<Verdict>);
    Ok(match verdict {
        Some(Ok(verdict)) => verdict,
        Some(Err(_)) | None => Verdict {
            seed,
            violations: vec![format!("it gave no verdict, and ended with {}", output.status)],
            ..Verdict::default()
        },
    })
}

fn arguments(seed: u64, run: &Run) -> Vec<String> {
    let mut arguments = vec!["run".to_owned(), "--seed".to_owned(), seed.to_string()];
    if let Some(broken) = run.broken.and_then(|broken| broken.to_possible_value()) {
        arguments.extend(["--broken".to_owned(), broken.get_name().to_owned()]);
    }
    arguments
}

fn again(seed: u64, run: &Run) -> String {
    format!(
        "cargo run -p fleet-simulation -- {} --log",
        arguments(seed, run).join(" ")
    )
}

impl Sum {
    fn add(&mut self, verdict: &Verdict) {
        self.seeds += 1;
        self.violations += verdict.violations.len() as u64;
        self.crashes += verdict.counts.crashes;
        self.partitions += verdict.counts.partitions;
        self.freezes += verdict.counts.freezes;
        self.takeovers += verdict.takeovers;
        self.lost_commits += verdict.lost_commits;
        self.acts += verdict.acts;
        self.effects += verdict.effects;
        self.stale_requests += verdict.stale_requests;
        self.simulated_seconds += verdict.simulated_seconds as u64;
        for ending in &verdict.endings {
            match ending.as_str() {
                "verified" => self.verified += 1,
                "undone" => self.undone += 1,
                "partial" => self.partial += 1,
                "held" => self.held += 1,
                _ => {}
            }
        }
    }
}
