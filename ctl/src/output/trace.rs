//! A rollback's waterfall, from its journal: phases, steps and the raw operations in them, each as a bar in its place on the
//! one axis of time. What the end waited for is marked.
//!
//! Times are the coordinator's. Operations of a step have durations and no beginnings: they are drawn one after the other
//! from the step's start, as drivers do them. Nothing is left out without a line that counts it.

mod path;

use jiff::Timestamp;
use rollback_proto::v1::outcome::Status;
use rollback_proto::v1::{GetRollbackResponse, RollbackState, StepReport};

use super::acts;
use super::paint::{Paint, Tone};
use super::text::{clean, count, duration, millis, or_none, span, subject, timestamp};
use super::words;

/// What is shown of it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Columns of the terminal.
    pub width: usize,
    /// Only this phase.
    pub phase: Option<String>,
    /// Only so many steps, the slowest ones, and those that the end waited for.
    pub slow: Option<usize>,
}

/// Columns for the names and for the durations; the bars have the rest.
const NAMES: usize = 44;
const TIMES: usize = 12;
/// Narrower bars say nothing.
const BARS: usize = 16;
/// Steps of a phase that are drawn when nobody asked for more: a thousand hosts do not fit anywhere.
const STEPS: usize = 40;
/// Shorter operations are only counted.
const OPERATION_MS: u64 = 1;

/// The axis.
struct Axis {
    start: Timestamp,
    /// At least 1.
    ms: u64,
    columns: usize,
}

impl Axis {
    /// From start to end, in columns; never empty, so that what was quick is seen, too.
    fn bar(&self, start: Timestamp, ms: u64, glyph: char) -> String {
        let at = |ms: u64| -> usize {
            let columns = u128::from(ms) * self.columns as u128 / u128::from(self.ms);
            usize::try_from(columns).unwrap_or(self.columns).min(self.columns)
        };
        let from = at(millis(self.start, start)).min(self.columns - 1);
        let to = at(millis(self.start, start).saturating_add(ms)).max(from + 1);
        let mut bar = " ".repeat(from);
        bar.extend(std::iter::repeat_n(glyph, to - from));
        bar
    }
}

/// A line: name, how long, bar.
fn line(name: &str, ms: Option<u64>, bar: &str) -> String {
    let name = console::truncate_str(name, NAMES, "…");
    let padded = console::pad_str(&name, NAMES, console::Alignment::Left, None);
    let took = ms.map_or_else(|| "running".to_owned(), duration);
    format!("{padded} {took:>TIMES$}  {bar}").trim_end().to_owned()
}

/// `now`: of the coordinator; what has not ended is drawn up to it.
pub fn render(details: &GetRollbackResponse, view: &View, now: Timestamp, paint: Paint) -> String {
    let summary = details.summary.clone().unwrap_or_default();
    let Some(start) = timestamp(summary.started_at.as_ref()) else {
        return "Nothing of this rollback is in the journal yet.\n".to_owned();
    };
    let end = end_of(details, now);
    let axis = Axis {
        start,
        ms: millis(start, end).max(1),
        columns: view.width.saturating_sub(NAMES + TIMES + 4).max(BARS),
    };
    let critical = path::of(&details.steps, end);
    let mut text = heading(details, &summary, axis.ms, paint);
    let bar = "─".repeat(axis.columns);
    text.push_str(&line("", Some(axis.ms), &paint.tone(Tone::Dim, &bar)));
    text.push('\n');
    for phase in phases_of(details) {
        if view.phase.as_ref().is_none_or(|wanted| *wanted == phase.name) {
            text.push_str(&phase_lines(details, &phase, &critical, view, &axis, end, paint));
        }
    }
    text.push('\n');
    text.push_str(&on_the_way(details, &critical, axis.ms, paint));
    text
}

/// The steps that the end waited for, in the order of time.
pub fn critical(details: &GetRollbackResponse) -> Vec<&StepReport> {
    let path = path::of(&details.steps, end_of(details, Timestamp::UNIX_EPOCH));
    path.into_iter().map(|index| &details.steps[index]).collect()
}

/// Up to where it is drawn. Nothing ends after that, whatever the clock of this machine says.
fn end_of(details: &GetRollbackResponse, now: Timestamp) -> Timestamp {
    let ended = details.summary.as_ref().and_then(|s| timestamp(s.ended_at.as_ref()));
    let times = details
        .steps
        .iter()
        .flat_map(|s| [s.started_at.as_ref(), s.ended_at.as_ref()]);
    ended.unwrap_or_else(|| times.filter_map(timestamp).fold(now, Timestamp::max))
}

