//! The page as a sequence of prose, deeds and consoles. What is not understood is an error, so that nothing in it goes
//! untyped.
//!
//! ````text
//! <!-- deploy v3.0.0 -->           a deed: also `host app-2 goes`, `host app-2 comes back`,
//!                                  `backup of db on db-1`
//! ```console                       commands behind `$ ` (or `ben$ ` for another operator), each followed by its output
//! $ rollbackctl fleet status
//! …
//! ```
//! ```console exit=3                all of its commands end with 3
//! ```console whole                 long outputs stay long; otherwise their middle is left out
//! ````

use std::fmt;

use anyhow::{Context, Result, bail};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub parts: Vec<Part>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    Prose(Vec<String>),
    Deed(Deed),
    Console(Console),
}

/// What nobody types at a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    Deploy(String),
    HostGoes(String),
    HostComesBack(String),
    /// `rollback-agent database backup`, on that host.
    Backup {
        host: String,
        component: String,
    },
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Console {
    /// `None`: 0.
    pub exit: Option<i32>,
    pub whole: bool,
    pub commands: Vec<Typed>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// Empty: the first operator.
    pub who: String,
    pub line: String,
    pub output: Vec<String>,
}

const FENCE: &str = "```";

impl Page {
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut prose = Vec::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let part = if let Some(deed) = line.strip_prefix("<!-- ").and_then(|l| l.strip_suffix(" -->")) {
                Part::Deed(Deed::parse(deed)?)
            } else if let Some(options) = line.strip_prefix("```console") {
                let inside = lines.by_ref().take_while(|line| *line != FENCE).collect();
                Part::Console(Console::parse(options.trim(), inside)?)
            } else {
                prose.push(line.to_owned());
                continue;
            };
            if !prose.is_empty() {
                parts.push(Part::Prose(std::mem::take(&mut prose)));
            }
            parts.push(part);
        }
        if !prose.is_empty() {
            parts.push(Part::Prose(prose));
        }
        Ok(Self { parts })
    }
}

impl Deed {
    fn parse(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        Ok(match words.as_slice() {
            ["deploy", release] => Deed::Deploy((*release).to_owned()),
            ["host", host, "goes"] => Deed::HostGoes((*host).to_owned()),
            ["backup", "of", component, "on", host] => Deed::Backup {
                host: (*host).to_owned(),
                component: (*component).to_owned(),
            },
            ["host", host, "comes", "back"] => Deed::HostComesBack((*host).to_owned()),
            _ => bail!("nobody knows how to do {text:?}"),
        })
    }
}

impl Console {
    fn parse(options: &str, lines: Vec<&str>) -> Result<Self> {
        let mut console = Self::default();
        for option in options.split_whitespace() {
            match option.strip_prefix("exit=") {
                Some(code) => console.exit = Some(code.parse().with_context(|| format!("{code} is no exit code"))?),
                None if option == "whole" => console.whole = true,
                None => bail!("a console has no option {option:?}"),
            }
        }
        let mut commands: Vec<Typed> = Vec::new();
        for line in lines {
            match (typed(line), commands.last_mut()) {
                (Some(command), _) => commands.push(command),
                (None, Some(last)) => last.output.push(line.to_owned()),
                (None, None) => bail!("output before the first command: {line}"),
            }
        }
        Ok(Self { commands, ..console })
    }
}

/// `$ …` or `ben$ …`.
fn typed(line: &str) -> Option<Typed> {
    let (who, line) = line.split_once("$ ")?;
    who.chars().all(|c| c.is_ascii_lowercase()).then(|| Typed {
        who: who.to_owned(),
        line: line.to_owned(),
        output: Vec::new(),
    })
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Deed::Deploy(release) => write!(f, "deploy {release}"),
            Deed::HostGoes(host) => write!(f, "host {host} goes"),
            Deed::HostComesBack(host) => write!(f, "host {host} comes back"),
            Deed::Backup { host, component } => write!(f, "backup of {component} on {host}"),
        }
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                Part::Prose(lines) => lines.iter().try_for_each(|line| writeln!(f, "{line}"))?,
                Part::Deed(deed) => writeln!(f, "<!-- {deed} -->")?,
                Part::Console(console) => {
                    let exit = console.exit.map_or_else(String::new, |code| format!(" exit={code}"));
                    let whole = if console.whole { " whole" } else { "" };
                    writeln!(f, "{FENCE}console{exit}{whole}")?;
                    for command in &console.commands {
                        writeln!(f, "{}$ {}", command.who, command.line)?;
                        command.output.iter().try_for_each(|line| writeln!(f, "{line}"))?;
                    }
                    writeln!(f, "{FENCE}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "# Title\n<!-- host app-2 goes -->\n\n```console exit=3\n$ a b\nout\nben$ c\n```\n```toml\nx = 1\n```\n";

    #[test]
    fn a_page_is_read_and_written_as_it_was() {
        let page = Page::parse(TEXT).expect("a page");
        assert_eq!(page.to_string(), TEXT);
        let consoles: Vec<_> = page
            .parts
            .iter()
            .filter_map(|part| match part {
                Part::Console(console) => Some((console.exit, console.commands.len())),
                Part::Prose(_) | Part::Deed(_) => None,
            })
            .collect();
        assert_eq!(consoles, [(Some(3), 2)]);
    }

    #[test]
    fn what_nobody_could_do_is_refused() {
        for text in ["<!-- rain -->", "```console\nout\n```", "```console twice\n```"] {
            assert!(Page::parse(text).is_err(), "{text}");
        }
    }
}
