//! What an agent's configuration says about a PostgreSQL component, and the checks that need no server.
//!
//! Names that later reach a program or a statement are checked here once. A database name is never free text: `--`
//! does not stop `host=…` or `postgresql://…` from being taken as connection settings by `pg_dump`.
//!
//! What is said of the project's own migration tool is in [`tool`], of integrity checks in [`integrity`].

mod integrity;
mod tool;

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rollback_proto::problem::{Code, Problem};
use serde::Deserialize;

pub use self::integrity::IntegrityCheck;
pub use self::tool::ToolConfig;

/// Longest identifier that PostgreSQL keeps whole, in bytes.
const MAX_IDENTIFIER: usize = 63;

/// How a backup is proven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Restored into a scratch database, and the figures of every table compared.
    #[default]
    Restore,
    /// Only the file's SHA-256 is taken and checked. A dump that cannot be restored is not noticed.
    Checksum,
}

/// `[component.<name>]` with `kind = "postgres"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    pub database: String,
    /// Directory of the server's socket, or a host name.
    #[serde(default = "default_host")]
    pub host: String,
    #[serde(default = "default_port")]
    pub port: u16,
    #[serde(default = "default_user")]
    pub user: String,
    /// Holds the password and nothing else. Mode 0600 or stricter.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// Where CREATE and DROP DATABASE are sent from.
    #[serde(default = "default_maintenance_database")]
    pub maintenance_database: String,
    /// Holds `NNN_name.up.sql` and `NNN_name.down.sql`, or dbmate's `NNN_name.sql` with both parts. Only a `tool` can do
    /// without it.
    #[serde(default)]
    pub migrations: Option<PathBuf>,
    /// Holds hand-written ways down, `NNN_name.sql`. They go before what the migrations say.
    #[serde(default)]
    pub manual: Option<PathBuf>,
    /// The project's own migration tool, instead of SQL that the driver runs itself.
    #[serde(default)]
    pub tool: Option<ToolConfig>,
    /// Where the project's migration tool notes what is applied; `table` or `schema.table`.
    #[serde(default = "default_version_table")]
    pub version_table: String,
    /// Made with mode 0700 when it is absent. Dumps are not encrypted by us: that is left to the file system.
    pub backups: PathBuf,
    /// Sealed backups of this database that are kept, the newest first.
    #[serde(default = "default_retain_backups")]
    pub retain_backups: u32,
    /// Where dumps of a release that was never recorded here may be; `{release}` stands for its name.
    #[serde(default)]
    pub dumps: Vec<String>,
    /// Recording a release also makes a sealed backup of the database as it is then.
    #[serde(default)]
    pub backup_on_record: bool,
    /// What must hold of the data, after every move and in every copy that proves something.
    #[serde(default)]
    pub integrity: Vec<IntegrityCheck>,
    #[serde(default)]
    pub verify: Verify,
    /// How long a migration may wait for a lock before it lets the queries behind it pass and tries again.
    #[serde(default = "default_lock_timeout", deserialize_with = "crate::duration::deserialize")]
    pub lock_timeout: Duration,
    /// Limit for each statement of a migration.
    #[serde(
        default = "default_statement_timeout",
        deserialize_with = "crate::duration::deserialize"
    )]
    pub statement_timeout: Duration,
    /// Where `pg_dump` and `pg_restore` are. Without it they are looked for.
    #[serde(default)]
    pub bin_dir: Option<PathBuf>,
    /// A backup that `stage` proved is sealed by `snapshot` when it is not older than this; otherwise a new one is made.
    #[serde(
        default = "default_snapshot_max_age",
        deserialize_with = "crate::duration::deserialize"
    )]
    pub snapshot_max_age: Duration,
    /// A backup that is older is none that a way back should go by: a plan, and the check in the background, are blocked by
    /// it. Who has agreed to the loss may restore it all the same.
    #[serde(
        default = "default_backup_max_age",
        deserialize_with = "crate::duration::deserialize"
    )]
    pub backup_max_age: Duration,
}