fn heading(
    details: &GetRollbackResponse,
    summary: &rollback_proto::v1::RollbackSummary,
    ms: u64,
    paint: Paint,
) -> String {
    let (word, tone) = words::standing(summary);
    let mut text = format!(
        "Rollback to {}: {}   {}   {}\n",
        clean(&summary.release),
        paint.tone(tone, word),
        duration(ms),
        clean(&summary.id)
    );
    if !summary.trace_id.is_empty() {
        text.push_str(&format!("trace {}\n", clean(&summary.trace_id)));
    }
    let acts = acts::lines(&details.events, paint);
    if !acts.is_empty() {
        text.push_str(&acts);
    }
    text.push('\n');
    text
}

/// A phase, or the undo, which has none of its own.
struct Row<'a> {
    name: String,
    start: Option<Timestamp>,
    end: Option<Timestamp>,
    steps: Vec<&'a StepReport>,
}

fn phases_of(details: &GetRollbackResponse) -> Vec<Row<'_>> {
    let forward = details.phases.iter().map(|p| Row {
        name: clean(&p.name),
        start: timestamp(p.started_at.as_ref()),
        end: timestamp(p.ended_at.as_ref()),
        steps: details.steps.iter().filter(|s| !s.undo && s.phase == p.name).collect(),
    });
    let undone: Vec<&StepReport> = details.steps.iter().filter(|s| s.undo).collect();
    let ended = details.summary.as_ref().is_some_and(|s| words::is_over(s.state()));
    let undo = (!undone.is_empty()).then(|| Row {
        name: "undo".to_owned(),
        start: undone.iter().filter_map(|s| timestamp(s.started_at.as_ref())).min(),
        end: undone
            .iter()
            .filter_map(|s| timestamp(s.ended_at.as_ref()))
            .max()
            .filter(|_| ended),
        steps: undone,
    });
    forward.chain(undo).collect()
}

fn phase_lines(
    details: &GetRollbackResponse,
    row: &Row<'_>,
    critical: &[usize],
    view: &View,
    axis: &Axis,
    end: Timestamp,
    paint: Paint,
) -> String {
    let Some(start) = row.start else {
        return format!("{}\n", paint.tone(Tone::Dim, &line(&row.name, Some(0), "not begun")));
    };
    let ms = millis(start, row.end.unwrap_or(end));
    let bar = axis.bar(start, ms, '━');
    let mut text = format!(
        "{}\n",
        paint.tone(Tone::Strong, &line(&row.name, row.end.map(|_| ms), &bar))
    );
    let is_critical = |step: &StepReport| critical.iter().any(|i| std::ptr::eq(&details.steps[*i], step));
    let took = |s: &StepReport| {
        timestamp(s.started_at.as_ref()).map_or(0, |start| millis(start, timestamp(s.ended_at.as_ref()).unwrap_or(end)))
    };
    let at_most = view
        .slow
        .unwrap_or(if view.phase.is_some() { usize::MAX } else { STEPS });
    let mut slowest: Vec<&StepReport> = row.steps.clone();
    slowest.sort_by_key(|s| std::cmp::Reverse((is_critical(s), took(s))));
    let shown: Vec<&StepReport> = slowest.into_iter().take(at_most).collect();
    for step in row
        .steps
        .iter()
        .filter(|s| shown.iter().any(|shown| std::ptr::eq(*shown, **s)))
    {
        let Some(start) = timestamp(step.started_at.as_ref()) else {
            continue;
        };
        text.push_str(&step_lines(step, start, took(step), is_critical(step), axis, paint));
    }
    match row.steps.len().saturating_sub(at_most) {
        0 => {}
        more => text.push_str(&format!(
            "{}\n",
            paint.tone(
                Tone::Dim,
                &format!("    and {} that took less", count(more, "step", "steps"))
            )
        )),
    }
    text
}

