//! Backups rot: a sealed one of the agent's own, and somebody else's uncompressed dump that was taken in, are damaged at
//! random several hundred times. Every time the agent must notice before anything is restored from it.
//!
//! Whether a dump is the one that was proven is decided in one place, which `database check` asks as a restore does. So each
//! case asks that command, which takes milliseconds; and one case of every kind of damage is a whole rollback that must be
//! refused with the database untouched. Undamaged, the same backups pass the one and the other.
//!
//! `--seed` repeats a run, `--rounds` says how many cases there are for each of the two dumps.

mod damage;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use self::damage::{Damage, Damaged};
use super::judge::put_aside;
use crate::control::Control;
use crate::ctl::{Answer, rollback_to};
use crate::deployed::database::{Database, HOST};
use crate::scenario::deployments::on_control;
use crate::scenario::{Found, Options, found};
use crate::zekka::Version;

/// Of each dump.
const CASES: usize = 160;

const RESTORE: [&str; 3] = ["--database", "restore", "--accept-data-loss=all"];

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let database = Database::of(control).await?;
    database.install(Version::V2_9_0)?;
    control.add_agent(HOST, "db", database.component()).await?;
    control.ctl.record("v2.9.0").await?.expect_code(0)?;
    let dumps = [Dump::sealed(control)?, Dump::adopted(control, &database)?];
    database.install(Version::V3_0_0)?;
    control.ctl.record("v3.0.0").await?.expect_code(0)?;

    let seed = options.seed.unwrap_or_else(rand::random);
    options.say(format!("The seed is {seed}."));
    let mut random = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    for dump in &dumps {
        dump.expect_whole(control)?;
        for case in 0..options.rounds.unwrap_or(CASES) {
            let damage = Damage::ALL[case % Damage::ALL.len()];
            let damaged = damage.to(&dump.bytes, &mut random);
            let noticed = dump.is_noticed(control, &damaged)?;
            tally.note(damage, noticed, || format!("{} with {damaged}", dump.name));
        }
        dump.repair()?;
        dump.expect_whole(control)?;
        options.say(format!(
            "{} of {} corruptions noticed, the last of {}",
            tally.detected(),
            tally.cases,
            dump.name
        ));
    }
    let before = database.facts()?;
    for damage in Damage::ALL {
        for dump in &dumps {
            let damaged = damage.to(&dump.bytes, &mut random);
            std::fs::write(&dump.path, &damaged.bytes).context("damage a dump")?;
        }
        options.say(format!("Both with {}: a restore is refused …", damage.name()));
        let answer = restore(control).await?;
        expect_refused(damage, &answer)?;
        ensure!(
            database.facts()? == before,
            "the database is not as before after a restore that was refused for {}",
            damage.name()
        );
        tally.note(damage, true, String::new);
        dumps.iter().try_for_each(Dump::repair)?;
    }
    ensure!(
        tally.missed.is_empty(),
        "with seed {seed} {} of {} corruptions were not noticed: {}",
        tally.missed.len(),
        tally.cases,
        tally.missed.join("; ")
    );
    // Nothing else was the reason.
    restore(control).await?.expect_code(0)?;
    put_aside(&database.postgres)?;
    ensure!(database.facts()?.migrations == "1", "v2.9.0's backup is live");
    Ok(found(tally.to_json(seed)))
}

async fn restore(control: &Control) -> Result<Answer> {
    let args = [&rollback_to("v2.9.0")[..], &RESTORE[..]].concat();
    control.ctl.run(&args).await
}

/// A dump that lacks bytes is none at all, which preflight sees. Other damage shows when it is read, which is what `stage` begins
/// with.
fn expect_refused(damage: Damage, answer: &Answer) -> Result<()> {
    let result = answer.json()?;
    let code = if damage.keeps_the_length() { "RB0701" } else { "RB0708" };
    ensure!(
        answer.code != 0 && answer.text().contains(code),
        "{} is refused with {code}: {answer}",
        damage.name()
    );
    ensure!(result["state"] == "undone", "it ended {}: {answer}", result["state"]);
    Ok(())
}

/// A backup that the agent lists, and what its file holds.
struct Dump {
    name: String,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Dump {
    /// By `rollback-agent database backup`.
    fn sealed(control: &mut Control) -> Result<Self> {
        let said = control.agent(HOST)?.tool(&["database", "backup", "db"])?;
        let path = PathBuf::from(said.trim());
        let name = path
            .file_stem()
            .context("a dump has a name")?
            .to_string_lossy()
            .into_owned();
        Self::read(name, path)
    }

    /// By a person with `pg_dump`, and taken in.
    fn adopted(control: &mut Control, database: &Database) -> Result<Self> {
        let path = control.host_dir(HOST).join("by-hand.dump");
        database.postgres.dump_uncompressed(&path)?;
        let file = path.display().to_string();
        let said = control.agent(HOST)?.tool(&["database", "adopt", "db", &file])?;
        Self::read(said.trim().to_owned(), path)
    }

    fn read(name: String, path: PathBuf) -> Result<Self> {
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self { name, path, bytes })
    }

    fn repair(&self) -> Result<()> {
        std::fs::write(&self.path, &self.bytes).context("repair a dump")
    }

    fn is_noticed(&self, control: &mut Control, damaged: &Damaged) -> Result<bool> {
        std::fs::write(&self.path, &damaged.bytes).context("damage a dump")?;
        match check(control, &self.name)? {
            (0, _) => Ok(false),
            // For this reason, and for no other.
            (1, said) if said.contains("has changed since it was proven") => Ok(true),
            (code, said) => bail!("the check of {} ended with {code}: {said}", self.name),
        }
    }

    fn expect_whole(&self, control: &mut Control) -> Result<()> {
        let (code, said) = check(control, &self.name)?;
        ensure!(
            code == 0,
            "{} is undamaged, and the check says {code}: {said}",
            self.name
        );
        Ok(())
    }
}

/// `rollback-agent database check`: its exit code, and what it says.
fn check(control: &mut Control, name: &str) -> Result<(i32, String)> {
    let agent = control.agent(HOST)?;
    let mut command = Command::new(agent.program());
    command
        .args(["database", "check", "db", name, "--config"])
        .arg(agent.spec.config());
    let output = command.output().context("start rollback-agent")?;
    let said = [output.stdout, output.stderr].concat();
    let code = output.status.code().context("it ended by itself")?;
    Ok((code, String::from_utf8_lossy(&said).into_owned()))
}

#[derive(Debug, Default)]
struct Tally {
    cases: usize,
    by_kind: BTreeMap<Damage, usize>,
    missed: Vec<String>,
}

impl Tally {
    fn note(&mut self, damage: Damage, noticed: bool, what: impl FnOnce() -> String) {
        self.cases += 1;
        *self.by_kind.entry(damage).or_default() += 1;
        if !noticed {
            self.missed.push(what());
        }
    }

    fn detected(&self) -> usize {
        self.cases - self.missed.len()
    }

    fn to_json(&self, seed: u64) -> Value {
        let kinds: BTreeMap<&str, usize> = self.by_kind.iter().map(|(kind, cases)| (kind.name(), *cases)).collect();
        json!({
            "seed": seed,
            "corruptions": self.cases,
            "detected": self.detected(),
            "kinds": kinds,
            "rollbacks_refused": Damage::ALL.len(),
        })
    }
}
