//! `resolve`: the copies of managed files that people lay beside them, by name of a release or as a backup.

use std::path::{Path, PathBuf};

use rollback_proto::problem::{Code, Problem};

use super::link;
use super::site::{Content, Files, Site};
use crate::driver::{Retained, Revision};
use crate::files;

/// How copies are named. All files of one site come from one convention: a mixture was never a site.
#[derive(Clone, Copy, Debug)]
enum Convention {
    /// `zekka.v2.9.0`
    Dot,
    /// `zekka-v2.9.0`
    Dash,
    /// `zekka.backup`, and `zekka.backup` of `zekka.conf`. Does not say of which release it is.
    Backup,
}

impl Convention {
    const ALL: [Self; 3] = [Self::Dot, Self::Dash, Self::Backup];

    fn copies_of(self, file: &Path, release: &str) -> Vec<PathBuf> {
        let named = |end: &str| {
            let mut name = file.file_name().unwrap_or_default().to_owned();
            name.push(end);
            file.with_file_name(name)
        };
        match self {
            Self::Dot => vec![named(&format!(".{release}"))],
            Self::Dash => vec![named(&format!("-{release}"))],
            Self::Backup if file.extension().is_some() => vec![named(".backup"), file.with_extension("backup")],
            Self::Backup => vec![named(".backup")],
        }
    }
}

impl Site {
    /// Finds the site of a release and keeps it in the vault. Nothing live is touched.
    pub fn resolve(&self, release: &str) -> Result<Retained, Problem> {
        let mut looked = Vec::new();
        for convention in Convention::ALL {
            if let Some((files, sources)) = self.copies(convention, release, &mut looked)? {
                let guessed = matches!(convention, Convention::Backup);
                // A guess gives no lasting name: the next release that is looked for may find the same files.
                let kept = self.keep(&files, (!guessed).then_some(release))?;
                let revision = Revision {
                    version: release.to_owned(),
                    ..kept
                };
                let mut summary = format!("vault, {} files, from {}", files.len(), sources.join(", "));
                if guessed {
                    summary.push_str(", whose name says no release");
                }
                if !self.includes_managed(&files) {
                    summary.push_str(&format!("; none of them includes {}", self.include.display()));
                }
                return Ok(Retained { revision, summary });
            }
        }
        Err(Problem::new(
            Code::Unresolved,
            format!(
                "no whole site of {release} for {}; looked for {}",
                self.component,
                looked.join(", ")
            ),
        ))
    }

    /// The files by this convention with their names; `None` when one of them has no copy.
    fn copies(
        &self,
        convention: Convention,
        release: &str,
        looked: &mut Vec<String>,
    ) -> Result<Option<(Files, Vec<String>)>, Problem> {
        let (mut found, mut sources) = (Files::new(), Vec::new());
        let mut whole = true;
        for name in &self.names {
            let (path, file) = (self.root.join(name), self.path_of(name)?);
            // Beside what a link leads to first: what lies in sites-enabled is served.
            let mut places = convention.copies_of(&file, release);
            let link = if file == path {
                None
            } else {
                places.extend(convention.copies_of(&path, release));
                Some(link::read(&path)?)
            };
            let mut copy = None;
            for place in &places {
                if let Some(state) = files::read(place)? {
                    copy = Some((place, state));
                    break;
                }
            }
            match copy {
                Some((place, state)) => {
                    sources.push(place.display().to_string());
                    let content = Content {
                        bytes: state.content,
                        mode: state.attributes.mode,
                        link,
                    };
                    found.insert(name.clone(), Some(content));
                }
                None => {
                    looked.extend(places.iter().map(|place| place.display().to_string()));
                    whole = false;
                }
            }
        }
        Ok(whole.then_some((found, sources)))
    }
}
