//! Lists of SHA-256 sums, as `sha256sum` writes them: beside an archive (`v2.9.0.tar.gz.sha256`), and for the files of a
//! release (`SHA256SUMS` or `MANIFEST.sha256`, at its top or beside its archive).

use std::collections::BTreeMap;

use crate::driver::release_dir::manifest::{Entry, Manifest};

/// Names of lists for the files of a release.
pub const LISTS: [&str; 2] = ["MANIFEST.sha256", "SHA256SUMS"];

/// Could this entry be a list at the top of a release? Which top it is, is known at the end.
pub(super) fn is_list(name: &str) -> bool {
    let name = name.trim_start_matches("./");
    let file = name.split_once('/').map_or(name, |(_, file)| file);
    LISTS.contains(&file) || LISTS.contains(&name)
}

/// One line for each file, by path. The error says which line is not of the form.
fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut sums = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = || format!("line {} is not of the form of sha256sum", number + 1);
        // A name with a backslash or a line break in it is written with escapes; no release needs one.
        let (sum, name) = line.split_once([' ', '\t']).ok_or_else(bad)?;
        let name = name.trim_start().trim_start_matches('*');
        let name = name.strip_prefix("./").unwrap_or(name);
        if !is_sum(sum) || name.is_empty() {
            return Err(bad());
        }
        if let Some(other) = sums.insert(name.to_owned(), sum.to_ascii_lowercase())
            && other != sum.to_ascii_lowercase()
        {
            return Err(format!("line {} names a file again, with another sum", number + 1));
        }
    }
    Ok(sums)
}

fn is_sum(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The sum of the file `name` in a list that stands beside it. The list may be that sum alone.
pub fn expected_of(text: &str, name: &str) -> Result<String, String> {
    let alone = text.trim();
    if is_sum(alone) {
        return Ok(alone.to_ascii_lowercase());
    }
    let sums = parse(text)?;
    let file_name = |path: &str| path.rsplit('/').next() == Some(name);
    let mut found = sums.iter().filter(|(path, _)| file_name(path)).map(|(_, sum)| sum);
    match (found.next(), found.next()) {
        (Some(sum), None) => Ok(sum.clone()),
        (None, _) => Err(format!("it has no line for {name}")),
        (Some(_), Some(_)) => Err(format!("it has several lines for {name}")),
    }
}

/// Checks each listed file of a release. Says how many there are, and how many files are not listed.
pub fn check(list: &str, text: &[u8], manifest: &Manifest, excluded: &dyn Fn(&str) -> bool) -> Result<String, String> {
    let text = std::str::from_utf8(text).map_err(|_| format!("{list} is not UTF-8"))?;
    let mut sums = parse(text).map_err(|why| format!("{list}: {why}"))?;
    sums.retain(|name, _| !excluded(name));
    for (name, sum) in &sums {
        match manifest.entries.get(name) {
            Some(Entry::File { sha256, .. }) if sha256 == sum => {}
            Some(Entry::File { .. }) => return Err(format!("{name} differs from its sum in {list}")),
            Some(Entry::Directory { .. } | Entry::Link { .. }) | None => {
                return Err(format!("{name} is listed in {list} and is no file of the release"));
            }
        }
    }
    if sums.is_empty() {
        return Err(format!("{list} lists nothing"));
    }
    let listed_itself = usize::from(manifest.entries.contains_key(list) && !sums.contains_key(list));
    let others = manifest.files().saturating_sub(sums.len() + listed_itself);
    Ok(match others {
        0 => format!("{} files checked against {list}", sums.len()),
        others => format!("{} files checked against {list}, {others} are not listed", sums.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_sha256sum_writes() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let list = format!("{a}  ./x.tar.gz\n{b} *dir/y.tar.gz\n");
        assert_eq!(expected_of(&list, "x.tar.gz"), Ok(a.clone()));
        assert_eq!(expected_of(&list, "y.tar.gz"), Ok(b));
        assert_eq!(expected_of(&format!("{}\n", a.to_uppercase()), "z"), Ok(a.clone()));
        for bad in [
            String::new(),
            "x".into(),
            format!("{a}  other"),
            format!("{a}  p/z\n{a}  q/z"),
        ] {
            assert!(expected_of(&bad, "z").is_err(), "{bad}");
        }
    }
}
