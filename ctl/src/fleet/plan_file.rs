//! A plan as a file: what `fleet plan --out` writes and `fleet rollback --plan` takes.
//!
//! What starts is what the coordinator sealed, and it checks the seal itself. Everything else in the file is for people who
//! read it and for diffs; nothing of it is believed: the plan that an operator is shown comes from the coordinator again.

use std::io::{Read as _, Write as _};
use std::path::Path;

use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::{DatabaseChoice, FailureChoice, PlanRollbackResponse, RollbackTarget, Scope};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::output::json as documents;
use crate::output::problem::of_file;
use crate::output::text::clean;

/// Readers refuse formats that they do not know.
const FORMAT: &str = "rollbackctl-plan/v1";

/// Larger than the plan of any fleet: a wrong file is found to be one before all of it is read.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Debug, Deserialize, Serialize)]
pub struct PlanFile {
    format: String,
    /// Of the context, for people.
    pub fleet: String,
    /// RFC 3339.
    pub saved_at: String,
    pub saved_by: String,
    pub release: String,
    pub digest: String,
    target: Target,
    /// As the coordinator sealed it: JSON in a string, so that no tool that formats the file touches it.
    sealed: String,
    /// What every host said to it then.
    findings: Value,
    /// The plan for people, as `fleet plan -o json` has it.
    plan: Value,
}

/// What it was made for; so it can be planned again.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
struct Target {
    release: String,
    runbook: String,
    database: String,
    on_failure: String,
    undo_of: String,
    converge: bool,
    services: Vec<String>,
    hosts: Vec<String>,
    labels: Vec<String>,
    exclude_services: Vec<String>,
    exclude_hosts: Vec<String>,
}

impl PlanFile {
    /// `None`: the coordinator sent no plan, or one without its seal.
    pub fn of(fleet: &str, saved_by: &str, target: &RollbackTarget, response: &PlanRollbackResponse) -> Option<Self> {
        let plan = response.plan.as_ref()?;
        let sealed = String::from_utf8(response.sealed.clone()).ok()?;
        let mut target = Target::of(target);
        if target.release == "previous" {
            // Which one that is may be another one when the file is used.
            target.release.clone_from(&plan.release);
        }
        (!sealed.is_empty()).then(|| Self {
            format: FORMAT.to_owned(),
            fleet: fleet.to_owned(),
            saved_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            saved_by: saved_by.to_owned(),
            release: plan.release.clone(),
            digest: plan.digest.clone(),
            target,
            sealed,
            findings: documents::findings(&response.findings),
            plan: documents::plan(plan),
        })
    }

    /// Whole or not at all, for its owner alone: it names hosts and says how they are taken over. Once this returns, it is on
    /// the disk.
    pub fn write(&self, path: &Path, force: bool) -> Result<(), Problem> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| Problem::from_error(Code::Internal, "write the plan as JSON", &e))?;
        text.push('\n');
        let failed = |e: &std::io::Error| of_file(format_args!("write {}", path.display()), e);
        // Made with mode 0600, beside the file, so that it can take its place at once.
        let mut file = tempfile::NamedTempFile::new_in(directory).map_err(|e| failed(&e))?;
        file.write_all(text.as_bytes()).map_err(|e| failed(&e))?;
        file.as_file().sync_all().map_err(|e| failed(&e))?;
        let placed = if force {
            file.persist(path)
        } else {
            file.persist_noclobber(path)
        };
        match placed {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Err(exists(path)),
            Err(error) => Err(failed(&error.error)),
        }
    }

    pub fn read(path: &Path) -> Result<Self, Problem> {
        let shown = path.display();
        let unusable = |why: String| Problem::new(Code::BadPlanFile, format!("{shown}: {why}"));
        let file = std::fs::File::open(path).map_err(|e| unusable(e.to_string()))?;
        let mut text = String::new();
        // A device says that it has no bytes, and gives more than there is room for.
        let read = file.take(MAX_BYTES + 1).read_to_string(&mut text);
        read.map_err(|e| unusable(e.to_string()))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(unusable(format!("more than {MAX_BYTES} bytes are no plan")));
        }
        let value: Value = serde_json::from_str(&text).map_err(|e| unusable(format!("it is no plan: {e}")))?;
        match value.get("format").and_then(Value::as_str) {
            Some(FORMAT) => {}
            Some(other) => {
                return Err(unusable(format!(
                    "it has the format `{}`; this version reads {FORMAT}",
                    clean(other)
                )));
            }
            None => return Err(unusable("it is no plan that `fleet plan --out` has written".to_owned())),
        }
        serde_json::from_value(value).map_err(|e| unusable(format!("it is no plan: {e}")))
    }

    pub fn sealed(&self) -> Vec<u8> {
        self.sealed.clone().into_bytes()
    }

    pub fn target(&self) -> Result<RollbackTarget, Problem> {
        self.target.to_wire()
    }
}

