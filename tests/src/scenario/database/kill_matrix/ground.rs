//! One database with its agent, and nothing beside them, so that a rollback there and back takes little time. It swings
//! between two releases, and after every swing it must be what it was when that release was seen first.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::control::Control;
use crate::ctl::{Answer, rollback_to};
use crate::deployed::database::{Database, HOST};
use crate::facts::Data;
use crate::postgres::{DATABASE, ROLE};
use crate::scenario::points::{KILL_AT, KILL_LOG, Point, passed};
use crate::wait;
use crate::zekka::Version;

pub const OLD: Version = Version::V2_9_0;
pub const NEW: Version = Version::V3_1_0;

/// Until the agent passes the point at which it is killed.
const KILLED_WITHIN: Duration = Duration::from_secs(90);

/// For every rollback, however it is disturbed.
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// The setting of the database's role that says which migration is refused by the check: every verification of a release
/// with that one as its highest fails.
const REFUSED: &str = "harness.refused";

/// How the database goes from one release to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    Migrating,
    Restoring,
}

/// A rollback.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    pub means: Means,
    pub to: Version,
    /// It shall be undone, because the release that it leads to is never healthy.
    pub undone: bool,
}

impl Course {
    fn from(self) -> Version {
        if self.to == OLD { NEW } else { OLD }
    }

    /// The release that is live in the end.
    fn end(self) -> Version {
        if self.undone { self.from() } else { self.to }
    }

    /// "migrating to v2.9.0, undone"
    pub fn describe(self) -> String {
        let means = match self.means {
            Means::Migrating => "migrating",
            Means::Restoring => "restoring",
        };
        let end = if self.undone { ", undone" } else { "" };
        format!("{means} to {}{end}", self.to.name())
    }
}

/// What must be the same whenever a release is live.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    migrations: String,
    schema: String,
    data: Data,
    /// Owner, privileges, limits and settings of the database itself.
    settings: String,
}

#[derive(Debug)]
pub struct Ground<'a> {
    control: &'a mut Control,
    database: Database,
    seen: BTreeMap<Version, Seen>,
}

impl<'a> Ground<'a> {
    /// With both releases recorded, and the newer one live.
    pub async fn prepare(control: &'a mut Control) -> Result<Self> {
        let database = Database::of(control).await?;
        database.install(OLD)?;
        let more = format!(
            "retain_backups = 1\n[[check]]\nname = \"healthy\"\ncomponent = \"db\"\nwithin = \"500ms\"\n\
             postgres = {{ host = \"{}\", port = {}, user = \"{ROLE}\", database = \"{DATABASE}\", password_file = \"{}\", \
             query = \"SELECT max(version)::text IS DISTINCT FROM current_setting('{REFUSED}', true) FROM schema_migrations\" }}\n",
            database.postgres.socket().display(),
            database.postgres.port(),
            control.host_dir(HOST).join("db.password").display(),
        );
        control
            .add_agent(HOST, "db", &(database.component().to_owned() + &more))
            .await?;
        let mut ground = Self {
            control,
            database,
            seen: BTreeMap::new(),
        };
        for version in [OLD, NEW] {
            if version != OLD {
                ground.database.install(version)?;
            }
            ground.control.ctl.record(version.name()).await?.expect_code(0)?;
            let seen = ground.look()?;
            ground.seen.insert(version, seen);
        }
        Ok(ground)
    }

