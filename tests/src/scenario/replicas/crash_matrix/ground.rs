//! A small fleet, so that a rollback takes a second: the application with its env file on one host, nginx on another, no
//! database. It swings between two releases; in every case one process is killed at a point and started again.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::case::{Case, Kind, Victim};
use super::judge::{Verdict, judge, misfits};
use crate::control::{Control, StoreKind};
use crate::coordinator::Coordinator;
use crate::ctl::{Answer, rollback_to};
use crate::deployed::release::ReleaseApp;
use crate::deployed::{PROXY, behind_nginx, deploy};
use crate::nginx::Nginx;
use crate::scenario::expect_nothing;
use crate::scenario::points::{KILL_AT, KILL_LOG, Point, passed};
use crate::wait;
use crate::zekka::Version;

const OLD: Version = Version::V2_9_0;
const NEW: Version = Version::V3_0_0;

const APP: &str = "app-1";
const AGENTS: [&str; 2] = [APP, PROXY];

/// Places that an agent passes for every new leader.
const AT_TAKEOVER: [&str; 2] = ["rpc.recall.", "ledger.epoch."];

/// Places that a coordinator passes when an agent registers.
const AT_REGISTRATION: &str = "store.save_agent.";

/// Of two coordinators: the one that leads at the beginning of every case, and the other one.
const FIRST: &str = crate::coordinator::FIRST;
const SECOND: &str = "coord-2";

/// For every rollback, however it is disturbed.
const ENDS_WITHIN: Duration = Duration::from_secs(90);
const LEADS_WITHIN: Duration = Duration::from_secs(15);
const CONNECTED_WITHIN: Duration = Duration::from_secs(30);

/// Between two looks at whether the process has come to its point.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub struct Ground<'a> {
    control: &'a mut Control,
    app: ReleaseApp,
    nginx: Nginx,
    store: StoreKind,
    live: Version,
}

