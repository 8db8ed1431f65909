//! Releases: the list, one in full, and what differs between two sets of revisions.

use std::collections::BTreeMap;

use rollback_proto::v1::{GetFleetResponse, Release, ReleaseEntry, RemovedRelease, Revision};

use super::paint::{Paint, Tone};
use super::table::{Table, cell, plain, right};
use super::text::{NONE, change, clean, count, or_none, revision, short, stamp, target, timestamp};
use super::words;

pub fn list(releases: &[Release], paint: Paint) -> String {
    if releases.is_empty() {
        return "No release has been recorded. Record what runs now: rollbackctl release record NAME\n".to_owned();
    }
    let mut table = Table::new(
        paint,
        &[
            "RELEASE",
            "STATE",
            "RECORDED",
            "BY",
            "COMPONENTS",
            "COMMIT",
            "KEPT",
            "NOTES",
        ],
    );
    for r in releases {
        table.row([
            cell(Tone::Strong, clean(&r.name)),
            match (&r.hold, r.stable) {
                (Some(_), true) => cell(Tone::Bad, "HELD, stable"),
                (Some(_), false) => cell(Tone::Bad, "HELD"),
                (None, true) => cell(Tone::Good, "stable"),
                (None, false) => plain(NONE),
            },
            plain(stamp(timestamp(r.recorded_at.as_ref()))),
            plain(or_none(&r.recorded_by)),
            right(r.entries.len()),
            plain(or_none(&short(&r.commit))),
            plain(or_none(&kept(r))),
            plain(clean(&r.notes)),
        ]);
    }
    table.render(0)
}

/// The first reason, and how many more there are; all of them are in `show`.
fn kept(release: &Release) -> String {
    match release.pinned_by.as_slice() {
        [] => String::new(),
        [only] => clean(only),
        [first, more @ ..] => format!("{} (+{})", clean(first), more.len()),
    }
}

/// What was forgotten, or would be.
pub fn removal(removed: &[RemovedRelease], dry_run: bool, paint: Paint) -> String {
    if removed.is_empty() {
        return "Every release is needed, or among those that are kept. Nothing to forget.\n".to_owned();
    }
    let mut text = String::new();
    for release in removed {
        let name = clean(&release.name);
        let line = match (release.pinned_by.is_empty(), dry_run) {
            (true, true) => format!("would forget {name}"),
            (true, false) => format!("forgot {name}"),
            (false, _) => {
                let why: Vec<String> = release.pinned_by.iter().map(|why| clean(why)).collect();
                let word = paint.tone(Tone::Bad, "needed");
                format!("{word} {name}: {}", why.join(", "))
            }
        };
        text.push_str(&line);
        text.push('\n');
        for left in &release.leftovers {
            let word = paint.tone(Tone::Warn, "still there");
            text.push_str(&format!("  {word}: {}\n", clean(left)));
        }
    }
    text
}

pub fn show(release: &Release, paint: Paint) -> String {
    let mut text = format!(
        "{}\n",
        paint.tone(Tone::Strong, &format!("Release {}", clean(&release.name)))
    );
    let recorded = stamp(timestamp(release.recorded_at.as_ref()));
    text.push_str(&format!(
        "  recorded  {recorded} by {}\n",
        or_none(&release.recorded_by)
    ));
    text.push_str(&format!("  stable    {}\n", stable(release)));
    if let Some(hold) = &release.hold {
        let word = paint.tone(Tone::Bad, "HELD");
        let since = stamp(timestamp(hold.since.as_ref()));
        let by = or_none(&hold.by);
        text.push_str(&format!(
            "  {word}      since {since} by {by}: {}\n",
            or_none(&hold.reason)
        ));
    }
    for (line, why) in release.pinned_by.iter().enumerate() {
        let word = if line == 0 { "kept" } else { "" };
        text.push_str(&format!("  {word:<9} {}\n", clean(why)));
    }
    for (name, value) in [
        ("commit", &release.commit),
        ("notes", &release.notes),
        ("digest", &release.digest),
    ] {
        if !value.is_empty() {
            text.push_str(&format!("  {name:<9} {}\n", clean(value)));
        }
    }
    text.push('\n');
    text.push_str(&entries(&release.entries, paint));
    text
}

/// As somebody has said it, or as it was seen.
fn stable(release: &Release) -> String {
    let word = if release.stable { "yes" } else { "no" };
    match (release.marked_by.is_empty(), release.stable) {
        (false, _) => format!(
            "{word}, by {} at {}: {}",
            clean(&release.marked_by),
            stamp(timestamp(release.marked_at.as_ref())),
            or_none(&release.mark_reason)
        ),
        (true, true) => word.to_owned(),
        (true, false) => "not yet verified".to_owned(),
    }
}

fn entries(entries: &[ReleaseEntry], paint: Paint) -> String {
    let mut table = Table::new(paint, &["HOST", "COMPONENT", "ROLE", "VERSION", "DIGEST", "KEPT"]);
    for e in entries {
        table.row([
            plain(clean(&e.host)),
            plain(clean(&e.component)),
            plain(words::role(e.role)),
            plain(
                e.revision
                    .as_ref()
                    .map_or_else(|| NONE.to_owned(), |r| or_none(&r.version)),
            ),
            plain(
                e.revision
                    .as_ref()
                    .map_or_else(|| NONE.to_owned(), |r| short(&r.digest)),
            ),
            plain(clean(&e.summary)),
        ]);
    }
    table.render(0)
}

/// A set of revisions: of a release, or of the fleet as it is now.
#[derive(Clone, Debug, Default)]
pub struct Side {
    pub name: String,
    pub revisions: BTreeMap<(String, String), Revision>,
    /// Hosts and components that could not be observed; they are neither equal nor different.
    pub unseen: Vec<String>,
}

