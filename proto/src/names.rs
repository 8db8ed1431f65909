//! The allow-list for names that people or peers send: releases, hosts, components, versions, ids.
//!
//! One rule for all of them, so that a name that was accepted anywhere is safe as a part of a file name and as a
//! program's argument everywhere: 1 to 128 characters of `[A-Za-z0-9._+-]`, not beginning with `-` or `.`.

use crate::problem::{Code, Problem};

/// Longest accepted name, in characters.
pub const MAX_NAME: usize = 128;

/// Checks a name. `what` says what it names, for the message: "release", "host".
pub fn check_name(what: &str, name: &str) -> Result<(), Problem> {
    let bad = |why: String| {
        Err(Problem::new(
            Code::BadName,
            format!("{what} name {}: {why}", quoted(name)),
        ))
    };
    if name.is_empty() {
        return bad("it is empty".into());
    }
    if name.len() > MAX_NAME {
        return bad(format!("it has {} bytes, at most {MAX_NAME} are allowed", name.len()));
    }
    if name.starts_with(['-', '.']) {
        return bad("it begins with '-' or '.'".into());
    }
    match name
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-')))
    {
        Some(c) => bad(format!("it has the character {c:?}; allowed are A-Z a-z 0-9 . _ + -")),
        None => Ok(()),
    }
}

/// The beginning of a name that may be hostile, safe to print.
fn quoted(name: &str) -> String {
    let shown: String = name.chars().take(40).collect();
    let dots = if shown.len() < name.len() { "…" } else { "" };
    format!("{shown:?}{dots}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_releases_and_hosts_are_called() {
        for good in ["v2.9.0", "app-1", "2026.11.21+build.7", "a", &"x".repeat(128)] {
            assert!(check_name("release", good).is_ok(), "{good}");
        }
    }

    #[test]
    fn refuses_what_could_be_an_option_a_path_or_a_flood() {
        let long = "x".repeat(64 * 1024);
        for bad in [
            "",
            "--upload-pack=x",
            "../../etc",
            ".hidden",
            "a/b",
            "v1;rm",
            "a b",
            "ä",
            "a\0b",
            &long,
        ] {
            let problem = check_name("release", bad).expect_err(&bad[..bad.len().min(20)]);
            assert_eq!(problem.code, Code::BadName);
            assert!(problem.message.len() < 300, "the message must not echo a flood");
        }
    }
}
