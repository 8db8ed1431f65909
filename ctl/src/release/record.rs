//! `rollbackctl release record`

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rollback_proto::names::check_name;
use rollback_proto::v1::RecordReleaseRequest;

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
/// is never overwritten by another.
///
/// Examples:
///   rollbackctl release record v2.9.0
///   rollbackctl release record v2.9.0 --commit "$(git rev-parse HEAD)" --notes "before new checkout"
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct RecordArgs {
    /// Its name: 1 to 128 of A-Z a-z 0-9 . _ + -
    #[arg(value_name = "NAME")]
    pub name: String,
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
    check_name("release", &args.name)?;
    let mut client = session.client()?;
    client.connect().await?;
    let progress = progress(&args.name);
    let request = RecordReleaseRequest {
        name: args.name.clone(),
        commit: args.commit.clone(),
        notes: args.notes.clone(),
        expected: Vec::new(),
    };
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

/// On a terminal, something that moves while the hosts copy; indicatif hides it elsewhere.
fn progress(name: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}  {elapsed}").expect("a constant template"));
    bar.set_message(format!("recording {name}: every host observes and keeps what it runs"));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
