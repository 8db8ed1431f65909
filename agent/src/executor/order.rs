//! A request to run a step, checked: from here on every name is safe as a part of a file name and as an argument.

use std::time::Duration;

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::{Action, Consent, ExecuteRequest};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::driver::{DriverInfo, Revision};
use crate::ledger::{ArgsDigest, Fence, StepKey};

/// No step of any runbook takes longer; an instant further away could not be represented.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
const MAX_DIGEST: usize = 200;

#[derive(Clone, Debug)]
pub(super) struct Order {
    pub key: StepKey,
    pub fence: Fence,
    pub component: String,
    pub action: Action,
    pub from: Revision,
    pub to: Revision,
    pub backend: Option<String>,
    pub deadline: Instant,
    pub digest: ArgsDigest,
    /// As it came: what the ledger keeps.
    pub request: ExecuteRequest,
}

/// Does the action change anything that another step of the component could trip over? Exhaustive on purpose.
pub(super) fn mutates(action: Action) -> bool {
    match action {
        Action::Unspecified | Action::Prepare | Action::Verify => false,
        Action::Stage
        | Action::Discard
        | Action::Snapshot
        | Action::Drain
        | Action::Resume
        | Action::Stop
        | Action::Start
        | Action::Switch
        | Action::Finish => true,
    }
}

impl Order {
    /// `component` finds what this host has under a name.
    pub fn check<'a>(
        request: ExecuteRequest,
        component: impl FnOnce(&str) -> Option<&'a DriverInfo>,
    ) -> Result<Self, Problem> {
        let order = Self::read(request)?;
        let info = component(&order.component).ok_or_else(|| {
            Problem::new(
                Code::UnknownComponent,
                format!("this agent has no component {}", order.component),
            )
        })?;
        if !info.capabilities.contains(&order.action) {
            return Err(Problem::new(
                Code::UnsupportedAction,
                format!(
                    "{} component {} does not offer {:?}",
                    info.kind, order.component, order.action
                ),
            ));
        }
        if order.request.from_backup && !info.restores {
            return Err(Problem::new(
                Code::UnsupportedAction,
                format!(
                    "{} component {} cannot be restored from a backup",
                    info.kind, order.component
                ),
            ));
        }
        if let Some(backend) = &order.backend
            && !info.backends.iter().any(|upstream| upstream.contains(backend))
        {
            return Err(Problem::new(
                Code::UnknownComponent,
                format!("{backend} is no backend of {} component {}", info.kind, order.component),
            ));
        }
        Ok(order)
    }

    /// Everything that can be judged without knowing this host.
    pub fn read(request: ExecuteRequest) -> Result<Self, Problem> {
        let missing = |what: &str| Problem::new(Code::BadRequest, format!("the step has no {what}"));
        let key = request.key.clone().ok_or_else(|| missing("key"))?;
        check_name("rollback", &key.rollback_id)?;
        check_name("step", &key.step_id)?;
        let fence = fence(request.epoch, &request.leader_id)?;
        check_name("component", &request.component)?;
        let action = match Action::try_from(request.action) {
            Ok(Action::Unspecified) | Err(_) => {
                return Err(Problem::new(
                    Code::BadRequest,
                    format!("action {} is not known here", request.action),
                ));
            }
            Ok(action) => action,
        };
        let from = revision("from", request.from.clone().ok_or_else(|| missing("`from`"))?)?;
        let to = revision("to", request.to.clone().ok_or_else(|| missing("`to`"))?)?;
        let backend = (!request.backend.is_empty()).then(|| request.backend.clone());
        if backend.is_some() && !matches!(action, Action::Drain | Action::Resume) {
            return Err(Problem::new(
                Code::BadRequest,
                format!("{} has a backend; only drain and resume do", action.as_str_name()),
            ));
        }
        // A negative duration does not convert: there is no time left either.
        let timeout = request
            .timeout
            .and_then(|t| Duration::try_from(t).ok())
            .unwrap_or(Duration::ZERO);
        Ok(Self {
            key: StepKey {
                rollback_id: key.rollback_id,
                step_id: key.step_id,
                attempt: key.attempt,
            },
            fence,
            digest: args_digest(&request, action, &from, &to),
            component: request.component.clone(),
            action,
            from,
            to,
            backend,
            deadline: Instant::now() + timeout.min(LONGEST),
            request,
        })
    }

    pub fn mutates(&self) -> bool {
        mutates(self.action)
    }

    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    pub fn expired(&self) -> Problem {
        Problem::new(
            Code::StepTimeout,
            format!("step {} of {} came with no time left", self.key.step_id, self.component),
        )
    }

    pub fn key_reused(&self) -> Problem {
        Problem::new(
            Code::KeyReused,
            format!("step {} is known with other arguments", self.key),
        )
    }
}

/// Who asks. A leader is called by its name, or, so that no two processes are called the same, by `name/incarnation`.
pub(super) fn fence(epoch: u64, leader: &str) -> Result<Fence, Problem> {
    match leader.split_once('/') {
        Some((name, incarnation)) => {
            check_name("leader", name)?;
            check_name("leader's incarnation", incarnation)?;
        }
        None => check_name("leader", leader)?,
    }
    // The ledger keeps it as a signed number.
    if i64::try_from(epoch).is_err() {
        return Err(Problem::new(Code::BadRequest, format!("epoch {epoch} is out of range")));
    }
    Ok(Fence {
        epoch,
        leader: leader.to_owned(),
    })
}

pub(super) fn revision(what: &str, revision: rollback_proto::v1::Revision) -> Result<Revision, Problem> {
    check_name(&format!("`{what}` version"), &revision.version)?;
    let digest = &revision.digest;
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b':';
    if digest.is_empty() || digest.len() > MAX_DIGEST || !digest.bytes().all(allowed) {
        let shown: String = digest.chars().take(40).collect();
        return Err(Problem::new(
            Code::BadName,
            format!("`{what}` digest {shown:?}: not 1 to {MAX_DIGEST} of a-z 0-9 :"),
        )
        .remedy("use a digest that an agent reported"));
    }
    Ok(revision.into())
}

/// Over what the step does; not over how long it may take or who leads. Each part goes in with its length: no two
/// different lists of parts read the same. What a step does not have has no part, as in ledgers from before there was
/// any such thing; the direction is in the step's id.
fn args_digest(request: &ExecuteRequest, action: Action, from: &Revision, to: &Revision) -> ArgsDigest {
    let mut hash = Sha256::new();
    let action = action.as_str_name();
    let parts = [
        &request.component,
        action,
        &from.version,
        &from.digest,
        &to.version,
        &to.digest,
    ];
    let backend = Some(request.backend.as_str()).filter(|backend| !backend.is_empty());
    let from_backup = request.from_backup.then(|| match &request.consent {
        None => "from backup, no loss".to_owned(),
        Some(Consent { max_rows: None }) => "from backup, any loss".to_owned(),
        Some(Consent { max_rows: Some(rows) }) => format!("from backup, {rows} rows"),
    });
    for part in parts.into_iter().chain(backend).chain(from_backup.as_deref()) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}
