//! Backends are taken out of nginx before they stop and given back when they serve. Seen from outside: nginx's own log of
//! which server was asked for each request, beside what the applications noted of their starts and stops.
//!
//! Three hosts behind proxy-1, and the last two of them behind proxy-2 as well. The runbook takes the last two in one
//! batch, which would leave proxy-2 with nobody: so they have to go one after the other. Six rollbacks, one after the
//! other, while users ask both proxies:
//! 1. to v2.9.0, as it should be;
//! 2. to v3.0.0, which never gets healthy on app-3: undone in the middle, and every backend gets requests again;
//! 3. to v3.0.0, and somebody takes app-3 out of proxy-2 by hand meanwhile: app-2 is then the last one there, is not
//!    drained, and everything is undone;
//! 4. to v3.0.0, with kill -9 of proxy-1's agent between a drain and its resume, and in the middle of a drain: what it
//!    left is recognised, and resumed;
//! 5. to v3.0.0, which runs already, but app-1 is out of proxy-1, as a rollback that never ended would have left it: it
//!    is given back, and nothing else happens;
//! 6. to v2.9.0, and somebody took app-3 out of proxy-2 by hand before: app-3 restarts first, nobody has to take it out,
//!    and it is given back; only then is app-2 taken out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::on_control;
use crate::control::Control;
use crate::ctl::{Answer, rollback_to};
use crate::deployed::release::ReleaseApp;
use crate::deployed::{Deployed, PROXY, behind_nginx, deploy};
use crate::nginx::{Nginx, Request};
use crate::prober::Prober;
use crate::scenario::{Found, Options, found};
use crate::wait;
use crate::zekka::Version;

const SECOND_PROXY: &str = "proxy-2";

/// Requests per second to each proxy.
const RATE: u32 = 100;

/// Answers that are seen before and after each rollback.
const ANSWERED: usize = 30;

/// So many requests, at the least, are seen while a backend is out.
const WITHOUT_IT: usize = 5;

/// Until a host can be healthy: time to do something to the fleet.
const SLOW_START: Duration = Duration::from_secs(2);

/// Longer than [`SLOW_START`]; it is waited for in vain once.
const HEALTHY_WITHIN: &str = "6s";

const SOON: Duration = Duration::from_secs(60);

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| {
        let site = Site::start(control).await?;
        let back = site.back(control, options).await?;
        let undone = site.undone(control, options).await.context("undone in the middle")?;
        let last = site.last_backend(control, options).await.context("last backend")?;
        let killed = site.agent_killed(control, options).await.context("agent killed")?;
        let left = site.left_out(control, options).await.context("left out")?;
        let by_hand = site.out_by_hand(control, options).await.context("out by hand")?;
        Ok(found(json!({
            "back": back, "undone": undone, "last_backend": last, "agent_killed": killed, "left_out": left,
            "out_by_hand": by_hand,
        })))
    })
    .await
}

/// Applications and the proxies in front of them.
struct Site {
    apps: [ReleaseApp; 3],
    /// In front of all.
    first: Nginx,
    /// In front of the last two.
    second: Nginx,
}

/// A rollback, as users and the proxies saw it.
struct Told {
    answer: Answer,
    begun: Timestamp,
    /// The most backends that were out at once: of the first proxy, of the second one.
    most_out: [usize; 2],
    requests: usize,
}

impl Told {
    fn figures(&self) -> Result<Value> {
        Ok(json!({
            "exit_code": self.answer.code,
            "state": self.answer.json()?["state"],
            "requests": self.requests,
            "failed_requests": 0,
            "most_out_at_once": self.most_out,
        }))
    }
}

