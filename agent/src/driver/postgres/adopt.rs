//! Dumps that somebody else made: taken in after they were restored once, and found by the name of a release.
//!
//! What is taken in is a manifest; the dump stays where it is and is never deleted by us. Its SHA-256 is in the manifest,
//! so a dump that is changed or replaced afterwards is noticed when it is used. What the restored copy showed is in it, too:
//! a dump that is as it was is not restored again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rollback_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnection;

use super::alone::Alone;
use super::archive::Prefer;
use super::backup::{self, JOBS, as_unproven, broken, share};
use super::backups::{self, Sealed};
use super::catalog::Schema;
use super::connect::database_settings;
use super::dump::{Dump, Header, Owners, Restoring, restore_dump};
use super::figures::Figures;
use super::forms::Forms;
use super::manifest::{DatedBy, FORMAT, Manifest, Proof, Shown};
use super::protect::in_time;
use super::sql_error::sql_problem;
use super::staging::{self, Staging, file_problem};
use super::versions::Applied;
use super::{PostgresDriver, State, scratch, tool};
use crate::driver::{Retained, Revision};
use crate::step::{NoProgress, ProgressSink, StepContext};
use crate::words::{count, count_of};

/// How long taking in a dump may last for `release import`; the agent gives it ten minutes for everything. One that takes
/// longer is taken in by hand before.
const RESOLVING: Duration = Duration::from_secs(540);

/// Endings that a dump of a release may have, in the directory of backups.
const ENDINGS: [&str; 4] = ["dump", "sql", "sql.gz", "dir"];

/// A dump that was taken in.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// What the list of backups calls it.
    pub name: String,
    /// For people.
    pub summary: String,
}

impl PostgresDriver {
    /// Takes in a dump. Refused while a step, or another one like this, makes copies of the same database.
    pub async fn adopt(
        &self,
        path: &Path,
        limit: Duration,
        progress: Arc<dyn ProgressSink>,
    ) -> Result<Adopted, Problem> {
        let _alone = Alone::now(&self.config, &self.component, "taking in a dump")?;
        let step = self.step_by_hand("adopt", limit, progress);
        self.begin_by_hand(&step).await?;
        let (sealed, state) = self.take_in(&step, path).await?;
        let summary = self.describe(&sealed, &state, step.rollback_id == sealed.manifest.rollback_id)?;
        Ok(Adopted {
            name: sealed.name,
            summary,
        })
    }

    /// For a release that was never recorded here: the dump that goes by its name, taken in, and its schema pinned.
    pub(super) async fn do_resolve(&self, release: &str) -> Result<Retained, Problem> {
        rollback_proto::names::check_name("release", release)?;
        let places = self.places(release);
        let Some(found) = places.iter().find(|path| path.exists()) else {
            let places: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
            let message = format!("no dump of {release} is at any of: {}", places.join(", "));
            return Err(Problem::new(Code::Unresolved, message));
        };
        let _alone = Alone::now(&self.config, &self.component, &format!("import of {release}"))?;
        let step = self.step_by_hand("import", RESOLVING, Arc::new(NoProgress));
        self.begin_by_hand(&step).await?;
        let (sealed, state) = self
            .take_in(&step, found)
            .await
            .map_err(|problem| self.by_hand_first(problem, found))?;
        if self.archive.recorded(&state.digest)?.is_none() {
            self.record(&state, Prefer::Archive).await?;
        }
        Ok(Retained {
            summary: self.describe(&sealed, &state, step.rollback_id == sealed.manifest.rollback_id)?,
            revision: Revision {
                version: state.version,
                digest: state.digest,
            },
        })
    }

    fn by_hand_first(&self, problem: Problem, dump: &Path) -> Problem {
        if problem.code != Code::StepTimeout {
            return problem;
        }
        problem.remedy(format!(
            "take it in on the host, which may last for hours, and import the release then: rollback-agent \
             database adopt {} {}",
            self.component,
            dump.display()
        ))
    }

    /// Where a dump of a release may be, by the configuration and by convention.
    fn places(&self, release: &str) -> Vec<PathBuf> {
        let (dir, database) = (&self.config.backups, &self.config.database);
        let configured = self
            .config
            .dumps
            .iter()
            .map(|p| PathBuf::from(p.replace("{release}", release)));
        let stems = [
            release.to_owned(),
            format!("{database}-{release}"),
            format!("{database}_{release}"),
        ];
        let conventional = stems
            .iter()
            .flat_map(|stem| ENDINGS.map(|ending| dir.join(format!("{stem}.{ending}"))));
        configured.chain(conventional).collect()
    }