/// Variables of a process from its next start on.
type Env = Vec<(&'static str, String)>;

/// What came of a rollback.
struct Told {
    answer: Answer,
    /// The process came to its point.
    met: bool,
    /// Points that the leader had passed when it was disturbed.
    passed_before: usize,
}

impl<'a> Ground<'a> {
    /// With both releases recorded, and the newer one live.
    pub async fn prepare(control: &'a mut Control, store: StoreKind) -> Result<Self> {
        let app = ReleaseApp::of(control, APP)?;
        deploy(&app, OLD).await?;
        let nginx = behind_nginx(control, &[(APP, &app)], OLD).await?;
        control.ctl.record(OLD.name()).await?.expect_code(0)?;
        deploy(&app, NEW).await?;
        nginx.write_site(NEW.name())?;
        nginx.reload().await?;
        control.ctl.record(NEW.name()).await?.expect_code(0)?;
        let ground = Self {
            control,
            app,
            nginx,
            store,
            live: NEW,
        };
        expect_nothing("v3.0.0 is not live", &misfits(&ground.app, &ground.nginx, NEW)?)?;
        Ok(ground)
    }

    fn other(&self) -> Version {
        if self.live == OLD { NEW } else { OLD }
    }

    /// A rollback of this kind in which nobody is killed at a point. Answers with the points that everybody passed, as far
    /// as cases are made of them.
    pub async fn learn(&mut self, kind: Kind) -> Result<Vec<(Victim, Vec<Point>)>> {
        let dir = self.control.dir().join("points").join(format!("{kind:?}"));
        std::fs::create_dir_all(&dir).context("make the directory of points")?;
        let mut victims = vec![Victim::Coordinator];
        victims.extend(AGENTS.map(Victim::Agent));
        let log = |victim: Victim| -> PathBuf {
            dir.join(match victim {
                Victim::Coordinator => "coordinator",
                Victim::Agent(host) => host,
            })
        };
        for victim in &victims {
            let env = vec![(KILL_LOG, log(*victim).display().to_string())];
            ensure!(!self.arm(kind, *victim, &env).await?, "a log of points kills nobody");
        }
        let to = self.other();
        let told = self.swing(kind, to, None, Some(&log(Victim::Coordinator))).await?;
        // Before the processes are ended, which passes further points.
        let logs: Vec<_> = victims
            .iter()
            .map(|victim| passed(&log(*victim)))
            .collect::<Result<_>>()?;
        self.finish().await?;
        let verdict = judge(&told.answer, &self.app, &self.nginx, self.live, to)?;
        ensure!(verdict == Verdict::Verified, "it ended {}", verdict.describe());
        self.live = to;
        let mut found = Vec::new();
        for (victim, points) in victims.into_iter().zip(logs) {
            let at_takeover = |point: &Point| AT_TAKEOVER.iter().any(|name| point.name.starts_with(name));
            let points: Vec<Point> = match (kind, victim) {
                (Kind::Undisturbed | Kind::TakenOver, Victim::Coordinator) => points,
                (Kind::HandedOver, Victim::Coordinator) => points.into_iter().skip(told.passed_before).collect(),
                (Kind::Undisturbed, Victim::Agent(_)) => points.into_iter().filter(|p| !at_takeover(p)).collect(),
                // The rest is as ever.
                (Kind::TakenOver, Victim::Agent(_)) => points.into_iter().filter(at_takeover).collect(),
                (Kind::HandedOver, Victim::Agent(_)) => Vec::new(),
            };
            found.push((victim, points));
        }
        Ok(found)
    }

    /// One case, from arming a process to the verdict.
    pub async fn run(&mut self, case: &Case) -> Result<Verdict> {
        let (from, to) = (self.live, self.other());
        let env = vec![(KILL_AT, case.point.to_string())];
        let early = self.arm(case.kind, case.victim, &env).await?;
        if early {
            // It died while it started.
            self.revive(case.kind, case.victim).await?;
        }
        if case.victim == Victim::Coordinator && case.point.name.starts_with(AT_REGISTRATION) {
            for host in AGENTS {
                let agent = self.control.agent(host)?;
                agent.stop().await?;
                agent.run().await?;
            }
        }
        let mark = self.app.host.effects()?.len();
        let victim = (!early).then_some(case.victim);
        let mut told = self.swing(case.kind, to, victim, None).await?;
        let met = early || told.met;
        self.finish().await?;
        if !began(&told.answer) && misfits(&self.app, &self.nginx, from)?.is_empty() {
            // Whoever was killed was asked for the plan: nothing was begun, and the operator was told so.
            told = self.swing(Kind::Undisturbed, to, None, None).await?;
        }
        let mut verdict = judge(&told.answer, &self.app, &self.nginx, from, to)?;
        if verdict == Verdict::Verified {
            let twice = self.done_twice(mark)?;
            if !twice.is_empty() {
                verdict = Verdict::Wrong(format!("verified, but {}", twice.join(", ")));
            }
        }
        match &verdict {
            Verdict::Verified => self.live = to,
            Verdict::Undone(_) | Verdict::Missed => {}
            // What it may not do is leave the fleet where no rollback gets it out of.
            Verdict::Held(_) | Verdict::Wrong(_) => self.recover(case, &verdict).await?,
        }
        Ok(if met { verdict } else { missed(verdict) })
    }

    /// Starts and stops of the application that were there again, or were refused because it was so already.
    fn done_twice(&self, mark: usize) -> Result<Vec<String>> {
        let mut seen = Vec::new();
        let mut twice = Vec::new();
        for effect in self.app.host.effects()?.into_iter().skip(mark) {
            if effect.0 == "refused" || seen.contains(&effect) {
                twice.push(format!("{} of {} was there again", effect.0, effect.1));
            }
            seen.push(effect);
        }
        Ok(twice)
    }

    async fn recover(&mut self, case: &Case, verdict: &Verdict) -> Result<()> {
        let answer = self.control.ctl.roll_back(NEW.name()).await?;
        let left = misfits(&self.app, &self.nginx, NEW)?;
        ensure!(
            answer.code == 0 && left.is_empty(),
            "{}: {}; and no rollback gets the fleet out of it: {left:?}, {answer}",
            case.describe(),
            verdict.describe()
        );
        self.live = NEW;
        Ok(())
    }

    /// Asks for the rollback, disturbs it as its kind says, and starts the victim again when it has come to its point.
    /// `log`: where the leader writes down the points that it passes.
    async fn swing(&mut self, kind: Kind, to: Version, victim: Option<Victim>, log: Option<&Path>) -> Result<Told> {
        let effects = self.app.host.effects()?.len();
        let running = self.control.ctl.start(&rollback_to(to.name()), false)?;
        let mut answer = std::pin::pin!(running.answer_within(ENDS_WITHIN));
        let (mut disturbed, mut met, mut passed_before) = (kind == Kind::Undisturbed, false, 0);
        loop {
            tokio::select! {
                answer = &mut answer => {
                    let met = met || self.is_killed(kind, victim)?;
                    return Ok(Told { answer: answer?, met, passed_before });
                }
                () = wait::moment(BETWEEN_LOOKS) => {}
            }
            if !met && self.is_killed(kind, victim)? {
                met = true;
                if let Some(victim) = victim {
                    self.revive(kind, victim).await?;
                }
            }
            // The application noted that it was stopped: that is in the middle.
            if !disturbed && self.app.host.effects()?.len() > effects {
                disturbed = true;
                let written = log.and_then(|log| std::fs::read_to_string(log).ok());
                passed_before = written.map_or(0, |points| points.lines().count());
                met |= self.disturb(kind, victim).await?;
            }
        }
    }

    /// Gives variables to a process and starts it anew, so that it is the one that it shall be in this kind of rollback.
    /// `true`: it was killed while it started.
    async fn arm(&mut self, kind: Kind, victim: Victim, env: &Env) -> Result<bool> {
        match (victim, kind, self.store) {
            (Victim::Agent(host), _, _) => {
                let agent = self.control.agent(host)?;
                agent.stop().await?;
                env.iter().for_each(|(name, value)| agent.export(name, value));
                if let Err(error) = agent.run().await {
                    return killed_or(agent.ended(), error);
                }
                self.connected_or_killed(kind, victim, &[host]).await
            }
            // It gets them when it is started again, in the middle.
            (Victim::Coordinator, Kind::TakenOver, StoreKind::Sqlite) => {
                export(&mut self.control.coordinator, env);
                Ok(false)
            }
            (Victim::Coordinator, Kind::TakenOver, StoreKind::Postgres) => {
                self.control.replica(SECOND)?.stop().await?;
                self.expect_first_leads().await?;
                let second = self.control.replica(SECOND)?;
                export(second, env);
                if let Err(error) = second.run().await {
                    return killed_or(second.ended(), error);
                }
                Ok(false)
            }
            (Victim::Coordinator, Kind::Undisturbed | Kind::HandedOver, store) => {
                for coordinator in self.control.coordinators_mut() {
                    coordinator.stop().await?;
                }
                let first = self.control.replica(FIRST)?;
                export(first, env);
                if let Err(error) = first.run().await {
                    return killed_or(first.ended(), error);
                }
                if store == StoreKind::Postgres {
                    let leads = self.expect_first_leads().await;
                    let first = self.control.replica(FIRST)?;
                    if let Err(error) = leads {
                        return killed_or(first.ended(), error);
                    }
                    self.control.replica(SECOND)?.run().await?;
                }
                self.connected_or_killed(kind, victim, &AGENTS).await
            }
        }
    }

    /// Waits until the coordinator is in touch with these hosts. `true`: before that the victim was killed.
    async fn connected_or_killed(&mut self, kind: Kind, victim: Victim, hosts: &[&str]) -> Result<bool> {
        let what = format!("the coordinator is in touch with {}", hosts.join(", "));
        wait::until(&what, CONNECTED_WITHIN, async || {
            if self.is_killed(kind, Some(victim)).unwrap_or(false) {
                return Some(true);
            }
            self.control.are_connected(hosts).await.then_some(false)
        })
        .await
    }

    async fn expect_first_leads(&mut self) -> Result<()> {
        let leads = wait::until("the first coordinator leads, or was killed", LEADS_WITHIN, async || {
            if let Some(status) = self.control.coordinator.ended() {
                return Some(Err(status));
            }
            let leading = self.control.leader().await?;
            (leading.name == FIRST).then_some(Ok(()))
        });
        match leads.await? {
            Ok(()) => Ok(()),
            Err(status) => bail!("the first coordinator ended with {status}"),
        }
    }

    /// Was this process killed at its point?
    fn is_killed(&mut self, kind: Kind, victim: Option<Victim>) -> Result<bool> {
        let ended = match (victim, kind) {
            (None, _) => None,
            (Some(Victim::Agent(host)), _) => self.control.agent(host)?.ended(),
            (Some(Victim::Coordinator), kind) => {
                let name = self.name_of_victim(kind);
                self.control.replica(name)?.ended()
            }
        };
        // What the harness kills itself is started again at once, or is no victim.
        Ok(ended.is_some_and(|status| status.signal() == Some(Signal::KILL.as_raw())))
    }

    fn name_of_victim(&self, kind: Kind) -> &'static str {
        match (kind, self.store) {
            (Kind::TakenOver, StoreKind::Postgres) => SECOND,
            (Kind::TakenOver, StoreKind::Sqlite) | (Kind::Undisturbed | Kind::HandedOver, _) => FIRST,
        }
    }

    /// Starts what is needed so that the rollback can go on after this one was killed. Two coordinators: the other one is.
    async fn revive(&mut self, kind: Kind, victim: Victim) -> Result<()> {
        match (victim, self.store) {
            (Victim::Agent(host), _) => {
                let agent = self.control.agent(host)?;
                agent.unexport(KILL_AT);
                agent.run().await
            }
            (Victim::Coordinator, StoreKind::Sqlite) => {
                self.control.coordinator.unexport(KILL_AT);
                self.control.coordinator.run().await
            }
            (Victim::Coordinator, StoreKind::Postgres) => {
                let killed = self.name_of_victim(kind);
                self.control.replica(killed)?.unexport(KILL_AT);
                let other = self.control.replica(if killed == FIRST { SECOND } else { FIRST })?;
                if !other.is_running() {
                    other.run().await?;
                }
                Ok(())
            }
        }
    }

    /// Ends the leader, one way or the other. `true`: the victim was killed by that.
    async fn disturb(&mut self, kind: Kind, victim: Option<Victim>) -> Result<bool> {
        let first = &mut self.control.coordinator;
        match kind {
            Kind::Undisturbed => return Ok(false),
            Kind::TakenOver => first.kill()?,
            Kind::HandedOver => first.stop().await?,
        }
        let killed = |status: ExitStatus| status.signal() == Some(Signal::KILL.as_raw());
        let is_victim = victim == Some(Victim::Coordinator);
        match (kind, self.store) {
            (Kind::Undisturbed, _) => Ok(false),
            (Kind::TakenOver, StoreKind::Postgres) => Ok(false),
            (Kind::HandedOver, StoreKind::Postgres) => Ok(is_victim && first.ended().is_some_and(killed)),
            (Kind::HandedOver, StoreKind::Sqlite) => {
                let met = is_victim && first.ended().is_some_and(killed);
                // The one that goes on is another story.
                disarm(first);
                first.run().await.map(|()| met)
            }
            (Kind::TakenOver, StoreKind::Sqlite) => {
                let Err(error) = first.run().await else {
                    return Ok(false);
                };
                killed_or(first.ended(), error)?;
                first.unexport(KILL_AT);
                first.run().await.map(|()| true)
            }
        }
    }

    /// Everything runs again, and nobody has an order to die.
    async fn finish(&mut self) -> Result<()> {
        for coordinator in self.control.coordinators_mut() {
            if disarm(coordinator) && coordinator.is_running() {
                coordinator.stop().await?;
            }
        }
        for coordinator in self.control.coordinators_mut() {
            if !coordinator.is_running() {
                coordinator.run().await?;
            }
        }
        for host in AGENTS {
            let agent = self.control.agent(host)?;
            let armed = agent.is_exported(KILL_AT) || agent.is_exported(KILL_LOG);
            if armed {
                agent.stop().await?;
                agent.unexport(KILL_AT);
                agent.unexport(KILL_LOG);
            }
            if armed || agent.ended().is_some() {
                agent.run().await?;
            }
        }
        self.control.wait_leader(LEADS_WITHIN).await?;
        self.control.wait_connected(&AGENTS).await
    }
}

