//! `rollback-agent observe`: what a coordinator would be told, without one.

use std::process::ExitCode;
use std::sync::Arc;

use clap::ValueEnum;
use rollback_proto::problem::Problem;
use rollback_proto::v1::Health;
use serde::Serialize;

use super::{columns, print};
use crate::driver::Observation;
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
    let components = futures::future::join_all(rows).await;
    let complete = components.iter().all(|row| row.problem.is_none());
    let report = Report {
        schema: "rollback-agent/v1",
        host: settings.name,
        components,
    };
    match args.output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
        Output::Table => print(&table(&report))?,
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn row(name: &str, kind: &'static str, observed: Result<Observation, Problem>) -> Row {
    let name = name.to_owned();
    match observed {
        Ok(Observation {
            revision,
            health,
            detail,
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
    columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
