//! A part of the fleet: as people read it, and as it is typed.

use rollback_proto::v1::Scope;

use super::text::clean;

/// "api, web of hosts app-1, app-2 with tier=app, without host app-3". Empty: the whole release.
pub fn words(scope: Option<&Scope>) -> String {
    let Some(scope) = scope else { return String::new() };
    let list = |names: &[String]| names.iter().map(|n| clean(n)).collect::<Vec<_>>().join(", ");
    let mut parts = Vec::new();
    let mut part = |what: &str, names: &[String]| {
        if !names.is_empty() {
            parts.push(format!("{what} {}", list(names)));
        }
    };
    part("service", &scope.services);
    part("host", &scope.hosts);
    part("label", &scope.labels);
    part("without service", &scope.exclude_services);
    part("without host", &scope.exclude_hosts);
    parts.join("; ")
}

/// The options that select it again, each with a space before it.
pub fn flags(scope: Option<&Scope>) -> String {
    let Some(scope) = scope else { return String::new() };
    let sets = [
        ("--service", &scope.services),
        ("--host", &scope.hosts),
        ("-l", &scope.labels),
        ("--exclude-service", &scope.exclude_services),
        ("--exclude-host", &scope.exclude_hosts),
    ];
    let options = sets
        .into_iter()
        .flat_map(|(flag, names)| names.iter().map(move |name| format!(" {flag} {}", clean(name))));
    options.collect()
}
