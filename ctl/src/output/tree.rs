//! The live picture of a rollback as lines of text: one per phase, and under the running phase what its hosts do.

use jiff::Timestamp;

use super::paint::{Paint, Tone};
use super::text::{clean, duration, millis, subject};
use super::{standstill, words};
use crate::board::{Board, PhaseRow, PhaseState, Running};

/// How much of the terminal may be used.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Lines for running steps; the rest is counted.
    pub steps: usize,
    /// Columns; longer lines are cut.
    pub width: usize,
}

/// `now` is the coordinator's time.
pub fn lines(board: &Board, now: Timestamp, limits: Limits, paint: Paint) -> Vec<String> {
    let mut lines = vec![heading(board, now, paint)];
    for row in &board.phases {
        lines.push(phase_line(row, now, paint));
        if row.state == PhaseState::Running {
            let of_phase = board
                .running
                .iter()
                .filter(|((_, undo), r)| !undo && r.phase == row.name);
            lines.extend(step_lines(of_phase.map(|(_, r)| r), now, limits, paint));
        }
    }
    if let Some(undo) = &board.undo {
        let took = elapsed(undo.started, board.ended_at, now);
        let failed = if undo.failed > 0 {
            format!(", {} failed", undo.failed)
        } else {
            String::new()
        };
        let glyph = paint.tone(Tone::Warn, "↶");
        lines.push(format!(
            "  {glyph} {:<10} {took:>12}  {} undone{failed}",
            "undo", undo.done
        ));
        let undoing = board.running.iter().filter(|((_, undo), _)| *undo);
        lines.extend(step_lines(undoing.map(|(_, r)| r), now, limits, paint));
    }
    if let Some(waits) = &board.waits {
        lines.push(format!("  {} {}", paint.tone(Tone::Warn, "!"), clean(waits)));
    }
    lines.extend(needs_a_person(board, paint));
    if board.ended.is_none() {
        let left = if board.approval.is_some() || board.stands_still().is_some() {
            "Ctrl-C leaves, the rollback waits"
        } else {
            "Ctrl-C leaves, the rollback goes on"
        };
        lines.push(paint.tone(Tone::Dim, left));
    }
    lines
        .iter()
        .map(|line| console::truncate_str(line, limits.width, "…").into_owned())
        .collect()
}

/// Why nothing moves, what users miss meanwhile, and what can be done about it. Empty: it goes on by itself.
pub fn needs_a_person(board: &Board, paint: Paint) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(approval) = &board.approval {
        let text = standstill::awaits(&board.id, &approval.started_by, approval.until, paint);
        lines.push(format!("  {text}"));
    }
    if let Some(aborted) = &board.aborted {
        lines.push(format!("  {} {aborted}", paint.tone(Tone::Warn, "ABORT")));
    }
    if let Some(still) = board.stands_still() {
        lines.push(format!("  {}", standstill::headline(&still, paint)));
        let in_flight = Some(standstill::in_flight(&still)).filter(|text| !text.is_empty());
        let more = in_flight.into_iter().chain(board.down.words());
        lines.extend(more.map(|text| format!("    {text}")));
        lines.extend(
            standstill::fits(&board.id, &still)
                .into_iter()
                .map(|text| format!("    → {text}")),
        );
    }
    lines
}

fn heading(board: &Board, now: Timestamp, paint: Paint) -> String {
    let took = elapsed(board.started, board.ended_at, now);
    let (state, tone) = match board.ended {
        Some((state, blocked)) => words::state_told(state, blocked),
        None if board.approval.is_some() => ("awaits approval", Tone::Warn),
        None if board.stands_still().is_some() => ("paused", Tone::Warn),
        None if board.undo.is_some() => ("undoing", Tone::Warn),
        None => ("running", Tone::Strong),
    };
    format!(
        "rollback to {}: {}   {took}   {}",
        clean(&board.release),
        paint.tone(tone, state),
        paint.tone(Tone::Dim, &clean(&board.id))
    )
}

fn phase_line(row: &PhaseRow, now: Timestamp, paint: Paint) -> String {
    let (glyph, tone) = match row.state {
        PhaseState::Waiting => ("·", Tone::Dim),
        PhaseState::Running => ("▶", Tone::Strong),
        PhaseState::Done => ("✔", Tone::Good),
        PhaseState::Failed => ("✘", Tone::Bad),
    };
    let took = elapsed(row.started, row.ended, now);
    let mut line = format!(
        "  {} {:<10} {took:>12}  {}/{}",
        paint.tone(tone, glyph),
        clean(&row.name),
        row.done.len(),
        row.total()
    );
    if !row.failed.is_empty() {
        line.push_str(&paint.tone(Tone::Bad, &format!(", {} failed", row.failed.len())));
    }
    if row.state == PhaseState::Running && row.batches > 1 {
        line.push_str(&format!("   batch {} of {}", row.batch + 1, row.batches));
    }
    line
}

/// The steps that have run longest come first: those are the ones that somebody waits for.
fn step_lines<'a>(
    running: impl Iterator<Item = &'a Running>,
    now: Timestamp,
    limits: Limits,
    paint: Paint,
) -> Vec<String> {
    let mut running: Vec<&Running> = running.collect();
    running.sort_by(|a, b| (a.since, &a.host, &a.component).cmp(&(b.since, &b.host, &b.component)));
    let mut lines: Vec<String> = running
        .iter()
        .take(limits.steps)
        .map(|step| step_line(step, now, paint))
        .collect();
    let more = running.len().saturating_sub(limits.steps);
    if more > 0 {
        lines.push(paint.tone(Tone::Dim, &format!("      … and {more} more")));
    }
    lines
}

