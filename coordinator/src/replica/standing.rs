//! Where a replica stands, and what it tells whoever asks.

use jiff::{SignedDuration, Timestamp};
use rollback_proto::problem::{Code, Hint, Problem};

use crate::leader::Leader;
use crate::store::{Candidate, Lease, StoreError};

/// Why it does not lead any more, since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteppedDown {
    pub at: Timestamp,
    pub why: String,
}

impl SteppedDown {
    /// Worth a word still? What happened long ago stands in the log.
    fn is_recent(&self) -> bool {
        Timestamp::now().duration_since(self.at) < RECENT
    }
}

const RECENT: SignedDuration = SignedDuration::from_mins(10);

#[derive(Clone, Debug)]
pub enum Standing {
    Leading(Leader),
    /// `lease`: who leads, as the store last said. `None`: nobody is known to.
    Following {
        lease: Option<Lease>,
        /// Set for as long as nobody else is known to lead, and afterwards as a remark.
        stepped_down: Option<SteppedDown>,
        /// What keeps it from knowing.
        cut_off: Option<String>,
    },
    Stopping,
}

impl Standing {
    pub(super) fn starting() -> Self {
        Standing::Following {
            lease: None,
            stepped_down: None,
            cut_off: None,
        }
    }

    pub(super) fn between_terms(why: Option<String>) -> Self {
        let at = Timestamp::now();
        Standing::Following {
            lease: None,
            stepped_down: why.map(|why| SteppedDown { at, why }),
            cut_off: None,
        }
    }

    /// After a look at the lease.
    pub(super) fn following(&self, lease: Lease) -> Self {
        Standing::Following {
            lease: Some(lease),
            stepped_down: self.stepped_down().cloned(),
            cut_off: None,
        }
    }

    pub(super) fn cut_off(&self, error: &StoreError) -> Self {
        let problem = Problem::from_error(Code::StoreUnavailable, "store", error);
        Standing::Following {
            lease: None,
            stepped_down: self.stepped_down().cloned(),
            cut_off: Some(problem.message),
        }
    }

    pub fn leader(&self) -> Option<&Leader> {
        match self {
            Standing::Leading(leader) => Some(leader),
            Standing::Following { .. } | Standing::Stopping => None,
        }
    }

    pub fn lease(&self) -> Option<&Lease> {
        match self {
            Standing::Following { lease, .. } => lease.as_ref(),
            Standing::Leading(_) | Standing::Stopping => None,
        }
    }

    pub fn stepped_down(&self) -> Option<&SteppedDown> {
        match self {
            Standing::Following { stepped_down, .. } => stepped_down.as_ref(),
            Standing::Leading(_) | Standing::Stopping => None,
        }
    }

    pub(super) fn follows(&self, other: &Lease) -> bool {
        self.lease()
            .is_some_and(|lease| lease.epoch == other.epoch && lease.leader == other.leader)
    }

    /// Is it known who leads?
    pub(super) fn is_settled(&self) -> bool {
        match self {
            Standing::Leading(_) | Standing::Stopping => true,
            Standing::Following { lease, cut_off, .. } => lease.is_some() || cut_off.is_some(),
        }
    }

    /// For people: what is wrong, or was. Empty: nothing.
    pub fn note(&self) -> String {
        match self {
            Standing::Leading(leader) => leader.shared().troubles.all().join("; "),
            Standing::Following {
                stepped_down, cut_off, ..
            } => {
                let down = stepped_down.as_ref().filter(|down| down.is_recent());
                let down = down.map(|down| format!("stepped down at {:.0}: {}", down.at, down.why));
                let cut_off = cut_off.as_ref().map(|why| format!("does not know who leads: {why}"));
                cut_off.into_iter().chain(down).collect::<Vec<_>>().join("; ")
            }
            Standing::Stopping => "stopping".to_owned(),
        }
    }

    /// The answer to what only a leader can do.
    pub(super) fn refusal(&self, us: &Candidate) -> Problem {
        let name = name_of(&us.id);
        let nobody = |why: String| {
            Problem::new(
                Code::NotLeader,
                format!("{name} does not lead, and knows nobody who does{why}"),
            )
            .remedy("ask again: an election takes some seconds; rollbackctl doctor shows every replica")
        };
        match self {
            Standing::Leading(_) => nobody(" now".to_owned()),
            Standing::Stopping => Problem::new(Code::NotLeader, format!("{name} stops")),
            Standing::Following { lease: Some(lease), .. } if lease.leader != us.id => Problem::new(
                Code::NotLeader,
                format!(
                    "{name} follows; {} leads, at {}",
                    name_of(&lease.leader),
                    lease.endpoint
                ),
            )
            .hint(Hint::Leader(lease.endpoint.clone())),
            Standing::Following { .. } => match self.note() {
                note if note.is_empty() => nobody(String::new()),
                note => nobody(format!(" ({note})")),
            },
        }
    }
}

/// `coord-1` of `coord-1/0192…`, and of `coord-1+0192…`, as agents know it.
pub fn name_of(id: &str) -> &str {
    let parts = id.split_once('/').or_else(|| id.rsplit_once('+'));
    parts.map_or(id, |(name, _)| name)
}
