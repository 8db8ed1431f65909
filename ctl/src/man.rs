//! `rollbackctl man`

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use crate::cli::Cli;
use crate::exit::ExitCode;
use crate::output;
use crate::output::problem::of_file;

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
    let failed = |e: &std::io::Error| of_file(format_args!("write manual pages to {}", args.out.display()), e);
    std::fs::create_dir_all(&args.out).map_err(|e| failed(&e))?;
    let pages = tempfile::tempdir().map_err(|e| failed(&e))?;
    clap_mangen::generate_to(Cli::command(), pages.path()).map_err(|e| failed(&e))?;
    for page in std::fs::read_dir(pages.path()).map_err(|e| failed(&e))? {
        let page = page.map_err(|e| failed(&e))?;
        let text = std::fs::read_to_string(page.path()).map_err(|e| failed(&e))?;
        std::fs::write(args.out.join(page.file_name()), as_written(&text)).map_err(|e| failed(&e))?;
    }
    output::note(&format!("written to {}", args.out.display()));
    Ok(ExitCode::Done)
}

/// Commands are copied from a page: no word is broken, no space is put in, and lines that stand in columns in `--help` stay
/// lines.
fn as_written(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut is_literal = false;
    for line in page.lines() {
        let literal = line.starts_with("  ");
        if literal != is_literal {
            text.push_str(if literal { ".nf\n" } else { ".fi\n" });
            is_literal = literal;
        }
        text.push_str(line);
        text.push('\n');
        if line.starts_with(".TH ") {
            text.push_str(".nh\n.ad l\n");
        }
    }
    text
}
