//! Texts for people.

/// "1 row", "3 rows".
pub fn count(n: impl Into<u64>, one: &str, many: &str) -> String {
    match n.into() {
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    }
}

/// The same of what is in memory.
pub fn count_of(n: usize, one: &str, many: &str) -> String {
    count(n as u64, one, many)
}
