//! What is refused at the door: names, configurations, identities, releases and hosts that are not there. One fleet for
//! all; none of it may touch anything.

#[path = "refusals/identities.rs"]
mod identities;
#[path = "refusals/tokens.rs"]
mod tokens;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use fleet_tests::agent::{Agent, AgentSpec};
use fleet_tests::ctl::Answer;
use fleet_tests::facts::Facts;
use fleet_tests::fleet::{Fleet, HOSTS};
use fleet_tests::scenario::{expect_nothing, expect_running};
use fleet_tests::zekka::Version;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_touches_nothing() {
    if let Err(error) = story().await {
        panic!("{error:#}");
    }
}

async fn story() -> Result<()> {
    let mut fleet = Fleet::builder().start().await?;
    let told = refusals(&mut fleet).await;
    match told {
        Ok(()) => fleet.stop().await,
        Err(error) => Err(anyhow::anyhow!("{error:#}\nthe logs end so:\n{}", fleet.tails())),
    }
}

async fn refusals(fleet: &mut Fleet) -> Result<()> {
    fleet.deploy_both().await?;
    let before = expect_running(fleet, Version::V3_0_0)?;
    unknown_release(fleet).await.context("unknown release")?;
    hostile_names(fleet).await.context("hostile names")?;
    unknown_keys(fleet).context("unknown configuration key")?;
    taken_name(fleet).await.context("a release's name that is taken")?;
    tokens::used_and_expired(fleet).await.context("join tokens")?;
    identities::wrong_ones(fleet).await.context("identities")?;
    unreachable_host(fleet).await.context("unreachable host")?;
    missing_host(fleet).await.context("release with a host missing")?;
    expect_nothing(
        "something was touched",
        &Facts::gather(fleet)?.changes_since(&before, true),
    )
}

async fn unknown_release(fleet: &Fleet) -> Result<()> {
    let answer = fleet.ctl.roll_back("v9.9.9").await?.expect_code(1)?;
    ensure!(answer.text().contains("RB0200"), "the code is not RB0200: {answer}");
    let answer = fleet.ctl.run(&["release", "show", "v9.9.9"]).await?.expect_code(1)?;
    ensure!(answer.text().contains("RB0200"), "the code is not RB0200: {answer}");
    Ok(())
}

/// A recorded release is never overwritten: v3.0.0 runs, and v2.9.0 is the name of something else. The same again is no
/// other content.
async fn taken_name(fleet: &Fleet) -> Result<()> {
    let shown = |release: &'static str| async move {
        let answer = fleet.ctl.run(&["release", "show", release, "-o", "json"]).await?;
        Ok::<_, anyhow::Error>(answer.expect_code(0)?.stdout)
    };
    let before = (shown("v2.9.0").await?, shown("v3.0.0").await?);
    let answer = fleet.ctl.record("v2.9.0").await?.expect_code(1)?;
    ensure!(answer.text().contains("RB0201"), "the code is not RB0201: {answer}");
    fleet.ctl.record("v3.0.0").await?.expect_code(0)?;
    let after = (shown("v2.9.0").await?, shown("v3.0.0").await?);
    ensure!(before == after, "a recorded release was {before:?} and is {after:?}");
    Ok(())
}

async fn hostile_names(fleet: &Fleet) -> Result<()> {
    let flood = "x".repeat(64 * 1024);
    for name in ["--upload-pack=x", "../../etc", &flood, "v1;rm", ""] {
        let shown: String = name.chars().take(20).collect();
        let to = format!("--to={name}");
        for args in [
            vec!["fleet", "rollback", &to, "--yes"],
            vec!["fleet", "plan", &to],
            vec!["release", "record", "--", name],
            vec!["release", "show", "--", name],
            vec!["agent", "token", "--", name],
        ] {
            let answer = fleet.ctl.run(&args).await?;
            let verb = &args[..2];
            ensure!(
                answer.code == 1,
                "{verb:?} {shown:?} ended with {}: {answer}",
                answer.code
            );
            ensure!(
                answer.text().contains("RB0001"),
                "{verb:?} {shown:?}: the code is not RB0001: {answer}"
            );
            ensure!(
                answer.text().len() < 4096,
                "{verb:?} {shown:?}: the answer repeats a flood"
            );
        }
    }
    Ok(())
}

fn unknown_keys(fleet: &mut Fleet) -> Result<()> {
    let agent = fleet.agent("app-1")?;
    let (program, config) = (agent.program().to_owned(), agent.spec.config());
    check_config_refuses(&program, &config, "colour = \"red\"\n", "colour")?;
    let component = "[[component]]\nname = \"extra\"\nkind = \"env-file\"\npath = \"/etc/extra\"\npaht = \"/x\"\n";
    check_config_refuses(&program, &config, component, "paht")?;
    let (program, config) = (fleet.coordinator.program().to_owned(), fleet.coordinator.config());
    check_config_refuses(&program, &config, "[agents]\nheartbaet = \"5s\"\n", "heartbaet")
}

