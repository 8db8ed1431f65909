//! The way from one revision to another: which migrations, in which order, with which SQL, and the way back.
//!
//! A leg is a list of *parts*. Migrations that can run in a transaction run together in one; a migration that cannot has its
//! statements run one by one, and its version row after the last. Between two parts lies a *waypoint*: a state that the
//! rehearsal saw and that is recognised when a leg ends there ([`super::travel`]). A migration that runs alone in one
//! direction bounds a part in the other direction, too, so that each migration's end is a waypoint of both legs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rollback_proto::problem::{Code, Problem};
use sha2::{Digest as _, Sha256};

use super::archive::Known;
use super::catalog::Schema;
use super::config::ToolConfig;
use super::sql::{self, Script};
use super::travel::Waypoint;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Down,
    Up,
}

impl Direction {
    pub fn word(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
        }
    }
}

/// One migration, ready to run.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub number: i64,
    pub digits: String,
    /// `002_scores`
    pub name: String,
    /// To be sent inside the driver's own transaction.
    pub sql: String,
    /// Its statements, if they cannot run in one transaction; empty otherwise.
    pub alone: Vec<Single>,
    /// It shares no transaction with others: what it adds can be used only after its COMMIT.
    pub apart: bool,
    /// Questions that must be answered with true before its SQL runs, and after.
    pub checks_before: Vec<String>,
    pub checks_after: Vec<String>,
    /// Its SQL changes the version table itself: a row that is there or gone already is no error.
    pub notes_itself: bool,
}

/// One statement of a migration that does not run in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Single {
    pub sql: String,
    /// It runs in no transaction at all; others have one each.
    pub autocommit: bool,
    /// Its first words, for messages.
    pub shown: String,
    /// Settings that the migration makes before it (`SET …`): each part has a session of its own.
    pub prelude: Vec<String>,
}

/// What concerns the whole server can neither be rehearsed on a copy nor taken back.
const OF_THE_SERVER: [&str; 7] = [
    "ALTER SYSTEM",
    "CREATE DATABASE",
    "DROP DATABASE",
    "CREATE TABLESPACE",
    "DROP TABLESPACE",
    "CREATE SUBSCRIPTION",
    "DROP SUBSCRIPTION",
];

impl Step {
    fn new(number: i64, migration: &Known, script: Script<'_>) -> Result<Self, String> {
        let of_the_server = |shown: &str| OF_THE_SERVER.iter().any(|words| shown.starts_with(words));
        if let Some(sentence) = script.statements.iter().find(|s| of_the_server(&s.shown)) {
            return Err(format!(
                "{:?} concerns the whole server and cannot be rehearsed",
                sentence.shown
            ));
        }
        let mut alone = Vec::new();
        if script.needs_autocommit().is_some() {
            let mut prelude = Vec::new();
            for sentence in &script.statements {
                if sentence.shown == "SET" || sentence.shown.starts_with("SET ") {
                    prelude.push(sentence.text.to_owned());
                    continue;
                }
                alone.push(Single {
                    sql: sentence.text.to_owned(),
                    autocommit: sentence.needs_autocommit,
                    shown: sentence.shown.clone(),
                    prelude: prelude.clone(),
                });
            }
        }
        Ok(Self {
            number,
            digits: migration.digits.clone(),
            name: migration.name.clone(),
            sql: script.body.to_owned(),
            apart: !alone.is_empty() || script.statements.iter().any(|s| s.adds_enum_value),
            alone,
            checks_before: script.checks.before,
            checks_after: script.checks.after,
            notes_itself: migration.manual,
        })
    }
}

/// What runs between two waypoints. Numbers are places in [`Leg::steps`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Consecutive migrations in one transaction, with their version rows.
    Together(Range<usize>),
    /// One statement of a migration that does not fit in a transaction.
    Alone { step: usize, statement: usize },
    /// The version row of a migration whose statements ran alone.
    Note(usize),
    /// One run of the project's own tool.
    Tool,
}

/// Some migrations, all in one direction.
#[derive(Clone, Debug)]
pub(super) struct Leg {
    pub direction: Direction,
    /// In the order in which they run.
    pub steps: Vec<Step>,
    pub parts: Vec<Part>,
    /// What is applied when it has ended.
    pub applied_after: BTreeSet<i64>,
    /// The schema when it has ended.
    pub schema_after: Schema,
}

