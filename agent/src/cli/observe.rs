//! `rollback-agent observe`: what a coordinator would be told, without one; and what the checks of this host say now.
//!
//! A check of a log is not asked: it judges what was written since a switch, and there is none here. It is listed all the
//! same, as neither passed nor failed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::ValueEnum;
use rollback_proto::problem::Problem;
use rollback_proto::v1::Health;
use serde::Serialize;

use super::{columns, print};
use crate::check::Check;
use crate::driver::Observation;
use crate::driver::checked::{NamedCheck, hide};
use crate::executor::Limits;
use crate::executor::inspect::observe_one;
use crate::vault::Vault;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: super::ConfigFile,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    host: String,
    components: Vec<Row>,
    checks: Vec<Answer>,
}

/// One `[[check]]`.
#[derive(Debug, Serialize)]
struct Answer {
    name: String,
    component: String,
    /// What is asked.
    target: String,
    result: &'static str,
    detail: String,
}

/// One component. Either all of revision, health and detail are there, or the problem.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    kind: &'static str,
    version: Option<String>,
    digest: Option<String>,
    health: &'static str,
    detail: Option<String>,
    problem: Option<Trouble>,
}

#[derive(Debug, Serialize)]
struct Trouble {
    code: &'static str,
    message: String,
    remedy: String,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = args.config.load()?;
    let vault = Arc::new(Vault::open(settings.vault_dir())?);
    let drivers = settings.drivers(&vault).map_err(|mistake| args.config.wrong(mistake))?;
    let limit = Limits::default().observe;
    let rows = drivers.iter().map(|(name, driver)| async {
        row(
            name,
            driver.info().kind,
            observe_one(name, driver.as_ref(), limit).await,
        )
    });
    let secrets = settings.env_files();
    let answers = settings.checks.iter().map(|check| answer(check, &secrets));
    let (components, checks) =
        futures::future::join(futures::future::join_all(rows), futures::future::join_all(answers)).await;
    let complete = components.iter().all(|row| row.problem.is_none()) && checks.iter().all(|c| c.result != FAILED);
    let report = Report {
        schema: "rollback-agent/v1",
        host: settings.name,
        components,
        checks,
    };
    match args.output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
        Output::Table => print(&table(&report))?,
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const PASSED: &str = "passed";
const FAILED: &str = "failed";
const NOT_ASKED: &str = "not asked";

/// One try: a person who looks wants to know how it is now.
async fn answer(check: &NamedCheck, secrets: &[PathBuf]) -> Answer {
    let (result, detail) = match &check.check {
        Check::Asked(asked) => match asked.once(None).await {
            Ok(passed) => (PASSED, passed.detail),
            Err(problem) => (FAILED, problem.message),
        },
        Check::Log(log) => {
            let wanted = log.patterns().join(", ");
            (
                NOT_ASKED,
                format!("judges the lines since a switch; looks for {wanted}"),
            )
        }
    };
    Answer {
        name: check.name.clone(),
        component: check.component.clone(),
        target: check.check.target(),
        result,
        detail: hide(secrets, detail),
    }
}

fn row(name: &str, kind: &'static str, observed: Result<Observation, Problem>) -> Row {
    let name = name.to_owned();
    match observed {
        Ok(Observation {
            revision,
            health,
            detail,
            // The detail names them.
            out: _,
        }) => Row {
            name,
            kind,
            version: Some(revision.version),
            digest: Some(revision.digest),
            health: match health {
                Health::Healthy => "healthy",
                Health::Unhealthy => "unhealthy",
                Health::Stopped => "stopped",
                Health::Drained => "drained",
                Health::Unknown | Health::Unspecified => "unknown",
            },
            detail: Some(detail),
            problem: None,
        },
        Err(problem) => Row {
            name,
            kind,
            version: None,
            digest: None,
            health: "unknown",
            detail: None,
            problem: Some(Trouble {
                code: problem.code.id(),
                message: problem.message,
                remedy: problem.remedy,
            }),
        },
    }
}

fn table(report: &Report) -> String {
    let head = ["COMPONENT", "KIND", "VERSION", "HEALTH", "DETAIL"]
        .map(str::to_owned)
        .to_vec();
    let rows = report.components.iter().map(|row| {
        let detail = match &row.problem {
            Some(trouble) => format!("{}: {}", trouble.code, trouble.message),
            None => row.detail.clone().unwrap_or_default(),
        };
        let version = row.version.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            row.name.clone(),
            row.kind.to_owned(),
            version,
            row.health.to_owned(),
            detail,
        ]
    });
    let mut text = columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    if !report.checks.is_empty() {
        let head = ["CHECK", "COMPONENT", "RESULT", "TARGET", "DETAIL"]
            .map(str::to_owned)
            .to_vec();
        let rows = report.checks.iter().map(|c| {
            vec![
                c.name.clone(),
                c.component.clone(),
                c.result.to_owned(),
                c.target.clone(),
                c.detail.clone(),
            ]
        });
        text.push('\n');
        text.push_str(&columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
    }
    text
}
