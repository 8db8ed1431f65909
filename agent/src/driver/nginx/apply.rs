//! Changing what nginx serves: write, test, reload, observe; and back to what was there when any of it fails.
//!
//! A failure leaves the old configuration on disk *and* served, or is `Indeterminate` and says so.

use std::time::Instant;

use rollback_proto::problem::{Code, Problem};

use super::NginxDriver;
use super::include::Include;
use super::site::{Files, Seen};
use crate::driver::Failure;
use crate::files::blocking;
use crate::processes::Identity;
use crate::step::StepContext;

/// One state of the site: what it is, whether users get the maintenance answer, and who gets their requests.
#[derive(Clone, Debug)]
pub struct Served {
    pub files: Files,
    pub drained: bool,
    /// The includes of the upstreams, in their order. `None` is left alone.
    pub upstreams: Vec<Option<Vec<u8>>>,
}

impl Served {
    pub fn of(seen: &Seen) -> Self {
        Self {
            files: seen.files.clone(),
            drained: seen.drained(),
            upstreams: seen.upstreams.clone(),
        }
    }
}

impl NginxDriver {
    /// Goes to `new`. When it returns an error that is not `Indeterminate`, `old` is served. Old workers may still be
    /// finishing requests when it returns.
    pub async fn apply(&self, step: &StepContext, old: &Served, new: &Served) -> Result<(), Failure> {
        // Nothing is written for an nginx that could not take it, nor over somebody else's include.
        let master = self.master.process()?;
        let workers = self.master.workers(master).active;
        let before = self.on_disk(super::site::Site::include_bytes).await?;
        let nonce = nonce();
        // What goes wrong must be undone before the step's deadline, which costs another reload.
        let reserve = self.worker_timeout.min(step.time_left() / 3);
        let until = (Instant::now() + self.worker_timeout).min(step.deadline - reserve);
        if let Err(problem) = self.write_and_test(step, new, &nonce).await {
            return Err(self.restore_files(step, old, before, problem).await);
        }
        match step
            .operation("nginx_reload", self.master.reload(&nonce, until, &[]))
            .await
        {
            Ok(()) => Ok(()),
            Err(problem) => Err(self.put_back(step, old, &workers, problem).await),
        }
    }

    async fn write_and_test(&self, step: &StepContext, served: &Served, nonce: &str) -> Result<(), Problem> {
        let (site, id) = (self.site.clone(), step.rollback_id.clone());
        let (files, upstreams) = (served.files.clone(), served.upstreams.clone());
        let unsettled = self.template.render(nonce, served.drained, false);
        let settled = self.template.render(nonce, served.drained, true);
        let write = blocking(move || {
            // A kill between the files, or between them and the reload, must not look like the end: the nonce changes
            // first, and the include says so until every file is in place.
            if site.live()? != files || site.upstream_contents()? != upstreams {
                site.write_include(&unsettled, &id)?;
                site.write(&files, &id)?;
                site.write_upstreams(&upstreams, &id)?;
            }
            site.write_include(&settled, &id)
        });
        step.operation("write_config", write).await?;
        step.operation("nginx_test", self.tester.test_live()).await.map(drop)
    }

    /// Nothing was loaded yet: the files from before are what is served, once they are back.
    async fn restore_files(
        &self,
        step: &StepContext,
        old: &Served,
        include: Option<Vec<u8>>,
        mut problem: Problem,
    ) -> Failure {
        let (site, id) = (self.site.clone(), step.rollback_id.clone());
        let (files, upstreams) = (old.files.clone(), old.upstreams.clone());
        let restore = blocking(move || {
            site.write(&files, &id)?;
            site.write_upstreams(&upstreams, &id)?;
            site.restore_include(include.as_deref(), &id)
        });
        match step.operation("restore_config", restore).await {
            Ok(()) => {
                problem.message = format!(
                    "{}. nginx was not reloaded, the files from before are in place",
                    problem.message
                );
                Failure::Failed(problem)
            }
            Err(why) => {
                problem.message = format!(
                    "{}. nginx was not reloaded, but the files from before could not be put back: {}",
                    problem.message, why.message
                );
                Failure::Indeterminate(problem)
            }
        }
    }

    /// The new configuration may have been loaded: the old one is written, and loaded, and seen to be served.
    async fn put_back(&self, step: &StepContext, old: &Served, workers: &[Identity], mut problem: Problem) -> Failure {
        let nonce = nonce();
        let back = async {
            self.write_and_test(step, old, &nonce).await?;
            let until = Instant::now() + self.worker_timeout;
            step.operation("nginx_reload", self.master.reload(&nonce, until, workers))
                .await
        };
        match back.await {
            Ok(()) => {
                problem.message = format!(
                    "{}. The configuration from before is in place and served",
                    problem.message
                );
                Failure::Failed(problem)
            }
            Err(why) => {
                problem.message = format!(
                    "{}. Going back to the configuration from before failed, too: {}",
                    problem.message, why.message
                );
                Failure::Indeterminate(problem)
            }
        }
    }

    /// Is this what is on disk and served? A settled include is written after the files and the includes of
    /// upstreams, so its nonce being served proves that they were loaded.
    pub async fn is_served(&self, wanted: &Served, seen: &Seen) -> bool {
        let same = super::site::digest(&wanted.files) == super::site::digest(&seen.files)
            && wanted.upstreams == seen.upstreams;
        match &seen.include {
            Some(Include::Written {
                nonce,
                drained: now,
                settled: true,
            }) if same && *now == wanted.drained => {
                self.master.process().is_ok() && self.master.serves(nonce).await.is_ok()
            }
            Some(Include::Written { .. } | Include::Unwritten | Include::Foreign) | None => false,
        }
    }

    /// The maintenance answer, as a user gets it.
    pub async fn expect_maintenance(&self) -> Result<(), Problem> {
        match self.master.ask(Some("/")).await {
            Ok(answer) if answer.status == 503 && answer.retry_after => Ok(()),
            Ok(answer) => Err(Problem::new(
                Code::NginxNotServing,
                format!(
                    "the site answers with status {} instead of the maintenance answer",
                    answer.status
                ),
            )),
            Err(why) => Err(Problem::new(
                Code::NginxNotServing,
                format!("the site does not answer: {why}"),
            )),
        }
    }
}

/// New with every reload, unguessable enough that nobody serves it by chance.
fn nonce() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