fn step_lines(step: &StepReport, start: Timestamp, ms: u64, critical: bool, axis: &Axis, paint: Paint) -> String {
    let outcome = step.outcome.as_ref();
    let status = outcome.map(|o| Status::try_from(o.status).unwrap_or(Status::Unspecified));
    let (note, tone) = match status {
        None => (" …".to_owned(), Tone::Strong),
        Some(Status::Succeeded | Status::Unspecified) => (String::new(), Tone::Plain),
        Some(Status::Failed) => (format!(" FAILED {}", code_of(step)), Tone::Bad),
        Some(Status::Indeterminate) => (format!(" UNCLEAR {}", code_of(step)), Tone::Bad),
    };
    let again = if step.attempt > 1 {
        format!(" #{}", step.attempt)
    } else {
        String::new()
    };
    let name = format!(
        "  {} {} {}{again}",
        if critical { "*" } else { " " },
        subject(&step.host, &step.component, &step.backend),
        words::action(step.action)
    );
    let bar = format!("{}{note}", axis.bar(start, ms, if critical { '█' } else { '▒' }));
    let took = step.ended_at.is_some().then_some(ms);
    let mut text = format!("{}\n", paint.tone(tone, &line(&name, took, &bar)));
    let mut at = start;
    let mut quick = 0;
    for operation in outcome.map(|o| o.operations.as_slice()).unwrap_or_default() {
        let ms = operation.duration.as_ref().map_or(0, span);
        if ms < OPERATION_MS {
            quick += 1;
            continue;
        }
        let bar = axis.bar(at, ms, '·');
        let name = format!("      {}", or_none(&operation.name));
        text.push_str(&format!("{}\n", paint.tone(Tone::Dim, &line(&name, Some(ms), &bar))));
        at = at.checked_add(std::time::Duration::from_millis(ms)).unwrap_or(at);
    }
    if quick > 0 {
        let less = format!(
            "      and {} below a millisecond",
            count(quick, "operation", "operations")
        );
        text.push_str(&format!("{}\n", paint.tone(Tone::Dim, &less)));
    }
    text
}

fn code_of(step: &StepReport) -> String {
    let problem = step.outcome.as_ref().and_then(|o| o.problem.as_ref());
    problem.map(|p| clean(&p.code)).unwrap_or_default()
}

/// What the end waited for, in one line each; the time between is nobody's step: a pause, an approval, the store.
fn on_the_way(details: &GetRollbackResponse, critical: &[usize], ms: u64, paint: Paint) -> String {
    let took = |i: &usize| {
        let step = &details.steps[*i];
        let both = timestamp(step.started_at.as_ref()).zip(timestamp(step.ended_at.as_ref()));
        both.map_or(0, |(start, end)| millis(start, end))
    };
    if critical.is_empty() {
        return "No step of it was begun.\n".to_owned();
    }
    let sum: u64 = critical.iter().map(took).sum();
    let over = details.summary.as_ref().is_some_and(|s| words::is_over(s.state()));
    let waited = if over { "its end waited" } else { "it has waited so far" };
    let mut text = format!(
        "{} {waited} for {} (*): {} of {}\n",
        paint.tone(Tone::Strong, "Critical path:"),
        count(critical.len(), "step", "steps"),
        duration(sum),
        duration(ms)
    );
    if over
        && details
            .summary
            .as_ref()
            .is_some_and(|s| s.state() != RollbackState::Verified)
    {
        let id = details.summary.as_ref().map(|s| clean(&s.id)).unwrap_or_default();
        text.push_str(&format!("  what failed and why: rollbackctl rollback show {id}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples::{self, golden};

    fn drawn(view: &View) -> String {
        render(&samples::operators::steered(), view, samples::at(400_000), Paint::PLAIN)
    }

    #[test]
    fn waterfall() {
        let view = View {
            width: 110,
            ..View::default()
        };
        let text = drawn(&view);
        assert!(
            text.lines().all(|l| console::measure_text_width(l) <= 110 + 16),
            "{text}"
        );
        golden!("trace", text);
    }

    #[test]
    fn one_phase_and_only_what_was_slow() {
        let view = View {
            width: 90,
            phase: Some("app".to_owned()),
            slow: Some(2),
        };
        golden!("trace_slow", drawn(&view));
    }

    #[test]
    fn undo_has_a_row_of_its_own() {
        let details = samples::details(RollbackState::Undone, false);
        let text = render(
            &details,
            &View {
                width: 100,
                ..View::default()
            },
            samples::at(41_000),
            Paint::PLAIN,
        );
        golden!("trace_undone", text);
    }
}
