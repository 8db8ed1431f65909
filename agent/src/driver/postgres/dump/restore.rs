//! Restores a dump into an existing empty database, never into the live one.
//!
//! Custom and directory dumps go through `pg_restore`, in parallel; plain scripts are sent by us, statement by statement
//! ([`super::script`]). Anything that goes wrong ends it: a database that was restored in part is for dropping.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rollback_proto::problem::{Code, Problem};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;
use tokio::sync::mpsc;

use super::script::{Piece, Script};
use super::{Dump, DumpFormat, statement};
use crate::driver::postgres::backup::{people_bytes, share, telling};
use crate::driver::postgres::config::PostgresConfig;
use crate::driver::postgres::connect::{Sessions, Settings};
use crate::driver::postgres::sql_error::{server_error, sql_problem};
use crate::driver::postgres::tools::Tools;
use crate::step::StepContext;

/// Pieces of a script that are read ahead of the server.
const AHEAD: usize = 16;

/// What a restoring session may do that one in use should not: if the server falls over, the database is dropped and
/// restored again.
pub(in crate::driver::postgres) const CARELESS: [(&str, &str); 2] =
    [("synchronous_commit", "off"), ("maintenance_work_mem", "256MB")];

/// What becomes of owners and grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::driver::postgres) enum Owners {
    /// As the dump has them. The roles must exist.
    Keep,
    /// Everything belongs to whoever restores it: for copies that are only looked at.
    Drop,
}

/// What a restore needs besides the dump.
#[derive(Clone, Copy, Debug)]
pub(in crate::driver::postgres) struct Restoring<'a> {
    pub tools: &'a Tools,
    pub config: &'a PostgresConfig,
    pub sessions: Sessions<'a>,
    pub step: &'a StepContext,
    /// Size of the database that was dumped, for progress. 0: unknown.
    pub expected_bytes: u64,
}

/// [`Code::RestoreFailed`], unless the disk was full, the time over, or a password wrong.
pub(in crate::driver::postgres) async fn restore_dump(
    with: &Restoring<'_>,
    dump: &Dump,
    into: &str,
    owners: Owners,
    jobs: u32,
) -> Result<(), Problem> {
    if into == with.config.database {
        let message = format!("{into} is the live database; a dump is never restored over it");
        return Err(Problem::new(Code::Internal, message));
    }
    match dump.format {
        DumpFormat::Custom | DumpFormat::Directory => {
            let running = watched(with, into, archive(with, dump, into, owners, jobs));
            with.step.operation("pg_restore", running).await
        }
        DumpFormat::Plain => {
            with.step
                .operation("restore_script", plain(with, dump, into, owners))
                .await
        }
    }
}

async fn archive(with: &Restoring<'_>, dump: &Dump, into: &str, owners: Owners, jobs: u32) -> Result<(), Problem> {
    let (into_arg, file, jobs) = (
        format!("--dbname={into}"),
        dump.path.display().to_string(),
        format!("--jobs={jobs}"),
    );
    // A subscription in a copy would be one that its publisher knows nothing of; and a database that has one can be
    // neither exchanged nor dropped.
    let mut args = vec![jobs.as_str(), "--exit-on-error", "--no-password", "--no-subscriptions"];
    match owners {
        Owners::Keep => {}
        Owners::Drop => args.extend(["--no-owner", "--no-privileges"]),
    }
    args.extend([into_arg.as_str(), file.as_str()]);
    with.tools
        .run(with.config, "pg_restore", into, &args, with.step.time_left())
        .await
        .map_err(|e| {
            e.problem(
                Code::RestoreFailed,
                format!("restore {} into {into}", dump.path.display()),
            )
        })
}

