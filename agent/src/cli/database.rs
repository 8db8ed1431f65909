//! `rollback-agent database …`: the backups of a database, without a coordinator. Works beside a running agent: what must
//! not run at the same time is kept apart by a lock in the directory of backups.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use rollback_proto::problem::{Code, Problem};
use serde::Serialize;

use super::{columns, print};
use crate::driver::postgres::{BackupLine, PostgresDriver, people_bytes};
use crate::step::ProgressSink;
use crate::vault::Vault;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the sealed backups of a database
    #[command(after_long_help = "Examples:
  rollback-agent database list db
  rollback-agent database list db -o json | jq -r '.backups[0].path'

RESTORES says what a restore can take: `yes`; `no: …` with the reason. Only the presence and the length of a dump are
looked at here; its SHA-256 is taken again whenever it is used.")]
    List(ListArgs),
    /// Read backups again and compare them with the SHA-256 that they had when they were proven
    #[command(after_long_help = "Examples:
  rollback-agent database check db          all of them, e.g. from cron
  rollback-agent database check db shop-20261122T051500Z-1a2b3c4d5e6f7a8b

Exit status: 0 when every backup is what it was, 1 otherwise; then standard error says what to do.")]
    Check(CheckArgs),
    /// Make a backup now, prove it by restoring it, and seal it
    #[command(
        long_about = "Dumps the database under one snapshot together with figures of every table, restores the dump into \
                      a scratch database, compares the figures, and seals the dump with its manifest. The live database \
                      is only read. Older backups are retired as the configuration says.",
        after_long_help = "Examples:
  rollback-agent database backup db                        before a deployment
  17 3 * * *  rollback-agent database backup db --quiet    from cron

The dump's path goes to standard output. With --quiet, nothing is printed unless there is a warning
or an error, so that cron sends no mail; `rollback-agent database list db` shows what there is."
    )]
    Backup(BackupArgs),
    /// Take in a dump that somebody else made, after restoring it into a scratch database
    #[command(
        long_about = "Restores the dump into a scratch database, takes figures of every table there, and notes both in a \
                      manifest. The dump stays where it is and is never deleted by us; one that is known and has not \
                      changed is not restored again. Custom (-Fc), directory (-Fd) and \
                      plain dumps (.sql, .sql.gz) are taken. What is in a plain dump is run as SQL by the user of the \
                      configuration: take in only dumps that you trust as much as the database's own administrator.",
        after_long_help = "Examples:
  rollback-agent database adopt db /opt/zekka/backups/zekka_production_20240114.sql
  rollback-agent database adopt db /var/backups/shop.dir"
    )]
    Adopt(AdoptArgs),
    /// List the databases that restores put aside, or drop one of them
    #[command(
        long_about = "A restore exchanges two databases; the one that was live until then is put aside, because it is the \
                      way back. It stays until it is dropped with this command; without a name, those that stay are listed.",
        after_long_help = "Examples:
  rollback-agent database collect db                                   what there is
  rollback-agent database collect db shop_before_1a2b3c4d5e6f7a8b      drop that one

The report of the restore names it, too, and so does the plan of any later rollback."
    )]
    Collect(CollectArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    target: Target,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    target: Target,
    /// One backup, as `list` names it; without it, all
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct BackupArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    work: Work,
}

#[derive(Debug, clap::Args)]
pub(super) struct AdoptArgs {
    #[command(flatten)]
    target: Target,
    /// The dump: a file, or the directory of a directory dump
    #[arg(value_name = "DUMP")]
    dump: PathBuf,
    #[command(flatten)]
    work: Work,
}

#[derive(Debug, clap::Args)]
pub(super) struct CollectArgs {
    #[command(flatten)]
    target: Target,
    /// The database that is to be dropped; without it, all that were put aside are listed
    #[arg(value_name = "DATABASE")]
    database: Option<String>,
}

/// Which database.
#[derive(Debug, clap::Args)]
struct Target {
    #[command(flatten)]
    config: super::ConfigFile,
    /// A component of this host with `kind = "postgres"`
    #[arg(value_name = "COMPONENT")]
    component: String,
}

#[derive(Debug, clap::Args)]
struct Work {
    /// Give up after this long
    #[arg(long, value_name = "DURATION", default_value = "6h", value_parser = duration)]
    timeout: Duration,
    /// Print nothing, but warnings and errors
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Serialize)]
struct Listing {
    schema: &'static str,
    host: String,
    component: String,
    backups: Vec<BackupLine>,
}

pub(super) async fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::List(args) => list(args),
        Verb::Check(args) => check(args).await,
        Verb::Backup(args) => {
            let driver = args.target.open()?;
            let done = driver.back_up(args.work.timeout, args.work.sink()).await?;
            let path = done.receipt.map(|receipt| receipt.path).unwrap_or_default();
            args.work.done(&path, &done.summary)
        }
        Verb::Adopt(args) => {
            let driver = args.target.open()?;
            let adopted = driver.adopt(&args.dump, args.work.timeout, args.work.sink()).await?;
            args.work.done(&adopted.name, &adopted.summary)
        }
        Verb::Collect(args) => collect(args).await,
    }
}

fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let driver = args.target.open()?;
    let backups = driver.backups()?;
    match args.output {
        Output::Json => {
            let listing = Listing {
                schema: "rollback-agent/v1",
                host: args.target.config.load()?.name,
                component: args.target.component,
                backups,
            };
            print(&format!("{}\n", serde_json::to_string_pretty(&listing)?))?;
        }
        Output::Table => print(&table(&backups))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn check(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let answers = args.target.open()?.check_backups(args.name.as_deref()).await?;
    let rows: Vec<Vec<String>> = answers
        .iter()
        .map(|(name, answer)| {
            let answer = answer
                .as_ref()
                .map_or_else(|problem| problem.message.clone(), |()| "as it was".to_owned());
            vec![name.clone(), answer]
        })
        .collect();
    print(&columns(&rows))?;
    for (name, problem) in answers.iter().filter_map(|(name, a)| Some((name, a.as_ref().err()?))) {
        eprintln!("error {}: {name}: {}", problem.code, problem.message);
        eprintln!("  what to do: {}", problem.remedy);
    }
    let whole = answers.iter().all(|(_, answer)| answer.is_ok());
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn collect(args: CollectArgs) -> anyhow::Result<ExitCode> {
    let driver = args.target.open()?;
    if let Some(database) = &args.database {
        eprintln!("{}", driver.collect(database).await?);
        return Ok(ExitCode::SUCCESS);
    }
    let component = &args.target.component;
    let aside = driver.collectable().await?;
    if aside.is_empty() {
        eprintln!("there is no database that a restore of {component} put aside");
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["NAME", "SINCE", "SIZE", "ROLLBACK", "WHAT IT WAS"]
        .map(str::to_owned)
        .to_vec();
    let rows = aside.into_iter().map(|a| {
        let size = a.bytes.map_or_else(|| "unknown".to_owned(), people_bytes);
        vec![a.name, a.since, size, a.rollback, a.what.to_owned()]
    });
    print(&columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>()))?;
    eprintln!("to drop one that nobody needs: rollback-agent database collect {component} NAME");
    Ok(ExitCode::SUCCESS)
}

fn table(backups: &[BackupLine]) -> String {
    let head = [
        "NAME",
        "TAKEN AT",
        "SHOWS",
        "SIZE",
        "TABLES",
        "ROWS",
        "PROVEN BY",
        "RESTORES",
    ]
    .map(str::to_owned)
    .to_vec();
    let rows = backups.iter().map(|b| {
        vec![
            b.name.clone(),
            b.taken_at.clone(),
            b.version.clone(),
            people_bytes(b.bytes),
            b.tables.to_string(),
            b.rows.to_string(),
            b.verified.to_owned(),
            match &b.unfit {
                None => "yes".to_owned(),
                Some(why) => format!("no: {why}"),
            },
        ]
    });
    columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

impl Target {
    fn open(&self) -> anyhow::Result<PostgresDriver> {
        let settings = self.config.load()?;
        refuse_other_user(&settings.state)?;
        let vault = Arc::new(Vault::open(settings.vault_dir())?);
        let driver = settings
            .database(&self.component, &vault)
            .map_err(|mistake| self.config.wrong(mistake))?;
        match driver {
            Some(driver) => Ok(driver),
            None => {
                let known = settings.databases().join(", ");
                let message = format!(
                    "{:?} is not a component of this host with kind = \"postgres\"",
                    self.component
                );
                Err(Problem::new(Code::UnknownComponent, message)
                    .remedy(format!("give one of: {known}"))
                    .into())
            }
        }
    }
}

/// What another user makes here, the agent could not read.
fn refuse_other_user(state: &std::path::Path) -> Result<(), Problem> {
    let Ok(meta) = std::fs::metadata(state) else {
        return Ok(());
    };
    let (owner, ours) = (meta.uid(), rustix::process::geteuid().as_raw());
    if owner == ours {
        return Ok(());
    }
    Err(Problem::new(
        Code::BadCredentials,
        format!("the agent runs as user {owner} and this as user {ours}: it could not read what is made here"),
    )
    .remedy(format!(
        "run it as the agent's user: sudo -u '#{owner}' rollback-agent database …"
    )))
}

fn duration(text: &str) -> Result<Duration, String> {
    jiff::fmt::friendly::SpanParser::new()
        .parse_unsigned_duration(text)
        .map_err(|e| format!("{e}; write 30m, or 2h"))
}

impl Work {
    /// What was made goes to standard output, what there is to say of it to standard error. A warning is said in any case.
    fn done(&self, made: &str, summary: &str) -> anyhow::Result<ExitCode> {
        if !self.quiet {
            print(&format!("{made}\n"))?;
        }
        if !self.quiet || summary.contains("warning: ") {
            eprintln!("{summary}");
        }
        Ok(ExitCode::SUCCESS)
    }

    fn sink(&self) -> Arc<dyn ProgressSink> {
        if self.quiet {
            Arc::new(crate::step::NoProgress)
        } else {
            Arc::new(ToStderr)
        }
    }
}

/// One line for each thing that is done.
#[derive(Debug)]
struct ToStderr;

impl ProgressSink for ToStderr {
    fn progress(&self, message: &str, fraction: Option<f64>) {
        match fraction {
            Some(fraction) => eprintln!("{:3.0} %  {message}", fraction * 100.0),
            None => eprintln!("       {message}"),
        }
    }
}