impl Leg {
    pub fn numbers(&self) -> Vec<i64> {
        self.steps.iter().map(|s| s.number).collect()
    }

    pub fn names(&self) -> String {
        names(&self.steps)
    }

    /// For people: what a part runs.
    pub fn describe(&self, part: &Part) -> String {
        let direction = self.direction.word();
        let name = |step: &usize| self.steps.get(*step).map_or("", |s| s.name.as_str());
        match part {
            Part::Together(range) => format!(
                "{} {direction}",
                names(self.steps.get(range.clone()).unwrap_or_default())
            ),
            Part::Alone { step, statement } => {
                let of = self.steps.get(*step).map_or(0, |s| s.alone.len());
                format!("{} {direction}, statement {} of {of}", name(step), statement + 1)
            }
            Part::Note(step) => format!("the version row of {}", name(step)),
            Part::Tool => format!("the migration tool, {direction}"),
        }
    }

    pub fn is_of_a_tool(&self) -> bool {
        self.parts.contains(&Part::Tool)
    }

    /// Where it leads.
    pub fn end(&self) -> Waypoint {
        Waypoint {
            applied: self.applied_after.clone(),
            schema: self.schema_after.clone(),
        }
    }

    /// Whether this part of it happens whole or not at all.
    pub fn is_transaction(&self, part: &Part) -> bool {
        match part {
            Part::Together(_) | Part::Note(_) => true,
            Part::Alone { step, statement } => {
                let single = self.steps.get(*step).and_then(|s| s.alone.get(*statement));
                single.is_some_and(|s| !s.autocommit)
            }
            Part::Tool => false,
        }
    }

    /// Identity of what is going to run: a rehearsal of other SQL proves nothing.
    fn digest_into(&self, hash: &mut Sha256) {
        hash.update(self.direction.word());
        let mut put = |text: &str| hash.update(format!(" {}\n{text}", text.len()));
        for step in &self.steps {
            put(&step.number.to_string());
            put(&step.sql);
            for single in &step.alone {
                single.prelude.iter().chain([&single.sql]).for_each(|text| put(text));
            }
            for checks in [&step.checks_before, &step.checks_after] {
                put(&checks.len().to_string());
                checks.iter().for_each(|check| put(check));
            }
        }
        put(&format!("{:?}", self.parts));
    }
}

fn names(steps: &[Step]) -> String {
    steps.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The parts of a leg. `apart` says of each step whether it must not share a transaction with its neighbours.
fn parts(steps: &[Step], apart: &[bool]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    if steps.is_empty() {
        // The schemas differ by no migration: the comparison at its end says so.
        parts.push(Part::Together(0..0));
    }
    for (i, step) in steps.iter().enumerate() {
        if !step.alone.is_empty() {
            let alone = |statement| Part::Alone { step: i, statement };
            parts.extend((0..step.alone.len()).map(alone));
            parts.push(Part::Note(i));
            continue;
        }
        let bound = |i: usize| apart.get(i).copied().unwrap_or(false);
        match parts.last_mut() {
            Some(Part::Together(range)) if range.end == i && !bound(i) && !bound(i - 1) => range.end = i + 1,
            Some(_) | None => parts.push(Part::Together(i..i + 1)),
        }
    }
    parts
}

/// There and back.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub there: Leg,
    pub back: Leg,
}

/// One end of a route.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub applied: BTreeSet<i64>,
    pub schema: Schema,
}

