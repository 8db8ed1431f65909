//! `rollback-agent check-config`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;

use super::{columns, print};
use crate::pki;
use crate::vault::Vault;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: super::ConfigFile,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let settings = args.config.load()?;
    // Drivers want a vault; this one is thrown away, so that nothing on the host changes.
    let place = tempfile::tempdir().context("make a temporary directory")?;
    let vault = Arc::new(Vault::open(place.path())?);
    let drivers = settings.drivers(&vault).map_err(|mistake| args.config.wrong(mistake))?;
    let mut rows = vec![row(["COMPONENT", "KIND", "ROLE", "READS", "A COORDINATOR MAY ASK FOR"])];
    for (name, driver) in &drivers {
        let info = driver.info();
        let lower = |name: &str, prefix: &str| name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase();
        let moves: Vec<String> = info
            .capabilities
            .iter()
            .map(|a| lower(a.as_str_name(), "ACTION_"))
            .collect();
        let reads: Vec<&str> = info.reads.iter().map(String::as_str).collect();
        let role = lower(info.role.as_str_name(), "ROLE_");
        rows.push(row([name, info.kind, &role, &reads.join(" "), &moves.join(" ")]));
    }
    print(&columns(&rows))?;
    for check in &settings.checks {
        print(&format!(
            "check {} of {}: {}\n",
            check.name,
            check.component,
            check.check.target()
        ))?;
    }
    match pki::load(&settings.pki, &settings.name) {
        Ok(credentials) => eprintln!("credentials: {}", credentials.us.identity),
        // Before the first enrollment this is no mistake of the configuration.
        Err(problem) => eprintln!("credentials: {}\n  what to do: {}", problem.message, problem.remedy),
    }
    eprintln!(
        "{} is right: host {}, components: {}",
        args.config.path.display(),
        settings.name,
        drivers.len()
    );
    Ok(ExitCode::SUCCESS)
}

fn row(cells: [&str; 5]) -> Vec<String> {
    cells
        .map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell.to_owned()
            }
        })
        .to_vec()
}
