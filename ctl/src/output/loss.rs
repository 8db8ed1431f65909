//! What restores of databases cost: before, as the plan's findings have it, and afterwards, as it was counted when nobody
//! could write any more. Something unknown is always said, and never becomes a number.

use rollback_proto::problem::Code;
use rollback_proto::v1::outcome::Status;
use rollback_proto::v1::{
    Action, Consent, DataLoss, Finding, GetRollbackResponse, Plan, Severity, StepReport, TableLoss,
};

use super::paint::{Paint, Tone};
use super::table::{Table, plain, right};
use super::text::{clean, count, or_none, stamp, target};
use super::words::severity;

/// Tables that are named before they are only counted. JSON has them all.
const NAMED_TABLES: usize = 10;

/// Databases for whose collection the command is shown. The report has all their names.
const NAMED_TO_COLLECT: usize = 5;

/// A database that the plan restores.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    pub host: &'a str,
    pub component: &'a str,
    /// `None`: its agent has said nothing of the cost, which is not "nothing".
    pub loss: Option<&'a DataLoss>,
    /// There is nothing to restore, so nothing is lost. A finding says so.
    pub without_backup: bool,
}

impl Expected<'_> {
    /// Rows that would be lost; `None` when nobody knows, or not all of them.
    pub fn rows(&self) -> Option<u64> {
        self.loss.and_then(known)
    }

    pub fn place(&self) -> String {
        target(self.host, self.component)
    }
}

/// Every database that the plan restores.
pub fn expected<'a>(plan: &'a Plan, findings: &'a [Finding]) -> Vec<Expected<'a>> {
    let restored = plan.changes.iter().filter(|c| c.from_backup);
    let with_loss = restored.map(|c| {
        let of_it = || {
            findings
                .iter()
                .filter(|f| f.host == c.host && f.component == c.component)
        };
        let no_backup = |f: &Finding| severity(f.severity) == Severity::Blocker && f.code == Code::NoBackup.id();
        Expected {
            host: &c.host,
            component: &c.component,
            loss: of_it().find_map(|f| f.loss.as_ref()),
            without_backup: of_it().any(no_backup),
        }
    });
    with_loss.collect()
}

/// A restore that was begun.
#[derive(Clone, Copy, Debug)]
pub struct Counted<'a> {
    pub step: &'a StepReport,
    pub loss: &'a DataLoss,
    pub fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The restored database is live.
    Lost,
    /// The database from before is live again.
    TakenBack,
    NotExchanged,
    /// Nobody can tell which of the two is live.
    Unclear,
}

/// Every restore that was begun, with what was counted: by the switch, before it exchanged the two, when somebody had set a
/// limit; otherwise when the rollback was finished, in the database that had been put aside.
pub fn counted(details: &GetRollbackResponse) -> impl Iterator<Item = Counted<'_>> {
    let status = |step: &StepReport| {
        let status = step.outcome.as_ref().map_or(0, |o| o.status);
        Status::try_from(status).unwrap_or(Status::Unspecified)
    };
    let forward = |s: &&StepReport| !s.undo && s.action == i32::from(Action::Switch);
    details.steps.iter().filter(forward).filter_map(move |step| {
        let of_step = |s: &&'_ StepReport| -> bool {
            !s.undo && s.action == i32::from(Action::Finish) && (&s.host, &s.component) == (&step.host, &step.component)
        };
        let finish = details.steps.iter().find(of_step);
        let loss = [finish, Some(step)]
            .into_iter()
            .flatten()
            .find_map(|s| s.outcome.as_ref()?.loss.as_ref())?;
        let back = details.steps.iter().find(|s| s.undo && s.id == step.id);
        let fate = match (status(step), back.map(status)) {
            (Status::Succeeded, None) => Fate::Lost,
            (Status::Succeeded, Some(Status::Succeeded)) => Fate::TakenBack,
            // Also when it is undone after that: a step that failed is asked for its undo to be sure.
            (Status::Failed, None | Some(Status::Succeeded)) => Fate::NotExchanged,
            (Status::Indeterminate | Status::Unspecified, _)
            | (
                Status::Succeeded | Status::Failed,
                Some(Status::Failed | Status::Indeterminate | Status::Unspecified),
            ) => Fate::Unclear,
        };
        Some(Counted { step, loss, fate })
    })
}

/// The sum over all tables; `None` when it is not all.
pub fn known(loss: &DataLoss) -> Option<u64> {
    loss.unknown.is_empty().then(|| at_least(loss))
}

fn at_least(loss: &DataLoss) -> u64 {
    loss.tables.iter().fold(0, |sum, t| sum.saturating_add(t.written))
}

/// What somebody agreed to in a plan that restores so many databases: "at most 1,132 rows", and that each of them may lose
/// so many.
pub fn consent(consent: Consent, databases: usize) -> String {
    let rows = match consent.max_rows {
        Some(rows) => format!("at most {}", rows_of(rows)),
        None => "any number of rows".to_owned(),
    };
    match databases {
        0 | 1 => rows,
        n => format!("{rows} in each of {n} databases"),
    }
}

