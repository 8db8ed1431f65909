//! Who gets requests: `drain` and `resume`, of the whole site and of single backends.
//!
//! A drain of a backend ends when new workers alone take connections and the workers from before are gone, and with
//! them every request that the backend still had; or when `drain_grace` is over, because one of them (a websocket, a
//! request that hangs) may never end.

use std::collections::BTreeSet;
use std::time::Instant;

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};

use super::NginxDriver;
use super::apply::Served;
use super::include::Include;
use super::site::Seen;
use super::upstream::{Said, Upstream};
use crate::driver::{Action, Done, Failure, Probe, Revision};
use crate::processes;
use crate::step::StepContext;

/// Contents of the includes of all upstreams.
type Contents = Vec<Option<Vec<u8>>>;

impl NginxDriver {
    /// Of each upstream. Who is alone in one is told, too: whoever plans has to know all of each other's places.
    pub fn backends(&self) -> BTreeSet<BTreeSet<String>> {
        let members = |upstream: &Upstream| upstream.members.iter().map(|member| member.backend.clone()).collect();
        self.site.upstreams.iter().map(members).collect()
    }

    /// `drain` and `resume`: the files stay what they are.
    pub async fn set_traffic(&self, step: &StepContext, drain: bool) -> Result<Done, Failure> {
        check_name("rollback", &step.rollback_id)?;
        match &step.backend {
            None => self.set_drained(step, drain).await,
            Some(backend) => self.set_backend(step, backend, drain).await,
        }
    }

    async fn set_drained(&self, step: &StepContext, drained: bool) -> Result<Done, Failure> {
        let seen = self.look().await?;
        let revision = self.revision(&seen).await?;
        let upstreams = if drained {
            seen.upstreams.clone()
        } else {
            self.all_up(&seen)
        };
        let wanted = Served {
            files: seen.files.clone(),
            drained,
            upstreams,
        };
        if !drained && nothing_to_resume(&seen, &wanted) {
            return Ok(Done::at(revision, "nothing is drained"));
        }
        // What a killed drain has left is not what a failed one goes back to.
        let old = Served {
            drained: seen.drained() && !drained,
            ..Served::of(&seen)
        };
        self.reach(step, &seen, &old, &wanted).await?;
        if !drained {
            return Ok(Done::at(revision, "users are served again"));
        }
        let busy = self.let_finish(step).await?;
        step.operation("maintenance_answer", self.expect_maintenance()).await?;
        Ok(Done::at(
            revision,
            format!("users get the maintenance answer{}", self.still_busy(busy)),
        ))
    }

    async fn set_backend(&self, step: &StepContext, backend: &str, drain: bool) -> Result<Done, Failure> {
        if !self.site.upstreams.iter().any(|upstream| upstream.has(backend)) {
            let message = format!("{backend} is no backend of {}", self.site.component);
            return Err(Problem::new(Code::UnknownComponent, message).into());
        }
        let seen = self.look().await?;
        let revision = self.revision(&seen).await?;
        let wanted = Served {
            upstreams: self.with_backend(&seen, backend, drain)?,
            ..Served::of(&seen)
        };
        if !drain && nothing_to_resume(&seen, &wanted) {
            return Ok(Done::at(revision, format!("{backend} gets requests as before")));
        }
        // `nginx -T` makes an empty PID file where there is none.
        self.master.process()?;
        let test = step.operation("nginx_test", self.tester.test_live());
        let read = test.await?;
        self.expect_upstreams("the live site", &seen.files, &read)?;
        let old = if drain {
            Served {
                upstreams: self.with_backend(&seen, backend, false)?,
                ..Served::of(&seen)
            }
        } else {
            Served::of(&seen)
        };
        self.reach(step, &seen, &old, &wanted).await?;
        if !drain {
            return Ok(Done::at(revision, format!("{backend} gets requests again")));
        }
        step.progress(format!("{backend} gets no new requests; waiting for those that it has"));
        let busy = self.let_finish(step).await?;
        Ok(Done::at(
            revision,
            format!("{backend} gets no requests{}", self.still_busy(busy)),
        ))
    }

    async fn reach(&self, step: &StepContext, seen: &Seen, old: &Served, wanted: &Served) -> Result<(), Failure> {
        if self.is_served(wanted, seen).await {
            return Ok(());
        }
        self.apply(step, old, wanted).await
    }

    async fn revision(&self, seen: &Seen) -> Result<Revision, Problem> {
        let files = seen.files.clone();
        self.on_disk(move |site| site.revision(&files)).await
    }

