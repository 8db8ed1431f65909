//! `rollbackctl runbook …`

pub mod apply;
pub mod lint;
pub mod list;
pub mod show;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use rollback_proto::problem::Problem;
use rollback_proto::v1::{LintRunbookRequest, LintRunbookResponse};

use crate::cli::Format;
use crate::client::{Client, QUICK};
use crate::output::problem::of_file;

#[derive(Subcommand, Debug)]
pub enum Verb {
    Lint(lint::LintArgs),
    Apply(apply::ApplyArgs),
    List(list::ListArgs),
    Show(show::ShowArgs),
}

impl Verb {
    pub fn format(&self) -> Format {
        match self {
            Verb::Lint(args) => args.output.output,
            Verb::Apply(args) => args.output.output,
            Verb::List(args) => args.output.output,
            Verb::Show(args) => args.output.output,
        }
    }
}

/// A file with a runbook, and what it is called in messages.
struct Source {
    name: String,
    text: String,
}

impl Source {
    /// "-" is stdin.
    fn read(path: &Path) -> Result<Self, Problem> {
        if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| of_file("read stdin", &e))?;
            let name = "stdin".to_owned();
            return Ok(Self { name, text });
        }
        let text = std::fs::read_to_string(path).map_err(|e| of_file(format_args!("read {}", path.display()), &e))?;
        Ok(Self {
            name: path.display().to_string(),
            text,
        })
    }

    async fn lint(&self, client: &mut Client) -> anyhow::Result<LintRunbookResponse> {
        let request = LintRunbookRequest {
            text: self.text.clone(),
        };
        let response = client
            .call(QUICK, request, |mut fleet, request| async move {
                fleet.lint_runbook(request).await
            })
            .await?;
        Ok(response)
    }
}

/// What `lint` and `apply` read.
#[derive(clap::Args, Debug)]
pub struct FileArgs {
    /// A TOML file; "-" reads stdin
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub file: PathBuf,
}
