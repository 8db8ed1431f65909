//! The way from one revision to another: which migrations, in which order, with which SQL, and the way back.

use std::collections::{BTreeMap, BTreeSet};

use rollback_proto::problem::{Code, Problem};
use sha2::{Digest as _, Sha256};

use super::archive::Known;
use super::catalog::Schema;
use super::sql;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Down,
    Up,
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
}

/// Some migrations, all in one direction, that run in one transaction.
#[derive(Clone, Debug)]
pub(super) struct Leg {
    pub direction: Direction,
    /// In the order in which they run.
    pub steps: Vec<Step>,
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
        self.steps
            .iter()
            .map(|s| s.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Identity of what is going to run: a rehearsal of other SQL proves nothing.
    fn digest_into(&self, hash: &mut Sha256) {
        hash.update(match self.direction {
            Direction::Down => "down\n",
            Direction::Up => "up\n",
        });
        for step in &self.steps {
            hash.update(format!("{} {}\n{}\n", step.number, step.sql.len(), step.sql));
        }
    }
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
        let removed: Vec<i64> = from.applied.difference(&to.applied).copied().collect();
        let added: Vec<i64> = to.applied.difference(&from.applied).copied().collect();
        let (direction, numbers) = match (removed.is_empty(), added.is_empty()) {
            (_, true) => (Direction::Down, removed),
            (true, false) => (Direction::Up, added),
            (false, false) => {
                return Err(vec![Problem::new(
                    Code::MigrationsDiverged,
                    format!(
                        "neither revision is on the way to the other: {} applied only now, {} only then",
                        list(&removed, known),
                        list(&added, known)
                    ),
                )]);
            }
        };
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
        let leg = |direction, steps, end: End| Leg {
            direction,
            steps,
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
        match sql::in_transaction(text) {
            Ok(body) => steps.push(Step {
                number: *number,
                digits: migration.digits.clone(),
                name: migration.name.clone(),
                sql: body.to_owned(),
            }),
            Err(why) => problems.push(
                Problem::new(
                    Code::NoDownMigration,
                    format!("{}: {why}", file_name(&migration.name, direction)),
                )
                .remedy("write it so that it can run inside one transaction, then record the release again"),
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
                edited: vec![],
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