/// Before the fleet is asked: that may take a minute.
pub fn check_free(path: &Path, force: bool) -> Result<(), Problem> {
    if !force && path.symlink_metadata().is_ok() {
        return Err(exists(path));
    }
    Ok(())
}

fn exists(path: &Path) -> Problem {
    Problem::new(Code::BadPlanFile, format!("{} exists", path.display()))
        .remedy("choose another name, or replace it: --force")
}

impl Target {
    fn of(target: &RollbackTarget) -> Self {
        let scope = target.scope.clone().unwrap_or_default();
        Self {
            release: target.release.clone(),
            runbook: target.runbook.clone(),
            database: target.database().as_str_name().to_owned(),
            on_failure: target.on_failure().as_str_name().to_owned(),
            undo_of: target.undo_of.clone(),
            converge: target.converge,
            services: scope.services,
            hosts: scope.hosts,
            labels: scope.labels,
            exclude_services: scope.exclude_services,
            exclude_hosts: scope.exclude_hosts,
        }
    }

    fn to_wire(&self) -> Result<RollbackTarget, Problem> {
        let unknown = |what: &str, word: &str| {
            Problem::new(
                Code::BadPlanFile,
                format!("the plan's target has an unknown {what}: {}", clean(word)),
            )
        };
        let database =
            DatabaseChoice::from_str_name(&self.database).ok_or_else(|| unknown("database choice", &self.database))?;
        let on_failure = FailureChoice::from_str_name(&self.on_failure)
            .ok_or_else(|| unknown("failure choice", &self.on_failure))?;
        let scope = Scope {
            services: self.services.clone(),
            hosts: self.hosts.clone(),
            labels: self.labels.clone(),
            exclude_services: self.exclude_services.clone(),
            exclude_hosts: self.exclude_hosts.clone(),
        };
        Ok(RollbackTarget {
            release: self.release.clone(),
            runbook: self.runbook.clone(),
            database: database.into(),
            on_failure: on_failure.into(),
            scope: (scope != Scope::default()).then_some(scope),
            undo_of: self.undo_of.clone(),
            converge: self.converge,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::output::samples;

    fn saved(target: &RollbackTarget) -> PlanFile {
        let response = PlanRollbackResponse {
            sealed: b"{\"body\": {},  \"digest\": \"sha256:1\"}".to_vec(),
            ..samples::plan_response()
        };
        PlanFile::of("prod", "ana", target, &response).expect("has a plan")
    }

    #[test]
    fn what_is_written_is_read_back_byte_for_byte_and_by_nobody_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("plan.json");
        let target = RollbackTarget {
            release: "previous".to_owned(),
            runbook: "emergency".to_owned(),
            database: DatabaseChoice::Keep.into(),
            on_failure: FailureChoice::Pause.into(),
            scope: Some(Scope {
                hosts: vec!["app-1".to_owned()],
                ..Scope::default()
            }),
            ..RollbackTarget::default()
        };
        let file = saved(&target);
        file.write(&path, false).expect("write");
        let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let read = PlanFile::read(&path).expect("read");
        assert_eq!(read.sealed(), file.sealed());
        let release = read.release.clone();
        assert_eq!(read.target().expect("a target"), RollbackTarget { release, ..target });

        let again = file.write(&path, false).expect_err("it exists");
        assert_eq!(again.code, Code::BadPlanFile);
        assert!(again.remedy.contains("--force"));
        file.write(&path, true).expect("replace");
        assert_eq!(
            std::fs::read_dir(directory.path()).expect("list").count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x.json");
        for (text, why) in [
            ("", "no plan"),
            ("{}", "no plan that"),
            ("{\"format\": \"rollbackctl-plan/v9\"}", "v9"),
            ("{\"format\": \"rollbackctl-plan/v1\"}", "no plan"),
        ] {
            std::fs::write(&path, text).expect("write");
            let refused = PlanFile::read(&path).expect_err(text);
            assert_eq!(refused.code, Code::BadPlanFile);
            assert!(
                refused.message.contains("x.json") && refused.message.contains(why),
                "{}",
                refused.message
            );
        }
    }
}
