//! What the hosts are like in fact, and whether that is what a rollback says of itself.

use anyhow::Result;
use serde_json::Value;

use crate::ctl::Answer;
use crate::deployed::Deployed as _;
use crate::deployed::release::ReleaseApp;
use crate::facts::curl;
use crate::nginx::Nginx;
use crate::zekka::Version;

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody was killed: the process did not come to the point.
    Missed,
    Verified,
    /// Back at the origin, and why.
    Undone(String),
    /// And what it is that nobody knows.
    Held(String),
    Wrong(String),
}

impl Verdict {
    pub fn describe(&self) -> String {
        match self {
            Verdict::Missed => "not passed".to_owned(),
            Verdict::Verified => "verified".to_owned(),
            Verdict::Undone(why) => format!("undone: {why}"),
            Verdict::Held(why) => format!("held: {why}"),
            Verdict::Wrong(why) => format!("WRONG: {why}"),
        }
    }
}

/// What is not as it must be when this version, and nothing else, is live. Empty: all is well.
pub fn misfits(app: &ReleaseApp, nginx: &Nginx, version: Version) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut expect = |what: &str, right: bool, seen: &dyn std::fmt::Debug| {
        if !right {
            found.push(format!("{what} is {seen:?}"));
        }
    };
    let served = app.served();
    let right = served.as_ref().is_ok_and(|served| served.expect(version).is_ok());
    expect("what the host serves", right, &served);
    let link = std::fs::read_link(app.host.current())?;
    expect("current", link.ends_with(version.name()), &link);
    let env = std::fs::read_to_string(app.host.env_file())?;
    let greeting = format!("GREETING={}", version.greeting());
    expect("the env file", env.lines().any(|line| line == greeting), &env);
    match curl(&nginx.url("/api/version")) {
        Ok(answer) => {
            let body = answer.body.contains(&format!("\"{}\"", version.name()));
            expect("what nginx passes on", body, &answer.body);
            let site = answer.header("x-zekka-site");
            expect("the site that nginx serves", site == version.site().name(), &site);
        }
        Err(error) => expect("nginx's answer", false, &error),
    }
    let drained = nginx.drained()?;
    expect(
        "the list of servers that are taken out of nginx",
        drained.is_empty(),
        &drained,
    );
    Ok(found)
}

/// The rollback's own word against the facts.
pub fn judge(answer: &Answer, app: &ReleaseApp, nginx: &Nginx, from: Version, to: Version) -> Result<Verdict> {
    let Ok(result) = answer.json() else {
        return Ok(Verdict::Wrong(format!("there is no result: {answer}")));
    };
    let why = reason(&result);
    let (live, code, verdict) = match result["state"].as_str() {
        Some("verified") => (to, 0, Verdict::Verified),
        Some("undone") => (from, 5, Verdict::Undone(why)),
        Some("held") if why.is_empty() => return Ok(Verdict::Wrong("held, and nobody says why".to_owned())),
        // Where the fleet is then is for a person to find out: it was said that it is not known.
        Some("held") => return Ok(Verdict::Held(why)),
        _ => return Ok(Verdict::Wrong(format!("it ended {}: {answer}", result["state"]))),
    };
    let mut wrong = misfits(app, nginx, live)?;
    if answer.code != code {
        wrong.push(format!("the exit code is {}", answer.code));
    }
    Ok(match wrong.is_empty() {
        true => verdict,
        false => Verdict::Wrong(format!("{}, but {}", result["state"], wrong.join("; "))),
    })
}

fn reason(result: &Value) -> String {
    let cause = &result["problem"];
    let part = |key: &str| cause[key].as_str().unwrap_or_default().to_owned();
    let text = format!("{} {}", part("code"), part("message"));
    text.trim().to_owned()
}
