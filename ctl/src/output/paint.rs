//! Colours: only on a terminal, and not when `NO_COLOR` is set to anything.

use std::io::IsTerminal;

use console::Style;

/// What a text means, as a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    Warn,
    Bad,
    Dim,
    Strong,
}

/// Paints, or leaves as it is.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    pub colored: bool,
}

impl Paint {
    #[cfg(test)]
    pub const PLAIN: Paint = Paint { colored: false };

    pub fn stdout() -> Self {
        Self {
            colored: std::io::stdout().is_terminal() && colors_wanted(),
        }
    }

    pub fn stderr() -> Self {
        Self {
            colored: std::io::stderr().is_terminal() && colors_wanted(),
        }
    }

    pub fn tone(self, tone: Tone, text: &str) -> String {
        let style = Style::new().force_styling(self.colored);
        let style = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => style.green(),
            Tone::Warn => style.yellow(),
            Tone::Bad => style.red().bold(),
            Tone::Dim => style.dim(),
            Tone::Strong => style.bold(),
        };
        style.apply_to(text).to_string()
    }
}

fn colors_wanted() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
    !no_color && !dumb
}