/// The configuration with a key that does not exist is refused, by name and with a code; without it, it is good.
fn check_config_refuses(program: &Path, config: &Path, lines: &str, key: &str) -> Result<()> {
    let check = |config: &Path| {
        Command::new(program)
            .arg("check-config")
            .arg("--config")
            .arg(config)
            .output()
            .context("run check-config")
    };
    let good = check(config)?;
    ensure!(
        good.status.success(),
        "the fleet's own {} is refused: {good:?}",
        config.display()
    );
    let text = std::fs::read_to_string(config).context("read the configuration")?;
    // A key before all tables, a table after them. A table that is there already is taken out first.
    let text = match lines.strip_prefix("[agents]\n") {
        Some(rest) => text.replace("[agents]\n", &format!("[agents]\n{rest}")),
        None if lines.starts_with('[') => format!("{text}{lines}"),
        None => format!("{lines}{text}"),
    };
    let bad = config.with_extension("bad.toml");
    std::fs::write(&bad, text).context("write the bad configuration")?;
    let refused = check(&bad)?;
    std::fs::remove_file(&bad).context("remove the bad configuration")?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    ensure!(!refused.status.success(), "{key} is accepted");
    ensure!(
        said.contains(key) && said.contains("RB0902"),
        "{key} and RB0902 are not named: {said}"
    );
    Ok(())
}

async fn unreachable_host(fleet: &mut Fleet) -> Result<()> {
    fleet.agent("app-2")?.stop().await?;
    for verb in ["rollback", "plan"] {
        let mut args = vec!["fleet", verb, "--to", "v2.9.0"];
        args.extend((verb == "rollback").then_some("--yes"));
        refused_by_name(fleet.ctl.run(&args).await?, "app-2")?;
    }
    let answer = fleet.ctl.record("v3.0.1").await?.expect_code(1)?;
    ensure!(
        answer.text().contains("RB0205") && answer.text().contains("app-2"),
        "not RB0205 of app-2: {answer}"
    );
    let releases = fleet.ctl.run(&["release", "list"]).await?.expect_code(0)?;
    ensure!(
        !releases.text().contains("v3.0.1"),
        "half a release was recorded: {releases}"
    );
    fleet.agent("app-2")?.run().await?;
    fleet.wait_connected(&HOSTS).await
}

/// A release that was recorded with a fifth host, which is gone now: it is refused by that host's name. The releases
/// that do not name it are not affected.
async fn missing_host(fleet: &mut Fleet) -> Result<()> {
    let spec = latecomer(fleet, "app-3", "app-3")?;
    let env = spec.host_dir.join("env");
    let log = fleet.dir().join("log/agent-app-3.log");
    let mut agent = Agent::enroll(&fleet.binaries, spec, &fleet.ctl, &log, false).await?;
    agent.run().await?;
    fleet.wait_connected(&["app-3"]).await?;
    fleet.ctl.record("with-app-3").await?.expect_code(0)?;
    std::fs::write(&env, "GREETING=changed\n").context("change the env file")?;
    agent.kill()?;
    refused_by_name(fleet.ctl.roll_back("with-app-3").await?, "app-3")?;
    // `fleet plan` ends with 2 when the plan has changes.
    fleet
        .ctl
        .run(&["fleet", "plan", "--to", "v2.9.0"])
        .await?
        .expect_code(2)
        .map(drop)
}

/// No plan can be made, because of this host.
fn refused_by_name(answer: Answer, host: &str) -> Result<()> {
    let answer = answer.expect_code(3)?;
    ensure!(answer.text().contains("RB0202"), "the code is not RB0202: {answer}");
    ensure!(answer.text().contains(host), "{host} is not named: {answer}");
    Ok(())
}

/// A further host with nothing but an env file, not enrolled. `dir` tells hosts of one name apart.
fn latecomer(fleet: &Fleet, name: &str, dir: &str) -> Result<AgentSpec> {
    let host_dir = fleet.host_dir(dir);
    let env = host_dir.join("env");
    let spec = AgentSpec {
        name: name.to_owned(),
        coordinators: fleet.endpoints(),
        otlp: None,
        components: format!(
            "[[component]]\nname = \"env\"\nkind = \"env-file\"\npath = \"{}\"\n",
            env.display()
        ),
        tier: "app",
        host_dir,
    };
    std::fs::create_dir_all(&spec.host_dir).context("make the host's directory")?;
    std::fs::write(&env, "A=1\n").context("write the env file")?;
    spec.write_config()?;
    Ok(spec)
}
