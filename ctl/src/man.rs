//! `rollbackctl man`

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};

use crate::cli::Cli;
use crate::exit::ExitCode;
use crate::output;

/// Write the manual pages: one for rollbackctl, one for each noun, one for each verb
///
/// They say what --help says; packages install them.
///
/// Examples:
///   rollbackctl man --out /usr/local/share/man/man1
///   man rollbackctl-fleet-rollback
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ManArgs {
    /// The directory, which is made when it is not there
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub out: PathBuf,
}

pub fn run(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let written = || format!("write manual pages to {}", args.out.display());
    std::fs::create_dir_all(&args.out).with_context(written)?;
    clap_mangen::generate_to(Cli::command(), &args.out).with_context(written)?;
    output::note(&format!("written to {}", args.out.display()));
    Ok(ExitCode::Done)
}