impl Route {
    /// Finds the way, or everything that stands in it. `known` has an entry for each migration that the ends do not
    /// share.
    pub fn find(from: End, to: End, known: &BTreeMap<i64, Known>) -> Result<Self, Vec<Problem>> {
        let (direction, numbers) = direction(&from, &to, known).map_err(|problem| vec![problem])?;
        let upper = if direction == Direction::Down { &from } else { &to };
        let mut problems = Vec::new();
        if let (Some(lowest), Some(shared)) = (numbers.first(), upper.applied.iter().rfind(|n| !numbers.contains(n)))
            && lowest < shared
        {
            problems.push(Problem::new(
                Code::MigrationsDiverged,
                format!("migration {lowest} would go, but {shared}, which is higher, would stay"),
            ));
        }
        let up = pick(&numbers, known, Direction::Up, &mut problems);
        let mut down = pick(&numbers, known, Direction::Down, &mut problems);
        down.reverse();
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut apart: Vec<bool> = up
            .iter()
            .zip(down.iter().rev())
            .map(|(up, down)| up.apart || down.apart)
            .collect();
        let parts_up = parts(&up, &apart);
        apart.reverse();
        let parts_down = parts(&down, &apart);
        let leg = |direction: Direction, steps, end: End| Leg {
            direction,
            steps,
            parts: match direction {
                Direction::Down => parts_down.clone(),
                Direction::Up => parts_up.clone(),
            },
            applied_after: end.applied,
            schema_after: end.schema,
        };
        Ok(match direction {
            Direction::Down => Self {
                there: leg(Direction::Down, down, to),
                back: leg(Direction::Up, up, from),
            },
            Direction::Up => Self {
                there: leg(Direction::Up, up, to),
                back: leg(Direction::Down, down, from),
            },
        })
    }

    /// The way by the project's own tool, which alone knows what it runs and in which order. Each leg has one part until
    /// the rehearsal has counted the runs ([`Self::with_runs`]).
    pub fn by_tool(from: End, to: End, known: &BTreeMap<i64, Known>, tool: &ToolConfig) -> Result<Self, Vec<Problem>> {
        let (direction, numbers) = direction(&from, &to, known).map_err(|problem| vec![problem])?;
        if numbers.is_empty() {
            let message = "the two schemas differ, but by no migration that the tool knows";
            return Err(vec![Problem::new(Code::MigrationsDiverged, message)]);
        }
        let step = |number: &i64| Step {
            number: *number,
            digits: String::new(),
            name: known.get(number).map_or_else(|| number.to_string(), |k| k.name.clone()),
            // Never sent: what was rehearsed are these programs.
            sql: format!("{:?} {:?} {:?}", tool.directory, tool.down, tool.up),
            alone: Vec::new(),
            apart: true,
            checks_before: Vec::new(),
            checks_after: Vec::new(),
            notes_itself: true,
        };
        let mut steps: Vec<Step> = numbers.iter().map(step).collect();
        steps.sort_by(|a, b| a.name.cmp(&b.name));
        let leg = |direction, end: End| {
            let mut steps = steps.clone();
            if direction == Direction::Down {
                steps.reverse();
            }
            Leg {
                direction,
                steps,
                parts: vec![Part::Tool],
                applied_after: end.applied,
                schema_after: end.schema,
            }
        };
        Ok(match direction {
            Direction::Down => Self {
                there: leg(Direction::Down, to),
                back: leg(Direction::Up, from),
            },
            Direction::Up => Self {
                there: leg(Direction::Up, to),
                back: leg(Direction::Down, from),
            },
        })
    }

    /// The same with as many runs of the tool as it took in the rehearsal. Changes nothing where SQL is run.
    pub fn with_runs(mut self, there: usize, back: usize) -> Self {
        for (leg, runs) in [(&mut self.there, there), (&mut self.back, back)] {
            if leg.is_of_a_tool() {
                leg.parts = vec![Part::Tool; runs];
            }
        }
        self
    }

    /// The same for both directions of travel.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut legs = [&self.there, &self.back];
        legs.sort_by_key(|leg| leg.direction == Direction::Up);
        for leg in legs {
            leg.digest_into(&mut hash);
        }
        hex::encode(hash.finalize())
    }
}

/// Which way, and which migrations.
fn direction(from: &End, to: &End, known: &BTreeMap<i64, Known>) -> Result<(Direction, Vec<i64>), Problem> {
    let removed: Vec<i64> = from.applied.difference(&to.applied).copied().collect();
    let added: Vec<i64> = to.applied.difference(&from.applied).copied().collect();
    Ok(match (removed.is_empty(), added.is_empty()) {
        (_, true) => (Direction::Down, removed),
        (true, false) => (Direction::Up, added),
        (false, false) => {
            return Err(Problem::new(
                Code::MigrationsDiverged,
                format!(
                    "neither revision is on the way to the other: {} applied only now, {} only then",
                    list(&removed, known),
                    list(&added, known)
                ),
            ));
        }
    })
}

