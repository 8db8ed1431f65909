//! Join tokens that open nothing any more: used ones and expired ones.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use fleet_tests::agent::AgentSpec;
use fleet_tests::fleet::Fleet;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

const NAME: &str = "latecomer";

pub async fn used_and_expired(fleet: &mut Fleet) -> Result<()> {
    let program = fleet.agent("app-1")?.program().to_owned();
    let enroll = |spec: &AgentSpec, token: &str| -> Result<Output> {
        let mut command: Command = spec.enroll_command(&program, token);
        command.output().context("run enroll")
    };
    let token = fleet.ctl.token(NAME).await?;
    let first = super::latecomer(fleet, NAME, "latecomer-first")?;
    let answer = enroll(&first, &token)?;
    ensure!(answer.status.success(), "a fresh token is refused: {answer:?}");
    let second = super::latecomer(fleet, NAME, "latecomer-second")?;
    refused(&second, &enroll(&second, &token)?).context("a used token")?;

    let token = fleet.ctl.token(NAME).await?;
    expire_all(fleet).await?;
    refused(&second, &enroll(&second, &token)?).context("an expired token")?;

    let (start, fingerprint) = token.rsplit_once('.').context("a token has parts")?;
    let (start, secret) = start.rsplit_once('.').context("a token has parts")?;
    let never = format!("{start}.{}.{fingerprint}", secret.chars().rev().collect::<String>());
    refused(&second, &enroll(&second, &never)?).context("a token that never was")?;

    // What was refused leaves the way open for a good one.
    let token = fleet.ctl.token(NAME).await?;
    let answer = enroll(&second, &token)?;
    ensure!(answer.status.success(), "a fresh token is refused: {answer:?}");
    for spec in [first, second] {
        std::fs::remove_dir_all(&spec.host_dir).context("remove the latecomer")?;
    }
    Ok(())
}

fn refused(spec: &AgentSpec, answer: &Output) -> Result<()> {
    let text = String::from_utf8_lossy(&answer.stderr).into_owned() + &String::from_utf8_lossy(&answer.stdout);
    ensure!(!answer.status.success(), "it is let in: {text}");
    ensure!(text.contains("RB0102"), "the code is not RB0102: {text}");
    let certificate = spec.pki().join("agent.pem");
    ensure!(
        !certificate.exists(),
        "there is a certificate: {}",
        certificate.display()
    );
    Ok(())
}

/// Makes every token that nobody redeemed one of a quarter of an hour ago, in the store of the running coordinator.
async fn expire_all(fleet: &Fleet) -> Result<()> {
    let options = SqliteConnectOptions::new().filename(fleet.coordinator.store());
    let mut store = SqliteConnection::connect_with(&options)
        .await
        .context("open the coordinator's store")?;
    let changed = sqlx::query("UPDATE tokens SET expires_at = unixepoch() - 1 WHERE redeemed_at IS NULL")
        .execute(&mut store)
        .await
        .context("age the tokens")?;
    ensure!(changed.rows_affected() >= 1, "there was no token to age");
    store.close().await.context("close the store")
}