impl Site {
    async fn start(control: &mut Control) -> Result<Self> {
        let mut apps = [
            ReleaseApp::of(control, "app-1")?,
            ReleaseApp::of(control, "app-2")?,
            ReleaseApp::of(control, "app-3")?,
        ];
        for app in &mut apps {
            app.healthy_within = HEALTHY_WITHIN;
        }
        for app in &apps {
            deploy(app, Version::V2_9_0).await?;
        }
        let hosts: [(&str, &dyn Deployed); 3] = [("app-1", &apps[0]), ("app-2", &apps[1]), ("app-3", &apps[2])];
        let first = behind_nginx(control, &hosts, Version::V2_9_0).await?;
        let behind: BTreeMap<String, String> = hosts[1..]
            .iter()
            .map(|(host, app)| (format!("{host}/api"), app.address()))
            .collect();
        let addresses: Vec<String> = behind.values().cloned().collect();
        let second = Nginx::in_front_of(control, SECOND_PROXY, &addresses, "", "v2.9.0").await?;
        control
            .add_agent(SECOND_PROXY, "proxy", &second.component(&behind))
            .await?;
        control.ctl.record("v2.9.0").await?.expect_code(0)?;
        for app in &apps {
            deploy(app, Version::V3_0_0).await?;
        }
        control.ctl.record("v3.0.0").await?.expect_code(0)?;
        Ok(Self { apps, first, second })
    }

    async fn back(&self, control: &mut Control, options: Options) -> Result<Value> {
        options.say("1. To v2.9.0 …");
        let told = self.roll(control, Version::V2_9_0, async |_| Ok(())).await?;
        told.answer.clone().expect_code(0)?;
        self.expect_everywhere(Version::V2_9_0)?;
        ensure!(
            told.most_out == [1, 1],
            "at most {:?} backends were out at once, not one of each proxy",
            told.most_out
        );
        let mut figures = told.figures()?;
        for (name, nginx, apps) in self.proxies() {
            let spared = apps
                .iter()
                .map(|app| expect_spared(nginx, app, &told, Version::V3_0_0, Version::V2_9_0))
                .collect::<Result<Vec<_>>>()
                .with_context(|| format!("requests of {name}"))?;
            figures[name] = json!(spared);
        }
        // The last two went one after the other: the runbook has them in one batch.
        let (second, third) = (&self.apps[1], &self.apps[2]);
        let begins = noted(second, told.begun, "start", Version::V2_9_0)?;
        let stops = noted(third, told.begun, "stop", Version::V3_0_0)?;
        ensure!(
            begins < stops,
            "app-3 was stopped at {stops}, before app-2 began to start at {begins}"
        );
        Ok(figures)
    }

    async fn undone(&self, control: &mut Control, options: Options) -> Result<Value> {
        options.say("2. To v3.0.0, which never gets healthy on app-3 …");
        let app = &self.apps[2].host;
        app.set_fault(Version::V3_0_0, true, Duration::ZERO)?;
        let told = self.roll(control, Version::V3_0_0, async |_| Ok(())).await?;
        app.clear_faults()?;
        told.answer.clone().expect_code(5)?;
        self.expect_everywhere(Version::V2_9_0)?;
        // It went there and came back: nothing of it is without a drain.
        for (name, nginx, apps) in self.proxies() {
            for app in apps {
                expect_spared(nginx, app, &told, Version::V2_9_0, Version::V3_0_0)
                    .and_then(|_| expect_spared(nginx, app, &told, Version::V3_0_0, Version::V2_9_0))
                    .with_context(|| format!("requests of {name}"))?;
            }
        }
        told.figures()
    }

    async fn last_backend(&self, control: &mut Control, options: Options) -> Result<Value> {
        options.say("3. To v3.0.0; app-3 is taken out of proxy-2 by hand, which leaves it app-2 alone …");
        let (first, second, third) = (&self.apps[0], &self.apps[1], &self.apps[2]);
        first.host.set_fault(Version::V3_0_0, false, SLOW_START)?;
        let include = self.second.upstream_include();
        let before = std::fs::read_to_string(&include).context("read the managed upstream")?;
        let told = self
            .roll(control, Version::V3_0_0, async |_| {
                wait_starting(first, Version::V3_0_0).await?;
                take_out(&self.second, third).await
            })
            .await?;
        first.host.clear_faults()?;
        told.answer.clone().expect_code(5)?;
        ensure!(
            told.answer.text().contains("last that gets requests"),
            "the answer does not say why: {}",
            told.answer
        );
        let touched: Vec<_> = second.host.timed_effects()?;
        ensure!(
            touched.iter().all(|(at, _, _)| *at < told.begun),
            "app-2 was touched: {touched:?}"
        );
        let out = (self.first.drained()?, self.second.drained()?);
        ensure!(
            out == (Vec::new(), vec![third.address()]),
            "out of the proxies are now {out:?}"
        );
        let figures = told.figures()?;
        std::fs::write(&include, before).context("give app-3 back by hand")?;
        self.second.reload().await?;
        self.expect_everywhere(Version::V2_9_0)?;
        Ok(figures)
    }