    /// Restores the dump into a scratch database, reads what is there, and writes the manifest. A dump that is known
    /// and has not changed is not restored again.
    async fn take_in(&self, step: &StepContext, path: &Path) -> Result<(Sealed, State), Problem> {
        let failed = |e: std::io::Error| file_problem(format!("read {}", path.display()), &e);
        let dump = Dump::recognise(&std::fs::canonicalize(path).map_err(failed)?)?;
        let known = backups::list(&self.config, &self.component)?;
        let same = |b: &&Sealed| b.dump.path == dump.path;
        if let Some(own) = known.iter().filter(same).find(|b| b.manifest.external.is_none()) {
            let message = format!("{} is a backup of ours already: {}", dump.path.display(), own.name);
            return Err(Problem::new(Code::BackupUnproven, message).remedy("nothing; a restore can take it"));
        }
        step.progress(format!("reading {} ({})", dump.path.display(), dump.format.name()));
        let (sha256, bytes) = step.operation("sha256_dump", dump.sha256()).await?;
        let unchanged = |b: &&Sealed| b.manifest.sha256 == sha256 && b.manifest.bytes == bytes;
        let found = known.iter().filter(same).filter(unchanged).find_map(|b| {
            let shown = b.manifest.shown.clone()?;
            Some((b.clone(), shown))
        });
        let (sealed, state) = match found {
            Some((found, shown)) => in_time(step, self.known(step, found, shown)).await?,
            None => self.restore_once(step, &dump, (sha256, bytes)).await?,
        };
        // What was known of what was in its place before.
        let stale = known.iter().filter(same).map(|b| &b.manifest_path);
        for path in stale.filter(|path| **path != sealed.manifest_path) {
            std::fs::remove_file(path).map_err(|e| file_problem(format!("remove {}", path.display()), &e))?;
        }
        Ok((sealed, state))
    }

    async fn restore_once(
        &self,
        step: &StepContext,
        dump: &Dump,
        content: (String, u64),
    ) -> Result<(Sealed, State), Problem> {
        let name = scratch::name(&self.config.database, &self.tag_by_hand(step));
        let sessions = self.connector.patient(step);
        let taken = in_time(step, self.read_copy(step, dump, &name, content)).await;
        let dropped = step.operation("dropdb", scratch::drop(sessions, &name)).await;
        let (manifest, state) = taken?;
        if let Err(problem) = dropped {
            step.progress(scratch::left_for_now(&name, &problem));
        }
        let name = format!(
            "{}-{}-adopted-{}",
            manifest.database,
            manifest.taken_at.strftime("%Y%m%dT%H%M%SZ"),
            scratch::short(&dump.path.display().to_string())
        );
        let manifest_path = self.config.backups_dir()?.join(format!("{name}.manifest.json"));
        staging::write_json(&manifest_path, &manifest)?;
        let sealed = Sealed {
            name,
            manifest,
            manifest_path,
            dump: dump.clone(),
        };
        Ok((sealed, state))
    }

    /// A dump that was restored before. What it shows is told anew: since then, more releases may have been recorded.
    async fn known(
        &self,
        step: &StepContext,
        mut sealed: Sealed,
        mut shown: Shown,
    ) -> Result<(Sealed, State), Problem> {
        let taught_by = shown.taught_by.clone();
        let state = self.state_of_copy(step, &mut shown).await?;
        let m = &mut sealed.manifest;
        if (&m.revision, &m.version, &taught_by) != (&state.digest, &state.version, &shown.taught_by) {
            m.revision.clone_from(&state.digest);
            m.version.clone_from(&state.version);
            m.shown = Some(shown);
            staging::write_json(&sealed.manifest_path, m)?;
        }
        Ok((sealed, state))
    }

