//! The managed include: a file that every managed server block includes and whose content the driver owns.
//!
//! It serves a marker, a nonce that is new with every reload: whoever gets it by a fresh connection is served by workers
//! that have the present configuration. While the site is drained, it answers everything else with 503 and Retry-After.
//! Whether the site is drained is read from this file, so that an agent that was restarted knows it.

use std::time::Duration;

/// First line of every file that the driver wrote.
pub const HEADER: &str = "# Written by rollback-agent. Changes are lost.";

/// What the include says. `Unwritten` is an empty file, as `touch` makes it. While managed files are being written, the
/// include is not `settled`: what is served with its nonce may be a mixture, if somebody reloads just then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Include {
    Unwritten,
    Written {
        nonce: String,
        drained: bool,
        settled: bool,
    },
    /// Somebody else's content. Never overwritten.
    Foreign,
}

impl Include {
    pub fn parse(text: &str) -> Self {
        if text.trim().is_empty() {
            return Self::Unwritten;
        }
        let mut lines = text.lines();
        let state = lines
            .next()
            .filter(|line| *line == HEADER)
            .and_then(|_| lines.next())
            .and_then(|line| {
                let (nonce, rest) = line.strip_prefix("# nonce=")?.split_once(" drained=")?;
                let (drained, settled) = rest.split_once(" settled=")?;
                Some((nonce.to_owned(), drained == "yes", settled == "yes"))
            });
        match state {
            Some((nonce, drained, settled)) => Self::Written {
                nonce,
                drained,
                settled,
            },
            None => Self::Foreign,
        }
    }

    pub fn drained(&self) -> bool {
        matches!(self, Self::Written { drained: true, .. })
    }

    pub fn nonce(&self) -> Option<&str> {
        match self {
            Self::Written { nonce, .. } => Some(nonce),
            Self::Unwritten | Self::Foreign => None,
        }
    }
}

/// What is fixed by the configuration. Checked when it is made: all of it goes into nginx's configuration.
#[derive(Clone, Debug)]
pub struct Template {
    path: String,
    retry_after: u64,
    body: String,
}

impl Template {
    pub fn new(path: &str, retry_after: Duration, body: Option<&str>) -> Result<Self, String> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.');
        if path.len() < 2 || !path.chars().all(good) || path.ends_with('/') {
            return Err(format!("marker_url: the path {path:?} must be like /-/rollbackctl"));
        }
        let body = body.unwrap_or("This service is being maintained. Please try again shortly.\n");
        if body.len() > 16 * 1024 || body.contains(['$', '\0']) {
            return Err("maintenance_body must be at most 16 KiB and have no $ (nginx would expand it)".into());
        }
        Ok(Self {
            path: path.to_owned(),
            retry_after: retry_after.as_secs().max(1),
            body: body.to_owned(),
        })
    }

    pub fn render(&self, nonce: &str, drained: bool, settled: bool) -> String {
        let Self {
            path,
            retry_after,
            body,
        } = self;
        let said = |yes| if yes { "yes" } else { "no" };
        let (is_drained, is_settled) = (said(drained), said(settled));
        let mut text = format!(
            "{HEADER}\n# nonce={nonce} drained={is_drained} settled={is_settled}\nlocation = {path} {{\n    access_log off;\n    default_type \
             text/plain;\n    return 200 \"{nonce}\\n\";\n}}\n"
        );
        if drained {
            let kind = if body.trim_start().starts_with('<') {
                "text/html"
            } else {
                "text/plain"
            };
            let body = body.replace('\\', "\\\\").replace('"', "\\\"");
            // A rewrite to a location rather than `return` at server level: it brings its own type and headers, and
            // none of the site's error pages applies.
            text.push_str(&format!(
                "location = {path}/maintenance {{\n    internal;\n    default_type {kind};\n    add_header Retry-After \
                 {retry_after} always;\n    add_header Cache-Control no-store always;\n    return 503 \"{body}\";\n}}\n\
                 if ($uri != \"{path}\") {{\n    rewrite ^ {path}/maintenance last;\n}}\n"
            ));
        }
        text
    }
}

/// Does this configuration text include the file? Globs count; comments do not. `dir` is where relative names begin.
pub fn is_included(text: &str, file: &std::path::Path, dir: &std::path::Path) -> bool {
    let wanted = file.to_string_lossy();
    text.lines()
        .map(|line| line.split_once(" #").map_or(line, |(code, _)| code))
        .any(|line| {
            line.split([';', '{', '}']).any(|statement| {
                let Some(name) = statement
                    .trim()
                    .strip_prefix("include")
                    .filter(|n| n.starts_with([' ', '\t']))
                else {
                    return false;
                };
                let name = dir.join(name.trim().trim_matches(['"', '\'']));
                crate::driver::release_dir::manifest::names_match(&name.to_string_lossy(), &wanted)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn says_back_what_was_written() {
        let template = Template::new("/-/rollbackctl", Duration::from_secs(30), None).expect("good");
        for (drained, settled) in [(false, true), (true, true), (true, false)] {
            let read = Include::parse(&template.render("abc", drained, settled));
            let nonce = "abc".to_owned();
            assert_eq!(
                read,
                Include::Written {
                    nonce,
                    drained,
                    settled
                }
            );
        }
        assert_eq!(Include::parse(" \n"), Include::Unwritten);
        assert_eq!(Include::parse("location / {}"), Include::Foreign);
        assert!(Template::new("/", Duration::ZERO, None).is_err());
        assert!(Template::new("/x;y", Duration::ZERO, None).is_err());
        assert!(Template::new("/x", Duration::ZERO, Some("costs 5$")).is_err());
    }

    #[test]
    fn finds_the_include_line() {
        let (file, dir) = (Path::new("/etc/nginx/rb/zekka.inc"), Path::new("/etc/nginx"));
        for text in [
            "server { include /etc/nginx/rb/zekka.inc; }",
            "  include\trb/zekka.inc ;",
            "include \"rb/*.inc\"; # ours",
            "listen 80;include rb/zekka.inc;",
        ] {
            assert!(is_included(text, file, dir), "{text}");
        }
        for text in [
            "# include rb/zekka.inc;",
            "listen 80; # include rb/zekka.inc;",
            "include rb/other.inc;",
            "include x/rb/zekka.inc;",
        ] {
            assert!(!is_included(text, file, dir), "{text}");
        }
    }
}
