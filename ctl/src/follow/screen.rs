//! Where a watched rollback is shown: a live tree on a terminal, one line per event elsewhere.

use std::io::IsTerminal;

use console::Term;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use rollback_proto::v1::{Plan, RollbackEvent};

use crate::board::Board;
use crate::cli::Format;
use crate::output;
use crate::output::event::Lines;
use crate::output::paint::Paint;
use crate::output::text::timestamp;
use crate::output::tree::{self, Limits};

/// Lines for running steps, at most; a small terminal gets fewer.
const STEP_LINES: usize = 12;

pub enum Screen {
    Tree(Box<Tree>),
    Lines(Box<LineScreen>),
}

impl Screen {
    /// The tree needs a terminal at stderr that can move its cursor. With JSON, stdout is left to the one object.
    pub fn choose(format: Format, id: &str, plan: Option<&Plan>) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if std::io::stderr().is_terminal() && !dumb {
            return Screen::Tree(Box::new(Tree::new(id, plan)));
        }
        let to_stdout = match format {
            Format::Table => true,
            Format::Json => false,
        };
        let paint = if to_stdout { Paint::stdout() } else { Paint::stderr() };
        Screen::Lines(Box::new(LineScreen {
            lines: Lines::new(id, plan),
            to_stdout,
            paint,
        }))
    }

    pub fn event(&mut self, event: &RollbackEvent) {
        match self {
            Screen::Tree(tree) => tree.event(event),
            Screen::Lines(screen) => screen.event(event),
        }
    }

    /// Something about the watching itself, on stderr.
    pub fn notice(&mut self, text: &str) {
        match self {
            Screen::Tree(tree) => {
                // A terminal that cannot be written to: there is nobody to tell.
                let _ = tree.bars.println(text);
            }
            Screen::Lines(_) => output::note(text),
        }
    }

    pub fn redraw(&mut self) {
        match self {
            Screen::Tree(tree) => tree.draw(),
            Screen::Lines(_) => {}
        }
    }

    /// Leaves the picture where it is, for somebody who goes away and wants to remember it. Only that is possible, too: the
    /// terminal has written `^C` somewhere into it, and nobody knows on which row the cursor is.
    pub fn keep(&mut self) {
        match self {
            Screen::Tree(tree) => {
                tree.bars.set_draw_target(ProgressDrawTarget::hidden());
                let _ = tree.terminal.write_line("");
            }
            Screen::Lines(_) => {}
        }
    }

    /// Leaves the tree's place to what is printed next.
    pub fn close(self) {
        match self {
            Screen::Tree(mut tree) => {
                if !tree.bars.is_hidden() {
                    tree.resized();
                    let _ = tree.bars.clear();
                }
            }
            Screen::Lines(_) => {}
        }
    }
}

pub struct LineScreen {
    lines: Lines,
    to_stdout: bool,
    paint: Paint,
}

impl LineScreen {
    fn event(&mut self, event: &RollbackEvent) {
        let Some(line) = self.lines.line(event, self.paint) else {
            return;
        };
        if !self.to_stdout {
            output::note(&line);
        } else if let Err(error) = output::data(&line) {
            // A full disk behind stdout must not end the watch: the exit code still tells how the rollback went.
            tracing::debug!(%error, "write an event line");
        }
    }
}

/// Draws [`tree::lines`] in place; one bar per line.
pub struct Tree {
    board: Board,
    bars: MultiProgress,
    pool: Vec<ProgressBar>,
    terminal: Term,
    /// Columns of the terminal when it was drawn last.
    columns: u16,
    paint: Paint,
    /// Our clock minus the coordinator's. The smallest difference seen is the best guess: delays only make it larger.
    clock_difference: Option<SignedDuration>,
}

impl Tree {
    fn new(id: &str, plan: Option<&Plan>) -> Self {
        Self {
            board: Board::new(id, plan),
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
            pool: Vec::new(),
            terminal: Term::stderr(),
            columns: Term::stderr().size().1,
            paint: Paint::stderr(),
            clock_difference: None,
        }
    }

    /// Takes away a picture that was drawn for another width. Its lines were filled up to the last column, so that a
    /// terminal of another width lays them out anew as one text; indicatif would look for the rows where they were.
    fn resized(&mut self) {
        let columns = self.terminal.size().1;
        let before = std::mem::replace(&mut self.columns, columns);
        if before == columns || self.pool.is_empty() {
            return;
        }
        let cells = self.pool.len() * usize::from(before);
        let rows = cells.div_ceil(usize::from(columns.max(1)));
        // Bars that end draw once more, where they believe to be.
        self.bars.set_draw_target(ProgressDrawTarget::hidden());
        self.pool.clear();
        // A terminal that cannot be written to: there is nobody to tell.
        let _ = self.terminal.move_cursor_up(rows.saturating_sub(1));
        let _ = self.terminal.write_str("\r");
        let _ = self.terminal.clear_to_end_of_screen();
        self.bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    }

    fn event(&mut self, event: &RollbackEvent) {
        if let Some(at) = timestamp(event.at.as_ref()) {
            let difference = Timestamp::now().duration_since(at);
            self.clock_difference = Some(self.clock_difference.map_or(difference, |known| known.min(difference)));
        }
        self.board.apply(event);
        // Drawing is rate-limited by indicatif; the next tick catches up.
    }

    fn draw(&mut self) {
        let now = Timestamp::now();
        let now = self
            .clock_difference
            .and_then(|d| now.checked_sub(d).ok())
            .unwrap_or(now);
        self.resized();
        let (rows, columns) = self.terminal.size();
        // Heading, phases, undo, the line that counts the rest, the hint, and one row for the cursor.
        let still = tree::needs_a_person(&self.board, self.paint).len();
        let reserved = self.board.phases.len() + still + 5;
        let steps = usize::from(rows).saturating_sub(reserved).clamp(1, STEP_LINES);
        let limits = Limits {
            steps,
            width: usize::from(columns).saturating_sub(1).max(20),
        };
        let lines = tree::lines(&self.board, now, limits, self.paint);
        while self.pool.len() > lines.len() {
            if let Some(bar) = self.pool.pop() {
                self.bars.remove(&bar);
            }
        }
        while self.pool.len() < lines.len() {
            let bar = self.bars.add(ProgressBar::new_spinner());
            bar.set_style(ProgressStyle::with_template("{msg}").expect("a constant template"));
            self.pool.push(bar);
        }
        for (bar, line) in self.pool.iter().zip(lines) {
            if bar.message() != line {
                bar.set_message(line);
            }
        }
    }
}
