//! Why there is no plan. All reasons are collected: an operator mends them in one round.

use std::fmt;

use crate::event::Problem;
use crate::ids::{ComponentName, HostName, Target};
use crate::problems::{NAMED, name_some};
use crate::release::{Action, Role};

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the release names nothing that could be rolled back")]
    NothingInScope,
    #[error("the runbook takes back databases only, and they are to stay")]
    NothingToChange,
    #[error("nothing of the release is in the scope that was asked for")]
    NothingSelected,
    #[error("the release has no service {service}; it has: {}", name_some(known.iter()))]
    UnknownService {
        service: ComponentName,
        known: Vec<ComponentName>,
    },
    #[error("the release has nothing on a host {host}; it has: {}", name_some(known.iter()))]
    HostNotInRelease { host: HostName, known: Vec<HostName> },
    #[error("{service}: the runbook {runbook} is for other services: {}", name_some(services.iter()))]
    ServiceNotOfRunbook {
        service: ComponentName,
        runbook: String,
        services: Vec<ComponentName>,
    },
    #[error("{name}: nothing of it is in the rest of the scope that was asked for")]
    SelectsNothing { name: String },
    #[error(
        "{target}: is excluded, and reads {config}, which changes: it would start with another configuration than it has"
    )]
    ReaderExcluded { target: Target, config: ComponentName },
    #[error("{target}: the release names it twice")]
    NamedTwice { target: Target },
    #[error("{host}: the release names this host, but no such agent is enrolled")]
    UnknownHost { host: HostName },
    #[error("{host}: unreachable ({reason}), and the runbook says to block")]
    HostUnreachable { host: HostName, reason: String },
    #[error("{host}: unreachable ({reason}), and it holds a database, which no runbook leaves out")]
    DatabaseUnreachable { host: HostName, reason: String },
    #[error("{} hosts are unreachable, and the runbook leaves out {allowed} at most: {}", hosts.len(), name_some(hosts.iter()))]
    TooManyUnreachable { hosts: Vec<HostName>, allowed: usize },
    #[error("none of the release's hosts is reachable: {}", name_some(hosts.iter()))]
    NobodyReachable { hosts: Vec<HostName> },
    #[error("{target}: the host has no such component")]
    UnknownComponent { target: Target },
    #[error("{target}: could not be observed: {reason}")]
    Unobserved { target: Target, reason: String },
    #[error("{target}: was recorded as {recorded}, but is {declared} now")]
    RoleDiffers {
        target: Target,
        recorded: Role,
        declared: Role,
    },
    #[error("{target}: cannot {action}, which the plan needs")]
    MissingCapability { target: Target, action: Action },
    #[error("{target}: its agent cannot restore a backup beside the live database, and the plan shall do that")]
    CannotRestore { target: Target },
}

impl Refusal {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Refusal::NothingInScope => "choose a release that was recorded on this fleet",
            Refusal::NothingToChange => "leave out --database keep, or choose another runbook",
            Refusal::NothingSelected => "ask for more: rollbackctl release show RELEASE lists hosts and services",
            Refusal::UnknownService { .. } | Refusal::HostNotInRelease { .. } => {
                "correct the name: rollbackctl release show RELEASE lists hosts and services"
            }
            Refusal::ServiceNotOfRunbook { .. } => "leave the service out, or choose another runbook",
            Refusal::SelectsNothing { .. } => "leave the name out, or what contradicts it",
            Refusal::ReaderExcluded { .. } => "exclude the configuration, too, or do not exclude the application",
            Refusal::NamedTwice { .. } => "record the release again",
            Refusal::UnknownHost { .. } => "enroll the host, or choose a release that does not need it",
            Refusal::DatabaseUnreachable { .. } => "bring the host and its agent back",
            Refusal::HostUnreachable { .. } | Refusal::TooManyUnreachable { .. } => {
                // Whoever chose another runbook for the sake of a database must not lose that choice on the way.
                "bring the hosts and their agents back, or leave them out: --runbook emergency, which takes back everything \
                 else; --database says how databases go, or that they stay"
            }
            Refusal::NobodyReachable { .. } => "bring the hosts and their agents back",
            Refusal::UnknownComponent { .. } => "declare the component in the agent's configuration",
            Refusal::Unobserved { .. } => "mend what the message says on the host, then plan again",
            Refusal::RoleDiffers { .. } => "correct the role in the agent's configuration, or record the release again",
            Refusal::CannotRestore { .. } => {
                "update rollback-agent on the host, or let the schema go back by migrations: --database migrate"
            }
            Refusal::MissingCapability { .. } => "declare how to do it in the agent's configuration of the component",
        }
    }

    /// The stable code of this reason.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::NothingInScope
            | Refusal::NothingToChange
            | Refusal::NothingSelected
            | Refusal::UnknownService { .. }
            | Refusal::HostNotInRelease { .. }
            | Refusal::ServiceNotOfRunbook { .. }
            | Refusal::SelectsNothing { .. }
            | Refusal::ReaderExcluded { .. }
            | Refusal::NamedTwice { .. }
            | Refusal::RoleDiffers { .. } => "RB0202",
            Refusal::UnknownHost { .. }
            | Refusal::HostUnreachable { .. }
            | Refusal::DatabaseUnreachable { .. }
            | Refusal::TooManyUnreachable { .. }
            | Refusal::NobodyReachable { .. } => "RB0300",
            Refusal::UnknownComponent { .. } => "RB0304",
            Refusal::Unobserved { .. } => "RB0202",
            Refusal::MissingCapability { .. } | Refusal::CannotRestore { .. } => "RB0305",
        }
    }

    pub fn problem(&self) -> Problem {
        Problem {
            code: self.code().to_owned(),
            message: self.to_string(),
            remedy: self.remedy().to_owned(),
        }
    }
}

/// There is no plan; never without a reason, in the order of the release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRefused {
    pub reasons: Vec<Refusal>,
}

impl PlanRefused {
    /// What to do about the first reason: the others may go with it.
    pub fn remedy(&self) -> &'static str {
        self.reasons.first().map_or("plan again", Refusal::remedy)
    }
}

impl fmt::Display for PlanRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no plan can be made: ")?;
        for (i, reason) in self.reasons.iter().take(NAMED).enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{reason}")?;
        }
        match self.reasons.len().checked_sub(NAMED) {
            Some(more) if more > 0 => write!(f, "; and {more} more reasons"),
            Some(_) | None => Ok(()),
        }
    }
}

impl std::error::Error for PlanRefused {}