    async fn agent_killed(&self, control: &mut Control, options: Options) -> Result<Value> {
        options.say("4. To v3.0.0, with kill -9 of proxy-1's agent …");
        let (first, second) = (&self.apps[0], &self.apps[1]);
        first.host.set_fault(Version::V3_0_0, false, SLOW_START)?;
        let told = self
            .roll(control, Version::V3_0_0, async |control| {
                wait_starting(first, Version::V3_0_0).await?;
                options.say("   app-1 is out and starting: kill -9.");
                control.agent(PROXY)?.kill()?;
                ensure!(
                    self.first.drained()? == [first.address()],
                    "app-1 starts, and out is {:?}",
                    self.first.drained()?
                );
                control.agent(PROXY)?.run().await?;
                expect_recognised(control, PROXY, "app-1/api").await?;
                let what = "app-2 is being taken out of proxy-1";
                wait::until_true(what, SOON, async || {
                    self.first.drained().is_ok_and(|out| out == [second.address()])
                })
                .await?;
                options.say("   app-2 is being taken out: kill -9.");
                control.agent(PROXY)?.kill()?;
                control.agent(PROXY)?.run().await
            })
            .await?;
        first.host.clear_faults()?;
        told.answer.clone().expect_code(0)?;
        self.expect_everywhere(Version::V3_0_0)?;
        for app in &self.apps {
            expect_spared(&self.first, app, &told, Version::V2_9_0, Version::V3_0_0)?;
        }
        told.figures()
    }

    async fn left_out(&self, control: &mut Control, options: Options) -> Result<Value> {
        options.say("5. To v3.0.0, which runs already; app-1 was left out of proxy-1 …");
        let first = &self.apps[0];
        take_out(&self.first, first).await?;
        expect_recognised(control, PROXY, "app-1/api").await?;
        let told = self.roll(control, Version::V3_0_0, async |_| Ok(())).await?;
        told.answer.clone().expect_code(0)?;
        self.expect_everywhere(Version::V3_0_0)?;
        for app in &self.apps {
            let effects = app.host.timed_effects()?;
            ensure!(
                effects.iter().all(|(at, _, _)| *at < told.begun),
                "{} was touched: {effects:?}",
                app.host.name
            );
        }
        told.figures()
    }

    async fn out_by_hand(&self, control: &mut Control, options: Options) -> Result<Value> {
        options.say("6. To v2.9.0; app-3 was taken out of proxy-2 by hand …");
        let (second, third) = (&self.apps[1], &self.apps[2]);
        take_out(&self.second, third).await?;
        expect_recognised(control, SECOND_PROXY, "app-3/api").await?;
        let told = self.roll(control, Version::V2_9_0, async |_| Ok(())).await?;
        told.answer.clone().expect_code(0)?;
        self.expect_everywhere(Version::V2_9_0)?;
        ensure!(
            told.most_out == [1, 1],
            "at most {:?} backends were out at once, not one of each proxy",
            told.most_out
        );
        for app in &self.apps {
            expect_spared(&self.first, app, &told, Version::V3_0_0, Version::V2_9_0).context("requests of proxy-1")?;
        }
        let spared = expect_spared(&self.second, second, &told, Version::V3_0_0, Version::V2_9_0)
            .context("requests of proxy-2")?;
        let back = noted(third, told.begun, "start", Version::V2_9_0)?;
        let stopped = noted(second, told.begun, "stop", Version::V3_0_0)?;
        let server = third.address();
        let first = requests_since(&self.second, told.begun)?.find(|r| r.is_of(&server));
        let first = first.context("app-3 gets no requests of proxy-2")?.ended;
        ensure!(
            back < first && first < stopped,
            "app-3 starts at {back}, gets requests from {first} on, and app-2 stops at {stopped}"
        );
        let mut figures = told.figures()?;
        figures[SECOND_PROXY] = json!([spared]);
        Ok(figures)
    }