/// "1 row", "1,132 rows".
pub fn rows_of(n: u64) -> String {
    if n == 1 {
        "1 row".to_owned()
    } else {
        format!("{} rows", thousands(n))
    }
}

/// "1,132": rows are counted by the thousand, and a slip of one digit must be seen.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What the plan would cost; empty when it restores nothing, or has nothing to restore.
pub fn of_plan(plan: &Plan, findings: &[Finding], paint: Paint) -> String {
    let mut expected = expected(plan, findings);
    expected.retain(|database| database.loss.is_some() || !database.without_backup);
    if expected.is_empty() {
        return String::new();
    }
    let mut text = format!("{}\n", paint.tone(Tone::Strong, "Data loss:"));
    for database in &expected {
        let restores = paint.tone(Tone::Bad, "RESTORES");
        let place = database.place();
        let Some(loss) = database.loss else {
            let unknown = paint.tone(Tone::Bad, "unknown");
            text.push_str(&format!(
                "  {restores} {place} from a backup; rows written since are lost: {unknown}, its agent does not say\n"
            ));
            continue;
        };
        text.push_str(&format!(
            "  {restores} {place} from {}; rows written since are lost: {}\n",
            backup(loss),
            total(loss, paint)
        ));
        text.push_str(&tables(loss, paint));
    }
    text.push_str("  It starts only with consent to that: --accept-data-loss[=ROWS|all]\n");
    text
}

/// What a rollback has cost; empty when it restored nothing.
pub fn of_report(details: &GetRollbackResponse, paint: Paint) -> String {
    let mut text = String::new();
    for Counted { step, loss, fate } in counted(details) {
        let place = target(&step.host, &step.component);
        let (backup, total) = (backup(loss), total(loss, paint));
        text.push_str(&match fate {
            Fate::Lost => format!("  {place} was restored from {backup}; lost: {total}\n"),
            Fate::TakenBack => {
                format!("  {place}: the restore from {backup} was taken back; it would have cost: {total}\n")
            }
            Fate::NotExchanged => {
                format!("  {place} was not exchanged with {backup}; it would have cost: {total}\n")
            }
            Fate::Unclear => {
                format!("  {place}: nobody can tell whether {backup} is live now; if it is, lost: {total}\n")
            }
        });
        text.push_str(&tables(loss, paint));
        if !loss.put_aside.is_empty() {
            let kept = format!("kept on {} as {}", clean(&step.host), clean(&loss.put_aside));
            text.push_str(&match fate {
                Fate::Lost => format!("  the database from before is {kept}\n"),
                Fate::Unclear => format!("  if it is, the database from before is {kept}\n"),
                // It has its name again.
                Fate::TakenBack | Fate::NotExchanged => String::new(),
            });
        }
    }
    if text.is_empty() {
        return text;
    }
    format!("{}\n{text}", paint.tone(Tone::Strong, "Data loss:"))
}

/// What drops the databases that restores put aside and that nothing goes back to any more.
pub fn to_collect(details: &GetRollbackResponse) -> Vec<String> {
    let kept: Vec<Counted<'_>> = counted(details)
        .filter(|c| c.fate == Fate::Lost && !c.loss.put_aside.is_empty())
        .collect();
    let named = kept.iter().take(NAMED_TO_COLLECT).map(|Counted { step, loss, .. }| {
        let (host, component, name) = (clean(&step.host), clean(&step.component), clean(&loss.put_aside));
        format!(
            "when nobody needs the database from before any more, on {host}: rollback-agent database collect \
             {component} {name}"
        )
    });
    let more = kept.len().saturating_sub(NAMED_TO_COLLECT);
    let more = (more > 0).then(|| format!("and so for {}", count(more, "more database", "more databases")));
    named.chain(more).collect()
}

/// "backup db-20261121 of 2026-11-21 03:00:00 UTC"
fn backup(loss: &DataLoss) -> String {
    let taken_at = match loss.taken_at.parse::<jiff::Timestamp>() {
        Ok(at) => stamp(Some(at)),
        Err(_) => or_none(&loss.taken_at),
    };
    format!("backup {} of {taken_at}", or_none(&loss.backup))
}

fn total(loss: &DataLoss, paint: Paint) -> String {
    let rows = rows_of(at_least(loss));
    match known(loss) {
        // Rows that were deleted since come back: that is not nothing.
        Some(0) if loss.tables.is_empty() => "nothing".to_owned(),
        Some(_) => paint.tone(Tone::Bad, &rows),
        None => {
            let why = clean(&loss.unknown);
            let unknown = paint.tone(Tone::Bad, "unknown");
            if loss.tables.is_empty() {
                format!("{unknown}: {why}")
            } else {
                format!("{unknown}, {rows} at least: {why}")
            }
        }
    }
}