fn default_host() -> String {
    "/var/run/postgresql".to_owned()
}

fn default_port() -> u16 {
    5432
}

fn default_user() -> String {
    "postgres".to_owned()
}

fn default_maintenance_database() -> String {
    "postgres".to_owned()
}

fn default_version_table() -> String {
    "schema_migrations".to_owned()
}

fn default_retain_backups() -> u32 {
    5
}

fn default_lock_timeout() -> Duration {
    Duration::from_millis(500)
}

fn default_statement_timeout() -> Duration {
    Duration::from_secs(300)
}

fn default_snapshot_max_age() -> Duration {
    Duration::from_secs(300)
}

fn default_backup_max_age() -> Duration {
    Duration::from_secs(30 * 24 * 3600)
}

fn bad(message: String) -> Problem {
    Problem::new(Code::BadConfig, message)
}

impl PostgresConfig {
    /// Checks everything that can be checked without the server. Makes nothing.
    pub fn validate(&self) -> Result<(), Problem> {
        check_identifier("database", &self.database)?;
        check_identifier("maintenance_database", &self.maintenance_database)?;
        check_identifier("user", &self.user)?;
        if self.database == self.maintenance_database {
            return Err(bad(format!(
                "maintenance_database must not be the managed database {}",
                self.database
            )));
        }
        check_host(&self.host)?;
        if self.port == 0 {
            return Err(bad("port must not be 0".into()));
        }
        check_table("version_table", &self.version_table)?;
        for (key, path) in [
            ("migrations", self.migrations.as_ref()),
            ("manual", self.manual.as_ref()),
            ("backups", Some(&self.backups)),
            ("password_file", self.password_file.as_ref()),
            ("bin_dir", self.bin_dir.as_ref()),
        ] {
            if let Some(path) = path
                && !path.is_absolute()
            {
                return Err(bad(format!("{key} {} must be an absolute path", path.display())));
            }
        }
        self.check_sources()?;
        integrity::check_all(&self.integrity)?;
        self.dumps.iter().try_for_each(|pattern| check_dumps(pattern))?;
        if self.retain_backups == 0 {
            return Err(bad("retain_backups must be at least 1".into()));
        }
        for (key, value) in [
            ("lock_timeout", self.lock_timeout),
            ("statement_timeout", self.statement_timeout),
        ] {
            // PostgreSQL takes 0 for "no limit", and 2^31 ms for an error.
            if value.is_zero() || value > Duration::from_secs(24 * 3600) {
                return Err(bad(format!("{key} must be between 1ms and 24h")));
            }
        }
        self.password().map(|_| ())
    }

    /// Where migrations come from: one source, and one that can be used.
    fn check_sources(&self) -> Result<(), Problem> {
        let Some(tool) = &self.tool else {
            return match &self.migrations {
                Some(_) => Ok(()),
                None => Err(bad(
                    "migrations is missing: the directory of the migrations' SQL; or a [tool]".into(),
                )),
            };
        };
        if self.manual.is_some() {
            return Err(bad(
                "manual and tool exclude each other: a tool would not notice what was taken down by hand".into(),
            ));
        }
        tool.check()
    }