    fn proxies(&self) -> [(&str, &Nginx, &[ReleaseApp]); 2] {
        [
            (PROXY, &self.first, &self.apps),
            (SECOND_PROXY, &self.second, &self.apps[1..]),
        ]
    }

    /// Rolls back while users ask and `meanwhile` happens. Nobody fails, and no server is asked that does not answer.
    async fn roll(
        &self,
        control: &mut Control,
        to: Version,
        meanwhile: impl AsyncFnOnce(&mut Control) -> Result<()>,
    ) -> Result<Told> {
        let probers = [
            Prober::at_rate(self.first.url("/api/version"), RATE)?,
            Prober::at_rate(self.second.url("/api/version"), RATE)?,
        ];
        are_served(&probers).await?;
        let begun = Timestamp::now();
        let running = control.ctl.start(&rollback_to(to.name()), false)?;
        let mut most_out = [0, 0];
        let ended = async { tokio::try_join!(running.answer(), meanwhile(control)).map(|(answer, ())| answer) };
        let mut ended = std::pin::pin!(ended);
        let answer = loop {
            tokio::select! {
                answer = &mut ended => break answer?,
                out = self.wait_other_out(most_out) => most_out = out?,
            }
        };
        let answered_before = self.first.requests()?.len();
        are_served(&probers).await?;
        let mut requests = 0;
        for (prober, (name, nginx, _)) in probers.into_iter().zip(self.proxies()) {
            let samples = prober.stop().await?;
            ensure!(
                samples.failed() == 0,
                "users of {name} noticed: {}; {answer}",
                samples.figures()
            );
            requests += samples.len();
            let asked_in_vain = requests_since(nginx, begun)?.find(|r| r.servers.len() != 1);
            ensure!(asked_in_vain.is_none(), "{name} noted {asked_in_vain:?}");
        }
        let after = self.first.requests()?.split_off(answered_before);
        for app in &self.apps {
            ensure!(
                after.iter().any(|r| r.is_of(&app.address())),
                "{} got no request after the rollback",
                app.host.name
            );
        }
        Ok(Told {
            answer,
            begun,
            most_out,
            requests,
        })
    }

    /// Waits until more backends are out of a proxy than were so far.
    async fn wait_other_out(&self, so_far: [usize; 2]) -> Result<[usize; 2]> {
        wait::until("more backends are out", SOON * 3, async || {
            let out = |nginx: &Nginx, so_far: usize| nginx.drained().map_or(so_far, |out| out.len().max(so_far));
            let now = [out(&self.first, so_far[0]), out(&self.second, so_far[1])];
            (now != so_far).then_some(now)
        })
        .await
    }

    /// Every host serves this version, and gets requests from each of its proxies.
    fn expect_everywhere(&self, version: Version) -> Result<()> {
        for app in &self.apps {
            app.served()?.expect(version).with_context(|| app.host.name.clone())?;
        }
        for (name, nginx, _) in self.proxies() {
            let out = nginx.drained()?;
            ensure!(out.is_empty(), "out of {name} are still {out:?}");
        }
        Ok(())
    }
}

/// Takes a backend out by hand.
async fn take_out(nginx: &Nginx, app: &ReleaseApp) -> Result<()> {
    let include = nginx.upstream_include();
    let text = std::fs::read_to_string(&include).context("read the managed upstream")?;
    let line = format!("server {};", app.address());
    ensure!(text.contains(&line), "the managed upstream lacks {line:?}: {text}");
    let without = text.replace(&line, &format!("server {} down;", app.address()));
    std::fs::write(&include, without).context("take a server out by hand")?;
    nginx.reload().await
}

