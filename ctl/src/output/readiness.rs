//! What the checks in the background found: could the fleet go back, and what stands in the way on which host.

use rollback_proto::v1::{Finding, GetReadinessResponse, Readiness, Severity};
use serde_json::{Value, json};

use super::json as documents;
use super::paint::{Paint, Tone};
use super::problem::brief;
use super::table::{Table, cell, plain, right};
use super::text::{NONE, clean, count, duration, millis, span, target, timestamp};
use super::words::severity;

/// Has it been looked at, lately, and does nothing stand in the way?
pub fn is_vouched_for(release: &Readiness) -> bool {
    release.ready && !release.stale
}

/// `in_full`: warnings, too; else they are counted only.
pub fn render(response: &GetReadinessResponse, in_full: bool, paint: Paint) -> String {
    if response.releases.is_empty() {
        return format!(
            "{}\n\nReleases are checked once they are recorded, stable and older than what runs now, within the next round.\n\
             What is recorded: rollbackctl release list. To ask the hosts now: rollbackctl fleet plan --to RELEASE\n",
            paint.tone(Tone::Warn, "No release has been checked.")
        );
    }
    let mut table = Table::new(
        paint,
        &[
            "RELEASE",
            "READY",
            "CHECKED",
            "TOOK",
            "HOSTS",
            "COMPONENTS",
            "BLOCKERS",
            "WARNINGS",
        ],
    );
    for release in &response.releases {
        let number = |n: usize| right(n);
        table.row([
            cell(Tone::Strong, clean(&release.release)),
            word(release),
            checked(response, release),
            right(
                release
                    .took
                    .as_ref()
                    .map_or_else(|| NONE.to_owned(), |t| duration(span(t))),
            ),
            right(release.hosts),
            right(release.components),
            number(of(release, Severity::Blocker).count()),
            number(of(release, Severity::Warning).count()),
        ]);
    }
    let mut text = table.render(0);
    for release in &response.releases {
        text.push_str(&details(release, in_full, paint));
    }
    if response.releases.iter().any(|release| release.stale) {
        text.push_str(
            "\nChecks are not being kept up: what is older than three rounds says nothing of now. Does a rollback run \
             (rollbackctl rollback list), and does somebody lead (rollbackctl doctor)?\n",
        );
    }
    text
}

fn word(release: &Readiness) -> comfy_table::Cell {
    match (release.ready, release.stale) {
        (true, false) => cell(Tone::Good, "yes"),
        (true, true) => cell(Tone::Warn, "yes, then"),
        (false, _) => cell(Tone::Bad, "NO"),
    }
}

fn age(response: &GetReadinessResponse, release: &Readiness) -> Option<u64> {
    let (at, now) = (timestamp(release.checked_at.as_ref()), timestamp(response.now.as_ref()));
    at.zip(now).map(|(at, now)| millis(at, now))
}

fn checked(response: &GetReadinessResponse, release: &Readiness) -> comfy_table::Cell {
    let age = age(response, release).map_or_else(|| NONE.to_owned(), |ms| format!("{} ago", duration(ms)));
    if release.stale {
        cell(Tone::Bad, format!("{age} (STALE)"))
    } else {
        plain(age)
    }
}

fn of(release: &Readiness, wanted: Severity) -> impl Iterator<Item = &Finding> {
    let found = release.findings.iter();
    found.filter(move |f| severity(f.severity) == wanted)
}

fn details(release: &Readiness, in_full: bool, paint: Paint) -> String {
    let blockers = of(release, Severity::Blocker).count();
    let mut text = String::new();
    if !release.ready {
        let hosts: std::collections::BTreeSet<&str> = of(release, Severity::Blocker).map(|f| f.host.as_str()).collect();
        let what = match hosts.len() {
            0 => "no plan can be made".to_owned(),
            n => format!(
                "{} on {}",
                count(blockers, "blocker", "blockers"),
                count(n, "host", "hosts")
            ),
        };
        let head = format!("{} is not ready: {what}", clean(&release.release));
        text.push_str(&format!("\n{}\n", paint.tone(Tone::Bad, &head)));
    } else if in_full && of(release, Severity::Warning).next().is_some() {
        let head = format!("{} is ready, with warnings", clean(&release.release));
        text.push_str(&format!("\n{}\n", paint.tone(Tone::Strong, &head)));
    }
    if let Some(problem) = &release.problem {
        text.push_str(&line(paint, Tone::Bad, "BLOCKER", "", &brief(problem), &problem.remedy));
    }
    let groups = [
        (Severity::Blocker, "BLOCKER", Tone::Bad),
        (Severity::Warning, "warning", Tone::Warn),
    ];
    for (wanted, word, tone) in groups {
        if wanted == Severity::Warning && !in_full {
            continue;
        }
        let mut found: Vec<&Finding> = of(release, wanted).collect();
        found.sort_by_key(|f| (&f.host, &f.component));
        for f in found {
            let place = format!("{} ", target(&f.host, &f.component));
            let what = if f.code.is_empty() {
                clean(&f.message)
            } else {
                format!("{}: {}", clean(&f.code), clean(&f.message))
            };
            text.push_str(&line(paint, tone, word, &place, &what, &f.remedy));
        }
    }
    text
}