    /// Reads the password, refusing a file that others can read.
    pub(super) fn password(&self) -> Result<Option<String>, Problem> {
        let Some(path) = &self.password_file else {
            return Ok(None);
        };
        let refuse =
            |why: String| Problem::new(Code::BadCredentials, format!("password_file {}: {why}", path.display()));
        let meta = std::fs::metadata(path).map_err(|e| refuse(e.to_string()))?;
        if !meta.is_file() {
            return Err(refuse("it is not a file".into()));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(refuse(format!(
                "mode {:04o} lets others read it; chmod 600",
                meta.mode() & 0o7777
            )));
        }
        let text = std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))?;
        let password = text.strip_suffix('\n').unwrap_or(&text);
        let password = password.strip_suffix('\r').unwrap_or(password);
        if password.is_empty() || password.contains(['\n', '\r', '\0']) {
            return Err(refuse("it must hold one line, the password".into()));
        }
        Ok(Some(password.to_owned()))
    }

    /// The directory for backups, made when absent, refused when others can look into it.
    pub(super) fn backups_dir(&self) -> Result<&Path, Problem> {
        let dir = &self.backups;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| Problem::from_error(Code::FileFailed, format!("make {}", dir.display()), &e))?;
        self.check_backups_mode()?;
        Ok(dir)
    }

    /// Refuses a directory that others can look into. One that does not exist yet will be made as it should be.
    pub(super) fn check_backups_mode(&self) -> Result<(), Problem> {
        let dir = &self.backups;
        let mode = match std::fs::metadata(dir) {
            Ok(meta) => meta.permissions().mode(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => {
                return Err(Problem::from_error(
                    Code::FileFailed,
                    format!("look at {}", dir.display()),
                    &e,
                ));
            }
        };
        if mode & 0o077 != 0 {
            let mode = mode & 0o7777;
            let message = format!(
                "backups directory {} has mode {mode:04o}: others could read backups",
                dir.display()
            );
            return Err(Problem::new(Code::BadCredentials, message).remedy("chmod 700 the directory"));
        }
        Ok(())
    }
}

/// `/var/backups/zekka/{release}.dump`
fn check_dumps(pattern: &str) -> Result<(), Problem> {
    let rest = pattern.replacen("{release}", "", 1);
    if !pattern.starts_with('/') {
        return Err(bad(format!("dumps: {pattern:?} must be an absolute path")));
    }
    if rest.len() == pattern.len() || rest.contains(['{', '}']) {
        return Err(bad(format!(
            "dumps: {pattern:?} must have {{release}} in it once, and no other braces"
        )));
    }
    if rest.split('/').any(|part| part == "..") {
        return Err(bad(format!("dumps: {pattern:?} must not have .. in it")));
    }
    Ok(())
}

fn check_identifier(key: &str, name: &str) -> Result<(), Problem> {
    let shown: String = name.chars().take(40).collect();
    if name.is_empty() || name.len() > MAX_IDENTIFIER {
        return Err(bad(format!("{key} {shown:?} must have 1 to {MAX_IDENTIFIER} bytes")));
    }
    if name.starts_with(['-', '.']) {
        return Err(bad(format!("{key} {shown:?} begins with '-' or '.'")));
    }
    match name
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+')))
    {
        Some(c) => Err(bad(format!(
            "{key} {shown:?} has the character {c:?}; allowed are A-Z a-z 0-9 . _ + -"
        ))),
        None => Ok(()),
    }
}

fn check_host(host: &str) -> Result<(), Problem> {
    let ok = match host.strip_prefix('/') {
        Some(path) => !path.is_empty() && !path.contains([',', '\0', '\n']),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && !host.starts_with('-')
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '_'))
        }
    };
    let shown: String = host.chars().take(60).collect();
    if ok {
        Ok(())
    } else {
        Err(bad(format!(
            "host {shown:?} is neither the directory of a socket nor a host name"
        )))
    }
}