    /// Restores the dump and reads everything that a manifest says.
    async fn read_copy(
        &self,
        step: &StepContext,
        dump: &Dump,
        name: &str,
        (sha256, bytes): (String, u64),
    ) -> Result<(Manifest, State), Problem> {
        let failed = |e| sql_problem(Code::BackupUnproven, format!("read {name}"), &e);
        let sessions = self.connector.patient(step);
        let (tools, server_version) = step.operation("find_tools", self.tools(sessions)).await?;
        let reading = Header::read(&tools, dump, step.time_left());
        let (header, needs) = step.operation("read_header", reading).await.map_err(unusable)?;
        let mut live = sessions.live().await?;
        let settings = database_settings(&mut live).await.map_err(failed)?;
        let creating = scratch::create(sessions, &mut live, name, &step.rollback_id);
        step.operation("createdb", creating).await?;
        let _ = sqlx::Connection::close(live).await;
        let with = Restoring {
            tools: &tools,
            config: &self.config,
            sessions,
            step,
            expected_bytes: 0,
        };
        restore_dump(&with, dump, name, Owners::Drop, JOBS)
            .await
            .map_err(unusable)?;
        let look = async {
            let mut c = sessions.reader(name).await?;
            let mut shown = Shown {
                schema: Schema::read(&mut c).await.map_err(failed)?,
                applied: tool::applied(&self.config, &self.component, &mut c, name).await?,
                taught_by: String::new(),
            };
            let state = self.state_of_copy(step, &mut shown).await?;
            let told = |table: &str, i: usize, of: usize| {
                let message = format!("figures of {table} taken ({i} of {of} tables)");
                step.progress_fraction(message, share(i as u64, of as u64));
            };
            let figures = Figures::read(&mut c, told).await.map_err(failed)?;
            let size = database_size(&mut c).await.map_err(failed)?;
            let _ = sqlx::Connection::close(c).await;
            Ok::<_, Problem>((state, shown, figures, size))
        };
        let (state, shown, figures, database_bytes) = step.operation("read_figures", look).await?;
        refuse_empty(dump, &figures)?;
        let broken = step
            .operation("integrity_checks", broken(sessions, &self.config, name, &settings))
            .await?;
        // Somebody may have been writing it all the while.
        if step.operation("sha256_dump", dump.sha256()).await? != (sha256.clone(), bytes) {
            let message = format!("{} changed while it was read", dump.path.display());
            return Err(Problem::new(Code::BackupUnproven, message).remedy("wait until it is written, and try again"));
        }
        let (taken_at, dated_by) = match header.created {
            Some(created) => (created, DatedBy::Header),
            None => (modified(&dump.path)?, DatedBy::Modified),
        };
        let manifest = Manifest {
            format: FORMAT,
            database: self.config.database.clone(),
            component: self.component.clone(),
            rollback_id: step.rollback_id.clone(),
            revision: state.digest.clone(),
            version: state.version.clone(),
            restored_revision: Some(shown.schema.digest(&shown.applied)),
            server_version: header.server_version.unwrap_or(server_version),
            taken_at,
            dated_by,
            sha256,
            bytes,
            dump_format: dump.format,
            external: Some(dump.path.clone()),
            figures,
            proof: Some(Proof::Restore),
            horizon: None,
            database_bytes,
            extensions: needs.extensions.into_iter().map(|name| (name, String::new())).collect(),
            roles: needs.roles,
            broken,
            shown: Some(shown),
        };
        Ok((manifest, state))
    }

    /// The state of a restored dump in the forms that were recorded.
    async fn state_of_copy(&self, step: &StepContext, shown: &mut Shown) -> Result<State, Problem> {
        let state = self.recorded_forms_of(shown)?;
        if self.archive.recorded(&state.digest)?.is_some() {
            return Ok(state);
        }
        self.learn_forms(step, &mut shown.taught_by).await?;
        self.recorded_forms_of(shown)
    }

    fn recorded_forms_of(&self, shown: &Shown) -> Result<State, Problem> {
        let schema = Forms::load(&self.config)?.recorded(shown.schema.clone());
        self.state_with(schema, shown.applied.clone())
    }