fn step_line(step: &Running, now: Timestamp, paint: Paint) -> String {
    let percent = match step.fraction {
        f if (0.0..=1.0).contains(&f) => format!("{:>3.0} %  ", f * 100.0),
        _ => String::new(),
    };
    format!(
        "      {:<20} {:<9} {:>10}  {percent}{}",
        subject(&step.host, &step.component, &step.backend),
        words::action(step.action),
        elapsed(step.since, None, now),
        paint.tone(Tone::Dim, &clean(&step.says))
    )
}

fn elapsed(started: Option<Timestamp>, ended: Option<Timestamp>, now: Timestamp) -> String {
    started.map_or_else(String::new, |started| duration(millis(started, ended.unwrap_or(now))))
}

#[cfg(test)]
mod tests {
    use rollback_proto::v1::RollbackEvent;
    use rollback_proto::v1::rollback_event::Kind;

    use super::*;
    use crate::output::samples::{self, golden};

    const WIDE: Limits = Limits { steps: 12, width: 100 };

    fn board_after(events: usize) -> (Board, Timestamp) {
        let mut board = Board::new("0193a5c2-rollback", samples::plan_response().plan.as_ref());
        let all = samples::undone_events();
        for event in all.iter().take(events) {
            board.apply(event);
        }
        (board, samples::at(10_500))
    }

    #[test]
    fn a_running_phase_shows_its_hosts() {
        let (board, now) = board_after(samples::EVENTS_UNTIL_PROGRESS);
        golden!("tree_running", lines(&board, now, WIDE, Paint::PLAIN).join("\n"));
    }

    #[test]
    fn a_drained_backend_is_named() {
        let mut board = Board::new("r", Some(&samples::rolling::plan()));
        samples::rolling::events().iter().take(2).for_each(|e| board.apply(e));
        let drawn = lines(&board, samples::at(90), WIDE, Paint::PLAIN);
        assert!(drawn[2].contains("proxy-1/proxy (app-1/api) drain"), "{drawn:?}");
    }

    #[test]
    fn what_the_coordinator_waits_for_is_said_until_it_goes_on() {
        let (mut board, now) = board_after(samples::EVENTS_UNTIL_PROGRESS);
        let waits = RollbackEvent {
            kind: Kind::Progress.into(),
            message: "waiting for the store".to_owned(),
            ..RollbackEvent::default()
        };
        board.apply(&waits);
        let said = |board: &Board| {
            let drawn = lines(board, now, WIDE, Paint::PLAIN);
            drawn.iter().any(|line| line.contains("! waiting for the store"))
        };
        assert!(said(&board));
        let next = samples::undone_events();
        board.apply(&next[samples::EVENTS_UNTIL_PROGRESS + 1]);
        assert!(!said(&board));
    }

    #[test]
    fn an_undone_rollback_shows_both_ways() {
        let (board, now) = board_after(usize::MAX);
        golden!("tree_undone", lines(&board, now, WIDE, Paint::PLAIN).join("\n"));
    }

    #[test]
    fn a_standstill_says_who_why_what_users_miss_and_what_fits() {
        let mut board = Board::new("0193a5c2-rollback", samples::plan_response().plan.as_ref());
        let kind_of = |event: &RollbackEvent| Kind::try_from(event.kind).expect("known");
        for event in samples::undone_events()
            .iter()
            .take_while(|e| kind_of(e) != Kind::UndoStarted)
        {
            board.apply(event);
        }
        let act = |kind: Kind, by: &str| RollbackEvent {
            seq: 900,
            at: Some(samples::proto_at(10_000)),
            kind: kind.into(),
            by: by.to_owned(),
            ..RollbackEvent::default()
        };
        board.apply(&RollbackEvent {
            problem: Some(samples::problem(
                "RB0500",
                "start of app-1/api: answered 503 for 30 s",
                "read the log",
            )),
            ..act(Kind::Paused, "")
        });
        let draw = |board: &Board| lines(board, samples::at(10_500), WIDE, Paint::PLAIN).join("\n");
        golden!("tree_paused", draw(&board));

        let failed = *board
            .phases
            .iter()
            .find_map(|p| p.failed.first())
            .expect("a step failed");
        board.apply(&act(Kind::Retried, "ana"));
        board.apply(&RollbackEvent {
            step_id: failed,
            phase: "app".to_owned(),
            host: "app-2".to_owned(),
            attempt: 2,
            ..act(Kind::StepStarted, "")
        });
        let drawn = draw(&board);
        assert!(!drawn.contains("PAUSED") && !drawn.contains("1 failed"), "{drawn}");
    }

    #[test]
    fn a_hundred_hosts_do_not_flood_the_terminal() {
        let mut board = Board::new("r", None);
        for event in samples::a_hundred_hosts() {
            board.apply(&event);
        }
        let drawn = lines(
            &board,
            samples::at(3_000),
            Limits { steps: 12, width: 60 },
            Paint::PLAIN,
        );
        assert_eq!(drawn.len(), 1 + 1 + 12 + 1 + 1);
        assert!(drawn[14].contains("and 88 more"), "{drawn:?}");
        assert!(drawn.iter().all(|l| console::measure_text_width(l) <= 60), "{drawn:?}");
    }
}
