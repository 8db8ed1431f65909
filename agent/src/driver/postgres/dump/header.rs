//! What a dump says of itself: which database it was made of, by which version, and when.

use std::io::Read as _;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use rollback_proto::problem::{Code, Problem};

use super::script::{Survey, survey};
use super::{Dump, DumpFormat, open_script};
use crate::driver::postgres::staging::file_problem;
use crate::driver::postgres::tools::Tools;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::driver::postgres) struct Header {
    pub database: Option<String>,
    /// As `server_version_num`.
    pub server_version: Option<u32>,
    pub created: Option<Timestamp>,
}

impl Header {
    /// Also what the dump needs. A damaged dump may say so here already, and may not.
    pub async fn read(tools: &Tools, dump: &Dump, limit: Duration) -> Result<(Self, Survey), Problem> {
        match dump.format {
            DumpFormat::Custom | DumpFormat::Directory => {
                let said = |e: crate::driver::postgres::tools::ToolError| {
                    e.problem(Code::BackupUnproven, format!("read {}", dump.path.display()))
                };
                let list = tools.contents(&dump.path, limit).await.map_err(said)?;
                let script = tools.schema_script(&dump.path, limit).await.map_err(said)?;
                Ok((Self::parse(&list, "; "), Survey::of_text(&script)?))
            }
            DumpFormat::Plain => {
                let path = dump.path.clone();
                let work = move || {
                    let mut head = Vec::new();
                    open_script(&path)
                        .and_then(|input| input.take(8 * 1024).read_to_end(&mut head))
                        .map_err(|e| file_problem(format!("read {}", path.display()), &e))?;
                    Ok((Self::parse(&String::from_utf8_lossy(&head), "-- "), survey(&path)?))
                };
                match tokio::task::spawn_blocking(work).await {
                    Ok(found) => found,
                    Err(e) => Err(Problem::from_error(Code::Internal, "read a dump", &e)),
                }
            }
        }
    }

    fn parse(text: &str, comment: &str) -> Self {
        let mut header = Self::default();
        for line in text.lines() {
            let Some(line) = line.strip_prefix(comment.trim_end()) else {
                continue;
            };
            let line = line.trim();
            if let Some(at) = ["Archive created at ", "Started on "]
                .iter()
                .find_map(|p| line.strip_prefix(p))
            {
                header.created = local_time(at);
            } else if let Some(name) = line.strip_prefix("dbname: ") {
                header.database = Some(name.to_owned());
            } else if let Some(version) = ["Dumped from database version: ", "Dumped from database version "]
                .iter()
                .find_map(|p| line.strip_prefix(p))
            {
                header.server_version = version_num(version);
            }
        }
        header
    }
}

/// `2026-11-22 05:02:03 CET`: the clock of the host that made the dump. Its zone is an abbreviation, which names no zone
/// for sure, and in a custom dump only this host's own; it is taken for this host's.
fn local_time(text: &str) -> Option<Timestamp> {
    let clock: DateTime = text.get(..19)?.parse().ok()?;
    let zone = match text.get(19..).unwrap_or_default().trim() {
        "UTC" | "GMT" => TimeZone::UTC,
        _ => TimeZone::system(),
    };
    clock.to_zoned(zone).ok().map(|zoned| zoned.timestamp())
}

/// `15.14 (Debian …)` is 150014, `9.6.24` is 90624.
fn version_num(text: &str) -> Option<u32> {
    let numbers: Vec<u32> = text
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next()?
        .split('.')
        .map_while(|n| n.parse().ok())
        .collect();
    match numbers[..] {
        [major, minor, patch] if major < 10 => Some(major * 10_000 + minor * 100 + patch),
        [major, minor, ..] => Some(major * 10_000 + minor),
        [major] => Some(major * 10_000),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_both_kinds_are_read() {
        let list = ";\n; Archive created at 2026-11-22 05:02:03 UTC\n;     dbname: shop\n;     TOC Entries: 12\n\
                    ;     Dumped from database version: 15.14 (Debian 15.14-0+deb12u1)\n;\n215; 1259 1 TABLE public t plain\n";
        let header = Header::parse(list, "; ");
        assert_eq!(header.database.as_deref(), Some("shop"));
        assert_eq!(header.server_version, Some(150_014));
        assert_eq!(header.created, "2026-11-22T05:02:03Z".parse().ok());
        let script = "--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version 9.6.24\n\nSET x = 0;\n";
        let header = Header::parse(script, "-- ");
        assert_eq!((header.server_version, header.created), (Some(90_624), None));
    }
}