    /// Finds out how the live schema would look if it were restored: most of it is in earlier releases, too. Without this
    /// the dump of a release that was recorded might look like one that was not. Does nothing when the live schema is
    /// still the one in `taught_by`, which is brought up to date.
    async fn learn_forms(&self, step: &StepContext, taught_by: &mut String) -> Result<(), Problem> {
        let sessions = self.connector.patient(step);
        let failed = |e| sql_problem(Code::BackupUnproven, "restore the schema of the database", &e);
        let mut live = sessions.live().await?;
        let live_schema = Schema::read(&mut live).await.map_err(failed)?;
        let _ = sqlx::Connection::close(live).await;
        let teacher = live_schema.digest(&Applied::default());
        if *taught_by == teacher {
            return Ok(());
        }
        let live_schema = Forms::load(&self.config)?.recorded(live_schema);
        let (tools, _) = self.tools(sessions).await?;
        let tag = self.tag_by_hand(step);
        let staging = Staging::new(self.config.backups_dir()?, &tag);
        staging.begin_dump()?;
        // Another name than the copy's, which is still there; as easily recognised when it is left.
        let name = format!("{}s", scratch::name(&self.config.database, &tag));
        let restored = async {
            let file = format!("--file={}", staging.dump().display());
            let args = ["--format=custom", "--schema-only", "--no-password", &file];
            tools
                .run(&self.config, "pg_dump", &self.config.database, &args, step.time_left())
                .await
                .map_err(|e| e.problem(Code::BackupUnproven, "dump the schema of the database"))?;
            let mut live = sessions.live().await?;
            scratch::create(sessions, &mut live, &name, &step.rollback_id).await?;
            let _ = sqlx::Connection::close(live).await;
            let with = Restoring {
                tools: &tools,
                config: &self.config,
                sessions,
                step,
                expected_bytes: 0,
            };
            let dump = Dump::recognise(&staging.dump())?;
            restore_dump(&with, &dump, &name, Owners::Drop, 1)
                .await
                .map_err(as_unproven)?;
            let mut c = sessions.reader(&name).await?;
            let schema = Schema::read(&mut c).await.map_err(failed)?;
            let _ = sqlx::Connection::close(c).await;
            Ok::<_, Problem>(schema)
        };
        let restored = restored.await;
        let dropped = scratch::drop(sessions, &name).await;
        staging.remove()?;
        let copy = restored?;
        dropped?;
        let mut forms = Forms::load(&self.config)?;
        // A live database that was restored itself has these forms already, and recorded ones stand for them.
        if forms.learn(&forms.clone().recorded(live_schema), &copy) {
            forms.save(&self.config)?;
        }
        *taught_by = teacher;
        Ok(())
    }

    /// What was found, and what to be careful about.
    fn describe(&self, sealed: &Sealed, state: &State, new: bool) -> Result<String, Problem> {
        let m = &sealed.manifest;
        let mut text = format!(
            "{} {} ({}): {}, {}, {}, schema {}; it shows {} ({})",
            if new { "took in" } else { "known already:" },
            sealed.dump.path.display(),
            m.dump_format.name(),
            backup::people_bytes(m.bytes),
            count_of(m.figures.tables.len(), "table", "tables"),
            count(m.figures.rows(), "row", "rows"),
            m.version,
            m.taken_at.strftime("%Y-%m-%d %H:%M:%SZ"),
            m.dated_by.describe(),
        );
        if self.archive.recorded(&state.digest)?.is_none() {
            text.push_str(&format!(
                "; warning: its schema is none that was recorded on this host: {} ({})",
                state.version, state.digest
            ));
        }
        for what in &m.broken {
            text.push_str(&format!("; warning: {what}"));
        }
        // The checks and the way in which migrations are noted are the configuration's, which may be another one now.
        if !new {
            text.push_str(&format!(
                "; to have it restored and read anew, move {} away first",
                sealed.manifest_path.display()
            ));
        }
        Ok(text)
    }
}

/// What to do about a dump that cannot be restored is about the dump, unless its reader knew better.
fn unusable(problem: Problem) -> Problem {
    let general = problem.remedy == problem.code.remedy();
    let problem = as_unproven(problem);
    if !general || problem.code != Code::BackupUnproven {
        return problem;
    }
    problem.remedy(
        "nothing was changed; if the dump was cut off or is damaged, give a whole one; if the server lacks what the message \
         names (an extension, a type, a function), install that, and take the dump in again",
    )
}

/// It could be restored, and still there is nothing in it to go back to.
fn refuse_empty(dump: &Dump, figures: &Figures) -> Result<(), Problem> {
    let why = match figures.tables.len() {
        0 => "has no table in it".to_owned(),
        tables if figures.rows() == 0 => format!("has {} and not one row", count_of(tables, "table", "tables")),
        _ => return Ok(()),
    };
    let message = format!("{} {why}: it is no backup of data", dump.path.display());
    Err(Problem::new(Code::BackupUnproven, message)
        .remedy("look for the dump that was meant; --schema-only makes one without rows"))
}

fn modified(path: &Path) -> Result<Timestamp, Problem> {
    let failed = |e: std::io::Error| file_problem(format!("look at {}", path.display()), &e);
    let modified = std::fs::metadata(path).and_then(|m| m.modified()).map_err(failed)?;
    Timestamp::try_from(modified).map_err(|e| Problem::from_error(Code::FileFailed, "read a time", &e))
}

async fn database_size(c: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let size: i64 = sqlx::query_scalar("SELECT pg_database_size(current_database())")
        .fetch_one(c)
        .await?;
    Ok(u64::try_from(size).unwrap_or_default())
}
