//! Taking secrets out of what is quoted: a line of a log or of a program's output may hold the value of a variable that
//! the program was given.

/// Values shorter than this are not secrets, and taking `1` or `true` out would make a message unreadable.
const SHORTEST: usize = 6;

/// Puts `[NAME]` in the place of each variable's value.
pub fn hide<'a>(mut text: String, variables: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut variables: Vec<_> = variables.filter(|(_, value)| value.len() >= SHORTEST).collect();
    // A value may be a part of another one.
    variables.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
    for (name, value) in variables {
        if text.contains(value) {
            text = text.replace(value, &format!("[{name}]"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::hide;

    #[test]
    fn longer_values_go_first_and_short_ones_stay() {
        let variables = [("A", "secret"), ("B", "secret-long"), ("C", "1")];
        let text = hide("1: secret-long and secret".into(), variables.into_iter());
        assert_eq!(text, "1: [B] and [A]");
    }
}
