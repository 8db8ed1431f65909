//! `nginx -t`, on the live configuration and on a copy that has other managed files.
//!
//! The copy is made outside of the live tree. Only files that name the live directory are really copied, with that name
//! changed; all others (keys and certificates among them) are links to the live ones. Messages are given with the live
//! paths.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rollback_proto::problem::{Code, Problem};

use super::site::{Files, Site};
use crate::files::{self, io_problem};
use crate::program::Program;

/// Enough for any configuration; a `root` that is not a configuration directory stops here.
const MAX_ENTRIES: usize = 20_000;

/// Larger files are no configuration; they are linked.
const MAX_COPIED: u64 = 4 * 1024 * 1024;

const TEST_LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub struct Tester {
    pub binary: PathBuf,
    pub prefix: Option<PathBuf>,
    pub config: PathBuf,
}

impl Tester {
    /// Tests the live configuration. `Ok` has the whole configuration as nginx reads it (or its last 64 KiB).
    pub async fn test_live(&self) -> Result<String, Problem> {
        self.test(&self.config, |message| message).await
    }

    async fn test(&self, config: &Path, as_live: impl Fn(String) -> String) -> Result<String, Problem> {
        // -T also prints what was read, which shows whether a file is included.
        let mut program = Program::new(&self.binary).arg("-T").arg("-c").arg(config);
        if let Some(prefix) = &self.prefix {
            program = program.arg("-p").arg(prefix);
        }
        let output = program
            .output(TEST_LIMIT)
            .await
            .map_err(|e| Problem::from_error(Code::ProgramFailed, "test the nginx configuration", &e))?;
        if output.code == Some(0) {
            return Ok(output.stdout);
        }
        Err(Problem::new(Code::NginxConfig, as_live(quoted(&output.stderr))))
    }

    /// Tests what the configuration would be with these managed files. Touches nothing live.
    pub async fn test_with(&self, site: &Site, wanted: &Files) -> Result<String, Problem> {
        let (site_copy, wanted) = (site.clone(), wanted.clone());
        let copy = files::blocking(move || Copy::make(&site_copy, &wanted)).await?;
        let Some(name) = self.config.file_name() else {
            return Err(Problem::new(
                Code::BadConfig,
                "the nginx configuration has no file name",
            ));
        };
        let live = site.conf_dir.to_string_lossy().into_owned();
        let copied = copy.top.to_string_lossy().into_owned();
        let dump = self
            .test(&copy.top.join(name), |message| message.replace(&copied, &live))
            .await?;
        Ok(dump.replace(&copied, &live))
    }
}

/// The lines that say why, on one line.
fn quoted(stderr: &str) -> String {
    let strong: Vec<&str> = stderr
        .lines()
        .filter(|l| l.contains("[emerg]") || l.contains("[crit]"))
        .collect();
    let lines = if strong.is_empty() {
        stderr.lines().collect()
    } else {
        strong
    };
    lines.join(" | ").chars().take(800).collect()
}

/// A copy of the configuration directory; removed when dropped.
struct Copy {
    top: PathBuf,
    _dir: tempfile::TempDir,
}

impl Copy {
    fn make(site: &Site, wanted: &Files) -> Result<Self, Problem> {
        let dir = tempfile::Builder::new()
            .prefix("rollbackctl-nginx-")
            .tempdir()
            .map_err(|e| io_problem("make a directory in", &std::env::temp_dir(), &e))?;
        let top = dir.path().join("conf");
        std::fs::create_dir(&top).map_err(|e| io_problem("create", &top, &e))?;
        let real = std::fs::canonicalize(&site.conf_dir).map_err(|e| io_problem("open", &site.conf_dir, &e))?;
        let mut spellings = vec![
            site.conf_dir.to_string_lossy().into_owned(),
            real.to_string_lossy().into_owned(),
        ];
        spellings.dedup();
        let copier = Copier {
            live: site.conf_dir.clone(),
            real: real.clone(),
            top: top.clone(),
            spellings,
        };
        copier.copy_all()?;
        let managed = site.root.strip_prefix(&site.conf_dir).unwrap_or(Path::new(""));
        for (name, content) in wanted {
            let mut places = vec![top.join(managed).join(name)];
            // Both ends of a link: the configuration may include either. What stays behind an absent name stays.
            if content.is_some() {
                let target = site.path_of(name)?;
                places.extend(target.strip_prefix(&real).map(|inside| top.join(inside)));
            }
            for at in places {
                files::remove(&at)?;
                if let Some(content) = content {
                    copier.write(&at, &content.bytes)?;
                }
            }
        }
        Ok(Self { top, _dir: dir })
    }
}

