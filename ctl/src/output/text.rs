//! How texts, digests, times and durations are written. Times are always UTC: two operators on two continents must be
//! able to compare what they see with the hosts' logs.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rollback_proto::v1::Revision;

/// Shown where there is nothing.
pub const NONE: &str = "-";

/// One line that is safe to print: what hosts send may hold control characters that would move the cursor or rewrite
/// what stands above, and characters that reverse the order of reading.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
                ' '
            } else {
                c
            }
        })
        .collect::<String>()
        .trim()
        .to_owned()
}

/// [`clean`], or "-" when nothing is left.
pub fn or_none(text: &str) -> String {
    let text = clean(text);
    if text.is_empty() { NONE.to_owned() } else { text }
}

/// The beginning of a digest: enough to compare by eye.
pub fn short(digest: &str) -> String {
    let digest = clean(digest);
    let hex = digest.rsplit(':').next().unwrap_or(&digest);
    hex.chars().take(12).collect()
}

/// "v2.9.0 (3f2a91bc04de)".
pub fn revision(revision: Option<&Revision>) -> String {
    match revision {
        None => NONE.to_owned(),
        Some(r) if r.version.is_empty() => short(&r.digest),
        Some(r) if r.digest.is_empty() => clean(&r.version),
        Some(r) => format!("{} ({})", clean(&r.version), short(&r.digest)),
    }
}

/// A change as people write it: the version alone when it says enough, digests when versions are the same or missing.
pub fn change(from: Option<&Revision>, to: Option<&Revision>) -> (String, String) {
    let told_by_version = match (from, to) {
        (Some(from), Some(to)) => from.version != to.version && !from.version.is_empty() && !to.version.is_empty(),
        (None, _) | (_, None) => false,
    };
    let write = |r: Option<&Revision>| match r {
        Some(r) if told_by_version => clean(&r.version),
        other => revision(other),
    };
    (write(from), write(to))
}

pub fn timestamp(at: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    at.and_then(|t| Timestamp::new(t.seconds, t.nanos).ok())
}

/// "2026-11-21 03:12:44Z".
pub fn stamp(at: Option<Timestamp>) -> String {
    at.map_or_else(|| NONE.to_owned(), |t| t.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

/// "2026-11-21T03:12:44.120Z": for lines of a log.
pub fn stamp_ms(at: Option<Timestamp>) -> String {
    at.map_or_else(|| NONE.to_owned(), |t| t.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

/// Milliseconds from `start` to `end`; 0 when a clock went back.
pub fn millis(start: Timestamp, end: Timestamp) -> u64 {
    u64::try_from(end.duration_since(start).as_millis()).unwrap_or(0)
}

/// "412 ms", "12.3 s", "2 min 05 s", "1 h 02 min", "3 d 4 h".
pub fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", s, ms % 1000 / 100),
        60_000..3_600_000 => format!("{} min {:02} s", s / 60, s % 60),
        3_600_000..86_400_000 => format!("{} h {:02} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

/// A duration of the wire in milliseconds; 0 when it is negative.
pub fn span(duration: &prost_types::Duration) -> u64 {
    let ms = duration
        .seconds
        .saturating_mul(1000)
        .saturating_add(i64::from(duration.nanos) / 1_000_000);
    u64::try_from(ms).unwrap_or(0)
}

/// "1 host", "3 hosts".
pub fn count(n: usize, one: &str, many: &str) -> String {
    if n == 1 {
        format!("1 {one}")
    } else {
        format!("{n} {many}")
    }
}

/// "app-1, app-2 and 7 more".
pub fn name_some<'a>(names: impl IntoIterator<Item = &'a str>, at_most: usize) -> String {
    let names: BTreeSet<&str> = names.into_iter().collect();
    let shown: Vec<String> = names.iter().take(at_most).map(|n| clean(n)).collect();
    match names.len().saturating_sub(at_most) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// "app-1/api", or the host alone.
pub fn target(host: &str, component: &str) -> String {
    match (host.is_empty(), component.is_empty()) {
        (true, _) => clean(component),
        (false, true) => clean(host),
        (false, false) => format!("{}/{}", clean(host), clean(component)),
    }
}

/// "coord-1" of "coord-1/0193a5c2-…": a leader's id is another one for every start of its process.
pub fn leader_name(id: &str) -> String {
    clean(id.split('/').next().unwrap_or(id))
}

/// "proxy-1/site (app-1/api)": one backend of a proxy; or the component as a whole.
pub fn subject(host: &str, component: &str, backend: &str) -> String {
    match backend {
        "" => target(host, component),
        backend => format!("{} ({})", target(host, component), clean(backend)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_speech() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (59_999, "59.9 s"),
            (125_000, "2 min 05 s"),
            (3_725_000, "1 h 02 min"),
            (274_000_000, "3 d 4 h"),
        ] {
            assert_eq!(duration(ms), text);
        }
    }

    #[test]
    fn hosts_cannot_move_the_cursor() {
        assert_eq!(clean("ok\u{1b}[2Jgone\r\nnext\u{202e}txt"), "ok [2Jgone  next txt");
    }

    #[test]
    fn digests_are_shortened_without_their_algorithm() {
        assert_eq!(short("sha256:3f2a91bc04de55aa"), "3f2a91bc04de");
    }
}