impl Side {
    pub fn of_release(release: Release) -> Self {
        let revisions = release
            .entries
            .into_iter()
            .filter_map(|e| e.revision.map(|revision| ((e.host, e.component), revision)))
            .collect();
        Self {
            name: release.name,
            revisions,
            unseen: Vec::new(),
        }
    }

    pub fn of_fleet(fleet: GetFleetResponse) -> Self {
        let mut side = Self {
            name: "now".to_owned(),
            ..Self::default()
        };
        for host in fleet.hosts {
            let name = host.agent.map(|a| a.name).unwrap_or_default();
            if host.problem.is_some() {
                side.unseen.push(name);
                continue;
            }
            for state in host.states {
                match state.revision {
                    Some(revision) => drop(side.revisions.insert((name.clone(), state.component), revision)),
                    None => side.unseen.push(target(&name, &state.component)),
                }
            }
        }
        side
    }

    fn is_unseen(&self, host: &str, component: &str) -> bool {
        self.unseen.iter().any(|u| u == host || *u == target(host, component))
    }
}

/// One line of a difference.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub host: String,
    pub component: String,
    pub a: Option<Revision>,
    pub b: Option<Revision>,
}

/// What differs, and how many are equal. Equality is by digest.
pub fn compare(a: &Side, b: &Side) -> (Vec<Difference>, usize) {
    let keys: std::collections::BTreeSet<_> = a.revisions.keys().chain(b.revisions.keys()).collect();
    let mut equal = 0;
    let mut differences = Vec::new();
    for key in keys {
        let (left, right) = (a.revisions.get(key), b.revisions.get(key));
        let (host, component) = key;
        let unseen =
            (left.is_none() && a.is_unseen(host, component)) || (right.is_none() && b.is_unseen(host, component));
        match (left, right) {
            (Some(left), Some(right)) if left.digest == right.digest => equal += 1,
            _ if unseen => {}
            (left, right) => differences.push(Difference {
                host: host.clone(),
                component: component.clone(),
                a: left.cloned(),
                b: right.cloned(),
            }),
        }
    }
    (differences, equal)
}

pub fn diff(a: &Side, b: &Side, paint: Paint) -> String {
    let (differences, equal) = compare(a, b);
    let mut text = String::new();
    if differences.is_empty() {
        text.push_str(&format!(
            "No difference: {}.\n",
            count(equal, "component is equal", "components are equal")
        ));
    } else {
        let mut table = Table::new(paint, &["HOST", "COMPONENT", &clean(&a.name), "", &clean(&b.name)]);
        for d in &differences {
            let (left, right) = match (&d.a, &d.b) {
                (Some(_), Some(_)) => change(d.a.as_ref(), d.b.as_ref()),
                (a, b) => (revision(a.as_ref()), revision(b.as_ref())),
            };
            table.row([
                plain(clean(&d.host)),
                plain(clean(&d.component)),
                plain(left),
                plain("→"),
                plain(right),
            ]);
        }
        text.push_str(&table.render(0));
        let differ = count(differences.len(), "component differs", "components differ");
        text.push_str(&format!("\n{differ}, {equal} equal.\n"));
    }
    for side in [a, b] {
        if !side.unseen.is_empty() {
            let list: Vec<String> = side.unseen.iter().map(|u| clean(u)).collect();
            let word = paint.tone(Tone::Warn, "not observed");
            text.push_str(&format!("{word} in {}: {}\n", clean(&side.name), list.join(", ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use rollback_proto::v1::Hold;

    use super::*;
    use crate::output::samples::{self, golden};

    #[test]
    fn list_show_and_diff() {
        let (old, new) = (samples::release("v2.9.0"), samples::release("v3.0.0"));
        let between = diff(
            &Side::of_release(old.clone()),
            &Side::of_release(new.clone()),
            Paint::PLAIN,
        );
        let now = diff(
            &Side::of_release(new.clone()),
            &Side::of_fleet(samples::fleet()),
            Paint::PLAIN,
        );
        let mut held = samples::release("v2.9.1");
        held.pinned_by = vec!["2 components shall be there".to_owned(), "the newest 10".to_owned()];
        held.stable = false;
        (held.marked_by, held.mark_reason) = ("ana".to_owned(), "loses sessions".to_owned());
        held.marked_at = held.recorded_at;
        held.hold = Some(Hold {
            release: held.name.clone(),
            since: held.recorded_at,
            by: "ben".to_owned(),
            reason: "INC-4711".to_owned(),
            rollback_id: String::new(),
        });
        let removed = |name: &str, pinned_by: &[&str], leftovers: &[&str]| RemovedRelease {
            name: name.to_owned(),
            pinned_by: pinned_by.iter().map(|why| (*why).to_owned()).collect(),
            leftovers: leftovers.iter().map(|what| (*what).to_owned()).collect(),
        };
        let gone = removed("v2.7.0", &[], &["app-2/api: no route to host (RB0300)"]);
        let needed = removed("v2.8.0", &["it is what `previous` means"], &[]);
        let text = [
            list(&[held.clone(), old.clone(), new], Paint::PLAIN),
            show(&old, Paint::PLAIN),
            show(&held, Paint::PLAIN),
            between,
            now,
            removal(&[removed("v2.7.0", &[], &[]), needed], true, Paint::PLAIN),
            removal(&[gone], false, Paint::PLAIN),
            removal(&[], false, Paint::PLAIN),
        ];
        golden!("releases", text.join("\n----------\n\n"));
    }
}