struct Copier {
    live: PathBuf,
    real: PathBuf,
    top: PathBuf,
    spellings: Vec<String>,
}

impl Copier {
    fn copy_all(&self) -> Result<(), Problem> {
        let mut pending = vec![PathBuf::new()];
        let mut seen = 0usize;
        while let Some(relative) = pending.pop() {
            let from = self.live.join(&relative);
            for item in std::fs::read_dir(&from).map_err(|e| io_problem("read directory", &from, &e))? {
                let item = item.map_err(|e| io_problem("read directory", &from, &e))?;
                let relative = relative.join(item.file_name());
                seen += 1;
                if seen > MAX_ENTRIES {
                    return Err(Problem::new(
                        Code::BadLayout,
                        format!("{} has more than {MAX_ENTRIES} entries", self.live.display()),
                    ));
                }
                let kind = item.file_type().map_err(|e| io_problem("look at", &item.path(), &e))?;
                let to = self.top.join(&relative);
                if kind.is_dir() {
                    std::fs::create_dir(&to).map_err(|e| io_problem("create", &to, &e))?;
                    pending.push(relative);
                } else if kind.is_symlink() {
                    self.copy_link(&item.path(), &relative, &to)?;
                } else {
                    self.copy_file(&item.path(), &to)?;
                }
            }
        }
        Ok(())
    }

    /// A link within the tree leads to the copy; any other leads to where it led.
    fn copy_link(&self, from: &Path, relative: &Path, to: &Path) -> Result<(), Problem> {
        let target = std::fs::canonicalize(from).ok();
        let target = match target.as_deref().map(|path| (path, path.strip_prefix(&self.real))) {
            Some((_, Ok(inside))) => self.top.join(inside),
            Some((outside, Err(_))) => outside.to_owned(),
            // It leads nowhere; nginx shall say so about the copy, too.
            None => self.top.join(relative).with_extension("dangling"),
        };
        link(&target, to)
    }

    fn copy_file(&self, from: &Path, to: &Path) -> Result<(), Problem> {
        let metadata = std::fs::metadata(from).map_err(|e| io_problem("look at", from, &e))?;
        if metadata.is_file() && metadata.len() <= MAX_COPIED {
            let content = std::fs::read(from).map_err(|e| io_problem("read", from, &e))?;
            if let Some(changed) = self.in_copy(&content) {
                return std::fs::write(to, changed).map_err(|e| io_problem("write", to, &e));
            }
        }
        link(&self.real.join(from.strip_prefix(&self.live).unwrap_or(from)), to)
    }

    fn write(&self, to: &Path, content: &[u8]) -> Result<(), Problem> {
        let content = self.in_copy(content).unwrap_or_else(|| content.to_vec());
        std::fs::write(to, content).map_err(|e| io_problem("write", to, &e))
    }

    /// The text with names of the live directory changed to those of the copy; `None` when there are none.
    fn in_copy(&self, content: &[u8]) -> Option<Vec<u8>> {
        let text = std::str::from_utf8(content).ok()?;
        let top = self.top.to_string_lossy();
        let changed = self
            .spellings
            .iter()
            .fold(text.to_owned(), |text, dir| with_prefix_changed(&text, dir, &top));
        (changed != text).then(|| changed.into_bytes())
    }
}

fn link(target: &Path, at: &Path) -> Result<(), Problem> {
    std::os::unix::fs::symlink(target, at).map_err(|e| io_problem("make link", at, &e))
}

/// Changes `dir` to `to` where it stands as a whole path or as the beginning of one: `/etc/nginx/x`, not `/my/etc/nginx`
/// and not `/etc/nginx-old`.
fn with_prefix_changed(text: &str, dir: &str, to: &str) -> String {
    let in_name = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(dir) {
        let (before, after) = (
            rest[..at].chars().next_back().or(out.chars().next_back()),
            &rest[at + dir.len()..],
        );
        let whole = !before.is_some_and(|c| in_name(c) || c == '/') && !after.starts_with(in_name);
        out.push_str(&rest[..at]);
        out.push_str(if whole { to } else { dir });
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_whole_paths_only() {
        let changed = |text| with_prefix_changed(text, "/etc/nginx", "/tmp/c");
        assert_eq!(
            changed("include /etc/nginx/a; root \"/etc/nginx\";"),
            "include /tmp/c/a; root \"/tmp/c\";"
        );
        for same in ["/my/etc/nginx/a", "/etc/nginx-old/a", "/etc/nginx.d/a", "x/etc/nginx"] {
            assert_eq!(changed(same), same);
        }
        assert_eq!(changed("/etc/nginx/etc/nginx/a"), "/tmp/c/etc/nginx/a");
    }
}
