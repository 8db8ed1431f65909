//! The include of an upstream: which servers it has, and which of them get no requests.
//!
//! It stands inside the `upstream` block, in the place of the `server` lines; everything else of the block (`keepalive`,
//! `least_conn`, …) stays in the site. Whether a backend is drained is read from this file, so that an agent that was
//! restarted knows it.
//!
//! A file that was written by hand is taken over when it says exactly what is configured. Anything else is somebody
//! else's and never overwritten: what it says would be lost. An empty file is not filled, either: then the servers stand
//! elsewhere in the block, and would be there twice.

pub mod block;
pub mod config;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rollback_proto::problem::{Code, Problem};

use self::block::{Block, blocks, statements};
use super::include::HEADER;

/// One backend's servers in one upstream. Checked: all of it goes into nginx's configuration.
#[derive(Clone, Debug)]
pub struct Member {
    pub backend: String,
    pub addresses: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Upstream {
    pub file: PathBuf,
    pub members: Vec<Member>,
}

/// What the include says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub down: BTreeSet<String>,
    /// It has just the servers that are configured.
    pub exact: bool,
}

/// A server line: its options without `down`, and whether that was there.
#[derive(Debug)]
struct Line {
    options: BTreeSet<String>,
    down: bool,
}

impl Upstream {
    pub fn has(&self, backend: &str) -> bool {
        self.members.iter().any(|member| member.backend == backend)
    }

    /// Backends that get requests while these do not.
    pub fn up<'a>(&'a self, down: &'a BTreeSet<String>) -> impl Iterator<Item = &'a str> {
        self.members
            .iter()
            .map(|member| member.backend.as_str())
            .filter(|backend| !down.contains(*backend))
    }

    pub fn render(&self, down: &BTreeSet<String>) -> Vec<u8> {
        let names: String = down.iter().map(|backend| format!(" {backend}")).collect();
        let mut text = format!("{HEADER}\n# down:{names}\n");
        for member in &self.members {
            for line in member.lines(down.contains(&member.backend)) {
                text.push_str(&format!("{line} # {}\n", member.backend));
            }
        }
        text.into_bytes()
    }

    /// What the file must have for that, which may be what it has.
    pub fn with_down(&self, content: &[u8], said: &Said, down: &BTreeSet<String>) -> Vec<u8> {
        if said.exact && said.down == *down {
            content.to_vec()
        } else {
            self.render(down)
        }
    }

    /// Reads the include. An error says why it cannot be worked with, and what it should be.
    pub fn read(&self, content: Option<&[u8]>) -> Result<Said, Problem> {
        let content = content.ok_or_else(|| self.unfit("does not exist"))?;
        let text = String::from_utf8_lossy(content);
        let mut found = BTreeMap::new();
        let mut other = None;
        statements(&text, &mut |end, statement| match (end, server_line(&statement)) {
            (';', Some((address, line))) if !found.contains_key(&address) => {
                found.insert(address, line);
            }
            (_, _) => other = other.take().or(Some(statement)),
        });
        if let Some(statement) = other {
            let shown: String = statement.chars().take(80).collect();
            return Err(self.unfit(&format!("has {shown:?}, which is none of the configured servers")));
        }
        match text.lines().next() {
            Some(HEADER) => Ok(self.read_own(content, &text, &found)),
            Some(_) | None if found.is_empty() => Err(self.unfit("is empty")),
            Some(_) | None => self.read_by_hand(&found),
        }
    }

    /// Of a file that the driver wrote. The configuration, or somebody in a hurry, may have changed it since: a backend
    /// is down when either the second line or one of its servers says so.
    fn read_own(&self, content: &[u8], text: &str, found: &BTreeMap<String, Line>) -> Said {
        let named: BTreeSet<&str> = text
            .lines()
            .nth(1)
            .and_then(|line| line.strip_prefix("# down:"))
            .map(|names| names.split_whitespace().collect())
            .unwrap_or_default();
        let is_down = |member: &&Member| {
            named.contains(member.backend.as_str())
                || member
                    .addresses
                    .iter()
                    .any(|address| found.get(address).is_some_and(|line| line.down))
        };
        let down = self
            .members
            .iter()
            .filter(is_down)
            .map(|member| member.backend.clone())
            .collect();
        Said {
            exact: content == self.render(&down),
            down,
        }
    }

    fn read_by_hand(&self, found: &BTreeMap<String, Line>) -> Result<Said, Problem> {
        let mut down = BTreeSet::new();
        let mut known = 0;
        for member in &self.members {
            let options: BTreeSet<String> = member.options.iter().cloned().collect();
            let mut downs = 0;
            for address in &member.addresses {
                let line = found
                    .get(address)
                    .ok_or_else(|| self.unfit(&format!("lacks {address} of {}", member.backend)))?;
                if line.options != options {
                    return Err(self.unfit(&format!("has other options for {address} than are configured")));
                }
                known += 1;
                downs += usize::from(line.down);
            }
            if downs == member.addresses.len() {
                down.insert(member.backend.clone());
            } else if downs > 0 {
                return Err(self.unfit(&format!("has only some servers of {} down", member.backend)));
            }
        }
        if known != found.len() {
            return Err(self.unfit("has servers that are not configured"));
        }
        Ok(Said { down, exact: true })
    }

