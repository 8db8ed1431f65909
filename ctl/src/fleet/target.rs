//! What a plan is made for: runbook, databases, the part of the fleet, and what a failure leads to. The same options for
//! planning and for doing.

use clap::{Args, ValueEnum};
use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::{DatabaseChoice, FailureChoice, RollbackTarget, Scope};

/// The options that shape a plan.
#[derive(Args, Clone, Debug)]
pub struct ShapeArgs {
    /// The procedure that shapes the plan: default, emergency (no batches, leaves out hosts that are gone), app-only (all but
    /// databases go back), schema-only (only databases go back), restore (all goes back, databases to a backup), or one of
    /// your own: rollbackctl runbook list
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub runbook: String,
    /// How databases go back [default: what the runbook says]
    #[arg(long, value_enum, value_name = "HOW")]
    pub database: Option<DatabaseArg>,
    /// What a failed step leads to, after preflight [default: what the runbook says]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub on_failure: Option<FailureArg>,
    #[command(flatten)]
    pub scope: ScopeArgs,
}

/// A part of the fleet.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Part of the fleet")]
pub struct ScopeArgs {
    /// Only components of this name, on every host; an application brings the configuration that it reads. May be repeated
    #[arg(long, value_name = "COMPONENT", value_delimiter = ',')]
    pub service: Vec<String>,
    /// Only this host. May be repeated
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub host: Vec<String>,
    /// Only hosts with this label, as agents declare it. May be repeated; all have to fit
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub label: Vec<String>,
    /// Without components of this name. May be repeated
    #[arg(long, value_name = "COMPONENT", value_delimiter = ',')]
    pub exclude_service: Vec<String>,
    /// Without this host. May be repeated
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub exclude_host: Vec<String>,
}

/// How databases go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatabaseArg {
    /// By migrations that were rehearsed on a copy. Without a way down the plan is blocked; a rehearsal that fails ends the
    /// rollback in stage, undone, with nothing touched (exit code 5). Either says what a restore would cost
    Auto,
    /// Not at all: the schema stays as it is
    Keep,
    /// By migrations, or not at all
    Migrate,
    /// By the newest proven backup of the release's schema. What was written since is lost: see --accept-data-loss
    Restore,
}

impl DatabaseArg {
    fn choice(self) -> DatabaseChoice {
        match self {
            DatabaseArg::Auto => DatabaseChoice::Auto,
            DatabaseArg::Keep => DatabaseChoice::Keep,
            DatabaseArg::Migrate => DatabaseChoice::Migrate,
            DatabaseArg::Restore => DatabaseChoice::Restore,
        }
    }
}

/// What a failed step leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailureArg {
    /// Every step that was begun is reversed
    Undo,
    /// Nothing new begins until you retry, skip or abort: rollbackctl rollback retry, skip, abort
    Pause,
    /// It ends where it is, for a person
    Hold,
}

impl FailureArg {
    fn choice(self) -> FailureChoice {
        match self {
            FailureArg::Undo => FailureChoice::Undo,
            FailureArg::Pause => FailureChoice::Pause,
            FailureArg::Hold => FailureChoice::Hold,
        }
    }
}

impl ShapeArgs {
    /// A target of this shape that goes nowhere yet. Names are checked here, so that a wrong one costs no round trip.
    pub fn target(&self) -> Result<RollbackTarget, Problem> {
        // "web@2" is an older version; whether that is a number is the coordinator's to say.
        check_name("runbook", self.runbook.split('@').next().unwrap_or_default())?;
        Ok(RollbackTarget {
            runbook: self.runbook.clone(),
            database: self
                .database
                .map_or(DatabaseChoice::Unspecified, DatabaseArg::choice)
                .into(),
            on_failure: self
                .on_failure
                .map_or(FailureChoice::Unspecified, FailureArg::choice)
                .into(),
            scope: self.scope.scope()?,
            ..RollbackTarget::default()
        })
    }

    /// To a release, or to `previous`.
    pub fn target_to(&self, release: &str) -> Result<RollbackTarget, Problem> {
        check_name("release", release)?;
        Ok(RollbackTarget {
            release: release.to_owned(),
            ..self.target()?
        })
    }
}

impl ScopeArgs {
    /// `None`: everything.
    pub fn scope(&self) -> Result<Option<Scope>, Problem> {
        for (what, names) in [
            ("component", &self.service),
            ("host", &self.host),
            ("component", &self.exclude_service),
            ("host", &self.exclude_host),
        ] {
            for name in names {
                check_name(what, name)?;
            }
        }
        for label in &self.label {
            check_label(label)?;
        }
        let scope = Scope {
            services: self.service.clone(),
            hosts: self.host.clone(),
            labels: self.label.clone(),
            exclude_services: self.exclude_service.clone(),
            exclude_hosts: self.exclude_host.clone(),
        };
        Ok((scope != Scope::default()).then_some(scope))
    }
}

fn check_label(label: &str) -> Result<(), Problem> {
    let Some((key, value)) = label.split_once('=') else {
        let text = format!("`{}` is no label", crate::output::text::clean(label));
        return Err(Problem::new(Code::BadName, text).remedy("write KEY=VALUE; rollbackctl agent list shows them"));
    };
    check_name("label", key)?;
    check_name("label", value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_anybody_is_asked() {
        let wrong = |change: &dyn Fn(&mut ScopeArgs)| {
            let mut scope = ScopeArgs::default();
            change(&mut scope);
            scope.scope().expect_err("is refused").code
        };
        assert_eq!(wrong(&|s| s.service = vec!["a b".to_owned()]), Code::BadName);
        assert_eq!(wrong(&|s| s.exclude_host = vec!["../x".to_owned()]), Code::BadName);
        assert_eq!(wrong(&|s| s.label = vec!["tier".to_owned()]), Code::BadName);
        assert_eq!(wrong(&|s| s.label = vec!["tier=a b".to_owned()]), Code::BadName);
        assert_eq!(ScopeArgs::default().scope().expect("is everything"), None);
    }
}
