//! Two operators roll back different hosts, and both rollbacks run at once: v2.9.0 is starting on app-1 for the one and on
//! app-2 for the other. Whoever wants app-2, or everything, is told which rollback has it, whose it is and since when
//! (exit code 6). app-3 is nobody's, and goes back meanwhile. When the two have ended, all hosts are free again.

use anyhow::{Result, ensure};
use serde_json::json;

use super::ground::{Apps, FIRST_OPERATOR, NEW, OLD, ended, roll_back, start};
use crate::control::Control;
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let apps = Apps::deployed(control, &["app-1", "app-2", "app-3"]).await?;
    let before = apps.expect_all(NEW)?;
    let second = control.operator("second")?;
    for host in ["app-1", "app-2"] {
        apps.host(host)?.hold_start(OLD)?;
    }
    let one = start(&control.ctl, &["--to", OLD.name(), "--host", "app-1"]).await?;
    let other = start(&second, &["--to", OLD.name(), "--service", "api", "--host", "app-2"]).await?;
    for host in ["app-1", "app-2"] {
        apps.wait_started(host, OLD, 2).await?;
    }

    options.say("v2.9.0 is starting on app-1 and app-2, for two rollbacks. A third one wants app-2 …");
    let since = |id: &str, report: &serde_json::Value| -> Result<String> {
        let at = report["started_at"].as_str().unwrap_or_default();
        ensure!(at.len() > 16, "{id} has begun at {at:?}");
        // As people read it: to the minute.
        Ok(at[11..16].to_owned())
    };
    let told = [
        (&["--to", OLD.name(), "--host", "app-2"][..], &other, "second"),
        (
            &["--to", OLD.name(), "-l", "tier=app", "--exclude-host", "app-2"],
            &one,
            FIRST_OPERATOR,
        ),
        (&["--to", OLD.name()], &one, FIRST_OPERATOR),
    ];
    let mut refused = Vec::new();
    for (args, holder, operator) in told {
        let answer = roll_back(&control.ctl, args).await?.expect_code(6)?;
        let told = answer.json()?;
        let text = told["error"]["message"].as_str().unwrap_or_default();
        let begun = since(holder, &control.ctl.show(holder).await?)?;
        for word in [holder, operator, &begun] {
            ensure!(text.contains(word), "who is refused is not told {word:?}: {answer}");
        }
        ensure!(told["error"]["code"] == "RB0203", "the code is another one: {answer}");
        refused.push(told["error"]["message"].clone());
    }
    apps.expect_untouched("app-3", &before)?;
    let third = roll_back(&control.ctl, &["--to", OLD.name(), "--host", "app-3"])
        .await?
        .expect_code(0)?;
    apps.expect("app-3", OLD)?;
    for id in [&one, &other] {
        let state = &control.ctl.show(id).await?["state"];
        ensure!(state == "running", "{id} is to be in the middle of it, and is {state}");
    }

    options.say("app-3 has gone back meanwhile. The two go on …");
    for host in ["app-1", "app-2"] {
        apps.host(host)?.clear_faults()?;
    }
    let states = [
        ended(&control.ctl, &one, 0).await?,
        ended(&control.ctl, &other, 0).await?,
    ];
    apps.expect_all(OLD)?;
    let last = roll_back(&control.ctl, &["--to", NEW.name()]).await?.expect_code(0)?;
    apps.expect_all(NEW)?;
    Ok(found(json!({
        "at_once": [states[0]["state"], states[1]["state"]],
        "refused": refused,
        "beside": third.code,
        "afterwards": last.code,
    })))
}