    /// A rollback in which nobody is killed. Answers with the points that it passed.
    pub async fn undisturbed(&mut self, course: Course) -> Result<Vec<Point>> {
        let log = self.control.dir().join("points");
        match std::fs::remove_file(&log) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context("remove the log of points"),
            Ok(()) | Err(_) => {}
        }
        self.restart(&[(KILL_LOG, &log.display().to_string())]).await?;
        self.refuse(course)?;
        let answer = self
            .control
            .ctl
            .start(&args(course), false)?
            .answer_within(ENDS_WITHIN)
            .await?;
        self.expect_ended(course, answer)?;
        let mut points = passed(&log)?;
        // The agent's own books are the business of the crash matrix, and heartbeats come at any time.
        let books = ["ledger.", "registration.", "rpc."];
        points.retain(|point| !books.iter().any(|book| point.name.starts_with(book)));
        Ok(points)
    }

    /// A rollback whose agent is killed at a point, and started again. Fails when the agent does not come there.
    pub async fn killed_at(&mut self, course: Course, point: &Point) -> Result<()> {
        self.restart(&[(KILL_AT, &point.to_string())]).await?;
        self.refuse(course)?;
        let running = self.control.ctl.start(&args(course), false)?;
        let mut answer = std::pin::pin!(running.answer_within(ENDS_WITHIN));
        let agent = self.control.agent(HOST)?;
        let what = format!("the agent is killed at {point}");
        let status = tokio::select! {
            status = wait::until(&what, KILLED_WITHIN, async || agent.ended()) => status?,
            answer = &mut answer => bail!("the agent did not pass {point}: {}", answer?),
        };
        ensure!(
            status.signal() == Some(9),
            "the agent ended with {status}, and not by a kill at {point}"
        );
        agent.unexport(KILL_AT);
        agent.run().await?;
        let answer = answer.await?;
        self.control.wait_connected(&[HOST]).await?;
        self.expect_ended(course, answer)
    }

    /// With these variables, and none from before.
    async fn restart(&mut self, env: &[(&str, &str)]) -> Result<()> {
        let agent = self.control.agent(HOST)?;
        agent.stop().await?;
        [KILL_AT, KILL_LOG].iter().for_each(|name| agent.unexport(name));
        for (name, value) in env {
            agent.export(name, value);
        }
        agent.run().await?;
        self.control.wait_connected(&[HOST]).await
    }

    fn refuse(&self, course: Course) -> Result<()> {
        let migration = if course.undone { course.to.schema() } else { 0 };
        let sql = format!("ALTER ROLE {ROLE} SET {REFUSED} = '{migration}'");
        self.database.postgres.psql("postgres", &sql).map(drop)
    }

    fn look(&self) -> Result<Seen> {
        let facts = self.database.facts()?;
        let settings = format!(
            "SELECT d.datdba::regrole, (SELECT array_agg(a::text ORDER BY 1) \
              FROM unnest(coalesce(d.datacl, acldefault('d', d.datdba))) a), d.datconnlimit, d.datallowconn, d.encoding, d.datcollate, \
             (SELECT array_agg(s.setrole::regrole || ' ' || s.setconfig::text ORDER BY 1) FROM pg_db_role_setting s \
              WHERE s.setdatabase = d.oid) FROM pg_database d WHERE d.datname = '{DATABASE}'"
        );
        Ok(Seen {
            migrations: facts.migrations,
            schema: facts.schema,
            data: facts.data.of_the_application(),
            settings: self.database.postgres.psql("postgres", &settings)?,
        })
    }

    /// It ended as it must, and the release that it ended with is what it was before.
    fn expect_ended(&self, course: Course, answer: Answer) -> Result<()> {
        let (code, state) = if course.undone { (5, "undone") } else { (0, "verified") };
        let result = answer.expect_code(code)?.json()?;
        ensure!(
            result["state"] == state,
            "the rollback ended {}, not {state}",
            result["state"]
        );
        let end = course.end();
        let (seen, before) = (self.look()?, &self.seen[&end]);
        ensure!(
            seen.migrations == before.migrations,
            "schema_migrations is {} with {}",
            seen.migrations,
            end.name()
        );
        ensure!(
            seen.schema == before.schema,
            "the schema of {} is not what it was. It was\n{}\nand is\n{}",
            end.name(),
            before.schema,
            seen.schema
        );
        ensure!(
            seen.data == before.data,
            "{} had {:?}, and has {:?}",
            end.name(),
            before.data,
            seen.data
        );
        ensure!(
            seen.settings == before.settings,
            "the database had {}, and has {}",
            before.settings,
            seen.settings
        );
        self.expect_no_locks()?;
        self.expect_databases(course)?;
        self.expect_backups_are_whole()
    }

    /// Sessions of the agent that nobody listens to any more hold locks that are in the way of the next rollback.
    fn expect_no_locks(&self) -> Result<()> {
        let held = self.database.postgres.psql(
            "postgres",
            "SELECT a.datname, a.state, a.query FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
             WHERE l.locktype = 'advisory'",
        )?;
        ensure!(held.is_empty(), "advisory locks are still held: {held}");
        Ok(())
    }

    /// No scratch or side databases. A restore leaves the database that was live before, once it is the other one's turn.
    /// It is let go here.
    fn expect_databases(&self, course: Course) -> Result<()> {
        let postgres = &self.database.postgres;
        let mut names = postgres.databases()?;
        names.retain(|name| name != "postgres" && name != DATABASE);
        let aside: Vec<String> = names
            .extract_if(.., |name| name.starts_with(&format!("{DATABASE}_before_")))
            .collect();
        ensure!(names.is_empty(), "databases that are left over: {names:?}");
        let wanted = usize::from(course.means == Means::Restoring && !course.undone);
        ensure!(
            aside.len() == wanted,
            "{wanted} databases shall be put aside, and there are {aside:?}"
        );
        for name in aside {
            let open = format!("SELECT datallowconn FROM pg_database WHERE datname = '{name}'");
            ensure!(
                postgres.psql("postgres", &open)? == "f",
                "{name} was put aside and takes connections"
            );
            postgres.psql("postgres", &format!("DROP DATABASE \"{name}\""))?;
        }
        Ok(())
    }

    /// Beside sealed backups there is nothing: what one rollback staged is of no use to the next one. And each of them has
    /// both its files.
    fn expect_backups_are_whole(&self) -> Result<()> {
        let backups = self.control.host_dir(HOST).join("backups");
        let entries = std::fs::read_dir(&backups).with_context(|| format!("list {}", backups.display()))?;
        let names: Vec<String> = entries
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        let left: Vec<&String> = names.iter().filter(|n| n.starts_with(".incoming")).collect();
        ensure!(left.is_empty(), "left beside the backups: {left:?}");
        let stems = |ending: &str| {
            names
                .iter()
                .filter_map(|n| n.strip_suffix(ending))
                .collect::<BTreeSet<_>>()
        };
        let (dumps, manifests) = (stems(".dump"), stems(".manifest.json"));
        ensure!(
            dumps == manifests && !dumps.is_empty(),
            "the dumps are {dumps:?}, and the manifests {manifests:?}"
        );
        Ok(())
    }
}

fn args(course: Course) -> Vec<&'static str> {
    let mut args = rollback_to(course.to.name()).to_vec();
    match course.means {
        Means::Migrating => {}
        Means::Restoring => args.extend(["--database", "restore", "--accept-data-loss=all"]),
    }
    args
}
