//! Stories of every way in which an application is deployed. Each one brings the servers that it wants, and its hosts.

mod docker;

use anyhow::Result;
use futures::FutureExt;

use super::{Found, Options, Scenario};
use crate::control::{Control, ControlOptions};

pub const ALL: &[Scenario] = &[Scenario {
    name: "docker",
    about: "containers on two hosts behind nginx go back to v2.9.0's image, with their volumes, networks and settings",
    tell: |o| docker::tell(o).boxed_local(),
}];

/// Starts a coordinator, tells the story on it and ends it: the story starts the servers that it wants, and adds agents for them. What it
/// [holds](Control::hold) ends after the programs under test.
async fn on_control(options: Options, story: impl AsyncFnOnce(&mut Control) -> Result<Found>) -> Result<Found> {
    options.say("Starting the coordinator …");
    let mut control = Control::start(ControlOptions {
        keep: options.keep,
        otlp: None,
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
