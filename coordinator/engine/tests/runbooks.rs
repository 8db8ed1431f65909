//! What a runbook may say, and what is said back when it says something else.

use std::error::Error;

use rollback_engine::plan::{DatabaseChoice, OnFailure, PhaseName};
use rollback_engine::release::{Action, Role};
use rollback_engine::runbook::{Runbook, RunbookError, Unreachable};

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
        assert_eq!(Runbook::parse(&text).expect("its own output"), runbook);
    }
    let default = Runbook::builtin("default").expect("a sound built-in");
    assert_eq!(default.unreachable, Unreachable::Block);
    let emergency = Runbook::builtin("emergency").expect("a sound built-in");
    assert_eq!(emergency.unreachable, Unreachable::SkipAll);
    assert_eq!(default.timeout_ms(Action::Stage, Role::App), 15 * 60 * 1000);
    assert_eq!(default.timeout_ms(Action::Stage, Role::Database), 60 * 60 * 1000);
    assert_eq!(default.label(), "default@2");
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
        (r#"database = "auto""#, "", "missing field `database`"),
        (r#"database = "auto""#, r#"database = "drop""#, "unknown variant `drop`"),
        (r#"["database", "config", "app", "proxy"]"#, "[]", "at least one of"),
        (
            r#"["database", "config", "app", "proxy"]"#,
            r#"["app"]"#,
            r#"write "keep""#,
        ),
        (r#"stage = "15m""#, r#"stagee = "15m""#, "unknown field `stagee`"),
        (r#"stage = "undo""#, r#"stage = "continue""#, "on_failure.stage"),
        (r#"protect = "undo""#, r#"protect = "continue""#, "not backed up"),
        (r#"app = "undo""#, r#"app = "retry""#, "unknown variant `retry`"),
        (r#"app = "undo""#, "", "missing field `app`"),
        (r#"name = "default""#, r#"name = "a b""#, "`name`"),
        (
            r#"unreachable = "block""#,
            r#"unreachable = "ignore""#,
            "unknown variant `ignore`",
        ),
    ];
    for (what, instead, expected) in cases {
        let error = with(what, instead).expect_err("a mistake");
        let message = format!(
            "{error}: {}",
            error.source().map(ToString::to_string).unwrap_or_default()
        );
        assert!(message.contains(expected), "{instead}: {message}");
    }
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
