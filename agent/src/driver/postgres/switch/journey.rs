//! Part after part on the live database: there, and back when a part fails.
//!
//! Invariants: a part whose end nobody heard is looked for, never believed; [`Failure::Failed`] is said only of a database
//! that is where it was before, in all that a waypoint tells. Leaves out: finding the place to begin at.

use rollback_proto::kill_point;
use rollback_proto::problem::{Code, Problem};

use super::UNHEARD;
use crate::driver::Failure;
use crate::driver::postgres::PostgresDriver;
use crate::driver::postgres::loss::Loss;
use crate::driver::postgres::migrate::{Job, LegError, Migrator};
use crate::driver::postgres::put_back::Returned;
use crate::driver::postgres::route::Direction;
use crate::driver::postgres::travel::{Found, Map, Place, Way};
use crate::step::StepContext;

/// Why a journey did not reach its goal.
enum Stuck {
    /// The part that leads on from this place failed, and nothing of it took effect.
    At(Place, Problem),
    /// It cannot be said where the database is, or nothing leads on from there.
    Lost(Problem),
}

/// Part after part on the live database.
pub(super) struct Journey<'a> {
    pub driver: &'a PostgresDriver,
    pub step: &'a StepContext,
    pub migrator: Migrator<'a>,
    pub map: Map<'a>,
    pub losses: &'a [Loss],
    /// Never tried again: it failed already.
    pub failed: Option<Place>,
    pub returned: Option<Returned>,
    /// What was put back by a part whose end nobody heard.
    pub unheard: Option<String>,
    /// Indexes that are invalid because the next statement was cut off before: the database is not quite at its waypoint.
    pub cut_off: Vec<String>,
}

