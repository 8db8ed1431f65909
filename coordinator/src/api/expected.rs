//! What a deployment believes to have deployed, against what is live.

use rollback_engine::ids::Target;
use rollback_engine::release::Revision;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::ExpectedRevision;

/// How many differences an error message lists.
const LISTED: usize = 20;

/// Refuses with every difference, not with the first. `named`: versions count, too. Before anything was pinned they do only
/// where the component has a version of its own: files get their names by being recorded.
pub fn check<'a>(
    expected: &[ExpectedRevision],
    live: impl Iterator<Item = (&'a Target, &'a Revision)> + Clone,
    named: bool,
) -> Result<(), Problem> {
    let mut wrong = Vec::new();
    for wanted in expected {
        let fits = |pattern: &str, name: &str| pattern.is_empty() || pattern == name;
        let mut seen = false;
        for (target, revision) in live.clone() {
            if !fits(&wanted.host, target.host.as_str()) || !fits(&wanted.component, target.component.as_str()) {
                continue;
            }
            seen = true;
            let has_name = named || !is_made_of(&revision.version, revision.digest.0.as_str());
            if !fits(&wanted.digest, revision.digest.0.as_str()) {
                wrong.push(format!(
                    "{target} is {} ({}), expected {} ({})",
                    revision.version,
                    revision.digest,
                    or_any(&wanted.version),
                    wanted.digest
                ));
            } else if has_name && !fits(&wanted.version, &revision.version) {
                wrong.push(format!("{target} is {}, expected {}", revision.version, wanted.version));
            }
        }
        if !seen {
            let (host, component) = (or_any(&wanted.host), or_any(&wanted.component));
            wrong.push(format!("nothing is seen of {host}/{component}"));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let count = wrong.len();
    wrong.truncate(LISTED);
    let more = match count - wrong.len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    Err(Problem::new(
        Code::NotAsExpected,
        format!("nothing was recorded: {}{more}", wrong.join("; ")),
    ))
}

fn or_any(text: &str) -> &str {
    if text.is_empty() { "any" } else { text }
}

/// A version that was made of the digest is no name that anybody could expect.
fn is_made_of(version: &str, digest: &str) -> bool {
    digest
        .split_once(':')
        .is_some_and(|(_, hash)| hash.starts_with(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(host: &str, component: &str, version: &str, digest: &str) -> ExpectedRevision {
        let [host, component, version, digest] = [host, component, version, digest].map(str::to_owned);
        ExpectedRevision {
            host,
            component,
            version,
            digest,
        }
    }

    fn told(wanted: &[ExpectedRevision], named: bool) -> Vec<String> {
        let revision = |version: &str, digest: &str| Revision {
            version: version.to_owned(),
            digest: digest.into(),
        };
        let live = [
            (Target::new("app-1", "api"), revision("v3", "sha256:a3")),
            (Target::new("app-2", "api"), revision("v2", "sha256:a2")),
            (Target::new("app-1", "env"), revision("e3e3", "sha256:e3e3e3")),
        ];
        match check(wanted, live.iter().map(|(target, revision)| (target, revision)), named) {
            Ok(()) => Vec::new(),
            Err(problem) => {
                assert_eq!(problem.code, Code::NotAsExpected);
                let list = problem.message.trim_start_matches("nothing was recorded: ");
                list.split("; ").map(str::to_owned).collect()
            }
        }
    }

    #[test]
    fn every_difference_is_told_and_empty_fields_fit_anything() {
        for fits in [
            expected("", "", "", ""),
            expected("app-1", "api", "v3", "sha256:a3"),
            expected("", "api", "", ""),
            expected("app-2", "", "v2", ""),
        ] {
            assert_eq!(told(std::slice::from_ref(&fits), true), [""; 0], "{fits:?}");
        }
        assert_eq!(
            told(
                &[
                    expected("", "api", "v3", ""),
                    expected("app-1", "api", "", "sha256:a4"),
                    expected("app-3", "api", "v3", ""),
                    expected("", "web", "", ""),
                ],
                true
            ),
            [
                "app-2/api is v2, expected v3",
                "app-1/api is v3 (sha256:a3), expected any (sha256:a4)",
                "nothing is seen of app-3/api",
                "nothing is seen of any/web",
            ]
        );
    }

    #[test]
    fn files_have_no_name_before_they_are_recorded() {
        let env = [expected("", "env", "v3", "")];
        assert_eq!(told(&env, false), [""; 0]);
        assert_eq!(told(&env, true), ["app-1/env is e3e3, expected v3"]);
        assert_eq!(
            told(&[expected("app-2", "", "v3", "")], false),
            ["app-2/api is v2, expected v3"]
        );
    }
}
