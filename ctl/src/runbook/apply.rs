//! `rollbackctl runbook apply`

use anyhow::Context as _;
use clap::Args;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::ApplyRunbookRequest;
use serde_json::json;

use super::{FileArgs, Source};
use crate::cli::{Format, OutputArgs};
use crate::client::QUICK;
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, json as documents, runbooks};
use crate::session::Session;

/// Keep a runbook as the next version of its name, for `fleet rollback --runbook NAME`
///
/// The same text again is the same version, so applying from CI is safe. Earlier
/// versions stay: --runbook NAME takes the newest one, NAME@2 an older one. Built-in
/// runbooks cannot be replaced: give your copy another name.
///
/// Exit codes: 0 it is kept (maybe it was already); 1 it has errors, which are listed
/// with their lines.
///
/// Examples:
///   rollbackctl runbook apply web.toml
///   rollbackctl fleet plan --to v2.9.0 --runbook web
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ApplyArgs {
    #[command(flatten)]
    pub file: FileArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let source = Source::read(&args.file.file)?;
    let mut client = session.client()?;
    let linted = source.lint(&mut client).await?;
    let acceptable = linted.runbook.is_some();
    if !linted.findings.is_empty() {
        output::note(&runbooks::findings(
            &source.name,
            &source.text,
            &linted.findings,
            Paint::stderr(),
        ));
    }
    if !acceptable {
        let text = format!("{} was not applied: it has errors", source.name);
        return Err(Problem::new(Code::BadRunbook, text).into());
    }
    let request = ApplyRunbookRequest { text: source.text };
    let answer = client
        .call(QUICK, request, |mut fleet, request| async move {
            fleet.apply_runbook(request).await
        })
        .await?;
    let runbook = answer.runbook.context("the coordinator answered without a runbook")?;
    output::data(&match args.output.output {
        Format::Table => runbooks::applied(&runbook, answer.changed),
        Format::Json => {
            let body = json!({"runbook": documents::runbook(&runbook), "changed": answer.changed});
            documents::document("runbook_applied", body)
        }
    })?;
    Ok(ExitCode::Done)
}
