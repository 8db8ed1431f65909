//! What a statement of a plain dump is about, as far as that decides whether and how it is run.
//!
//! Statements are judged by their words alone, which is enough for what `pg_dump` writes. It is no defence against SQL that
//! hides what it does.

use super::script::Survey;

impl Survey {
    /// Takes in what a statement says of what the dump needs.
    pub fn note(&mut self, sql: &str) {
        if !matches!(Words::of(sql, 1).first(), "CREATE" | "ALTER" | "GRANT" | "SET") {
            return;
        }
        let words = Words::of(sql, usize::MAX);
        match words.first() {
            "CREATE" if words.is(1, "EXTENSION") => {
                // CREATE EXTENSION IF NOT EXISTS name
                let at = if words.is(2, "IF") { 5 } else { 2 };
                self.extensions.extend(words.name(at));
            }
            "ALTER" if words.is_owner() => self.roles.extend(words.name(words.len() - 1)),
            "ALTER" if words.is(1, "DEFAULT") => {
                // ALTER DEFAULT PRIVILEGES FOR ROLE name … TO name
                if let Some(at) = words.position("ROLE") {
                    self.roles.extend(words.name(at + 1));
                }
                self.roles.extend(words.after_last("TO"));
            }
            "GRANT" => self.roles.extend(words.after_last("TO")),
            "SET" if words.is(1, "SESSION") && words.is(2, "AUTHORIZATION") => self.roles.extend(words.name(3)),
            _ => {}
        }
        self.roles
            .retain(|role| !["PUBLIC", "DEFAULT"].iter().any(|no| role.eq_ignore_ascii_case(no)));
    }
}

/// It says to whom something belongs, or who may do what with it. A copy that is only looked at needs none of it; and
/// comments on extensions only their owner may write.
pub(super) fn is_about_owners(sql: &str) -> bool {
    if !matches!(
        Words::of(sql, 1).first(),
        "GRANT" | "REVOKE" | "SET" | "RESET" | "ALTER" | "COMMENT"
    ) {
        return false;
    }
    let words = Words::of(sql, usize::MAX);
    match words.first() {
        "GRANT" | "REVOKE" => true,
        "SET" | "RESET" => words.is(1, "SESSION") && words.is(2, "AUTHORIZATION"),
        "ALTER" => words.is_owner() || words.is(1, "DEFAULT") && words.is(2, "PRIVILEGES"),
        "COMMENT" => words.is(2, "EXTENSION"),
        _ => false,
    }
}

/// It makes a subscription, or says something of one: no copy has any.
pub(super) fn is_about_subscriptions(sql: &str) -> bool {
    let words = Words::of(sql, 4);
    match words.first() {
        "CREATE" | "ALTER" | "DROP" => words.is(1, "SUBSCRIPTION"),
        "COMMENT" => words.is(2, "SUBSCRIPTION"),
        _ => false,
    }
}

/// The first two words: what a message may say of a statement.
pub(super) fn kind_of(sql: &str) -> String {
    let words = Words::of(sql, 2);
    words.0.iter().map(|w| w.text.as_str()).collect::<Vec<_>>().join(" ")
}

/// `public.users` of `COPY public.users (id, name) FROM stdin`.
pub(super) fn copied_table(sql: &str) -> String {
    let target = sql.trim_start().get("COPY".len()..).unwrap_or_default().trim_start();
    let end = target.find([' ', '(']).unwrap_or(target.len());
    target[..end].to_owned()
}

/// Sets a parameter, and nothing more.
pub(super) fn is_setting(sql: &str) -> bool {
    let words = Words::of(sql, 2);
    words.first() == "SET" && !words.is(1, "SESSION")
}

/// The words of a statement: keywords in capitals, names as they are meant. Texts and numbers count as words, too.
pub(super) struct Words(Vec<Word>);

struct Word {
    text: String,
    quoted: bool,
}

impl Words {
    pub fn of(sql: &str, most: usize) -> Self {
        let mut words = Vec::new();
        let mut rest = sql.trim_start();
        while let Some(c) = rest.chars().next() {
            if words.len() >= most {
                break;
            }
            if c == '"' || c == '\'' {
                let (text, after) = quoted(&rest[1..], c);
                words.push(Word { text, quoted: true });
                rest = after;
            } else if is_name(c) {
                let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                words.push(Word {
                    text: rest[..end].to_ascii_uppercase(),
                    quoted: false,
                });
                rest = &rest[end..];
            } else {
                rest = &rest[c.len_utf8()..];
            }
        }
        Self(words)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn first(&self) -> &str {
        self.0.first().filter(|w| !w.quoted).map_or("", |w| &w.text)
    }

    pub fn is(&self, at: usize, keyword: &str) -> bool {
        self.0.get(at).is_some_and(|w| !w.quoted && w.text == keyword)
    }

    fn position(&self, keyword: &str) -> Option<usize> {
        (0..self.len()).find(|at| self.is(*at, keyword))
    }

    /// `ALTER … OWNER TO name`
    fn is_owner(&self) -> bool {
        self.len() >= 5 && self.is(self.len() - 3, "OWNER") && self.is(self.len() - 2, "TO")
    }

    /// A name without quotes is in small letters.
    fn name(&self, at: usize) -> Option<String> {
        self.0.get(at).map(|w| {
            if w.quoted {
                w.text.clone()
            } else {
                w.text.to_ascii_lowercase()
            }
        })
    }

    fn after_last(&self, keyword: &str) -> Option<String> {
        let at = (0..self.len()).rev().find(|at| self.is(*at, keyword))?;
        self.name(at + 1)
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// The text up to the closing quote, and what follows it.
fn quoted(text: &str, quote: char) -> (String, &str) {
    let mut found = String::new();
    let mut rest = text;
    loop {
        let Some(at) = rest.find(quote) else {
            found.push_str(rest);
            return (found, "");
        };
        found.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if !rest.starts_with(quote) {
            return (found, rest);
        }
        found.push(quote);
        rest = &rest[1..];
    }
}

/// What statements that reach beyond the one database are about.
const BEYOND: [&str; 7] = ["DATABASE", "ROLE", "USER", "GROUP", "TABLESPACE", "SYSTEM", "DATABASES"];

/// What a statement is about that is not in the one database.
pub(super) fn beyond(words: &Words, sql: &str) -> Option<String> {
    let about = |at: usize| BEYOND.iter().any(|what| words.is(at, what));
    let said = |count: usize| {
        let said: Vec<&str> = words.0.iter().take(count).map(|w| w.text.as_str()).collect();
        Some(said.join(" "))
    };
    match words.first() {
        // CREATE USER MAPPING is about a foreign server, in this database.
        "CREATE" | "ALTER" | "DROP" if about(1) && !words.is(2, "MAPPING") => said(2),
        "COMMENT" if about(2) => said(3),
        "SECURITY" if about(3) => said(4),
        "REASSIGN" => said(1),
        "GRANT" | "REVOKE" => {
            let words = Words::of(sql, usize::MAX);
            let on = words.position("ON");
            match on {
                Some(on) if words.is(on + 1, "DATABASE") || words.is(on + 1, "TABLESPACE") => {
                    Some(format!("{} ON DATABASE", words.first()))
                }
                Some(_) => None,
                // GRANT role TO role
                None => Some(format!("{} of a role", words.first())),
            }
        }
        _ => None,
    }
}
