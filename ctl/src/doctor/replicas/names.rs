//! Names and endpoints of the coordinators: every name once, and every one where it says that it is.
//!
//! Two processes of one name work, and nobody can tell which of them a message means. A process that is listed under two
//! endpoints is no error: it is taken for two only when the answers cannot come from one.

use super::{Answer, Replica, answers, leading};
use crate::output::checks::Check;
use crate::output::text::clean;

/// Whether two answers under one name came from one process.
enum Processes {
    One,
    Two,
    /// Two that follow do not say more of themselves than their name and their certificate's end.
    Unknown,
}

fn processes(a: &Answer, b: &Answer) -> Processes {
    let (ours, theirs) = (&a.info, &b.info);
    let ends_differ = match (&ours.server_certificate_expires, &theirs.server_certificate_expires) {
        (Some(one), Some(other)) => one != other,
        (None, _) | (_, None) => false,
    };
    match (a.leads(), b.leads()) {
        // The leader's id is another one for every process.
        (true, true) if ours.leader_id == theirs.leader_id => Processes::One,
        (true, true) | (true, false) | (false, true) => Processes::Two,
        (false, false) if ends_differ => Processes::Two,
        (false, false) => Processes::Unknown,
    }
}

/// One check for each two endpoints at which one name answers.
pub fn doubled(replicas: &[Replica]) -> Vec<Check> {
    const NAME: &str = "names";
    let mut seen: Vec<(&Replica, &Answer)> = Vec::new();
    let mut found = Vec::new();
    // A version from before says its name only while it leads.
    for (replica, answer) in answers(replicas).filter(|(_, a)| !a.name().is_empty()) {
        if seen.iter().any(|(other, _)| other.endpoint == replica.endpoint) {
            continue;
        }
        let first = seen.iter().find(|(_, other)| other.name() == answer.name());
        if let Some((other, before)) = first {
            let (name, a, b) = (answer.name(), clean(&other.endpoint), clean(&replica.endpoint));
            match processes(before, answer) {
                Processes::One => {}
                Processes::Two => found.push(Check::fail(
                    NAME,
                    format!("two coordinators are called {name}, at {a} and {b}"),
                    "make one of them again with another name: rollback-coordinator replica NAME. Every name is used once",
                )),
                Processes::Unknown => found.push(Check::warn(
                    NAME,
                    format!("{name} answers at {a} and {b}"),
                    "if these are two coordinators, make one of them again with another name: rollback-coordinator replica NAME. \
                     If they are one, list it once",
                )),
            }
        }
        seen.push((replica, answer));
    }
    found
}

/// The leader, where the others send people to another endpoint than those at which it was found. Of those that follow
/// nobody says where they are.
pub fn elsewhere(replicas: &[Replica]) -> Option<Check> {
    let [(_, leader)] = leading(replicas)[..] else {
        return None;
    };
    let own_word = answers(replicas)
        .filter(|(_, a)| !a.leads() && a.info.leader_id == leader.info.leader_id)
        .map(|(_, a)| a.info.leader_endpoint.as_str())
        .find(|endpoint| !endpoint.is_empty())?;
    let places: Vec<&str> = answers(replicas)
        .filter(|(r, a)| r.listed && a.leads())
        .map(|(r, _)| r.endpoint.as_str())
        .collect();
    let listed = *places.first()?;
    if places.contains(&own_word) {
        return None;
    }
    let (name, listed, own_word) = (leader.name(), clean(listed), clean(own_word));
    Some(Check::warn(
        "names",
        format!("{name} is listed as {listed}, and says that it is reached at {own_word}"),
        format!(
            "the others send operators and agents to {own_word} while it leads: list that, or correct `endpoint` in {name}'s \
             configuration"
        ),
    ))
}
