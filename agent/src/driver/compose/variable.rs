//! One variable in an env file that belongs to people: its value is exchanged, and nothing else. Comments, order, quotes,
//! line ends, mode and owner stay.
//!
//! Values of other variables are secrets: they pass through here, and nowhere else.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rollback_proto::problem::{Code, Problem};

use crate::files::{self, Attributes, FileState};

/// Where the variable stands.
#[derive(Clone, Debug)]
pub struct Variable {
    pub name: String,
    pub path: PathBuf,
}

impl Variable {
    /// The value that the file gives. `None`: the file has no such variable, or there is no file.
    pub fn value(&self) -> Result<Option<String>, Problem> {
        Ok(self.read()?.and_then(|file| value_in(&file, &self.name)))
    }

    /// The value of another variable of the same file.
    pub fn other(&self, name: &str) -> Result<Option<String>, Problem> {
        Ok(self.read()?.and_then(|file| value_in(&file, name)))
    }

    fn read(&self) -> Result<Option<String>, Problem> {
        self.state()?.map(|state| self.text(state)).transpose()
    }

    fn state(&self) -> Result<Option<FileState>, Problem> {
        files::read(&self.path)
    }

    fn text(&self, state: FileState) -> Result<String, Problem> {
        String::from_utf8(state.content)
            .map_err(|_| Problem::new(Code::BadLayout, format!("{} is not UTF-8", self.path.display())))
    }

    /// Gives the variable this value. The file is either old or new at any time, also after a power cut; `id` names the
    /// file beside it that becomes the new one.
    pub fn set(&self, value: &str, id: &str) -> Result<(), Problem> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        if files::writable_by_others(dir)? {
            return Err(Problem::new(
                Code::BadLayout,
                format!("{} is writable by everybody; nothing is replaced there", dir.display()),
            ));
        }
        let (attributes, old) = match self.state()? {
            Some(state) => (state.attributes, self.text(state)?),
            None => (attributes_for_new(dir)?, String::new()),
        };
        let new = with_value(&old, &self.name, value);
        if new != old {
            let staged = files::beside(&self.path, id);
            files::write_new(&staged, new.as_bytes(), attributes)?;
            files::publish(&staged, &self.path)?;
        }
        if self.value()?.as_deref() == Some(value) {
            Ok(())
        } else {
            Err(Problem::new(
                Code::WrongRevision,
                format!(
                    "{} was changed by somebody else while {} was set",
                    self.path.display(),
                    self.name
                ),
            ))
        }
    }

    /// Removes what a killed `set` left.
    pub fn tidy(&self) -> Result<(), Problem> {
        files::remove_beside(&self.path, None)
    }
}

/// A file of ours has the version in it and no secret: who may look at the project may read it.
fn attributes_for_new(dir: &Path) -> Result<Attributes, Problem> {
    let metadata = std::fs::metadata(dir).map_err(|e| files::io_problem("look at", dir, &e))?;
    let mut attributes = files::own_attributes(0o644);
    if rustix::process::geteuid().is_root() {
        (attributes.uid, attributes.gid) = (metadata.uid(), metadata.gid());
    }
    Ok(attributes)
}

/// The last line counts, as Compose reads it.
fn value_in(text: &str, name: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| parts(line, name))
        .next_back()
        .map(|parts| parts.value.to_owned())
}

fn with_value(text: &str, name: &str, value: &str) -> String {
    let mut out = String::with_capacity(text.len() + value.len());
    let mut found = false;
    for line in text.split_inclusive('\n') {
        match parts(line, name) {
            Some(parts) => {
                found = true;
                out.extend([parts.before, value, parts.after]);
            }
            None => out.push_str(line),
        }
    }
    if !found {
        let end = if text.contains("\r\n") { "\r\n" } else { "\n" };
        if !out.is_empty() && !out.ends_with('\n') {
            out.push_str(end);
        }
        out.extend([name, "=", value, end]);
    }
    out
}

/// A line `export NAME = "value" # comment`, cut so that the value can be exchanged.
struct Parts<'a> {
    before: &'a str,
    value: &'a str,
    after: &'a str,
}

fn parts<'a>(line: &'a str, name: &str) -> Option<Parts<'a>> {
    let rest = line.trim_start_matches([' ', '\t', '\u{feff}']);
    let rest = match rest.strip_prefix("export") {
        Some(after) if after.starts_with([' ', '\t']) => after.trim_start_matches([' ', '\t']),
        Some(_) | None => rest,
    };
    let rest = rest.strip_prefix(name)?.trim_start_matches([' ', '\t']);
    let rest = rest.strip_prefix('=')?.trim_start_matches([' ', '\t']);
    let quoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| Some((rest.strip_prefix(quote)?, quote)))
        .and_then(|(inner, quote)| Some((inner, inner.find(quote)?)));
    let (tail, length) = match quoted {
        Some((inner, end)) => (inner, end),
        None => {
            let content = rest.trim_end_matches(['\n', '\r']);
            let comment = if content.starts_with('#') { Some(0) } else { None };
            let end = comment
                .or_else(|| content.find(" #"))
                .or_else(|| content.find("\t#"))
                .unwrap_or(content.len());
            (rest, content[..end].trim_end().len())
        }
    };
    let at = line.len() - tail.len();
    Some(Parts {
        before: &line[..at],
        value: &line[at..at + length],
        after: &line[at + length..],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanges_the_value_and_nothing_else() {
        for (old, new) in [
            ("TAG=v3\n", "TAG=v2\n"),
            (
                "# TAG=v3\nA=1\nTAG=v3 # live\nB='x'\n",
                "# TAG=v3\nA=1\nTAG=v2 # live\nB='x'\n",
            ),
            (
                "export TAG = \"v3\"\t# c\r\nX=1\r\n",
                "export TAG = \"v2\"\t# c\r\nX=1\r\n",
            ),
            ("TAG='v3'", "TAG='v2'"),
            ("TAG=\nTAG_B=v3\nMY_TAG=v3", "TAG=v2\nTAG_B=v3\nMY_TAG=v3"),
            ("TAG=v3\nTAG=v4\n", "TAG=v2\nTAG=v2\n"),
            ("A=1", "A=1\nTAG=v2\n"),
            ("A=1\r\n", "A=1\r\nTAG=v2\r\n"),
            ("", "TAG=v2\n"),
            ("TAG=a#b\n", "TAG=v2\n"),
        ] {
            assert_eq!(with_value(old, "TAG", "v2"), new, "{old:?}");
            assert_eq!(value_in(new, "TAG").as_deref(), Some("v2"), "{new:?}");
        }
    }

    #[test]
    fn the_last_line_counts() {
        assert_eq!(value_in("TAG=a\nTAG=b # c\n", "TAG").as_deref(), Some("b"));
        assert_eq!(value_in("TAG=a#b\n", "TAG").as_deref(), Some("a#b"));
        assert_eq!(value_in("#TAG=a\nTAGS=b\n", "TAG"), None);
    }
}
