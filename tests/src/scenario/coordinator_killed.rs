//! kill -9 of the coordinator in the middle of the app phase. Started again, it goes on from its journal, on the same
//! trace, to the end; rollbackctl reconnects and reports it; no step took effect twice.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::trace::steps_of;
use super::{Found, Options, expect_running, found, on_fleet};
use crate::collector::Collector;
use crate::ctl::rollback_to;
use crate::fleet::Fleet;
use crate::wait;
use crate::zekka::Version;

/// Long enough for a kill and a restart inside the start of the application.
const SLOW_START: Duration = Duration::from_secs(3);

pub async fn tell(options: Options) -> Result<Found> {
    let collector = Collector::start().await?;
    let builder = Fleet::builder().otlp(collector.endpoint());
    on_fleet(builder, options, async |fleet| {
        fleet.deploy_both().await?;
        for host in &fleet.zekka.hosts {
            host.set_fault(Version::V2_9_0, false, SLOW_START)?;
        }
        let marks = Marks::set(fleet)?;
        let running = fleet.ctl.start(&rollback_to("v2.9.0"), false)?;
        marks.wait_started(fleet, "app-1").await?;
        options.say("v2.9.0 is starting on app-1: kill -9 of the coordinator.");
        fleet.coordinator.kill()?;
        fleet.coordinator.run().await?;
        options.say("The coordinator runs again. Waiting for rollbackctl's verdict …");
        let answer = running.answer().await?.expect_code(0)?;
        expect_running(fleet, Version::V2_9_0)?;
        marks.expect_once(fleet)?;
        let result = answer.json()?;
        let report = fleet.ctl.show("latest").await?;
        ensure!(
            report["rollback_id"] == result["rollback_id"],
            "another rollback was started: {report}"
        );
        let trace_id = result["trace_id"].as_str().context("the answer names the trace")?;
        let trace = collector.whole_trace(trace_id, &steps_of(&report)?).await?;
        Ok(found(
            json!({ "exit_code": answer.code, "state": result["state"], "spans": trace.spans }),
        ))
    })
    .await
}

/// How far each host's record of effects was when the rollback began.
#[derive(Debug)]
pub(super) struct Marks(Vec<(String, usize)>);

impl Marks {
    pub fn set(fleet: &Fleet) -> Result<Self> {
        let mark = |host: &crate::zekka::AppHost| Ok((host.name.clone(), host.effects()?.len()));
        fleet.zekka.hosts.iter().map(mark).collect::<Result<_>>().map(Self)
    }

    fn since(&self, fleet: &Fleet, name: &str) -> Result<Vec<(String, String)>> {
        let mark = self
            .0
            .iter()
            .find(|(host, _)| host == name)
            .map(|(_, mark)| *mark)
            .context("the host is marked")?;
        Ok(fleet.app(name)?.effects()?.split_off(mark))
    }

    /// Waits until v2.9.0 begins to start on a host: the rollback is in the middle of its app phase.
    pub async fn wait_started(&self, fleet: &Fleet, name: &str) -> Result<()> {
        let what = format!("v2.9.0 begins to start on {name}");
        wait::until_true(&what, Duration::from_secs(60), async || {
            let effects = self.since(fleet, name).unwrap_or_default();
            effects.contains(&("start".to_owned(), "v2.9.0".to_owned()))
        })
        .await
    }

    /// On every host v3.0.0 was stopped once and v2.9.0 started once, and nothing else was tried.
    pub fn expect_once(&self, fleet: &Fleet) -> Result<()> {
        self.expect_switched(fleet, Version::V3_0_0, Version::V2_9_0)
    }

    /// How many starts and stops happened again, and how many starts were refused because the application ran.
    pub fn duplicates(&self, fleet: &Fleet) -> Result<usize> {
        let mut found = 0;
        for (name, _) in &self.0 {
            let mut seen = BTreeSet::new();
            for (event, version) in self.since(fleet, name)? {
                found += usize::from(event == "refused" || !seen.insert((event, version)));
            }
        }
        Ok(found)
    }

    /// On every host one version was stopped once and the other one started once, and nothing else was tried.
    pub fn expect_switched(&self, fleet: &Fleet, from: Version, to: Version) -> Result<()> {
        let once = [
            ("stop".to_owned(), from.name().to_owned()),
            ("start".to_owned(), to.name().to_owned()),
        ];
        for (name, _) in &self.0 {
            let effects = self.since(fleet, name)?;
            ensure!(effects == once, "on {name} these steps took effect: {effects:?}");
        }
        Ok(())
    }
}
