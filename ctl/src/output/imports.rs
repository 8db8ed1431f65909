//! What was found for a release that nobody recorded, component by component.

use rollback_proto::v1::{ImportFinding, Role};

use super::paint::{Paint, Tone};
use super::problem::brief;
use super::table::{Table, cell, plain};
use super::text::{NONE, clean, or_none, short, target};
use crate::release::import::ImportArgs;

/// Components for which nothing was found.
pub fn missing(findings: &[ImportFinding]) -> usize {
    findings.iter().filter(|f| f.problem.is_some()).count()
}

pub fn table(findings: &[ImportFinding], paint: Paint) -> String {
    let mut table = Table::new(paint, &["HOST", "COMPONENT", "KIND", "REVISION", "FROM WHERE"]);
    for f in findings {
        let revision = f
            .revision
            .as_ref()
            .map(|r| format!("{} ({})", or_none(&r.version), short(&r.digest)));
        let (revision, whence) = match &f.problem {
            Some(problem) => (cell(Tone::Bad, "NOT FOUND"), cell(Tone::Bad, brief(problem))),
            None => (
                plain(revision.unwrap_or_else(|| NONE.to_owned())),
                plain(clean(&f.summary)),
            ),
        };
        table.row([
            plain(clean(&f.host)),
            plain(clean(&f.component)),
            plain(clean(&f.kind)),
            revision,
            whence,
        ]);
    }
    table.render(0)
}

/// The command that imports for good, without what is missing in `findings`. A proxy is kept as it is: one that is left
/// out would not take its backends out while they restart.
pub fn command(args: &ImportArgs, findings: &[ImportFinding]) -> String {
    let mut command = format!("rollbackctl release import {}", args.name);
    for name in &args.as_is {
        command.push_str(&format!(" --as-is {}", clean(name)));
    }
    for name in &args.without {
        command.push_str(&format!(" --without {}", clean(name)));
    }
    for f in findings.iter().filter(|f| f.problem.is_some()) {
        let name = target(&f.host, &f.component);
        // What could not be kept as it is would be asked for twice.
        if !args.as_is.contains(&name) {
            let decision = if f.role() == Role::Proxy {
                "--as-is"
            } else {
                "--without"
            };
            command.push_str(&format!(" {decision} {name}"));
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use rollback_proto::v1::{Problem, Revision};

    use super::*;
    use crate::cli::{Format, OutputArgs};
    use crate::output::samples::golden;

    fn finding(host: &str, component: &str, kind: &str, digest: &str, summary: &str) -> ImportFinding {
        ImportFinding {
            host: host.to_owned(),
            component: component.to_owned(),
            kind: kind.to_owned(),
            revision: (!digest.is_empty()).then(|| Revision {
                version: "v2.9.0".to_owned(),
                digest: digest.to_owned(),
            }),
            summary: summary.to_owned(),
            role: Role::App.into(),
            problem: None,
        }
    }

    #[test]
    fn found_kept_left_out_and_missing() {
        let not_found = Problem {
            code: "RB0514".to_owned(),
            message: "nothing goes by v2.9.0; looked at /opt/zekka/releases/v2.9.0, /opt/zekka/backups/v2.9.0"
                .to_owned(),
            remedy: String::new(),
        };
        let findings = [
            finding(
                "app-1",
                "api",
                "container",
                "sha256:29aa01bc04de55",
                "image zekka/api:v2.9.0",
            ),
            ImportFinding {
                problem: Some(not_found.clone()),
                ..finding("app-2", "api", "release-dir", "", "")
            },
            finding(
                "db-1",
                "db",
                "postgres",
                "sha256:29db01bc04de55",
                "as it is: 14 migrations",
            ),
            finding("proxy-1", "site", "nginx", "", "left out, as asked"),
            ImportFinding {
                role: Role::Proxy.into(),
                problem: Some(not_found),
                ..finding("proxy-2", "site", "nginx", "", "")
            },
        ];
        let args = ImportArgs {
            name: "v2.9.0".to_owned(),
            as_is: vec!["db-1/db".to_owned()],
            without: vec!["proxy-1/site".to_owned()],
            commit: String::new(),
            notes: String::new(),
            dry_run: false,
            output: OutputArgs { output: Format::Table },
        };
        let text = format!("{}\n{}", table(&findings, Paint::PLAIN), command(&args, &findings));
        golden!("import", text);
    }
}