fn line(paint: Paint, tone: Tone, word: &str, place: &str, what: &str, remedy: &str) -> String {
    let mut text = format!("  {} {place}{what}\n", paint.tone(tone, word));
    if !remedy.is_empty() {
        text.push_str(&format!("    what to do: {}\n", clean(remedy)));
    }
    text
}

pub fn json(response: &GetReadinessResponse) -> Value {
    let release = |r: &Readiness| {
        json!({
            "release": r.release,
            "ready": r.ready,
            "stale": r.stale,
            "checked_at": timestamp(r.checked_at.as_ref()).map(|t| t.to_string()),
            "age_ms": age(response, r),
            "took_ms": r.took.as_ref().map(span),
            "hosts": r.hosts,
            "components": r.components,
            "problem": r.problem.as_ref().map(|p| json!({"code": p.code, "message": p.message, "remedy": p.remedy})),
            "findings": documents::findings(&r.findings),
        })
    };
    json!({ "releases": response.releases.iter().map(release).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use rollback_proto::v1;

    use super::*;
    use crate::output::samples::{self, golden};

    fn finding(severity: Severity, host: &str, component: &str, code: &str, message: &str, remedy: &str) -> Finding {
        Finding {
            severity: severity.into(),
            code: code.to_owned(),
            message: message.to_owned(),
            remedy: remedy.to_owned(),
            host: host.to_owned(),
            component: component.to_owned(),
            loss: None,
        }
    }

    fn checked(release: &str, ago_ms: i64, findings: Vec<Finding>) -> Readiness {
        Readiness {
            release: release.to_owned(),
            checked_at: Some(samples::proto_at(-ago_ms)),
            took: Some(prost_types::Duration {
                seconds: 0,
                nanos: 840_000_000,
            }),
            ready: findings.iter().all(|f| f.severity() != Severity::Blocker),
            problem: None,
            findings,
            hosts: 4,
            components: 6,
            stale: false,
        }
    }

    /// Ready with a warning; blocked on two hosts; no plan; ready long ago.
    fn sample() -> GetReadinessResponse {
        let disk = finding(
            Severity::Warning,
            "db-1",
            "db",
            "RB0501",
            "cannot see the server's disk; a scratch copy of zekka needs 1.2 GiB there",
            "look at the server's disk",
        );
        let pruned = finding(
            Severity::Blocker,
            "app-2",
            "api",
            "RB0402",
            "the image sha256:28aa01bc04de of v2.8.0 is gone",
            "load it again: docker load",
        );
        let no_way = finding(
            Severity::Blocker,
            "app-1",
            "db",
            "RB0702",
            "migration 4 has no way down",
            "write 004_deal_stage_index.down.sql",
        );
        GetReadinessResponse {
            releases: vec![
                checked("v2.9.0", 252_000, vec![disk.clone()]),
                checked("v2.8.0", 251_000, vec![pruned, disk, no_way]),
                Readiness {
                    ready: false,
                    problem: Some(v1::Problem {
                        code: "RB0202".to_owned(),
                        message: "host app-9 is not in the fleet".to_owned(),
                        remedy: "enroll it".to_owned(),
                    }),
                    ..checked("v2.7.0", 250_000, Vec::new())
                },
                Readiness {
                    stale: true,
                    ..checked("v2.6.0", 7_325_000, Vec::new())
                },
            ],
            now: Some(samples::proto_at(0)),
        }
    }

    #[test]
    fn every_blocker_stands_with_its_host_and_what_to_do() {
        golden!("readiness", render(&sample(), false, Paint::PLAIN));
    }

    #[test]
    fn one_release_with_its_warnings() {
        let one = GetReadinessResponse {
            releases: sample().releases.into_iter().take(1).collect(),
            ..sample()
        };
        golden!("readiness_of_one", render(&one, true, Paint::PLAIN));
    }

    #[test]
    fn only_what_was_looked_at_lately_is_vouched_for() {
        let vouched: Vec<bool> = sample().releases.iter().map(is_vouched_for).collect();
        assert_eq!(vouched, [true, false, false, false]);
    }

    #[test]
    fn for_programs() {
        golden!(
            "readiness_json",
            serde_json::to_string_pretty(&json(&sample())).expect("json")
        );
    }
}
