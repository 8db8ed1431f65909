//! What a pipeline says of the release that it has deployed, as JSON on stdin.

use std::io::Read as _;

use rollback_proto::names::check_name;
use rollback_proto::problem::{Code, Problem};
use rollback_proto::v1::{ExpectedRevision, RecordReleaseRequest};
use serde::Deserialize;

use crate::output::problem::of_file;

/// More than this is not what it should be.
const MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    name: Option<String>,
    #[serde(default)]
    commit: String,
    #[serde(default)]
    notes: String,
    #[serde(default)]
    expected: Vec<Expected>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    #[serde(default)]
    host: String,
    #[serde(default)]
    component: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    digest: String,
}

pub fn read() -> Result<String, Problem> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(MAX)
        .read_to_string(&mut text)
        .map_err(|e| of_file("read the release from stdin", &e))?;
    Ok(text)
}

/// `name`: as it was given on the command line; it may stand there or in the document, or the same in both.
pub fn parse(text: &str, name: Option<&str>) -> Result<RecordReleaseRequest, Problem> {
    let bad = |message: String| {
        Problem::new(Code::BadRequest, message).remedy("rollbackctl release record --help shows an example")
    };
    // serde would take a list for the object's fields in their order.
    if text.trim_start().starts_with('[') {
        return Err(bad(
            "stdin: it is a list, and not an object like {\"name\": …}".to_owned()
        ));
    }
    let document: Document = serde_json::from_str(text).map_err(|e| bad(format!("stdin: {e}")))?;
    let name = match (name, document.name) {
        (Some(given), Some(named)) if given != named => {
            return Err(bad(format!("the command line says {given}, and stdin says {named:?}")));
        }
        (Some(name), _) => name.to_owned(),
        (None, Some(name)) => name,
        (None, None) => return Err(bad("neither the command line nor stdin names the release".to_owned())),
    };
    check_name("release", &name)?;
    let mut expected = Vec::with_capacity(document.expected.len());
    for Expected {
        host,
        component,
        version,
        digest,
    } in document.expected
    {
        for (what, name) in [("host", &host), ("component", &component)] {
            if !name.is_empty() {
                check_name(what, name)?;
            }
        }
        if [&host, &component, &version, &digest]
            .iter()
            .all(|field| field.is_empty())
        {
            return Err(bad("stdin: an entry of `expected` expects nothing".to_owned()));
        }
        expected.push(ExpectedRevision {
            host,
            component,
            version,
            digest,
        });
    }
    Ok(RecordReleaseRequest {
        name,
        commit: document.commit,
        notes: document.notes,
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ci_writes_is_read_and_what_it_misspells_is_refused() {
        let text = r#"{"name": "v3", "commit": "c0ffee", "expected": [{"component": "api", "version": "v3"}]}"#;
        let request = parse(text, None).expect("a release");
        assert_eq!((request.name.as_str(), request.commit.as_str()), ("v3", "c0ffee"));
        assert_eq!(request.expected.len(), 1);
        assert_eq!(request.expected[0].component, "api");
        assert_eq!(parse(text, Some("v3")), Ok(request));
        assert_eq!(parse("{}", Some("v3")).map(|r| r.name), Ok("v3".to_owned()));
        for (bad, why) in [
            ("", "stdin: EOF"),
            ("{}", "names the release"),
            (r#" ["v3", "c0ffee"]"#, "it is a list"),
            (r#"{"name": "v3", "comit": "c0ffee"}"#, "unknown field `comit`"),
            (
                r#"{"name": "v3", "expected": [{"componnent": "api"}]}"#,
                "unknown field `componnent`",
            ),
            (r#"{"name": "v3", "expected": [{}]}"#, "expects nothing"),
            (r#"{"name": "v3", "expected": [{"host": "../x"}]}"#, "host"),
            (r#"{"name": "-v3"}"#, "release"),
        ] {
            let problem = parse(bad, None).expect_err(bad);
            assert!(problem.message.contains(why), "{bad}: {problem}");
        }
        let other = parse(text, Some("v4")).expect_err("two names");
        assert!(other.message.contains("the command line says v4"), "{other}");
    }
}
