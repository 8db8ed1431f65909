//! `rollbackctl runbook lint`

use clap::Args;
use serde_json::json;

use super::{FileArgs, Source};
use crate::cli::{Format, OutputArgs};
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, json as documents, runbooks};
use crate::session::Session;

/// Check a runbook without keeping it: every mistake with its line, and what to write instead
///
/// The coordinator reads it, so what passes here is what it will accept. Warnings are
/// about what is allowed and rarely wanted.
///
/// Exit codes: 0 it could be applied (maybe with warnings); 1 it has errors.
///
/// Examples:
///   rollbackctl runbook show default > web.toml     an example with every key explained
///   rollbackctl runbook lint web.toml
///   rollbackctl runbook lint - < web.toml
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct LintArgs {
    #[command(flatten)]
    pub file: FileArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: LintArgs) -> anyhow::Result<ExitCode> {
    let source = Source::read(&args.file.file)?;
    let mut client = session.client()?;
    let answer = source.lint(&mut client).await?;
    output::data(&match args.output.output {
        Format::Table => runbooks::lint(&source.name, &source.text, &answer, Paint::stdout()),
        Format::Json => {
            let findings: Vec<_> = answer.findings.iter().map(documents::runbook_finding).collect();
            let runbook = answer.runbook.as_ref().map(documents::runbook);
            let body = json!({"file": source.name, "findings": findings, "runbook": runbook});
            documents::document("runbook_lint", body)
        }
    })?;
    Ok(if answer.runbook.is_some() {
        ExitCode::Done
    } else {
        ExitCode::Error
    })
}