impl Journey<'_> {
    /// Runs parts until the end of the trail to `goal`.
    async fn travel(&mut self, from: Place, goal: Way) -> Result<(), Stuck> {
        let mut place = from;
        let mut unheard = 0;
        loop {
            // A statement that was cut off leads on by its own trail only.
            if self.cut_off.is_empty() {
                place = self.map.seen_from(place, goal);
            }
            let Some(part) = self.map.part_after(place) else {
                return Ok(());
            };
            if self.failed == Some(place) {
                let message = format!(
                    "nothing leads back from here but what failed ({})",
                    self.map.describe(place)
                );
                return Err(Stuck::At(place, Problem::new(Code::DatabaseUnclear, message)));
            }
            let leg = self.map.leg(place.way);
            let next = place.next(leg);
            let none = Loss::default();
            let loss = match leg.direction {
                Direction::Down => self.losses.get(place.at).unwrap_or(&none),
                Direction::Up => &none,
            };
            let (from, to) = (self.map.point(place), self.map.point(next));
            let cut_off = std::mem::take(&mut self.cut_off);
            let job = Job {
                leg,
                part: place.at,
                from: from.as_ref().filter(|_| cut_off.is_empty()),
                to: to.as_ref(),
                loss,
            };
            let operation = match leg.direction {
                Direction::Down => "migrate_down",
                Direction::Up => "migrate_up",
            };
            self.step.progress(format!("migrating: {}", leg.describe(part)));
            let problem = match self.step.operation(operation, self.migrator.run(job)).await {
                Ok(ran) => {
                    Returned::gather(&mut self.returned, ran.returned);
                    kill_point::pass(|| format!("migrate.part.{}", place.at + 1));
                    (place, unheard) = (next, 0);
                    continue;
                }
                Err(LegError::RolledBack(problem)) if cut_off.is_empty() => return Err(Stuck::At(place, problem)),
                // As it was before, which is not what it is at the waypoint.
                Err(LegError::RolledBack(problem)) => return Err(Stuck::Lost(left_invalid(problem, &cut_off))),
                Err(LegError::Unknown(problem)) => problem,
            };
            self.step
                .progress(format!("{}; looking at what became of it", problem.message));
            unheard += 1;
            let again = unheard < UNHEARD && !self.step.time_left().is_zero();
            match self.look(goal).await.map_err(Stuck::Lost)? {
                Found::At(found) if self.same(found, next) && leg.is_of_a_tool() => {
                    // What it has brought is filled before it is run again.
                    let last = next.at == leg.parts.len();
                    let filled = match leg.direction {
                        Direction::Down => Ok(None),
                        Direction::Up => self.migrator.put_back_brought(last).await,
                    };
                    Returned::gather(&mut self.returned, filled.map_err(Stuck::Lost)?);
                    place = next;
                }
                Found::At(found) if self.same(found, next) => {
                    self.unheard = self.driver.account(self.step, leg.direction, &self.migrator.kept).await;
                    place = next;
                }
                Found::At(found) if self.same(found, place) => {
                    if !again || said_so(&problem) {
                        return Err(Stuck::At(place, nothing_changed(problem)));
                    }
                    self.step.progress("nothing was changed; trying again");
                }
                Found::Interrupted {
                    place: found,
                    leftovers,
                    invalid,
                } if self.same(found, place) => {
                    if let Err(left) = self.migrator.clear(&leftovers).await {
                        return Err(Stuck::Lost(with(problem, &left.message)));
                    }
                    if !invalid.is_empty() && !again {
                        return Err(Stuck::Lost(left_invalid(problem, &invalid)));
                    }
                    if invalid.is_empty() && (!again || said_so(&problem)) {
                        return Err(Stuck::At(place, nothing_changed(problem)));
                    }
                    self.cut_off = invalid;
                }
                Found::At(_) | Found::Interrupted { .. } | Found::Nowhere => return Err(Stuck::Lost(problem)),
            }
        }
    }

    /// Whether two places are the same state.
    fn same(&self, a: Place, b: Place) -> bool {
        a == b || self.map.point(a) == self.map.point(b)
    }

    /// Where the live database is, when no transaction of ours is left there.
    async fn look(&self, goal: Way) -> Result<Found, Problem> {
        let state = self.driver.settled_state(self.step).await?;
        let seen = self.driver.waypoint(state)?;
        Ok(match self.map.find(&seen, goal) {
            Found::Nowhere => return Err(self.map.nearest(&seen)),
            found @ (Found::At(_) | Found::Interrupted { .. }) => found,
        })
    }

    /// To the end of the way there, or back to where it began.
    pub async fn go(&mut self, from: Place) -> Result<(), Failure> {
        let (place, problem) = match self.travel(from, Way::There).await {
            Ok(()) => return Ok(()),
            Err(Stuck::Lost(problem)) => return Err(Failure::Indeterminate(problem)),
            Err(Stuck::At(place, problem)) => (place, problem),
        };
        let origin = Place::new(Way::There, 0);
        if self.same(place, origin) {
            return Err(Failure::Failed(problem));
        }
        self.step.progress(format!(
            "{}; going back from {}",
            problem.message,
            self.map.describe(place)
        ));
        self.failed = Some(place);
        match self.travel(place, Way::Back).await {
            Ok(()) => Err(Failure::Failed(with(
                problem,
                "what had been run before it was taken back",
            ))),
            Err(Stuck::At(at, why)) => {
                let stands = format!("the database stands {}: {}", self.map.describe(at), why.message);
                Err(Failure::Indeterminate(with(problem, &stands).remedy(GO_ON)))
            }
            Err(Stuck::Lost(why)) => {
                let message = format!("going back failed, too: {}", why.message);
                Err(Failure::Indeterminate(with(problem, &message).remedy(GO_ON)))
            }
        }
    }
}

pub(super) const GO_ON: &str = "take away the cause and run the step again: it goes on from where the database stands";

pub(super) fn with(mut problem: Problem, more: &str) -> Problem {
    problem.message.push_str("; ");
    problem.message.push_str(more);
    problem
}

fn left_invalid(problem: Problem, indexes: &[String]) -> Problem {
    let left = format!(
        "index {} was left invalid by a statement that was cut off",
        indexes.join(", ")
    );
    with(problem, &left).remedy(GO_ON)
}

/// The server, or the tool, answered that it failed: trying again would lead to the same.
fn said_so(problem: &Problem) -> bool {
    problem.code == Code::MigrationFailed || problem.code == Code::MigrationToolFailed
}

fn nothing_changed(problem: Problem) -> Problem {
    let code = if problem.code == Code::DatabaseUnclear {
        Code::MigrationFailed
    } else {
        problem.code
    };
    Problem::new(code, format!("{}; nothing was changed", problem.message)).remedy(problem.remedy)
}