    /// What each upstream's include says; an error where it is not the driver's.
    pub fn said(&self, seen: &Seen) -> Vec<Result<Said, Problem>> {
        let contents = self.site.upstreams.iter().zip(&seen.upstreams);
        contents
            .map(|(upstream, content)| upstream.read(content.as_deref()))
            .collect()
    }

    /// With this backend down, or up, wherever it is one.
    fn with_backend(&self, seen: &Seen, backend: &str, drain: bool) -> Result<Contents, Problem> {
        let mut contents = seen.upstreams.clone();
        for (upstream, content) in self.site.upstreams.iter().zip(&mut contents) {
            if !upstream.has(backend) {
                continue;
            }
            let said = upstream.read(content.as_deref())?;
            let mut down = said.down.clone();
            if drain {
                down.insert(backend.to_owned());
            } else if !down.remove(backend) {
                continue;
            }
            if drain && upstream.up(&down).next().is_none() {
                let message = format!(
                    "{backend} is the last that gets requests by {}",
                    upstream.file.display()
                );
                return Err(Problem::new(Code::LastBackend, message));
            }
            *content = Some(upstream.with_down(content.as_deref().unwrap_or_default(), &said, &down));
        }
        Ok(contents)
    }

    /// With every backend up. What is not the driver's has nobody down that the driver could bring back.
    fn all_up(&self, seen: &Seen) -> Contents {
        let mut contents = seen.upstreams.clone();
        for ((upstream, content), said) in self.site.upstreams.iter().zip(&mut contents).zip(self.said(seen)) {
            if said.is_ok_and(|said| !said.down.is_empty()) {
                *content = Some(upstream.render(&BTreeSet::new()));
            }
        }
        contents
    }

    /// Backends that are down in some upstream, and of how many.
    pub fn down(&self, seen: &Seen) -> (BTreeSet<String>, usize) {
        let said = self.said(seen);
        let down = said.into_iter().flatten().flat_map(|said| said.down).collect();
        let members = self.site.upstreams.iter().flat_map(|upstream| &upstream.members);
        let all: BTreeSet<&String> = members.map(|member| &member.backend).collect();
        (down, all.len())
    }

    /// Is the step's end what is on disk?
    pub fn is_as_wanted(&self, step: &StepContext, seen: &Seen) -> bool {
        let drain = step.action == Action::Drain;
        match &step.backend {
            Some(backend) => self
                .with_backend(seen, backend, drain)
                .is_ok_and(|wanted| wanted == seen.upstreams),
            None if drain => seen.drained(),
            None => !seen.drained() && self.all_up(seen) == seen.upstreams,
        }
    }

    /// The end of a drain that was killed: is there nothing left to wait for?
    pub fn finished(&self) -> bool {
        self.master
            .process()
            .is_ok_and(|master| self.master.workers(master).leaving.is_empty())
    }

    pub async fn probe_traffic(&self, step: &StepContext, seen: &Seen) -> Probe {
        if !self.is_as_wanted(step, seen) || !self.is_served(&Served::of(seen), seen).await {
            return Probe::Repeatable("who should get requests is not served, or not provably".into());
        }
        if step.action == Action::Drain && !self.finished() {
            return Probe::Repeatable("workers from before still finish requests".into());
        }
        match self.revision(seen).await {
            Ok(revision) => Probe::Applied(Done::at(revision, "served by the present workers")),
            Err(problem) => Probe::Indeterminate(problem),
        }
    }

    /// Gives requests that old workers still answer time to end. Returns how many workers were still busy afterwards.
    async fn let_finish(&self, step: &StepContext) -> Result<usize, Problem> {
        // All that are leaving, whenever they began to: each may have requests of before.
        let leaving = self.master.workers(self.master.process()?).leaving;
        let until = (Instant::now() + self.drain_grace).min(step.deadline);
        for worker in &leaving {
            step.operation("old_workers", processes::wait_gone(*worker, until))
                .await;
        }
        Ok(leaving.iter().filter(|worker| processes::alive(**worker)).count())
    }

    fn still_busy(&self, busy: usize) -> String {
        match busy {
            0 => String::new(),
            busy => format!(
                "; {busy} workers still finish requests from before, which were not waited for longer than {} ms",
                self.drain_grace.as_millis()
            ),
        }
    }
}

/// Nothing was ever written, and nothing must be.
fn nothing_to_resume(seen: &Seen, wanted: &Served) -> bool {
    matches!(seen.include, Some(Include::Unwritten) | None) && seen.upstreams == wanted.upstreams
}