fn list(numbers: &[i64], known: &BTreeMap<i64, Known>) -> String {
    let name = |n: &i64| known.get(n).map_or_else(|| n.to_string(), |k| k.name.clone());
    numbers.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn pick(numbers: &[i64], known: &BTreeMap<i64, Known>, direction: Direction, problems: &mut Vec<Problem>) -> Vec<Step> {
    let mut steps = Vec::new();
    for number in numbers {
        let Some(migration) = known.get(number) else {
            problems.push(missing(&number.to_string(), direction));
            continue;
        };
        let text = match direction {
            Direction::Down => &migration.down,
            Direction::Up => &migration.up,
        };
        if migration.up.is_none() && migration.down.is_none() {
            if direction == Direction::Down {
                problems.push(unknown(&migration.name));
            }
            continue;
        }
        let Some(text) = text else {
            problems.push(missing(&migration.name, direction));
            continue;
        };
        let read = sql::split(text).map_err(|why| why.to_string());
        match read.and_then(|script| Step::new(*number, migration, script)) {
            Ok(step) => steps.push(step),
            Err(why) => problems.push(
                Problem::new(
                    Code::NoDownMigration,
                    format!("{}: {why}", file_name(&migration.name, direction)),
                )
                .remedy("take that out of the file, then record the release again"),
            ),
        }
    }
    steps
}

fn unknown(name: &str) -> Problem {
    Problem::new(
        Code::MigrationsDiverged,
        format!("migration {name} is applied, but neither the vault nor the migrations directory knows it"),
    )
    .remedy("find out who applied it; put its files into the migrations directory, or take its row away if it is wrong")
}

fn missing(name: &str, direction: Direction) -> Problem {
    let file = file_name(name, direction);
    match direction {
        Direction::Down => Problem::new(
            Code::NoDownMigration,
            format!("migration {name} has no way down: {file} is neither in the vault nor in the migrations directory"),
        ),
        Direction::Up => Problem::new(
            Code::RevisionMissing,
            format!("the rollback could not be undone: {file} is neither in the vault nor in the migrations directory"),
        )
        .remedy("put the file into the migrations directory, or record the running release"),
    }
}

fn file_name(name: &str, direction: Direction) -> String {
    match direction {
        Direction::Down => format!("{name}.down.sql"),
        Direction::Up => format!("{name}.up.sql"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(applied: &[i64]) -> End {
        End {
            applied: applied.iter().copied().collect(),
            schema: Schema::default(),
        }
    }

    fn known(numbers: &[i64]) -> BTreeMap<i64, Known> {
        let one = |n: &i64| {
            let name = format!("{n:03}_m");
            let known = Known {
                digits: format!("{n:03}"),
                name,
                up: Some(format!("up {n}")),
                down: Some(format!("down {n}")),
                ..Known::default()
            };
            (*n, known)
        };
        numbers.iter().map(one).collect()
    }

    #[test]
    fn goes_down_newest_first_and_back_up_oldest_first() {
        let route = Route::find(end(&[1, 2, 3, 4]), end(&[1, 2]), &known(&[3, 4])).expect("a route");
        assert_eq!(
            (route.there.direction, route.there.numbers()),
            (Direction::Down, vec![4, 3])
        );
        assert_eq!(
            (route.back.direction, route.back.numbers()),
            (Direction::Up, vec![3, 4])
        );
        let back = Route::find(end(&[1, 2]), end(&[1, 2, 3, 4]), &known(&[3, 4])).expect("a route");
        assert_eq!(back.there.numbers(), vec![3, 4]);
        assert_eq!(back.digest(), route.digest());
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let diverged = Route::find(end(&[1, 3]), end(&[1, 2]), &known(&[2, 3])).expect_err("diverged");
        assert_eq!(diverged[0].code, Code::MigrationsDiverged);
        let gap = Route::find(end(&[1, 2, 3]), end(&[1, 3]), &known(&[2])).expect_err("2 is below 3");
        assert_eq!(gap[0].code, Code::MigrationsDiverged);
        let mut lacking = known(&[2, 3]);
        if let Some(m) = lacking.get_mut(&3) {
            m.down = None;
        }
        let problems = Route::find(end(&[1, 2, 3]), end(&[1]), &lacking).expect_err("no way down");
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].code, Code::NoDownMigration);
        assert!(
            problems[0].message.contains("003_m.down.sql"),
            "{}",
            problems[0].message
        );
    }
}
