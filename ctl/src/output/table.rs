//! Tables without lines: a header in capitals, two spaces between columns, nothing wrapped or cut, so that `grep`,
//! `awk` and a copy into a chat see what a person sees.

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, CellAlignment, Color};

use super::paint::{Paint, Tone};

pub struct Table {
    inner: comfy_table::Table,
}

/// A cell with its meaning.
pub fn cell(tone: Tone, text: impl ToString) -> Cell {
    let cell = Cell::new(text);
    match tone {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::Green),
        Tone::Warn => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        Tone::Dim => cell.add_attribute(Attribute::Dim),
        Tone::Strong => cell.add_attribute(Attribute::Bold),
    }
}

pub fn plain(text: impl ToString) -> Cell {
    Cell::new(text)
}

/// A number or a duration: aligned to the right.
pub fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

impl Table {
    pub fn new(paint: Paint, header: &[&str]) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_style(NOTHING).force_no_tty();
        if paint.colored {
            inner.enforce_styling().style_text_only();
        }
        if !header.is_empty() {
            inner.set_header(header.iter().map(|name| cell(Tone::Dim, name)));
        }
        Self { inner }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.inner.add_row(cells.into_iter().collect::<Vec<_>>());
    }

    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    /// Every line indented by `indent` spaces; ends with a line end unless the table is empty.
    pub fn render(&mut self, indent: usize) -> String {
        for column in self.inner.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = String::new();
        for line in self.inner.lines() {
            text.push_str(format!("{:indent$}{line}", "").trim_end());
            text.push('\n');
        }
        text
    }
}
