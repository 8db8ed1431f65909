//! What `prepare` finds: would nginx take the change, could it be seen, and would a drain reach it?

use std::future::Future;

use rollback_proto::problem::{Code, Problem};

use super::NginxDriver;
use super::include::Include;
use super::site::{Files, Seen};
use super::upstream::Upstream;
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
        let seen = match self.look().await {
            Ok(seen) => seen,
            Err(problem) => return vec![Finding::blocker(problem)],
        };
        let (live, include) = (&seen.files, seen.include.as_ref());
        problems.extend(self.include_problem(include));
        problems.extend(self.said(&seen).into_iter().filter_map(Result::err));
        // Without the includes, nginx refuses the configuration: one finding is enough.
        if problems.is_empty() {
            let test = step.operation("nginx_test", self.tester.test_live());
            problems.extend(self.expect_included("the live site", live, test).await.err());
            problems.extend(self.marker_problem(include).await);
        }
        let mut warnings = self.stale_upstreams(&seen);
        match self.both_ends(step).await {
            Ok((_, _, to)) => {
                if !self.site.includes_managed(&to) && self.site.includes_managed(live) {
                    problems.push(self.site.include_missing(&format!("the site of {}", step.to.version)));
                }
                warnings.extend(self.lost_upstreams(&step.to.version, live, &to));
            }
            Err(problem) => problems.push(problem),
        }
        problems.extend(self.directory_problems());
        let blockers = problems.into_iter().map(Finding::blocker);
        blockers.chain(warnings.into_iter().map(Finding::warning)).collect()
    }

    /// Includes that say something else than what is configured now.
    fn stale_upstreams(&self, seen: &Seen) -> Vec<Problem> {
        let mut stale = Vec::new();
        for (upstream, said) in self.site.upstreams.iter().zip(self.said(seen)) {
            if said.is_ok_and(|said| !said.exact) {
                let message = format!(
                    "{} has other servers or options than are configured; the next drain writes it anew",
                    upstream.file.display()
                );
                stale.push(
                    Problem::new(Code::NginxInclude, message)
                        .remedy("nothing, if the agent's configuration is right: it is what will be served"),
                );
            }
        }
        stale
    }

    /// Upstreams that are managed now and would not be with the other files: a rollback from there could not drain.
    fn lost_upstreams(&self, version: &str, live: &Files, to: &Files) -> Vec<Problem> {
        let whose = format!("the site of {version}");
        let in_use = |upstream: &Upstream, files: &Files| {
            let texts = texts(files);
            upstream.expect_in_use(&whose, &self.site.conf_dir, texts.iter().map(|text| &**text))
        };
        self.site
            .upstreams
            .iter()
            .filter(|upstream| in_use(upstream, live).is_ok())
            .filter_map(|upstream| in_use(upstream, to).err())
            .collect()
    }

    /// Does every upstream take its servers from its include, and from nowhere else? `read` is what nginx says it read.
    pub fn expect_upstreams(&self, whose: &str, files: &Files, read: &str) -> Result<(), Problem> {
        let texts = texts(files);
        self.site.upstreams.iter().try_for_each(|upstream| {
            let all = texts.iter().map(|text| &**text).chain([read]);
            upstream.expect_in_use(whose, &self.site.conf_dir, all)
        })
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

    /// Like [`Self::expect_managed`], and the upstreams take their servers from their includes.
    pub async fn expect_included(
        &self,
        whose: &str,
        files: &Files,
        test: impl Future<Output = Result<String, Problem>>,
    ) -> Result<(), Problem> {
        let read = self.expect_managed(whose, files, test).await?;
        self.expect_upstreams(whose, files, &read)
    }

    /// Passes when nginx accepts the configuration and it has the managed include, by what is written in the managed
    /// files or by what nginx says it read, which it returns.
    pub async fn expect_managed(
        &self,
        whose: &str,
        files: &Files,
        test: impl Future<Output = Result<String, Problem>>,
    ) -> Result<String, Problem> {
        let read = test.await?;
        let header = format!("# configuration file {}:", self.site.include.display());
        if self.site.includes_managed(files) || read.contains(&header) {
            Ok(read)
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
        // Where a link cannot be followed, `look` has said so.
        let files = self.site.names.iter().filter_map(|name| self.site.path_of(name).ok());
        let upstreams = self.site.upstreams.iter().map(|upstream| upstream.file.clone());
        let paths = files.chain(upstreams).chain([self.site.include.clone()]);
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

fn texts(files: &Files) -> Vec<std::borrow::Cow<'_, str>> {
    let contents = files.values().flatten();
    contents
        .map(|content| String::from_utf8_lossy(&content.bytes))
        .collect()
}
