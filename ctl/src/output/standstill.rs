//! A rollback that stands still because somebody, or its runbook, wants a person to act: who, why, since when, what that
//! means for users meanwhile, and what can be done next.

use std::collections::BTreeSet;

use rollback_proto::problem::Code;
use rollback_proto::v1::{Action, Approval, GetRollbackResponse, Plan, Problem, Standstill, outcome};

use super::paint::{Paint, Tone};
use super::problem::brief;
use super::text::{clean, count, duration, name_some, stamp, target, timestamp};

/// Hosts and components that a line names before it only counts.
const NAMED: usize = 4;

/// "PAUSED since 2026-11-21 03:12:44Z by ana: looking at the graphs".
pub fn headline(standstill: &Standstill, paint: Paint) -> String {
    let word = paint.tone(Tone::Warn, "PAUSED");
    let since = stamp(timestamp(standstill.since.as_ref()));
    let who = if standstill.by.is_empty() {
        "the runbook".to_owned()
    } else {
        clean(&standstill.by)
    };
    let why = match (&standstill.problem, clean(&standstill.reason)) {
        (Some(problem), reason) if reason.is_empty() => format!(": {}", brief(problem)),
        (_, reason) if reason.is_empty() => String::new(),
        (_, reason) => format!(": {reason}"),
    };
    format!("{word} since {since} by {who}{why}")
}

/// What can be done now, each with its command.
pub fn fits(id: &str, standstill: &Standstill) -> Vec<String> {
    let id = clean(id);
    let mut fits = Vec::new();
    if standstill.failed_hosts.is_empty() {
        fits.push(format!("go on: rollbackctl rollback resume {id}"));
    } else {
        let hosts = name_some(standstill.failed_hosts.iter().map(String::as_str), NAMED);
        fits.push(format!("{hosts} again: rollbackctl rollback retry {id}"));
        let which = match &standstill.failed_hosts[..] {
            [one] => clean(one),
            _ => "HOST".to_owned(),
        };
        fits.push(format!(
            "without {hosts}: rollbackctl rollback skip {id} --host {which} --reason TEXT"
        ));
    }
    // An operator's pause does not change what the runbook says of a failure.
    if !standstill.failed_hosts.is_empty() && !standstill.by.is_empty() {
        fits.push(format!("as the runbook says: rollbackctl rollback resume {id}"));
    }
    fits.push(format!(
        "end it: rollbackctl rollback abort {id} --undo (or --hold) --reason TEXT"
    ));
    fits
}

/// "2 steps that were begun before are not over yet"; empty: nothing is under way.
pub fn in_flight(standstill: &Standstill) -> String {
    match usize::try_from(standstill.in_flight).unwrap_or(usize::MAX) {
        0 => String::new(),
        steps => {
            let steps = count(
                steps,
                "step that was begun before is",
                "steps that were begun before are",
            );
            format!("{steps} not over yet; nothing is begun after that")
        }
    }
}

/// "AWAITS APPROVAL until 03:27:44Z by another operator than ana: rollbackctl rollback approve ID".
pub fn awaits(id: &str, started_by: &str, until: Option<jiff::Timestamp>, paint: Paint) -> String {
    let word = paint.tone(Tone::Warn, "AWAITS APPROVAL");
    let until = until.map_or_else(String::new, |until| format!(" until {}", stamp(Some(until))));
    let who = match clean(started_by) {
        nobody if nobody.is_empty() => "a second operator".to_owned(),
        started_by => format!("another operator than {started_by}"),
    };
    format!(
        "{word} of {who}{until}; nothing is touched before: rollbackctl rollback approve {}",
        clean(id)
    )
}

/// The same from a summary; `None`: nobody's approval is awaited.
pub fn awaited(id: &str, started_by: &str, approval: Option<&Approval>, paint: Paint) -> Option<String> {
    let approval = approval.filter(|approval| approval.approved_by.is_empty())?;
    Some(awaits(id, started_by, timestamp(approval.expires_at.as_ref()), paint))
}

/// What whoever starts such a plan has to arrange; empty: nobody has to approve.
pub fn approval_asked(id: &str, plan: &Plan) -> Option<String> {
    let within = plan.approve_within.as_ref()?;
    let ms = u64::try_from(within.seconds).unwrap_or(0).saturating_mul(1000);
    Some(format!(
        "nothing is touched before another operator has approved it, within {}: rollbackctl rollback approve {}",
        duration(ms),
        clean(id)
    ))
}

/// What a rollback has taken from users and not given back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Down {
    /// Proxies that answer with maintenance.
    drained: BTreeSet<String>,
    /// Applications that get no requests, with their proxy.
    out: BTreeSet<(String, String)>,
    stopped: BTreeSet<String>,
    /// Hosts that are left out: what was stopped there stays so when it goes on.
    skipped: BTreeSet<String>,
}

impl Down {
    /// An operator has left these hosts out.
    pub fn skipped(&mut self, hosts: &[String]) {
        self.skipped.extend(hosts.iter().map(|host| clean(host)));
    }

    /// A proxy has refused to take its last backend out: that one goes on serving.
    pub fn refused(&mut self, action: i32, host: &str, component: &str, backend: &str, problem: Option<&Problem>) {
        let last = problem.is_some_and(|p| p.code == Code::LastBackend.id());
        if last && Action::try_from(action) == Ok(Action::Drain) {
            self.out.remove(&(clean(backend), target(host, component)));
        }
    }

