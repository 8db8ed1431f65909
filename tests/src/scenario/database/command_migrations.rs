//! The runbook's "Migration Rollback": `npm run migrate:status`, `migrate:rollback`, `migrate:status` again, and a count of the
//! users. The project's own tool does it, with a table of its own; the agent only runs it, on a copy first.
//!
//! Two migrations go down and come up again. Before that, the same tool takes its database from a file of its own, as
//! careless ones do: wholly, and for its way down only. Rehearsed as it is, it would take the live database down. It must be
//! found out before that.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::seen::{Seen, rows};
use crate::control::Control;
use crate::postgres::Postgres;
use crate::process::run;
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};

const HOST: &str = "db-1";

/// The table in which the tool notes what it has applied, and when.
const NOTES: &str = "public.applied_migrations";

const USERS: &str = "300";

/// What lies in the project's directory.
const PROJECT: [(&str, &str); 8] = [
    ("package.json", include_str!("../../../zekka/tool/package.json")),
    ("migrate.sh", include_str!("../../../zekka/tool/migrate.sh")),
    (
        "migrations/20240101_session1_users.up.sql",
        include_str!("../../../zekka/tool/migrations/20240101_session1_users.up.sql"),
    ),
    (
        "migrations/20240101_session1_users.down.sql",
        include_str!("../../../zekka/tool/migrations/20240101_session1_users.down.sql"),
    ),
    (
        "migrations/20240115_session2_security.up.sql",
        include_str!("../../../zekka/tool/migrations/20240115_session2_security.up.sql"),
    ),
    (
        "migrations/20240115_session2_security.down.sql",
        include_str!("../../../zekka/tool/migrations/20240115_session2_security.down.sql"),
    ),
    (
        "migrations/20240116_session3_audit.up.sql",
        include_str!("../../../zekka/tool/migrations/20240116_session3_audit.up.sql"),
    ),
    (
        "migrations/20240116_session3_audit.down.sql",
        include_str!("../../../zekka/tool/migrations/20240116_session3_audit.down.sql"),
    ),
];

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let postgres = Postgres::of(control, HOST).await?;
    let project = Project::lay_out(control.host_dir(HOST).join("opt/zekka"), postgres.url())?;
    project.npm("migrate:up")?;
    postgres.migrate(&format!(
        "INSERT INTO users (email) SELECT 'user' || n || '@zekka.example' FROM generate_series(1, {USERS}) n"
    ))?;
    let component = project.component(&postgres, control)?;
    control.add_agent(HOST, "db", &component).await?;
    control.ctl.record("v2.9.0").await?.expect_code(0)?;
    let good = Seen::of(&postgres)?;

    options.say("v3.0.0: npm run migrate:up, twice; and data that only v3.0.0 knows …");
    project.npm("migrate:up")?;
    project.npm("migrate:up")?;
    postgres.migrate(&format!(
        "UPDATE users SET new_column = 'hardened ' || id WHERE id % 3 = 0;\
         INSERT INTO new_feature_table (owner, secret) SELECT n, md5(n::text) FROM generate_series(1, {USERS}) n;\
         INSERT INTO audit (actor, what) SELECT 1 + n % {USERS}, 'login ' || n FROM generate_series(1, 900) n;"
    ))?;
    control.ctl.record("v3.0.0").await?.expect_code(0)?;
    let before = Seen::of(&postgres)?;

    for (what, careless) in [
        ("takes its database from a file", CARELESS),
        ("takes it from a file on its way down only", CARELESS_DOWN),
    ] {
        options.say(format!("The tool {what} …"));
        project.write("migrate.sh", &(careless.to_owned() + TOOL))?;
        let answer = control.ctl.roll_back("v2.9.0").await?;
        ensure!(
            answer.code != 0 && answer.text().contains("RB0712"),
            "a tool that {what} is refused: {answer}"
        );
        Seen::of(&postgres)?
            .expect_untouched(&before)
            .with_context(|| format!("after a tool that {what}"))?;
    }
    project.write("migrate.sh", TOOL)?;

    options.say("Rolling back to v2.9.0 with the tool as it should be …");
    let back = control.ctl.roll_back("v2.9.0").await?.expect_code(0)?.json()?;
    let status = project.npm("migrate:status")?;
    ensure!(
        status == "[x] 20240101_session1_users\n[ ] 20240115_session2_security\n[ ] 20240116_session3_audit\n",
        "the tool itself says:\n{status}"
    );
    ensure!(rows(&postgres, "users")? == USERS, "there are {USERS} users");
    let between = Seen::of(&postgres)?;
    between
        .expect_same_but(&good, NOTES)
        .context("v2.9.0 is not what it was")?;

    options.say("… and forward again, by the tool's way up …");
    let forth = control.ctl.roll_back("v3.0.0").await?.expect_code(0)?.json()?;
    let after = Seen::of(&postgres)?;
    let came_back = after.expect_same_but(&before, NOTES).map_err(|e| format!("{e:#}"));
    ensure!(came_back.is_ok(), "v3.0.0 is not what it was: {came_back:?}");
    Ok(found(json!({
        "back": back["state"],
        "forth": forth["state"],
        "careless_tools_refused": 2,
        "kept_schemas": between.kept.len(),
    })))
}

const TOOL: &str = PROJECT[1].1;

/// `dotenv` with `override`, so to speak.
const CARELESS: &str = ". ./.env\n";
const CARELESS_DOWN: &str = "if [ \"$1\" = down ]; then . ./.env; fi\n";

/// The directory of a project, as a deployment leaves it.
struct Project {
    dir: PathBuf,
    url: String,
}

impl Project {
    fn lay_out(dir: PathBuf, url: String) -> Result<Self> {
        std::fs::create_dir_all(dir.join("migrations")).context("make the project's directory")?;
        let project = Self { dir, url };
        for (name, text) in PROJECT {
            project.write(name, text)?;
        }
        project.write(".env", &format!("export DATABASE_URL='{}'\n", project.url))?;
        Ok(project)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        std::fs::write(self.dir.join(name), text).with_context(|| format!("write {name}"))
    }

    /// As a person runs it, on the live database.
    fn npm(&self, script: &str) -> Result<String> {
        run(Command::new("npm")
            .args(["run", "--silent", script])
            .env("DATABASE_URL", &self.url)
            .current_dir(&self.dir))
    }

    fn component(&self, postgres: &Postgres, control: &Control) -> Result<String> {
        let dir = control.host_dir(HOST);
        // It is not used where there is a tool.
        let common = postgres.component(&dir, &self.dir.join("migrations"), postgres.bin())?;
        let common: String = common
            .lines()
            .filter(|l| !l.starts_with("migrations"))
            .map(|l| format!("{l}\n"))
            .collect();
        let vector = |script: &str| format!("[\"npm\", \"run\", \"--silent\", \"{script}\"]");
        Ok(format!(
            "{common}integrity = [\"SELECT count(*) > 0 FROM users\"]\n\
             [component.tool]\ndirectory = \"{}\"\nstatus = {}\napplied = '^\\[x\\] (\\S+)'\ndown = {}\nup = {}\n\
             tables = [\"applied_migrations\"]\n\
             [component.tool.env]\nHOME = \"{}\"\nDATABASE_URL = \"postgresql://{{user}}@/{{database}}?host={{host}}&port={{port}}\"\n",
            self.dir.display(),
            vector("migrate:status"),
            vector("migrate:rollback"),
            vector("migrate:up"),
            self.dir.display(),
        ))
    }
}
