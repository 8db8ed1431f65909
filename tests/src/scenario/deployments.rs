//! Stories of every way in which an application is deployed. Each one brings the servers that it wants, and its hosts.

mod artifact_systemd;
mod compose;
mod compose_rebuild;
mod docker;
mod env;
mod git_pm2;
mod import;
mod mixed;
mod nginx_drain;
mod vs_runbook;
mod zero_downtime;

use anyhow::Result;
use futures::FutureExt;

use super::{Found, Options, Scenario};
use crate::control::{Control, ControlOptions};

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "docker",
        about: "containers on two hosts behind nginx go back to v2.9.0's image, with their volumes, networks and settings",
        tell: |o| docker::tell(o).boxed_local(),
    },
    Scenario {
        name: "git-pm2",
        about: "git, npm and pm2 on two hosts: undone when v2.9.0 is never healthy, then back; what people left is untouched",
        tell: |o| git_pm2::tell(o).boxed_local(),
    },
    Scenario {
        name: "env",
        about: "only the env files differ: staged first, effective in process and container, and no value leaves its host",
        tell: |o| env::tell(o).boxed_local(),
    },
    Scenario {
        name: "compose",
        about: "IMAGE_TAG in .env goes back; redis beside it is not touched, and Compose finds nothing to do afterwards",
        tell: |o| compose::tell(o).boxed_local(),
    },
    Scenario {
        name: "compose-rebuild",
        about: "v2.9.0's image is gone: it is rebuilt from the git tag while v3.0.0 serves, the checkout is not touched",
        tell: |o| compose_rebuild::tell(o).boxed_local(),
    },
    Scenario {
        name: "import-zekka",
        about: "zekka's fleet never recorded anything: v2.9.0 is found by image, git tag, backups and .backup files",
        tell: |o| import::zekka::tell(o).boxed_local(),
    },
    Scenario {
        name: "import-zakops",
        about: "zakops's fleet never recorded anything: v2.9.0 is found by git tag and image, the database left out",
        tell: |o| import::zakops::tell(o).boxed_local(),
    },
    Scenario {
        name: "nginx-drain",
        about: "backends get no requests before they stop, and get them again; undone, the last one, agents killed: nobody fails",
        tell: |o| nginx_drain::tell(o).boxed_local(),
    },
    Scenario {
        name: "zero-downtime",
        about: "200 requests per second during the whole rollback, of containers and of release directories: none fails",
        tell: |o| zero_downtime::tell(o).boxed_local(),
    },
    Scenario {
        name: "vs-runbook",
        about: "the runbook's Docker method as it is written, and ours, on one fleet: how long nobody is served",
        tell: |o| vs_runbook::tell(o).boxed_local(),
    },
    Scenario {
        name: "artifact-systemd",
        about: "v2.9.0 exists as an archive only: imported, then live under a real systemd, whose Restart=always never interferes",
        tell: |o| artifact_systemd::tell(o).boxed_local(),
    },
    Scenario {
        name: "mixed",
        about: "container, Compose, git and pm2, archive and systemd, release directory, PostgreSQL and nginx in one rollback",
        tell: |o| mixed::tell(o).boxed_local(),
    },
];

/// Starts a coordinator, tells the story on it and ends it: the story starts the servers that it wants, and adds agents for them. What it
/// [holds](Control::hold) ends after the programs under test.
pub(super) async fn on_control(
    options: Options,
    story: impl AsyncFnOnce(&mut Control) -> Result<Found>,
) -> Result<Found> {
    on_traced_control(options, None, story).await
}

/// As [`on_control`]; all programs export their spans to this receiver.
async fn on_traced_control(
    options: Options,
    otlp: Option<&str>,
    story: impl AsyncFnOnce(&mut Control) -> Result<Found>,
) -> Result<Found> {
    let control = ControlOptions {
        otlp: otlp.map(str::to_owned),
        ..ControlOptions::default()
    };
    on_control_with(control, options, story).await
}

/// As [`on_control`], with coordinators of another kind.
pub(super) async fn on_control_with(
    control: ControlOptions,
    options: Options,
    story: impl AsyncFnOnce(&mut Control) -> Result<Found>,
) -> Result<Found> {
    options.say("Starting the coordinator …");
    let mut control = Control::start(ControlOptions {
        keep: options.keep,
        ..control
    })
    .await?;
    let told = story(&mut control).await;
    if let Err(error) = &told {
        options.say(format!("FAILED: {error:#}"));
    }
    if options.keep {
        options.say(control.leave_running(&[])?);
        return told;
    }
    match told {
        Err(error) => Err(anyhow::anyhow!(
            "{error:#}\nthe logs end so:\n{}",
            control.tails(std::iter::empty())
        )),
        Ok(found) => {
            control.stop().await?;
            Ok(found)
        }
    }
}
