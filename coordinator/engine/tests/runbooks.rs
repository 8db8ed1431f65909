//! What a runbook may say, and what is said back when it says something else.

use rollback_engine::plan::{DatabaseChoice, OnFailure, PhaseName};
use rollback_engine::release::{Action, Role};
use rollback_engine::runbook::{Runbook, RunbookError, RunbookFinding, Unreachable};

fn with(what: &str, instead: &str) -> Result<Runbook, RunbookError> {
    let text = Runbook::builtin_text("default").expect("a built-in");
    assert!(text.contains(what), "the test replaces something that is there: {what}");
    Runbook::parse(&text.replacen(what, instead, 1))
}

#[test]
fn built_in_runbooks_are_sound() {
    for name in Runbook::builtin_names() {
        let runbook = Runbook::builtin(name).expect("a sound built-in");
        assert_eq!(runbook.name, name);
        let text = toml::to_string(&runbook).expect("a runbook is TOML");
        let again = Runbook::parse(&text).expect("its own output");
        assert_eq!(again.at_version(runbook.version), runbook);
    }
    let default = Runbook::builtin("default").expect("a sound built-in");
    assert_eq!(default.unreachable, Unreachable::Block);
    let emergency = Runbook::builtin("emergency").expect("a sound built-in");
    assert_eq!(emergency.unreachable, Unreachable::SkipAll);
    assert_eq!(default.timeout_ms(Action::Stage, Role::App), 15 * 60 * 1000);
    assert_eq!(default.timeout_ms(Action::Stage, Role::Database), 60 * 60 * 1000);
    assert_eq!(default.label(), "default@3");
    for name in ["default", "emergency", "schema-only"] {
        let runbook = Runbook::builtin(name).expect("a sound built-in");
        assert_eq!(runbook.database, DatabaseChoice::Auto, "{name} loses nothing");
    }
    assert_eq!(default.on_failure(PhaseName::Finish), OnFailure::Continue);
}