/// The greatest first.
fn tables(loss: &DataLoss, paint: Paint) -> String {
    let mut sorted: Vec<&TableLoss> = loss.tables.iter().collect();
    sorted.sort_by(|a, b| {
        let of = |t: &TableLoss| (t.written, t.replaced);
        of(b).cmp(&of(a)).then_with(|| a.table.cmp(&b.table))
    });
    let mut table = Table::new(paint, &[]);
    for t in sorted.iter().take(NAMED_TABLES) {
        let replaced = match t.replaced {
            0 => String::new(),
            n => format!("{} come back as they were", rows_of(n)),
        };
        table.row([plain(clean(&t.table)), right(rows_of(t.written)), plain(replaced)]);
    }
    let mut text = if table.is_empty() {
        String::new()
    } else {
        table.render(4)
    };
    let more = sorted.get(NAMED_TABLES..).unwrap_or_default();
    if !more.is_empty() {
        let rows = more.iter().fold(0, |sum: u64, t| sum.saturating_add(t.written));
        let tables = count(more.len(), "more table", "more tables");
        text.push_str(&format!("    and {tables}: {}\n", rows_of(rows)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::{golden, restore};

    #[test]
    fn thousands_are_set_apart() {
        for (n, text) in [(0, "0"), (999, "999"), (1_132, "1,132"), (12_345_678, "12,345,678")] {
            assert_eq!(thousands(n), text);
        }
    }

    #[test]
    fn loss_before_and_after() {
        let response = restore::plan_response();
        let plan = response.plan.as_ref().expect("has a plan");
        let before = of_plan(plan, &response.findings, Paint::PLAIN);
        let unknown = of_plan(plan, &[restore::unknown_loss()], Paint::PLAIN);
        let silent = of_plan(plan, &[], Paint::PLAIN);
        let reports = [Fate::Lost, Fate::TakenBack, Fate::NotExchanged, Fate::Unclear].map(|fate| {
            let details = restore::details(fate);
            assert_eq!(counted(&details).map(|c| c.fate).collect::<Vec<_>>(), [fate]);
            of_report(&details, Paint::PLAIN)
        });
        golden!("loss", format!("{before}\n{unknown}\n{silent}\n{}", reports.join("\n")));
    }

    /// Not even when some tables could be counted.
    /// Who agrees to any loss does not wait for the figures; they come with the finish.
    #[test]
    fn what_the_finish_counted_is_what_was_lost() {
        let mut details = restore::details(Fate::Lost);
        let mut finish = details.steps[0].clone();
        (finish.id, finish.action) = (99, i32::from(Action::Finish));
        details.steps.push(finish);
        let outcome = details.steps[0].outcome.as_mut().expect("an outcome");
        let not_yet = outcome.loss.as_mut().expect("a loss");
        not_yet.tables.clear();
        not_yet.unknown = "counted when the rollback is finished".to_owned();
        let rows = |details: &GetRollbackResponse| counted(details).map(|c| known(c.loss)).collect::<Vec<_>>();
        assert_eq!(rows(&details), [Some(120)]);
        details.steps.pop();
        assert_eq!(rows(&details), [None]);
    }

    #[test]
    fn nothing_is_said_of_a_loss_where_there_is_no_backup() {
        let response = restore::plan_response();
        let plan = response.plan.as_ref().expect("has a plan");
        assert_eq!(of_plan(plan, &[restore::blocker("RB0708")], Paint::PLAIN), "");
        let elsewhere = Finding {
            host: "db-2".to_owned(),
            ..restore::blocker("RB0708")
        };
        for other in [elsewhere, restore::blocker("RB0700")] {
            let text = of_plan(plan, &[other], Paint::PLAIN);
            assert!(text.contains("unknown, its agent does not say"), "{text}");
        }
    }

    /// As old journals and older agents have it.
    #[test]
    fn a_name_that_is_not_known_is_not_made_up() {
        let mut details = restore::details(Fate::Lost);
        assert_eq!(to_collect(&details).len(), 1);
        for step in &mut details.steps {
            let outcome = step.outcome.as_mut().expect("an outcome");
            outcome.loss.iter_mut().for_each(|loss| loss.put_aside.clear());
        }
        assert_eq!(to_collect(&details), [""; 0]);
        let text = of_report(&details, Paint::PLAIN);
        assert!(!text.contains("kept on"), "{text}");
    }

    #[test]
    fn unknown_is_never_a_number() {
        let mut loss = restore::loss();
        assert_eq!(known(&loss), Some(120));
        loss.unknown = "public.events: it took too long".to_owned();
        assert_eq!(known(&loss), None);
        let response = restore::plan_response();
        let plan = response.plan.as_ref().expect("has a plan");
        assert_eq!(expected(plan, &[])[0].rows(), None);
    }

    /// Rows that were deleted on purpose come back: no row is lost, and something happens all the same.
    #[test]
    fn nothing_is_said_only_of_nothing() {
        let mut loss = restore::loss();
        loss.tables.iter_mut().for_each(|t| t.written = 0);
        assert_eq!(total(&loss, Paint::PLAIN), "0 rows");
        loss.tables.clear();
        assert_eq!(total(&loss, Paint::PLAIN), "nothing");
    }
}
