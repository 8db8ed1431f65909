//! Where the include of an upstream stands in nginx's configuration.
//!
//! Reads no more of the language than is needed for that: statements, blocks, comments, quotes. Text that begins or ends
//! in the middle of something is read as far as it makes sense.

use std::path::Path;

use crate::driver::nginx::include::is_included;

/// The statements of one `upstream` block.
#[derive(Debug)]
pub struct Block {
    pub name: String,
    pub statements: Vec<String>,
}

impl Block {
    pub fn includes(&self, file: &Path, dir: &Path) -> bool {
        self.statements
            .iter()
            .any(|statement| is_included(&format!("{statement};"), file, dir))
    }

    /// Addresses of servers that stand in the block itself.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.statements.iter().filter_map(|statement| {
            let mut words = statement.split_whitespace();
            (words.next() == Some("server")).then(|| words.next())?
        })
    }
}

/// All `upstream` blocks of this text.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    // One entry for each open block: is it an upstream? Its statements go to the last that was found.
    let mut open: Vec<bool> = Vec::new();
    statements(text, &mut |end, statement| match end {
        '{' => {
            let name = statement
                .strip_prefix("upstream")
                .filter(|rest| rest.starts_with(char::is_whitespace));
            if let Some(name) = name {
                found.push(Block {
                    name: name.trim().to_owned(),
                    statements: Vec::new(),
                });
            }
            open.push(name.is_some());
        }
        '}' => {
            open.pop();
        }
        _ => {
            if let (Some(true), Some(block)) = (open.last(), found.last_mut()) {
                block.statements.push(statement);
            }
        }
    });
    found
}

/// Calls `on` with each statement and what ended it: `;`, `{` or `}`.
pub fn statements(text: &str, on: &mut dyn FnMut(char, String)) {
    let mut statement = String::new();
    let mut quote: Option<char> = None;
    let mut comment = false;
    let mut before = ' ';
    for c in text.chars() {
        let at_word = before.is_whitespace() || matches!(before, ';' | '{' | '}');
        match (comment, quote) {
            (true, _) => comment = c != '\n',
            (false, Some(open)) => {
                statement.push(c);
                if c == open && before != '\\' {
                    quote = None;
                }
            }
            (false, None) if c == '#' && at_word => comment = true,
            (false, None) if matches!(c, ';' | '{' | '}') && before != '$' => {
                on(c, std::mem::take(&mut statement).trim().to_owned());
            }
            (false, None) => {
                if matches!(c, '"' | '\'') && at_word {
                    quote = Some(c);
                }
                statement.push(c);
            }
        }
        before = c;
    }
    if !statement.trim().is_empty() {
        on('\0', statement.trim().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_block_that_includes_the_file() {
        let text = "server 1.1.1.1:1; }\nhttp { # upstream no { include rb/u.inc; }\n  log_format x '{ \"a;b\" $uri }';\n  \
                    upstream zekka {\n    least_conn; server 127.0.0.1:1 weight=2; # server 9:9;\n    include rb/u.inc;\n  \
                    }\n  upstream other { server 127.0.0.1:2; }\n  server { include rb/u.inc; }\n";
        let (file, dir) = (Path::new("/c/rb/u.inc"), Path::new("/c"));
        let found = blocks(text);
        let names: Vec<_> = found.iter().map(|b| (b.name.as_str(), b.includes(file, dir))).collect();
        assert_eq!(names, [("zekka", true), ("other", false)]);
        assert_eq!(found[0].servers().collect::<Vec<_>>(), ["127.0.0.1:1"]);
    }
}