fn export(coordinator: &mut Coordinator, env: &Env) {
    for (name, value) in env {
        coordinator.export(name, value);
    }
}

/// Had it such an order?
fn disarm(coordinator: &mut Coordinator) -> bool {
    let armed = coordinator.is_exported(KILL_AT) || coordinator.is_exported(KILL_LOG);
    coordinator.unexport(KILL_AT);
    coordinator.unexport(KILL_LOG);
    armed
}

/// It did not start because it was killed at its point; or this error is another one.
fn killed_or(ended: Option<ExitStatus>, error: anyhow::Error) -> Result<bool> {
    match ended.and_then(|status| status.signal()) {
        Some(signal) if signal == Signal::KILL.as_raw() => Ok(true),
        Some(_) | None => Err(error),
    }
}

/// Did a rollback begin?
fn began(answer: &Answer) -> bool {
    answer.json().is_ok_and(|result| result["rollback_id"].is_string())
}

/// A case in which nobody was killed proves nothing, but what is wrong stays wrong.
fn missed(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Verified | Verdict::Missed => Verdict::Missed,
        Verdict::Undone(why) | Verdict::Held(why) => {
            Verdict::Wrong(format!("nobody was killed, and it ended so: {why}"))
        }
        Verdict::Wrong(why) => Verdict::Wrong(why),
    }
}