#[test]
fn mistakes_are_named_with_what_to_write_instead() {
    let cases = [
        (
            r#"batches = ["1", "100%"]"#,
            r#"batches = ["some"]"#,
            r#"write a count ("3") or a share ("25%")"#,
        ),
        (
            r#"batches = ["1", "100%"]"#,
            r#"batches = ["0"]"#,
            "a batch of no hosts",
        ),
        (
            r#"batches = ["1", "100%"]"#,
            r#"batches = ["101%"]"#,
            "not a batch size",
        ),
        (r#"batches = ["1", "100%"]"#, "batches = []", "give at least one batch"),
        (r#"stage = "15m""#, r#"stage = "15""#, "write 500ms, 30s, 15m or 1h"),
        (r#"stage = "15m""#, r#"stage = "0s""#, "timeouts.stage"),
        (r#"stage = "1h""#, r#"stage = "0s""#, "timeouts.database.stage"),
        (r#"database = "auto""#, r#"database = "drop""#, "unknown variant `drop`"),
        (r#"["database", "config", "app", "proxy"]"#, "[]", "at least one of"),
        (
            r#"["database", "config", "app", "proxy"]"#,
            r#"["app"]"#,
            r#"write "keep""#,
        ),
        (r#"stage = "15m""#, r#"stagee = "15m""#, "did you mean `stage`?"),
        (r#"stage = "undo""#, r#"stage = "continue""#, "on_failure.stage"),
        (r#"protect = "undo""#, r#"protect = "continue""#, "not backed up"),
        (r#"app = "undo""#, r#"app = "retry""#, "unknown variant `retry`"),
        (r#"app = "undo""#, r#"app = "pasue""#, r#"did you mean "pause"?"#),
        (r#"name = "default""#, r#"name = "a b""#, "use 1 to 128 of"),
        (
            r#"unreachable = "block""#,
            r#"unreachable = "ignore""#,
            "unknown variant `ignore`",
        ),
        (r#"name = "default""#, "version = 4\nname = \"x\"", "leave it out"),
        (
            r#"hold = true"#,
            "app = \"undo\"\nhold = true",
            "it belongs below [on_failure]",
        ),
        (
            "after_batch = true",
            "after_batch = true\nhold = true",
            "it belongs to the top of the file",
        ),
        ("[checks]", "[checsk]", "did you mean `checks`?"),
        (
            r#"approve_within = "15m""#,
            r#"approve_within = "0s""#,
            "nobody could approve",
        ),
    ];
    for (what, instead, expected) in cases {
        let message = with(what, instead).expect_err("a mistake").to_string();
        let text = Runbook::builtin_text("default")
            .expect("a built-in")
            .replacen(what, instead, 1);
        let findings = Runbook::lint(&text).findings;
        let said: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|f| f.contains(expected)), "{instead}: {said:?}");
        assert!(message.starts_with(&said[0]), "{instead}: the first is told: {message}");
        let at = text[..text.find(instead).expect("was put there")].lines().count();
        let near = |f: &RunbookFinding| usize::try_from(f.line).is_ok_and(|line| line.abs_diff(at) <= 4);
        assert!(findings.iter().any(near), "{instead}: around line {at}: {findings:?}");
    }
}

/// Every key of the example is required, at every level: nothing is inherited unseen.
#[test]
fn no_key_can_be_left_out() {
    let text = Runbook::builtin_text("default").expect("a built-in");
    let keys = text.lines().filter(|l| l.contains(" = ") && !l.starts_with('#'));
    let mut count = 0;
    for line in keys {
        let without = text.replacen(&format!("\n{line}\n"), "\n", 1);
        let key = line.split(' ').next().expect("a key");
        let reading = Runbook::lint(&without);
        assert!(reading.runbook.is_none(), "{key}");
        let [finding] = &reading.findings[..] else {
            panic!("{key}: {:?}", reading.findings)
        };
        assert!(
            finding.key.ends_with(key) && finding.message == "is missing",
            "{finding}"
        );
        assert_eq!(finding.hint, format!("add it; default.toml has: {line}"));
        count += 1;
    }
    assert!(count > 30, "{count} keys were tried");
}

/// All mistakes at once, in the order of the text, with line, column, key and hint.
#[test]
fn one_mistake_does_not_hide_the_next() {
    let text = r#"# Web servers only.
name = "web servers"
version = 7
database = "atuo"
roles = ["app", "web"]
services = ["api", 3]
unreachable = { skip = 2, more = 1 }
batches = ["1", "150%"]
batches_when_quiesced = ["100%"]
max_unavailable = "100%"
hold = "yes"

[check]
after_batch = true

[consent]
second_person = "sometimes"
approve_within = "15m"
converge = "manual"

[timeouts]
prepare = "30s"
stage = 15
discard = "60s"
snapshot = "15m"
drain = "30s"
resume = "30s"
stop = "1s"
start = "120s"
switch = "5m"
verify = "0s"
finish = "60s"
database = "1h"

[on_failure]
preflight = "hold"
stage = "undo"
protect = "continue"
quiesce = "undo"
database = "undo"
app = "continue"
proxy = "undo"
"#;
    insta::assert_snapshot!("all_mistakes", told(text));
}

#[test]
fn what_is_no_toml_is_said_with_its_lines() {
    insta::assert_snapshot!("no_toml", told("name = \"web\nroles = [\"app\"\n[timeouts\n"));
    insta::assert_snapshot!("twice", told("name = \"web\"\nname = \"api\"\n"));
    assert!(Runbook::lint("").runbook.is_none());
}

/// Legal, and rarely what is wanted. The built-in ones have nothing of it.
#[test]
fn what_is_unwise_is_a_warning() {
    for name in Runbook::builtin_names() {
        let reading = Runbook::lint(Runbook::builtin_text(name).expect("a built-in"));
        assert_eq!(reading.findings, vec![], "{name}");
    }
    let default = Runbook::builtin_text("default").expect("a built-in");
    let unwise = [
        ("after_batch = true", "after_batch = false"),
        (r#"stop = "60s""#, r#"stop = "500ms""#),
        (r#"preflight = "undo""#, r#"preflight = "pause""#),
        (r#"app = "undo""#, r#"app = "continue""#),
        (r#"second_person = "never""#, r#"second_person = "always""#),
        (r#"approve_within = "15m""#, r#"approve_within = "10s""#),
    ];
    let text = unwise.iter().fold(default.to_owned(), |text, (what, instead)| {
        assert!(text.contains(what), "{what}");
        text.replacen(what, instead, 1)
    });
    let reading = Runbook::lint(&text);
    assert!(reading.runbook.is_some());
    // Its lines are those of a file that changes; others are looked at above.
    let said = reading.findings.into_iter().map(|f| RunbookFinding { line: 0, ..f });
    let said: Vec<String> = said.map(|f| format!("{:?} {f}", f.severity)).collect();
    insta::assert_snapshot!("warnings", said.join("\n"));
}

fn told(text: &str) -> String {
    let findings = Runbook::lint(text).findings;
    let line = |f: &RunbookFinding| format!("{:?} {f}", f.severity);
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn allowed_variations() {
    let skip = with(r#"unreachable = "block""#, "unreachable = { skip = 2 }").expect("a runbook");
    assert_eq!(skip.unreachable, Unreachable::Skip(2));
    let go_on = with(r#"app = "undo""#, r#"app = "continue""#).expect("a runbook");
    assert_eq!(go_on.on_failure(PhaseName::App), OnFailure::Continue);
}

#[test]
fn unknown_built_in_lists_those_that_there_are() {
    let error = Runbook::builtin("fast").expect_err("no such runbook").to_string();
    assert_eq!(
        error,
        "there is no built-in runbook `fast`; there are: default, emergency, schema-only, app-only, restore"
    );
}