fn check_table(key: &str, name: &str) -> Result<(), Problem> {
    let part = |p: &str| {
        !p.is_empty()
            && p.len() <= MAX_IDENTIFIER
            && !p.starts_with(|c: char| c.is_ascii_digit())
            && p.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let ok = match name.split_once('.') {
        Some((schema, table)) => part(schema) && part(table),
        None => part(name),
    };
    let shown: String = name.chars().take(60).collect();
    if ok {
        Ok(())
    } else {
        Err(bad(format!("{key} {shown:?} must be a table, or schema.table")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> Result<PostgresConfig, toml::de::Error> {
        toml::from_str(&format!(
            "database = 'shop'\nmigrations = '/srv/m'\nbackups = '/srv/b'\n{extra}"
        ))
    }

    #[test]
    fn defaults_are_valid() {
        let config = config("").expect("the smallest configuration");
        assert_eq!(config.verify, Verify::Restore);
        assert_eq!(config.lock_timeout, Duration::from_millis(500));
        config.validate().expect("valid");
    }

    #[test]
    fn unknown_keys_and_bad_durations_are_refused() {
        assert!(config("databse = 'x'").is_err());
        assert!(config("lock_timeout = '5'").is_err());
        assert!(config("verify = 'trust'").is_err());
        assert!(config("[tool]\ndirectory = '/x'\nstatus = ['a']\ndown = ['a']\nup = ['a']\nshell = 'x'").is_err());
    }

    #[test]
    fn sources_of_migrations_and_dumps_are_checked() {
        let valid = |extra: &str| config(extra).expect(extra).validate();
        valid("manual = '/etc/m'\ndumps = ['/b/{release}.dump', '/b/{release}/all.sql']\nbackup_on_record = true")
            .expect("valid");
        valid("integrity = ['SELECT true', { name = 'users', sql = 'SELECT count(*) > 0 FROM users;' }]")
            .expect("valid");
        let tool = "[tool]\ndirectory = '/opt/zekka'\nstatus = ['npm', 'run', 's']\ndown = ['d']\nup = ['u']\n";
        valid(tool).expect("valid");
        for extra in [
            "manual = 'relative'",
            "dumps = ['{release}.dump']",
            "dumps = ['/b/x.dump']",
            "dumps = ['/b/{release}-{date}.dump']",
            "dumps = ['/b/../{release}']",
            "integrity = ['']",
            "integrity = ['SELECT 1; DROP TABLE users']",
            "integrity = ['DELETE FROM users']",
            "integrity = [{ name = 'a', sql = 'SELECT true' }, { name = 'a', sql = 'SELECT true' }]",
        ] {
            assert_eq!(valid(extra).expect_err(extra).code, Code::BadConfig, "{extra}");
        }
        assert!(valid(&format!("manual = '/etc/m'\n{tool}")).is_err());
        let mut nothing = config("").expect("config");
        nothing.migrations = None;
        assert!(
            nothing
                .validate()
                .expect_err("no source")
                .message
                .contains("migrations")
        );
        nothing.tool = config(tool).expect("config").tool;
        nothing.validate().expect("a tool is a source");
    }

    #[test]
    fn names_that_are_connection_settings_or_options_are_refused() {
        for name in [
            "host=evil",
            "postgresql://evil/x",
            "a b",
            "--file=x",
            "a;b",
            "a\"b",
            "",
            "a/b",
            ".x",
            "ä",
        ] {
            let mut config = config("").expect("config");
            config.database = name.to_owned();
            assert_eq!(config.validate().expect_err(name).code, Code::BadConfig, "{name}");
        }
        for table in ["a.b.c", "a;drop", "1a", "a b", "\"a\"", ""] {
            let mut config = config("").expect("config");
            config.version_table = table.to_owned();
            assert!(config.validate().is_err(), "{table}");
        }
        for host in ["a,b", "host=x", "", "/a,/b", "-h"] {
            let mut config = config("").expect("config");
            config.host = host.to_owned();
            assert!(config.validate().is_err(), "{host}");
        }
    }

    #[test]
    fn a_password_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("password");
        std::fs::write(&path, "secret word\n").expect("write");
        let mut config = config("").expect("config");
        config.password_file = Some(path.clone());
        for (mode, ok) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
            match config.validate() {
                Ok(()) => assert!(ok, "{mode:o} must be refused"),
                Err(p) => {
                    assert!(!ok, "{mode:o} must be accepted: {p}");
                    assert_eq!(p.code, Code::BadCredentials);
                    assert!(!p.message.contains("secret"));
                }
            }
        }
        assert_eq!(config.password().expect_err("0604").code, Code::BadCredentials);
    }
}
