//! `docs/errors.md` lists every code that an operator can see, with its meaning and what to do. It is generated from
//! `proto/src/problem.rs`; after a change there: `UPDATE_DOCS=1 cargo test -p rollbackctl --test errors_page`.

use std::collections::BTreeMap;
use std::path::Path;

use rollback_proto::problem::Code;

const SOURCE: &str = include_str!("../../proto/src/problem.rs");

const HEAD: &str = "\
# Errors

Every error that an operator can see has a code that never changes its meaning. It is printed as

```text
error RB0203: what happened, and where
  what to do: the next step
```

and stands in JSON output as `error.code`. The remedy printed with an error is often more exact than the general one
listed here. Numbers are never reused.

<!-- Generated from proto/src/problem.rs: UPDATE_DOCS=1 cargo test -p rollbackctl --test errors_page -->
";

/// Hundreds by subject, as `problem.rs` says.
const SUBJECTS: [(&str, &str); 9] = [
    ("00", "Asking"),
    ("01", "Identity"),
    ("02", "Releases and plans"),
    ("03", "Hosts"),
    ("04", "Steps"),
    ("05", "Files and processes"),
    ("06", "nginx"),
    ("07", "Databases"),
    ("09", "The programs themselves"),
];

/// The doc comment above each code, by its number.
fn meanings() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut comment = Vec::new();
    for line in SOURCE.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            comment.push(text);
            continue;
        }
        let number = line
            .split_once(" = \"")
            .and_then(|(_, rest)| rest.split_once('"'))
            .map(|(number, _)| number);
        if let Some(number) = number.filter(|n| n.len() == 4 && n.bytes().all(|b| b.is_ascii_digit())) {
            found.insert(format!("RB{number}"), comment.join(" "));
        }
        comment.clear();
    }
    found
}

fn page() -> String {
    let meanings = meanings();
    let mut page = HEAD.to_owned();
    let mut listed = 0;
    for (hundred, subject) in SUBJECTS {
        page.push_str(&format!(
            "\n## RB{hundred}xx: {subject}\n\n| code | meaning | what to do |\n|---|---|---|\n"
        ));
        for code in Code::ALL.iter().filter(|c| c.id()[2..4] == *hundred) {
            let meaning = meanings
                .get(code.id())
                .unwrap_or_else(|| panic!("{code} has no doc comment"));
            assert!(!meaning.is_empty(), "{code} has no doc comment");
            page.push_str(&format!("| `{code}` | {} | {} |\n", cell(meaning), cell(code.remedy())));
            listed += 1;
        }
    }
    assert_eq!(listed, Code::ALL.len(), "a code belongs to no subject of the page");
    page
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[test]
fn the_page_lists_every_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().expect("it is in docs/")).expect("make docs/");
        std::fs::write(&path, &page).expect("write docs/errors.md");
    }
    let written = std::fs::read_to_string(&path).expect("read docs/errors.md");
    let differs = written
        .lines()
        .zip(page.lines())
        .find(|(written, page)| written != page);
    assert!(
        written == page,
        "run: UPDATE_DOCS=1 cargo test -p rollbackctl --test errors_page; it begins with {differs:?}"
    );
}