    fn unfit(&self, why: &str) -> Problem {
        let lines: Vec<String> = self.members.iter().flat_map(|member| member.lines(false)).collect();
        Problem::new(Code::NginxInclude, format!("{} {why}", self.file.display())).remedy(format!(
            "let it have exactly this, in the place of the server lines of the upstream block (include {};), and reload \
             nginx: {}",
            self.file.display(),
            lines.join(" ")
        ))
    }

    /// Would a drain reach nginx? `texts` are all that is known of its configuration.
    pub fn expect_in_use<'a>(
        &self,
        whose: &str,
        dir: &Path,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Problem> {
        let mine: Vec<Block> = texts
            .into_iter()
            .flat_map(blocks)
            .filter(|block| block.includes(&self.file, dir))
            .collect();
        if mine.is_empty() {
            let message = format!("no upstream block of {whose} includes {}", self.file.display());
            return Err(Problem::new(Code::NginxInclude, message).remedy(format!(
                "put this in the place of its server lines, and name the file that has the block in `files`: include {};",
                self.file.display()
            )));
        }
        let configured: BTreeSet<&str> = self
            .members
            .iter()
            .flat_map(|member| member.addresses.iter().map(String::as_str))
            .collect();
        for block in &mine {
            if let Some(twice) = block.servers().find(|address| configured.contains(address)) {
                let message = format!(
                    "upstream {} of {whose} has server {twice} beside {}, where it is, too: it would get requests while it is drained",
                    block.name,
                    self.file.display()
                );
                return Err(Problem::new(Code::NginxInclude, message).remedy("take the server line out of the block"));
            }
        }
        Ok(())
    }
}

impl Member {
    fn lines(&self, down: bool) -> impl Iterator<Item = String> {
        self.addresses.iter().map(move |address| {
            let words = ["server", address]
                .into_iter()
                .chain(self.options.iter().map(String::as_str))
                .chain(down.then_some("down"));
            format!("{};", words.collect::<Vec<_>>().join(" "))
        })
    }
}

fn server_line(statement: &str) -> Option<(String, Line)> {
    let mut words = statement.split_whitespace();
    if words.next() != Some("server") {
        return None;
    }
    let address = words.next()?.to_owned();
    let mut options: BTreeSet<String> = words.map(str::to_owned).collect();
    let down = options.remove("down");
    Some((address, Line { options, down }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream() -> Upstream {
        let member = |backend: &str, addresses: &[&str], options: &[&str]| Member {
            backend: backend.into(),
            addresses: addresses.iter().map(|&a| a.to_owned()).collect(),
            options: options.iter().map(|&o| o.to_owned()).collect(),
        };
        Upstream {
            file: "/c/u.inc".into(),
            members: vec![
                member("app-1/api", &["x:1", "x:2"], &["max_fails=1"]),
                member("app-2/api", &["y:1"], &[]),
            ],
        }
    }

    fn said(text: &str) -> Option<Vec<String>> {
        let said = upstream().read(Some(text.as_bytes())).ok()?;
        Some(said.down.into_iter().collect())
    }

    #[test]
    fn says_back_what_was_written() {
        let upstream = upstream();
        for down in [&[][..], &["app-1/api"], &["app-1/api", "app-2/api"]] {
            let down: BTreeSet<String> = down.iter().map(|&b| b.to_owned()).collect();
            let text = upstream.render(&down);
            let said = upstream.read(Some(&text)).expect("ours");
            assert_eq!(
                said,
                Said {
                    down: down.clone(),
                    exact: true
                }
            );
            assert_eq!(upstream.with_down(&text, &said, &down), text);
        }
    }

    #[test]
    fn takes_over_what_says_exactly_what_is_configured() {
        let good = "# by hand\nserver y:1; # two\n  server x:2\tmax_fails=1;server x:1 max_fails=1;";
        assert_eq!(said(good), Some(vec![]));
        assert_eq!(said(&good.replace("y:1", "y:1 down")), Some(vec!["app-2/api".into()]));
        for foreign in [
            "",
            "# only words\n",
            "server y:1;",
            "server x:1 max_fails=1; server x:2 max_fails=1; server y:1 weight=3;",
            "server x:1; server x:2; server y:1;",
            &format!("{good} server z:1;"),
            &format!("{good} server y:1;"),
            &format!("{good} keepalive 8;"),
            &good.replace("x:2\tmax_fails=1", "x:2 max_fails=1 down"),
            good.trim_end_matches(';'),
        ] {
            assert_eq!(said(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_server_that_somebody_took_out_by_hand_is_not_brought_back_by_the_drain_of_another() {
        let upstream = upstream();
        let text = String::from_utf8(upstream.render(&BTreeSet::new())).expect("text");
        let text = text.replace("server y:1;", "server y:1 down;");
        let said = upstream.read(Some(text.as_bytes())).expect("ours");
        assert_eq!(said.down, BTreeSet::from(["app-2/api".to_owned()]));
        // With one of two servers down, being drained is not what it was.
        let text = text.replace("server x:1 max_fails=1;", "server x:1 max_fails=1 down;");
        let said = upstream.read(Some(text.as_bytes())).expect("ours");
        assert!(!said.exact);
        let all = said.down.clone();
        assert_eq!(upstream.with_down(text.as_bytes(), &said, &all), upstream.render(&all));
    }
}
