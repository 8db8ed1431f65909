//! What `prepare` finds: would nginx take the change, and could it be seen?

use std::future::Future;

use rollback_proto::problem::{Code, Problem};

use super::NginxDriver;
use super::include::Include;
use super::site::Files;
use crate::driver::Finding;
use crate::files;
use crate::step::StepContext;

impl NginxDriver {
    /// Reads only.
    pub async fn findings(&self, step: &StepContext) -> Vec<Finding> {
        let mut problems = Vec::new();
        if let Err(problem) = self.master.process() {
            // Nothing else can be said about an nginx that does not run, and `nginx -t` would make an empty PID file.
            return vec![Finding::blocker(problem)];
        }
        let (live, include) = match self.look().await {
            Ok(seen) => seen,
            Err(problem) => return vec![Finding::blocker(problem)],
        };
        problems.extend(self.include_problem(include.as_ref()));
        // Without the include, nginx refuses the configuration: one finding is enough.
        if problems.is_empty() {
            let test = step.operation("nginx_test", self.tester.test_live());
            problems.extend(self.expect_included("the live site", &live, test).await.err());
            problems.extend(self.marker_problem(include.as_ref()).await);
        }
        match self.both_ends(step).await {
            Ok((_, _, to, _)) if !self.site.includes_managed(&to) && self.site.includes_managed(&live) => {
                problems.push(self.site.include_missing(&format!("the site of {}", step.to.version)));
            }
            Ok(_) => {}
            Err(problem) => problems.push(problem),
        }
        problems.extend(self.directory_problems());
        problems.into_iter().map(Finding::blocker).collect()
    }

    fn include_problem(&self, include: Option<&Include>) -> Option<Problem> {
        match include {
            None => Some(
                Problem::new(
                    Code::NginxInclude,
                    format!("{} does not exist", self.site.include.display()),
                )
                .remedy(format!(
                    "make it once, empty, and include it in every managed server block: touch {0}; include {0};",
                    self.site.include.display()
                )),
            ),
            Some(Include::Foreign) => Some(self.site.foreign_include()),
            Some(Include::Unwritten | Include::Written { .. }) => None,
        }
    }

    /// Passes when nginx accepts the configuration and it has the managed include, by what is written in the managed
    /// files or by what nginx says it read.
    pub async fn expect_included(
        &self,
        whose: &str,
        files: &Files,
        test: impl Future<Output = Result<String, Problem>>,
    ) -> Result<(), Problem> {
        let read = test.await?;
        let header = format!("# configuration file {}:", self.site.include.display());
        if self.site.includes_managed(files) || read.contains(&header) {
            Ok(())
        } else {
            Err(self.site.include_missing(whose))
        }
    }

    async fn marker_problem(&self, include: Option<&Include>) -> Option<Problem> {
        let why = match include.and_then(Include::nonce) {
            Some(nonce) => self.master.serves(nonce).await.err(),
            // Not written yet, so nothing can be served yet; but somebody must listen.
            None => self
                .master
                .ask(None)
                .await
                .err()
                .map(|why| format!("{}: {why}", self.master.marker)),
        };
        why.map(|why| {
            Problem::new(
                Code::NginxNotServing,
                format!("nginx does not serve what is on disk: {why}"),
            )
            .remedy("reload nginx by hand and read its error log; check marker_url in the agent's configuration")
        })
    }

    fn directory_problems(&self) -> Vec<Problem> {
        let paths = self
            .site
            .names
            .iter()
            .map(|name| self.site.root.join(name))
            .chain([self.site.include.clone()]);
        let mut dirs: Vec<_> = paths
            .filter_map(|path| path.parent().map(std::path::Path::to_owned))
            .collect();
        dirs.sort();
        dirs.dedup();
        dirs.iter()
            .filter(|dir| !files::writable_by_us(dir))
            .map(|dir| {
                Problem::new(
                    Code::FileFailed,
                    format!("{} is not writable by the agent", dir.display()),
                )
            })
            .collect()
    }
}