    /// A step was begun: from that moment on what it takes may be gone.
    pub fn begun(&mut self, action: i32, host: &str, component: &str, backend: &str) {
        let place = target(host, component);
        match Action::try_from(action) {
            Ok(Action::Drain) if backend.is_empty() => drop(self.drained.insert(place)),
            Ok(Action::Drain) => drop(self.out.insert((clean(backend), place))),
            Ok(Action::Stop) => drop(self.stopped.insert(place)),
            Ok(
                Action::Unspecified
                | Action::Prepare
                | Action::Stage
                | Action::Discard
                | Action::Snapshot
                | Action::Resume
                | Action::Start
                | Action::Switch
                | Action::Verify
                | Action::Finish,
            )
            | Err(_) => {}
        }
    }

    /// A step has succeeded: only then is what it gives back there again.
    pub fn succeeded(&mut self, action: i32, host: &str, component: &str, backend: &str) {
        let place = target(host, component);
        match Action::try_from(action) {
            Ok(Action::Resume) if backend.is_empty() => drop(self.drained.remove(&place)),
            Ok(Action::Resume) => drop(self.out.remove(&(clean(backend), place))),
            Ok(Action::Start) => drop(self.stopped.remove(&place)),
            Ok(
                Action::Unspecified
                | Action::Prepare
                | Action::Stage
                | Action::Discard
                | Action::Snapshot
                | Action::Drain
                | Action::Stop
                | Action::Switch
                | Action::Verify
                | Action::Finish,
            )
            | Err(_) => {}
        }
    }

    pub fn of(details: &GetRollbackResponse) -> Self {
        let mut down = Self::default();
        let mut steps: Vec<_> = details.steps.iter().collect();
        steps.sort_by_key(|s| timestamp(s.started_at.as_ref()));
        for s in steps {
            down.begun(s.action, &s.host, &s.component, &s.backend);
            let succeeded = s.outcome.as_ref().map(|o| o.status()) == Some(outcome::Status::Succeeded);
            if succeeded {
                down.succeeded(s.action, &s.host, &s.component, &s.backend);
            }
            let problem = s.outcome.as_ref().and_then(|o| o.problem.as_ref());
            down.refused(s.action, &s.host, &s.component, &s.backend, problem);
        }
        if let Some(summary) = &details.summary {
            down.skipped(&summary.skipped_hosts);
        }
        down
    }

    /// What that means for users, the worst first. Empty: nothing is taken from them.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if !self.drained.is_empty() {
            words.push(format!(
                "users get the maintenance answer of {} until it goes on",
                names(&self.drained)
            ));
        }
        let out: BTreeSet<String> = self.out.iter().map(|(backend, _)| backend.clone()).collect();
        let out: BTreeSet<String> = out.difference(&self.stopped).cloned().collect();
        for (what, places) in [("stopped", &self.stopped), ("gets no requests", &out)] {
            let is_left = |place: &&String| self.skipped.contains(place.split('/').next().unwrap_or_default());
            let (left, coming): (BTreeSet<_>, BTreeSet<_>) = places.iter().partition(is_left);
            if !coming.is_empty() {
                words.push(format!("{what} until it goes on: {}", names(coming)));
            }
            if !left.is_empty() {
                words.push(format!("{what}, and left so because it was skipped: {}", names(left)));
            }
        }
        words
    }
}

fn names<'a>(of: impl IntoIterator<Item = &'a String>) -> String {
    let of: Vec<&str> = of.into_iter().map(String::as_str).collect();
    name_some(of, NAMED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_missed_until_it_is_given_back_for_good() {
        let mut down = Down::default();
        let (drain, resume) = (i32::from(Action::Drain), i32::from(Action::Resume));
        let (stop, start) = (i32::from(Action::Stop), i32::from(Action::Start));
        down.begun(drain, "proxy-1", "site", "");
        down.begun(stop, "app-1", "api", "");
        assert_eq!(
            down.words(),
            [
                "users get the maintenance answer of proxy-1/site until it goes on",
                "stopped until it goes on: app-1/api"
            ]
        );
        down.begun(start, "app-1", "api", "");
        assert_eq!(
            down.words().len(),
            2,
            "a start that was begun, or has failed, serves nobody"
        );
        down.succeeded(start, "app-1", "api", "");
        down.begun(resume, "proxy-1", "site", "");
        down.succeeded(resume, "proxy-1", "site", "");
        assert_eq!(down, Down::default());

        down.begun(drain, "proxy-1", "site", "app-2/api");
        assert_eq!(down.words(), ["gets no requests until it goes on: app-2/api"]);
        down.begun(stop, "app-2", "api", "");
        assert_eq!(down.words(), ["stopped until it goes on: app-2/api"], "said once");

        down.skipped(&["app-2".to_owned()]);
        down.begun(drain, "proxy-1", "site", "app-3/api");
        assert_eq!(
            down.words(),
            [
                "stopped, and left so because it was skipped: app-2/api",
                "gets no requests until it goes on: app-3/api"
            ]
        );
        let last = Problem {
            code: Code::LastBackend.id().to_owned(),
            ..Problem::default()
        };
        down.refused(drain, "proxy-1", "site", "app-3/api", Some(&last));
        assert_eq!(down.words().len(), 1, "the last one that serves was not taken out");
    }

    #[test]
    fn only_what_fits_is_offered() {
        let mut standstill = Standstill::default();
        let offered = |s: &Standstill| fits("r1", s).join("\n");
        assert!(offered(&standstill).contains("rollback resume r1"));
        assert!(!offered(&standstill).contains("retry"));
        standstill.failed_hosts = vec!["app-2".to_owned()];
        assert!(offered(&standstill).contains("app-2 again: rollbackctl rollback retry r1"));
        assert!(
            !offered(&standstill).contains("resume"),
            "the runbook's pause is not resumed"
        );
        standstill.by = "ana".to_owned();
        assert!(offered(&standstill).contains("as the runbook says: rollbackctl rollback resume r1"));
    }
}
