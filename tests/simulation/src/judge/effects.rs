//! What took effect, against what was intended, asked for, and allowed.

use std::collections::{BTreeMap, BTreeSet};

use rollback_engine::event::{Direction, Event};
use rollback_proto::v1::Action;

use super::journal::Journal;
use crate::recorder::{Deed, Key, Line, Seen};
use crate::world::Aftermath;

pub fn violations(after: &Aftermath, journal: &Journal<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut effects: BTreeMap<&Deed, usize> = BTreeMap::new();
    let keys = keys(&after.lines);
    for (n, line) in after.lines.iter().enumerate() {
        let Seen::Effect { deed } = &line.seen else { continue };
        if deed.rollback != journal.id.0 {
            continue;
        }
        *effects.entry(deed).or_insert(0) += 1;
        let before = &after.lines[..n];
        let no_keys = BTreeSet::new();
        let asked = keys.get(deed).unwrap_or(&no_keys);
        if !asked.iter().any(|key| is_written(before, journal, key)) {
            found.push(format!("{deed}: took effect before its intent was in the journal"));
        }
        found.extend(asked.iter().filter_map(|key| by_a_stale_leader(before, deed, key)));
        let host = &deed.target.host.0;
        let intended =
            |line: &Line| matches!(&line.seen, Seen::Intended { host: h, key } if h == host && asked.contains(key));
        if !before.iter().any(intended) {
            found.push(format!("{deed}: took effect before its intent was in the ledger"));
        }
    }
    for (deed, times) in effects {
        let allowed = journal.asks_for(deed);
        if times > allowed && deed.action != Action::Unspecified {
            found.push(format!(
                "{deed}: took effect {times} times, and was intended {allowed} times"
            ));
        }
    }
    found
}

/// By which keys agents were asked for this.
fn keys(lines: &[Line]) -> BTreeMap<Deed, BTreeSet<Key>> {
    let mut keys: BTreeMap<Deed, BTreeSet<Key>> = BTreeMap::new();
    for line in lines {
        if let Seen::Asked { deed, key, .. } = &line.seen {
            keys.entry(deed.clone()).or_default().insert(key.clone());
        }
    }
    keys
}

fn is_written(before: &[Line], journal: &Journal<'_>, key: &Key) -> bool {
    before.iter().any(|line| match &line.seen {
        Seen::Written { rollback, events, .. } if rollback == journal.id => events.iter().any(|event| match event {
            Event::StepIntended {
                step,
                direction,
                attempt,
                ..
            } => {
                let suffix = match direction {
                    Direction::Forward => "",
                    Direction::Undo => ".undo",
                };
                key.step == format!("{step}{suffix}") && key.attempt == *attempt
            }
            _ => false,
        }),
        _ => false,
    })
}

/// Had the agent answered a newer leader when it took this up, and had only older ones asked for it?
fn by_a_stale_leader(before: &[Line], deed: &Deed, key: &Key) -> Option<String> {
    let host = &deed.target.host.0;
    let taken_up = before
        .iter()
        .rposition(|line| matches!(&line.seen, Seen::Intended { host: h, key: k } if h == host && k == key))?;
    let before = &before[..taken_up];
    let obeyed = before.iter().filter_map(|line| match &line.seen {
        Seen::Obeyed { host: h, epoch } if h == host => Some(*epoch),
        _ => None,
    });
    let asked = before.iter().filter_map(|line| match &line.seen {
        Seen::Asked {
            host: h, key: k, epoch, ..
        } if h == host && k == key => Some(*epoch),
        _ => None,
    });
    let (obeyed, asked) = (obeyed.max()?, asked.max()?);
    (asked < obeyed).then(|| format!("{deed}: done for a leader of epoch {asked}, after epoch {obeyed} was obeyed"))
}

/// Requests that came from a leader which the agent knew to be replaced.
pub fn stale_requests(lines: &[Line]) -> u64 {
    let mut obeyed: BTreeMap<&str, u64> = BTreeMap::new();
    let mut stale = 0;
    for line in lines {
        match &line.seen {
            Seen::Obeyed { host, epoch } => {
                let newest = obeyed.entry(host).or_insert(0);
                *newest = (*newest).max(*epoch);
            }
            Seen::Asked { host, epoch, .. } if obeyed.get(host.as_str()).is_some_and(|newest| epoch < newest) => {
                stale += 1
            }
            _ => {}
        }
    }
    stale
}