/// Says how large the new database is, every second. It is no failure when that cannot be seen.
async fn watched<T>(with: &Restoring<'_>, into: &str, work: impl Future<Output = T>) -> T {
    let size = Arc::new(AtomicU64::new(0));
    let looking = async {
        let Ok(mut c) = with.sessions.quick().maintenance().await else {
            return std::future::pending().await;
        };
        loop {
            let seen = sqlx::query_scalar::<_, i64>("SELECT pg_database_size($1)")
                .bind(into)
                .fetch_one(&mut c)
                .await;
            let Ok(bytes) = seen else {
                return std::future::pending().await;
            };
            size.store(u64::try_from(bytes).unwrap_or_default(), Ordering::Relaxed);
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    };
    let tell = || {
        let bytes = size.load(Ordering::Relaxed);
        let shown = people_bytes(bytes);
        if bytes > 0 && with.expected_bytes > 0 {
            let whole = people_bytes(with.expected_bytes);
            let message = format!("restored {shown} of about {whole}");
            with.step
                .progress_fraction(message, share(bytes, with.expected_bytes).min(0.99));
        } else if bytes > 0 {
            with.step.progress(format!("restored {shown}"));
        }
    };
    tokio::select! {
        result = telling(tell, work) => result,
        never = looking => never,
    }
}

async fn plain(with: &Restoring<'_>, dump: &Dump, into: &str, owners: Owners) -> Result<(), Problem> {
    let settings: Settings = CARELESS
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let mut c = with.sessions.migrator(into, &settings).await?;
    let (send, pieces) = mpsc::channel(AHEAD);
    let read = Arc::new(AtomicU64::new(0));
    let (path, counter) = (dump.path.clone(), Arc::clone(&read));
    // Ends when nobody takes the pieces any more.
    let reader = tokio::task::spawn_blocking(move || {
        let mut script = Script::open(&path)?;
        while let Some(piece) = script.next()? {
            counter.store(script.bytes, Ordering::Relaxed);
            if send.blocking_send(piece).is_err() {
                return Ok(());
            }
        }
        Ok::<_, Problem>(())
    });
    let shown = dump.path.display().to_string();
    let mut tables = 0;
    let sending = send_pieces(&mut c, pieces, owners, &shown, |name| {
        tables += 1;
        let bytes = people_bytes(read.load(Ordering::Relaxed));
        with.step
            .progress(format!("restoring {name} ({tables} tables, {bytes} of the script)"));
    });
    let sent = tokio::time::timeout(with.step.time_left(), sending).await;
    let whole = match reader.await {
        Ok(whole) => whole,
        Err(e) => Err(Problem::from_error(Code::Internal, "read a dump", &e)),
    };
    let _ = sqlx::Connection::close(c).await;
    match sent {
        Ok(sent) => whole.and(sent),
        Err(_) => Err(Problem::new(
            Code::StepTimeout,
            format!("{shown} was not restored in time"),
        )),
    }
}

/// Takes pieces until there are no more. Whether the script was whole is for the reader to say.
async fn send_pieces(
    c: &mut PgConnection,
    mut pieces: mpsc::Receiver<Piece>,
    owners: Owners,
    shown: &str,
    mut copying: impl FnMut(&str),
) -> Result<(), Problem> {
    let failed = |line: u64, what: &str, e: &sqlx::Error| {
        sql_problem(Code::RestoreFailed, format!("line {line} of {shown}: {what}"), e)
    };
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Statement { line, sql } => {
                if statement::is_about_subscriptions(&sql) {
                    continue;
                }
                if owners == Owners::Drop && statement::is_about_owners(&sql) {
                    continue;
                }
                let kind = statement::kind_of(&sql);
                let setting = statement::is_setting(&sql);
                let ran = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *c).await;
                match ran {
                    // A newer pg_dump sets what this server does not know; nothing depends on it.
                    Err(e) if setting && server_error(&e).is_some_and(|e| e.code() == "42704") => {}
                    ran => ran.map(|_| ()).map_err(|e| failed(line, &kind, &e))?,
                }
            }
            Piece::Copy { line, sql } => {
                let table = statement::copied_table(&sql);
                copying(&table);
                let what = format!("COPY {table}");
                let mut copy = c.copy_in_raw(&sql).await.map_err(|e| failed(line, &what, &e))?;
                loop {
                    match pieces.recv().await {
                        Some(Piece::Rows(rows)) => {
                            copy.send(rows).await.map_err(|e| failed(line, &what, &e))?;
                        }
                        Some(Piece::EndOfRows) => break,
                        // The script was cut off here, which the reader says.
                        None | Some(Piece::Statement { .. } | Piece::Copy { .. }) => {
                            return copy
                                .abort("the script was cut off")
                                .await
                                .map_err(|e| failed(line, &what, &e));
                        }
                    }
                }
                copy.finish().await.map_err(|e| failed(line, &what, &e))?;
            }
            Piece::Rows(_) | Piece::EndOfRows => {}
        }
    }
    Ok(())
}
