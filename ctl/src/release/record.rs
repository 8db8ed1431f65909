//! `rollbackctl release record`

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rollback_proto::names::check_name;
use rollback_proto::v1::RecordReleaseRequest;

use super::from_stdin;
use crate::cli::{Format, OutputArgs};
use crate::client::RETAIN;
use crate::exit::ExitCode;
use crate::output::paint::Paint;
use crate::output::{self, json, releases};
use crate::session::Session;

/// Remember what runs on the whole fleet now, under a name, so that it can come
/// back
///
/// Observes every component and keeps what it found on its host (a copy of the
/// files, the migrations with their way down, …). Run it after every good
/// deployment; a release that was not recorded can be rolled back to only if the
/// hosts still have it: rollbackctl release import.
///
/// Recording the same thing under the same name again is fine; a recorded release
/// is never overwritten by another. A release that is held (fleet hold, or a rollback
/// that took the fleet back from it) is not recorded, under any name.
///
/// With --from-stdin a pipeline says what it has deployed, as JSON. Nothing is
/// recorded when something else runs; every difference is told. Fields of `expected`
/// that are left out fit anything:
///   {
///     "name": "v2.9.0", "commit": "1f3a9c0", "notes": "build 812",
///     "expected": [
///       {"component": "api", "version": "v2.9.0"},
///       {"host": "app-1", "component": "web", "digest": "sha256:4be1…"}
///     ]
///   }
///
/// Exit codes: 0 recorded, 1 error (also: something else runs), 3 the release is
/// held.
///
/// Examples:
///   rollbackctl release record v2.9.0
///   ./deployed.sh | rollbackctl release record --from-stdin
///   rollbackctl release record v2.9.0 --commit "$(git rev-parse HEAD)" --notes "before new checkout"
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct RecordArgs {
    /// Its name: 1 to 128 of A-Z a-z 0-9 . _ + -
    #[arg(value_name = "NAME", required_unless_present = "from_stdin")]
    pub name: Option<String>,
    /// Read name, commit, notes and what is expected to run from stdin, as JSON; unknown keys are errors
    #[arg(long, conflicts_with_all = ["commit", "notes"])]
    pub from_stdin: bool,
    /// The commit that it was built from
    #[arg(long, value_name = "SHA", default_value = "", hide_default_value = true)]
    pub commit: String,
    /// Anything that helps to choose it at 3 a.m.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub notes: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub async fn run(session: &Session, args: RecordArgs) -> anyhow::Result<ExitCode> {
    let request = request(&args)?;
    let mut client = session.client()?;
    client.connect().await?;
    let progress = progress(&request.name);
    let answer = client
        .call(RETAIN, request, |mut fleet, request| async move {
            fleet.record_release(request).await
        })
        .await;
    progress.finish_and_clear();
    let response = answer.map_err(|mut error| {
        if error.lost {
            error.problem.remedy = "run the same command again: recording the same thing twice is harmless".to_owned();
        }
        error
    })?;
    let release = response.release.context("the coordinator answered without a release")?;
    output::data(&match args.output.output {
        Format::Table => releases::show(&release, Paint::stdout()),
        Format::Json => json::document("release", json::release(&release)),
    })?;
    Ok(ExitCode::Done)
}

fn request(args: &RecordArgs) -> anyhow::Result<RecordReleaseRequest> {
    if args.from_stdin {
        return Ok(from_stdin::parse(&from_stdin::read()?, args.name.as_deref())?);
    }
    let name = args.name.clone().context("the command line names the release")?;
    check_name("release", &name)?;
    Ok(RecordReleaseRequest {
        name,
        commit: args.commit.clone(),
        notes: args.notes.clone(),
        expected: Vec::new(),
    })
}

/// On a terminal, something that moves while the hosts copy; indicatif hides it elsewhere.
fn progress(name: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}  {elapsed}").expect("a constant template"));
    bar.set_message(format!("recording {name}: every host observes and keeps what it runs"));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
