//! `rollbackctl release import`

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::{ImportReleaseRequest, ImportReleaseResponse};
use serde_json::json;

use crate::cli::{Format, OutputArgs};
use crate::client::RETAIN;
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, imports, json as documents};
use crate::session::Session;

/// Find a release that was never recorded, by the names that it was deployed under
///
/// Every host looks where deployments by hand leave a release called v2.9.0: an
/// image with that tag, a git tag, backups/v2.9.0 beside `current`, an env file
/// .env.production.backup, an nginx file sites-available/NAME.backup, a database
/// dump v2.9.0.dump, DATABASE-v2.9.0.dump or DATABASE_v2.9.0.dump in its directory
/// of backups (also .sql, .sql.gz, .dir). What is found is kept on its host, and
/// the set is stored as a release. Nothing that runs is touched. Each agent's
/// configuration says where its components look.
///
/// A dump is restored into a scratch database, within 9 minutes. Take in a larger
/// one on its host before, which may last 6 hours, or what --timeout says:
///   rollback-agent database adopt COMPONENT DUMP
///
/// All or nothing: when a host has nothing under that name, no release is stored,
/// and the table says where was looked. Then put it there, or decide:
///   --as-is HOST/COMPONENT     what runs now belongs to the release as well (a
///                              database whose schema did not change)
///   --without HOST/COMPONENT   it is no part of it: a rollback leaves it alone. A
///                              proxy that is left out does not take its backends
///                              out while they restart: prefer --as-is for it
///
/// An imported release is not `stable`: name it, `--to previous` does not choose it
/// before a rollback to it was verified.
///
/// Examples:
///   rollbackctl release import v2.9.0 --dry-run
///   rollbackctl release import v2.9.0 --as-is db-1/db --as-is proxy-1/site
///   rollbackctl fleet plan --to v2.9.0
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct ImportArgs {
    /// The name that it was deployed under: 1 to 128 of A-Z a-z 0-9 . _ + -
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Take what runs now for this component; can be given several times
    #[arg(long, value_name = "HOST/COMPONENT")]
    pub as_is: Vec<String>,
    /// Leave this component out of the release; can be given several times
    #[arg(long, value_name = "HOST/COMPONENT")]
    pub without: Vec<String>,
    /// The commit that it was built from
    #[arg(long, value_name = "SHA", default_value = "", hide_default_value = true)]
    pub commit: String,
    /// Anything that helps to choose it at 3 a.m.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub notes: String,
    /// Only look, and say what would be taken
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: ImportArgs) -> anyhow::Result<ExitCode> {
    check_name("release", &args.name)?;
    let mut client = session.client()?;
    client.connect().await?;
    let progress = progress(&args.name);
    let request = ImportReleaseRequest {
        name: args.name.clone(),
        commit: args.commit.clone(),
        notes: args.notes.clone(),
        as_is: args.as_is.clone(),
        without: args.without.clone(),
        dry_run: args.dry_run,
    };
    let answer = client
        .call(RETAIN, request, |mut fleet, request| async move {
            fleet.import_release(request).await
        })
        .await;
    progress.finish_and_clear();
    let response = answer.map_err(|mut error| {
        if error.lost {
            error.problem.remedy = "run the same command again: importing the same thing twice is harmless".to_owned();
        }
        error
    })?;
    let missing = imports::missing(&response.findings);
    let exit = if missing == 0 { ExitCode::Done } else { ExitCode::Error };
    output::data(&match args.output.output {
        Format::Table => imports::table(&response.findings, Paint::stdout()),
        Format::Json => document(&args, &response, exit),
    })?;
    if missing > 0 {
        let problem = incomplete(&args, &response, missing);
        output::note(&output::problem::any_error(&problem.into(), Paint::stderr()));
        return Ok(exit);
    }
    if args.dry_run {
        output::note(&format!(
            "Nothing was stored. To store it: {}",
            imports::command(&args, &[])
        ));
        return Ok(exit);
    }
    let release = response.release.context("the coordinator answered without a release")?;
    output::note(&format!(
        "Release {0} is stored. What a rollback to it would do: rollbackctl fleet plan --to {0}",
        output::text::clean(&release.name)
    ));
    Ok(exit)
}

fn document(args: &ImportArgs, response: &ImportReleaseResponse, exit: ExitCode) -> String {
    let findings: Vec<_> = response.findings.iter().map(documents::import_finding).collect();
    let body = json!({
        "name": args.name,
        "dry_run": args.dry_run,
        "missing": imports::missing(&response.findings),
        "findings": findings,
        "release": response.release.as_ref().map(documents::release),
        "exit_code": exit.number(),
    });
    documents::document("release_import", body)
}

/// The remedy is the whole command: what is missing, left out.
fn incomplete(args: &ImportArgs, response: &ImportReleaseResponse, missing: usize) -> Problem {
    let of = response.findings.len();
    let message = format!(
        "{} not imported: nothing was found for {missing} of {}",
        args.name,
        output::text::count(of, "component", "components")
    );
    Problem::new(Code::ImportIncomplete, message).remedy(format!(
        "put what is missing where the table says and run the command again, or leave it out: {}\n  \
         (--as-is instead of --without where what runs now belongs to the release)",
        imports::command(args, &response.findings)
    ))
}

/// On a terminal, something that moves while the hosts look; indicatif hides it elsewhere.
fn progress(name: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}  {elapsed}").expect("a constant template"));
    bar.set_message(format!(
        "importing {name}: every host looks for it and keeps what it finds"
    ));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