async fn are_served(probers: &[Prober]) -> Result<()> {
    for prober in probers {
        prober.until_served(ANSWERED).await?;
    }
    Ok(())
}

/// Waits until the newest thing that the application noted is the start of this version.
async fn wait_starting(app: &ReleaseApp, version: Version) -> Result<()> {
    let what = format!("{} begins to start on {}", version.name(), app.host.name);
    wait::until_true(&what, SOON, async || {
        let effects = app.host.effects().unwrap_or_default();
        effects.last() == Some(&("start".to_owned(), version.name().to_owned()))
    })
    .await
}

/// The proxy's agent, started anew or not, says which backend is out.
async fn expect_recognised(control: &Control, proxy: &str, backend: &str) -> Result<()> {
    let what = format!("fleet status says of {proxy} that {backend} is out");
    wait::until_true(&what, SOON, async || {
        let Ok(answer) = control.ctl.run(&["fleet", "status", "-o", "json"]).await else {
            return false;
        };
        let Ok(json) = answer.json() else { return false };
        let hosts = json["hosts"].as_array().cloned().unwrap_or_default();
        let components = hosts
            .iter()
            .filter(|h| h["name"] == proxy)
            .flat_map(|h| h["components"].as_array());
        components.flatten().any(|c| {
            let detail = c["detail"].as_str().unwrap_or_default();
            c["health"] == "drained" && detail.ends_with(&format!("gets no requests: {backend}"))
        })
    })
    .await
}

/// Those of users.
fn requests_since(nginx: &Nginx, begun: Timestamp) -> Result<impl Iterator<Item = Request>> {
    let requests = nginx.requests()?.into_iter();
    Ok(requests.filter(move |r| r.ended >= begun && r.path.starts_with("/api/")))
}

/// When the application first noted this after a time.
fn noted(app: &ReleaseApp, since: Timestamp, event: &str, version: Version) -> Result<Timestamp> {
    let effects = app.host.timed_effects()?;
    let mut times = effects
        .iter()
        .filter(|(at, e, v)| *at >= since && e == event && v == version.name());
    times
        .next()
        .map(|(at, _, _)| *at)
        .with_context(|| format!("{} noted no {event} of {}", app.host.name, version.name()))
}

/// One restart of a backend: its last request was answered while it still ran; from the time when it stopped until it was
/// given back, workers of nginx were at work that had never asked it: it had been taken out before. It got requests again
/// when the other version was there.
fn expect_spared(nginx: &Nginx, app: &ReleaseApp, told: &Told, from: Version, to: Version) -> Result<Value> {
    let (name, server) = (&app.host.name, app.address());
    let stopped = noted(app, told.begun, "stop", from)?;
    let started = noted(app, stopped, "start", to)?;
    let requests: Vec<Request> = requests_since(nginx, told.begun)?.collect();
    let last = requests.iter().rfind(|r| r.is_of(&server) && r.ended < started);
    let last = last.with_context(|| format!("{name} got no request before"))?.ended;
    ensure!(
        last < stopped,
        "{name} stopped at {stopped}, and its last request was answered at {last}"
    );
    let again = requests.iter().find(|r| r.is_of(&server) && r.ended > started);
    let again = again.with_context(|| format!("{name} got no request after"))?.ended;
    let asked_it: BTreeSet<u32> = requests
        .iter()
        .filter(|r| r.is_of(&server) && r.ended <= last)
        .map(|r| r.worker)
        .collect();
    let without: Vec<&Request> = requests
        .iter()
        .filter(|r| r.ended > stopped && r.ended < again)
        .collect();
    let by_old = without.iter().find(|r| asked_it.contains(&r.worker));
    ensure!(
        without.len() >= WITHOUT_IT && by_old.is_none(),
        "{name} was down during {} requests, and had not been taken out of nginx for {by_old:?}",
        without.len()
    );
    Ok(json!({
        "host": name,
        "out_before_stop_ms": stopped.duration_since(last).as_millis(),
        "requests_without_it": without.len(),
        "in_after_start_ms": again.duration_since(started).as_millis(),
    }))
}
