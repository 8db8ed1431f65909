//! kill -9 of the database's agent between any two sub-steps of a rollback, by migrations and by a restore, on its way and
//! while it is undone. Wherever it was: the agent is started again, the rollback ends as it would have ended, and the
//! database is what it was with that release: schema, version table, every row, connections.
//!
//! Which places there are is found out, not listed: a rollback in which nobody is killed writes down all that it passes.
//! One fleet goes there and back, so that every case is one rollback. `--rounds N` takes N places of each course, spread
//! over the whole; without it all are taken.

mod ground;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use self::ground::{Course, Ground, Means, NEW, OLD};
use crate::control::Control;
use crate::scenario::deployments::on_control;
use crate::scenario::points::{Point, sample, undoing};
use crate::scenario::{Found, Options, found};
use crate::zekka::Version;

pub async fn tell(options: Options) -> Result<Found> {
    on_control(options, async |control| story(control, options).await).await
}

async fn story(control: &mut Control, options: Options) -> Result<Found> {
    let mut ground = Ground::prepare(control).await?;
    let mut tally = Tally::default();
    // From here on every rollback finds backups that it retires: all pass the same places.
    for to in [OLD, NEW] {
        let course = Course {
            means: Means::Migrating,
            to,
            undone: false,
        };
        ground.undisturbed(course).await?;
    }
    for means in [Means::Migrating, Means::Restoring] {
        matrix(&mut ground, means, &mut tally, options).await?;
    }
    Ok(found(tally.to_json()))
}

/// What came of all cases. One that is neither verified nor undone ends the story: nobody knows where the database is then.
#[derive(Debug, Default)]
struct Tally {
    points: usize,
    killed: usize,
    verified: usize,
    undone: usize,
}

impl Tally {
    fn to_json(&self) -> Value {
        json!({
            "points": self.points,
            "killed": self.killed,
            "verified": self.verified,
            "undone": self.undone,
            "wrong": self.killed - self.verified - self.undone,
        })
    }
}

async fn matrix(ground: &mut Ground<'_>, means: Means, tally: &mut Tally, options: Options) -> Result<()> {
    let course = |to: Version, undone: bool| Course { means, to, undone };
    let (back, forth, undone) = (course(OLD, false), course(NEW, false), course(OLD, true));
    let mut passed = Vec::new();
    for course in [back, forth, undone] {
        let points = ground.undisturbed(course).await;
        passed.push(points.with_context(|| format!("{}, undisturbed", course.describe()))?);
    }
    let undoing = undoing(std::mem::take(&mut passed[2]), &passed[0]);
    let lists = [(back, &passed[0]), (forth, &passed[1]), (undone, &undoing)];
    for (course, points) in lists {
        tally.points += points.len();
        options.say(format!("{}: {} points", course.describe(), points.len()));
    }
    let [back_points, forth_points, undoing] = lists.map(|(_, points)| chosen(points, options));
    for n in 0..back_points.len().max(forth_points.len()) {
        for (course, points) in [(back, &back_points), (forth, &forth_points)] {
            one(ground, course, points.get(n), tally, options).await?;
        }
    }
    for point in &undoing {
        one(ground, undone, Some(point), tally, options).await?;
    }
    Ok(())
}

/// Where a sample begins differs from run to run.
fn chosen(points: &[Point], options: Options) -> Vec<Point> {
    sample(points, options.rounds, rand::random_range(0..points.len().max(1)))
}

async fn one(
    ground: &mut Ground<'_>,
    course: Course,
    point: Option<&Point>,
    tally: &mut Tally,
    options: Options,
) -> Result<()> {
    let Some(point) = point else {
        // The way back of a case in the other direction.
        return ground.undisturbed(course).await.map(drop);
    };
    let what = format!("{}, killed at {point}", course.describe());
    options.say(&what);
    tally.killed += 1;
    ground
        .killed_at(course, point)
        .await
        .with_context(|| format!("{what}; until then {}", tally.to_json()))?;
    match course.undone {
        true => tally.undone += 1,
        false => tally.verified += 1,
    }
    Ok(())
}
